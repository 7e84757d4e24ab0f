"""Which examples a training service takes: what stands in the turns of a conversation is checked by its rules."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from gateway.formats import InvalidRow, Json, Reason
from gateway.formats.messages import check_conversation, said
from gateway.formats.openai import RULES
from gateway.pipeline.examples import Example


def trainable(found: Example | str, tools: Set[str] = frozenset()) -> Example | str:
    """The example without keys that say nothing, or the reason why it is no valid row. A reason stays itself. One
    that calls some of these `tools` in a valid way is learnt like a text; with any other call it stays `beyond`.

    Turns come as the app sent them: with fields of the client that it got its answers from, or of no API at all.
    One such row, and a service refuses the file.
    """
    if isinstance(found, str) or (_is_plain(found) and not found.tool_calls):
        return found
    messages = [said(message) for message in found.messages]
    found = msgspec.structs.replace(found, messages=messages)
    if found.tool_calls:
        answer: Json = {"role": "assistant", "tool_calls": found.tool_calls}
        learnt = _names(found) <= tools and _wrong([*messages, answer]) is None
        return msgspec.structs.replace(found, beyond="") if learnt else found
    wrong = None if found.beyond else _wrong([*messages, {"role": "assistant", "content": found.output}])
    return found if wrong is None else f"no valid chat: {wrong}"


def _names(found: Example) -> set[str]:
    return {call["function"]["name"] for call in found.tool_calls}


def _wrong(messages: list[Json]) -> Reason | None:
    try:
        check_conversation({"messages": messages}, RULES)
    except InvalidRow as invalid:
        return invalid.reason
    return None


def _is_plain(found: Example) -> bool:
    """Whether it is one text to one answer, of which nothing can be wrong."""
    return len(found.messages) == 1 and isinstance(found.messages[0].get("content"), str)
