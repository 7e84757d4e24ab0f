"""Deleting is for good: what was deleted is in no file any more, and what was kept is as it was."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from halves import begin, end

from gateway.domain.dataset import Dataset
from gateway.domain.exchange import Exchange
from gateway.domain.finetune import FineTune
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.stores import journal
from gateway.stores.blocks import Block
from gateway.stores.journal import JournalWriter, encode
from gateway.stores.pruning import Criteria, Pruned, prune
from gateway.stores.recorder import Recorder
from gateway.stores.space import checkpoint
from gateway.stores.sqlite import SqliteStore

CANARY = "Marta-Muster-0815"
TEMPLATE = PromptTemplate(
    "mail", 1, (MessagePattern("user", (TextPattern(("Sort: ", ""), (Slot("message"),)),)),)
)  # fmt: skip
FIXED = " ".join(f"If it is about {7919 * n % 104729:x}, answer {6007 * n % 99991:x}." for n in range(60))


class House:
    """A data folder with everything in it that may hold a text."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.journal = home / "journal"
        self.writer = JournalWriter(self.journal)
        self.store = SqliteStore(home / "unprompt.db")
        self.recorder = Recorder(self.journal, self.store)

    def record(self, *numbers: int, text: str = "hello", tags: dict[str, str] | None = None) -> None:
        for number in numbers:
            self.writer.append(begin(number, request=asked(number, text), tags=tags or {}))
            self.writer.append(end(number, response=f"you said {text} {number}".encode()))

    def prune(self, dry_run: bool = False, **criteria: Any) -> Pruned:
        self.recorder.drain()
        return prune(self.store, self.journal, Criteria(**criteria), dry_run=dry_run, rest=lambda _: None)

    def files_with(self, text: str) -> list[str]:
        """The names of all files in which these bytes stand."""
        files = (file for file in self.home.rglob("*") if file.is_file())
        return sorted(file.name for file in files if text.encode() in file.read_bytes())

    def bodies_with(self, text: str) -> list[bytes]:
        """All bodies in blocks, also those that no row refers to, in which these bytes stand."""
        blocks = [Block(*row) for row in self.store.run("SELECT first, body FROM blocks").fetchall()]
        return [body for block in blocks for body, _ in block.contents() if text.encode() in body]

    def dataset(self, name: str, *rows: str) -> Path:
        """A dataset with rows of these exchanges, as the pipeline writes it."""
        folder = self.home / "datasets" / "mail" / name
        folder.mkdir(parents=True)
        lines = [{"exchange_id": row, "text": f"{CANARY} or another"} for row in rows]
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "train.jsonl").write_text(f'{{"messages": "{CANARY}"}}\n')
        self.store.add_template(TEMPLATE)
        self.store.add_dataset(Dataset(
            id=name, task="mail", template="mail@1", rows=[], directory=str(folder.relative_to(self.home)),
            digest="", card={"samples": [CANARY]},
        ))  # fmt: skip
        return folder


def asked(number: int, text: str) -> bytes:
    return json.dumps({"system": FIXED, "user": f"message {number}: {text}"}).encode()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def ids(house: House) -> list[str]:
    return [one.id for one in house.store.exchanges()]


def test_after_a_prune_the_text_is_in_no_file_and_the_rest_is_as_it_was(house: House) -> None:
    """The canary is in blocks beside what is kept, in feedback, a dataset, a live journal segment, a record put
    aside and a torn one."""
    for number in range(300):
        house.record(number, text=CANARY if number % 3 == 0 else "plain", tags={"user": f"u{number % 3}"})
        if number % 50 == 49:
            house.recorder.drain()
    assert len(house.bodies_with(CANARY)) == 200
    house.store.put("feedback", {"id": "f1", "exchange_id": "e000003", "comment": CANARY, "created_at": 1.0})
    house.store.put("feedback", {"id": "f2", "exchange_id": "e000001", "comment": "kept", "created_at": 1.0})
    house.dataset("with", "e000003", "e000001")
    other = begin(900, request=CANARY.encode(), tags={"user": "u0"})
    (house.journal / "1.poison").write_bytes(encode(other) + encode(begin(901, tags={"user": "u1"})))
    (house.journal / "2.torn").write_bytes(encode(other)[:-1])
    house.record(303, text=CANARY, tags={"user": "u0"})  # only in the journal so far
    before = {one.id: one for one in house.store.exchanges()}
    assert checkpoint(house.store)
    assert {"1.poison", "2.torn", "train.jsonl", "unprompt.db"} <= set(house.files_with(CANARY))

    done = house.prune(tags={"user": "u0"})

    assert (done.exchanges, done.datasets, done.left) == (101, ["with"], [])
    assert house.files_with(CANARY) == []
    assert house.bodies_with(CANARY) == []
    kept = house.store.exchanges()
    assert kept == [one for key, one in before.items() if int(key[1:]) % 3]
    assert [row["comment"] for row in house.store.rows("feedback")] == ["kept"]
    assert (house.journal / "1.poison").read_bytes() == encode(begin(901, tags={"user": "u1"}))
    assert not (house.journal / "2.torn").exists()
    assert house.store.records("SELECT * FROM deletions") == []
    house.record(500)
    house.recorder.drain()  # the writer's segment goes on where it was
    assert ids(house)[-1] == "e000500"
    house.writer.close()
    house.recorder.drain()
    assert journal.segments(house.journal) == []


def test_by_age_by_id_and_by_both(house: House) -> None:
    house.record(*range(10))  # started at 1000 + their number
    assert house.prune(before=1003.0).exchanges == 3
    assert house.prune(ids=("e000005", "e000001", "nobody")).exchanges == 1
    assert house.prune(ids=("e000006", "e000009"), before=1007.0).exchanges == 1
    assert ids(house) == ["e000003", "e000004", "e000007", "e000008", "e000009"]


def test_by_size_the_oldest_go_and_the_file_becomes_smaller(house: House) -> None:
    for number in range(1500):
        house.writer.append(begin(number, request=os.urandom(2000)))
    house.recorder.drain()
    done = house.prune(most_bytes=1_000_000)
    kept = ids(house)
    assert kept[-1] == "e001499"
    assert kept == [f"e{number:06}" for number in range(1500 - len(kept), 1500)]
    assert done.bytes_after <= 1_000_000 < done.bytes_before
    assert house.store.path.stat().st_size < 1_100_000
    assert house.store.path.with_name("unprompt.db-wal").stat().st_size == 0
    assert house.prune(most_bytes=1_000_000).exchanges == 0


def test_a_dry_run_counts_and_changes_nothing(house: House) -> None:
    house.record(*range(10))
    assert house.prune(dry_run=True, before=1004.0).exchanges == 4
    assert house.prune(dry_run=True, tags={"no": "such"}).exchanges == 0
    assert len(ids(house)) == 10


def test_a_prune_that_died_is_finished_by_the_next_one(house: House) -> None:
    house.record(1, text=CANARY)
    house.record(2)
    house.recorder.drain()
    house.dataset("with", "e000001")

    def power_cut(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(house.store, house.journal, Criteria(ids=("e000001",)), rest=power_cut)
    assert ids(house) == ["e000002"]
    assert house.files_with(CANARY) != []
    assert house.prune(before=0.0).datasets == ["with"]
    assert house.files_with(CANARY) == []


def test_a_dataset_without_deleted_rows_stays_and_one_with_a_model_says_so(house: House) -> None:
    house.record(1, 2)
    stays, goes = house.dataset("stays", "e000002"), house.dataset("goes", "e000001")
    house.store.save_finetune(
        FineTune(id="ft-1", task="mail", dataset="goes", trainer="classifier", options={}, created_at=5.0)
    )
    done = house.prune(ids=("e000001",))
    assert (done.datasets, done.models) == (["goes"], ["ft-1"])
    assert (stays.is_dir(), goes.exists()) == (True, False)
    assert [(row["id"], row["card"]) for row in house.store.rows("datasets") if row["id"] == "goes"] == [
        ("goes", "{}")
    ]
    assert house.prune(ids=("e000001",)).datasets == []  # and once more: nothing else is deleted


def test_free_pages_are_given_back_many_at_a_time(house: House) -> None:
    for number in range(400):
        house.writer.append(begin(number, request=os.urandom(20_000)))
    house.recorder.drain()
    pauses: list[float] = []
    done = prune(house.store, house.journal, Criteria(before=5000.0), rest=pauses.append)
    assert done.bytes_before - done.bytes_after > 450 * 16_384
    assert len(pauses) < 50


def test_recording_waits_for_no_prune(house: House) -> None:
    """Another recorder moves its records between a prune's transactions."""
    house.record(*range(3000))
    house.recorder.drain()
    other = Recorder(house.journal, SqliteStore(house.store.path))
    waited: list[float] = []

    def beside(_: float) -> None:
        house.record(3000 + len(waited))
        start = time.monotonic()
        assert other.drain() == 2
        waited.append(time.monotonic() - start)

    prune(house.store, house.journal, Criteria(before=3500.0), rest=beside)
    assert len(waited) > 4
    assert max(waited) < 2.0
    assert ids(house)[:500] == [f"e{number:06}" for number in range(2500, 3000)]
    assert ids(house)[500:] == [f"e{number:06}" for number in range(3000, 3000 + len(waited))]


def test_counters_follow(house: House) -> None:
    house.store.add_template(TEMPLATE)
    house.record(*range(20))
    house.recorder.drain()
    house.store.assign({f"e{number:06}": ("mail", 1) if number < 15 else None for number in range(20)})
    house.prune(before=1005.0)
    assert [(row["exchanges"], house.store.answered_count("mail")) for row in house.store.tasks()] == [(10, 10)]
    house.prune(ids=("e000019",))
    assert house.store.unexplained_count() == 4


def test_a_file_of_an_earlier_release_is_rewritten_on_demand(tmp_path: Path) -> None:
    """It keeps what is deleted from it as free pages until then; their content is overwritten at once."""
    import sqlite3

    from gateway.stores.migrations import migrations

    file = tmp_path / "unprompt.db"
    old = sqlite3.connect(file)
    scripts = migrations()
    for number in (1, 2):
        old.executescript("".join(scripts[number]))
    for number in range(500):
        old.execute(
            "INSERT INTO exchanges (id, started_at, provider, method, endpoint, request, task)"
            " VALUES (?, ?, 'openai', 'POST', '/v1', ?, 'mail')",
            (f"e{number:06}", 1000.0 + number, CANARY.encode() * 100),
        )
    old.execute("PRAGMA user_version = 2")
    old.commit()
    old.close()
    house = House(tmp_path)
    assert house.store.exchange("e000400") == Exchange(
        id="e000400",
        started_at=1400.0,
        provider="openai",
        endpoint="/v1",
        request=CANARY.encode() * 100,
        task="mail",
    )
    done = house.prune(before=1490.0)
    assert (done.exchanges, len(done.left)) == (490, 1)
    assert "writes it anew" in done.left[0]
    size = file.stat().st_size
    again = prune(house.store, house.journal, Criteria(before=1491.0), rewrite=True)
    assert (again.exchanges, again.left) == (1, [])
    assert file.stat().st_size < size / 4
    assert len(ids(house)) == 9
    assert house.prune(before=5000.0).left == []
    assert house.files_with(CANARY) == []


def test_an_answer_that_comes_after_its_request_was_deleted_is_not_kept(house: House) -> None:
    house.writer.append(begin(1))
    house.prune(ids=("e000001",))
    house.writer.append(end(1, response=CANARY.encode()))
    house.recorder.drain()
    assert ids(house) == []


def test_a_prune_beside_a_second_writer_gives_the_room_back(house: House) -> None:
    """Every other row goes, from all over the file, while another process records: what is left takes half."""
    other = Recorder(house.journal, SqliteStore(house.store.path))
    for number in range(2000):
        house.writer.append(begin(number, request=os.urandom(1500), tags={"user": f"u{number % 2}"}))
    house.recorder.drain()
    assert checkpoint(house.store)
    before = house.store.path.stat().st_size
    added: list[int] = []

    def beside(_: float) -> None:
        added.append(5000 + len(added))
        house.writer.append(begin(added[-1], request=b"{}"))
        assert other.drain() == 1

    done = prune(house.store, house.journal, Criteria(tags={"user": "u1"}), rest=beside)
    assert (done.exchanges, done.left) == (1000, [])
    assert len(added) > 1
    assert house.store.path.stat().st_size < before * 0.65
    assert house.prune(tags={"user": "u0"}).exchanges == 1000
    assert house.store.path.stat().st_size < before * 0.15


def test_the_struct_of_what_was_done_is_json() -> None:
    assert json.loads(msgspec.json.encode(Pruned(exchanges=1)))["exchanges"] == 1


def test_a_copy_that_came_after_its_original_was_deleted_goes_with_the_next_prune(tmp_path: Path) -> None:
    """An audit was under way while somebody deleted the request that it repeats."""
    house = House(tmp_path)
    house.record(1, text=CANARY)
    house.record(2)
    assert house.prune(ids=("e000001",)).exchanges == 1
    house.writer.append(begin(3, request=asked(1, CANARY), copy_of="e000001"))
    house.writer.append(end(3))
    house.writer.append(begin(4, request=asked(2, "hello"), copy_of="e000002"))
    house.writer.append(end(4))
    assert house.prune(before=1.0).exchanges == 1
    assert {row[0] for row in house.store.run("SELECT id FROM exchanges")} == {"e000002", "e000004"}
    assert house.bodies_with(CANARY) == []


def test_a_copy_whose_original_may_still_come_is_left(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.writer.append(begin(3, started_at=time.time(), copy_of="e000001"))
    house.writer.append(end(3))
    assert house.prune(before=1.0).exchanges == 0
    assert house.store.count() == 1
