"""The worker: nothing stops it, an outage is said once, and it ends when its relay does."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from stories import asked, mail

from gateway.domain.exchange import Begin, End, Usage
from gateway.errors import StoreError
from gateway.jobs import Repeated, Tended
from gateway.pipeline.locks import DISCOVERY_LOCK, TURN_LOCK, one_at_a_time
from gateway.restarts import count_restart, restarts
from gateway.stores.journal import JournalWriter
from gateway.stores.sqlite import SqliteStore


class Sometimes:
    """Work that fails with these errors, and then succeeds."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


def test_an_outage_is_told_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work = Repeated(Sometimes(None, *[StoreError("locked")] * 5), "recording", 0.2, 5.0)
    pauses = [work.once() for _ in range(8)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 0.2, 0.2])
    assert [record.message for record in caplog.records] == [
        "recording fails, and is tried again: locked",
        "recording works again",
    ]


def test_a_bug_is_told_with_its_traceback_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    work = Repeated(Sometimes(ZeroDivisionError("ours")), "the background jobs", 5.0, 300.0)
    assert work.once() == 10.0
    assert caplog.records[0].exc_info
    assert work.once() == 5.0


def test_pauses_grow_no_longer_than_said() -> None:
    work = Repeated(Sometimes(*[ValueError("x")] * 2000), "work", 5.0, 300.0)
    assert {work.once() for _ in range(2000)} == {10.0, 20.0, 40.0, 80.0, 160.0, 300.0}


# --- the process -----------------------------------------------------------------------------------------


class House:
    """A folder with a config, a journal as a relay writes it, and workers that are started and killed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config" / "gateway.yaml"
        self.file.parent.mkdir(parents=True)
        self.file.write_text(yaml.safe_dump({
            "store": {"url": f"sqlite:///{folder / 'data' / 'unprompt.db'}"},
            "jobs": {"poll_seconds": 0.1}, "tasks": {"default": {"min_rows": 100_000}},
        }))  # fmt: skip
        self.journal = JournalWriter(folder / "data" / "journal", segment_bytes=50_000)
        self.path = folder / "data" / "unprompt.db"
        self.sent = 0

    def record(self, count: int) -> None:
        import json

        texts = [text for text, _ in mail()]
        for _ in range(count):
            body = json.dumps(asked(texts[self.sent % len(texts)])).encode()
            key = f"x{self.sent:06}"
            self.journal.append(Begin(
                id=key, started_at=float(self.sent), method="POST", endpoint="/v1/chat/completions",
                provider="openai", route=None, task=None, task_hint="mail", model_requested="gpt-6", key_id=None,
                tags={}, request_headers={}, request=body,
            ))  # fmt: skip
            self.journal.append(End(
                id=key, target="openai/gpt-6", stripped=False, status=200, streamed=False, complete=True,
                error_type=None, latency_ms=1.0, ttft_ms=None, model_served="gpt-6", finish_reason="stop",
                usage=Usage(), cost_usd=None, attempts=[], response_headers={}, response=b"{}",
            ))  # fmt: skip
            self.sent += 1

    def worker(self, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gateway", "worker", "--config", str(self.file), *more]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def wait_for(self, where: str, count: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.path.exists() and SqliteStore(self.path).count(where) >= count:
                return
            time.sleep(0.05)
        raise AssertionError(f"{SqliteStore(self.path).count(where)} of {count} within 30 s")


def ended(worker: subprocess.Popen[bytes]) -> int:
    """Its exit status when its relay has died, however it did."""
    assert worker.stdin is not None
    worker.stdin.close()
    return worker.wait(10)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_what_is_recorded_gets_a_task_and_the_worker_ends_with_its_relay(house: House) -> None:
    house.record(40)
    worker = house.worker()
    house.wait_for("task IS NOT NULL", 40)
    house.record(5)
    house.journal.close()
    assert ended(worker) == 0
    assert SqliteStore(house.path).count() == 45
    assert not list(house.journal._folder.glob("*.journal"))


def test_during_a_training_what_comes_gets_a_task_all_the_same(house: House) -> None:
    """A training holds the turn, here for as long as the test likes."""
    with one_at_a_time(house.path.parent / TURN_LOCK, wait=False) as training:
        assert training
        house.record(40)
        worker = house.worker()
        house.wait_for("task IS NOT NULL", 40)
        assert ended(worker) == 0


def test_while_a_command_looks_for_templates_itself_the_worker_does_not(house: House) -> None:
    with one_at_a_time(house.path.parent / DISCOVERY_LOCK, wait=False) as mine:
        assert mine
        house.record(40)
        worker = house.worker()
        house.wait_for("complete = 1", 40)
        time.sleep(0.5)
        assert SqliteStore(house.path).count("looked_at = 0") == 40
    house.wait_for("task IS NOT NULL", 40)
    worker.kill()
    worker.wait(10)


def test_killed_again_and_again_it_loses_nothing_and_doubles_nothing(house: House) -> None:
    for _ in range(3):
        house.record(60)
        worker = house.worker()
        house.wait_for("1", house.sent - 50)
        worker.kill()
        worker.wait(10)
    house.record(1)
    worker = house.worker("--record-only")
    house.wait_for("complete = 1", 181)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    store = SqliteStore(house.path)
    assert sorted(one.id for one in store.exchanges()) == [f"x{n:06}" for n in range(181)]


def test_record_only_looks_for_no_tasks(house: House) -> None:
    house.record(40)
    worker = house.worker("--record-only")
    house.wait_for("1", 40)
    time.sleep(0.4)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(10) == 0
    assert SqliteStore(house.path).count("looked_at = 0") == 40


def test_a_store_that_is_locked_is_waited_for(house: House) -> None:
    import sqlite3

    SqliteStore(house.path).close()
    busy = sqlite3.connect(house.path, isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    house.record(40)
    worker = house.worker()
    time.sleep(1.5)
    assert worker.poll() is None
    busy.execute("ROLLBACK")
    house.wait_for("task IS NOT NULL", 40)
    worker.kill()
    worker.wait(10)


# --- threads that die --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is the story
def test_a_thread_that_dies_is_started_again_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    lives: list[str] = []
    dead: list[str] = []
    at_work = threading.Event()

    def life() -> None:
        lives.append(threading.current_thread().name)
        if len(lives) < 3:
            raise SystemExit  # what no 'except Exception' stops
        at_work.set()
        threading.Event().wait(5)

    tended = Tended("recorder", life, dead.append)
    until = time.monotonic() + 10
    while not at_work.is_set() and time.monotonic() < until:
        tended.look_after()
        time.sleep(0.01)
    tended.look_after()
    assert lives == ["recorder"] * 3
    assert dead == ["recorder"] * 2
    assert [record.message.partition(";")[0] for record in caplog.records] == ["the thread of recorder died"] * 2
    assert tended.wait(0.01) is False  # the third one lives


def test_restarts_are_counted_on_and_on(tmp_path: Path) -> None:
    journal = tmp_path / "data" / "journal"
    assert restarts(journal) == {}
    count_restart(journal, "jobs")
    count_restart(journal, "recorder")
    count_restart(journal, "jobs")
    assert restarts(journal) == {"jobs": 2, "recorder": 1}
    (journal / "restarts.json").write_bytes(b"{torn")
    assert restarts(journal) == {}


DYING = """
import sys
from pathlib import Path
from gateway.app import Places
from gateway.config import load_config
from gateway.jobs import Worker
config = load_config(Path(sys.argv[1]))
Worker(config, Places.of(config).journal, lambda: sys.exit("a thread ends here"), jobs=True).run()
"""


def test_jobs_that_end_their_thread_again_and_again_hold_up_no_recording(house: House) -> None:
    house.record(20)
    worker = subprocess.Popen([sys.executable, "-c", DYING, str(house.file)], stdin=subprocess.PIPE)
    house.wait_for("complete = 1", 20)
    journal = house.path.parent / "journal"
    until = time.monotonic() + 20
    while restarts(journal).get("jobs", 0) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert set(restarts(journal)) <= {"jobs", "watch"}
    house.record(5)
    house.wait_for("complete = 1", 25)
    assert ended(worker) == 0
