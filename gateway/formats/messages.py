"""The rules of chat messages, which most formats share.

Sources: OpenAI's guide on preparing chat fine-tuning data and the `FineTuneChatRequestInput` of its specification
(March 2025); the data guides of the other services, named in their files.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from gateway.formats import Example, InvalidRow, Json, Reason, expect, keys_of

OPENAI_TOKENS = re.compile(r"<\|(?:endoftext|fim_prefix|fim_middle|fim_suffix|endofprompt|im_start|im_end)\|>")
ANY_TOKEN = re.compile(r"<\|[A-Za-z][A-Za-z0-9_]*\|>")
"""What open models' chat templates write between the messages: in a text, it would end a message."""

_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "weight"})
_CALL_KEYS = frozenset({"id", "type", "function"})
_FUNCTION_KEYS = frozenset({"name", "arguments"})
_MOST_TOOLS = 128


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer allows in messages. `alternate`: no role twice in a row, and user or system first;
    `arguments`: how those of a tool call are written, as JSON text or as an object; `parts`: whether a content may
    be a list."""

    roles: frozenset[str] = frozenset({"system", "user", "assistant", "tool"})
    keys: frozenset[str] = _KEYS
    alternate: bool = False
    arguments: type = str
    parts: bool = True
    tokens: re.Pattern[str] = ANY_TOKEN


def conversation(example: Example) -> Json:
    """The example as `messages`, the answer last, and its `tools` where there are any."""
    row: Json = {"messages": [said(message) for message in (*example.messages, example.answer)]}
    return row | {"tools": example.tools} if example.tools else row


def said(message: Json) -> Json:
    """The message without keys that say nothing: apps send an answer back as their client gave it to them, with
    every field that it might have had."""
    return {key: value for key, value in message.items() if key == "role" or value not in (None, [])}


def check_conversation(row: Json, rules: Rules) -> None:
    """Check `messages` that end in an answer, and `tools`.

    Raises:
        InvalidRow: the first thing that is wrong.
    """
    messages = check_messages(row.get("messages"), rules)
    check_answer(messages[-1])
    if "tools" in row:
        check_tools(row["tools"])


def check_messages(messages: Any, rules: Rules) -> list[Json]:
    """The messages, each of which has been found valid, and their order, too.

    Raises:
        InvalidRow: the first thing that is wrong.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidRow(Reason.NO_MESSAGES, "no list of 'messages'")
    for at, message in enumerate(messages):
        _check_message(message, f"message {at}", rules)
    _check_calls(messages)
    _check_order(messages, rules)
    return messages


def check_answer(message: Json) -> None:
    """Check a conversation's last message.

    Raises:
        InvalidRow: it is no answer, or an empty one.
    """
    if message["role"] != "assistant":
        raise InvalidRow(Reason.NO_ANSWER, f"the last message is from {message['role']!r}, not from the assistant")
    if message.get("weight") == 0:
        raise InvalidRow(Reason.NO_ANSWER, "the last message has weight 0: nothing is left to learn")
    if not message.get("tool_calls") and not text_of(message).strip():
        raise InvalidRow(Reason.EMPTY_ANSWER, "the assistant's answer is empty")


def check_tools(tools: Any) -> None:
    """Check the declarations of tools.

    Raises:
        InvalidRow: one is no declaration of a function.
    """
    if not isinstance(tools, list) or not 0 < len(tools) <= _MOST_TOOLS:
        raise InvalidRow(Reason.TOOLS, f"'tools' is no list of 1 to {_MOST_TOOLS} tools")
    for at, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRow(Reason.TOOLS, f"tool {at} has no function with a name")
        if not isinstance(function.get("parameters", {}), dict):
            raise InvalidRow(Reason.TOOLS, f"the parameters of tool {function['name']!r} are no JSON schema")


def text_of(message: Json) -> str:
    """All text of a message."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


# --- one message -----------------------------------------------------------------------------------------


def _check_message(message: Any, where: str, rules: Rules) -> None:
    expect(message, dict, where)
    keys_of(message, rules.keys, frozenset({"role"}), where)
    role = message["role"]
    if not isinstance(role, str) or role not in rules.roles:
        raise InvalidRow(Reason.UNKNOWN_ROLE, f"{where} has role {role!r}; known: {', '.join(sorted(rules.roles))}")
    _check_weight(message, where)
    for name in ("name", "tool_call_id"):
        if name in message:
            expect(message[name], str, f"the {name} of {where}")
    calls = _calls_of(message, where)
    for call in calls:
        _check_call(call, where, rules)
    _check_content(message, where, rules)
    text = text_of(message) + (json.dumps(calls, ensure_ascii=False) if calls else "")
    if found := rules.tokens.search(text):
        raise InvalidRow(Reason.SPECIAL_TOKEN, f"{where} holds the reserved token {found[0]}")


def _check_weight(message: Json, where: str) -> None:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1) or ("weight" in message and message["role"] != "assistant"):
        reason = f"{where} has weight {weight!r}; it is 0 or 1, on an assistant's message only"
        raise InvalidRow(Reason.WEIGHT, reason)


def _check_content(message: Json, where: str, rules: Rules) -> None:
    content = message.get("content")
    if content is None:
        if not message.get("tool_calls"):
            raise InvalidRow(Reason.MISSING_CONTENT, f"{where} has no content")
    elif isinstance(content, list) and rules.parts:
        if not content:
            raise InvalidRow(Reason.MISSING_CONTENT, f"{where} has no content")
        for part in content:
            expect(part, dict, f"a content part of {where}")
            if not isinstance(part.get("type"), str):
                raise InvalidRow(Reason.WRONG_TYPE, f"a content part of {where} has no type")
            if part["type"] == "text":
                expect(part.get("text"), str, f"the text of a content part of {where}")
    else:
        expect(content, str, f"the content of {where}")


def _calls_of(message: Json, where: str) -> list[Any]:
    if "tool_calls" not in message:
        return []
    calls = message["tool_calls"]
    if message["role"] != "assistant" or not isinstance(calls, list) or not calls:
        raise InvalidRow(Reason.TOOL_CALL, f"the tool_calls of {where} are no calls by the assistant")
    return calls


def _check_call(call: Any, where: str, rules: Rules) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRow(Reason.TOOL_CALL, f"a tool call of {where} names no function")
    keys_of(call, _CALL_KEYS, _CALL_KEYS, f"a tool call of {where}")
    keys_of(function, _FUNCTION_KEYS, _FUNCTION_KEYS, f"a tool call of {where}")
    arguments = function["arguments"]
    if not isinstance(arguments, rules.arguments) or not is_object(arguments):
        wanted = "JSON text of an object" if rules.arguments is str else "an object"
        raise InvalidRow(Reason.TOOL_CALL, f"the arguments of {function['name']!r} in {where} are not {wanted}")


def is_object(arguments: Any) -> bool:
    """Whether the arguments of a tool call are an object, or JSON text of one."""
    try:
        return isinstance(json.loads(arguments) if isinstance(arguments, str) else arguments, dict)
    except (ValueError, RecursionError):
        return False


# --- their order -----------------------------------------------------------------------------------------


def _check_order(messages: list[Json], rules: Rules) -> None:
    if not rules.alternate:
        return
    before = ""
    for at, message in enumerate(messages):
        role = message["role"]
        if role == before and role != "tool":
            raise InvalidRow(Reason.ROLE_ORDER, f"message {at} is from {role!r} like the one before it")
        if role == "system" and at:
            raise InvalidRow(Reason.ROLE_ORDER, f"message {at} is from 'system', which may only be first")
        if not at and role not in ("system", "user"):
            raise InvalidRow(Reason.ROLE_ORDER, f"the first message is from {role!r}, not from the user")
        before = role


def _check_calls(messages: list[Json]) -> None:
    """Every call of a tool but the last message's is answered at once, and nothing else is."""
    open_calls: set[str] = set()
    for at, message in enumerate(messages):
        if message["role"] == "tool":
            name = message.get("tool_call_id")
            if name not in open_calls:
                raise InvalidRow(Reason.TOOL_CALL, f"message {at} answers {name!r}, which no call before it has")
            open_calls.discard(name)
            continue
        if open_calls:
            raise InvalidRow(
                Reason.TOOL_CALL, f"the tool call {min(open_calls)!r} before message {at} has no answer"
            )
        open_calls = {call["id"] for call in message.get("tool_calls", ()) if isinstance(call["id"], str)}
