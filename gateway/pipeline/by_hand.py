"""A person promotes: the newest evaluation, one of its candidates, and what the gate says of it."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import TaskError
from gateway.pipeline import canary, due, evaluate, gate, promote
from gateway.pipeline.canary import Step
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.gate import Decision
from gateway.pipeline.scores import Report


def check_task(shop: Workshop, task: str) -> None:
    """
    Raises:
        TaskError: there is no such task; names those that there are.
    """
    known = [row["name"] for row in shop.store.tasks()]
    if task not in known:
        raise TaskError(f"no task {task!r}; known tasks: {', '.join(known) or 'none yet'}")


def judged(shop: Workshop, task: str, candidate: str | None) -> tuple[Report, Decision]:
    """The task's newest report, and the gate's decision about a candidate (a model, a fine-tune's id, or None: the
    best).

    Raises:
        TaskError: there is no evaluation, or no such candidate in it.
    """
    check_task(shop, task)
    rows = shop.store.rows("evaluations", "task = ?", [task])
    if not rows:
        raise TaskError(f"task {task} has no evaluations yet; run 'unprompt evaluate {task}' first")
    report = evaluate.load_report(rows[-1])
    chosen = [score for score in report.candidates if candidate in (None, score.model, score.finetune)]
    if not chosen:
        which = f"candidate {candidate!r}" if candidate else "candidate"
        raise TaskError(f"task {task}: no {which} in its newest evaluation; 'unprompt evaluate {task}' lists them")
    first = report.candidates[0].finetune == chosen[0].finetune
    alone = msgspec.structs.replace(report, candidates=report.candidates if first else chosen)
    decision = gate.decide(alone, shop.config.policy(task), named_of=0 if first else len(report.candidates))
    return report, decision.but(due.use_of(shop.store, report.template).check)


def flip(shop: Workshop, report: Report, decision: Decision, first: Step | None) -> dict[str, Any]:
    """Promote the decision's candidate: with all that the policy's `share` says, or beginning with `first`.

    Raises:
        TaskError, ConfigError: see `promote.promote`.
    """
    policy = shop.config.policy(decision.task)
    steps = (Step(policy.share),) if first is None else canary.steps(policy, first)
    return promote.promote(shop.store, shop.config, shop.routes, shop.models, report, decision, steps=steps)
