"""The journal: append-only segment files that hold every record before anything else does.

A record is appended with one `write`, so it is in the operating system's page cache, and survives
`kill -9`, before the call returns; a power failure can lose what was written since the last fsync. After an fsync
that failed the segment is not written on: Linux may hold its pages to be clean from then on, so that the next fsync
says nothing of them ("fsyncgate", https://wiki.postgresql.org/wiki/Fsync_Errors).
The recorder moves records from here into the store, and a segment goes when all of it is there.

Record: 4-byte little-endian payload length, 4-byte CRC-32 of the payload, payload. The payload is a
MessagePack array of two: a `Begin` or nil, an `End` or nil. A reader stops at the first record that is not
whole; only the last record of a segment can be torn, since a segment has one writer.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import final

import msgspec

from gateway.domain.exchange import Begin, End
from gateway.errors import StoreError

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
_COPIED_BYTES = 1024 * 1024
SEGMENT_BYTES = 32 * 1024 * 1024
LARGE_ENDING = ".large.journal"

Record = Begin | End


@final
class Poison(msgspec.Struct, frozen=True):
    """A whole record that makes no sense to this release. `framed` is the record as it stands in the file."""

    framed: bytes


class Unencodable(StoreError):
    """A value in the record cannot be written down."""


_encoder = msgspec.msgpack.Encoder()


def encode(record: Record) -> bytes:
    """A record as it stands in a segment.

    Raises:
        Unencodable: a lone surrogate, a number beyond 64 bits.
    """
    try:
        if type(record) is Begin:
            payload = b"\x92" + _encoder.encode(record) + b"\xc0"  # an array of two: this and nil
        else:
            payload = b"\x92\xc0" + _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        raise Unencodable(str(error)) from error
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def encode_parts(record: Record) -> list[bytes]:
    """The same as `encode` in parts, of which the one with the body is the body itself, not a copy.

    Raises:
        Unencodable: as `encode`.
    """
    if isinstance(record, Begin):
        body, bare = record.request, encode(msgspec.structs.replace(record, request=b""))
    else:
        body, bare = record.response, encode(msgspec.structs.replace(record, response=b""))
    behind = 1  # a flag follows the body; in a begin what it is a copy of, and the nil of the end, too
    if isinstance(record, Begin):
        behind += len(_encoder.encode(record.copy_of)) + 1
    before, after = bare[_HEAD.size : -behind - 2], bare[-behind:]
    before += b"\xc6" + len(body).to_bytes(4, "big")  # MessagePack: bytes with a length of four bytes
    crc = zlib.crc32(after, zlib.crc32(body, zlib.crc32(before)))
    return [_HEAD.pack(len(before) + len(body) + len(after), crc), before, body, after]


class JournalWriter:
    """Appends to one segment after another; used by one thread.

    `large`: for the large bodies of another writer's exchanges. Their records fill in what the other's left
    out, in whichever order the two come to be read.
    """

    def __init__(
        self, folder: Path, *, sync_ms: int = 1000, segment_bytes: int = SEGMENT_BYTES, large: bool = False
    ) -> None:
        self._folder = folder
        self._ending = LARGE_ENDING if large else ".journal"
        self._sync_ms = sync_ms
        self._segment_bytes = segment_bytes
        self._last_name = 0
        self._file = -1
        self._size = 0
        self._unsynced = False
        self._unnamed = False  # the folder, where the segment's name stands, was not forced to the disk yet
        self._distrusted = False  # forcing failed, and has not been tried again since
        self._full: list[int] = []  # segments that wait to be forced to the disk and closed

    def append(self, record: Record) -> None:
        """Returns when the record is in the page cache (with `sync_ms` 0: on the disk).

        Raises:
            StoreError: it could not be written whole; nothing of it is left behind.
        """
        self.append_encoded(encode(record))

    def append_encoded(self, data: bytes) -> None:
        """The same for what `encode` made.

        Raises:
            StoreError: as `append`.
        """
        try:
            if self._file < 0 or self._size >= self._segment_bytes:
                self._open_segment()
            self._appended(os.write(self._file, data), len(data))
        except OSError as error:
            self._take_back()
            raise StoreError(f"journal {self._folder}: {error.strerror}") from error

    def append_parts(self, parts: list[bytes]) -> None:
        """The same for what `encode_parts` made.

        Raises:
            StoreError: as `append`.
        """
        try:
            if self._file < 0 or self._size >= self._segment_bytes:
                self._open_segment()
            self._appended(os.writev(self._file, parts), sum(map(len, parts)))
        except OSError as error:
            self._take_back()
            raise StoreError(f"journal {self._folder}: {error.strerror}") from error

    def _appended(self, written: int, size: int) -> None:
        if written < size:
            raise OSError(errno.ENOSPC, f"only {written} of {size} bytes could be written")
        self._size += written
        self._unsynced = True
        if self._sync_ms == 0:
            self._force_at_once(written)

    def _force_at_once(self, written: int) -> None:
        try:
            force = self.sync_later()
        except OSError:
            self._size -= written
            raise
        try:
            if force is not None:
                force()
        except OSError:
            self._size -= written
            self._take_back()
            self.distrust()
            raise

    def _take_back(self) -> None:
        """No torn record may stand in the middle of a segment: nothing behind it would be read."""
        if self._file < 0:
            return
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self._abandon()

    def _open_segment(self) -> None:
        self._finish()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._last_name = max(self._last_name + 1, time.time_ns())  # in order, whatever the clock does
        fresh = self._folder / f"{self._last_name:020d}-{os.getpid()}.new"
        file = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: the writer lives
            fresh.rename(fresh.with_suffix(self._ending))  # locked before a reader can see it
        except OSError:
            os.close(file)
            raise
        self._file, self._size, self._unsynced, self._unnamed = file, 0, False, True

    def _finish(self) -> None:
        """Nothing more will be appended. Forcing 32 MB to the disk takes longer than a request may wait."""
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._full.append(self._file)
            self._file = -1

    @property
    def has_to_sync(self) -> bool:
        """Whether `sync` would have something to do; may be asked from another thread."""
        return self._unsynced or self._distrusted or bool(self._full)

    def sync(self) -> None:
        """Force what was appended to the disk; blocks.

        Raises:
            OSError: it is not known to be there.
        """
        force = self.sync_later()
        if force is None:
            return
        try:
            force()
        except OSError:
            self.distrust()
            raise

    def sync_later(self) -> Callable[[], None] | None:
        """What a thread must call to force the records so far to the disk; None: there is nothing new. Where that
        raises, `distrust` is to be called in the writer's own thread.

        Raises:
            OSError: there is no descriptor left, or a fresh segment cannot be made; call it again.
        """
        if self._distrusted and self._file < 0:  # whether the disk works again is found out without any record
            self._open_segment()
            self._unsynced = True
        self._distrusted = False
        files, self._full = self._full, []
        if self._unsynced and self._file >= 0:
            try:
                if os.fstat(self._file).st_nlink == 0:
                    self._bring_back()
                if self._unnamed:
                    files.append(os.open(self._folder, os.O_RDONLY))
                files.append(os.dup(self._file))  # the segment may be closed before the thread comes to it
            except OSError:
                self._full = files
                raise
            self._unsynced = self._unnamed = False
        return (lambda: _force(files)) if files else None

    def distrust(self) -> None:
        """The segment could not be forced to the disk: go on in a fresh one. What was appended since is forced
        with that one's first records."""
        if self._size:  # with nothing in it, it is as good as a fresh one
            self._finish()
        self._unsynced = self._unnamed = self._distrusted = True

    def _bring_back(self) -> None:
        """Somebody deleted the segment, so that nobody will read it: write all of it into a fresh one.

        Requests wait meanwhile (0.2 s for 31 MB): a record appended behind them must not be moved before them.
        """
        lost, size = self._file, self._size
        log.error("a segment of the journal was deleted; its %d bytes are written again", size)
        self._file = -1
        try:
            self._open_segment()
            while piece := os.pread(lost, _COPIED_BYTES, self._size):
                self._size += os.write(self._file, piece)
        except OSError:
            self._size = 0
            self._take_back()
            self._abandon()
            self._file, self._size, self._unsynced = lost, size, True  # until the next time
            raise
        os.close(lost)

    def close(self) -> None:
        """Finish the current segment; the next append opens a new one.

        Raises:
            OSError: what was appended last could not be forced to the disk.
        """
        self._distrusted = False  # there is nothing to find out any more
        try:
            self.sync()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _force(files: list[int]) -> None:
    """All of them, whatever becomes of one."""
    failure: OSError | None = None
    for file in files:
        try:
            os.fsync(file)
        except OSError as error:
            if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(file).st_mode):  # some have no such thing
                failure = error
        finally:
            os.close(file)
    if failure is not None:
        raise failure


def segments(folder: Path) -> list[Path]:
    """The segment files, oldest first."""
    return sorted(folder.glob("*.journal")) if folder.is_dir() else []


def note_moved(folder: Path, offset: Callable[[str], int]) -> None:
    """Leave word of how far the store is, for `waiting`: a file whose time is that of the last whole move."""
    if not folder.is_dir():
        return
    moved = {segment.name: offset(segment.name) for segment in segments(folder)}
    note = folder / "moved.json"
    if not moved:
        note.unlink(missing_ok=True)
        return
    text = msgspec.json.encode(moved)
    if note.exists() and note.read_bytes() == text:
        os.utime(note)
        return
    partial = folder / f"moved.{os.getpid()}-{time.time_ns()}"
    partial.write_bytes(text)
    partial.replace(note)


def waiting(folder: Path) -> tuple[int, float]:
    """How many bytes of the journal are not in the store yet, and for how many seconds it has been behind."""
    try:
        note = folder / "moved.json"
        moved = msgspec.json.decode(note.read_bytes(), type=dict[str, int])
        since = note.stat().st_mtime
    except (OSError, msgspec.DecodeError):  # nothing was moved yet, or the folder cannot be read
        moved, since = {}, None
    left = 0
    for segment in segments(folder):
        try:
            found = segment.stat()
        except FileNotFoundError:  # moved into the store meanwhile
            continue
        left += max(0, found.st_size - moved.get(segment.name, 0))
        since = found.st_ctime if since is None else since
    return left, max(0.0, time.time() - since) if left and since is not None else 0.0


def is_finished(segment: Path) -> bool:
    """Whether its writer is gone or has moved on, so that nothing more will be appended."""
    try:
        file = os.open(segment, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(file)
