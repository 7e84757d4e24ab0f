"""How exchanges come into the store: from the two halves in the journal, or whole; and how they go out of it again.

All of it is to be called in a transaction. `task_stats`, the blocks of bodies and the kinds are kept in step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from gateway.domain.exchange import Exchange
from gateway.stores import rows as row_of
from gateway.stores.blocks import in_blocks
from gateway.stores.kinds import NO_ANSWER
from gateway.stores.segments import NO_BODY, BeginRecord, EndRecord, HalfRecord

if TYPE_CHECKING:
    from gateway.stores.sqlite import SqliteStore

_Pair = tuple[BeginRecord, EndRecord]


class _Row(NamedTuple):
    """What a row that is there refers to."""

    id: str
    asked: int
    answered: int
    request_at: int | None
    response_at: int | None


def absorb(store: SqliteStore, records: Iterable[HalfRecord], *, large: bool) -> None:
    """Records of the journal, in their order; an exchange with both its halves is one insert.

    `large`: they hold the large bodies of rows that other segments make.

    Raises:
        OverflowError, ValueError: a record holds a value that cannot be kept.
    """
    first: dict[str, BeginRecord] = {}
    last: dict[str, EndRecord] = {}
    for record in records:
        if type(record) is BeginRecord:
            first.setdefault(record.id, record)
        elif type(record) is EndRecord:
            last[record.id] = record
    if large:
        _fill_in(store, first)
    else:
        _begin(store, first, last)
    _end(store, list(last.values()))
    store.blocks.merge()


def absorb_whole(store: SqliteStore, exchanges: Iterable[Exchange]) -> None:
    """Exchanges that do not come from the journal; a row that is there stays as it is."""
    given = {one.id: one for one in exchanges}
    there = _there(store, given)
    with store.recounted(given):
        for key, one in given.items():
            if key not in there:
                (asked,) = store.requests.numbers([row_of.asked_as(one)])
                (answered,) = store.answers.numbers([row_of.answer_of(one)])
                at = store.blocks.add(row_of.contents(one))
                store.run(row_of.INSERT_WHOLE, row_of.whole(one, asked, answered, at, at + 1))


def delete(store: SqliteStore, exchange_ids: Iterable[str]) -> int:
    """Delete these rows with their bodies, and the names that no other row has; gives how many there were."""
    found = list(_there(store, exchange_ids).values())
    store.blocks.forget([at for row in found for at in (row.request_at, row.response_at) if at is not None])
    store.requests.release(row.asked for row in found)
    store.answers.release(row.answered for row in found)
    named = [json.dumps([row.id for row in found])]
    these = "(SELECT number FROM exchange_rows WHERE id IN (SELECT value FROM json_each(?)))"
    store.run(f"DELETE FROM old_bodies WHERE number IN {these}", named)
    store.run("DELETE FROM exchange_rows WHERE id IN (SELECT value FROM json_each(?))", named)
    return len(found)


def _begin(store: SqliteStore, first: dict[str, BeginRecord], last: dict[str, EndRecord]) -> None:
    """Rows for these, and what ends them taken from `last`; where a row is there already, the end stays."""
    there = _there(store, first) if _may_be_there(store, first) else {}
    pairs: list[_Pair] = []
    alone: list[BeginRecord] = []
    for key, begin in first.items():
        if key not in there:
            end = last.pop(key, None)
            if end is None:
                alone.append(begin)
            else:
                pairs.append((begin, end))
    with store.recounted([key for key, begin in first.items() if begin.task is not None and key not in there]):
        for both in in_blocks(pairs, [len(begin.request) + len(end.response) for begin, end in pairs]):
            _insert_ended(store, both)
        for part in in_blocks(alone, [len(begin.request) for begin in alone]):
            at = store.blocks.add([row_of.asked(begin) for begin in part])
            asked = store.requests.numbers(map(row_of.asked_as, part))
            store.run_many(row_of.INSERT_BEGUN, list(map(row_of.begun, part, asked, count(at))))


def _insert_ended(store: SqliteStore, pairs: Sequence[_Pair]) -> None:
    """Requests first, then answers: what is alike stands together."""
    begins, ends = zip(*pairs, strict=True)
    at = store.blocks.add([*map(row_of.asked, begins), *map(row_of.answered, ends)])
    asked = store.requests.numbers(map(row_of.asked_as, begins))
    answered = store.answers.numbers(map(row_of.answered_as, ends))
    bound = map(row_of.ended, begins, ends, asked, answered, count(at), count(at + len(pairs)))
    store.run_many(row_of.INSERT_ENDED, list(bound))


def _fill_in(store: SqliteStore, first: dict[str, BeginRecord]) -> None:
    there = _there(store, first)
    with store.recounted(first):
        fresh = [begin for begin in first.values() if begin.id not in there]
        asked = store.requests.numbers(map(row_of.asked_as, fresh))
        store.run_many(row_of.INSERT_BEGUN, [row_of.begun(*one, None) for one in zip(fresh, asked, strict=True)])
        for begin in first.values():
            if bytes(begin.request) != NO_BODY:
                old = there[begin.id].request_at if begin.id in there else None
                store.blocks.forget([] if old is None else [old])
                store.run(row_of.FILL_REQUEST, row_of.filled(begin, store.blocks.add([row_of.asked(begin)])))


def _end(store: SqliteStore, late: list[EndRecord]) -> None:
    """Complete rows that are there. What has no row was deleted, and no trace of it may come back."""
    there = _there(store, (end.id for end in late))
    late = [end for end in late if end.id in there]
    before = [there[end.id] for end in late]
    store.blocks.forget([row.response_at for row in before if row.response_at is not None])
    with store.recounted([end.id for end in late]):
        for part in in_blocks(late, [len(end.response) for end in late]):
            at = store.blocks.add([row_of.answered(end) for end in part])
            answered = store.answers.numbers(map(row_of.answered_as, part))
            store.run_many(row_of.UPDATE_ENDED, list(map(row_of.late, part, answered, count(at))))
    store.answers.release(row.answered for row in before if row.answered != NO_ANSWER)


def _may_be_there(store: SqliteStore, exchange_ids: Iterable[str]) -> bool:
    """Ids are ordered by time: what is recorded now is as a rule younger than all that is there."""
    newest = store.run("SELECT MAX(id) FROM exchange_rows").fetchone()[0]
    return newest is not None and min(exchange_ids, default=newest) <= newest


def _there(store: SqliteStore, exchange_ids: Iterable[str]) -> dict[str, _Row]:
    """Which of these have a row."""
    named = json.dumps(list(exchange_ids))
    if named == "[]":
        return {}
    query = (
        "SELECT id, asked_as, answered_as, request_at, response_at FROM exchange_rows"
        " WHERE id IN (SELECT value FROM json_each(?))"
    )
    return {row[0]: _Row(*row) for row in store.run(query, [named]).fetchall()}
