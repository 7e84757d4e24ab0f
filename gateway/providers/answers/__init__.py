"""Answers: what a model said, one noun for every wire format, the same whether it was streamed or not.

They are put together offline, from recorded bytes; the relay only looks at the tail (`read_response`).
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from gateway import sse

Json = dict[str, Any]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `arguments` is JSON text: as it came, or written compactly where the format sends an object.

    `kind` is the format's own word (`function`, `custom`, `function_call` for OpenAI's old field, `tool_use`).
    """

    id: str | None = None
    name: str | None = None
    arguments: str = ""
    kind: str = "function"
    more: Json = {}


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of an answer's alternatives.

    `reasoning` is apart from `text`. `logprobs` are raw. `parts` are the format's own content blocks, whole
    and in order, where it has such. `more` has every field that has no place here, empty ones left out.
    """

    index: int = 0
    role: str | None = None
    text: str = ""
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    transcript: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None
    parts: tuple[Any, ...] = ()
    more: Json = {}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer: at least one choice, in the order of their indexes. `error` came in the midst of it."""

    choices: tuple[Choice, ...]
    id: str | None = None
    model: str | None = None
    error: Any = None
    more: Json = {}


UNREADABLE = (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError)
"""What assembling raises where a field is not what its format says."""


def documents(body: bytes, *, streamed: bool) -> list[Json]:
    """The JSON objects of a recorded answer: one, or one for each event.

    What a stream was cut within is left out.

    Raises:
        ValueError: something else is not a JSON object.
    """
    data = (
        [event.data for event in sse.events(body) if event.data.strip() not in (b"", b"[DONE]")]
        if streamed
        else [body]
    )
    found = []
    for number, text in enumerate(data, 1):
        try:
            found.append(json.loads(text))
        except ValueError:
            if number < len(data) or not streamed or body.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
                raise
    if not all(isinstance(item, dict) for item in found):
        raise ValueError("an answer's events are JSON objects")
    return found


def merge(old: Any, new: Any, key: str = "") -> Any:
    """A value and its continuation: strings and lists go on, objects are merged, null says nothing.

    Strings under names like `type` and `id` are whole each time; list items with an `index` belong together.
    """
    if new is None or old is None:
        return old if new is None else new
    if isinstance(old, str) and isinstance(new, str):
        return (new or old) if key in _WHOLE else old + new
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: merge(old.get(name), value, name) for name, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        return _merge_lists(old, new)
    return new


_WHOLE = frozenset({"id", "type", "role", "index", "format", "name", "call_id", "status", "encoding", "model"})


def _merge_lists(old: list[Any], new: list[Any]) -> list[Any]:
    out = list(old)
    for item in new:
        index = item.get("index") if isinstance(item, dict) else None
        places = [at for at, known in enumerate(out) if isinstance(known, dict) and known.get("index") == index]
        if index is None or not places:
            out.append(item)
        else:
            out[places[0]] = merge(out[places[0]], item)
    return out


def rest(fields: Json, *known: str) -> Json:
    """The fields that are not among the known ones and not empty."""
    return {name: value for name, value in fields.items() if name not in known and value not in (None, "", [], {})}


_SURROGATE = re.compile("[\ud800-\udfff]")


def text_of(value: Any) -> str:
    """A string whose surrogate pairs are whole again where a stream was cut between the two; else empty."""
    if not isinstance(value, str):
        return ""
    if not _SURROGATE.search(value):
        return value
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def name_of(value: Any) -> str | None:
    """A string that says something, else None."""
    return text_of(value) or None


def arguments_of(value: Any) -> str:
    """A tool call's arguments as JSON text."""
    if isinstance(value, str):
        return text_of(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
