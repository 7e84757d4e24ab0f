"""What is known of each task, for `unprompt tasks` and whoever else shows it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from gateway.config import Config
from gateway.pipeline.discover import TRUSTED_AFTER
from gateway.pipeline.savings import Saved, savings
from gateway.stores.audited import open_alarms
from gateway.stores.edited import pinned_tasks
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import Standing, standings


def overview(store: SqliteStore, config: Config) -> list[dict[str, Any]]:
    """One row a task: counts, the newest template, how many requests fit it, and what happens next.

    A task whose templates and requests have all moved to another one is left out.
    """
    replaced = {template.replaces for template in store.templates()}
    pinned, saved = pinned_tasks(store), savings(entries(store))
    rows = [
        _row(store, config, row) | {"pinned": row["name"] in pinned} | _saved(saved.get(row["name"]))
        for row in store.tasks()
    ]
    return [row for row in rows if row["exchanges"] or not _is_gone(row, replaced)]


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


def _row(store: SqliteStore, config: Config, row: dict[str, Any]) -> dict[str, Any]:
    task = row["name"]
    versions = store.templates(task)
    recent = store.version_counts(task, 1000)
    total = sum(recent.values())
    newest = versions[-1].version if versions else None
    used = max(recent, key=lambda version: recent[version]) if recent else newest
    standing = standings(store).get(f"{task}@{used}", Standing("trusted"))
    raised = "; ".join(alarm["sentence"] for alarm in open_alarms(store, task))
    row["alarm"] = row["alarm"] or standing.remark or raised or None
    return row | {
        "version": used,
        "versions": [template.version for template in versions],
        "slots": [slot.name for slot in versions[-1].slots] if versions else [],
        "state": standing.state,
        "match_rate": recent.get(used or 0, 0) / total if total else None,
        "next": _known(standing, row["exchanges"]) or _next(store, config, task),
    }


def _known(standing: Standing, seen: int) -> str:
    if standing.state == "proposed":
        return f"proposed, trusted after {max(1, TRUSTED_AFTER - seen)} more exchanges"
    return "not stripped until its prompt is clear again" if standing.state == "drifting" else ""


def _next(store: SqliteStore, config: Config, task: str) -> str:
    jobs = store.rows("jobs", "kind = 'cycle' AND task = ?", [task])
    if jobs and jobs[-1]["state"] == "running":
        wrong = f" ({jobs[-1]['error']})" if jobs[-1]["error"] else ""
        return f"in work: {jobs[-1]['step']}{wrong}"
    promotions = store.rows("promotions", "task = ? AND state = 'done'", [task])
    if jobs and jobs[-1]["state"] == "failed" and _newest(jobs) > _newest(promotions):
        return str(jobs[-1]["error"])
    if promotions:
        return _after(promotions[-1])
    usable = store.answered_count(task)
    missing = config.policy(task).min_rows - usable
    return f"{missing} more exchanges until training" if missing > 0 else "training is due"


def _newest(rows: list[dict[str, Any]]) -> float:
    return max((float(row["created_at"]) for row in rows), default=0.0)


def _after(promotion: dict[str, Any]) -> str:
    canary = promotion["steps"] not in (None, "[]")
    served = f"canary of {promotion['target']}" if canary else f"served by {promotion['target']}"
    return {
        "promote": served,
        "advance": served,
        "refuse": "candidate refused, waits for more rows",
        "ask": f"{promotion['target']} waits for 'unprompt promote {promotion['task']}'",
    }.get(promotion["action"], "rolled back")
