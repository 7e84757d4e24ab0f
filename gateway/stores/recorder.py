"""Moves records from the journal into the store: each exactly once, whatever dies in between."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from gateway.errors import StoreError
from gateway.files import write_whole
from gateway.stores import journal
from gateway.stores.journal import Poison
from gateway.stores.segments import READ_BYTES, HalfRecord, SegmentReader, framed
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

HOLD_SECONDS = 3.0
"""So long records wait for more, while more keep coming: each move costs a millisecond, whatever it moves."""

_OF_VALUES = (OverflowError, ValueError, sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError,
              sqlite3.ProgrammingError)  # fmt: skip
"""What SQLite and its driver raise for a value that they cannot keep; a full disk or a lock is another matter."""


class Recorder:
    """One may run beside another: the store's transaction decides who moves what.

    A record that cannot be stored is put into a file beside its segment (`.poison`) and stops no other;
    `poisoned` counts them. The bytes behind the last whole record of a finished segment are kept as `.torn`.
    """

    def __init__(self, folder: Path, store: SqliteStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._store = store
        self._clock = clock
        self._reader = SegmentReader()
        self._held = 0  # bytes that waited at the last look and were left waiting
        self._busy = False  # at the last look there was something new
        self._due = 0.0
        self.poisoned = 0

    def look(self) -> int:
        """What a recorder does every second: `drain`, but under steady traffic only every few seconds, or when
        there is as much as one transaction takes. Records that come out of the blue are moved at once.

        Raises:
            StoreError: as `drain`.
        """
        found = sum(self._waiting(segment) for segment in journal.segments(self._folder))
        is_new = found > self._held
        if is_new and self._busy and found < READ_BYTES and self._clock() < self._due:
            self._held = found
            return 0
        self._held, self._due = 0, 0.0  # where it fails, the next look tries again
        moved = self.drain()
        self._busy, self._due = is_new, self._clock() + HOLD_SECONDS
        return moved

    def drain(self) -> int:
        """Move all that is there now; gives the number of records moved.

        Raises:
            StoreError: the store refused, or a segment could not be read; the other segments are moved.
        """
        moved, failure = 0, None
        for segment in journal.segments(self._folder):
            try:
                moved += self._drain_segment(segment)
            except OSError as error:
                failure = StoreError(f"journal {segment}: {error.strerror}")
        if failure is not None:
            raise failure
        journal.note_moved(self._folder, self._store.offset)
        return moved

    def _drain_segment(self, segment: Path) -> int:
        moved = 0
        finished = journal.is_finished(segment)  # asked first: afterwards nothing can be appended
        while self._waiting(segment) > 0:
            count = self._move(segment)
            moved += count
            if count == 0:
                break
        if finished:
            self._remove(segment)
        return moved

    def _waiting(self, segment: Path) -> int:
        """How many bytes are still to be moved; asked without a transaction, so that a recorder with nothing to do
        disturbs no one."""
        try:
            return segment.stat().st_size - self._store.offset(segment.name)
        except FileNotFoundError:
            return 0

    def _move(self, segment: Path) -> int:
        try:
            with self._store.transaction():
                return self._absorb(segment)
        except (StoreError, OverflowError, ValueError) as error:  # ValueError: text that is no Unicode, too
            if not _is_poison(error):
                raise
        with self._store.transaction():
            return self._absorb_singly(segment)

    def _absorb(self, segment: Path) -> int:
        records, behind = self._read(segment)
        if behind:
            bad = [record for record in records if type(record) is Poison] if Poison in map(type, records) else []
            sound = [record for record in records if type(record) is not Poison] if bad else records
            self._store.absorb_records(segment.name, behind, cast("list[HalfRecord]", sound))
            self._set_aside(segment, bad)
        return len(records)

    def _absorb_singly(self, segment: Path) -> int:
        """The slow way, after the store refused a record among them: that one goes aside."""
        records, behind = self._read(segment)
        bad: list[Poison] = []
        for record in records:
            if isinstance(record, Poison):
                bad.append(record)
                continue
            try:
                with self._store.attempt():
                    self._store.absorb_records(segment.name, behind, [record])
            except (StoreError, OverflowError, ValueError) as error:
                if not _is_poison(error):
                    raise
                bad.append(Poison(framed(record)))
        self._set_aside(segment, bad)
        self._store.absorb_records(segment.name, behind, [])
        return len(records)

    def _read(self, segment: Path) -> tuple[list[HalfRecord | Poison], int]:
        try:
            return self._reader.read(segment, self._store.offset(segment.name))
        except FileNotFoundError:  # another recorder was faster
            return [], 0

    def _set_aside(self, segment: Path, bad: list[Poison]) -> None:
        if not bad:
            return
        kept = segment.with_suffix(".poison")
        log.error("%d records of %s cannot be stored; kept in %s", len(bad), segment.name, kept)
        with kept.open("ab") as file:
            file.writelines(record.framed for record in bad)
        self.poisoned += len(bad)

    def _remove(self, segment: Path) -> None:
        """In a transaction: no other recorder may take a segment without its offset for a fresh one."""
        with self._store.transaction():
            try:
                with segment.open("rb") as file:
                    file.seek(self._store.offset(segment.name))
                    torn = file.read()
                if torn:
                    kept = segment.with_suffix(".torn")
                    log.warning(
                        "%s ends in %d bytes that are no whole record; kept as %s", segment.name, len(torn), kept
                    )
                    write_whole(kept, torn)
                segment.unlink()
            except FileNotFoundError:
                return
            self._store.forget_segment(segment.name)


def _is_poison(error: Exception) -> bool:
    """Whether a record is to blame, and not the disk, a lock or a damaged file."""
    cause = error.__cause__ if isinstance(error, StoreError) else error
    return isinstance(cause, _OF_VALUES)
