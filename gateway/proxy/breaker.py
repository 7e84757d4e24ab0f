"""Circuit breakers: a target that fails again and again is left alone for a while, then tried with one request.

The states are those of Nygard's "Release It!": closed (asked), open (left alone), half-open (one probe).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.domain.route import CircuitPolicy

_SLOTS = 10
BREAKERS_AT_MOST = 512

Clock = Callable[[], float]


class Window:
    """How many calls, and how many failures, the last `seconds` saw: counted in ten slots, forgotten by slot."""

    __slots__ = ("_calls", "_failures", "_slot", "_slot_seconds", "calls", "failures")

    def __init__(self, seconds: float) -> None:
        self._slot_seconds = seconds / _SLOTS
        self._calls, self._failures = [0] * _SLOTS, [0] * _SLOTS
        self._slot = self.calls = self.failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        """Count one call that ended `now`."""
        slot = int(now / self._slot_seconds)
        if slot > self._slot:
            self._forget(slot)
        place = self._slot % _SLOTS
        self._calls[place] += 1
        self.calls += 1
        if failed:
            self._failures[place] += 1
            self.failures += 1

    def _forget(self, slot: int) -> None:
        for old in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            place = old % _SLOTS
            self.calls -= self._calls[place]
            self.failures -= self._failures[place]
            self._calls[place] = self._failures[place] = 0
        self._slot = slot

    def clear(self) -> None:
        """As if there had been no calls."""
        self._calls, self._failures = [0] * _SLOTS, [0] * _SLOTS
        self.calls = self.failures = 0


class Breaker:
    """One target's circuit.

    Who asks the target notes `generation` then, and gives it back with the result: what was asked before the
    circuit last tripped, or last closed, says nothing about now.
    """

    __slots__ = ("_changed", "_clock", "_in_a_row", "_open_until", "_probe_until", "_trips", "_window",
                 "generation", "policy")  # fmt: skip

    def __init__(self, policy: CircuitPolicy, clock: Clock, changed: Callable[[bool], None]) -> None:
        """`clock`: seconds, never going back; `changed` is told whenever it opens (True) or closes (False)."""
        self.policy, self._clock, self._changed = policy, clock, changed
        self._window = Window(policy.window_seconds)
        self._in_a_row = self._trips = 0
        self._open_until: float | None = None
        self._probe_until = -math.inf
        self.generation = 0

    @property
    def is_open(self) -> bool:
        """Whether the target is left alone, but for probes."""
        return self._open_until is not None

    def admit(self) -> bool:
        """Whether to ask the target now; True in an open circuit makes the caller its probe."""
        if self._open_until is None:
            return True
        now = self._clock()
        if now < self._open_until or now < self._probe_until:
            return False
        self._probe_until = now + self._open_seconds()  # a probe that is never heard of again blocks no longer
        return True

    def closes_in(self) -> float:
        """Seconds until a probe may be let through; 0 in a closed circuit."""
        if self._open_until is None:
            return 0.0
        return max(0.0, max(self._open_until, self._probe_until) - self._clock())

    def succeeded(self, generation: int) -> None:
        """The target answered a call of this generation."""
        if generation != self.generation:
            return
        self._in_a_row = 0
        if self._open_until is None:
            self._window.add(self._clock(), failed=False)
            return
        self._open_until, self._trips = None, 0
        self._probe_until = -math.inf
        self._window.clear()
        self.generation += 1
        self._changed(False)

    def failed(self, generation: int) -> None:
        """A call of this generation failed, by the target's fault."""
        if generation != self.generation:
            return
        now = self._clock()
        if self._open_until is not None:
            if now >= self._open_until:  # the probe; before that, one that was asked for want of another target
                self._trip(now)
            return
        self._in_a_row += 1
        window, policy = self._window, self.policy
        window.add(now, failed=True)
        often = window.calls >= policy.min_calls and window.failures >= policy.error_rate * window.calls
        if often or self._in_a_row >= policy.failures:
            self._trip(now)

    def released(self, generation: int) -> None:
        """A call of this generation ended without telling anything of the target: its client left."""
        if generation == self.generation:
            self._probe_until = -math.inf

    def _open_seconds(self) -> float:
        policy = self.policy
        return min(policy.max_open_seconds, policy.open_seconds * 2.0 ** min(max(self._trips - 1, 0), 60))

    def _trip(self, now: float) -> None:
        first = self._open_until is None
        self._trips += 1
        self.generation += 1
        self._in_a_row = 0
        self._open_until, self._probe_until = now + self._open_seconds(), -math.inf
        if first:
            self._changed(True)


class Breakers:
    """The breaker of each target, by its label; routes with the same policy share it. `changed` is told the label
    of one that opens (True) or closes (False)."""

    def __init__(self, clock: Clock, changed: Callable[[str, bool], None] = lambda label, is_open: None) -> None:
        self._clock, self.changed = clock, changed
        self._breakers: dict[tuple[str, CircuitPolicy], Breaker] = {}

    def of(self, label: str, policy: CircuitPolicy) -> Breaker:
        """The target's breaker, closed where there was none."""
        found = self._breakers.get((label, policy))
        if found is None:
            if len(self._breakers) >= BREAKERS_AT_MOST:  # labels can hold the client's model name: it is bounded
                self._drop_closed()
            found = Breaker(policy, self._clock, lambda is_open: self.changed(label, is_open))
            self._breakers[label, policy] = found
        return found

    def _drop_closed(self) -> None:
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if breaker.is_open}
        while len(self._breakers) >= BREAKERS_AT_MOST:
            del self._breakers[next(iter(self._breakers))]
