"""What the pages tell, read from the store."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec

from gateway.config import Config
from gateway.domain.route import RouteTable
from gateway.errors import TaskError
from gateway.pipeline.decisions import Flip, flips, report_file
from gateway.pipeline.explain import Explanation, explain
from gateway.pipeline.overview import overview
from gateway.pipeline.savings import Saved, savings
from gateway.raised import Told, watched_candidates
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore

_DAY = 86400.0


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


def board(store: SqliteStore, config: Config, table: RouteTable | None = None) -> Board:
    """What is known of all tasks. `table`: the routes in force; see `overview`."""
    book = entries(store)
    asked: Counter[int] = Counter()
    stripped: Counter[int] = Counter()
    for entry in book:
        if entry.served in ("stripped", "whole"):
            asked[entry.day] += entry.exchanges
            stripped[entry.day] += entry.exchanges * (entry.served == "stripped")
    rows = overview(store, config, table)
    return Board(
        rows=rows,
        served=sum(row["serving"] is not None for row in rows),
        told=watched_candidates(store.path.parent),
        saved=savings(book),
        days=[(day * _DAY, asked[day], stripped[day]) for day in sorted(asked)],
        flips=flips(store),
        at=time.time(),
    )


def page(store: SqliteStore, config: Config, task: str, table: RouteTable | None = None) -> Page:
    """What is known of one task. `table`: the routes in force; see `overview`.

    Raises:
        TaskError: there is none of this name.
    """
    found = explain(store, config, task, table=table)
    saved = savings(entries(store, task)).get(task, Saved(task=task))
    return Page(
        found=found,
        told=watched_candidates(store.path.parent).get(task, Told()),
        saved=saved,
        flips=flips(store, task),
    )


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
