"""The gate: may a candidate take traffic? Interval bounds decide, not point estimates, and every figure is kept."""

from __future__ import annotations

import math

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
            return "refused: no candidate was trained"
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
    )


def _checks(best: Score, report: Report, policy: TaskPolicy) -> list[Check]:
    asked = 1 - policy.margin
    checks = [
        Check("answers something (share of requests)", best.answered, 0.0, best.answered > 0),
        Check("agreement, lower bound", best.agreement_low, asked, best.agreement_low >= asked),
    ]
    cost = _ratio(best.cost_per_1k_usd, report.incumbent.cost_per_1k_usd)
    if cost is not None:  # unpriced traffic cannot be judged by cost, and says so in the table
        checks.append(
            Check("cost, ratio to the incumbent", cost, policy.max_cost_ratio, cost <= policy.max_cost_ratio)
        )
    latency = _ratio(best.p95_ms, report.incumbent.p95_ms)
    limit = policy.max_latency_ratio
    checks.append(
        Check("p95 latency, ratio to the incumbent", latency, limit, latency is not None and latency <= limit)
    )
    return checks


def _ratio(value: float | None, base: float | None) -> float | None:
    if value is None or base is None or math.isnan(value) or math.isnan(base) or base <= 0:
        return None
    return value / base
