"""What was promoted, what serves, what was taken back: a task's flips, as the store keeps them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import yaml

from gateway.pipeline.canary import Step, candidate_of, label_of, steps_of
from gateway.pipeline.gate import Decision
from gateway.pipeline.routes_file import digest
from gateway.pipeline.routes_text import RouteDict
from gateway.stores.sqlite import SqliteStore


def steps_left(promotion: dict[str, Any]) -> tuple[Step, ...]:
    """The steps that a promotion (a row of `standing`) has still before it."""
    return steps_of(promotion["steps"])


def standing(store: SqliteStore, task: str) -> list[dict[str, Any]]:
    """The promotions of a task that have not been rolled back, oldest first: each as it was promoted, with the
    `steps` that are left, the file as it is after the last step, and in `step` that step's id."""
    return _standing(store.rows("promotions", "task = ? AND state = 'done'", [task]))


def newest_by_task(store: SqliteStore) -> dict[str, dict[str, Any]]:
    """What `newest` gives of each task that has any, by one query."""
    flips: dict[str, list[dict[str, Any]]] = {}
    for row in store.rows("promotions", "state = 'done'"):
        flips.setdefault(row["task"], []).append(row)
    found = {task: _standing(rows) for task, rows in flips.items()}
    return {task: promotions[-1] for task, promotions in found.items() if promotions}


def _standing(flips: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in flips:
        if row["action"] == "promote":
            found.append(row | {"step": row["id"]})
        elif row["action"] == "advance" and found:
            found[-1] = _advanced(found[-1], row)
        elif row["action"] == "rollback" and found:
            found.pop()
    return found


def newest(store: SqliteStore, task: str) -> dict[str, Any] | None:
    """The last of `standing`: what serves the task, or is on its way to."""
    found = standing(store, task)
    return found[-1] if found else None


def _advanced(promotion: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The file can be put back byte for byte only where nothing else was written between the steps."""
    unbroken = digest(row["file_before"] or "") == promotion["file_after"]
    after = {"file_after": row["file_after"] if unbroken else None}
    return promotion | after | {"routes_after": row["routes_after"], "steps": row["steps"], "step": row["id"]}


def serving(standing: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the standing promotions whose candidates answer requests now, or are asked in the shadow, the newest
    first: while that takes its steps, one before it may have the rest."""
    if len(standing) < 2 or not steps_left(standing[-1]):
        return list(standing[-1:])
    newest = standing[-1]
    beside = {label_of(target) for target in _route_of(newest).get("targets", [])} - {_label(newest)}
    return [newest, *[one for one in standing[:-1] if _label(one) in beside][-1:]]


def _label(promotion: dict[str, Any]) -> str:
    return label_of(candidate_of(_route_of(promotion)))


def _route_of(promotion: dict[str, Any]) -> RouteDict:
    route: RouteDict = yaml.safe_load(promotion["routes_after"] or "") or {}
    return route


def taken_back(store: SqliteStore, task: str) -> frozenset[str]:
    """The candidates (ids of fine-tunes) of this task that were promoted and rolled back: by a person, or for an
    alarm of their own."""
    blamed: set[str | None] = set()
    stack: list[dict[str, Any]] = []
    for row in store.rows("promotions", "task = ? AND state = 'done'", [task]):
        if row["action"] == "promote":
            stack.append(row)
        elif row["action"] == "rollback" and stack:
            popped = stack.pop()
            blamed.add(candidate(row) or candidate(popped))
    return frozenset(one for one in blamed if one)


def candidate(promotion: dict[str, Any]) -> str | None:
    """The id of the fine-tune that a row of `promotions` is about."""
    record = json.loads(promotion["decision"] or "null")
    return record.get("candidate") if isinstance(record, dict) else None


def stripped(promotion: dict[str, Any]) -> str | None:
    """The template (`TASK@VERSION`) that the candidate of a row of `promotions` strips."""
    found = candidate_of(_route_of(promotion)).get("strip")
    return None if found is None else str(found)


def note_refusal(store: SqliteStore, decision: Decision) -> None:
    """Keep the decision record of a candidate that was not promoted."""
    _note(store, decision, "refuse")


def note_waiting(store: SqliteStore, decision: Decision) -> None:
    """Keep the decision record of a candidate that a person has to promote."""
    _note(store, decision, "ask")


def _note(store: SqliteStore, decision: Decision, action: str) -> None:
    store.put("promotions", {
        "id": f"{action}-{decision.evaluation}-{decision.candidate}", "task": decision.task, "action": action,
        "target": decision.score.model if decision.score else None,
        "decision": msgspec.json.encode(decision).decode(), "created_at": time.time(),
    })  # fmt: skip
