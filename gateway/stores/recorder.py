"""Moves records from the journal into the store: each exactly once, whatever dies in between."""

from __future__ import annotations

import logging
from pathlib import Path

from gateway.domain.exchange import Begin, End, Exchange
from gateway.stores import journal
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)


class Recorder:
    """One may run beside another: the store's transaction decides who moves what."""

    def __init__(self, folder: Path, store: SqliteStore) -> None:
        self._folder = folder
        self._store = store

    def drain(self) -> int:
        """Move all that is there now; gives the number of records moved."""
        return sum(self._drain_segment(segment) for segment in journal.segments(self._folder))

    def _drain_segment(self, segment: Path) -> int:
        moved = 0
        finished = journal.is_finished(segment)  # asked first: afterwards nothing can be appended
        while True:
            count = self._move(segment)
            moved += count
            if count == 0:
                break
        if finished:
            self._remove(segment)
        return moved

    def _move(self, segment: Path) -> int:
        with self._store.transaction():
            offset = self._store.offset(segment.name)
            try:
                records, behind = journal.read(segment, offset)
            except FileNotFoundError:  # another recorder was faster
                return 0
            if records:
                self._absorb(segment.name, behind, records)
            return len(records)

    def _absorb(self, name: str, offset: int, records: list[journal.Record]) -> None:
        begun = {record.id: Exchange.of(record, None) for record in records if isinstance(record, Begin)}
        late: list[End] = []
        for record in records:
            if isinstance(record, End):
                if record.id in begun:
                    begun[record.id] = begun[record.id].ended(record)
                else:
                    late.append(record)
        self._store.absorb(name, offset, begun.values(), late)

    def _remove(self, segment: Path) -> None:
        try:
            torn = segment.stat().st_size - self._store.offset(segment.name)
        except FileNotFoundError:
            return
        if torn:
            kept = segment.with_suffix(".torn")
            log.warning("%s ends in %d bytes that are no whole record; kept as %s", segment.name, torn, kept)
            segment.rename(kept)
        segment.unlink(missing_ok=True)
        with self._store.transaction():
            self._store.forget_segment(segment.name)
