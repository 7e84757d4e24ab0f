"""Chat completions and completions in OpenAI's shape: deltas are merged into the message that they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.providers.answers import (
    Answer,
    Choice,
    Json,
    ToolCall,
    arguments_of,
    merge,
    name_of,
    rest,
    text_of,
)

_MESSAGE = ("role", "content", "refusal", "reasoning_content", "reasoning", "tool_calls", "function_call", "audio")


def assemble(items: Iterable[Json]) -> Answer | None:
    """The answer that these chunks (or this one whole completion) make; None without any choice."""
    whole: Json = {}
    choices: dict[int, Json] = {}
    for item in items:
        for choice in item.get("choices") or ():
            index = choice.get("index") or 0
            choices[index] = _go_on(choices.get(index, {}), choice)
        whole |= {name: value for name, value in item.items() if value is not None}
    if not choices:
        return None
    return Answer(
        choices=tuple(_choice(index, choices[index]) for index in sorted(choices)),
        id=name_of(whole.get("id")),
        model=name_of(whole.get("model")),
        error=whole.get("error"),
        more=rest(whole, "id", "object", "created", "model", "choices", "usage", "error", "obfuscation"),
    )


def _go_on(known: Json, choice: Json) -> Json:
    """A choice and its next chunk, as the whole choice so far."""
    out = known | {name: value for name, value in choice.items() if value is not None}
    message, delta = choice.get("message"), choice.get("delta") or {}
    so_far = known.get("message") or {}
    if message is None and delta:
        calls = _calls(so_far.get("tool_calls") or [], delta.get("tool_calls") or [])
        message = merge(so_far, {name: value for name, value in delta.items() if name != "tool_calls"})
        message |= {"tool_calls": calls} if calls else {}
    out["message"] = so_far if message is None else message
    for name in ("text", "logprobs"):
        out[name] = merge(known.get(name), choice.get(name))
    return out


def _calls(known: list[Json], pieces: list[Json]) -> list[Json]:
    """The tool calls so far, with the next pieces added where they belong."""
    calls = list(known)
    for piece in pieces:
        place = _place(calls, piece)
        if place is None:
            calls.append(piece)
        else:
            calls[place] = merge(calls[place], piece)
    return calls


def _place(calls: list[Json], piece: Json) -> int | None:
    """Which call a piece goes on with: by index, else by id, else the last one; None: it begins one.

    Some servers give every call the index 0, or no index at all: another id, or a second name without
    either, begins a new call.
    """
    index, id = piece.get("index"), piece.get("id")
    if index is not None:
        places = [at for at, call in enumerate(calls) if call.get("index") == index]
        other = bool(places and id and calls[places[-1]].get("id") not in (None, "", id))
        return places[-1] if places and not other else None
    if id:
        return next((at for at, call in enumerate(calls) if call.get("id") == id), None)
    begins = not calls or (
        (piece.get("function") or {}).get("name") and (calls[-1].get("function") or {}).get("name")
    )
    return None if begins else len(calls) - 1


def _choice(index: int, choice: Json) -> Choice:
    message = choice["message"]
    content, audio = message.get("content"), message.get("audio") or {}
    text, thought = _content(content if content is not None else choice.get("text"))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or thought
    more = rest(choice, "index", "message", "delta", "text", "finish_reason", "logprobs", "usage")
    more |= rest(message, *_MESSAGE)
    more |= {"audio": rest(audio, "transcript")} if rest(audio, "transcript") else {}
    return Choice(
        index=index,
        role=name_of(message.get("role")),
        text=text,
        refusal=name_of(message.get("refusal")),
        reasoning=name_of(reasoning),
        tool_calls=tuple(_tool_calls(message)),
        transcript=name_of(audio.get("transcript")),
        finish_reason=name_of(choice.get("finish_reason")),
        logprobs=choice.get("logprobs"),
        parts=tuple(content) if isinstance(content, list) else (),
        more=more,
    )


def _content(content: Any) -> tuple[str, str]:
    """(text, reasoning) of a message's content: a string, or a list of parts (Mistral's reasoning models)."""
    if not isinstance(content, list):
        return text_of(content), ""
    text, thought = "", ""
    for part in content:
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            thought += (
                inner if isinstance(inner, str) else "".join(piece.get("text") or "" for piece in inner or ())
            )
        else:
            text += part.get("text") or ""
    return text_of(text), text_of(thought)


def _tool_calls(message: Json) -> Iterable[ToolCall]:
    calls = list(message.get("tool_calls") or ())
    if all(isinstance(call.get("index"), int) for call in calls):
        calls.sort(key=lambda call: int(call["index"]))
    for call in calls:
        kind = call.get("type") or "function"
        said = call.get(kind) or call.get("function") or {}
        given = said.get("input") if said.get("arguments") is None else said["arguments"]
        more = rest(call, "id", "index", "type", kind, "function") | rest(said, "name", "arguments", "input")
        yield ToolCall(
            id=name_of(call.get("id")), name=name_of(said.get("name")), arguments=arguments_of(given), kind=kind,
            more=more,
        )  # fmt: skip
    old = message.get("function_call")
    if old:
        yield ToolCall(
            name=name_of(old.get("name")), arguments=arguments_of(old.get("arguments")), kind="function_call"
        )
