"""Flips a task's route to a candidate, and back: each one atomic write of `routes.yaml`, with history.

A flip is noted in the store before the file is written and settled afterwards, so that whatever dies in between,
the next one finds out from the file itself whether it took place: history and file agree.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from gateway.config import Config
from gateway.domain.route import LOCAL
from gateway.errors import ConfigError, TaskError
from gateway.pipeline import routes_file
from gateway.pipeline.canary import Step, candidate_of, settled, staged
from gateway.pipeline.evaluate import Report, Score
from gateway.pipeline.gate import Decision
from gateway.pipeline.promotions import newest, standing, steps_left
from gateway.pipeline.routes_text import Edited, RouteDict, edit, routes_of
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import EmbeddedModel

_POLICY = ("timeouts", "retry", "circuit", "limits", "on_client_gone", "sticky", "audit")
"""What people set for a route's requests, wherever they go: a promotion leaves it as it is."""


def promote(
    store: SqliteStore, config: Config, routes: Path, models: Path, report: Report, decision: Decision,
    *, steps: Sequence[Step],
) -> RouteDict:  # fmt: skip
    """Take the first of the steps: so many of the task's requests go to the decision's candidate, the rest stays
    with the candidate that has served so far, or else with the incumbent. The other steps are noted, for `advance`.
    Doing it twice is doing it once.

    Raises:
        TaskError: the decision has no candidate, its model is gone, or the incumbent is unknown.
        ConfigError: routes.yaml has a problem, or cannot be written; it is left as it is.
    """
    task, score = decision.task, decision.score
    if score is None or not report.incumbent.upstream:
        raise TaskError(f"task {task}: nothing to promote; run 'unprompt evaluate {task}' first")
    if score.upstream == LOCAL:
        EmbeddedModel.load(models, score.model)
    with routes_file.locked(routes):
        _settle(store, routes)
        text = routes_file.read(routes)
        match, last = _match(report), newest(store, task)
        there = routes_of(text)
        replaced = next((one for one in there if _clean(one.get("match")) == match), {})
        beside = _beside(last, replaced, score) if len(steps) > 1 else None
        route = _route(task, match, report, score, _names_beside(there, match))
        route |= staged(_candidate(report, score), beside, route["fallback"], steps[0])
        audit = {"audit": config.policy(task).audit} if config.policy(task).audit else {}
        route |= audit | {key: replaced[key] for key in _POLICY if key in replaced}
        edited = edit(text, lambda one: _clean(one.get("match")) == match, route)
        if edited.replaced == route and last and _says_the_same(last["routes_after"], route):
            return route
        flip = _Flip("promote", task, score.model, decision, tuple(steps[1:]))
        _flip(store, config, routes, flip, text, edited, route)
    return route


def _beside(last: dict[str, Any] | None, route: RouteDict, score: Score) -> RouteDict | None:
    """The candidate that keeps the rest while this one takes its steps; where a person has changed who answers
    since the last flip, it is the incumbent."""
    if last is None or not _says_the_same(last["routes_after"], route):
        return None
    newcomer = {"upstream": score.upstream, "model": score.model}
    return settled(route, on_trial=bool(steps_left(last)), newcomer=newcomer)


def _match(report: Report) -> dict[str, Any]:
    return _clean({"provider": report.provider, "model": report.model, "task": report.task})


def _clean(match: Any) -> dict[str, Any]:
    return {key: value for key, value in match.items() if value} if isinstance(match, dict) else {}


def _names_beside(routes: list[RouteDict], match: dict[str, Any]) -> set[str]:
    return {str(route.get("name")) for route in routes if _clean(route.get("match")) != match}


def _says_the_same(noted: str | None, route: RouteDict) -> bool:
    """Whether a route in the history sends its requests where this one does."""
    before = yaml.safe_load(noted or "") or {}
    return all(before.get(key) == route.get(key) for key in {*before, *route}.difference(_POLICY))


def _candidate(report: Report, score: Score) -> RouteDict:
    candidate: RouteDict = {"upstream": score.upstream, "model": score.model, "strip": report.template}
    if score.min_confidence > 0:
        candidate["min_confidence"] = min(score.min_confidence, 1.0)
    return candidate


def _route(task: str, match: dict[str, Any], report: Report, score: Score, taken: set[str]) -> RouteDict:
    """All of a route but who answers when."""
    incumbent = _clean({"upstream": report.incumbent.upstream, "model": report.incumbent.model})
    name, number = task, 2
    while name in taken:
        name, number = f"{task}-{number}", number + 1
    return {"name": name, "match": match, "targets": [], "fallback": incumbent}


def advance(
    store: SqliteStore, config: Config, routes: Path, task: str, because: object = None
) -> RouteDict | None:
    """Take the next step of the task's promotion; None where there is none, or where a person has changed who
    answers since: then the route is theirs. `because` is kept as the decision record.

    Raises:
        ConfigError: routes.yaml has a problem, or cannot be written; it is left as it is.
    """
    with routes_file.locked(routes):
        _settle(store, routes)
        last = newest(store, task)
        left = steps_left(last) if last else ()
        text = routes_file.read(routes)
        route = next((r for r in routes_of(text) if last and _says_the_same(last["routes_after"], r)), None)
        if last is None or not left or route is None:
            return None
        candidate = candidate_of(route)
        beside = settled(route, on_trial=True, newcomer=candidate) if len(left) > 1 else None
        new = {key: value for key, value in route.items() if key != "shadow"}
        new |= staged(candidate, beside, dict(route["fallback"]), left[0])
        flip = _Flip("advance", task, candidate.get("model"), because, left[1:])
        _flip(store, config, routes, flip, text, edit(text, lambda one: one == route, new), new)
    return new


def rollback(
    store: SqliteStore, config: Config, routes: Path, task: str, because: object = None
) -> RouteDict | None:
    """Put the task's route back to what it was before its last promotion, with all its steps; gives that route,
    None: no route. A file that nobody has changed since is put back byte for byte. `because` is kept as the
    decision record.

    Raises:
        TaskError: the task was never promoted, or is rolled back already.
        ConfigError: routes.yaml has a problem, or cannot be written; it is left as it is.
    """
    with routes_file.locked(routes):
        _settle(store, routes)
        promotions = standing(store, task)
        if not promotions:
            raise TaskError(f"task {task!r} has no promotion to roll back")
        last = promotions[-1]
        found = yaml.safe_load(last["routes_before"]) if last["routes_before"] else None
        route: RouteDict | None = found[0] if isinstance(found, list) else found
        current = routes_file.read(routes)
        if routes_file.digest(current) == last["file_after"]:
            edited = Edited(last["file_before"] if last["file_before"] is not None else "routes: []\n")
        else:
            promoted = yaml.safe_load(last["routes_after"] or "") or {}
            edited = _edited_since(current, promoted, task, route, last["routes_before"])
        target = candidate_of(route).get("model") or route["targets"][0].get("model") if route else None
        _flip(store, config, routes, _Flip("rollback", task, target, because), current, edited, route)
    return route


def _edited_since(
    current: str, promoted: RouteDict, task: str, route: RouteDict | None, source: str | None
) -> Edited:
    """The route is known by its name, or else by its match: a person may have changed one of them."""
    taken = routes_of(current)
    by_name = [one for one in taken if one.get("name") == promoted.get("name", task)]
    by_match = [one for one in taken if _clean(one.get("match")) == _clean(promoted.get("match"))]
    meant = next(iter([*by_name, *by_match]), None)
    return edit(current, lambda one: meant is not None and one == meant, route, source)


# --- the file and its history ----------------------------------------------------------------------------


class _Flip(NamedTuple):
    """What is done to which task's route, why, and what comes after it."""

    action: str
    task: str
    target: str | None
    because: object = None
    steps: tuple[Step, ...] = ()


def _flip(
    store: SqliteStore, config: Config, routes: Path, flip: _Flip, before: str, edited: Edited,
    route: RouteDict | None,
) -> None:  # fmt: skip
    """Note it, write the file, settle it."""
    routes_file.check(routes, edited.text, config)
    row_id = str(uuid.uuid4())
    store.put("promotions", {
        "id": row_id, "task": flip.task, "action": flip.action, "state": "writing", "target": flip.target,
        "decision": msgspec.json.encode(flip.because).decode(), "steps": msgspec.to_builtins(flip.steps),
        "routes_before": _source(edited), "routes_after": _one(route),
        "file_before": before if routes.exists() else None, "file_after": routes_file.digest(edited.text),
        "created_at": time.time(),
    })  # fmt: skip
    try:
        if routes_file.read(routes) != before:
            raise ConfigError(f"{routes} was changed by somebody else just now; do it again")
        routes_file.write(routes, edited.text)
    except (OSError, ConfigError) as error:
        store.change("promotions", row_id, state="abandoned")
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{routes} cannot be written ({error.strerror}); it is left as it is") from error
    store.change("promotions", row_id, state="done")


def _source(edited: Edited) -> str | None:
    """How the replaced route was written, where that says the same without the rest of its file."""
    if edited.replaced is None or edited.source is None:
        return None
    with contextlib.suppress(yaml.YAMLError):
        if yaml.safe_load(edited.source) == [edited.replaced]:
            return edited.source
    return str(yaml.safe_dump([edited.replaced], sort_keys=False, allow_unicode=True))


def _one(route: RouteDict | None) -> str | None:
    return None if route is None else str(yaml.safe_dump(route, sort_keys=False, allow_unicode=True))


def settle(store: SqliteStore, routes: Path) -> None:
    """Find out what became of a flip during which its process died."""
    if store.rows("promotions", "state = 'writing'"):
        with routes_file.locked(routes):
            _settle(store, routes)


def _settle(store: SqliteStore, routes: Path) -> None:
    """Under the lock, where nobody else is writing: the file says whether the flip took place."""
    for row in store.rows("promotions", "state = 'writing'"):
        now = routes_file.read(routes)
        took_place = routes_file.digest(now) == row["file_after"]
        if not took_place and row["routes_after"]:  # a person has edited it since: is the route there?
            took_place = yaml.safe_load(row["routes_after"]) in routes_of(now)
        store.change("promotions", row["id"], state="done" if took_place else "abandoned")
