"""Cases 36 to 43: the disk is full or cannot be written, the store is locked, broken or gone, the worker dies, the
clock jumps. Faults are put on the real process, and taken off again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from relaying import CHAT, Upstream, Wire, answering, request, response, story, upstream

from faults.serving import DONE, EVENT, STREAM, Served, chunk, commandline, eventually, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses prlimit and /proc")

SPOOLED = 'unprompt_log_records_total{result="spooled"}'
DROPPED = 'unprompt_log_records_total{result="dropped"}'
FAIL_CLOSED = {"on_failure": "fail_closed"}


async def numbered(told: Upstream, wire: Wire) -> None:
    """Every answer is its request, so that none can pass for another; the ones named stream are streamed."""
    while True:
        asked = (await told.asked(wire)).body
        body = b'{"answer":' + asked + b"}"
        if b"stream" not in asked:
            await wire.send(response(body))
        else:
            await wire.send(STREAM + chunk(b"data: " + body + b"\n\n") + chunk(DONE) + b"0\r\n\r\n")


def expected(asked: bytes) -> bytes:
    body = b'{"answer":' + asked + b"}"
    return b"data: " + body + b"\n\n" + DONE if b"stream" in asked else body


async def ask(served: Served, numbers: range) -> set[bytes]:
    """Some requests, plain and streamed; all must be answered. Gives their bodies."""
    asked = {b'{"n":%d%b}' % (number, b',"stream":true' if number % 2 else b"") for number in numbers}
    for body in sorted(asked):
        answer = await served.ask(request(body))
        assert (answer.status, answer.body, answer.complete) == (200, expected(body), True)
    return asked


def assert_recorded_once(served: Served, asked: set[bytes]) -> None:
    rows = served.rows()
    assert sorted(row.request for row in rows) == sorted(asked)
    assert {(row.complete, row.response == expected(row.request)) for row in rows} == {(True, True)}
    assert [*served.journal.glob("*.torn"), *served.journal.glob("*.poison")] == []


# --- the disk ----------------------------------------------------------------------------------------


@story
async def test_a_full_disk_stops_nobody_and_everything_is_there_afterwards(tmp_path: Path) -> None:
    """`fail_open`: no file of the relay may grow any more (RLIMIT_FSIZE), then it may again."""
    async with upstream(numbered) as up, serving(tmp_path, up) as served:
        asked = await ask(served, range(20))
        served.limit(resource.RLIMIT_FSIZE, 0)
        asked |= await ask(served, range(20, 60))
        assert not await served.ready()
        assert await served.metric(SPOOLED) >= 80
        served.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        assert await served.ready_again(5)  # by itself, without any request
        asked |= await ask(served, range(60, 70))
        await served.recorded(70)
        assert_recorded_once(served, asked)
        assert await served.metric(DROPPED) == 0


@story
async def test_a_disk_that_fills_up_within_a_record_leaves_no_torn_one(tmp_path: Path) -> None:
    """The limit falls into the middle of a record, again and again."""
    async with upstream(numbered) as up, serving(tmp_path, up) as served:
        asked = await ask(served, range(4))
        for start_ in range(4, 64, 6):
            size = max((file.stat().st_size for file in served.journal.glob("*.journal")), default=0)
            served.limit(resource.RLIMIT_FSIZE, size + 150 + 7 * start_)
            asked |= await ask(served, range(start_, start_ + 6))
            served.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
            await asyncio.sleep(0.05)
        await served.recorded(64)
        assert_recorded_once(served, asked)


@story
async def test_who_chose_fail_closed_gets_503_while_the_disk_is_full_and_nobody_is_asked(tmp_path: Path) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up, capture=FAIL_CLOSED) as served:
        asked = await ask(served, range(5))
        served.limit(resource.RLIMIT_FSIZE, 0)
        for _ in range(5):
            answer = await served.ask(request(b'{"refused":1}'))
            assert (answer.status, answer.header(b"x-unprompt-error")) == (503, b"store_unavailable")
            assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert len(up.requests) == 5
        served.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        asked |= await ask(served, range(5, 10))
        await served.recorded(10)
        assert_recorded_once(served, asked)


@story
async def test_an_answer_under_way_when_the_disk_fills_is_finished_and_recorded_later(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(EVENT))
        await released.wait()
        await wire.send(chunk(DONE) + b"0\r\n\r\n")

    async with upstream(script) as up, serving(tmp_path, up, capture=FAIL_CLOSED) as served:
        wire = await served.connect()
        await wire.send(request(CHAT))
        await wire.until(b"hi")
        served.limit(resource.RLIMIT_FSIZE, 0)
        released.set()
        assert DONE in await wire.until(b"0\r\n\r\n")
        served.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        row = (await served.recorded(1))[0]
        assert (row.complete, row.response) == (True, EVENT + DONE)
        wire.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB that only this test uses."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Take all the room that there is on its file system."""
    with file.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while opened.write(b"x" * 4096):
            pass


@story
async def test_a_file_system_that_is_really_full_is_waited_for(tmp_path: Path, small_disk: Path) -> None:
    """ENOSPC for the journal and for the store, in relay and worker."""
    async with upstream(numbered) as up, serving(small_disk / "home", up) as served:
        asked = await ask(served, range(10))
        await served.recorded(10)
        filler = small_disk / "filler"
        fill(filler)
        asked |= await ask(served, range(10, 60))
        filler.unlink()
        await served.recorded(60)
        assert_recorded_once(served, asked)


@story
async def test_a_read_only_file_system_is_waited_for(tmp_path: Path, small_disk: Path) -> None:
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True, capture_output=True)

    async with upstream(numbered) as up, serving(tmp_path / "home", up) as served:
        asked = await ask(served, range(5))
        await served.recorded(5)
    shutil.move(tmp_path / "home" / "data", small_disk / "data")
    (tmp_path / "home" / "data").symlink_to(small_disk / "data")
    async with upstream(numbered) as up:
        remount("ro")
        try:
            async with serving(tmp_path / "home", up) as served:
                asked |= await ask(served, range(5, 25))
                assert not await served.ready()
                remount("rw")
                await served.recorded(25)
                assert await served.ready_again()
                assert_recorded_once(served, asked)
        finally:
            remount("rw")


@story
async def test_a_journal_that_somebody_deletes_is_written_again_within_the_sync_window(tmp_path: Path) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up, store={"sync_ms": 200}) as served:
        asked = await ask(served, range(6))
        await served.recorded(6)
        shutil.rmtree(served.journal)
        asked |= await ask(served, range(6, 8))  # these are in a file that has no name any more
        await served.recorded(8)
        assert "deleted" in served.log
        asked |= await ask(served, range(8, 20))
        await served.recorded(20)
        assert_recorded_once(served, asked)
        assert await served.ready_again()


BAD_DISK = """
    import errno, os, pathlib
    _fsync = os.fsync

    def fsync(file):
        if pathlib.Path(os.environ["BAD_DISK"]).exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return _fsync(file)

    os.fsync = os.fdatasync = fsync
"""


def patched(folder: Path, source: str, **variables: str) -> dict[str, str]:
    """The environment in which every Python process begins by running this source."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(source))
    return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", **variables}


@story
async def test_a_disk_that_cannot_force_a_record_down_is_waited_for(tmp_path: Path) -> None:
    """`store.sync_ms: 0`, where a record is only written when it is on the disk; fsync says EIO for a while."""
    bad = tmp_path / "bad"
    environment = patched(tmp_path / "site", BAD_DISK, BAD_DISK=str(bad))
    async with (
        upstream(numbered) as up,
        serving(tmp_path / "home", up, environment=environment, store={"sync_ms": 0}) as served,
    ):
        asked = await ask(served, range(4))
        bad.touch()
        asked |= await ask(served, range(4, 20))
        assert not await served.ready()
        assert await served.metric(SPOOLED) >= 32
        bad.unlink()
        await served.recorded(20)
        assert_recorded_once(served, asked)
        assert await served.ready_again()


@story
async def test_an_fsync_that_fails_raises_the_alarm_until_one_succeeds(tmp_path: Path) -> None:
    bad, failures = tmp_path / "bad", "unprompt_log_sync_failures_total"
    environment = patched(tmp_path / "site", BAD_DISK, BAD_DISK=str(bad))
    async with (
        upstream(numbered) as up,
        serving(tmp_path / "home", up, environment=environment, store={"sync_ms": 100}) as served,
    ):
        asked = await ask(served, range(5))
        assert await served.ready()
        assert await served.metric(failures) == 0
        bad.touch()
        asked |= await ask(served, range(5, 15))
        assert await eventually(lambda: "cannot be forced to the disk" in served.log, 3)
        assert not await served.ready()
        assert await served.metric(failures) >= 1
        bad.unlink()
        assert await eventually(lambda: "can be forced to the disk again" in served.log, 5)  # without any request
        assert await served.ready()
        asked |= await ask(served, range(15, 20))
        await served.recorded(20)
        assert_recorded_once(served, asked)


# --- the store ---------------------------------------------------------------------------------------


@story
async def test_a_store_that_another_process_locks_holds_up_no_answer_and_loses_nothing(tmp_path: Path) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up) as served:
        asked = await ask(served, range(4))
        await served.recorded(4)
        hold = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute('BEGIN EXCLUSIVE')"
        holder = subprocess.Popen(
            [sys.executable, "-c", hold + "; print('locked', flush=True); sys.stdin.read()", str(served.store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        started = time.monotonic()
        asked |= await ask(served, range(4, 60))
        assert time.monotonic() - started < 3
        assert await eventually(lambda: any(served.journal.glob("*.journal")))
        await asyncio.sleep(2)
        assert sqlite3.connect(served.store, timeout=0).execute("SELECT count(*) FROM exchanges").fetchone() == (4,)
        holder.communicate()
        await served.recorded(60)
        assert_recorded_once(served, asked)


@story
async def test_a_store_that_is_no_database_any_more_stops_no_traffic_and_costs_no_record_since(
    tmp_path: Path,
) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up, clean=False) as served:
        await ask(served, range(4))
        await served.recorded(4)
        worker = served.worker()
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        for file in served.store.parent.glob("unprompt.db*"):
            file.unlink()
        served.store.write_bytes(b"this is no database" * 500)
        os.kill(worker, signal.SIGKILL)
        later = await ask(served, range(4, 24))
        assert await eventually(lambda: "not a database" in served.log)
        assert await served.metric("unprompt_log_spool_bytes") > 1000  # it can be seen
        served.store.rename(served.store.with_suffix(".broken"))  # what the operator does
        await served.recorded(20)
        assert later <= {row.request for row in served.rows()}


@story
async def test_a_table_that_was_dropped_is_an_outage_and_not_a_loss(tmp_path: Path) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up, clean=False) as served:
        await ask(served, range(4))
        await served.recorded(4)
        with sqlite3.connect(served.store, timeout=10) as meddler:
            meddler.execute("ALTER TABLE exchange_rows RENAME TO rows_gone")
        later = await ask(served, range(4, 24))
        await asyncio.sleep(1)
        with sqlite3.connect(served.store, timeout=10) as meddler:
            meddler.execute("ALTER TABLE rows_gone RENAME TO exchange_rows")
        await served.recorded(24)
        assert later <= {row.request for row in served.rows()}
        assert [*served.journal.glob("*.poison")] == []


# --- the worker, and the records themselves ----------------------------------------------------------------


@story
async def test_a_worker_that_is_killed_is_back_in_seconds_and_nothing_is_missing(tmp_path: Path) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up) as served:
        asked = await ask(served, range(6))
        assert await eventually(lambda: served.worker() is not None)
        for round_ in range(2):
            worker = served.worker()
            assert worker is not None
            os.kill(worker, signal.SIGKILL)
            asked |= await ask(served, range(10 + 10 * round_, 20 + 10 * round_))

            def another(gone: int = worker) -> bool:
                return served.worker() not in (None, gone)

            assert await eventually(another, 10)
        await served.recorded(26)
        assert_recorded_once(served, asked)
        assert "the worker ended with code -9" in served.log


@story
async def test_a_relay_that_is_killed_takes_its_worker_along_after_the_last_record(tmp_path: Path) -> None:
    async with upstream(numbered) as up, serving(tmp_path, up) as served:
        assert await eventually(lambda: served.worker() is not None)
        worker = served.worker()
        assert worker is not None
        asked = await ask(served, range(30))
        served.signal(signal.SIGKILL)
        await served.ended()
        assert await eventually(lambda: b"worker" not in commandline(worker))
        assert_recorded_once(served, asked)


@story
async def test_records_of_odd_values_stop_no_other_and_are_counted(tmp_path: Path) -> None:
    odd = [
        (b"x-unprompt-tags: a=\xff\xfe,b=\xed\xa0\x80,\x80=1", b"x-unprompt-task: \xff"),
        (b"x-unprompt-tags: " + b",".join(b"k%d=v" % n for n in range(3_000)),),
        (b"User-Agent: \xff\xfe \xf0\x9f\x98\x80", b"X-Request-Id: \xc3\x28"),
        (b"x-unprompt-task: " + b"\xe6\xbc\xa2" * 300,),
    ]
    huge = b'{"model":"gpt-6","id":"x","usage":{"prompt_tokens":99999999999999999999,"completion_tokens":-5}}'
    async with upstream(answering(response(huge))) as up, serving(tmp_path, up) as served:
        for headers in odd:
            assert (await served.ask(request(CHAT, *headers))).body == huge
        named = CHAT.replace(b"gpt-6-luna", b"\\ud800\\u0000")
        assert (await served.ask(request(named))).body == huge
        rows = await served.recorded(5)
        poisoned = await served.metric('unprompt_log_records_total{result="poison"}')
        assert len(rows) + poisoned == 5
        assert {row.response for row in rows} == {huge}
        assert poisoned == 0


# --- the clock ------------------------------------------------------------------------------------------------

JUMPING = """
    import os, pathlib, time
    _time, _time_ns = time.time, time.time_ns
    _file = pathlib.Path(os.environ["CLOCK_OFFSET"])
    time.time = lambda: _time() + float(_file.read_text())
    time.time_ns = lambda: _time_ns() + int(float(_file.read_text()) * 1e9)
"""


@story
async def test_whatever_the_clock_does_durations_are_true_and_the_order_stays(tmp_path: Path) -> None:
    """The wall clock of relay and worker jumps an hour back and forth, within an answer, too."""
    offset = tmp_path / "offset"
    environment = patched(tmp_path / "site", JUMPING, CLOCK_OFFSET=str(offset))

    def jump(seconds: float) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(str(seconds))
        fresh.replace(offset)

    async def slow(told: Upstream, wire: Wire) -> None:
        while True:
            asked = (await told.asked(wire)).body
            await wire.send(STREAM + chunk(EVENT))
            await asyncio.sleep(0.05)
            jump({b"2": -3600.0, b"4": 3600.0, b"6": 0.0}.get(asked, float(offset.read_text())))
            await asyncio.sleep(0.05)
            await wire.send(chunk(DONE) + b"0\r\n\r\n")

    jump(0.0)
    async with upstream(slow) as up, serving(tmp_path / "home", up, environment=environment) as served:
        ids = [(await served.ask(request(b"%d" % number))).header(b"x-unprompt-exchange") for number in range(9)]
        rows = {row.id.encode(): row for row in await served.recorded(9)}
        assert [rows[each or b""].request for each in ids] == [b"%d" % number for number in range(9)]
        assert all(80 < (row.latency_ms or 0) < 2_000 for row in rows.values())
        assert all(0 < (row.ttft_ms or 0) < 2_000 for row in rows.values())
        assert sorted(rows) == ids  # in the order in which they came
        jumps = [rows[each or b""].started_at for each in ids]
        assert jumps[3] - jumps[2] < -3_000  # it did jump: what the wall clock said is recorded as it was
        assert jumps[5] - jumps[4] > 6_000
        assert await served.metric("unprompt_log_lag_seconds") < 60
        assert (await served.ask(request(b"9"))).status == 200


# --- what is not to be kept -----------------------------------------------------------------------------------


@story
async def test_what_is_not_to_be_kept_never_touches_the_disk(tmp_path: Path) -> None:
    """Not even in the journal: it is read while the worker, which would move it on, stands still."""
    async with upstream(answering(response(b'{"said":"a-private-answer"}'))) as up, serving(tmp_path, up) as served:
        await served.ask(request(CHAT))
        await served.recorded(1)
        worker = served.worker()
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        private = CHAT.replace(b'"hi"', b'"a-private-question"')
        key = b"Authorization: Bearer sk-canary-key-4711"
        for wanted in (b"off", b"metadata"):
            assert (
                b"a-private-answer" in (await served.ask(request(private, key, b"x-unprompt-log: " + wanted))).body
            )
        await served.ask(request(CHAT, key))
        written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        os.kill(worker, signal.SIGCONT)
        assert b"chat/completions" in written
        assert b"a-private-question" not in written
        assert b"sk-canary-key-4711" not in written
        rows = await served.recorded(3)
        assert [row.request for row in rows].count(CHAT) == 2
