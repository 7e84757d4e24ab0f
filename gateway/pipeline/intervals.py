"""Intervals of the evaluation: means of bounded figures, paired differences, resampled figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000
_AT_ONCE = 4_000_000
"""Weights that are drawn at once, for memory."""


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

    Values are between 0 and 1. Where all are 0 or 1: the score interval for paired shares (Tango 1998), whose true
    rate of error stays at the stated one from 60 rows on (`benchmarks/gate.py`). Else by betting.
    """
    if not one:
        return -1.0
    first, second = np.array(one, dtype=float), np.array(other, dtype=float)
    difference = first - second
    if set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        return _tango(int((difference > 0).sum()), int((difference < 0).sum()), len(first), confidence)
    return 2 * mean_low((1 + difference) / 2, confidence) - 1


def _tango(better: int, worse: int, rows: int, confidence: float) -> float:
    """Where the score statistic reaches the normal quantile, by bisection."""
    from statistics import NormalDist

    wanted = NormalDist().inv_cdf(confidence)
    low, high = -1.0, (better - worse) / rows
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(better, worse, rows, middle) >= wanted else (low, middle)
    return low


def _score(better: int, worse: int, rows: int, difference: float) -> float:
    """The difference that was seen beyond the supposed one, in standard deviations under the supposition."""
    b = (2 * rows - better + worse) * difference - better - worse
    c = -worse * difference * (1 - difference)
    share = (max(b * b - 8 * rows * c, 0.0) ** 0.5 - b) / (4 * rows)
    variance = rows * (2 * share + difference * (1 - difference))
    return float((better - worse - rows * difference) / max(variance, 1e-12) ** 0.5)
