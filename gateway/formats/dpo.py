"""Direct preference optimisation: one input, an answer that a person preferred, and one that they did not.

Source: OpenAI's guide on DPO, whose field names end in `_output`; Together takes the same rows.
"""

from __future__ import annotations

from typing import Any

from gateway.formats import Example, Format, InvalidRow, Json, Reason, expect, keys_of
from gateway.formats.messages import check_answer, check_messages, check_tools, conversation, said, text_of
from gateway.formats.openai import MEGABYTE, RULES

_OUTPUTS = ("preferred_output", "non_preferred_output")
_KEYS = frozenset({"input", *_OUTPUTS})
_INPUT_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})


def write(example: Example) -> Json:
    """The pair as a row.

    Raises:
        InvalidRow: the example has only one answer.
    """
    if example.worse is None:
        raise InvalidRow(Reason.NO_PAIR, "nobody has said which of two answers is better")
    row = conversation(example)
    *row["messages"], answer = row["messages"]
    return {"input": row, "preferred_output": [answer], "non_preferred_output": [said(example.worse)]}


def check(row: Json) -> None:
    """Check one row.

    Raises:
        InvalidRow: the service would refuse it.
    """
    keys_of(row, _KEYS, _KEYS, "the row")
    given = row["input"]
    expect(given, dict, "'input'")
    keys_of(given, _INPUT_KEYS, frozenset(), "'input'")
    if check_messages(given.get("messages"), RULES)[-1]["role"] == "assistant":
        raise InvalidRow(Reason.ROLE_ORDER, "'input' ends in an answer")
    if "tools" in given:
        check_tools(given["tools"])
    better, worse = (_output(row[name], name) for name in _OUTPUTS)
    if better == worse:
        raise InvalidRow(Reason.SAME_OUTPUTS, "both outputs are the same")


def _output(value: Any, name: str) -> str:
    expect(value, list, f"'{name}'")
    if len(value) != 1:
        raise InvalidRow(Reason.NO_ANSWER, f"'{name}' has {len(value)} messages, not 1")
    (message,) = check_messages(value, RULES)
    check_answer(message)
    if message.get("tool_calls"):
        raise InvalidRow(Reason.TOOL_CALL, f"'{name}' calls a tool; pairs are of texts")
    return text_of(message)


FORMAT = Format(name="dpo", write=write, check=check, least_rows=10, most_bytes=512 * MEGABYTE)
