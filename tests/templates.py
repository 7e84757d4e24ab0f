"""Prompt templates and requests written out by hand, for tests."""

from __future__ import annotations

from typing import Any

from gateway.domain import layout
from gateway.domain.template import MessagePattern, Slot, TextPattern


def chat(*messages: tuple[str, str], **others: Any) -> dict[str, Any]:
    """A chat request of (role, text) messages."""
    return {"model": "gpt-6-luna", "messages": [{"role": r, "content": c} for r, c in messages], **others}


def pattern(role: str, *literals: str, slots: tuple[Slot, ...] = ()) -> MessagePattern:
    """A message pattern of these literals, with free slots `s0`, `s1`, ... where none are given."""
    header = layout.read_message({"role": role, "content": ""})[0]
    free = tuple(Slot(f"s{i}") for i in range(len(literals) - 1))
    return MessagePattern(header, (TextPattern(literals, slots or free),))
