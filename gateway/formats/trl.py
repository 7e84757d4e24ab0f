"""TRL's conversational format: `messages`, and `tools` as one JSON text.

Sources: TRL's page on dataset formats: chat templates want a tool call's arguments as an object. Its SFT trainer
(1.16) reads `tools` from a text, too, and a text is the only form that `datasets` before 4.7 does not fill up with
nulls: it gives all rows one schema.
"""

from __future__ import annotations

import json

from gateway.formats import Example, Format, InvalidRow, Json, Reason, expect, keys_of
from gateway.formats.messages import Rules, check_conversation, conversation, is_object

_RULES = Rules(arguments=dict, roles=frozenset({"system", "developer", "user", "assistant", "tool"}))
_KEYS = frozenset({"messages", "tools"})


def write(example: Example) -> Json:
    """The example as a row."""
    row = conversation(example)
    row["messages"] = [_with_objects(message) for message in row["messages"]]
    if "tools" in row:
        row["tools"] = json.dumps(row["tools"], ensure_ascii=False)
    return row


def _with_objects(message: Json) -> Json:
    """The message with the arguments of its tool calls as objects; what is none stays, for `check` to find."""
    if not isinstance(message.get("tool_calls"), list):
        return message
    return message | {"tool_calls": [_with_object(call) for call in message["tool_calls"]]}


def _with_object(call: Json) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str) or not is_object(arguments):
        return call
    return call | {"function": function | {"arguments": json.loads(arguments)}}


def check(row: Json) -> None:
    """Check one row.

    Raises:
        InvalidRow: a chat template or the trainer would stumble over it.
    """
    keys_of(row, _KEYS, frozenset(), "the row")
    if "tools" not in row:
        check_conversation(row, _RULES)
        return
    expect(row["tools"], str, "'tools'")
    try:
        tools = json.loads(row["tools"])
    except (ValueError, RecursionError) as error:
        raise InvalidRow(Reason.TOOLS, f"'tools' is no JSON text ({error})") from None
    check_conversation(row | {"tools": tools}, _RULES)


FORMAT = Format(name="trl", write=write, check=check)
