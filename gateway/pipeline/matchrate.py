"""Does a task's share of matching requests fall? Near misses count against the task that they nearly match."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 40
"""So many of a task's newest requests are looked at."""
WINDOWS = (5, 6, 8, 10, 20, WINDOW)
ALPHA = 1e-5
"""How improbable so many misses among the newest requests must be at the share that was; for each window."""
LEAST_MISSES = 5
_SURE = 1.96


def wilson(successes: int, trials: int, z: float = _SURE) -> tuple[float, float]:
    """Bounds on a share (E. B. Wilson, "Probable Inference", JASA 22, 1927); `z` 1.96: true for 95 of 100."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z
    middle = share + square / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return (middle - spread) / (1 + square / trials), (middle + spread) / (1 + square / trials)


def tail(misses: int, trials: int, share: float) -> float:
    """The probability of at least so many misses in so many requests, if `share` of them miss (exact, binomial)."""
    return sum(math.comb(trials, i) * share**i * (1 - share) ** (trials - i) for i in range(misses, trials + 1))


def has_fallen(newest: Sequence[bool], matched: int, seen: int) -> bool:
    """Whether the newest requests (oldest first; True: it matches) match less often than `matched` of the `seen`
    before them. The share that was is taken at its lower 95 % bound, so that few requests prove little."""
    low, _ = wilson(matched, seen)
    for size in (size for size in WINDOWS if size <= len(newest)):
        misses = size - sum(newest[-size:])
        if misses >= LEAST_MISSES and tail(misses, size, 1 - low) < ALPHA:
            return True
    return False


class MatchRate:
    """A task's newest outcomes, and the counts of those before."""

    def __init__(self, matched: int = 0, seen: int = 0) -> None:
        self.matched, self.seen = matched, seen
        self.newest: deque[bool] = deque(maxlen=WINDOW)

    def add(self, *, matches: bool) -> bool:
        """Note one more request; whether the share has fallen."""
        if len(self.newest) == WINDOW:
            self.matched += self.newest[0]
            self.seen += 1
        self.newest.append(matches)
        return not matches and has_fallen(list(self.newest), self.matched, self.seen)

    @property
    def share(self) -> float | None:
        """The share of the newest requests that match; None where there are none."""
        return sum(self.newest) / len(self.newest) if self.newest else None

    @property
    def has_recovered(self) -> bool:
        """Whether a whole window matches, but for a few."""
        return len(self.newest) == WINDOW and sum(self.newest) >= WINDOW - LEAST_MISSES

    def settle(self) -> None:
        """The misses are explained by a new version now."""
        self.newest.clear()
