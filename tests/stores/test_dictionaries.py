"""Bodies are compressed with dictionaries of recent traffic, and every one comes back byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from halves import begin, end
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import StoreError
from gateway.stores import dictionaries
from gateway.stores.frames import NO_DICTIONARY, Dictionary, content, dictionary_of, split, trained
from gateway.stores.sqlite import SqliteStore

PROMPT = " ".join(f"If it is about {7919 * n % 104729:x}, answer {6007 * n % 99991:x}." for n in range(60))
OTHER_PROMPT = " ".join(f"Word {7907 * n % 104723:x} means {5987 * n % 99989:x}." for n in range(80))


def asked(prompt: str, number: int) -> bytes:
    return json.dumps({"system": prompt, "user": f"message {number}"}).encode()


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "u.db")


def record(store: SqliteStore, first: int, *bodies: bytes, **columns: Any) -> None:
    with store.transaction():
        records = [begin(first + n, request=body, **columns) for n, body in enumerate(bodies)]
        store.absorb_records("segment", 1, records)


def sizes(store: SqliteStore) -> list[int]:
    return [row["size"] for row in store.records("SELECT LENGTH(request) AS size FROM exchanges ORDER BY rowid")]


headers = st.dictionaries(st.text(max_size=10), st.text(max_size=30), max_size=4)


@given(headers, st.binary(max_size=2000))
@settings(max_examples=300)
def test_what_is_put_together_comes_apart_again(named: dict[str, str], body: bytes) -> None:
    assert split(content(named, body)) == (named, body)


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=10))
@settings(max_examples=100)
def test_any_body_comes_back_from_a_frame_with_and_without_a_dictionary(bodies: list[bytes]) -> None:
    made = trained([asked(PROMPT, number) for number in range(40)], 7)
    assert made is not None
    for dictionary in (Dictionary(NO_DICTIONARY, b""), Dictionary(7, made)):
        frames = [dictionary.pack(body) for body in bodies]
        assert {dictionary_of(frame[:18]) for frame in frames} == {dictionary.number}
        assert [dictionary.unpack(frame) for frame in frames] == bodies


def test_a_frame_that_is_damaged_or_of_another_dictionary_is_refused() -> None:
    made = trained([asked(PROMPT, number) for number in range(40)], 7)
    assert made is not None
    frame = Dictionary(7, made).pack(asked(PROMPT, 41))
    with pytest.raises(ValueError, match="damaged"):
        Dictionary(NO_DICTIONARY, b"").unpack(frame)
    with pytest.raises(ValueError, match="damaged"):
        Dictionary(7, made).unpack(frame[:-2])
    with pytest.raises(ValueError, match="no zstd frame"):
        dictionary_of(b"plain text")


def test_too_few_or_nothing_in_common_makes_no_dictionary() -> None:
    assert trained([], 1) is None
    assert trained([b"x"], 1) is None


def test_a_repeated_prompt_is_stored_once(store: SqliteStore) -> None:
    record(store, 0, *(asked(PROMPT, number) for number in range(400)))
    assert len(asked(PROMPT, 0)) > 1800
    assert sum(sizes(store)[-100:]) / 100 < 60
    assert [one.request for one in store.exchanges()] == [asked(PROMPT, number) for number in range(400)]


def test_a_changed_prompt_gets_a_dictionary_of_its_own_and_old_rows_stay_readable(store: SqliteStore) -> None:
    bodies = [asked(PROMPT, n) for n in range(1500)] + [asked(OTHER_PROMPT, n) for n in range(6000)]
    record(store, 0, *bodies)
    numbers = [row["id"] for row in store.records("SELECT id FROM dictionaries")]
    assert len(numbers) >= 2
    assert sum(sizes(store)[-100:]) / 100 < 60
    assert [one.request for one in store.exchanges()] == bodies


def test_what_has_nothing_in_common_gets_none(store: SqliteStore) -> None:
    record(store, 0, *(os.urandom(2000) for _ in range(600)))
    assert store.records("SELECT id FROM dictionaries") == []
    assert max(sizes(store)) < 2100


def test_a_client_that_makes_up_models_does_not_push_out_the_real_ones(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dictionaries, "MOST_KINDS", 4)
    record(store, 0, *(asked(PROMPT, number) for number in range(200)))
    for number in range(50):
        record(store, 1000 + number, b"{}", model_requested=f"made-up-{number}")
    record(store, 2000, asked(PROMPT, 2000))
    assert sizes(store)[-1] < 60
    assert len(store.dictionaries._kinds) <= 4


def test_another_process_that_retires_a_dictionary_is_noticed_before_the_next_row(store: SqliteStore) -> None:
    record(store, 0, *(asked(PROMPT, number) for number in range(200)))
    other = SqliteStore(store.path)
    other.run("UPDATE dictionaries SET retired = 1")
    record(store, 900, asked(PROMPT, 900))
    (frame,) = store.run("SELECT request FROM exchanges WHERE id = 'e000900'").fetchone()
    assert dictionary_of(frame) == NO_DICTIONARY


def test_a_row_whose_dictionary_is_gone_says_so(store: SqliteStore) -> None:
    record(store, 0, *(asked(PROMPT, number) for number in range(200)))
    store.run("DELETE FROM dictionaries")
    with pytest.raises(StoreError, match=r"exchange e000\d+: dictionary 1 is not in the store"):
        SqliteStore(store.path).exchanges()


def test_a_transaction_that_fails_leaves_no_dictionary_in_use(store: SqliteStore) -> None:
    def unplugged() -> None:
        with store.transaction():
            store.absorb_records("s", 1, [begin(n, request=asked(PROMPT, n)) for n in range(200)])
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError):
        unplugged()
    other = SqliteStore(store.path)  # makes a dictionary of the same number, and of other text
    record(other, 300, *(asked(PROMPT[5:], number) for number in range(300, 500)))
    record(store, 0, *(asked(PROMPT, number) for number in range(200)))
    bodies = [one.request for one in SqliteStore(store.path).exchanges()]
    assert bodies == [asked(PROMPT, n) for n in range(200)] + [asked(PROMPT[5:], n) for n in range(300, 500)]


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
                store.absorb_records("s", 1, [half])
    for row in store.tasks():
        name = row["name"]
        assert row["exchanges"] == store.count("task = ?", [name])
        assert row["stripped"] == store.count("task = ? AND stripped = 1", [name])
        answered = "task = ? AND complete = 1 AND truncated = 0 AND stripped = 0 AND status BETWEEN 200 AND 299"
        assert store.answered_count(name) == store.count(answered, [name])
    unexplained = "task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0"
    assert store.unexplained_count() == store.count(unexplained)
    store.close()
