"""Calls of tools as answers that can be compared: which tools with which arguments, in whatever order.

Such an answer stands beside texts as a text of its own, which no model's text is equal to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gateway.domain.dataset import Row
from gateway.providers.answers import Choice

MARK = "\0tool calls: "
"""What the text begins with; a text that a model says holds no NUL."""

Named = tuple[str | None, str]
"""A tool's name and its arguments as JSON text, as a wire format has them."""


def spelled(calls: Iterable[Named]) -> str:
    """The calls as one text: each tool's name with the arguments of all its calls, as JSON with sorted keys."""
    made: dict[str, list[Any]] = {}
    for name, arguments in calls:
        made.setdefault(name or "", []).append(_parsed(arguments))
    return MARK + _json({name: sorted(each, key=_json) for name, each in made.items()})


def calls_in(answer: str) -> dict[str, list[Any]] | None:
    """The arguments of each tool's calls by its name, of what `spelled` wrote; None for any other answer."""
    if not answer.startswith(MARK):
        return None
    found = _parsed(answer.removeprefix(MARK))
    if not isinstance(found, dict) or not all(isinstance(each, list) for each in found.values()):
        return None
    return {name: sorted(each, key=_json) for name, each in found.items()}  # masked values may sort otherwise


def of_choice(choice: Choice) -> str:
    """What an assembled answer says: its calls where it has some, else its text."""
    calls = [(call.name, call.arguments) for call in choice.tool_calls]
    return spelled(calls) if calls else choice.text


def of_row(row: Row) -> str:
    """The answer that a row expects: its calls where it has some, else its text."""
    named = [call["function"] for call in row.tool_calls]
    return spelled((one.get("name"), one.get("arguments", "")) for one in named) if named else row.output


def shown(answer: str) -> str:
    """An answer for a reader."""
    return answer.lstrip("\0")


def _parsed(arguments: str) -> Any:
    """The arguments as JSON, none as an empty object; what is no JSON stays the text that it is."""
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
