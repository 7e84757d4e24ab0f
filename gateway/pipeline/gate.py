"""The gate: may a candidate take traffic? Interval bounds decide, not point estimates, and every figure is kept.

A candidate whose true quality is below the promise passes in at most `1 - confidence` of all decisions. Tasks
are decided upon again only when their data has grown by `retrain_growth`, so decisions are few.

The promise: what clients get agrees with the incumbent's answers in `1 - margin` of all cases. An incumbent that
answers the same request differently from time to time does not agree with itself so often; where it was asked
again, the promise is to agree with it as often as it does itself, less the margin.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.config import TaskPolicy
from gateway.pipeline.bounds import agreement_low
from gateway.pipeline.scores import Report, Score

LEAST_AGAIN = 50
"""So many rows the incumbent must have been asked again before its likeness to itself is the yardstick."""
LEAST_ITSELF = 0.8
"""An incumbent that agrees with itself less often is no yardstick for labels or JSON: being like it says little."""
LEAST_CONFIRMING = 20
"""Fewer confirmation rows are told, and decide nothing."""
LEAST_GOLD = 20
_NAMES = {
    "exact": "agreement",
    "fields": "F1 of JSON fields",
    "similarity": "likeness (chrF)",
    "judge": "preference of the judge",
}
_POLICY = {
    "margin",
    "confidence",
    "max_cost_ratio",
    "max_latency_ratio",
    "min_held_out",
    "measure",
    "judge",
    "approve",
}
_RULE = "every condition holds; bounds are one-sided at {confidence:.2%}"


class Check(msgspec.Struct, frozen=True):
    """One condition: what was measured, what was asked, whether it holds. `value` None: not known."""

    name: str
    value: float | None
    limit: float
    holds: bool

    def __str__(self) -> str:
        value = "unknown" if self.value is None else f"{self.value:.4g}"
        return f"{self.name}: {value} (limit {self.limit:.4g}) {'holds' if self.holds else 'FAILS'}"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The record of what was decided about a task, and why: inputs, figures, rule and outcome."""

    task: str
    evaluation: str
    candidate: str | None
    score: Score | None
    checks: tuple[Check, ...]
    promote: bool
    dataset: str = ""
    template: str = ""
    incumbent: Score | None = None
    confirmation: Score | None = None
    policy: dict[str, Any] = {}
    rule: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """One sentence."""
        if self.score is None:
            return "refused: there is no candidate to judge"
        failing = [str(check) for check in self.checks if not check.holds]
        verdict = "promoted" if self.promote else f"refused ({'; '.join(failing)})"
        return f"{self.score.candidate}: {verdict}"


def decide(report: Report, policy: TaskPolicy) -> Decision:
    """Judge the first candidate of the report. Only that one: asking one after the other until one passes
    would let luck choose."""
    best = report.candidates[0] if report.candidates else None
    checks = tuple(_checks(best, report, policy)) if best else ()
    return Decision(
        task=report.task,
        evaluation=report.id,
        candidate=best.finetune if best else None,
        score=best,
        checks=checks,
        promote=bool(best) and all(check.holds for check in checks),
        dataset=report.dataset,
        template=report.template,
        incumbent=report.incumbent,
        confirmation=confirmation_of(best, report) if best else None,
        policy=policy.model_dump(include=_POLICY),
        rule=_RULE.format(confidence=report.confidence),
        notes=tuple(_notes(best, report, policy)) if best else (),
    )


def _checks(best: Score, report: Report, policy: TaskPolicy) -> list[Check]:
    incumbent = report.incumbent
    checks = [
        Check("held-out rows", best.rows, policy.min_held_out, best.rows >= policy.min_held_out),
        Check("answers something (share of requests)", best.answered, 0.0, best.answered > 0),
        *_quality(best, report, policy),
        *_confirmation(best, report, policy),
        *_gold(best, policy),
    ]
    cost, base = best.cost_per_1k_usd, incumbent.cost_per_1k_usd
    if base == 0:
        checks.append(Check("USD per 1,000 requests, beside a free incumbent", cost, 0.0, cost == 0))
    elif base is not None:  # traffic without a price cannot be judged by cost; the table shows that
        checks.append(_at_most("cost, ratio to the incumbent", best.cost_ratio_high, policy.max_cost_ratio))
    checks.append(
        _at_most("p95 latency, ratio to the incumbent", best.latency_ratio_high, policy.max_latency_ratio)
    )
    return checks


# --- quality ---------------------------------------------------------------------------------------------


def _quality(best: Score, report: Report, policy: TaskPolicy) -> list[Check]:
    name, asked = _NAMES[report.measure], promise(report, policy)
    value, low, requests = _figures(best, report)
    if _is_beside_itself(report):
        beside = f"{name}, beside the incumbent's with itself, lower bound"
        checks = [_at_least(beside, best.difference_low, -policy.margin)]
    elif report.measure == "similarity":  # of how much likeness two good answers in prose have, nothing is known
        checks = [_at_least(f"{name}, beside the incumbent's with itself, lower bound", None, -policy.margin)]
    else:
        checks = [_at_least(f"{name}, lower bound", low, asked)]
    frequent = value if requests is None else requests
    return [*checks, _at_least(f"{name}, each input as often as it was asked", frequent, asked)]


def promise(report: Report, policy: TaskPolicy) -> float:
    """The least quality that is asked of a candidate: of a judge that finds both alike, 0.5 is the middle."""
    if report.measure == "judge":
        return 0.5 - policy.margin
    again = report.again
    itself = again.quality if again is not None and _is_beside_itself(report) else None
    return (1.0 if itself is None else itself) - policy.margin


def _is_beside_itself(report: Report) -> bool:
    """Whether the incumbent's likeness to itself is known well enough to be the yardstick."""
    again = report.again
    if again is None or again.quality is None or again.rows < LEAST_AGAIN or report.measure == "judge":
        return False
    return report.measure == "similarity" or again.quality >= LEAST_ITSELF


def _figures(score: Score, report: Report) -> tuple[float | None, float | None, float | None]:
    """(mean, lower bound, as often as asked) of the measure; earlier reports have the agreement only."""
    if score.quality is None and report.measure == "exact":
        return score.agreement, score.agreement_low, score.agreement_requests
    return score.quality, score.quality_low, score.quality_requests


def confirmation_of(best: Score, report: Report) -> Score | None:
    """What the newer rows say of this candidate; of one that a person chose instead, they were not asked."""
    found = report.confirmation
    return found if found is not None and found.finetune == best.finetune else None


def _confirmation(best: Score, report: Report, policy: TaskPolicy) -> list[Check]:
    """The newer rows are few: they cannot prove the promise again, but they can show that it does not hold."""
    found = confirmation_of(best, report)
    if found is None or found.rows < LEAST_CONFIRMING:
        return []
    name = f"{_NAMES[report.measure]} on {found.rows} newer rows, upper bound"
    return [_at_least(name, found.quality_high, promise(report, policy))]


def _gold(best: Score, policy: TaskPolicy) -> list[Check]:
    """People's corrections are no random sample, so they can only speak against a candidate."""
    gold = best.gold
    if gold is None or gold.difference is None or gold.rows < LEAST_GOLD:
        return []
    name = "accuracy by people's word beside the incumbent's, upper bound"
    return [_at_least(name, gold.difference.high, -policy.margin)]


def _at_most(name: str, bound: float | None, limit: float) -> Check:
    return Check(f"{name}, upper bound", bound, limit, bound is not None and bound <= limit)


def _at_least(name: str, bound: float | None, limit: float) -> Check:
    return Check(name, bound, limit, bound is not None and bound >= limit)


# --- what a reader of the record should know -----------------------------------------------------------------


def _notes(best: Score, report: Report, policy: TaskPolicy) -> list[str]:
    return [
        _how_chosen(best, report, policy),
        *_how_confirmed(best, report, policy),
        _how_measured(report, policy),
        *_against_itself(report),
    ]


def _how_chosen(best: Score, report: Report, policy: TaskPolicy) -> str:
    number = len(report.candidates)
    by = "by what training promised (cross-fitted)" if best.expected is not None else "by these rows"
    return (
        f"Chosen of {number} {by} and judged on {best.rows} validation rows; bounds at {report.confidence:.2%} "
        f"(the policy's {policy.confidence:.0%}, shared among those that the same rows choose)."
    )


def _how_confirmed(best: Score, report: Report, policy: TaskPolicy) -> list[str]:
    found = confirmation_of(best, report)
    if found is None:
        other = report.confirmation is not None
        return [f"Not confirmed on newer rows: {'another candidate was' if other else 'the dataset has none'}."]
    value, newer = _figures(best, report)[0], found.quality
    figures = f"{_share(value)} on the validation rows, {_share(newer)} on {found.rows} newer ones"
    if found.rows < LEAST_CONFIRMING:
        return [f"Too few newer rows to confirm by ({LEAST_CONFIRMING} are needed): {figures}."]
    before = f" They had been used {report.confirmed_before} times before." if report.confirmed_before else ""
    power = ""
    if report.measure == "exact":
        worst = noticed(found.rows, promise(report, policy), report.confidence)
        power = f" So many would most likely (80 %) have shown it, were the truth below {_share(worst)}."
    return [f"Confirmed once: {figures}.{power}{before}"]


def _how_measured(report: Report, policy: TaskPolicy) -> str:
    asked = f"at least {promise(report, policy):.3g}"
    return {
        "exact": f"Quality is the share of the incumbent's answers that are given alike, {asked}: a program that "
        "reads labels or JSON sees any difference.",
        "fields": f"Quality is the mean F1 of an answer's JSON fields against the incumbent's, {asked}.",
        "similarity": "Quality is the likeness (chrF) to the incumbent's answers, beside that of the incumbent's "
        "own second answers.",
        "judge": f"Quality is the preference of {policy.judge}: 1 for a win, 0.5 for a tie, in both orders; "
        f"{asked}, where two equally good models would have 0.5.",
    }[report.measure]


def _against_itself(report: Report) -> list[str]:
    again = report.again
    if again is None or again.quality is None:
        return ["The incumbent was not asked again: what it answers by chance counts against the candidate."]
    said = f"Asked again, the incumbent agrees with itself by {_share(again.quality)} on {again.rows} rows"
    if _is_beside_itself(report):
        return [f"{said}; that is the yardstick."]
    return [f"{said}: too few rows, or too little, to be the yardstick."]


def noticed(rows: int, promised: float, confidence: float) -> float:
    """The true agreement below which so many rows would refute the promise in four of five cases."""
    most = next((n for n in range(rows + 1) if 1 - agreement_low(rows - n, rows, confidence) < promised), rows + 1)
    if most > rows:
        return 0.0
    from scipy.stats import beta

    return 1 - float(beta.ppf(0.8, most, rows - most + 1))


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
