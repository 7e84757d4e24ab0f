"""OpenAI's Responses API: output items, whole at the end of a stream, or put together from its events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.providers.answers import Answer, Choice, Json, ToolCall, arguments_of, merge, name_of, rest, text_of

_PARTS = {  # event without its ending -> (list of the item, key of the place in it, type of the part, field)
    "response.output_text": ("content", "content_index", "output_text", "text"),
    "response.refusal": ("content", "content_index", "refusal", "refusal"),
    "response.reasoning_text": ("content", "content_index", "reasoning_text", "text"),
    "response.reasoning_summary_text": ("summary", "summary_index", "summary_text", "text"),
}
_FIELDS = {
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.code_interpreter_call_code": "code",
}
_PLACES = {
    "response.content_part": ("content", "content_index"),
    "response.reasoning_summary_part": ("summary", "summary_index"),
}
_KNOWN = ("id", "object", "model", "output", "status", "usage", "created_at", "completed_at", "error")


def is_response(item: Json) -> bool:
    """Whether it is a response object, or an event of a response's stream."""
    return item.get("object") == "response" or str(item.get("type")).startswith("response.")


def assemble(items: Iterable[Json]) -> Answer | None:
    """The answer that these events (or this one response) make; its one choice has the items as `parts`."""
    whole: Json = {}
    output: dict[int, Json] = {}
    error: Any = None
    for item in items:
        if item.get("object") == "response":
            whole = item
        elif isinstance(item.get("response"), dict):
            whole = item["response"]
        elif item.get("type") == "error":
            error = rest(item, "type", "sequence_number")
        else:
            _take(output, item)
    parts = whole.get("output") or [output[index] for index in sorted(output)]
    if not whole and not parts:
        return None
    return Answer(
        choices=(_choice(parts, whole.get("status")),),
        id=name_of(whole.get("id")),
        model=name_of(whole.get("model")),
        error=whole.get("error") or error,
        more=rest(whole, *_KNOWN),
    )


def _take(output: dict[int, Json], event: Json) -> None:
    """Note in the items so far what one event says of them."""
    kind, _, ending = str(event.get("type")).rpartition(".")
    index = event.get("output_index") or 0
    item = output.setdefault(index, {}) if kind in _PARTS or kind in _FIELDS or kind in _PLACES else {}
    if kind == "response.output_item":
        output[index] = dict(event["item"])
    elif kind in _PLACES:
        name, place = _PLACES[kind]
        _put(item, name, event.get(place) or 0, event["part"])
    elif kind in _FIELDS:
        field = _FIELDS[kind]
        item[field] = (item.get(field) or "") + event["delta"] if ending == "delta" else event.get(field)
    elif kind in _PARTS:
        name, place, part_type, field = _PARTS[kind]
        at = event.get(place) or 0
        part = {"type": part_type, **_at(item, name, at)}
        part[field] = (part.get(field) or "") + event["delta"] if ending == "delta" else event.get(field)
        if ending == "delta" and event.get("logprobs"):
            part["logprobs"] = merge(part.get("logprobs"), event["logprobs"])
        _put(item, name, at, part)
    elif kind == "response.output_text.annotation":
        item, at = output.setdefault(index, {}), event.get("content_index") or 0
        part = dict(_at(item, "content", at))
        _put(item, "content", at, part | {"annotations": [*(part.get("annotations") or ()), event["annotation"]]})


def _at(item: Json, name: str, place: int) -> Json:
    parts = item.get(name) or []
    part = parts[place] if place < len(parts) else {}
    return part if isinstance(part, dict) else {}


_PARTS_AT_MOST = 10_000


def _put(item: Json, name: str, place: int, part: Json) -> None:
    if not 0 <= place < _PARTS_AT_MOST:
        raise ValueError("an item does not have so many parts")
    parts = list(item.get(name) or ())
    parts += [{} for _ in range(place + 1 - len(parts))]
    parts[place] = part
    item[name] = parts


def _choice(items: list[Json], status: Any) -> Choice:
    text, refusal, thoughts = "", "", []
    calls = []
    for item in items:
        kind = item.get("type")
        for part in item.get("content") or ():
            if kind == "reasoning":
                thoughts.append(part.get("text") or "")
            else:
                text += part.get("text") or ""
                refusal += part.get("refusal") or ""
        thoughts += [part.get("text") or "" for part in item.get("summary") or ()]
        if kind in ("function_call", "custom_tool_call"):
            calls.append(_tool_call(item, kind))
    return Choice(
        role=next((name_of(item["role"]) for item in items if item.get("role")), "assistant"),
        text=text_of(text),
        refusal=name_of(refusal),
        reasoning=name_of("\n\n".join(thoughts)),
        tool_calls=tuple(calls),
        finish_reason=name_of(status),
        parts=tuple(items),
    )


def _tool_call(item: Json, kind: str) -> ToolCall:
    return ToolCall(
        id=name_of(item.get("call_id")),
        name=name_of(item.get("name")),
        arguments=arguments_of(item.get("arguments") if kind == "function_call" else item.get("input")),
        kind="function" if kind == "function_call" else "custom",
        more=rest(item, "id", "call_id", "name", "arguments", "input", "type", "status"),
    )
