"""Deletes exchanges for good: the rows, and every trace of them that we keep.

Rows go in small transactions with pauses, so that recording never waits long. The ids of what was deleted are kept
in the table `deletions` until no trace is left: a prune that dies goes on when the next one starts. Traces are
feedback, dictionaries with their text (what was packed with them is packed again), datasets that hold one of their
rows, and what still stands in the journal. Content is overwritten, pages go back to the file system, and the
write-ahead log is emptied. Trained models and copies made by `dataset --out` are not touched.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.stores import intake, space, traces
from gateway.stores.rows import moved_to_blocks
from gateway.stores.sqlite import SqliteStore

ROWS_AT_ONCE = 500
"""Deleted in one transaction: some milliseconds."""
_BLOCKS_AT_ONCE = 40
"""Written anew in one transaction, at some 2 ms each."""
_SCANNED_AT_ONCE = 5000
_PAGES_AT_ONCE = 500
ORPHAN_SECONDS = 900.0
"""A copy whose original has not come after so long is one of a deleted exchange."""
PAUSE_SECONDS = 0.01
"""Between transactions: whoever waits for the store gets it."""


class Criteria(msgspec.Struct, frozen=True, kw_only=True):
    """What to delete: the exchanges for which all that is given holds. `before` is in seconds since the epoch.
    Then, with `most_bytes`, the oldest of the rest until the store's content takes no more."""

    before: float | None = None
    tags: Mapping[str, str] = {}
    ids: tuple[str, ...] = ()
    most_bytes: int | None = None

    @classmethod
    def of_settings(cls, keep_days: float | None, keep_mb: float | None, now: float) -> Criteria:
        """What `store.keep_days` and `store.keep_mb` say at this time."""
        return cls(
            before=None if keep_days is None else now - keep_days * 86_400,
            most_bytes=None if keep_mb is None else int(keep_mb * 1024 * 1024),
        )

    @property
    def selects(self) -> bool:
        """Whether anything but the size is given."""
        return self.before is not None or bool(self.tags) or bool(self.ids)


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What a prune did, or with `dry_run` would do. `models` are the fine-tunes that were trained on deleted
    datasets: they keep what they have learnt. `left` says what could not be removed, and why."""

    exchanges: int
    dry_run: bool = False
    repacked: int = 0
    datasets: list[str] = []
    models: list[str] = []
    bytes_before: int = 0
    bytes_after: int = 0
    left: list[str] = []


def prune(
    store: SqliteStore, journal: Path, criteria: Criteria, *, dry_run: bool = False, oldest_first: bool = False,
    rewrite: bool = False, rest: Callable[[float], None] = time.sleep,
) -> Pruned:  # fmt: skip
    """Delete what `criteria` select; also finishes what an earlier prune left behind.

    What is only in the journal must have been moved before. With `oldest_first` the search ends at the first rows
    that are kept, which is where time-ordered rows are all younger.

    Raises:
        StoreError: the store cannot be written.
    """
    before = space.used_bytes(store)
    if dry_run:
        return Pruned(exchanges=_count(store, criteria), dry_run=True, bytes_before=before, bytes_after=before)
    if criteria.ids:
        _note(store, criteria.ids)  # also of what never became a row
    deleted = 0
    for ids in _selected(store, criteria, oldest_first):
        deleted += _delete(store, ids, rest)
    for ids in _oldest(store, criteria.most_bytes):
        deleted += _delete(store, ids, rest)
    for ids in _orphans(store, time.time() - ORPHAN_SECONDS):
        deleted += _delete(store, ids, rest)
    if not _deletions(store):
        return Pruned(exchanges=deleted, bytes_before=before, bytes_after=space.used_bytes(store))
    return _without_traces(store, journal, criteria, deleted, before, rewrite, rest)


def _without_traces(
    store: SqliteStore, journal: Path, criteria: Criteria, deleted: int, before: int, rewrite: bool,
    rest: Callable[[float], None],
) -> Pruned:  # fmt: skip
    again = _forget_dictionaries(store, rest)
    gone = _deletions(store)
    datasets, models = traces.forget_datasets(store, gone)
    left = traces.forget_journal(store, journal, gone, criteria.tags, criteria.before)
    if not left:
        store.run("DELETE FROM deletions")
    left += _give_back(store, rewrite, rest)
    return Pruned(
        exchanges=deleted, repacked=again, datasets=datasets, models=models, bytes_before=before,
        bytes_after=space.used_bytes(store), left=left,
    )  # fmt: skip


# --- which exchanges -------------------------------------------------------------------------------------


def _count(store: SqliteStore, criteria: Criteria) -> int:
    selected = sum(len(ids) for ids in _selected(store, criteria, oldest_first=False))
    if criteria.most_bytes is None:
        return selected
    used, rows = space.used_bytes(store), store.count()
    each = used / max(rows, 1)
    return max(selected, min(rows, round((used - criteria.most_bytes) / max(each, 1))))


def _selected(store: SqliteStore, criteria: Criteria, oldest_first: bool) -> Iterator[list[str]]:
    """Ids, some at a time; what is yielded may be deleted meanwhile."""
    if not criteria.selects:
        return
    where, values = _condition(criteria)
    position, last = _rowids(store)
    while position <= last:
        query = f"SELECT id FROM exchanges WHERE rowid BETWEEN ? AND ? AND {where} ORDER BY rowid"
        end = position + _SCANNED_AT_ONCE - 1
        ids = [row["id"] for row in store.records(query, [position, end, *values])]
        for start in range(0, len(ids), ROWS_AT_ONCE):
            yield ids[start : start + ROWS_AT_ONCE]
        if oldest_first and len(ids) == 0:
            return
        position = end + 1


def _condition(criteria: Criteria) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    if criteria.before is not None:
        parts.append("started_at < ?")
        values.append(criteria.before)
    if criteria.ids:
        named = "IN (SELECT value FROM json_each(?))"
        parts.append(f"(id {named} OR copy_of {named})")  # what repeats a request holds all of it
        values += [json.dumps(criteria.ids)] * 2
    for name, value in criteria.tags.items():
        parts.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE key = ? AND value = ?)")
        values += [name, value]
    return " AND ".join(parts), values


def _orphans(store: SqliteStore, before: float) -> Iterator[list[str]]:
    """Copies (audits and shadows) of exchanges that are deleted: they were under way meanwhile, or are younger than
    what was deleted by its age."""
    query = (
        "SELECT id FROM exchanges AS copy WHERE copy_of IS NOT NULL AND started_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM exchanges WHERE id = copy.copy_of)"
    )
    ids = [key for (key,) in store.run(query, [before]).fetchall()]
    for start in range(0, len(ids), ROWS_AT_ONCE):
        yield ids[start : start + ROWS_AT_ONCE]


def _oldest(store: SqliteStore, most_bytes: int | None) -> Iterator[list[str]]:
    """As many as seem to be too many, and again, since rows are not equally large."""
    while most_bytes is not None and (used := space.used_bytes(store)) > most_bytes:
        first, last = _rowids(store)
        each = used / max(last - first + 1, 1)
        count = min(ROWS_AT_ONCE, math.ceil((used - most_bytes) / each))
        oldest = store.records("SELECT id FROM exchanges ORDER BY rowid LIMIT ?", [count])
        if not oldest:
            return
        yield [row["id"] for row in oldest]


# --- dictionaries ----------------------------------------------------------------------------------------


def _forget_dictionaries(store: SqliteStore, rest: Callable[[float], None]) -> int:
    """Retire those that were made from deleted text, pack again what needs them, and drop them; gives how many rows
    were packed again. All rows are looked through: an answer that came late is in an old row."""
    retired = store.dictionaries.retire()
    if not retired:
        return 0
    again, (position, last) = 0, _rowids(store)
    while position <= last:
        with store.transaction():
            again += moved_to_blocks(
                store.run, store.blocks, store.dictionaries, retired, position, position + ROWS_AT_ONCE - 1
            )
        position += ROWS_AT_ONCE
        rest(PAUSE_SECONDS)
    store.dictionaries.drop(retired)
    return again


# --- rows ------------------------------------------------------------------------------------------------


def _rowids(store: SqliteStore) -> tuple[int, int]:
    query = "SELECT (SELECT MIN(number) FROM exchange_rows), (SELECT MAX(number) FROM exchange_rows)"
    first, last = store.run(query).fetchone()
    return (first, last) if first is not None else (1, 0)


def _note(store: SqliteStore, ids: Iterable[str]) -> None:
    store.run("INSERT OR IGNORE INTO deletions SELECT value FROM json_each(?)", [json.dumps(list(ids))])


def _deletions(store: SqliteStore) -> set[str]:
    return {row["exchange_id"] for row in store.records("SELECT exchange_id FROM deletions")}


def _delete(store: SqliteStore, ids: list[str], rest: Callable[[float], None]) -> int:
    """The rows, their bodies and what was said of them; gives the number of rows. As many in one transaction as
    stand in some blocks, since each block is written anew."""
    deleted = 0
    for part in _by_blocks(store, ids):
        with store.transaction(), store.recounted(part):
            deleted += _delete_at_once(store, part)
        rest(PAUSE_SECONDS)
    return deleted


def _by_blocks(store: SqliteStore, ids: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    written: set[int] = set()
    rows = _bodies(store, ids)
    homes = store.blocks.homes([number for _, *both in rows for number in both if number is not None])
    for exchange_id, *both in rows:
        written.update(homes[number] for number in both if number in homes)
        part.append(exchange_id)
        if len(written) >= _BLOCKS_AT_ONCE:
            yield part
            part, written = [], set()
    if part:
        yield part


def _bodies(store: SqliteStore, ids: list[str]) -> list[tuple[str, int | None, int | None]]:
    query = "SELECT id, request_at, response_at FROM exchange_rows WHERE id IN (SELECT value FROM json_each(?))"
    return store.run(f"{query} ORDER BY rowid", [json.dumps(ids)]).fetchall()


def _delete_at_once(store: SqliteStore, ids: list[str]) -> int:
    named = [json.dumps(ids)]
    _note(store, ids)
    store.run("DELETE FROM feedback WHERE exchange_id IN (SELECT value FROM json_each(?))", named)
    return intake.delete(store, ids)


# --- the file --------------------------------------------------------------------------------------------


def _give_back(store: SqliteStore, rewrite: bool, rest: Callable[[float], None]) -> list[str]:
    """Free pages go back to the file system, and the write-ahead log is emptied; gives what is left to do."""
    left: list[str] = []
    if not space.is_incremental(store):
        if rewrite:
            space.rewrite(store)
        else:
            left.append("the store was made by an earlier release; 'unprompt prune' writes it anew, once")
    while space.is_incremental(store) and space.give_back(store, _PAGES_AT_ONCE):
        rest(PAUSE_SECONDS)
    for _ in range(3):
        if space.checkpoint(store):
            return left
    return [*left, "somebody reads the store, so that its write-ahead log could not be emptied; prune again"]
