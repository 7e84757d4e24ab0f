"""OpenAI's supervised fine-tuning: `messages` that end in the answer, `tools`, `parallel_tool_calls`.

Source: `FineTuneChatRequestInput` of OpenAI's specification (March 2025) and its guide on preparing data.
"""

from __future__ import annotations

from gateway.formats import Format, Json, expect, keys_of
from gateway.formats.messages import OPENAI_TOKENS, Rules, check_conversation, conversation

RULES = Rules(roles=frozenset({"system", "developer", "user", "assistant", "tool"}), tokens=OPENAI_TOKENS)
MEGABYTE = 1024 * 1024
_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})


def check(row: Json) -> None:
    """Check one row.

    Raises:
        InvalidRow: the service would refuse it.
    """
    keys_of(row, _KEYS, frozenset(), "the row")
    check_conversation(row, RULES)
    if "parallel_tool_calls" in row:
        expect(row["parallel_tool_calls"], bool, "'parallel_tool_calls'")


FORMAT = Format(name="openai", write=conversation, check=check, least_rows=10, most_bytes=512 * MEGABYTE)
