"""Flips a task's route to a candidate, and back: each one atomic write of `routes.yaml`, with history."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gateway.config import Config, load_routes
from gateway.errors import ConfigError, TaskError
from gateway.pipeline.evaluate import Score
from gateway.pipeline.gate import Decision
from gateway.stores.sqlite import SqliteStore

RouteDict = dict[str, Any]


def promote(
    store: SqliteStore, config: Config, routes: Path, decision: Decision, template: str, incumbent: Score,
    *, share: float,
) -> RouteDict:  # fmt: skip
    """Send `share` percent of the task's requests to the decision's candidate, the rest to the incumbent.

    Raises:
        TaskError: the decision has no candidate, or the incumbent is unknown.
    """
    score = decision.score
    if score is None or not incumbent.upstream:
        raise TaskError(f"task {decision.task}: nothing to promote; run 'unprompt evaluate {decision.task}' first")
    before = {"upstream": incumbent.upstream, "model": incumbent.model}
    target = {"upstream": score.upstream, "model": score.model, "weight": share, "strip": template}
    if score.min_confidence > 0:
        target["min_confidence"] = round(score.min_confidence, 6)
    targets = [target] if share >= 100 else [target, {**before, "weight": round(100 - share, 6)}]
    match = {"provider": incumbent.upstream, "model": incumbent.model, "task": decision.task}
    route = {"name": decision.task, "match": match, "targets": targets, "fallback": before}
    _flip(store, config, routes, decision.task, route, "promote", decision)
    return route


def rollback(store: SqliteStore, config: Config, routes: Path, task: str) -> RouteDict | None:
    """Put the task's route back to what it was before its last promotion; gives that route, None: no route.

    Raises:
        TaskError: the task was never promoted, or is rolled back already.
    """
    standing = _standing(store, task)
    if not standing:
        raise TaskError(f"task {task!r} has no promotion to roll back")
    text = standing[-1]["routes_before"]
    route: RouteDict | None = yaml.safe_load(text) if text else None
    _flip(store, config, routes, task, route, "rollback", None)
    return route


def _standing(store: SqliteStore, task: str) -> list[dict[str, Any]]:
    """The promotions of a task that have not been rolled back, oldest first."""
    standing: list[dict[str, Any]] = []
    for row in store.rows("promotions", "task = ?", [task]):
        if row["action"] == "promote":
            standing.append(row)
        elif standing:
            standing.pop()
    return standing


def note_refusal(store: SqliteStore, decision: Decision) -> None:
    """Keep the decision record of a candidate that was not promoted."""
    _note(store, decision.task, "refuse", None, decision, None)


def _flip(
    store: SqliteStore, config: Config, routes: Path, task: str, route: RouteDict | None, action: str,
    decision: Decision | None,
) -> None:  # fmt: skip
    with _locked(routes):
        before = routes.read_text("utf-8") if routes.exists() else ""
        after, replaced = edit(before, task, route)
        _write(routes, after, config, before)
    _note(store, task, action, route, decision, replaced)


def _note(
    store: SqliteStore, task: str, action: str, route: RouteDict | None, decision: Decision | None,
    replaced: RouteDict | None,
) -> None:  # fmt: skip
    target = route["targets"][0]["model"] if route else None
    store.put("promotions", {
        "id": str(uuid.uuid4()), "task": task, "action": action, "target": target,
        "decision": msgspec.json.encode(decision).decode(),
        "routes_before": yaml.safe_dump(replaced, sort_keys=False) if replaced else None,
        "created_at": time.time(),
    })  # fmt: skip


@contextlib.contextmanager
def _locked(routes: Path) -> Iterator[None]:
    routes.parent.mkdir(parents=True, exist_ok=True)
    with (routes.parent / f".{routes.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(routes: Path, text: str, config: Config, before: str) -> None:
    """Temp file, check, fsync, rename: a reader sees the old file or the new one, and the new one is valid."""
    partial = routes.with_name(f".{routes.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    load_routes(partial, config)
    if before:
        routes.with_name(f"{routes.name}.previous").write_text(before, "utf-8")
    partial.replace(routes)
    folder = os.open(routes.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- editing the text: people's comments and other routes keep their bytes -----------------------------


def edit(text: str, task: str, route: RouteDict | None) -> tuple[str, RouteDict | None]:
    """The file's text with the task's route set (in its place, or first in the list) or taken out (None), and
    the route that stood there. Pure.

    Raises:
        ConfigError: the text is no routes file.
    """
    routes = _routes_of(text)
    place = next((i for i, r in enumerate(routes) if r.get("match", {}).get("task") == task), None)
    replaced = None if place is None else routes[place]
    if route is None and place is None:
        return text, None
    wanted = list(routes)
    if place is not None:
        wanted[place : place + 1] = [] if route is None else [route]
    elif route is not None:
        wanted.insert(0, route)
    spliced = _splice(text, place, route)
    if spliced is not None and _routes_of(spliced) == wanted:
        return spliced, replaced
    value = (yaml.safe_load(text) or {}) | {"routes": wanted}
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True), replaced


def _routes_of(text: str) -> Sequence[RouteDict]:
    try:
        value = yaml.safe_load(text) or {}
        return list(value.get("routes") or [])
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ConfigError(f"routes.yaml is no routes file, it is left as it is: {error}") from error


def _splice(text: str, place: int | None, route: RouteDict | None) -> str | None:
    """Replace only the lines of one list item; None where the list is not written one item a line."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    listed = next((value for key, value in pairs if key.value == "routes"), None)
    if not isinstance(listed, yaml.SequenceNode) or listed.flow_style or not listed.value:
        return None
    lines = text.splitlines(keepends=True)
    starts = [item.start_mark.line for item in listed.value]
    indent = " " * listed.start_mark.column
    begin = starts[place or 0]
    end = begin
    if place is not None:
        end = starts[place + 1] if place + 1 < len(starts) else _last_line(listed.value[place], lines)
    dumped = yaml.safe_dump([route], sort_keys=False, allow_unicode=True) if route else ""
    fresh = [indent + line for line in dumped.splitlines(keepends=True)]
    return "".join([*lines[:begin], *fresh, *lines[end:]])


def _last_line(item: yaml.Node, lines: Sequence[str]) -> int:
    """The line behind an item; a block's end mark stands on the next thing that is not blank or comment."""
    end = min(item.end_mark.line + (1 if item.end_mark.column else 0), len(lines))
    while end > item.start_mark.line + 1 and not lines[end - 1].split("#")[0].strip():
        end -= 1
    return end
