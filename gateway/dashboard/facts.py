"""What the pages tell, read from the store."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config
from gateway.errors import TaskError
from gateway.pipeline.explain import Explanation, explain
from gateway.pipeline.gate import Decision
from gateway.pipeline.overview import overview
from gateway.pipeline.report import FILE
from gateway.pipeline.savings import Saved, savings
from gateway.raised import Told, watched_candidates
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore

MOST_FLIPS = 30
_DAY = 86400.0


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history: a route that was flipped, or a candidate that was not promoted. `report`: the id of
    the evaluation behind it, where there is a page of it."""

    at: float
    task: str
    action: str
    target: str | None
    reason: str
    report: str | None = None


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """All tasks. `rows` are those of `unprompt tasks --json`; `served` of them have a candidate promoted. `days` is
    what was answered on each, newest last: the day's beginning (seconds since the epoch, UTC), requests, those of
    them stripped."""

    rows: list[dict[str, Any]]
    served: int
    told: dict[str, Told]
    saved: dict[str, Saved]
    days: list[tuple[float, int, int]]
    flips: list[Flip]
    at: float


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One task."""

    found: Explanation
    told: Told
    saved: Saved
    flips: list[Flip]


def board(store: SqliteStore, config: Config) -> Board:
    """What is known of all tasks."""
    book = entries(store)
    asked: Counter[int] = Counter()
    stripped: Counter[int] = Counter()
    for entry in book:
        if entry.served in ("stripped", "whole"):
            asked[entry.day] += entry.exchanges
            stripped[entry.day] += entry.exchanges * (entry.served == "stripped")
    rows = overview(store, config)
    return Board(
        rows=rows,
        served=sum(row["serving"] is not None for row in rows),
        told=watched_candidates(store.path.parent),
        saved=savings(book),
        days=[(day * _DAY, asked[day], stripped[day]) for day in sorted(asked)],
        flips=flips(store),
        at=time.time(),
    )


def page(store: SqliteStore, config: Config, task: str) -> Page:
    """What is known of one task.

    Raises:
        TaskError: there is none of this name.
    """
    found = explain(store, config, task)
    saved = savings(entries(store, task)).get(task, Saved(task=task))
    return Page(
        found=found,
        told=watched_candidates(store.path.parent).get(task, Told()),
        saved=saved,
        flips=flips(store, task),
    )


def flips(store: SqliteStore, task: str | None = None) -> list[Flip]:
    """The newest decisions and flips, newest first."""
    where, values = ("1", []) if task is None else ("task = ?", [task])
    rows = store.rows("promotions", where, values)[-MOST_FLIPS:]
    return [_flip(store, row) for row in reversed(rows) if row["state"] != "abandoned"]


def _flip(store: SqliteStore, row: dict[str, Any]) -> Flip:
    record = json.loads(row["decision"] or "null") or {}
    evaluation = record.get("evaluation")
    return Flip(
        at=row["created_at"],
        task=row["task"],
        action=row["action"],
        target=row["target"],
        reason=_reason(record),
        report=evaluation if evaluation and report_file(store, evaluation) else None,
    )


def _reason(record: dict[str, Any]) -> str:
    if "checks" in record:
        return msgspec.convert(record, Decision).reason
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


def report(store: SqliteStore, evaluation: str) -> bytes:
    """The page of an evaluation, as it was written.

    Raises:
        TaskError: there is none.
    """
    file = report_file(store, evaluation)
    try:
        if file is not None:
            return file.read_bytes()
    except OSError:
        pass
    raise TaskError(f"no report of {evaluation!r} is left; 'unprompt evaluate TASK' writes a new one")
