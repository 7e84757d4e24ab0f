"""Which examples a training service takes: what stands in the turns of a conversation is checked by its rules."""

from __future__ import annotations

import msgspec

from gateway.formats import InvalidRow
from gateway.formats.messages import check_conversation, said
from gateway.formats.openai import RULES
from gateway.pipeline.examples import Example


def trainable(found: Example | str) -> Example | str:
    """The example without keys that say nothing, or the reason why it is no valid row. A reason stays itself.

    Turns come as the app sent them: with fields of the client that it got its answers from, or of no API at all.
    One such row, and a service refuses the file.
    """
    if isinstance(found, str) or _is_plain(found):
        return found
    messages = [said(message) for message in found.messages]
    if not found.beyond:
        try:
            check_conversation({"messages": [*messages, {"role": "assistant", "content": found.output}]}, RULES)
        except InvalidRow as invalid:
            return f"no valid chat: {invalid.reason}"
    return msgspec.structs.replace(found, messages=messages)


def _is_plain(found: Example) -> bool:
    """Whether it is one text to one answer, of which nothing can be wrong."""
    return len(found.messages) == 1 and isinstance(found.messages[0].get("content"), str)
