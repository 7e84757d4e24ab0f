"""Recorded bodies, many to a block: one zstd frame (RFC 8878) holds what came within a moment.

Prompts repeat, and in a block each is stored once: of 2 KB that stand in it already, some 20 bytes are left.
Compressing a block costs less than compressing its bodies one by one, too. Bodies are numbered in the order of
recording, and no number is given twice; a block holds those from its `first` on. What is deleted leaves an empty
place, so that the others keep their numbers.
"""

from __future__ import annotations

import math
import sqlite3
import struct
from array import array
from bisect import bisect, bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, TypeVar

import zstandard

BLOCK_BYTES = 512 * 1024
"""So many bytes fill a block. Twice as many gain 1 % of the disk, and double what it costs to read one row."""
LEVEL = 3
"""Level 1 leaves 2 to 7 % more and takes as long."""
_CACHED = 4
_LOOKED_AT = 256
"""So many of the newest blocks are looked at for small ones, each of which is one look at the journal."""
_NOTHING = (b"", b"")
_COUNT = struct.Struct("<I")

T = TypeVar("T")
Content = tuple[bytes, bytes]
"""A body that is to be kept, in two parts."""
Run = Callable[[str, Sequence[Any]], sqlite3.Cursor]


def joined(contents: Sequence[Content], lengths: Sequence[int]) -> bytes:
    """What a block's frame holds: how many contents, the length of each, and then all of them."""
    index = struct.pack(f"<{len(lengths) + 1}I", len(lengths), *lengths)
    return b"".join((index, *chain.from_iterable(contents)))


def in_blocks(values: Sequence[T], sizes: Iterable[int]) -> Iterator[Sequence[T]]:
    """The values in parts of which each fills a block; `sizes` are theirs in bytes."""
    behind = list(accumulate(sizes))
    start = full = 0
    while start < len(values):
        end = min(bisect_left(behind, full + BLOCK_BYTES) + 1, len(values))
        yield values[start:end]
        start, full = end, behind[end - 1]


class Block:
    """The contents of a block's frame, in their order. An empty one was deleted.

    Raises:
        ValueError: the frame is damaged.
    """

    def __init__(self, first: int, frame: bytes) -> None:
        try:
            self._data = zstandard.ZstdDecompressor().decompress(frame)
            (count,) = _COUNT.unpack_from(self._data)
            lengths = struct.unpack_from(f"<{count}I", self._data, _COUNT.size)
        except (zstandard.ZstdError, struct.error) as error:
            raise ValueError(f"damaged: {error}") from error
        self.first, self.behind = first, first + count
        self._offsets = array("Q", accumulate(lengths, initial=_COUNT.size * (count + 1)))

    def content(self, number: int) -> bytes:
        """What has this number."""
        place = number - self.first
        return self._data[self._offsets[place] : self._offsets[place + 1]]

    def contents(self) -> list[Content]:
        """All of them."""
        return [(self._data[start:end], b"") for start, end in pairwise(self._offsets)]


class Blocks:
    """The blocks of one store. Belongs to the store's connection, and to its thread. Whatever changes them is to be
    called in a transaction."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._compress = zstandard.ZstdCompressor(LEVEL).compress
        self._read: list[Block] = []

    def add(self, contents: Sequence[Content]) -> int:
        """Keep these together in a block; gives the number of the first, the others follow it."""
        row = self._run("SELECT first + count FROM blocks ORDER BY first DESC LIMIT 1", ()).fetchone()
        first = int(row[0]) if row else 1
        self._put(first, contents)
        return first

    def add_all(self, contents: Sequence[Content]) -> list[int]:
        """The same for any number of them, in as many blocks as they fill; gives the number of each."""
        numbers: list[int] = []
        for part in in_blocks(contents, _lengths(contents)):
            first = self.add(part)
            numbers.extend(range(first, first + len(part)))
        return numbers

    def _put(self, first: int, contents: Sequence[Content]) -> None:
        lengths = _lengths(contents)
        self._run(
            "INSERT OR REPLACE INTO blocks (first, count, size, body) VALUES (?, ?, ?, ?)",
            (first, len(contents), sum(lengths), self._compress(joined(contents, lengths))),
        )

    def content(self, number: int) -> bytes:
        """The body with this number.

        Raises:
            ValueError: its block is damaged, or it is in none.
        """
        for block in self._read:
            if block.first <= number < block.behind:
                return block.content(number)
        block = self._block(number)
        self._read = [block, *self._read[: _CACHED - 1]]
        return block.content(number)

    def _block(self, number: int) -> Block:
        row = self._run(
            "SELECT first, body FROM blocks WHERE first <= ? ORDER BY first DESC LIMIT 1", (number,)
        ).fetchone()
        block = Block(*row) if row else None
        if block is None or number >= block.behind:
            raise ValueError(f"body {number} is in no block")
        return block

    def homes(self, numbers: Collection[int]) -> dict[int, int]:
        """The first number of the block that each of these bodies is in; without those that are in none."""
        lowest, highest = min(numbers, default=1), max(numbers, default=0)
        query = (
            "SELECT first, first + count FROM blocks WHERE first <= ? AND first >="
            " (SELECT COALESCE(MAX(first), 0) FROM blocks WHERE first <= ?) ORDER BY first"
        )
        rows = self._run(query, (highest, lowest)).fetchall()
        found = [(number, rows[bisect(rows, (number, math.inf)) - 1]) for number in numbers if rows]
        return {number: first for number, (first, behind) in found if first <= number < behind}

    def forget(self, numbers: Collection[int]) -> None:
        """Write the blocks with these bodies anew without them. The last block stays, even with nothing in it: the
        next number is behind it."""
        self._read = []
        gone: dict[int, set[int]] = {}
        for number, home in self.homes(numbers).items():
            gone.setdefault(home, set()).add(number)
        for home, theirs in gone.items():
            self._forget(self._block(home), theirs)

    def _forget(self, block: Block, gone: Collection[int]) -> None:
        kept = [_NOTHING if block.first + n in gone else one for n, one in enumerate(block.contents())]
        if any(head for head, _ in kept) or self._is_last(block.first):
            self._put(block.first, kept)
        else:
            self._run("DELETE FROM blocks WHERE first = ?", (block.first,))

    def _is_last(self, first: int) -> bool:
        return bool(self._run("SELECT MAX(first) = ? FROM blocks", (first,)).fetchone()[0])

    def merge(self) -> None:
        """Make one block of the newest small ones, once they fill it: what comes slowly is compressed twice."""
        small, size = self._small()
        if len(small) < 2 or (size < BLOCK_BYTES and len(small) < _LOOKED_AT):
            return
        contents: list[Content] = []
        for first in small:
            contents += self._block(first).contents()
            self._run("DELETE FROM blocks WHERE first = ?", (first,))
        self._put(small[0], contents)

    def _small(self) -> tuple[list[int], int]:
        """The first numbers of the newest blocks that are at most half full, without a gap, and their size."""
        newest = self._run("SELECT first, count, size FROM blocks ORDER BY first DESC LIMIT ?", (_LOOKED_AT,))
        small: list[int] = []
        total, behind = 0, None
        for first, count, size in newest.fetchall():
            if size > BLOCK_BYTES // 2 or (behind is not None and first + count != behind):
                break
            small.append(first)
            total, behind = total + size, first
        return small[::-1], total


def _lengths(contents: Sequence[Content]) -> list[int]:
    return [len(head) + len(body) for head, body in contents]
