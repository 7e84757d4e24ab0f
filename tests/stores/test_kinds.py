"""What many exchanges have in common stands once: nothing of it is lost, and it goes with the last that has it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from halves import begin, end, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.exchange import Begin, End, Exchange
from gateway.errors import StoreError
from gateway.stores import intake, kinds
from gateway.stores.migrations import migrations
from gateway.stores.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "u.db")
    yield opened
    opened.close()


def record(store: SqliteStore, *halves: Begin | End) -> None:
    with store.transaction():
        store.absorb_records("segment", 1, stored(*halves))


def delete(store: SqliteStore, *ids: str) -> int:
    with store.transaction():
        return intake.delete(store, ids)


def counts(store: SqliteStore, table: str, name: str) -> list[tuple[object, int]]:
    """Each kind's value in a column, and how many rows it says it has; kind 0 of the answers has none."""
    return store.run(f"SELECT {name}, exchanges FROM {table} WHERE id > 0 ORDER BY id").fetchall()


def test_a_thousand_exchanges_of_one_app_are_one_kind(store: SqliteStore) -> None:
    for first in range(0, 1000, 100):
        both = ((begin(n), end(n)) for n in range(first, first + 100))
        record(store, *(half for pair in both for half in pair))
    assert counts(store, "request_kinds", "endpoint") == [("/v1/chat/completions", 1000)]
    assert counts(store, "response_kinds", "target") == [("openai/gpt-6", 1000)]
    assert {(one.endpoint, one.target, one.status) for one in store.exchanges()} == {
        ("/v1/chat/completions", "openai/gpt-6", 200)
    }


def test_what_stood_only_in_deleted_exchanges_is_nowhere_any_more(store: SqliteStore) -> None:
    """The name of a file in a path, and the hint that an app gave."""
    record(store, begin(1, endpoint="/v1/files/secret-report"), end(1), begin(2), end(2, target="openai/other"))
    record(store, begin(3, task_hint="for-anna"), begin(4), end(4))
    assert delete(store, "e000001", "e000003", "e000009") == 2
    assert counts(store, "request_kinds", "endpoint") == [("/v1/chat/completions", 2)]
    assert counts(store, "response_kinds", "target") == [("openai/gpt-6", 1), ("openai/other", 1)]
    assert delete(store, "e000002", "e000004") == 2
    assert counts(store, "request_kinds", "endpoint") == []
    assert counts(store, "response_kinds", "target") == []


def test_an_end_that_comes_late_and_twice_is_counted_once(store: SqliteStore) -> None:
    record(store, begin(1, task="mail"))
    assert (store.exchanges()[0].status, store.exchanges()[0].usage_source) == (None, "none")
    record(store, end(1, status=500))
    record(store, end(1, status=200))
    assert counts(store, "response_kinds", "status") == [(200, 1)]
    assert store.exchanges("status = 200")[0].id == "e000001"
    assert store.answered_count("mail") == 1


def test_a_kind_that_another_process_deleted_meanwhile_comes_back_with_its_next_row(store: SqliteStore) -> None:
    record(store, begin(1), end(1))
    other = SqliteStore(store.path)
    assert delete(other, "e000001") == 1
    assert counts(store, "request_kinds", "provider") == []
    record(other, begin(2, provider="another"), end(2))
    record(store, begin(3), end(3))  # still knows the number of the kind that is gone
    other.close()
    assert [(one.id, one.provider) for one in store.exchanges()] == [("e000002", "another"), ("e000003", "openai")]
    assert sorted(counts(store, "request_kinds", "provider")) == [("another", 1), ("openai", 1)]


def test_a_kind_of_a_transaction_that_failed_is_noted_again(store: SqliteStore) -> None:
    def unplugged() -> None:
        with store.transaction():
            store.absorb_records("segment", 1, stored(begin(1, provider="first")))
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        unplugged()
    other = SqliteStore(store.path)
    record(other, begin(2, provider="second"))  # has the number that the first one had
    other.close()
    record(store, begin(1, provider="first"))
    assert {one.id: one.provider for one in store.exchanges()} == {"e000002": "second", "e000001": "first"}


def half_a_row(store: SqliteStore) -> None:
    with store.attempt():
        store.absorb_records("segment", 1, stored(begin(1, provider="first")))
        store.run("INSERT INTO exchange_rows (id) VALUES ('no kind')")


def test_a_part_that_fails_leaves_nothing_and_the_rest_goes_on(store: SqliteStore) -> None:
    with store.transaction():
        with pytest.raises(StoreError, match="NOT NULL"):
            half_a_row(store)
        store.absorb_records("segment", 2, stored(begin(2)))
    assert counts(store, "request_kinds", "provider") == [("openai", 1)]
    assert [one.id for one in store.exchanges()] == ["e000002"]


def test_more_kinds_than_are_known_by_heart_cost_rows_and_no_truth(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that names a file in each path."""
    monkeypatch.setattr(kinds, "_KNOWN", 4)
    few = SqliteStore(store.path)
    for number in range(60):
        record(few, begin(number, endpoint=f"/v1/files/{number % 30}"), end(number))
    few.close()
    assert [one.endpoint for one in store.exchanges()] == [f"/v1/files/{number % 30}" for number in range(60)]
    assert sum(count for _, count in counts(store, "request_kinds", "endpoint")) == 60


text = st.none() | st.text(max_size=3)
exchanges = st.builds(
    Exchange, id=st.uuids().map(str), started_at=st.floats(0, 1e9), route=text, provider=st.text(max_size=3),
    task=st.none() | st.text("ab", min_size=1), task_version=st.none() | st.integers(1, 3), task_hint=text,
    method=st.text(max_size=3), endpoint=st.text(max_size=3), model_requested=text,
    model_served=text, target=text, stripped=st.booleans(),
    status=st.none() | st.integers(100, 599), streamed=st.booleans(), complete=st.booleans(), error_type=text,
    finish_reason=text, latency_ms=st.none() | st.floats(0, 1e6), ttft_ms=st.none() | st.floats(0, 1e6),
    input_tokens=st.none() | st.integers(0, 9), cost_usd=st.none() | st.floats(0, 1), key_id=text,
    tags=st.dictionaries(st.text(max_size=2), st.text(max_size=2)), attempts=st.lists(st.text(max_size=2)),
    truncated=st.booleans(), copy_of=text,
)  # fmt: skip


def put_into_version_10(file: Path, given: list[Exchange]) -> None:
    old = sqlite3.connect(file)
    for number in range(1, 11):
        for statement in migrations().get(number, []):
            old.execute(statement)
    for one in given:
        row = {name: getattr(one, name) for name in Exchange.__struct_fields__}
        for name in ("tags", "attempts", "request_headers", "response_headers"):
            row[name] = json.dumps(row[name])
        row |= {"packed": 0, "request": None, "response": None}
        names = ", ".join(row)
        old.execute(f"INSERT INTO exchanges ({names}) VALUES ({', '.join(':' + name for name in row)})", row)
    old.execute("PRAGMA user_version = 10")
    old.commit()
    old.close()


@given(st.lists(exchanges, max_size=8, unique_by=lambda one: one.id))
@settings(max_examples=60, deadline=None)
def test_a_file_of_the_release_before_says_the_same_afterwards(
    tmp_path_factory: pytest.TempPathFactory, given: list[Exchange]
) -> None:
    file = tmp_path_factory.mktemp("old") / "u.db"
    put_into_version_10(file, given)
    store = SqliteStore(file)
    assert store.exchanges() == sorted(given, key=lambda one: one.id)
    order = [row["id"] for row in store.records("SELECT id FROM exchanges ORDER BY rowid")]
    assert order == [one.id for one in given]
    assert delete(store, *(one.id for one in given)) == len(given)
    assert counts(store, "request_kinds", "provider") == []
    assert counts(store, "response_kinds", "target") == []
    store.close()
