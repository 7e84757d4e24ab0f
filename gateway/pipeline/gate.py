"""The gate: may a candidate take traffic? Interval bounds decide, not point estimates, and every figure is kept.

A candidate whose true quality is below the promise passes in at most `1 - confidence` of all decisions. Tasks
are decided upon again only when their data has grown by `retrain_growth`, so decisions are few.

The promise: what clients get agrees with the incumbent's answers in `1 - margin` of all cases. An incumbent that
answers the same request differently from time to time does not agree with itself so often; where that is known,
the promise is to agree with it as often as it does itself, less the margin. Who keeps the first promise keeps the
second, so a candidate that shows either is as good as asked; that both are looked at lets no more bad ones through
than the second alone would (`benchmarks/gate.py --exact`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.config import TaskPolicy
from gateway.domain.route import LOCAL
from gateway.pipeline.bounds import agreement_low
from gateway.pipeline.itself import LEAST_AGAIN, LEAST_ITSELF
from gateway.pipeline.scores import Report, Score

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

    @property
    def figures(self) -> str:
        """Name, value and limit in words."""
        value = "not known" if self.value is None else f"{self.value:.4g}"
        return f"{self.name}: {value}, limit {self.limit:.4g}"


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
        """One sentence. Whether traffic goes there now is another matter: a person may have to say so first."""
        if self.score is None:
            return "refused: there is no candidate to judge"
        verdict = "passes the gate" if self.promote else f"refused by the gate ({self.failing})"
        return f"{self.score.candidate}: {verdict}"

    @property
    def sentence(self) -> str:
        """The same with every condition's figures, for the log."""
        figures = "; ".join(check.figures for check in self.checks)
        return f"{self.reason}: {figures}" if self.promote else self.reason

    def but(self, *more: Check) -> Decision:
        """The same with more conditions, which must hold, too."""
        holds = self.promote and all(check.holds for check in more)
        return msgspec.structs.replace(self, checks=(*self.checks, *more), promote=holds)

    @property
    def failing(self) -> str:
        """The conditions that do not hold, with their figures; empty where all do."""
        return "; ".join(check.figures for check in self.checks if not check.holds)


def decide(report: Report, policy: TaskPolicy, *, named_of: int = 0) -> Decision:
    """Judge the first candidate of the report. Only that one: asking one after the other until one passes
    would let luck choose. `named_of`: of so many, a person has named this one; the record says so."""
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
        notes=tuple(_notes(best, report, policy, named_of)) if best else (),
    )


def _checks(best: Score, report: Report, policy: TaskPolicy) -> list[Check]:
    incumbent = report.incumbent
    checks = [
        Check("held-out rows", best.rows, policy.min_held_out, best.rows >= policy.min_held_out),
        Check("answers requests itself (share, above the limit)", best.answered, 0.0, best.answered > 0),
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
    if _is_beside_itself(best, report, policy):
        beside = f"{name}, beside the incumbent's with itself, lower bound"
        checks = [_at_least(beside, best.difference_low, -policy.margin)]
    elif report.measure == "similarity":  # of how much likeness two good answers in prose have, nothing is known
        checks = [_at_least(f"{name}, beside the incumbent's with itself, lower bound", None, -policy.margin)]
    else:
        checks = [_at_least(f"{name}, lower bound", low, asked)]
    frequent = value if requests is None else requests
    return [*checks, _at_least(f"{name}, each input as often as it was asked", frequent, asked)]


def promise(report: Report, policy: TaskPolicy) -> float:
    """The least quality that is asked of the first candidate; of a judge that finds both alike, 0.5 is the
    middle."""
    if report.measure == "judge":
        return 0.5 - policy.margin
    best, found = next(iter(report.candidates), None), report.itself
    if best is not None and found is not None and _is_beside_itself(best, report, policy):
        return found.value - policy.margin
    return 1.0 - policy.margin


def _is_beside_itself(best: Score, report: Report, policy: TaskPolicy) -> bool:
    """Whether the incumbent's likeness to itself is the yardstick: it is known well enough, and agreement alone
    does not show the promise already."""
    found = report.itself
    if found is None or best.difference_low is None or found.rows < LEAST_AGAIN or report.measure == "judge":
        return False
    if report.measure == "similarity":
        return True
    low = _figures(best, report)[1]
    return found.value >= LEAST_ITSELF and (low is None or low < 1 - policy.margin)


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


def _notes(best: Score, report: Report, policy: TaskPolicy, named_of: int) -> list[str]:
    return [
        _how_chosen(best, report, policy, named_of),
        *_how_selective(best),
        _how_confirmed(best, report, policy),
        _how_measured(report, policy),
        _against_itself(best, report, policy),
    ]


def _how_chosen(best: Score, report: Report, policy: TaskPolicy, named_of: int) -> str:
    number, judged = len(report.candidates), f"judged on {best.rows} validation rows"
    bounds = f"Bounds are one-sided at {report.confidence:.2%}"
    if named_of > 1:
        return f"Named by a person, of {named_of}; {judged}. {bounds}; for that choice they do not allow."
    if best.expected is not None:
        how = "by what training promised (cross-fitted), not by the rows that judge it"
        return f"Chosen of {number} {how}; {judged}. {bounds}."
    if number == 1 and report.confidence == policy.confidence:
        return f"The only candidate; {judged}. {bounds}."
    shared = f"the policy's {policy.confidence:.2%}, its error shared among those that these rows choose from"
    return (
        f"Chosen of {number} by the very rows that judge it; {judged}. {bounds} ({shared}: Bonferroni), so that "
        "the luckiest is let through no more often than a single one."
    )


def _how_selective(best: Score) -> list[str]:
    """Of a threshold that the validation rows have chosen; that training chose one goes without saying."""
    if best.upstream == LOCAL or best.min_confidence <= 0:
        return []
    return [
        f"It answers where its log-probabilities make it at least {best.min_confidence:.4g} sure: the lowest such "
        "threshold that the validation rows show to keep the promise, tested in a fixed sequence; that they chose "
        "it counts as one more look at them."
    ]


def _how_confirmed(best: Score, report: Report, policy: TaskPolicy) -> str:
    found = confirmation_of(best, report)
    if found is None:
        other = report.confirmation is not None
        why = "another candidate was asked them" if other else "there are none (about 500 held-out rows are needed)"
        return f"Not confirmed on newer rows: {why}. The validation rows alone decide."
    value, newer = _figures(best, report)[0], found.quality
    figures = f"{_share(value)} on the validation rows, {_share(newer)} on {found.rows} newer ones"
    if found.rows < LEAST_CONFIRMING:
        return f"Not confirmed: too few newer rows ({LEAST_CONFIRMING} are needed): {figures}."
    used = report.confirmed_before
    before = f" Earlier evaluations had used these rows {used} times." if used else ""
    if found.quality_high is not None and found.quality_high < promise(report, policy):
        return f"Refuted by the newer rows: {figures}.{before}"
    power = ""
    if report.measure == "exact":
        worst = noticed(found.rows, promise(report, policy), report.confidence)
        power = f" Most likely (80 %) so many rows would have refuted a true agreement below {_share(worst)}."
    return f"Confirmed, which means not refuted, by the newer rows: {figures}.{power}{before}"


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


def _against_itself(best: Score, report: Report, policy: TaskPolicy) -> str:
    found = report.itself
    if found is None:
        return (
            "How often the incumbent would answer as before is not known: what it answers otherwise by chance "
            "counts against the candidate."
        )
    if found.source == "asked again":
        said = f"Asked {found.rows} of the rows again, the incumbent answers as before in {_share(found.value)}"
    else:
        said = (
            f"Of {found.rows} inputs that the app asked more than once, {_share(found.value)} were answered alike "
            "twice; on all others the incumbent is taken to be as steady"
        )
    if _is_beside_itself(best, report, policy):
        return f"{said}; that is the yardstick."
    if found.rows < LEAST_AGAIN or found.value < LEAST_ITSELF:
        why = "too few rows" if found.rows < LEAST_AGAIN else "too seldom"
        return f"{said}: {why} to be the yardstick."
    if best.difference_low is None:
        return f"{said}: no yardstick for this candidate, which hands some requests over or answers too few rows."
    return f"{said}; agreement with what it answered shows enough without that."


def noticed(rows: int, promised: float, confidence: float) -> float:
    """The true agreement below which so many rows would refute the promise in four of five cases."""
    most = next((n for n in range(rows + 1) if 1 - agreement_low(rows - n, rows, confidence) < promised), rows + 1)
    if most > rows:
        return 0.0
    from scipy.stats import beta

    return 1 - float(beta.ppf(0.8, most, rows - most + 1))


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
