"""What was decided about a task, why, and which route was flipped when: its history, for people to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from gateway.pipeline.gate import Decision
from gateway.pipeline.report import FILE
from gateway.stores.sqlite import SqliteStore

MOST = 30
ACTIONS = {
    "promote": "promoted",
    "advance": "next step",
    "rollback": "rolled back",
    "refuse": "refused",
    "ask": "waits for you",
}
"""What a line of the history says happened, by the column `action` of `promotions`."""


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history: a route that was flipped, or a candidate that was not promoted.

    `at`: seconds since the epoch; `report`: the id of the evaluation behind it, where there is a page of it;
    `decision`: the gate's record, where the gate was asked.
    """

    at: float
    task: str
    action: str
    target: str | None
    reason: str
    report: str | None = None
    decision: Decision | None = None


def flips(store: SqliteStore, task: str | None = None, most: int = MOST) -> list[Flip]:
    """The newest decisions and flips of a task, or of all, newest first."""
    where, values = ("1", []) if task is None else ("task = ?", [task])
    rows = store.rows("promotions", f"{where} AND state != 'abandoned'", values)
    return [_flip(store, row) for row in reversed(rows[-most:])]


def _flip(store: SqliteStore, row: dict[str, Any]) -> Flip:
    record = json.loads(row["decision"] or "null") or {}
    evaluation = record.get("evaluation")
    decision = msgspec.convert(record, Decision) if "checks" in record else None
    return Flip(
        at=row["created_at"],
        task=row["task"],
        action=row["action"],
        target=row["target"],
        reason=_judged(row["action"], decision) if decision else _reason(record),
        report=evaluation if evaluation and report_file(store, evaluation) else None,
        decision=decision,
    )


def _judged(action: str, decision: Decision) -> str:
    forced = action == "promote" and not decision.promote
    return f"by hand, against the gate ({decision.failing})" if forced else decision.reason


def _reason(record: dict[str, Any]) -> str:
    """Of a flip that the gate has nothing to do with."""
    alarm = record.get("alarm") or {}
    if "sentence" in alarm:
        return str(alarm["sentence"])
    return f"{record['pairs']} answers compared, nothing wrong" if "pairs" in record else "by hand"


def report_file(store: SqliteStore, evaluation: str) -> Path | None:
    """The page of an evaluation; None where there is none."""
    rows = store.rows("evaluations", "id = ?", [evaluation])
    datasets = store.rows("datasets", "id = ?", [rows[-1]["dataset"]]) if rows else []
    file = store.path.parent / datasets[-1]["directory"] / FILE if datasets else None
    return file if file is not None and file.is_file() else None
