"""Together's conversational format: `messages` whose roles take turns, and `tools`; nothing else in a row.

Source: Together's guide on data preparation, and the checks of its Python client (1.5 and 3.1).
"""

from __future__ import annotations

from gateway.formats import Format, Json, keys_of
from gateway.formats.messages import Rules, check_conversation, conversation

_RULES = Rules(alternate=True)
_KEYS = frozenset({"messages", "tools"})
_GIGABYTE = 2**30


def check(row: Json) -> None:
    """Check one row.

    Raises:
        InvalidRow: the service would refuse it.
    """
    keys_of(row, _KEYS, frozenset(), "the row")
    check_conversation(row, _RULES)


FORMAT = Format(name="together", write=conversation, check=check, most_bytes=50 * _GIGABYTE)
