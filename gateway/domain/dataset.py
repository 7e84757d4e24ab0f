"""A dataset: the cleaned, stripped and split rows of one task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Split = Literal["train", "validation", "confirmation"]


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One training example, traceable to the exchange it came from.

    `messages` is the stripped request exactly as a live stripped request sends it, without the answer;
    `text` is the same input as one string; `output` is the answer to learn, or "" where that is `tool_calls`
    (as OpenAI writes them; their ids are `call_1`, `call_2`, ...). `seen` is how many of the incumbent's exchanges
    had this input.
    """

    exchange_id: str
    text: str
    messages: list[dict[str, Any]]
    output: str
    tool_calls: list[dict[str, Any]] = []
    split: Split
    seen: int = 1


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Rows plus where their files are. `digest` is the SHA-256 of the bytes of the parts' JSONL files.

    Rows may be in a file and read one at a time. `rows` are those whose answer is a text, `calls` those whose
    answer is a call of a tool, for models that can call one; the card counts both. `beyond` are held-out inputs to
    which the incumbent gave no text: to a refusal any answer is wrong, to calls of tools, those of `calls` among
    them, all but the same calls. `confirmation` rows are the newest of the held-out ones: whoever was chosen by
    `validation` is confirmed on them, once.
    """

    id: str
    task: str
    template: str
    rows: Sequence[Row]
    directory: str
    digest: str
    card: dict[str, Any]
    beyond: Sequence[Row] = ()
    calls: Sequence[Row] = ()

    def part(self, split: Split) -> list[Row]:
        """The rows of a part whose answer is a text."""
        return [row for row in self.rows if row.split == split]

    def count(self, split: Split) -> int:
        """How many rows a part has, texts and calls; the card knows, so that no file is read."""
        if split in self.card:
            return int(self.card[split])
        return sum(row.split == split for row in (*self.rows, *self.calls))
