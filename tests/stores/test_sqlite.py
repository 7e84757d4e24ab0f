"""The store's file: opened by many at once, carried over from older releases, readable with other tools."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlite_utils
from halves import stored

from gateway.domain.dataset import Dataset
from gateway.domain.exchange import End, Exchange, Usage
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.errors import StoreError
from gateway.stores import sqlite, sqlite_file
from gateway.stores.migrations import migrations
from gateway.stores.sqlite import SqliteStore

SUPPORT = PromptTemplate(
    task="support",
    version=1,
    head=(MessagePattern("user", (TextPattern(("Classify the message: ", ""), (Slot("message"),)),)),),
)
ASKED = Exchange(
    id="e1", started_at=1.0, provider="openai", endpoint="/v1/chat/completions", model_requested="gpt-6",
    tags={"team": "ä"}, request=b'{"model":"gpt-6"}',
)  # fmt: skip
ANSWERED = End(
    id="e1", target="openai/gpt-6", stripped=False, status=200, streamed=True, complete=True, error_type=None,
    latency_ms=12.5, ttft_ms=3.0, model_served="gpt-6", finish_reason="stop",
    usage=Usage(input=10, output=2, source="upstream"), cost_usd=None, attempts=["local/m: abstained"],
    response_headers={"content-type": "text/event-stream"}, response=b"data: [DONE]\n\n",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "data" / "unprompt.db")
    yield opened
    opened.close()


def keep(store: SqliteStore, *exchanges: Exchange, ended: Sequence[End] = ()) -> None:
    with store.transaction():
        store.absorb("segment", 1, exchanges)
        store.absorb_records("segment", 2, stored(*ended))


def test_an_exchange_comes_back_as_it_was_recorded(store: SqliteStore) -> None:
    keep(store, ASKED.ended(ANSWERED))
    assert store.exchange("e1") == ASKED.ended(ANSWERED)
    assert store.exchange("e2") is None


def test_an_end_that_comes_later_completes_its_row(store: SqliteStore) -> None:
    keep(store, ASKED)
    assert store.exchanges("complete = 1") == []
    keep(store, ended=(ANSWERED,))
    assert store.exchanges("complete = 1") == [ASKED.ended(ANSWERED)]


def test_the_same_id_twice_changes_nothing(store: SqliteStore) -> None:
    keep(store, ASKED.ended(ANSWERED))
    keep(store, Exchange(id="e1", started_at=9.0, provider="other"))
    assert store.exchanges() == [ASKED.ended(ANSWERED)]


def test_what_fails_half_way_leaves_nothing(store: SqliteStore) -> None:
    def unplugged() -> None:
        with store.transaction():
            store.absorb("segment", 100, [ASKED])
            store.add_template(SUPPORT)
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        unplugged()
    assert (store.exchanges(), store.templates(), store.offset("segment")) == ([], [], 0)


def test_requests_that_are_no_chat_do_not_crowd_out_those_that_are(store: SqliteStore) -> None:
    """An app that sends 10 embeddings for each chat request: only chat waits for a template."""
    chat = [Exchange(id=f"a{n}", started_at=n, provider="openai", complete=True) for n in range(3)]
    embeddings = [Exchange(id=f"b{n}", started_at=n, provider="openai", complete=True) for n in range(30)]
    keep(store, *chat, *embeddings)
    store.assign({exchange.id: None for exchange in chat})
    store.set_aside(exchange.id for exchange in embeddings)
    assert store.unseen(100) == []
    assert [exchange.id for exchange in store.unassigned(2)] == ["a1", "a2"]
    assert store.count(sqlite.UNEXPLAINED) == 3


def test_a_template_is_kept_once_and_a_task_counts_its_exchanges(store: SqliteStore) -> None:
    keep(store, ASKED.ended(ANSWERED))
    store.add_template(SUPPORT)
    store.add_template(SUPPORT)
    store.assign({"e1": ("support", 1)})
    store.set_kind("support", "classification")
    (task,) = store.tasks()
    assert (task["name"], task["kind"], task["exchanges"], task["cost_usd"]) == (
        "support",
        "classification",
        1,
        None,
    )
    assert store.templates("support") == [SUPPORT]
    assert store.version_counts("support", 10) == {1: 1}
    assert [row["target"] for row in store.answered("support")] == ["openai/gpt-6"]


def test_a_dataset_that_is_built_again_becomes_the_newest(store: SqliteStore) -> None:
    store.add_template(SUPPORT)
    old, new = (
        Dataset(id=name, task="support", template="support@1", rows=[], directory="d", digest="x", card={})
        for name in ("old", "new")
    )
    for dataset in (old, new, old):
        store.add_dataset(dataset)
    assert [row["id"] for row in store.rows("datasets")] == ["new", "old"]


def test_a_fine_tune_is_saved_again_and_again(store: SqliteStore) -> None:
    store.add_template(SUPPORT)
    store.add_dataset(
        Dataset(id="d1", task="support", template="support@1", rows=[], directory="", digest="", card={})
    )
    one = FineTune(
        id="ft-1", task="support", dataset="d1", trainer="openai", options={"n_epochs": 3}, created_at=5.0
    )
    store.save_finetune(one)
    store.save_finetune(one.but(state=FineTuneState.RUNNING, stage="creating", remote={"train_file": "file-1"}))
    (kept,) = store.finetunes()
    assert kept.but(updated_at=0.0) == one.but(
        state=FineTuneState.RUNNING, stage="creating", remote={"train_file": "file-1"}
    )


# --- the file ------------------------------------------------------------------------------------------


def test_every_table_can_be_read_with_sqlite_utils(store: SqliteStore) -> None:
    keep(store, ASKED.ended(ANSWERED))
    database = sqlite_utils.Database(store.path)
    tables = [*database.table_names(), *database.view_names()]
    assert {"exchanges", "tasks", "templates", "datasets", "finetunes", "evaluations", "promotions", "feedback",
            "jobs"} <= set(tables)  # fmt: skip
    for table in tables:
        asked = [sys.executable, "-m", "sqlite_utils", "rows", str(store.path), table, "--limit", "1"]
        answer = subprocess.run(asked, capture_output=True, check=True)
        assert isinstance(json.loads(answer.stdout), list)


def test_a_file_of_the_first_release_is_brought_up_to_date_with_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "unprompt.db"
    old = sqlite3.connect(file)
    old.executescript("".join(migrations()[1]))
    old.execute("INSERT INTO promotions VALUES ('p1', 'support', 'promote', 'support-7', 'null', NULL, 1.0)")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    (promotion,) = SqliteStore(file).rows("promotions")
    assert (promotion["target"], promotion["state"], promotion["file_before"]) == ("support-7", "done", None)
    SqliteStore(file).close()  # and once more: nothing is done twice


def test_a_file_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "unprompt.db"
    SqliteStore(file).close()
    later = sqlite3.connect(file)
    later.execute("PRAGMA user_version = 999")
    later.close()
    with pytest.raises(
        StoreError, match=f"have version 999, this release knows {max(migrations())}; upgrade unprompt"
    ):
        SqliteStore(file)


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE orders (id)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="a database of something else"):
        SqliteStore(file)
    assert sqlite_utils.Database(file).table_names() == ["orders"]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but a text of some length" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        SqliteStore(tmp_path / "notes.txt")
    with pytest.raises(StoreError, match=r"check the path in store\.url"):
        SqliteStore(tmp_path / "notes.txt" / "below" / "a-file.db")


OPEN_AND_WRITE = """
import sys
from pathlib import Path
from gateway.domain.exchange import Exchange
from gateway.stores.sqlite import SqliteStore
name = sys.argv[2]
for number in range(20):
    store = SqliteStore(Path(sys.argv[1]))
    with store.transaction():
        store.absorb(name, number, [Exchange(id=f"{name}-{number}", started_at=0.0)])
    store.close()
"""


def test_many_processes_open_the_file_at_once_from_its_first_moment_on(tmp_path: Path) -> None:
    file = tmp_path / "unprompt.db"
    command = [sys.executable, "-c", OPEN_AND_WRITE, str(file)]
    processes = [subprocess.Popen([*command, f"p{n}"], stderr=subprocess.PIPE) for n in range(6)]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert ends == [(b"", 0)] * 6
    assert SqliteStore(file).count() == 120


def test_reading_waits_for_no_writer_and_writing_says_that_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "unprompt.db"
    SqliteStore(file).close()
    monkeypatch.setattr(sqlite_file, "LOCKED_SECONDS", 0.05)
    busy = sqlite3.connect(file, isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    second = SqliteStore(file)
    assert second.tasks() == []
    with pytest.raises(StoreError, match="database is locked"):
        second.set_kind("support", "classification")
    with pytest.raises(StoreError, match="database is locked"), second.transaction():
        pass
    busy.execute("ROLLBACK")
    with second.transaction():
        second.add_template(SUPPORT)
    assert [task["name"] for task in second.tasks()] == ["support"]


def test_a_full_disk_is_told_and_leaves_the_store_as_it_was(store: SqliteStore) -> None:
    keep(store, ASKED)
    pages = store.run("PRAGMA page_count").fetchone()[0]
    store.run(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="database or disk is full"):
        keep(store, *(Exchange(id=f"x{n}", started_at=0.0, request=os.urandom(5000)) for n in range(50)))
    store.run("PRAGMA max_page_count = 1000000")
    assert [exchange.id for exchange in store.exchanges()] == ["e1"]
    keep(store, Exchange(id="e3", started_at=3.0))
    assert store.count() == 2


def test_a_question_that_the_store_cannot_answer_is_our_error(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="no such column"):
        store.exchanges("colour = 1")
    with pytest.raises(StoreError, match="no such table"):
        store.rows("orders")
