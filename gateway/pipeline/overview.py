"""What is known of each task, for `unprompt tasks` and whoever else shows it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import yaml

from gateway.config import Config
from gateway.pipeline import promote
from gateway.pipeline.audits import remembered
from gateway.pipeline.canary import candidate_of, label_of
from gateway.pipeline.discover import TRUSTED_AFTER
from gateway.pipeline.savings import Saved, savings
from gateway.pipeline.shutdown import in_use, shutdowns
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
    pinned, saved, known = pinned_tasks(store), savings(entries(store)), standings(store)
    now = time.time()
    used = in_use(store, config, now)
    rows = [
        _row(store, config, row, known)
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


def _row(store: SqliteStore, config: Config, row: dict[str, Any], known: Mapping[str, Standing]) -> dict[str, Any]:
    task = row["name"]
    versions = store.templates(task)
    recent = store.version_counts(task, 1000)
    total = sum(recent.values())
    newest = versions[-1].version if versions else None
    used = max(recent, key=lambda version: recent[version]) if recent else newest
    standing = known.get(f"{task}@{used}", Standing("trusted"))
    serving = promote.newest(store, task)
    canary = _canary(store, config, serving) if serving and promote.steps_left(serving) else None
    raised = "; ".join(alarm["sentence"] for alarm in open_alarms(store, task))
    row["alarm"] = row["alarm"] or standing.remark or raised or None
    return row | {
        "version": used,
        "versions": [template.version for template in versions],
        "slots": [slot.name for slot in versions[-1].slots] if versions else [],
        "state": standing.state,
        "match_rate": recent.get(used or 0, 0) / total if total else None,
        "canary": canary,
        "next": _known(standing, row["exchanges"]) or _next(store, config, task, _serves(serving, canary)),
    }


def _canary(store: SqliteStore, config: Config, promotion: dict[str, Any]) -> dict[str, Any]:
    """How far a candidate's canary is."""
    route = yaml.safe_load(promotion["routes_after"] or "") or {}
    watched = remembered(store, promotion["task"]).get(promotion["id"])
    is_here = watched is not None and watched.step == promotion["step"]
    first, newcomer = route["targets"][0], label_of(candidate_of(route))
    share = first.get("weight", 0.0) if label_of(first) == newcomer else 0.0
    beside = next((one for one in route["targets"] if "strip" in one and label_of(one) != newcomer), None)
    return {
        "model": promotion["target"],
        "percent": share,
        "compared": watched.pairs if watched and is_here else 0,
        "compared_of": config.policy(promotion["task"]).canary_pairs,
        "next_percent": promote.steps_left(promotion)[0].share,
        "beside": beside["model"] if beside else None,
    }


def _serves(promotion: dict[str, Any] | None, canary: dict[str, Any] | None) -> str:
    """Who serves the task, and by how much; empty where nobody but the incumbent does."""
    if promotion is None or canary is None:
        return f"served by {promotion['target']}" if promotion else ""
    part = f"{canary['percent']:g} % of the requests" if canary["percent"] else "in the shadow"
    done = f"{canary['compared']} of {canary['compared_of']} answers compared, then {canary['next_percent']:g} %"
    rest = f"; served by {canary['beside']}" if canary["beside"] else ""
    return f"canary of {canary['model']}: {part}, {done}{rest}"


def _known(standing: Standing, seen: int) -> str:
    if standing.state == "proposed":
        return f"proposed, trusted after {max(1, TRUSTED_AFTER - seen)} more exchanges"
    return "not stripped until its prompt is clear again" if standing.state == "drifting" else ""


def _next(store: SqliteStore, config: Config, task: str, serves: str) -> str:
    jobs = store.rows("jobs", "kind = 'cycle' AND task = ?", [task])
    if jobs and jobs[-1]["state"] == "running":
        wrong = f" ({jobs[-1]['error']})" if jobs[-1]["error"] else ""
        return f"in work: {jobs[-1]['step']}{wrong}"
    promotions = store.rows("promotions", "task = ? AND state = 'done'", [task])
    if jobs and jobs[-1]["state"] == "failed" and _newest(jobs) > _newest(promotions):
        return str(jobs[-1]["error"])
    if promotions:
        return _after(promotions[-1], serves)
    usable = store.answered_count(task)
    missing = config.policy(task).min_rows - usable
    return f"{missing} more exchanges until training" if missing > 0 else "training is due"


def _newest(rows: list[dict[str, Any]]) -> float:
    return max((float(row["created_at"]) for row in rows), default=0.0)


def _after(promotion: dict[str, Any], serves: str) -> str:
    """What the newest flip or decision means for who serves."""
    said = {
        "refuse": "candidate refused, waits for more rows",
        "ask": f"{promotion['target']} waits for 'unprompt promote {promotion['task']}'",
        "rollback": "rolled back",
    }.get(promotion["action"])
    return "; ".join(filter(None, (serves, said if not serves or promotion["action"] == "ask" else None)))
