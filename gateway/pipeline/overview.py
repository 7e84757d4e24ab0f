"""What is known of each task, for `unprompt tasks` and whoever else shows it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import yaml

from gateway.config import Config
from gateway.pipeline import due
from gateway.pipeline.audits import remembered
from gateway.pipeline.canary import candidate_of, label_of
from gateway.pipeline.discover import TRUSTED_AFTER
from gateway.pipeline.promotions import newest_by_task, steps_left
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
    used, serving = in_use(store, config, now), newest_by_task(store)
    rows = [
        _row(store, config, row, known, serving.get(row["name"]))
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


def _row(
    store: SqliteStore, config: Config, row: dict[str, Any], known: Mapping[str, Standing],
    promotion: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    task = row["name"]
    versions = store.templates(task)
    recent = store.version_counts(task, 1000)
    total = sum(recent.values())
    newest = versions[-1].version if versions else None
    used = max(recent, key=lambda version: recent[version]) if recent else newest
    standing = known.get(f"{task}@{used}", Standing("trusted"))
    canary = _canary(store, config, promotion) if promotion and steps_left(promotion) else None
    raised = "; ".join(alarm["sentence"] for alarm in open_alarms(store, task))
    row["alarm"] = row["alarm"] or standing.remark or raised or None
    return row | {
        "version": used,
        "versions": [template.version for template in versions],
        "slots": [slot.name for slot in versions[-1].slots] if versions else [],
        "state": standing.state,
        "match_rate": recent.get(used or 0, 0) / total if total else None,
        "serving": _serving(promotion) if promotion else None,
        "canary": canary,
        "next": _known(standing, row["exchanges"]) or _next(store, config, task),
    }


def _serving(promotion: dict[str, Any]) -> dict[str, Any]:
    """The candidate that was promoted last: what it strips, with how many percent of the requests, since when."""
    route = yaml.safe_load(promotion["routes_after"] or "") or {}
    return {
        "model": promotion["target"],
        "strip": candidate_of(route).get("strip"),
        "percent": _percent(route),
        "since": promotion["created_at"],
    }


def _percent(route: dict[str, Any]) -> float:
    """The share of the newest candidate of a route."""
    first: dict[str, Any] = next(iter(route.get("targets", [])), {})
    return float(first.get("weight", 100.0)) if label_of(first) == label_of(candidate_of(route)) else 0.0


def _canary(store: SqliteStore, config: Config, promotion: dict[str, Any]) -> dict[str, Any]:
    """How far a candidate's canary is."""
    route = yaml.safe_load(promotion["routes_after"] or "") or {}
    watched = remembered(store, promotion["task"]).get(promotion["id"])
    is_here = watched is not None and watched.step == promotion["step"]
    newcomer = label_of(candidate_of(route))
    beside = next((one for one in route["targets"] if "strip" in one and label_of(one) != newcomer), None)
    return {
        "model": promotion["target"],
        "percent": _percent(route),
        "compared": watched.pairs if watched and is_here else 0,
        "compared_of": config.policy(promotion["task"]).canary_pairs,
        "next_percent": steps_left(promotion)[0].share,
        "beside": beside["model"] if beside else None,
    }


def serves(row: Mapping[str, Any]) -> str:
    """Who serves the task of a row, with how much of it and since when; empty: only the incumbent."""
    now, canary = row["serving"], row["canary"]
    if now is None:
        return ""
    since = f"since {datetime.fromtimestamp(now['since'], UTC):%Y-%m-%d %H:%M} UTC"
    part = f"{now['percent']:g} % of {now['strip'] or 'the requests'}"
    if canary is None:
        return f"served by {now['model']}: {part}, {since}"
    done = f"{canary['compared']} of {canary['compared_of']} answers compared, then {canary['next_percent']:g} %"
    rest = f"; served by {canary['beside']}" if canary["beside"] else ""
    return f"canary of {now['model']}: {part if now['percent'] else 'in the shadow'}, {since}; {done}{rest}"


def _known(standing: Standing, seen: int) -> str:
    if standing.state == "proposed":
        return f"proposed, trusted after {max(1, TRUSTED_AFTER - seen)} more exchanges"
    return "not stripped until its prompt is clear again" if standing.state == "drifting" else ""


_SAID = {"refuse": "candidate refused", "rollback": "rolled back"}


def _next(store: SqliteStore, config: Config, task: str) -> str:
    """The work that goes on, what a person has to do, or when there is something to do again."""
    last = due.last_turn(store, task)
    if last.state == "running":
        return f"in work: {last.step}{f' ({last.error})' if last.error else ''}"
    flips = store.rows("promotions", "task = ? AND state = 'done'", [task])
    newest: dict[str, Any] = flips[-1] if flips else {"action": "", "created_at": 0.0}
    said = last.error if last.created_at > newest["created_at"] else _SAID.get(newest["action"])
    if newest["action"] == "ask" and not said:
        return f"{newest['target']} waits for 'unprompt promote {task}'"
    missing = due.missing(store, task, config.policy(task), last)
    return "; ".join(filter(None, (said, _until(missing, is_first=last.state == "none"))))


def _until(missing: int | None, *, is_first: bool) -> str:
    if not missing:
        return "" if missing is None else "training is due"  # None: the canary says what is next
    return (
        f"{missing:,} more exchanges until training"
        if is_first
        else f"{missing:,} more whole answers until the next training"
    )
