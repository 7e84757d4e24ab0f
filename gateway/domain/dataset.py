"""A dataset: the cleaned, stripped and split rows of one task."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Split = Literal["train", "validation"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One training example, traceable to the exchange it came from.

    `messages` is the stripped request exactly as a live stripped request sends it, without the answer;
    `text` is the same input as one string; `output` is the answer to learn. `seen` is how many of the
    incumbent's exchanges had this input.
    """

    exchange_id: str
    text: str
    messages: list[dict[str, Any]]
    output: str
    split: Split
    seen: int = 1


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Rows plus where their files are. `digest` is the SHA-256 of the two JSONL files' bytes.

    `beyond` are held-out inputs to which the incumbent gave no text that can be learnt (tool calls, a refusal):
    nobody trains on them, and a candidate that answers one of them is wrong.
    """

    id: str
    task: str
    template: str
    rows: list[Row]
    directory: str
    digest: str
    card: dict[str, Any]
    beyond: list[Row] = []

    def part(self, split: Split) -> list[Row]:
        return [row for row in self.rows if row.split == split]
