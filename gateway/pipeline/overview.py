"""What is known of each task, for `unprompt tasks` and whoever else shows it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from gateway.config import Config
from gateway.domain.route import RouteTable
from gateway.pipeline import due
from gateway.pipeline.discover import TRUSTED_AFTER
from gateway.pipeline.gate import Decision
from gateway.pipeline.promotions import newest_by_task
from gateway.pipeline.savings import Saved, savings
from gateway.pipeline.serving import canary, is_on_trial, serving
from gateway.pipeline.shutdown import in_use, shutdowns
from gateway.stores.audited import open_alarms
from gateway.stores.edited import pinned_tasks
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import Standing, standings


def overview(store: SqliteStore, config: Config, table: RouteTable | None = None) -> list[dict[str, Any]]:
    """One row a task: counts, the newest template, how many requests fit it, who serves it, and what happens next.

    A task whose templates and requests have all moved to another one is left out. `table`: the routes in force;
    without them, who serves a task is what its last promotion says.
    """
    replaced = {template.replaces for template in store.templates()}
    pinned, saved, known = pinned_tasks(store), savings(entries(store)), standings(store)
    now = time.time()
    used, promotions = in_use(store, config, now), newest_by_task(store)
    rows = [
        _row(store, config, row, known, table)
        | _served(store, config, row["name"], promotions.get(row["name"]), table)
        | {"pinned": row["name"] in pinned}
        | _shutdowns(config, used.get(row["name"], ()), now)
        | _saved(saved.get(row["name"]))
        for row in store.tasks()
    ]
    return [row for row in rows if row["exchanges"] or not _is_gone(row, replaced)]


def _shutdowns(config: Config, labels: Iterable[str], now: float) -> dict[str, Any]:
    """The models of a task that their provider takes away, the next one first."""
    return {
        "shutdowns": [
            {"model": one.label, "date": str(one.date), "days": one.days, "sentence": one.sentence}
            for one in shutdowns(config, labels, now)
        ]
    }


def _saved(saved: Saved | None) -> dict[str, Any]:
    if saved is None:
        return {"saved_usd": None, "saved_seconds": None, "audit_usd": 0.0, "saved_by_day": []}
    days = [msgspec.to_builtins(day) for day in saved.days]
    return {
        "saved_usd": saved.usd,
        "saved_seconds": saved.seconds,
        "audit_usd": saved.overhead_usd,
        "saved_by_day": days,
    }


def _is_gone(row: dict[str, Any], replaced: Collection[str]) -> bool:
    return bool(row["versions"]) and all(f"{row['name']}@{version}" in replaced for version in row["versions"])


def _served(
    store: SqliteStore, config: Config, task: str, promotion: dict[str, Any] | None, table: RouteTable | None
) -> dict[str, Any]:
    """Who serves the task, and how far its canary is, unless a person has changed its route since."""
    now = serving(task, promotion, table)
    on_trial = promotion is not None and is_on_trial(task, promotion, table, config)
    return {"serving": now, "canary": canary(store, config, promotion) if promotion and on_trial else None}


def _row(
    store: SqliteStore, config: Config, row: dict[str, Any], known: Mapping[str, Standing], table: RouteTable | None
) -> dict[str, Any]:
    task = row["name"]
    versions = store.templates(task)
    recent = store.version_counts(task, 1000)
    total = sum(recent.values())
    newest = versions[-1].version if versions else None
    used = max(recent, key=lambda version: recent[version]) if recent else newest
    standing = known.get(f"{task}@{used}", Standing("trusted"))
    raised = "; ".join(alarm["sentence"] for alarm in open_alarms(store, task))
    row["alarm"] = row["alarm"] or standing.remark or raised or None
    return row | {
        "version": used,
        "versions": [template.version for template in versions],
        "slots": [slot.name for slot in versions[-1].slots] if versions else [],
        "state": standing.state,
        "match_rate": recent.get(used or 0, 0) / total if total else None,
        "next": _known(standing, row["exchanges"]) or _next(store, config, task, table),
    }


def _known(standing: Standing, seen: int) -> str:
    if standing.state == "proposed":
        return f"proposed, trusted after {max(1, TRUSTED_AFTER - seen)} more exchanges"
    return "not stripped until its prompt is clear again" if standing.state == "drifting" else ""


def _said(flip: dict[str, Any]) -> str:
    """What the newest flip or decision was, where it is the incumbent's for now."""
    if flip["action"] == "rollback":
        return "rolled back"
    if flip["action"] != "refuse":
        return ""
    record = msgspec.json.decode(flip["decision"] or "null", type=Decision | None)
    failing = [check.figures for check in record.checks if not check.holds] if record else []
    more = f"; {len(failing) - 1} more in 'unprompt tasks decisions {flip['task']}'" if failing[1:] else ""
    return f"candidate refused ({failing[0]}{more})" if failing else "candidate refused"


def _next(store: SqliteStore, config: Config, task: str, table: RouteTable | None) -> str:
    """The work that goes on, what a person has to do, or when there is something to do again."""
    last = due.last_turn(store, task)
    if last.state == "running":
        return f"in work: {last.step}{f' ({last.error})' if last.error else ''}"
    flips = store.rows("promotions", "task = ? AND state = 'done'", [task])
    newest: dict[str, Any] = flips[-1] if flips else {"action": "", "created_at": 0.0}
    said = last.error if last.created_at > newest["created_at"] else _said(newest)
    if newest["action"] == "ask" and not said:
        return f"{newest['target']} waits for 'unprompt promote {task}'"
    missing = due.missing(store, task, config, last, lambda: table)
    return "; ".join(filter(None, (said, _until(missing, is_first=last.state == "none"))))


def _until(missing: int | None, *, is_first: bool) -> str:
    if not missing:
        return "" if missing is None else "training is due"  # None: the canary says what is next
    return (
        f"{missing:,} more exchanges until training"
        if is_first
        else f"{missing:,} more whole answers until the next training"
    )
