"""How fast a request's body comes: a client that sends a byte now and then must not hold a connection for ever.

A leaky bucket of seconds. Apache's `mod_reqtimeout` (MinRate) lengthens a body's time by the bytes that came, too,
but without a bound: here who was fast for an hour has no more patience to use up than who has just begun.
"""

from __future__ import annotations


class Pace:
    """The patience that is left with one body. Times as `time.perf_counter()`."""

    __slots__ = ("_left", "_patience", "_rate", "_received", "_since", "body")

    def __init__(self, body: object, patience: float, rate: float, now: float) -> None:
        """`body` says whose pace it is. `patience`: seconds, at the start and at most. `rate`: the bytes a second
        that keep it (0: any do)."""
        self.body, self._patience, self._rate = body, patience, rate
        self._left, self._since, self._received = patience, now, 0

    def received(self, size: int) -> None:
        """So many bytes came."""
        self._received += size

    def rests(self, now: float) -> None:
        """Since the last look nobody took the body: that was not its sender's fault."""
        self._since, self._received = now, 0

    def is_over(self, now: float) -> bool:
        """To be asked again and again: whether the patience is used up."""
        if self._rate:
            earned = self._received / self._rate
            self._left = min(self._patience, self._left + earned - (now - self._since))
        self._since, self._received = now, 0
        return self._left < 0
