"""From when on a model elsewhere may answer that says how sure it was of each token.

Nothing is known of it from training, so the rows that judge it choose its threshold, too. That is two looks at
them (`LOOKS`), among which the error is shared (Bonferroni): whether it may answer everything; and if not, whether
what it is surest of keeps the promise, then a little more, up to the first threshold that does not (fixed sequence
testing, see `bounds.most_that_keep`). Which of the two is taken, and where the second ends, is thereby paid for:
the chosen threshold breaks the promise in at most `1 - confidence` of all evaluations (`benchmarks/thresholds.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.config import TaskPolicy
from gateway.pipeline.asking import Answered, same_answer
from gateway.pipeline.bounds import agreement_low, most_that_keep
from gateway.pipeline.trial import Trial

LOOKS = 2
_DIGITS = 10_000


def tells(answers: Sequence[Answered]) -> bool:
    """Whether the model says how sure it is."""
    return any(answer.text is not None and answer.sure is not None for answer in answers)


def threshold_of(trial: Trial, answers: Sequence[Answered], policy: TaskPolicy, confidence: float) -> float:
    """From when on a candidate may answer that gave these answers; 0 also where no threshold can be shown to keep
    the promise: then the gate judges it without one."""
    given = np.array([answer.text is not None for answer in answers])
    right = np.array([
        row.exchange_id not in trial.beyond and same_answer(row.output, answer.text or "")
        for row, answer in zip(trial.rows, answers, strict=True)
    ])  # fmt: skip
    sure = np.array([math.nan if answer.sure is None else answer.sure for answer in answers])
    return lowest_threshold(given, right, sure, policy, confidence) or 0.0


def lowest_threshold(
    given: NDArray[Any], right: NDArray[Any], sure: NDArray[Any], policy: TaskPolicy, confidence: float
) -> float | None:
    """The lowest threshold at which the answers agree as promised, and with them what clients get; 0: all may be
    answered; None: no threshold can be shown to do. By row (rows,): whether there is an answer, whether it is
    right, and how sure it is (nan: it does not tell)."""
    rows, promised, wrong = len(given), 1 - policy.margin, int((given & ~right).sum())
    if _keeps(wrong, int(given.sum()), policy.answer_agreement, confidence) and _keeps(
        wrong, rows, promised, confidence
    ):
        return 0.0
    told = np.flatnonzero(given & ~np.isnan(sure))
    told = told[np.argsort(-sure[told], kind="stable")]
    exactly, misses = sure[told], np.cumsum(~right[told])
    # What is equally sure to four digits stays together, also if it is certain: the same model differs by less from
    # one time to another.
    sure = np.minimum(np.floor(exactly * _DIGITS + 1e-6), _DIGITS - 1) / _DIGITS
    ends = 1 + np.flatnonzero(np.append(sure[1:] < sure[:-1], True)) if len(sure) else np.array([], dtype=int)
    ends = ends[sure[ends - 1] > 0]
    kept = most_that_keep(sure, misses, ends, policy.answer_agreement, confidence, whole=(rows, promised))
    return float(min(sure[kept - 1], exactly[kept - 1])) if kept else None


def _keeps(wrong: int, rows: int, promised: float, confidence: float) -> bool:
    return rows > 0 and agreement_low(wrong, rows, confidence) >= promised
