"""What became of a candidate's requests: each read once, in the order of recording; and what is known of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from gateway.stores.sqlite import SqliteStore
from gateway.stores.sqlite_file import Record

AT_ONCE = 5000
"""So many rows are read at most."""
_COLUMNS = (
    "rowid, id, started_at, copy_of, stripped, complete, status, error_type, target, attempts, latency_ms, cost_usd"
)


class Recorded(NamedTuple):
    """One exchange without its bytes. `latency_ms` None: it is under way, or what served it has died."""

    rowid: int
    id: str
    started_at: float
    copy_of: str | None
    stripped: bool
    complete: bool
    status: int | None
    error_type: str | None
    target: str | None
    attempts: list[str]
    latency_ms: float | None
    cost_usd: float | None


def recorded_since(store: SqliteStore, task: str, mark: int, again: Iterable[int] = ()) -> list[Recorded]:
    """The task's exchanges behind row `mark`, and the rows to look at `again`, in the order of recording."""
    rows = store.run(
        f"SELECT {_COLUMNS} FROM exchanges WHERE rowid IN (SELECT value FROM json_each(?))"
        f" UNION ALL SELECT * FROM (SELECT {_COLUMNS} FROM exchanges WHERE task = ? AND rowid > ?"
        " ORDER BY rowid LIMIT ?) ORDER BY 1",
        [json.dumps(list(again)), task, mark, AT_ONCE],
    )
    return [_recorded(row) for row in rows.fetchall()]


def _recorded(row: tuple[Any, ...]) -> Recorded:
    one = Recorded(*row)
    return one._replace(
        stripped=bool(one.stripped), complete=bool(one.complete), attempts=json.loads(row[9] or "[]")
    )


def row_before(store: SqliteStore, moment: float) -> int:
    """The last row of those that began before a moment (seconds since the epoch), 0 where there is none: ids are
    ordered by time."""
    stamp = f"{int(moment * 1000):012x}"
    query = "SELECT rowid FROM exchanges WHERE id < ? ORDER BY id DESC LIMIT 1"
    row = store.run(query, [f"{stamp[:8]}-{stamp[8:]}"]).fetchone()
    return int(row[0]) if row else 0


def last_row(store: SqliteStore) -> int:
    """The newest row; one that was deleted may have had a greater number."""
    return int(store.run("SELECT COALESCE(MAX(rowid), 0) FROM exchanges").fetchone()[0])


def served_tasks(store: SqliteStore) -> list[str]:
    """The tasks that were ever promoted."""
    query = "SELECT DISTINCT task FROM promotions WHERE action = 'promote' AND state = 'done' ORDER BY task"
    return [task for (task,) in store.run(query).fetchall()]


def watch_state(store: SqliteStore, task: str) -> bytes | None:
    """What was kept of the task's candidate."""
    row = store.run("SELECT state FROM watches WHERE task = ?", [task]).fetchone()
    return row[0].encode() if row else None


def keep_watch_state(store: SqliteStore, task: str, state: bytes) -> None:
    """Keep it in the place of what was there."""
    store.run(
        "INSERT INTO watches VALUES (?, ?, ?) ON CONFLICT (task) DO UPDATE SET"
        " state = excluded.state, updated_at = excluded.updated_at",
        [task, state.decode(), time.time()],
    )


# --- alarms ----------------------------------------------------------------------------------------------


def open_alarms(store: SqliteStore, task: str | None = None) -> list[Record]:
    """The alarms that are raised now, of one task or of all, oldest first."""
    where, values = ("1", []) if task is None else ("task = ?", [task])
    return store.rows("alarms", f"cleared_at IS NULL AND {where}", values)


def raise_alarm(store: SqliteStore, alarm: Any, now: float) -> bool:
    """Note an alarm (its task, kind, action, sentence and figures); False: one of this kind is raised already."""
    if any(row["kind"] == alarm.kind for row in open_alarms(store, alarm.task)):
        return False
    number = store.run("SELECT COUNT(*) FROM alarms WHERE task = ?", [alarm.task]).fetchone()[0]
    about = msgspec.to_builtins(alarm)
    store.put("alarms", about | {"id": f"{alarm.task}-{number + 1}", "created_at": now})
    return True


def clear_alarms(store: SqliteStore, task: str, kinds: Iterable[str], now: float) -> None:
    """Note that these are over."""
    query = "UPDATE alarms SET cleared_at = ? WHERE task = ? AND kind = ? AND cleared_at IS NULL"
    store.run_many(query, [(now, task, kind) for kind in kinds])


def last_call_to_retrain(store: SqliteStore, task: str) -> float:
    """When an alarm last said that the task should be trained anew (seconds since the epoch); 0: never."""
    query = "SELECT MAX(created_at) FROM alarms WHERE task = ? AND action IN ('retrain', 'rollback')"
    row = store.run(query, [task]).fetchone()
    return float(row[0] or 0.0)
