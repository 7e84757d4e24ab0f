"""Flips a task's route to a candidate, and back: each one atomic write of `routes.yaml`, with history.

A flip is noted in the store before the file is written and settled afterwards, so that whatever dies in between,
the next one finds out from the file itself whether it took place: history and file agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from gateway.config import Config, InvalidConfig, parse_routes
from gateway.domain.route import LOCAL
from gateway.errors import ConfigError, TaskError
from gateway.files import sync_folder
from gateway.pipeline.canary import Step, candidate_of, label_of, settled, staged, steps_of
from gateway.pipeline.evaluate import Report, Score
from gateway.pipeline.gate import Decision
from gateway.pipeline.routes_text import Edited, RouteDict, edit, routes_of
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import EmbeddedModel

__all__ = ["advance", "candidate_of", "edit", "note_refusal", "note_waiting", "promote", "rollback", "serving",
           "settle", "standing", "taken_back"]  # fmt: skip

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
    with _locked(routes):
        _settle(store, routes)
        text = _read(routes)
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
    with _locked(routes):
        _settle(store, routes)
        last = newest(store, task)
        left = steps_left(last) if last else ()
        text = _read(routes)
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


def steps_left(promotion: dict[str, Any]) -> tuple[Step, ...]:
    """The steps that a promotion (a row of `standing`) has still before it."""
    return steps_of(promotion["steps"])


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
    with _locked(routes):
        _settle(store, routes)
        promotions = standing(store, task)
        if not promotions:
            raise TaskError(f"task {task!r} has no promotion to roll back")
        last = promotions[-1]
        found = yaml.safe_load(last["routes_before"]) if last["routes_before"] else None
        route: RouteDict | None = found[0] if isinstance(found, list) else found
        current = _read(routes)
        if _hash(current) == last["file_after"]:
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


def standing(store: SqliteStore, task: str) -> list[dict[str, Any]]:
    """The promotions of a task that have not been rolled back, oldest first: each as it was promoted, with the
    `steps` that are left, the file as it is after the last step, and in `step` that step's id."""
    found: list[dict[str, Any]] = []
    for row in store.rows("promotions", "task = ? AND state = 'done'", [task]):
        if row["action"] == "promote":
            found.append(row | {"step": row["id"]})
        elif row["action"] == "advance" and found:
            found[-1] = _advanced(found[-1], row)
        elif row["action"] == "rollback" and found:
            found.pop()
    return found


def newest(store: SqliteStore, task: str) -> dict[str, Any] | None:
    """The last of `standing`: what serves the task, or is on its way to."""
    found = standing(store, task)
    return found[-1] if found else None


def _advanced(promotion: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The file can be put back byte for byte only where nothing else was written between the steps."""
    unbroken = _hash(row["file_before"] or "") == promotion["file_after"]
    after = {"file_after": row["file_after"] if unbroken else None}
    return promotion | after | {"routes_after": row["routes_after"], "steps": row["steps"], "step": row["id"]}


def serving(standing: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the standing promotions whose candidates answer requests now, or are asked in the shadow, the newest
    first: while that takes its steps, one before it may have the rest."""
    if len(standing) < 2 or not steps_left(standing[-1]):
        return list(standing[-1:])
    newest = standing[-1]
    beside = {label_of(target) for target in _route_of(newest).get("targets", [])} - {_label(newest)}
    return [newest, *[one for one in standing[:-1] if _label(one) in beside][-1:]]


def _label(promotion: dict[str, Any]) -> str:
    return label_of(candidate_of(_route_of(promotion)))


def _route_of(promotion: dict[str, Any]) -> RouteDict:
    route: RouteDict = yaml.safe_load(promotion["routes_after"] or "") or {}
    return route


def taken_back(store: SqliteStore, task: str) -> frozenset[str]:
    """The candidates (ids of fine-tunes) of this task that were promoted and rolled back: by a person, or for an
    alarm of their own."""
    blamed: set[str | None] = set()
    stack: list[dict[str, Any]] = []
    for row in store.rows("promotions", "task = ? AND state = 'done'", [task]):
        if row["action"] == "promote":
            stack.append(row)
        elif row["action"] == "rollback" and stack:
            popped = stack.pop()
            blamed.add(candidate(row) or candidate(popped))
    return frozenset(one for one in blamed if one)


def candidate(promotion: dict[str, Any]) -> str | None:
    """The id of the fine-tune that a row of `promotions` is about."""
    record = json.loads(promotion["decision"] or "null")
    return record.get("candidate") if isinstance(record, dict) else None


def stripped(promotion: dict[str, Any]) -> str | None:
    """The template (`TASK@VERSION`) that the candidate of a row of `promotions` strips."""
    found = candidate_of(_route_of(promotion)).get("strip")
    return None if found is None else str(found)


def note_refusal(store: SqliteStore, decision: Decision) -> None:
    """Keep the decision record of a candidate that was not promoted."""
    _note(store, decision, "refuse")


def note_waiting(store: SqliteStore, decision: Decision) -> None:
    """Keep the decision record of a candidate that a person has to promote."""
    _note(store, decision, "ask")


def _note(store: SqliteStore, decision: Decision, action: str) -> None:
    store.put("promotions", {
        "id": f"{action}-{decision.evaluation}-{decision.candidate}", "task": decision.task, "action": action,
        "target": decision.score.model if decision.score else None,
        "decision": msgspec.json.encode(decision).decode(), "created_at": time.time(),
    })  # fmt: skip


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
    _checked(routes, edited.text, config)
    row_id = str(uuid.uuid4())
    store.put("promotions", {
        "id": row_id, "task": flip.task, "action": flip.action, "state": "writing", "target": flip.target,
        "decision": msgspec.json.encode(flip.because).decode(), "steps": msgspec.to_builtins(flip.steps),
        "routes_before": _source(edited), "routes_after": _one(route),
        "file_before": before if routes.exists() else None, "file_after": _hash(edited.text),
        "created_at": time.time(),
    })  # fmt: skip
    try:
        if _read(routes) != before:
            raise ConfigError(f"{routes} was changed by somebody else just now; do it again")
        _write(routes, edited.text)
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


def _checked(routes: Path, text: str, config: Config) -> None:
    try:
        parse_routes(str(routes), text.encode(), config)
    except InvalidConfig as error:
        raise ConfigError(f"{routes} is left as it is, since it would have problems:\n{error}") from error


def settle(store: SqliteStore, routes: Path) -> None:
    """Find out what became of a flip during which its process died."""
    if store.rows("promotions", "state = 'writing'"):
        with _locked(routes):
            _settle(store, routes)


def _settle(store: SqliteStore, routes: Path) -> None:
    """Under the lock, where nobody else is writing: the file says whether the flip took place."""
    for row in store.rows("promotions", "state = 'writing'"):
        now = _read(routes)
        took_place = _hash(now) == row["file_after"]
        if not took_place and row["routes_after"]:  # a person has edited it since: is the route there?
            took_place = yaml.safe_load(row["routes_after"]) in routes_of(now)
        store.change("promotions", row["id"], state="done" if took_place else "abandoned")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(routes: Path) -> str:
    """The file's text with its line ends; no file is an empty one."""
    try:
        return routes.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{routes} cannot be read: {error}; it is left as it is") from error


@contextlib.contextmanager
def _locked(routes: Path) -> Iterator[None]:
    try:
        routes.parent.mkdir(parents=True, exist_ok=True)
        lock = (routes.parent / f".{routes.name}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"{routes.parent} cannot be written to ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(routes: Path, text: str) -> None:
    """Temp file, fsync, rename: a reader sees the old file or the new one. A link stays a link."""
    target = routes.resolve()
    partial = target.with_name(f".{target.name}.partial")
    try:
        if target.exists():
            previous = target.with_name(f"{target.name}.previous")
            _write_beside(partial, target.read_bytes(), target)
            partial.replace(previous)
        _write_beside(partial, text.encode(), target)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)


def _write_beside(partial: Path, content: bytes, target: Path) -> None:
    with partial.open("wb") as file:
        if target.exists():
            os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
