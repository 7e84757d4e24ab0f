"""A dataset's files: written row by row, checked by their hashes when they are read, and read one row at a time."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, overload

import msgspec

from gateway.domain.dataset import Row, Split
from gateway.files import sync_folder

KEPT_BYTES = 32 * 1024 * 1024
"""A larger file stays on the disk."""
PARTS: tuple[Split, ...] = ("train", "validation", "confirmation")
_LINE_ENDS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}
"""Many programs that read lines end one at these, too; JSON leaves them as they are."""
_row = msgspec.json.Decoder(Row)


class _Parts(msgspec.Struct, frozen=True):
    messages: msgspec.Raw
    output: msgspec.Raw
    tool_calls: msgspec.Raw = msgspec.Raw()


_parts = msgspec.json.Decoder(_Parts)


def chat_line(row: bytes, tools: bytes = b"") -> bytes:
    """A row's line in OpenAI's chat format for supervised fine-tuning, from its line in `rows.jsonl`; `tools` are
    the declarations that the requests have, as JSON."""
    parts = _parts.decode(row)
    inner = bytes(parts.messages)[1:-1]
    said = b'"content":%s' % parts.output if not bytes(parts.tool_calls) else b'"tool_calls":%s' % parts.tool_calls
    line = b'{"messages":[%s%s{"role":"assistant",%s}]' % (inner, b"," if inner else b"", said)
    line += b',"tools":%s}\n' % tools if tools else b"}\n"
    if not line.isascii():
        for end, escaped in _LINE_ENDS.items():
            line = line.replace(end, escaped)
    return line


class RowFile(Sequence[Row]):
    """The rows of a file, each decoded when it is asked for; a large file is also read only then, so that a million
    rows take 8 MB.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._small = self._file.read() if os.fstat(self._file.fileno()).st_size <= KEPT_BYTES else None
        lines = self._file if self._small is None else self._small.splitlines(keepends=True)
        self._starts = array("Q", accumulate(map(len, lines), initial=0))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._at(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._at(place)

    def _at(self, place: int) -> Row:
        start, end = self._starts[place], self._starts[place + 1]
        if self._small is not None:
            return _row.decode(self._small[start:end])
        return _row.decode(os.pread(self._file.fileno(), end - start, start))

    def __iter__(self) -> Iterator[Row]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Written:
    """Files that are being written below a folder, each with its hash so far."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.jsonl").open("wb") for name in names}
        self._hashes = {name: hashlib.sha256() for name in self._files}
        self._folder = folder

    def add(self, name: str, line: bytes) -> None:
        self._files[name].write(line)
        self._hashes[name].update(line)

    def close(self) -> dict[str, str]:
        """The files are on the disk; gives the SHA-256 of each, in hexadecimal."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        sync_folder(self._folder)
        return {name: found.hexdigest() for name, found in self._hashes.items()}


def digest(hashes: Mapping[str, str]) -> str:
    """The hash of a dataset's parts, from the hashes of their files."""
    return hashlib.sha256("".join(hashes[name] for name in PARTS).encode()).hexdigest()


def hash_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
