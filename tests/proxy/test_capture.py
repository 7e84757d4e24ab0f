"""P2 against power failure: what could not be forced to the disk is not kept secret."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from halves import Reader, begin, end
from relaying import soon, story

from gateway.domain.exchange import Begin, End
from gateway.errors import StoreUnavailable
from gateway.proxy.capture import Capture
from gateway.stores import journal
from gateway.stores.journal import JournalWriter, Record
from gateway.upstreams.outbox import Outbox


@contextlib.asynccontextmanager
async def capturing(folder: Path, counted: list[str]) -> AsyncIterator[Capture]:
    """With its syncs, twenty times a second."""
    writers = JournalWriter(folder, sync_ms=50), JournalWriter(folder, sync_ms=50, large=True)
    capture = Capture(*writers, fail_closed=False, count=counted.append, sync_ms=50)
    syncing = asyncio.create_task(capture.keep_synced())
    try:
        yield capture
    finally:
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
        capture.close()


def bad(_file: int) -> None:
    """What fsync says of a disk that is."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def put_aside(capture: Capture, record: Begin) -> None:
    written = asyncio.Event()

    def then(_outcome: Record | StoreUnavailable) -> None:
        written.set()

    capture.aside(lambda: record, then)
    await asyncio.wait_for(written.wait(), 10)


async def write(capture: Capture, record: Begin) -> None:
    if len(record.request) < 1_000_000:
        capture.begin(record)
    else:
        await put_aside(capture, record)


@pytest.mark.parametrize("body", [b"small", b"large" * 400_000])
@story
async def test_a_failing_sync_is_told_until_one_succeeds_with_or_without_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr("gateway.proxy.capture.RESYNC_SECONDS", 0.05)
    counted: list[str] = []
    one, two = begin(1, request=body), begin(2, request=body)
    async with capturing(tmp_path, counted) as capture:
        with monkeypatch.context() as disk:
            disk.setattr("os.fsync", bad)
            await write(capture, one)
            assert await soon(lambda: not capture.healthy)
            assert capture.trouble == "the journal cannot be forced to the disk: Input/output error"
            assert await soon(lambda: counted.count("unsynced") > 3)
            assert not capture.healthy
        assert await soon(lambda: capture.healthy)
        failures = counted.count("unsynced")
        await write(capture, two)
        await asyncio.sleep(0.2)
        assert capture.healthy
        assert (counted.count("unsynced"), counted.count("written")) == (failures, 2)
        found = [Reader().read(segment, 0)[0] for segment in journal.segments(tmp_path)]
        assert [records for records in found if records] == [[one], [two]]  # in two segments


@story
async def test_a_disk_that_is_bad_to_the_end_does_not_stop_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with capturing(tmp_path, []) as capture:
        monkeypatch.setattr("os.fsync", bad)
        capture.begin(begin(1))
    assert "cannot be forced to the disk: Input/output error" in caplog.text
    assert Reader().read(journal.segments(tmp_path)[0], 0)[0] == [begin(1)]


def records(folder: Path) -> list[Record]:
    found = [Reader().read(segment, 0)[0] for segment in journal.segments(folder)]
    return [record for records in found for record in records if isinstance(record, Begin | End)]


@story
async def test_the_records_of_a_turn_are_written_at_once_before_anything_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, counted, writes, real = Outbox(), list[str](), list[int](), os.write
    writers = JournalWriter(tmp_path), JournalWriter(tmp_path, large=True)
    capture = Capture(*writers, fail_closed=False, count=counted.append, sync_ms=1000, outbox=outbox)

    def write(file: int, data: bytes) -> int:
        writes.append(len(data))
        return real(file, data)

    with monkeypatch.context() as disk:
        disk.setattr("os.write", write)
        for number in (1, 2, 3):
            capture.begin(begin(number))
        capture.end(end(1))
        assert (writes, counted) == ([], [])
        outbox.flush()  # what sends anything calls this
    assert len(writes) == 1
    assert counted == ["written"] * 4
    assert records(tmp_path) == [begin(1), begin(2), begin(3), end(1)]
    capture.begin(begin(4))
    await asyncio.sleep(0)  # at the end of the turn, also where nothing is sent
    assert records(tmp_path)[4:] == [begin(4)]
    capture.close()


@story
async def test_of_records_that_do_not_fit_together_as_many_as_fit_are_written_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, counted, real = Outbox(), list[str](), os.write
    writers = JournalWriter(tmp_path), JournalWriter(tmp_path, large=True)
    capture = Capture(*writers, fail_closed=False, count=counted.append, sync_ms=1000, outbox=outbox)

    def write(file: int, data: bytes) -> int:
        return real(file, data) if len(data) < 1000 else real(file, data[:500])  # then the disk is full

    with monkeypatch.context() as disk:
        disk.setattr("os.write", write)
        for record in (begin(1), begin(2, request=b"x" * 2000), begin(3)):
            capture.begin(record)
        outbox.flush()
    assert counted == ["written", "spooled", "spooled"]  # the third stays behind the second
    assert records(tmp_path) == [begin(1)]
    assert capture.recover()
    assert [record.id for record in records(tmp_path)] == [begin(number).id for number in (1, 2, 3)]
    capture.close()


@story
async def test_who_must_not_serve_without_a_record_does_not_wait_for_the_end_of_the_turn(tmp_path: Path) -> None:
    writers = JournalWriter(tmp_path), JournalWriter(tmp_path, large=True)
    capture = Capture(*writers, fail_closed=True, count=lambda _: None, sync_ms=1000, outbox=Outbox())
    capture.begin(begin(1))
    assert records(tmp_path) == [begin(1)]
    capture.close()
