"""Anthropic's messages: content blocks, whole or from the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gateway.providers.answers import Answer, Choice, Json, ToolCall, arguments_of, merge, name_of, rest, text_of

_KNOWN = ("id", "type", "role", "model", "content", "stop_reason", "usage", "error")
_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def assemble(items: Iterable[Json]) -> Answer | None:
    """The answer that these events (or this one message) make; its one choice has the blocks as `parts`."""
    whole: Json = {}
    blocks: dict[int, Json] = {}
    error: Any = None
    for item in items:
        kind, index = item.get("type"), item.get("index") or 0
        if kind == "message":
            whole = item
        elif kind == "message_start":
            whole = item["message"]
        elif kind == "content_block_start":
            blocks[index] = dict(item["content_block"])
        elif kind == "content_block_delta":
            blocks[index] = _go_on(blocks.get(index, {}), item["delta"])
        elif kind == "message_delta":
            whole = whole | {k: v for k, v in (item.get("delta") or {}).items() if v is not None}
            whole |= rest(item, "type", "delta", "usage")
        elif kind == "error":
            error = item.get("error")
    if not whole:
        return None
    parts = whole.get("content") or [_whole(blocks[index]) for index in sorted(blocks)]
    more = rest(whole, *_KNOWN)
    return Answer(choices=(_choice(whole, parts),), id=name_of(whole.get("id")), model=name_of(whole.get("model")),
                  error=error, more=more)  # fmt: skip


_INPUT = "partial_json"  # no field of a block has this name


def _go_on(block: Json, delta: Json) -> Json:
    """A content block and the next piece of it."""
    kind = delta.get("type")
    if kind == "input_json_delta":
        return block | {_INPUT: block.get(_INPUT, "") + delta["partial_json"]}
    if kind == "citations_delta":
        return block | {"citations": [*(block.get("citations") or ()), delta["citation"]]}
    if kind in _DELTAS:
        name = _DELTAS[kind]
        return block | {name: (block.get(name) or "") + delta[name]}
    later: Json = merge(block, rest(delta, "type"))  # a kind that is not known here: its strings go on
    return later


def _whole(block: Json) -> Json:
    """The block as a whole message has it: its input parsed, or as it came where it was cut short."""
    text = block.pop(_INPUT, None)
    if not text:
        return block
    try:
        return block | {"input": json.loads(text)}
    except ValueError:
        return block | {"input": text}


def _choice(whole: Json, parts: list[Json]) -> Choice:
    thoughts = [part.get("thinking") or "" for part in parts if part.get("type") == "thinking"]
    texts = [part.get("text") or "" for part in parts if part.get("type") == "text"]
    refused = whole.get("stop_reason") == "refusal"
    return Choice(
        role=name_of(whole.get("role")),
        text=text_of("".join(texts)),
        refusal=text_of("".join(texts)) if refused else None,
        reasoning=name_of("\n\n".join(thoughts)),
        tool_calls=tuple(_tool_call(part) for part in parts if part.get("type") == "tool_use"),
        finish_reason=name_of(whole.get("stop_reason")),
        parts=tuple(parts),
    )


def _tool_call(part: Json) -> ToolCall:
    return ToolCall(
        id=name_of(part.get("id")),
        name=name_of(part.get("name")),
        arguments=arguments_of(part.get("input")),
        kind="tool_use",
        more=rest(part, "id", "name", "input", "type"),
    )
