"""Numbers of several processes in memory that they share, so that any of them can add up all of them.

A sheet belongs to one process: only that one writes, with plain stores to 8-byte cells, and each of its siblings
may read at any moment. The memory is anonymous and was mapped before the processes were forked, so there is no
file to fill a disk, to wipe, or to mix up with another instance's; what a process had counted when it was
killed stays, and its successor goes on from there.
"""

from __future__ import annotations

import mmap
import struct
import zlib

import msgspec

_KEYS_AT = 64
_NOTE_AT = _KEYS_AT + 2 * 1024 * 1024
_CELLS_AT = _NOTE_AT + 256 * 1024
_BYTES = _CELLS_AT + 8 * 1024 * 1024
"""Address space; of real memory only what was written to is used."""

_KEYS_USED, _CELLS_USED = 0, 1
_LENGTH = struct.Struct("<I")
_NOTE_HEAD = struct.Struct("<II")

Key = tuple[str, ...]


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    key: Key
    first: int
    width: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Entry)


class SheetFull(Exception):
    """There is no room for another row or for so long a note."""


class Sheet:
    """Rows of cells by their keys, and one note: a text that is replaced as a whole."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)  # shared with whoever is forked from here
        self._head = memoryview(self._memory)[:_KEYS_AT].cast("Q")
        self.cells: memoryview[float] = memoryview(self._memory)[_CELLS_AT:].cast("d")
        self._read_to = 0
        self._rows: dict[Key, tuple[int, int]] = {}

    def row(self, key: Key, width: int) -> int:
        """The index of the first of the row's cells, which are zero when it is new.

        Raises:
            SheetFull: the row is new and there is no room.
        """
        found = self.rows().get(key)
        if found is not None:
            return found[0]
        first = self._head[_CELLS_USED]
        entry = _encoder.encode(_Entry(key, first, width))
        start = _KEYS_AT + self._head[_KEYS_USED]
        behind = start + _LENGTH.size + len(entry)
        if behind > _NOTE_AT or first + width > len(self.cells):
            raise SheetFull(f"no room for {key}")
        self._memory[start:behind] = _LENGTH.pack(len(entry)) + entry
        self._head[_CELLS_USED] = first + width
        self._head[_KEYS_USED] = behind - _KEYS_AT  # last: from now on a reader may see it
        return first

    def rows(self) -> dict[Key, tuple[int, int]]:
        """All rows so far: key -> (index of the first cell, number of cells). Not to be changed."""
        used = self._head[_KEYS_USED]
        while self._read_to < used:
            start = _KEYS_AT + self._read_to + _LENGTH.size
            length = _LENGTH.unpack_from(self._memory, start - _LENGTH.size)[0]
            entry = _decoder.decode(self._memory[start : start + length])
            self._rows[entry.key] = (entry.first, entry.width)
            self._read_to = start + length - _KEYS_AT
        return self._rows

    def values(self, first: int, width: int) -> list[float]:
        """A copy of so many cells."""
        return list(self.cells[first : first + width])

    def write_note(self, note: bytes) -> None:
        """Replace the note; an empty one says that the process is gone.

        Raises:
            SheetFull: it is too long; the one before stays.
        """
        if _NOTE_AT + _NOTE_HEAD.size + len(note) > _CELLS_AT:
            raise SheetFull(f"a note of {len(note)} bytes")
        start = _NOTE_AT + _NOTE_HEAD.size
        self._memory[start : start + len(note)] = note
        _NOTE_HEAD.pack_into(self._memory, _NOTE_AT, len(note), zlib.crc32(note))

    def note(self) -> bytes | None:
        """The note; None while it is being replaced."""
        length, checksum = _NOTE_HEAD.unpack_from(self._memory, _NOTE_AT)
        start = _NOTE_AT + _NOTE_HEAD.size
        note = self._memory[start : min(start + length, _CELLS_AT)]
        return note if zlib.crc32(note) == checksum else None
