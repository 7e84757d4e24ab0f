"""Who serves a task now: as the routes say, which people change, too, with what is known of how it came about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gateway.config import Config, InvalidConfig, load_routes, parse_routes
from gateway.domain.route import Match, Route, RouteTable, Target
from gateway.pipeline.audits import remembered
from gateway.pipeline.canary import candidate_of, label_of
from gateway.pipeline.promotions import steps_left
from gateway.stores.sqlite import SqliteStore


def in_force(routes: Path, config: Config) -> RouteTable | None:
    """The routes as the file has them; None where it has a problem: then those before it are in force."""
    try:
        return load_routes(routes, config)
    except InvalidConfig:
        return None


def serving(task: str, promotion: Mapping[str, Any] | None, table: RouteTable | None) -> dict[str, Any] | None:
    """The candidate that answers a task's requests, or is asked in the shadow; None: nobody but the incumbent does.

    What it strips, with how many percent of the requests, and since when (seconds since the epoch; None: a person
    made the route). Without a table, as the task's last `promotion` has left it.
    """
    noted = None if promotion is None else _noted(promotion)
    if table is None:
        return noted
    found = list(_stripping(task, table))
    own = [one for one in found if noted is not None and one["model"] == noted["model"]]
    if noted is not None and own:
        return own[0] | {"since": noted["since"]}
    return found[0] if found else None


def is_on_trial(task: str, promotion: Mapping[str, Any], table: RouteTable | None, config: Config) -> bool:
    """Whether a promotion takes the steps that it has left: where a person has changed since who answers, the route
    is theirs, and it takes none (see `promote.advance`)."""
    if not steps_left(dict(promotion)) or table is None:
        return bool(steps_left(dict(promotion)))
    text = yaml.safe_dump({"routes": [yaml.safe_load(promotion["routes_after"] or "") or {}]})
    try:
        noted = parse_routes("routes.yaml", text.encode(), config).routes
    except InvalidConfig:
        return False
    now = serving(task, promotion, table)
    is_there = any(_answers(noted[0]) == _answers(route) for route in table.routes)
    return is_there and now is not None and now["model"] == promotion["target"]


def _answers(route: Route) -> tuple[object, ...]:
    """Which requests go where."""
    return route.name, route.match, route.targets, route.fallbacks, route.shadow


def _noted(promotion: Mapping[str, Any]) -> dict[str, Any]:
    route = yaml.safe_load(promotion["routes_after"] or "") or {}
    return {
        "model": promotion["target"],
        "strip": candidate_of(route).get("strip"),
        "percent": _percent(route),
        "since": promotion["created_at"],
    }


def _stripping(task: str, table: RouteTable) -> Iterator[dict[str, Any]]:
    """All targets that strip a template of the task and may be asked, in the order of the file; shadows have no
    part of it."""
    for place, route in enumerate(table.routes):
        if any(_takes_all(earlier.match, route.match, task) for earlier in table.routes[:place]):
            continue
        shadow = [(route.shadow.target, 0.0)] if route.shadow is not None else []
        for target, percent in [*_parts(route), *shadow]:
            if target.strip is not None and target.strip.rpartition("@")[0] == task:
                yield {"model": target.model, "strip": target.strip, "percent": percent, "since": None}


def _takes_all(earlier: Match, later: Match, task: str) -> bool:
    """Whether no request of the task comes as far as a later route: the first that fits decides."""
    if earlier.task not in (None, task) or not earlier.tags.items() <= later.tags.items():
        return False
    pairs = (earlier.provider, later.provider), (earlier.model, later.model), (earlier.key, later.key)
    return all(wanted in (None, there) for wanted, there in pairs)


def _parts(route: Route) -> list[tuple[Target, float]]:
    """The targets with their percentages, but for those that are switched off."""
    total = sum(target.weight for target in route.targets)
    return [(target, 100 * target.weight / total) for target in route.targets if target.weight > 0]


def _percent(route: dict[str, Any]) -> float:
    """The share of the newest candidate of a promoted route."""
    first: dict[str, Any] = next(iter(route.get("targets", [])), {})
    return float(first.get("weight", 100.0)) if label_of(first) == label_of(candidate_of(route)) else 0.0


def canary(store: SqliteStore, config: Config, promotion: Mapping[str, Any]) -> dict[str, Any]:
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
        "next_percent": steps_left(dict(promotion))[0].share,
        "beside": beside["model"] if beside else None,
    }


def serves(row: Mapping[str, Any]) -> str:
    """Who serves the task of a row of the overview, with how much of it, since when; empty: only the incumbent."""
    now, trial = row["serving"], row["canary"]
    if now is None:
        return ""
    since = "as routes.yaml says"
    if now["since"] is not None:
        since = f"since {datetime.fromtimestamp(now['since'], UTC):%Y-%m-%d %H:%M} UTC"
    is_usual = now["strip"] in (None, f"{row['name']}@{row['version']}")
    part = f"{now['percent']:g} % of {'the requests' if is_usual else 'those with ' + now['strip']}"
    part = part if now["percent"] else "in the shadow"
    if trial is None:
        return (
            f"served by {now['model']}: {part}, {since}" if now["percent"] else f"{now['model']}: {part}, {since}"
        )
    done = f"{trial['compared']} of {trial['compared_of']} answers compared, then {trial['next_percent']:g} %"
    rest = f"; served by {trial['beside']}" if trial["beside"] else ""
    return f"canary of {now['model']}: {part}, {since}; {done}{rest}"
