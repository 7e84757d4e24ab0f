"""Reads the journal's segments for the recorder, and blanks in them what was deleted.

A blank is a whole record of nothing: it stands where moved records stood, so that offsets stay as they are.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.domain.exchange import Usage
from gateway.stores.journal import Poison

READ_BYTES = 8 * 1024 * 1024
"""So much is moved in one transaction, about 2,000 exchanges."""
_HEAD = struct.Struct("<II")
_BLANK = b"\x93\xc0\xc0\xc6"  # MessagePack: an array of nil, nil and bytes whose length follows in four bytes
_LEAST_BLANK = len(_BLANK) + 4


class BeginRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `Begin` as it stands in a segment: its tags, headers and body are MessagePack still, since there are hardly
    any tags, and the others go into the store as they are. They lie in the reader's buffer, and are gone with its
    next `read`."""

    id: str
    started_at: float
    method: str
    endpoint: str
    provider: str
    route: str | None
    task: str | None
    task_hint: str | None
    model_requested: str | None
    key_id: str | None
    tags: msgspec.Raw
    request_headers: msgspec.Raw
    request: msgspec.Raw
    request_truncated: bool = False
    copy_of: str | None = None


class EndRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An `End` as it stands in a segment, as `BeginRecord`."""

    id: str
    target: str | None
    stripped: bool
    status: int
    streamed: bool
    complete: bool
    error_type: str | None
    latency_ms: float
    ttft_ms: float | None
    model_served: str | None
    finish_reason: str | None
    usage: Usage
    cost_usd: float | None
    attempts: msgspec.Raw
    response_headers: msgspec.Raw
    response: msgspec.Raw
    response_truncated: bool = False


NO_BODY = b"\xc4\x00"
"""An empty body, in MessagePack."""
HalfRecord = BeginRecord | EndRecord


_decode = msgspec.msgpack.Decoder(tuple[BeginRecord | None, EndRecord | None]).decode
_encode = msgspec.msgpack.Encoder().encode


class SegmentReader:
    """Reads into a buffer of its own: fresh memory for each batch costs a page fault for each exchange."""

    def __init__(self, size: int = READ_BYTES) -> None:
        self._buffer = bytearray(size)

    def read(self, segment: Path, offset: int) -> tuple[list[HalfRecord | Poison], int]:
        """The whole records from `offset` on, as many as the buffer holds but at least one, and the offset behind
        the last.

        Raises:
            OSError: the segment is gone or cannot be read.
        """
        with segment.open("rb", buffering=0) as file:
            size = self._fill(file.fileno(), offset)
        records, used = _whole(memoryview(self._buffer)[:size])
        return records, offset + used

    def _fill(self, file: int, offset: int) -> int:
        size = os.preadv(file, [self._buffer], offset)
        if size == len(self._buffer):
            first = _HEAD.size + _HEAD.unpack_from(self._buffer)[0]
            if first > size and first <= os.fstat(file).st_size - offset:  # one record larger than the buffer
                self._buffer = bytearray(first)
                size = os.preadv(file, [self._buffer], offset)
        return size


def _whole(data: memoryview) -> tuple[list[HalfRecord | Poison], int]:
    """The whole records but for blanks, and the position behind the last of them."""
    records: list[HalfRecord | Poison] = []
    unpack, checksum, head, size = _HEAD.unpack_from, zlib.crc32, _HEAD.size, len(data)
    start = head  # of a record's payload
    while start <= size:
        length, crc = unpack(data, start - head)
        end = start + length
        if length == 0 or end > size:  # zeros are no record either
            break
        payload = data[start:end]
        if checksum(payload) != crc:
            break
        try:
            begin, last = _decode(payload)
            records.append(begin or last or _poison(payload))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if payload[: len(_BLANK)] != _BLANK:
                records.append(_poison(payload))
        start = end + head
    return records, start - head


def _poison(payload: memoryview) -> Poison:
    return Poison(_framed(bytes(payload)))


def _framed(payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def framed(record: HalfRecord) -> bytes:
    """A record as it stood in its segment."""
    return _framed(_encode((record, None) if isinstance(record, BeginRecord) else (None, record)))


def exchange_id(framed: bytes) -> str | None:
    """The id in a record, even in one that is torn or makes no other sense; None where it has not come to that."""
    payload = memoryview(framed)[_HEAD.size :]
    unpack = msgspec.msgpack.Decoder(tuple[_Id | None, _Id | None]).decode
    try:
        begin, end = unpack(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _torn_id(bytes(payload[:512]))
    found = begin or end
    return found.id if found else None


class _Id(msgspec.Struct, frozen=True, array_like=True):
    id: str


def _torn_id(payload: bytes) -> str | None:
    """By hand: an array of two, nil where there is no begin, the array of the half, and its first text."""
    rest = payload[1:].removeprefix(b"\xc0")
    rest = rest[3:] if rest[:1] == b"\xdc" else rest[1:]
    if rest[:1] == b"\xd9":
        size, rest = int.from_bytes(rest[1:2], "big"), rest[2:]
    elif rest[:1] and 0xA0 <= rest[0] <= 0xBF:
        size, rest = rest[0] - 0xA0, rest[1:]
    else:
        return None
    return rest[:size].decode("utf-8", "replace") if 0 < size <= len(rest) else None


def framed_records(data: bytes) -> Iterator[bytes]:
    """The whole records in these bytes as they stand there, and last whatever is behind them."""
    position = 0
    _, behind = _whole(memoryview(data))
    while position < behind:
        end = position + _HEAD.size + _HEAD.unpack_from(data, position)[0]
        yield data[position:end]
        position = end
    if position < len(data):
        yield data[position:]


def set_aside(folder: Path) -> dict[str, int]:
    """How many files beside the segments hold what could not be stored, by kind: `poison` (records that no store
    takes) and `torn` (the end of a segment that is no whole record)."""
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 -- names are all that is wanted
    return {kind: sum(name.endswith(f".{kind}") for name in names) for kind in ("poison", "torn")}


def blank(segment: Path, offset: int) -> bool:
    """Overwrite the moved records before `offset` with one blank, in place, since a writer may be appending to the
    segment; whether there was anything to overwrite.

    Raises:
        OSError: the segment cannot be written.
    """
    if offset < _HEAD.size + _LEAST_BLANK:
        return False
    size = offset - _HEAD.size - _LEAST_BLANK
    payload = _BLANK + size.to_bytes(4, "big") + bytes(size)
    framed = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
    with segment.open("r+b", buffering=0) as file:
        if os.pread(file.fileno(), _HEAD.size, 0) == framed[: _HEAD.size]:
            return False
        os.pwrite(file.fileno(), framed, 0)
        os.fsync(file.fileno())
    return True
