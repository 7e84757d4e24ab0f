"""Intervals of the evaluation: means of bounded figures, paired differences, resampled figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000
_AT_ONCE = 4_000_000
"""Weights that are drawn at once, for memory."""
_WIDER = 0.12
"""The normal quantile of the score intervals is raised by so much. Few answers are wrong, so without it a bound
that should fail in 5.0 % of cases fails in up to 5.8 % (5.5 % where rows are paired), counted over all outcomes;
with it in at most 4.9 %, given a hundred other rows and a tenth of the rows (`benchmarks/gate.py --exact`)."""


class Figure(msgspec.Struct, frozen=True):
    """A figure and its two-sided 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(counts: NDArray[Any], figure: Callable[[NDArray[Any]], NDArray[Any]]) -> Figure:
    """The figure over all rows, with its percentile interval by resampling rows (Efron 1979; seed fixed).

    `counts` is (rows, k); `figure` makes (n,) figures of (n, k) sums over rows. No rows: an interval of 0 to 1.
    """
    if not len(counts):
        return Figure(0.0, 0.0, 1.0)
    value = float(figure(counts.sum(axis=0, keepdims=True))[0])
    random, rows = np.random.default_rng(0), len(counts)
    step = max(1, min(_RESAMPLES, _AT_ONCE // rows))
    drawn = [
        figure(random.multinomial(rows, np.full(rows, 1 / rows), size=min(step, _RESAMPLES - start)) @ counts)
        for start in range(0, _RESAMPLES, step)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Figure(value, float(low), float(high))


def mean_figure(values: Sequence[float]) -> Figure:
    """The mean of one value a row, with its resampled interval."""
    column = np.array(values, dtype=float).reshape(-1, 1)
    return bootstrap(column, lambda sums: sums[:, 0] / len(column))


def mean_low(values: Sequence[float], confidence: float) -> float:
    """One-sided lower bound of the mean of values between 0 and 1, in the order in which they were drawn.

    By betting (Waudby-Smith and Ramdas 2024, section 4, predictable plug-in bets): the means at which nobody who
    bets against them would have multiplied the money by 1 / (1 - confidence). Holds for any distribution.
    """
    x = np.array(values, dtype=float)
    rows = len(x)
    if not rows:
        return 0.0
    goal = float(np.log(1 / (1 - confidence)))
    seen = np.arange(1, rows + 1)
    means = (0.5 + np.cumsum(x)) / (seen + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (seen + 1)
    bets = np.sqrt(2 * goal / (rows * np.concatenate([[0.25], variances[:-1]])))
    low, high = 0.0, 1.0
    for _ in range(30):  # the money falls as the mean rises
        middle = (low + high) / 2
        money = np.cumsum(np.log1p(np.minimum(bets, 0.75 / middle) * (x - middle)))
        low, high = (middle, high) if money.max() >= goal else (low, middle)
    return min(low, float(x.mean()))  # with little confidence the first few values could lead beyond it


def mean_high(values: Sequence[float], confidence: float) -> float:
    """One-sided upper bound of the mean of values between 0 and 1."""
    return 1 - mean_low([1 - value for value in values], confidence)


def difference_low(one: Sequence[float], other: Sequence[float], confidence: float) -> float:
    """One-sided lower bound of how much greater the mean of `one` is than that of `other`, row by row.

    Values are between 0 and 1. Where all are 0 or 1: the score interval for paired shares (Tango 1998), a little
    wider (see `_WIDER`). Else by betting.
    """
    if not one:
        return -1.0
    first, second = np.array(one, dtype=float), np.array(other, dtype=float)
    difference = first - second
    if set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        return _tango(int((difference > 0).sum()), int((difference < 0).sum()), len(first), confidence)
    return 2 * mean_low((1 + difference) / 2, confidence) - 1


def _tango(better: int, worse: int, rows: int, confidence: float) -> float:
    return _where(lambda at: _score(better, worse, rows, at), (better - worse) / rows, confidence)


def _where(score: Callable[[float], float], seen: float, confidence: float) -> float:
    """The difference, at most the one that was seen, at which the score reaches its quantile, by bisection."""
    wanted = NormalDist().inv_cdf(confidence) + _WIDER
    low, high = -1.0, seen
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) >= wanted else (low, middle)
    return low


def _score(better: int, worse: int, rows: int, difference: float) -> float:
    """The difference that was seen beyond the supposed one, in standard deviations under the supposition."""
    b = (2 * rows - better + worse) * difference - better - worse
    c = -worse * difference * (1 - difference)
    share = (max(b * b - 8 * rows * c, 0.0) ** 0.5 - b) / (4 * rows)
    variance = rows * (2 * share + difference * (1 - difference))
    return float((better - worse - rows * difference) / max(variance, 1e-12) ** 0.5)


def unpaired_low(right: int, rows: int, other_right: int, other_rows: int, confidence: float) -> float:
    """One-sided lower bound of how much greater the share `right / rows` is than `other_right / other_rows`, of
    other rows: the score interval for two shares (Farrington and Manning 1990), a little wider (see `_WIDER`). It
    is too low rather than too high where the rows are partly the same."""
    if not rows or not other_rows:
        return -1.0
    first, second = right / rows, other_right / other_rows

    def score(difference: float) -> float:
        one = _restricted(first, rows, second, other_rows, difference)
        other = one - difference
        variance = one * (1 - one) / rows + other * (1 - other) / other_rows
        return float((first - second - difference) / max(variance, 1e-12) ** 0.5)

    return _where(score, first - second, confidence)


def _restricted(first: float, rows: int, second: float, other_rows: int, difference: float) -> float:
    """The likeliest share behind `first` where the other one is smaller by `difference`: the middle root of the
    likelihood's cubic, in closed form."""
    ratio = other_rows / rows
    a = 1 + ratio
    b = -(1 + ratio + first + ratio * second + difference * (ratio + 2))
    c = difference**2 + difference * (2 * first + ratio + 1) + first + ratio * second
    d = -first * difference * (1 + difference)
    v = b**3 / (27 * a**3) - b * c / (6 * a**2) + d / (2 * a)
    u = math.copysign(max(b**2 / (9 * a**2) - c / (3 * a), 1e-24) ** 0.5, v)
    w = (math.pi + math.acos(min(1.0, max(-1.0, v / u**3)))) / 3
    return min(1.0, max(0.0, difference, min(1.0 + min(difference, 0.0), 2 * u * math.cos(w) - b / (3 * a))))
