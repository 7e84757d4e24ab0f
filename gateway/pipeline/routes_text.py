"""Edits the text of routes.yaml so that people's comments and other routes keep their bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import yaml

from gateway.errors import ConfigError

RouteDict = dict[str, Any]
Fits = Callable[[RouteDict], bool]


class Edited(NamedTuple):
    """The new text, and the route that was replaced or taken out: as a value, and exactly as it was written."""

    text: str
    replaced: RouteDict | None = None
    source: str | None = None


def routes_of(text: str) -> list[RouteDict]:
    """The routes in a text.

    Raises:
        ConfigError: it is no routes file.
    """
    try:
        value = yaml.safe_load(text)
        routes = (value or {}).get("routes") or []
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        raise ConfigError(f"no routes file, it is left as it is: {' '.join(str(error).split())}") from error
    if not isinstance(routes, list) or not all(isinstance(route, dict) for route in routes):
        raise ConfigError("no routes file, it is left as it is: 'routes:' must be a list of mappings")
    return routes


def edit(text: str, fits: Fits, route: RouteDict | None, source: str | None = None) -> Edited:
    """The text with `route` in the place of the first route that `fits` (new: before the first one that has no
    key and no tags in its match), or with that route taken out (None).

    `source` is how the route was written before, and will be again where that says the same. Everything else
    keeps its bytes; only a file in which that cannot be done (an anchor of one route that another uses) is
    written anew from its values.

    Raises:
        ConfigError: the text is no routes file.
    """
    routes = routes_of(text)
    place = next((i for i, one in enumerate(routes) if fits(one)), None)
    if place is None and route is None:
        return Edited(text)
    wanted = list(routes)
    if place is None:
        at = next((i for i, one in enumerate(routes) if not _is_special(one)), len(routes))
        wanted.insert(at, route or {})
    else:
        at = place
        wanted[place : place + 1] = [] if route is None else [route]
    replaced = None if place is None else routes[place]
    for new, old in _attempts(text, at, place is not None, route, source):
        if _says(new, wanted):
            return Edited(new, replaced, old)
    value = (yaml.safe_load(text) or {}) | {"routes": wanted}
    return Edited(_dump(value), replaced, None if replaced is None else _dump([replaced]))


def _is_special(route: RouteDict) -> bool:
    """A route for certain keys or tags is meant to come before what holds for everybody."""
    match = route.get("match") or {}
    return bool(isinstance(match, dict) and (match.get("key") or match.get("tags")))


def _says(text: str, wanted: list[RouteDict]) -> bool:
    try:
        return routes_of(text) == wanted
    except ConfigError:
        return False


def _dump(value: Any, *, flow: bool = False) -> str:
    """YAML as a person would write it: a route's targets one a line."""
    style = True if flow else None
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=style, width=10**6)
    return str(text).strip() if flow else str(text)


def _attempts(
    text: str, at: int, taken: bool, route: RouteDict | None, source: str | None
) -> Iterator[tuple[str, str | None]]:
    """Ways to write the new text, each with how the old route was written; the first that says it is right."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    key, node = next(((k, v) for k, v in pairs if k.value == "routes"), (None, None))
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        for how in (source, None) if source else (None,):
            yield _in_block(text, node, at, taken, route, how)
    elif isinstance(node, yaml.SequenceNode) and node.value:
        yield _in_flow(text, node, at, taken, route)
    elif route is not None and isinstance(root, yaml.MappingNode) and root.flow_style and node is not None:
        yield _cut(text, node.start_mark.index, node.end_mark.index, f"[{_dump(route, flow=True)}]"), None
    elif route is not None:
        yield _first(text, key, node, route), None


def _cut(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _block(route: RouteDict, indent: int, newline: str) -> str:
    """A list item as lines of text."""
    lines = _dump([route]).splitlines()
    return "".join(" " * indent + line + newline for line in lines)


# --- one item a line -------------------------------------------------------------------------------------


def _in_block(
    text: str, node: yaml.SequenceNode, at: int, taken: bool, route: RouteDict | None, source: str | None
) -> tuple[str, str | None]:
    spans = [_span(text, item, node.start_mark.column) for item in node.value]
    start, end = spans[at] if at < len(spans) else (spans[-1][1], spans[-1][1])
    if not taken:
        end = start
    old = text[start:end] if taken else None
    new = "" if route is None else source or _block(route, node.start_mark.column, _newline(text))
    before = _newline(text) if new and start and text[start - 1] != "\n" else ""
    if new and end < len(text) and not new.endswith("\n"):
        new += _newline(text)
    return _cut(text, start, end, before + new), old


def _span(text: str, item: yaml.Node, column: int) -> tuple[int, int]:
    """Where the lines of a list item begin and end: from its dash to its last line that is no comment."""
    start = _line_start(text, item.start_mark.index)
    while start and text[start + column : start + column + 1] != "-":
        start = _line_start(text, start - 1)
    end = item.end_mark.index
    begin = _line_start(text, end)
    # Text there: the end of the file, or of a value, and not the beginning of what follows.
    end = _line_end(text, end) if text[begin:end].strip() else begin
    while end > start:  # blank lines and comments before the next item are the next item's
        last = _line_start(text, end - 1)
        line = text[last:end].strip()
        if (line and not line.startswith("#")) or last <= start:
            break
        end = last
    return start, end


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


# --- [a, list, like, this], and no list yet --------------------------------------------------------------


def _in_flow(
    text: str, node: yaml.SequenceNode, at: int, taken: bool, route: RouteDict | None
) -> tuple[str, str | None]:
    spans = [(item.start_mark.index, item.end_mark.index) for item in node.value]
    new = "" if route is None else _dump(route, flow=True)
    if not taken:
        start = spans[at][0] if at < len(spans) else spans[-1][1]
        return _cut(text, start, start, f"{new}, " if at < len(spans) else f", {new}"), None
    start, end = spans[at]
    old = _dump([node_value(text, start, end)])
    if route is None:  # with one of the commas around it
        if at + 1 < len(spans):
            end = spans[at + 1][0]
        elif at:
            start = spans[at - 1][1]
    return _cut(text, start, end, new), old


def node_value(text: str, start: int, end: int) -> Any:
    """The value that this part of a text stands for; None where it stands for nothing by itself."""
    try:
        return yaml.safe_load(text[start:end])
    except yaml.YAMLError:
        return None


def _first(text: str, key: yaml.Node | None, node: yaml.Node | None, route: RouteDict) -> str:
    """The text with its first route: below its `routes:`, or below one of its own."""
    newline = _newline(text)
    if key is None or node is None:
        gap = newline if text and not text.endswith("\n") else ""
        return f"{text}{gap}routes:{newline}{_block(route, 2, newline)}"
    start = node.start_mark.index
    if node.end_mark.index > start:  # `[]` or `null`
        while text[start - 1] in " \t":
            start -= 1
        text = _cut(text, start, node.end_mark.index, "")
    end = _line_end(text, key.end_mark.index)
    gap = "" if text[:end].endswith("\n") else newline
    return f"{text[:end]}{gap}{_block(route, key.start_mark.column + 2, newline)}{text[end:]}"
