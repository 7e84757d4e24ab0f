"""What is read of a part of the exchanges, as a file: numbers in columns, which decide what becomes a row, and the
lines that rows are written from."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.domain.dataset import Row
from gateway.errors import DatasetError
from gateway.pipeline.duplicates import Columns, Places
from gateway.pipeline.examples import Example
from gateway.pipeline.signatures import NUMBERS, signature
from gateway.pipeline.tool_calls import spelled


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a part's examples: sums, and columns (little-endian bytes) with one entry for each, in the
    order of their ids.

    `lines` are the lengths of their lines behind the head in bytes, `lengths` and `sizes` those of their inputs and
    answers in characters; `objects` tells whether an answer is a JSON object, `calls` whether it calls a tool.
    `signed` are the places of those with a signature. `asked` exchanges had so many tokens and characters in their
    whole prompts.
    """

    count: int
    dropped: dict[str, int]
    scrubbed: dict[str, int]
    rows_scrubbed: int
    asked: int
    asked_tokens: int
    asked_characters: int
    inputs: bytes
    sessions: bytes
    words: bytes
    answers: bytes
    lengths: bytes
    sizes: bytes
    objects: bytes
    ranks: bytes
    held_out: bytes
    beyond: bytes
    calls: bytes
    signed: bytes
    signatures: bytes
    lines: bytes


def part_file(found: Sequence[Example], dropped: Counter[str]) -> bytes:
    """A part's file: the length of the head (8 bytes, little-endian), the head, and the lines."""
    lines = [_line(one) for one in found]
    signatures = [signature(one.words) for one in found]
    asked = [one for one in found if one.tokens]
    scrubbed = sum((Counter(one.found) for one in found), Counter[str]())
    head = msgspec.msgpack.encode(Head(
        count=len(found), dropped=dict(dropped), scrubbed=dict(scrubbed),
        rows_scrubbed=sum(bool(one.found) for one in found),
        asked=len(asked), asked_tokens=sum(one.tokens or 0 for one in asked),
        asked_characters=sum(one.characters for one in asked),
        inputs=b"".join(_hash(one.text, 16) for one in found),
        sessions=b"".join(_hash(one.session, 8) for one in found),
        words=b"".join(_hash(one.words, 8) for one in found),
        answers=b"".join(_hash(_said(one), 8) for one in found),
        lengths=_numbers([len(one.text) for one in found]), sizes=_numbers([len(one.output) for one in found]),
        objects=bytes(_is_object(one.output) for one in found),
        ranks=bytes(2 * one.rank[0] + one.rank[1] for one in found),
        held_out=bytes(one.side != "train" for one in found), beyond=bytes(bool(one.beyond) for one in found),
        calls=bytes(bool(one.tool_calls) for one in found),
        signed=_numbers([n for n, one in enumerate(signatures) if one is not None]),
        signatures=b"".join(one.tobytes() for one in signatures if one is not None),
        lines=_numbers([len(line) for line in lines]),
    ))  # fmt: skip
    return b"".join([len(head).to_bytes(8, "little"), head, *lines])


def _numbers(values: list[int]) -> bytes:
    return np.array(values, "<u4").tobytes()


def _said(one: Example) -> str:
    """What two examples have in common that say the same."""
    functions = [call["function"] for call in one.tool_calls]
    return spelled((each["name"], each["arguments"]) for each in functions) if functions else one.output


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def _is_object(output: str) -> bool:
    if not output.lstrip().startswith("{"):
        return False
    try:
        return isinstance(msgspec.json.decode(output), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


_OPEN = b',"split":"train"}'


def _line(one: Example) -> bytes:
    """A row's line but for what is not known yet: `split` and `seen`, its last keys."""
    row = Row(
        exchange_id=one.id, text=one.text, messages=one.messages, output=one.output, tool_calls=one.tool_calls,
        split="train",
    )  # fmt: skip
    return msgspec.json.encode(row).removesuffix(_OPEN)


def whole_line(line: bytes, split: str, seen: int) -> bytes:
    """The row's line in JSON, with its line end."""
    return line + f',"split":"{split}","seen":{seen}}}\n'.encode()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """All parts read: the columns of their examples one behind the other, and sums."""

    files: list[Path]
    heads: list[Head]
    columns: Columns
    sessions: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    objects: NDArray[np.bool_]
    dropped: Counter[str]
    scrubbed: Counter[str]

    def lines(self, places: Places) -> Iterator[bytes]:
        """The lines of these examples (ascending places), part by part."""
        first = 0
        for file, head in zip(self.files, self.heads, strict=True):
            low, high = np.searchsorted(places, [first, first + head.count])
            if low < high:
                yield from _lines(file, head, places[low:high] - first)
            first += head.count


def _lines(file: Path, head: Head, places: Places) -> Iterator[bytes]:
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    ends = start + np.cumsum(np.frombuffer(head.lines, "<u4").astype(np.int64))
    starts = np.append(start, ends[:-1])
    for begin, end in zip(starts[places].tolist(), ends[places].tolist(), strict=True):
        yield data[begin:end]


def read_heads(files: Sequence[Path]) -> Found:
    """The columns of all parts.

    Raises:
        DatasetError: a file is damaged; it is deleted, so that the next build reads its part again.
    """
    heads = [_head(file) for file in files]
    firsts = itertools.accumulate((head.count for head in heads), initial=0)
    places = [np.frombuffer(head.signed, "<u4") + np.int64(n) for head, n in zip(heads, firsts, strict=False)]
    columns = Columns(
        inputs=_column(heads, "inputs", "<u8").reshape(-1, 2), words=_column(heads, "words", "<u8"),
        held_out=_column(heads, "held_out", "?"),
        beyond=_column(heads, "beyond", "?"), calls=_column(heads, "calls", "?"),
        ranks=_column(heads, "ranks", "u1"),
        answers=_column(heads, "answers", "<u8"), signed=np.concatenate([np.zeros(0, np.int64), *places]),
        signatures=_column(heads, "signatures", "<u2").reshape(-1, NUMBERS),
    )  # fmt: skip
    return Found(
        files=list(files), heads=[_without_columns(head) for head in heads], columns=columns,
        sessions=_column(heads, "sessions", "<u8"), lengths=_column(heads, "lengths", "<u4"),
        sizes=_column(heads, "sizes", "<u4"), objects=_column(heads, "objects", "?"),
        dropped=sum((Counter(head.dropped) for head in heads), Counter[str]()),
        scrubbed=sum((Counter(head.scrubbed) for head in heads), Counter[str]()),
    )  # fmt: skip


def _head(file: Path) -> Head:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        try:
            return msgspec.msgpack.decode(opened.read(size), type=Head)
        except msgspec.MsgspecError as error:
            file.unlink()
            raise DatasetError(f"{file} is damaged; try again, and it is read anew") from error


def _column(heads: Sequence[Head], name: str, kind: str) -> NDArray[Any]:
    return np.frombuffer(b"".join(getattr(head, name) for head in heads), kind)


def _without_columns(head: Head) -> Head:
    """What is joined already is not kept twice."""
    return msgspec.structs.replace(head, inputs=b"", sessions=b"", words=b"", answers=b"", signatures=b"")
