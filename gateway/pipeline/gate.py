"""The gate: may a candidate take traffic? Interval bounds decide, not point estimates, and every figure is kept.

A candidate whose true agreement is below the promise passes in at most `1 - confidence` of all decisions. Tasks
are decided upon again only when their data has grown by `retrain_growth`, so decisions are few.
"""

from __future__ import annotations

import msgspec

from gateway.config import TaskPolicy
from gateway.pipeline.evaluate import Report, Score


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
    """What was decided about a task, and why."""

    task: str
    evaluation: str
    candidate: str | None
    score: Score | None
    checks: tuple[Check, ...]
    promote: bool

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
    checks = tuple(_checks(best, report.incumbent, policy)) if best else ()
    return Decision(
        task=report.task,
        evaluation=report.id,
        candidate=best.finetune if best else None,
        score=best,
        checks=checks,
        promote=bool(best) and all(check.holds for check in checks),
    )


def _checks(best: Score, incumbent: Score, policy: TaskPolicy) -> list[Check]:
    asked = 1 - policy.margin
    requests = best.agreement if best.agreement_requests is None else best.agreement_requests
    checks = [
        Check("answers something (share of requests)", best.answered, 0.0, best.answered > 0),
        Check("agreement, lower bound", best.agreement_low, asked, best.agreement_low >= asked),
        Check("agreement, each input as often as it was asked", requests, asked, requests >= asked),
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


def _at_most(name: str, bound: float | None, limit: float) -> Check:
    return Check(f"{name}, upper bound", bound, limit, bound is not None and bound <= limit)
