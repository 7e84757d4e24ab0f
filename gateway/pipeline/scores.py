"""What an evaluation finds: one line for each candidate and baseline, and the report that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from gateway.pipeline.intervals import Figure

Role = Literal["candidate", "incumbent", "incumbent again", "base stripped", "base whole", "sibling"]
Measure = Literal["exact", "fields", "similarity", "judge"]
"""By what the gate judges: the same answer, F1 of JSON fields, chrF, or the preference of a judge model."""


class Gold(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracy on the rows whose answer a person corrected or approved: no random sample, but the truth.

    `difference` to the incumbent is over the rows where its own answer is known, with a two-sided interval.
    """

    rows: int
    accuracy: Figure
    difference: Figure | None = None


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. Shares from 0 to 1; `agreement_low` is the one-sided lower bound.

    `agreement` counts each distinct input once, `agreement_requests` as often as it was asked. The ratios are
    one-sided upper bounds against the incumbent on the same rows: of mean cost, and of p95 latency.
    """

    candidate: str
    upstream: str
    model: str
    rows: int
    agreement: float
    agreement_low: float
    answered: float
    agreement_answered: float | None
    min_confidence: float
    cost_per_1k_usd: float | None
    p50_ms: float | None
    p95_ms: float | None
    input_tokens: float | None
    finetune: str | None = None
    expected: float | None = None
    """What training alone promised to answer rightly (share of all requests); orders the candidates."""
    agreement_requests: float | None = None
    cost_ratio_high: float | None = None
    latency_ratio_high: float | None = None
    role: Role = "candidate"
    quality: float | None = None
    """The mean of what the report's `measure` gives each row; with its one-sided bounds, and as often as asked."""
    quality_low: float | None = None
    quality_high: float | None = None
    quality_requests: float | None = None
    difference_low: float | None = None
    """Lower bound of the quality beyond that of the incumbent's own second answers; see `itself`."""
    beaten_low: float | None = None
    """Lower bound of how much larger the share of requests is that the report's first candidate answers itself, and
    rightly (by the report's measure), than this one's, row by row. None for the first candidate itself."""
    metrics: dict[str, Figure] = {}
    """Further measures of the task's kind, each with a two-sided 95 % interval."""
    gold: Gold | None = None
    hosting_per_1k_usd: float = 0.0
    """The part of `cost_per_1k_usd` that is paid by the hour."""
    break_even_per_day: float | None = None
    """From so many requests a day on it is cheaper than the incumbent; None: never, or not known."""
    latency_source: str = ""


class JudgeBill(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge was asked and said. `consistent` is the share of pairs on which both orders agreed; `cost_usd`
    None: its price is not known."""

    model: str
    pairs: int
    better: int
    equal: int
    worse: int
    unanswered: int
    consistent: float | None
    cost_usd: float | None


class Itself(msgspec.Struct, frozen=True, kw_only=True):
    """How well the incumbent agrees with itself: the mean quality of so many second answers."""

    rows: int
    value: float
    source: Literal["asked again", "asked twice by the app"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The incumbent, every candidate that was trained (the one to judge first), and what they are compared with.

    `provider` and `model` are what the task's requests ask for, `incumbent` is who answers them. `confirmation`
    is the first candidate once more, on rows that are newer than all others; `confirmed_before` counts earlier
    evaluations that used them.
    """

    id: str
    task: str
    dataset: str
    template: str
    confidence: float
    incumbent: Score
    candidates: list[Score]
    failed: dict[str, str]
    provider: str = ""
    model: str | None = None
    kind: str = "classification"
    measure: Measure = "exact"
    baselines: list[Score] = []
    confirmation: Score | None = None
    confirmed_before: int = 0
    requests_per_day: float | None = None
    judge: JudgeBill | None = None
    twice: Itself | None = None
    """What the inputs say that the app asked more than once."""

    @property
    def itself(self) -> Itself | None:
        """How far the incumbent agrees with itself: asked again, or else by what the app asked twice."""
        again = self.again
        if again is None or again.quality is None:
            return self.twice
        return Itself(rows=again.rows, value=again.quality, source="asked again")

    @property
    def again(self) -> Score | None:
        """The incumbent asked a second time, where it was."""
        return next((score for score in self.baselines if score.role == "incumbent again"), None)


def load_report(row: Mapping[str, Any]) -> Report:
    """The report in a row of the table `evaluations`."""
    return msgspec.convert(json.loads(row["report"]), Report)
