"""A dataset: the cleaned, stripped and split rows of one task."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Split = Literal["train", "validation"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One training example, traceable to the exchange it came from.

    `messages` is the stripped request exactly as a live stripped request sends it, without the answer;
    `text` is the same input as one string; `output` is the answer to learn.
    """

    exchange_id: str
    text: str
    messages: list[dict[str, Any]]
    output: str
    split: Split


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Rows plus where their files are. `digest` is the SHA-256 of the two JSONL files' bytes."""

    id: str
    task: str
    template: str
    rows: list[Row]
    directory: str
    digest: str
    card: dict[str, Any]

    def part(self, split: Split) -> list[Row]:
        return [row for row in self.rows if row.split == split]
