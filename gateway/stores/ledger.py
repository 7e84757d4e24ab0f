"""The books: what each day of a task took, by who answered. Sums that stay when the exchanges are deleted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway.stores.blocks import Run

if TYPE_CHECKING:
    from gateway.stores.sqlite import SqliteStore

ServedAs = Literal["stripped", "whole", "audit", "shadow", "judge"]

_NEW = "SELECT id FROM exchanges WHERE id IN (SELECT value FROM json_each(?)) AND (looked_at = 0 OR task IS NULL)"
_ENTER = """
INSERT INTO task_days
  SELECT task, CAST(started_at / 86400 AS INTEGER) AS day,
    CASE WHEN copy_of IS NULL THEN IIF(stripped, 'stripped', 'whole') ELSE IIF(stripped, 'shadow', 'audit') END
      AS served,
    target, COUNT(*), COUNT(cost_usd), TOTAL(cost_usd), COUNT(latency_ms), TOTAL(latency_ms), COUNT(input_tokens),
    COALESCE(SUM(input_tokens), 0)
  FROM exchanges
  WHERE id IN (SELECT value FROM json_each(?))
    AND task IS NOT NULL AND target IS NOT NULL AND status BETWEEN 200 AND 299
  GROUP BY task, day, served, target
ON CONFLICT DO UPDATE SET
  exchanges = exchanges + excluded.exchanges, priced = priced + excluded.priced,
  cost_usd = cost_usd + excluded.cost_usd, timed = timed + excluded.timed,
  latency_ms = latency_ms + excluded.latency_ms, counted = counted + excluded.counted,
  input_tokens = input_tokens + excluded.input_tokens
"""


_SUMS = ("exchanges", "priced", "cost_usd", "timed", "latency_ms", "counted", "input_tokens")


class Entry(NamedTuple):
    """One day (since the epoch, UTC) of a task with one target. `priced`, `timed` and `counted` of the exchanges
    have a cost, a duration and a count of input tokens, which are summed."""

    task: str
    day: int
    served: ServedAs
    target: str
    exchanges: int
    priced: int = 0
    cost_usd: float = 0.0
    timed: int = 0
    latency_ms: float = 0.0
    counted: int = 0
    input_tokens: int = 0


def not_entered(run: Run, exchange_ids: Iterable[str]) -> list[str]:
    """Which of these exchanges are in no book yet: asked before a task is noted on them."""
    return [key for (key,) in run(_NEW, [json.dumps(list(exchange_ids))]).fetchall()]


def enter(run: Run, exchange_ids: list[str]) -> None:
    """Add those of these exchanges that belong to a task and were answered."""
    if exchange_ids:
        run(_ENTER, [json.dumps(exchange_ids)])


def book(store: SqliteStore, task: str, moment: float, judge: str, cost_usd: float | None) -> None:
    """Enter that a judge compared two live answers at this moment (seconds since the epoch); `cost_usd` None: it
    has no price."""
    store.run(
        "INSERT INTO task_days VALUES (?, ?, 'judge', ?, 1, ?, ?, 0, 0, 0, 0) ON CONFLICT DO UPDATE SET"
        " exchanges = exchanges + 1, priced = priced + excluded.priced, cost_usd = cost_usd + excluded.cost_usd",
        [task, int(moment // 86_400), judge, int(cost_usd is not None), cost_usd or 0.0],
    )


def rename(store: SqliteStore, task: str, name: str) -> None:
    """Enter what a task took under another name, where there may be entries already."""
    with store.transaction():
        store.run(
            "INSERT INTO task_days SELECT ?, day, served, target, exchanges, priced, cost_usd, timed, latency_ms,"
            " counted, input_tokens FROM task_days WHERE task = ? ON CONFLICT DO UPDATE SET"
            f" {', '.join(f'{column} = {column} + excluded.{column}' for column in _SUMS)}",
            [name, task],
        )
        store.run("DELETE FROM task_days WHERE task = ?", [task])


def targets_since(store: SqliteStore, day: int) -> list[tuple[str, str]]:
    """(task, `upstream/model`) of what has answered on this day (since the epoch, UTC) or later; no judges."""
    query = "SELECT DISTINCT task, target FROM task_days WHERE day >= ? AND served != 'judge' ORDER BY 1, 2"
    return [(task, target) for task, target in store.run(query, [day]).fetchall()]


def entries(store: SqliteStore, task: str | None = None) -> list[Entry]:
    """The book of one task, or of all, in the order of the days."""
    where, values = ("1", []) if task is None else ("task = ?", [task])
    rows = store.run(f"SELECT * FROM task_days WHERE {where} ORDER BY task, day, served, target", values)
    return [Entry(*row) for row in rows]
