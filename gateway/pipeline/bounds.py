"""The statistics of the gate: exact bounds on shares, resampled bounds on ratios, and the threshold for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.config import TaskPolicy

NEVER = 1.01
"""A threshold that no confidence reaches: every request goes to the incumbent."""
LEAST = 1e-6
"""The lowest threshold of a model that knows how sure it is: 0 would answer what is unlike all it has seen."""
SUREST = 0.999
"""The highest threshold, and all are of three digits: beyond that, models of the same data differ by chance, and
one that was always 0.999999 sure when left out would never be so live."""
FLOOR = 0.7
"""The lowest threshold of a model with a promise: less sure, it is wrong too often where nobody has looked."""
STEP = 0.02
"""By so many rows more, as a share of all, each next threshold is tried."""
POWERS = (0.99, 0.95, 0.8, 0.5)
"""How probable it should be that the held-out rows confirm a threshold; few rows cannot give the first."""
_RESAMPLES = 1000
CrossFit = tuple[NDArray[Any], NDArray[Any]]
"""Confidence (rows,) and whether the answer was right (rows,), each from a model that had not seen the row."""


def agreement_low(wrong: int, rows: int, confidence: float) -> float:
    """One-sided lower bound of the share of rows that agree (Clopper and Pearson 1934, exact binomial)."""
    from scipy.stats import beta

    return 0.0 if wrong >= rows else float(beta.ppf(1 - confidence, rows - wrong, wrong + 1))


def most_wrong_that_pass(rows: int, margin: float, confidence: float) -> int:
    """With at most so many wrong answers, `rows` rows show an agreement of 1 - margin; -1: they never can."""
    low, high = -1, rows
    while high - low > 1:  # the bound falls with every wrong answer
        middle = (low + high) // 2
        if agreement_low(middle, rows, confidence) >= 1 - margin:
            low = middle
        else:
            high = middle
    return low


def chance_to_pass(wrong: NDArray[Any], seen: int, rows: int, margin: float, confidence: float) -> NDArray[Any]:
    """The probability that `rows` fresh rows show an agreement of 1 - margin, after `wrong` answers in `seen` rows
    (beta-binomial, the predictive distribution under a uniform prior)."""
    from scipy.special import betaln, gammaln

    counts, place = np.unique(wrong, return_inverse=True)
    a, b = counts[:, None] + 1.0, seen - counts[:, None] + 1.0
    k = np.arange(most_wrong_that_pass(rows, margin, confidence) + 1)[None, :]
    ways = gammaln(rows + 1) - gammaln(k + 1) - gammaln(rows - k + 1)
    chance: NDArray[Any] = np.exp(ways + betaln(k + a, rows - k + b) - betaln(a, b)).sum(axis=1)
    return chance[place]


def most_that_keep(
    sure: NDArray[Any], wrong: NDArray[Any], ends: NDArray[Any], agreement: float, confidence: float,
    whole: tuple[int, float] = (0, 0.0),
) -> int:  # fmt: skip
    """How many of the surest rows may be answered so that the answers agree as promised; 0: that cannot be shown.

    Of `ends`, the ascending counts of rows that a threshold can let through; `sure` descends, and `wrong[k - 1]` is
    how many of the k surest were answered otherwise than the teacher did. The true agreement is kept with
    probability `confidence`: thresholds are tested by the exact binomial bound in an order that is fixed before
    right and wrong are looked at, up to the first that fails (fixed sequence testing in "Learn then Test",
    Angelopoulos et al. 2021). The first is where by the confidences alone the promise would be kept most clearly,
    and each next one lets more rows through. `whole`: of so many rows, with those that somebody else answers
    rightly, so large a share must agree, too.
    """
    if agreement >= 1:
        return 0
    ends = ends[ends >= np.log(1 - confidence) / np.log(agreement)]  # fewer cannot show it, were all of them right
    if not len(ends):
        return 0
    margin = np.cumsum(sure)[ends - 1] / ends - agreement
    asked, kept = float(ends[int(np.argmax(margin * np.sqrt(ends)))]), 0
    while (place := int(np.searchsorted(ends, asked))) < len(ends):
        rows = int(ends[place])
        misses, (all_rows, promised) = int(wrong[rows - 1]), whole
        if agreement_low(misses, rows, confidence) < agreement:
            break
        if all_rows and agreement_low(misses, all_rows, confidence) < promised:
            break
        kept, asked = rows, rows + max(1.0, STEP * len(sure))
    return kept


def choose_threshold(
    cross_fit: CrossFit | None, policy: TaskPolicy, rows: int, confidence: float
) -> tuple[float, float | None]:
    """(threshold, expected share answered rightly). The lowest threshold (see `FLOOR`) at which the answered
    rows keep the promised agreement with the policy's confidence (see `most_that_keep`) and `rows` validation rows
    will most likely confirm it with `confidence`: as sure as `POWERS` allow. 0 rows: nothing is to be confirmed.

    One that is stricter than a threshold that keeps the promise keeps it too, if surer answers are no worse.
    """
    if cross_fit is None:
        return 0.0, None
    sure, right = cross_fit
    sure = np.minimum(np.floor(sure * 1000 + 1e-6) / 1000, SUREST)
    order = np.argsort(-sure, kind="stable")
    sure, right = sure[order], right[order]
    wrong = np.cumsum(~right)
    ends = 1 + np.flatnonzero(np.append(sure[1:] < sure[:-1], True))  # those that are equally sure stay together
    counts = _that_may_be_answered(sure, wrong, ends[sure[ends - 1] > 0], policy)
    chance = (
        chance_to_pass(wrong[counts - 1], len(sure), rows, policy.margin, confidence)
        if rows
        else np.ones(len(counts))
    )
    for power in POWERS:
        able = counts[chance >= power]
        if len(able):
            most = int(able[-1])
            return float(sure[most - 1]), float((most - wrong[most - 1]) / len(sure))
    return NEVER, 0.0


def _that_may_be_answered(
    sure: NDArray[Any], wrong: NDArray[Any], ends: NDArray[Any], policy: TaskPolicy
) -> NDArray[Any]:
    """Those of `ends` whose thresholds keep the promise and are no lower than they should ever be.

    Where nearly all seen so far was answered rightly, the promise asks for no threshold: what stands between such
    a model and questions of another kind is only how sure it is, so each answer must be as sure as the promise.
    """
    kept = most_that_keep(sure, wrong, ends, policy.answer_agreement, policy.confidence)
    is_easy = kept > 0 and kept + STEP * len(sure) >= ends[-1]
    counts = ends[(ends <= kept) & (sure[ends - 1] >= (policy.answer_agreement if is_easy else FLOOR))]
    found: NDArray[Any] = counts[1 - wrong[counts - 1] / counts >= policy.answer_agreement]
    return found


Statistic = Callable[[NDArray[Any]], NDArray[Any]]
"""From values (resamples, rows) to one figure each (resamples,)."""


def mean(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values.mean(axis=-1))


def p95(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.percentile(values, 95, axis=-1))


def ratio_high(
    candidate: Sequence[float | None], base: Sequence[float | None], figure: Statistic, confidence: float
) -> float | None:
    """One-sided upper bound of the ratio of two figures over the same rows, by resampling the rows (percentile
    bootstrap, Efron 1979; deterministic). None where a value is missing on one side, or the base is nothing."""
    pairs = [(a, b) for a, b in zip(candidate, base, strict=True) if b is not None]
    if not pairs or any(a is None for a, _ in pairs):
        return None
    above, below = np.array(pairs, dtype=float).T
    random = np.random.default_rng(0)
    ratios: list[NDArray[Any]] = []
    for _ in range(10):  # in parts, for memory
        drawn = random.integers(0, len(above), (_RESAMPLES // 10, len(above)))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(figure(above[drawn]) / figure(below[drawn]))
    drawn_ratios = np.concatenate(ratios)
    return float(np.quantile(drawn_ratios, confidence)) if np.isfinite(drawn_ratios).all() else None
