"""Bodies stand in blocks, many to one, and every one comes back byte for byte, or is gone for good."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from halves import begin, end, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import StoreError
from gateway.stores import blocks
from gateway.stores.blocks import Block, joined
from gateway.stores.rows import content, split
from gateway.stores.sqlite import SqliteStore

PROMPT = " ".join(f"If it is about {7919 * n % 104729:x}, answer {6007 * n % 99991:x}." for n in range(60))


def asked(number: int) -> bytes:
    return json.dumps({"system": PROMPT, "user": f"message {number}"}).encode()


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "u.db")


def record(store: SqliteStore, *halves: Any) -> None:
    with store.transaction():
        store.absorb_records("segment", 1, stored(*halves))


def of_blocks(store: SqliteStore, what: str) -> list[Any]:
    return [value for (value,) in store.run(f"SELECT {what} FROM blocks ORDER BY first").fetchall()]


headers = st.dictionaries(st.text(max_size=10), st.text(max_size=30), max_size=4)


@given(headers, st.binary(max_size=2000))
@settings(max_examples=300)
def test_what_is_put_together_comes_apart_again(named: dict[str, str], body: bytes) -> None:
    assert split(b"".join(content(named, body))) == (named, body)


@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=500)), min_size=1, max_size=10))
@settings(max_examples=100)
def test_every_content_of_a_block_has_its_number(contents: list[tuple[bytes, bytes]]) -> None:
    import zstandard

    block = Block(
        41, zstandard.ZstdCompressor().compress(joined(contents, [len(one) + len(two) for one, two in contents]))
    )
    assert [block.content(number) for number in range(41, block.behind)] == [one + two for one, two in contents]


def test_a_repeated_prompt_is_stored_once(store: SqliteStore) -> None:
    record(store, *(begin(number, request=asked(number)) for number in range(400)))
    assert sum(of_blocks(store, "length(body)")) / 400 < 60 < 1800 < len(asked(0))
    assert [one.request for one in store.exchanges()] == [asked(number) for number in range(400)]


def test_bodies_that_come_one_by_one_end_up_together(store: SqliteStore) -> None:
    """A request every few seconds: each is a block at first, and never more than some hundred of them are left."""
    for number in range(600):
        record(store, begin(number, request=asked(number)), end(number))
    counts = of_blocks(store, "count")
    assert sum(counts) == 1200
    assert len(counts) < 256
    assert [one.request for one in store.exchanges()] == [asked(number) for number in range(600)]
    assert [one.response for one in store.exchanges()] == [b'{"answer":%d}' % number for number in range(600)]


def test_a_body_larger_than_a_block_has_one_of_its_own(store: SqliteStore) -> None:
    large = os.urandom(3 * blocks.BLOCK_BYTES)
    record(store, begin(1), begin(2, request=large), begin(3))
    assert [one.request for one in store.exchanges()] == [b'{"n":1}', large, b'{"n":3}']
    assert of_blocks(store, "count") == [2, 1]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_deleted_is_in_no_block_and_all_else_is_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is recorded, merged and deleted in whichever order, a number has its own body or none."""
    store = SqliteStore(tmp_path_factory.mktemp("s") / "u.db")
    kept: dict[int, bytes] = {}
    given: set[int] = set()
    for _ in range(data.draw(st.integers(1, 12))):
        step = data.draw(st.sampled_from(["add", "add", "forget", "merge"]))
        with store.transaction():
            if step == "add":
                bodies = data.draw(st.lists(st.binary(min_size=1, max_size=2**17), min_size=1, max_size=5))
                first = store.blocks.add([(b"", body) for body in bodies])
                assert not given & set(range(first, first + len(bodies)))  # no number is given twice
                given |= set(range(first, first + len(bodies)))
                kept |= dict(enumerate(bodies, first))
            elif step == "merge":
                store.blocks.merge()
            elif kept:
                gone = data.draw(st.sets(st.sampled_from(sorted(kept))))
                store.blocks.forget(gone)
                kept = {number: body for number, body in kept.items() if number not in gone}
    reader = SqliteStore(store.path)
    assert {number: reader.blocks.content(number) for number in kept} == kept
    assert sum(of_blocks(store, "size")) == sum(map(len, kept.values()))
    store.close()
    reader.close()


def test_a_reader_that_was_open_before_sees_the_rows_of_its_own_moment(store: SqliteStore) -> None:
    """Between two parts of an export rows are deleted: those are left out, the others are whole."""
    record(store, *(begin(number, request=asked(number)) for number in range(300)))
    other = SqliteStore(store.path)
    rows = other.each_exchange()
    seen = [next(rows).id]
    with store.transaction():
        numbers = [n for (n,) in store.run("SELECT request_at FROM exchanges WHERE id >= 'e000200'").fetchall()]
        store.blocks.forget(numbers)
        store.run("DELETE FROM exchange_rows WHERE id >= 'e000200'")
    seen += [one.id for one in rows]
    assert seen == [f"e{number:06}" for number in range(200)]


def test_a_damaged_block_names_the_exchange(store: SqliteStore) -> None:
    record(store, begin(1), begin(2))
    store.run("UPDATE blocks SET body = substr(body, 1, 20)")
    with pytest.raises(StoreError, match="exchange e000001: damaged"):
        store.exchanges()
    store.run("DELETE FROM blocks")
    with pytest.raises(StoreError, match="exchange e000001: body 1 is in no block"):
        store.exchanges()


def test_what_is_recorded_twice_leaves_no_second_body(store: SqliteStore) -> None:
    record(store, begin(1, request=b"first"), end(1, response=b"one"))
    record(store, begin(1, request=b"again"))
    record(store, end(1, response=b"two"))
    record(store, end(5, response=b"of a request that was deleted"))
    (one,) = store.exchanges()
    assert (one.request, one.response) == (b"first", b"two")
    held = [text for number in range(1, 4) for text in [store.blocks.content(number)] if text]
    assert len(held) == 2
    assert sum(of_blocks(store, "count")) == 3


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_whatever_happens_to_rows_the_counters_say_what_counting_would(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = SqliteStore(tmp_path_factory.mktemp("s") / "u.db")
    for name in ("mail", "post"):
        store.run("INSERT INTO tasks (name, created_at) VALUES (?, 1.0)", [name])
    for step in data.draw(st.lists(st.sampled_from(["begin", "end", "assign", "aside"]), max_size=25)):
        number = data.draw(st.integers(0, 5))
        key = f"e{number:06}"
        task: str | None = data.draw(st.sampled_from([None, "mail", "post"]))
        if step == "assign":
            store.assign({key: (task, 1) if task else None})
        elif step == "aside":
            store.set_aside([key])
        else:
            status, stripped = data.draw(st.sampled_from([200, 500])), data.draw(st.booleans())
            half = begin(number, task=task) if step == "begin" else end(number, status=status, stripped=stripped)
            with store.transaction():
                store.absorb_records("s", 1, stored(half))
    for row in store.tasks():
        name = row["name"]
        assert row["exchanges"] == store.count("task = ?", [name])
        assert row["stripped"] == store.count("task = ? AND stripped = 1", [name])
        answered = "complete = 1 AND truncated = 0 AND stripped = 0 AND status BETWEEN 200 AND 299"
        readable = f"task = ? AND looked_at < 2 AND {answered}"  # what was set aside is of the task, and no row
        assert store.answered_count(name) == store.count(readable, [name])
    unexplained = "task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0"
    assert store.unexplained_count() == store.count(unexplained)
    store.close()
