"""What is known of each task, for `unprompt tasks` and whoever else shows it."""

from __future__ import annotations

from typing import Any

from gateway.config import Config
from gateway.stores.sqlite import SqliteStore


def overview(store: SqliteStore, config: Config) -> list[dict[str, Any]]:
    """One row a task: counts, the newest template, how many requests fit it, and what happens next."""
    return [_row(store, config, row) for row in store.tasks()]


def _row(store: SqliteStore, config: Config, row: dict[str, Any]) -> dict[str, Any]:
    task = row["name"]
    versions = store.templates(task)
    newest = versions[-1]
    recent = store.version_counts(task, 1000)
    total = sum(recent.values())
    used = max(recent, key=lambda version: recent[version]) if recent else newest.version
    return row | {
        "version": used,
        "versions": [template.version for template in versions],
        "slots": [slot.name for slot in newest.slots],
        "match_rate": recent.get(used, 0) / total if total else None,
        "next": _next(store, config, task),
    }


def _next(store: SqliteStore, config: Config, task: str) -> str:
    jobs = store.rows("jobs", "kind = 'cycle' AND task = ?", [task])
    if jobs and jobs[-1]["state"] == "running":
        return f"in work: {jobs[-1]['step']}"
    promotions = store.rows("promotions", "task = ?", [task])
    if promotions:
        last = promotions[-1]
        return {"promote": f"served by {last['target']}", "refuse": "candidate refused, waits for more rows"}.get(
            last["action"], "rolled back"
        )
    if jobs and jobs[-1]["state"] == "failed":
        return str(jobs[-1]["error"])
    usable = store.count("task = ? AND complete = 1 AND stripped = 0 AND status = 200", [task])
    missing = config.policy(task).min_rows - usable
    return f"{missing} more exchanges until training" if missing > 0 else "training is due"
