"""Tests of a share that may be looked at after every observation: has it risen above what is allowed?

An observation is a number from 0 to 1, mostly 0 or 1 (the candidate's answer differs, a request failed). Each is
bet against the hypothesis that its mean, given all before it, is at most what is allowed. Kept as a few numbers, so
that a test goes on after any restart; what is allowed may change from one observation to the next.

Sources: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 86, 2024)
for the bets; J. Shin, A. Ramdas and A. Rinaldo, "E-detectors: a nonparametric framework for sequential change
detection" (NEJSDS 2, 2024) for `Bets.change` (the e-Shiryaev-Roberts detector).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import msgspec

ODDS = (1.6, 2.25, 4.0, 10.0)
"""The bets: on the odds being so many times those of the allowed mean. Decay by a factor of two is found fastest,
great harm within a few observations."""
WEIGHTS = (0.2, 0.4, 0.2, 0.2)
WARNING = 5.0
"""Evidence is a warning when a change would have begun about so many allowed events ago."""
SETTLED = 0.5
"""A warning is over at so much of what raises one."""
_LEAST = 1e-6
MOST = 1e8
"""Beyond any limit: more would only take longer to be forgotten when all is well again."""


class Bets(msgspec.Struct, frozen=True):
    """What is kept of the observations so far. `restarted`: for each bet the wealth of one gambler more for each
    observation, who began there with 1; `logs`: the logarithm of the wealth of the one who began first.
    """

    seen: int = 0
    total: float = 0.0
    restarted: tuple[float, ...] = (0.0,) * len(ODDS)
    logs: tuple[float, ...] = (0.0,) * len(ODDS)

    @property
    def change(self) -> float:
        """Evidence that the mean has risen above what is allowed, at whatever time. As long as it has not, it takes
        at least A observations on average until this reaches A (Shin, Ramdas and Rinaldo, theorem 2.4)."""
        return math.fsum(w * wealth for w, wealth in zip(WEIGHTS, self.restarted, strict=True))

    @property
    def excess(self) -> float:
        """Evidence that the mean is above what is allowed, and was from the first on. As long as it is not, this
        ever reaches 1 / alpha with a probability of at most alpha (Ville's inequality)."""
        return math.fsum(w * math.exp(min(log, 700.0)) for w, log in zip(WEIGHTS, self.logs, strict=True))

    def suspicion(self, allowed: float, warning: float = WARNING) -> float:
        """How near the evidence is to a warning. From 1 on it is more than what comes and goes by chance, and worth
        a closer look."""
        return self.change * max(allowed, _LEAST) / warning

    def is_settled(self, allowed: float) -> bool:
        """Whether a warning is over: half of what raises one, so that it does not flicker."""
        return self.suspicion(allowed) < SETTLED


def observed(bets: Bets, value: float, allowed: float) -> Bets:
    """The bets after one more observation.

    `value` 0..1; `allowed`: the highest mean that it may have had, decided before the value was known.

    Raises:
        ValueError: the value is not from 0 to 1.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"an observation is a number from 0 to 1, not {value!r}")
    factors, logs = _payoffs(value, allowed)
    return Bets(
        seen=bets.seen + 1,
        total=bets.total + value,
        restarted=tuple([min((w + 1) * f, MOST) for w, f in zip(bets.restarted, factors, strict=True)]),
        logs=tuple([log + more for log, more in zip(bets.logs, logs, strict=True)]),
    )


@lru_cache(maxsize=1024)
def _payoffs(value: float, allowed: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What each bet of 1 becomes, and its logarithm: most observations are 0 or 1, and what is allowed seldom
    changes."""
    factors = tuple(_payoff(odds, value, allowed) for odds in ODDS)
    return factors, tuple(map(math.log, factors))


def _payoff(odds: float, value: float, allowed: float) -> float:
    """What a bet of 1 becomes; its mean is at most 1 while the value's is at most `allowed`. At 0 and 1 it is the
    likelihood ratio of the mean bet on, in between the line from one to the other."""
    m = min(max(allowed, _LEAST), 1 - _LEAST)
    meant = odds * m / (1 + (odds - 1) * m)
    at_0, at_1 = (1 - meant) / (1 - m), meant / m
    return at_0 + value * (at_1 - at_0)


class Interval(NamedTuple):
    """A mean with its bounds."""

    low: float
    mean: float
    high: float


def interval(seen: int, total: float, confidence: float) -> Interval:
    """Bounds on the mean that hold at all times at once with this confidence, however often they are looked at, as
    long as the mean stays what it is: Robbins' mixture with a uniform prior (H. Robbins, "Statistical Methods
    Related to the Law of the Iterated Logarithm", Ann. Math. Stat. 41, 1970). It holds for observations between 0
    and 1, too, since the likelihood ratio is convex in them (W. Hoeffding, JASA 58, 1963)."""
    if seen == 0:
        return Interval(0.0, 0.5, 1.0)
    mean = total / seen
    limit = _log_beta(total + 1, seen - total + 1) + math.log(1 - confidence)

    def is_inside(p: float) -> bool:
        return total * math.log(p) + (seen - total) * math.log1p(-p) >= limit

    return Interval(_edge(is_inside, mean, 0.0), mean, _edge(is_inside, mean, 1.0))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _edge(is_inside: Callable[[float], bool], mean: float, end: float) -> float:
    """Where the interval ends between its middle and this end of the scale, by halving."""
    inside, outside = mean, end
    for _ in range(50):
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return outside
