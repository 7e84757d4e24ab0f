"""The turns of a conversation whose app wraps each message of the user in the same text: bare, and wrapped again.

All messages of the user are wrapped, or the request does not match; so it is known of each bare turn what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

from gateway.domain import layout
from gateway.domain.pattern import TextPattern

Message = dict[str, Any]

WRAPPING = tuple(
    layout.read_message({"role": "user", "content": content})[0] for content in ("", [{"type": "text", "text": ""}])
)
"""The headers that messages of the user may have to be wrapped: a text, or one part that is a text."""
MAX_WRAPPED = 100
"""Wrapped messages beyond which a conversation is not matched."""


class Wrapper:
    """What each message of the user is wrapped in: a text with one slot, in messages with one of `WRAPPING`."""

    def __init__(self, header: str, field: TextPattern) -> None:
        (self._slot,) = field.slots
        self._before, self._after = field.literals
        self._listed = header == WRAPPING[1]

    def inside(self, message: Message) -> str | None:
        """What the user said in this message; None where it is not wrapped so."""
        text = self._text(message)
        if text is None or len(text) < len(self._before) + len(self._after):
            return None
        if not text.startswith(self._before) or not text.endswith(self._after):
            return None
        said = text[len(self._before) : len(text) - len(self._after)]
        return said if self._slot.holds(said) else None

    def taken_off(self, turns: Sequence[Message]) -> tuple[Message, ...] | None:
        """The turns with what the user said alone; None where one of the user is not wrapped, or too many are."""
        found, left = [], MAX_WRAPPED
        for turn in turns:
            if turn["role"] == "user":
                said, left = self.inside(turn), left - 1
                if said is None or left < 0:
                    return None
                turn = {"role": "user", "content": said}
            found.append(turn)
        return tuple(found)

    def put_on(self, turns: Sequence[Message]) -> list[Message]:
        """The inverse of `taken_off`."""
        return [self._wrapped(turn["content"]) if _is_bare(turn) else turn for turn in turns]

    def writes(self, turn: Message, message: Any) -> bool:
        """Whether `put_on` makes this message of this turn."""
        if not _is_bare(turn):
            return turn.get("role") != "user" and layout.same(turn, message)
        return type(message) is dict and self._text(message) == self._before + turn["content"] + self._after

    def _wrapped(self, said: str) -> Message:
        text = self._before + said + self._after
        return {"role": "user", "content": [{"type": "text", "text": text}] if self._listed else text}

    def _text(self, message: Message) -> str | None:
        """The text of a message of the user that has the header and is nothing else."""
        content = message.get("content") if len(message) == 2 and message.get("role") == "user" else None
        if self._listed:
            part = content[0] if type(content) is list and len(content) == 1 else None
            if type(part) is not dict or len(part) != 2 or part.get("type") != "text":
                return None
            content = part.get("text")
        return content if type(content) is str else None


def are_written(turns: Sequence[Message], wrapper: Wrapper | None, messages: Sequence[Any]) -> bool:
    """Whether these turns, wrapped if there is a wrapper, are these messages, value types included."""
    if len(turns) != len(messages):
        return False
    if wrapper is not None:
        return all(map(wrapper.writes, turns, messages))
    return all(map(is_, turns, messages)) or all(map(layout.same, turns, messages))


def _is_bare(turn: Message) -> bool:
    return len(turn) == 2 and turn.get("role") == "user" and type(turn.get("content")) is str
