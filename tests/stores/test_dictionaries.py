"""Stores of an earlier release, whose bodies are frames made with dictionaries, are read and pruned as ever."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import zstandard
from halves import begin, stored

from gateway.domain.exchange import Exchange
from gateway.errors import StoreError
from gateway.stores.dictionaries import dictionary_of
from gateway.stores.migrations import migrations
from gateway.stores.pruning import Criteria, prune
from gateway.stores.sqlite import SqliteStore

PROMPT = " ".join(f"If it is about {7919 * n % 104729:x}, answer {6007 * n % 99991:x}." for n in range(60))
SECRET = "Marta-Muster-0815"
HEADERS = {"content-type": "application/json"}


def asked(number: int) -> bytes:
    return json.dumps({"system": PROMPT, "user": f"{SECRET if number < 5 else 'message'} {number}"}).encode()


def told(number: int) -> bytes:
    return f"you said {number}".encode()


def content(body: bytes) -> bytes:
    return json.dumps(HEADERS).encode() + b"\n" + body


def file_of_version_3(file: Path, rows: int = 60) -> None:
    """Requests are made with dictionary 7, which was made from the first 40 of them; answers without one."""
    body = zstandard.train_dictionary(
        8192, [content(asked(n)) for n in range(40)], k=2048, d=8, dict_id=7
    ).as_bytes()
    given = zstandard.ZstdCompressionDict(body, zstandard.DICT_TYPE_FULLDICT)
    old = sqlite3.connect(file)
    for number in (1, 2, 3):
        old.executescript("".join(migrations()[number]))
    old.execute("INSERT INTO dictionaries VALUES (7, 'requests', 1.0, 0, ?, ?)",
                [json.dumps([f"e{n:06}" for n in range(40)]), body])  # fmt: skip
    for n in range(rows):
        request = zstandard.ZstdCompressor(3, dict_data=given).compress(content(asked(n)))
        response = zstandard.ZstdCompressor(3).compress(content(told(n)))
        old.execute(
            "INSERT INTO exchanges (id, started_at, provider, method, endpoint, packed, request, response)"
            " VALUES (?, ?, 'openai', 'POST', '/v1', 3, ?, ?)", [f"e{n:06}", float(n), request, response],
        )  # fmt: skip
    old.execute("PRAGMA user_version = 3")
    old.commit()
    old.close()


def as_it_was(number: int) -> Exchange:
    return Exchange(
        id=f"e{number:06}", started_at=float(number), provider="openai", endpoint="/v1", request_headers=HEADERS,
        response_headers=HEADERS, request=asked(number), response=told(number),
    )  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file_of_version_3(tmp_path / "u.db")
    return tmp_path / "u.db"


def test_old_rows_are_read_beside_new_ones(file: Path) -> None:
    store = SqliteStore(file)
    with store.transaction():
        store.absorb_records("segment", 1, stored(begin(900, request=b"new")))
    assert store.exchanges("id < 'e000900'") == [as_it_was(n) for n in range(60)]
    assert store.exchanges("id = 'e000900'")[0].request == b"new"


def test_when_the_text_of_a_dictionary_is_deleted_what_needs_it_moves_into_blocks(
    file: Path, tmp_path: Path
) -> None:
    store = SqliteStore(file)
    done = prune(store, tmp_path / "journal", Criteria(before=5.0), rewrite=True, rest=lambda _: None)
    assert (done.exchanges, done.repacked, done.left) == (5, 55, [])
    assert store.exchanges() == [as_it_was(n) for n in range(5, 60)]
    assert [row["body"] for row in store.records("SELECT body FROM dictionaries")] == [None]
    assert SECRET.encode() not in file.read_bytes()
    assert store.run("SELECT COUNT(*) FROM exchanges WHERE request IS NOT NULL").fetchone() == (0,)


def test_a_row_whose_dictionary_is_gone_and_one_that_is_damaged_say_so(file: Path) -> None:
    store = SqliteStore(file)
    store.run("UPDATE old_bodies SET response = substr(response, 1, 20) WHERE number = 4")
    with pytest.raises(StoreError, match="exchange e000003: damaged"):
        store.exchange("e000003")
    store.run("DELETE FROM dictionaries")
    with pytest.raises(StoreError, match=r"exchange e\d+: dictionary 7 is not in the store"):
        SqliteStore(file).exchanges()


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="no zstd frame"):
        dictionary_of(b"plain text")
