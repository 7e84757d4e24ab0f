"""How long to wait before something that ended is started again."""

from __future__ import annotations


class Backoff:
    """How long to wait before something that ended is started again: not at all, unless it keeps ending."""

    def __init__(self, *, longest: float = 30.0, sound: float = 10.0) -> None:
        self._longest, self._sound = longest, sound
        self._early = 0

    def pause(self, lived: float) -> float:
        """Seconds. `lived` is how long it ran; `sound` seconds and more is no failure to start."""
        self._early = 0 if lived >= self._sound else self._early + 1
        return 0.0 if self._early < 2 else min(0.25 * 2.0 ** min(self._early - 2, 20), self._longest)
