"""Gemini's answers: candidates made of parts, whole, as events, or as a JSON list that grows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gateway.providers.answers import (
    Answer,
    Choice,
    Json,
    ToolCall,
    arguments_of,
    documents,
    name_of,
    rest,
    text_of,
)

_KNOWN = ("responseId", "modelVersion", "candidates", "usageMetadata", "error", "createTime")


def read_documents(body: bytes, *, streamed: bool) -> list[Json]:
    """The answers in a recorded body; of a JSON list that was cut short, the whole ones.

    Raises:
        ValueError: it is neither.
    """
    text = body.lstrip(b"\xef\xbb\xbf \t\r\n")
    if streamed or text[:1] != b"[":
        return documents(body, streamed=streamed)
    found, at, whole = [], 1, text.decode()
    decoder = json.JSONDecoder()
    while (at := _next(whole, at)) < len(whole) and whole[at] != "]":
        try:
            item, at = decoder.raw_decode(whole, at)
        except ValueError:
            break
        found.append(item)
    if not all(isinstance(item, dict) for item in found):
        raise ValueError("a list of answers has objects in it")
    return found


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at] in ", \t\r\n":
        at += 1
    return at


def assemble(items: Iterable[Json]) -> Answer | None:
    """The answer that these chunks (or this one answer) make; None without any candidate."""
    whole: Json = {}
    candidates: dict[int, Json] = {}
    for item in items:
        for candidate in item.get("candidates") or ():
            index = candidate.get("index") or 0
            known = candidates.get(index, {})
            content = candidate.get("content") or {}
            candidates[index] = {
                **known,
                **{name: value for name, value in candidate.items() if value is not None},
                "parts": [*known.get("parts", ()), *(content.get("parts") or ())],
                "role": known.get("role") or content.get("role"),
            }
        whole |= {name: value for name, value in item.items() if value is not None}
    if not candidates:
        return None
    return Answer(
        choices=tuple(_choice(index, candidates[index]) for index in sorted(candidates)),
        id=name_of(whole.get("responseId")),
        model=name_of(whole.get("modelVersion")),
        error=whole.get("error"),
        more=rest(whole, *_KNOWN),
    )


def _choice(index: int, candidate: Json) -> Choice:
    parts = _joined(candidate["parts"])
    texts = [part["text"] for part in parts if "text" in part and not part.get("thought")]
    thoughts = [part["text"] for part in parts if "text" in part and part.get("thought")]
    return Choice(
        index=index,
        role=name_of(candidate.get("role")),
        text=text_of("".join(texts)),
        reasoning=name_of("".join(thoughts)),
        tool_calls=tuple(_tool_call(part["functionCall"]) for part in parts if part.get("functionCall")),
        finish_reason=name_of(candidate.get("finishReason")),
        logprobs=candidate.get("logprobsResult"),
        parts=tuple(parts),
        more=rest(candidate, "index", "content", "parts", "role", "finishReason", "logprobsResult", "tokenCount"),
    )


def _joined(parts: list[Any]) -> list[Json]:
    """Texts that follow each other are one part, as in an answer that was not streamed.

    A part with more to it (a signature) ends the text that it belongs to; an empty text is none.
    """
    out: list[Json] = []
    for part in parts:
        last = out[-1] if out else {}
        both = "text" in part and set(last) <= {"text", "thought"} and "text" in last
        if both and bool(last.get("thought")) == bool(part.get("thought")):
            out[-1] = {**last, **part, "text": last["text"] + part["text"]}
        elif part != {"text": ""}:
            out.append(part)
    return out


def _tool_call(call: Json) -> ToolCall:
    return ToolCall(
        id=name_of(call.get("id")),
        name=name_of(call.get("name")),
        arguments=arguments_of(call.get("args") or {}),
        more=rest(call, "id", "name", "args"),
    )
