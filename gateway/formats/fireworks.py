"""Fireworks' supervised fine-tuning: OpenAI's shape, texts only, a system message first or not at all.

Source: Fireworks' guide on fine-tuning models: 3 rows at least and 3 million at most.
"""

from __future__ import annotations

from gateway.formats import Format, Json, keys_of
from gateway.formats.messages import Rules, check_conversation, conversation

_RULES = Rules(alternate=True, parts=False)
_KEYS = frozenset({"messages", "tools"})


def check(row: Json) -> None:
    """Check one row.

    Raises:
        InvalidRow: the service would refuse it.
    """
    keys_of(row, _KEYS, frozenset(), "the row")
    check_conversation(row, _RULES)


FORMAT = Format(name="fireworks", write=conversation, check=check, least_rows=3)
