"""P2 on the disk: what was appended is there, what is torn is noticed, and no record stops another."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from typing import Any

import pytest
from halves import Reader, begin, end
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.exchange import Usage
from gateway.errors import StoreError
from gateway.stores import journal
from gateway.stores.journal import JournalWriter, Poison, Record, Unencodable, encode
from gateway.stores.recorder import Recorder
from gateway.stores.segments import READ_BYTES
from gateway.stores.sqlite import SqliteStore


def only(folder: Path) -> Path:
    (segment,) = journal.segments(folder)
    return segment


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "store.db")


# --- the writer and the reader --------------------------------------------------------------------------


def test_what_is_appended_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal")
    writer.append(begin())
    writer.append(end())
    records, offset = Reader().read(only(tmp_path / "journal"), 0)  # the writer has not been closed
    assert records == [begin(), end()]
    assert offset == only(tmp_path / "journal").stat().st_size


@given(st.lists(st.tuples(st.binary(max_size=300), st.text(max_size=20)), max_size=12), st.data())
@settings(max_examples=60)
def test_whatever_the_tail_the_records_before_it_are_read(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[tuple[bytes, str]], data: st.DataObject
) -> None:
    """A segment cut at any byte, with anything behind the cut, gives the whole records and nothing else."""
    written = [begin(n, request=body, tags={"t": tag}) for n, (body, tag) in enumerate(bodies)]
    framed = [encode(record) for record in written]
    whole = b"".join(framed)
    cut = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.binary(max_size=40) | st.just(bytes(64)))
    segment = tmp_path_factory.mktemp("j") / "1.journal"
    segment.write_bytes(whole[:cut] + junk)
    sound, size = [], 0
    for record, piece in zip(written, framed, strict=True):
        if size + len(piece) > cut:
            break
        sound.append(record)
        size += len(piece)
    records, offset = Reader().read(segment, 0)
    assert records[: len(sound)] == sound
    if junk == bytes(64):  # a file system may leave zeros after a power failure: they are no records
        assert (records, offset) == (sound, size)


def test_reading_goes_on_where_it_stopped_and_takes_large_records_whole(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    written = [begin(n, request=b"x" * (5000 if n == 3 else 10)) for n in range(6)]
    for record in written:
        writer.append(record)
    found: list[object] = []
    offset = 0
    while True:
        records, behind = Reader(1000).read(only(tmp_path), offset)
        if not records:
            break
        found, offset = found + records, behind
    assert found == written


def test_segments_are_finished_when_full_and_keep_their_order_if_the_clock_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([5_000_000_000, 3_000_000_000, 4_000_000_000])
    monkeypatch.setattr("time.time_ns", lambda: next(now))
    writer = JournalWriter(tmp_path, segment_bytes=50)
    for number in range(3):
        writer.append(begin(number))
    found = [Reader().read(segment, 0)[0] for segment in journal.segments(tmp_path)]
    assert found == [[begin(0)], [begin(1)], [begin(2)]]
    assert [journal.is_finished(segment) for segment in journal.segments(tmp_path)] == [True, True, False]
    writer.close()
    assert all(journal.is_finished(segment) for segment in journal.segments(tmp_path))


def test_a_segment_that_was_deleted_is_written_again_with_the_next_sync(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal")
    written: list[Record] = [begin(1), begin(2, request=os.urandom(3_000_000)), end(1), begin(3), end(3)]
    for record in written[:3]:
        writer.append(record)
    writer.sync()
    shutil.rmtree(tmp_path / "journal")
    writer.append(written[3])
    writer.sync()
    writer.append(written[4])
    assert Reader().read(only(tmp_path / "journal"), 0)[0] == written
    assert not journal.is_finished(only(tmp_path / "journal"))


def test_a_deleted_segment_is_kept_until_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path)
    written = [begin(1, request=os.urandom(3_000_000)), begin(2)]
    writer.append(written[0])
    only(tmp_path).unlink()
    write, room = os.write, iter([True, False])

    def full(file: int, data: bytes) -> int:
        if not next(room):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    with monkeypatch.context() as disk:
        disk.setattr("os.write", full)
        with pytest.raises(OSError, match="No space"):
            writer.sync()
    assert [segment.stat().st_size for segment in journal.segments(tmp_path)] == [0]
    writer.append(written[1])
    writer.sync()
    assert Reader().read(journal.segments(tmp_path)[-1], 0)[0] == written


class Disk:
    """Notes what is forced down, by inode; while it is `bad`, fsync fails."""

    def __init__(self) -> None:
        self.bad = False
        self.forced: set[int] = set()

    def fsync(self, file: int) -> None:
        if self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.forced.add(os.fstat(file).st_ino)

    def holds(self, file: Path) -> bool:
        return file.stat().st_ino in self.forced


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("os.fsync", disk.fsync)
    return disk


def test_a_sync_forces_the_records_and_the_name_of_their_segment(tmp_path: Path, disk: Disk) -> None:
    writer = JournalWriter(tmp_path, segment_bytes=50)
    writer.append(begin(1))
    writer.append(begin(2))  # in a second segment: the first is full
    assert not disk.forced
    writer.sync()
    assert all(disk.holds(file) for file in (*journal.segments(tmp_path), tmp_path))
    disk.forced.clear()
    writer.sync()
    assert not disk.forced  # there is nothing new


@pytest.mark.parametrize("large", [False, True])
def test_after_a_failed_fsync_the_segment_is_not_written_on(tmp_path: Path, disk: Disk, large: bool) -> None:
    """Its pages may count as clean from then on: a later fsync of the same file would say nothing."""
    writer = JournalWriter(tmp_path, large=large)
    writer.append(begin(1))
    disk.bad = True
    with pytest.raises(OSError, match="Input/output"):
        writer.sync()
    writer.append(begin(2))
    assert [journal.is_finished(segment) for segment in journal.segments(tmp_path)] == [True, False]
    with pytest.raises(OSError, match="Input/output"):
        writer.sync()
    disk.bad = False
    writer.append(begin(3))
    writer.sync()
    writer.append(begin(4))
    found = journal.segments(tmp_path)
    read = [Reader().read(segment, 0)[0] for segment in found]
    assert read == [[begin(1)], [begin(2)], [begin(3), begin(4)]]
    assert disk.holds(found[2])
    assert disk.holds(tmp_path)


def test_whether_the_disk_works_again_is_found_out_without_traffic_and_without_litter(
    tmp_path: Path, disk: Disk
) -> None:
    writer = JournalWriter(tmp_path)
    writer.append(begin(1))
    disk.bad = True
    for _ in range(20):
        with pytest.raises(OSError, match="Input/output"):
            writer.sync()
    assert [segment.stat().st_size > 0 for segment in journal.segments(tmp_path)] == [True, False]
    disk.bad = False
    writer.sync()
    assert disk.holds(journal.segments(tmp_path)[1])


def test_a_record_that_must_be_forced_down_and_cannot_be_leaves_nothing_behind(tmp_path: Path, disk: Disk) -> None:
    writer = JournalWriter(tmp_path, sync_ms=0)
    writer.append(begin(1))
    disk.bad = True
    for _ in range(20):
        with pytest.raises(StoreError, match="Input/output"):
            writer.append(begin(2))
    disk.bad = False
    writer.append(begin(3))
    found = journal.segments(tmp_path)
    assert [Reader().read(segment, 0)[0] for segment in found] == [[begin(1)], [begin(3)]]
    assert all(disk.holds(file) for file in (*found, tmp_path))


@pytest.mark.parametrize("sync_ms", [0, 1000])
def test_no_descriptor_for_a_sync_says_nothing_against_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, sync_ms: int
) -> None:
    writer = JournalWriter(tmp_path, sync_ms=sync_ms)
    writer.append(begin(1))
    writer.sync()

    def none_left(_file: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def put_down() -> None:
        writer.append(begin(2))
        writer.sync()

    with monkeypatch.context() as process:
        process.setattr("os.dup", none_left)
        with pytest.raises((OSError, StoreError), match="Too many"):
            put_down()
    disk.forced.clear()
    writer.append(begin(3))
    writer.sync()
    expected = [begin(1), begin(3)] if sync_ms == 0 else [begin(1), begin(2), begin(3)]
    assert Reader().read(only(tmp_path), 0)[0] == expected
    assert disk.holds(only(tmp_path))


def test_where_folders_cannot_be_forced_down_files_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", fsync)
    writer = JournalWriter(tmp_path)
    writer.append(begin(1))
    writer.sync()
    writer.append(begin(2))
    assert Reader().read(only(tmp_path), 0)[0] == [begin(1), begin(2)]


@pytest.mark.parametrize("bad", [{"model_requested": "\ud800"}, {"started_at": 1.0, "tags": {"n": 1 << 70}}])
def test_a_value_that_cannot_be_written_down_is_told(bad: dict[str, Any]) -> None:
    with pytest.raises(Unencodable):
        encode(begin(**bad))


FULL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from halves import begin, end
    from gateway.errors import StoreError, StoreUnavailable
    from gateway.proxy.capture import Capture
    from gateway.stores import journal
    from gateway.stores.segments import SegmentReader

    folder, counted = Path(sys.argv[1]), []
    writers = journal.JournalWriter(folder), journal.JournalWriter(folder, large=True)
    capture = Capture(*writers, fail_closed=sys.argv[3] == "fail_closed", count=counted.append, sync_ms=1000)
    capture.begin(begin(1))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = journal.segments(folder)[0].stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))  # full, in the middle of the next record
    refused = 0
    for number in range(2, 8):
        try:
            capture.begin(begin(number, request=b"x" * 100))
        except StoreUnavailable as error:
            refused += 1
            assert error.status == 503
    capture.end(end(1))
    print(refused, capture.healthy, counted.count("spooled"))
    records, offset = SegmentReader().read(journal.segments(folder)[0], 0)
    assert offset == journal.segments(folder)[0].stat().st_size, "a torn record stands in the segment"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    capture.begin(begin(8))
    print(capture.healthy, counted.count("dropped"))
    print([r.id + type(r).__name__[0] for s in journal.segments(folder) for r in SegmentReader().read(s, 0)[0]])
""")


@pytest.mark.parametrize("policy", ["fail_open", "fail_closed"])
def test_a_full_disk_tears_nothing_and_is_recovered_from_in_order(tmp_path: Path, policy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "j"), str(Path(__file__).parent.parent), policy],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    during, after, records = done.stdout.splitlines()
    if policy == "fail_open":
        assert during == "0 False 7"  # everybody is served, and the records wait
        assert after == "True 0"
        expected = [f"e{n:06}B" for n in range(1, 8)] + ["e000001E", "e000008B"]
    else:
        assert during == "6 False 1"  # nobody is served who cannot be recorded; the end of what was served waits
        assert after == "True 0"
        expected = ["e000001B", "e000001E", "e000008B"]
    assert records == str(expected)


# --- the recorder -------------------------------------------------------------------------------------------


def ids(store: SqliteStore) -> list[str]:
    return [exchange.id for exchange in store.exchanges()]


def test_records_out_of_the_blue_are_moved_at_once_and_those_of_steady_traffic_every_few_seconds(
    tmp_path: Path, store: SqliteStore
) -> None:
    now = 100.0
    writer, recorder = JournalWriter(tmp_path / "j"), Recorder(tmp_path / "j", store, clock=lambda: now)
    seconds = [  # when it looks, and how many records came until then
        (100.0, 1), (101.0, 1), (102.0, 1), (103.0, 1), (104.0, 1), (105.0, 0), (106.0, 0), (107.0, 1), (108.0, 2),
        (109.0, 0),
    ]  # fmt: skip
    moved = []
    for now, came in seconds:
        for number in range(came):
            writer.append(begin(int(now) * 10 + number))
        moved.append(recorder.look())
    assert moved == [1, 0, 0, 3, 0, 1, 0, 1, 0, 2]


def test_a_look_moves_what_fills_a_transaction(tmp_path: Path, store: SqliteStore) -> None:
    writer, recorder = JournalWriter(tmp_path / "j"), Recorder(tmp_path / "j", store, clock=lambda: 100.0)
    moved = []
    for number, size in enumerate([10, 10, READ_BYTES, 10]):
        writer.append(begin(number, request=bytes(size)))
        moved.append(recorder.look())
    assert moved == [1, 0, 2, 0]


def test_after_a_failure_the_next_look_tries_again(tmp_path: Path, store: SqliteStore) -> None:
    writer, recorder = JournalWriter(tmp_path / "j"), Recorder(tmp_path / "j", store, clock=lambda: 100.0)
    writer.append(begin(1))
    assert recorder.look() == 1
    store.run("ALTER TABLE blocks RENAME TO gone")
    for number in (2, 3):  # what comes is held back at first
        writer.append(begin(number))
        assert recorder.look() == 0
    for _ in range(2):
        with pytest.raises(StoreError, match="blocks"):
            recorder.look()
    store.run("ALTER TABLE gone RENAME TO blocks")
    assert recorder.look() == 2


def test_records_become_rows_and_finished_segments_go(tmp_path: Path, store: SqliteStore) -> None:
    writer = JournalWriter(tmp_path / "j", segment_bytes=400)
    for number in range(5):
        writer.append(begin(number))
    for number in range(4):
        writer.append(end(number))
    recorder = Recorder(tmp_path / "j", store)
    assert recorder.drain() == 9
    rows = store.exchanges()
    assert [row.complete for row in rows] == [True] * 4 + [False]  # one was under way
    assert (rows[0].response, rows[0].input_tokens, rows[0].model_served) == (b'{"answer":0}', 3, "gpt-6-1")
    assert len(journal.segments(tmp_path / "j")) == 1  # the one being written
    assert recorder.drain() == 0
    writer.append(end(4))
    writer.close()
    assert recorder.drain() == 1
    assert store.exchanges()[4].complete
    assert list((tmp_path / "j").iterdir()) == []
    assert sqlite3.connect(store.path).execute("SELECT COUNT(*) FROM journal").fetchone() == (0,)


def test_the_last_end_counts(tmp_path: Path, store: SqliteStore) -> None:
    """A stream's end is recorded before its last event leaves, and again when something followed."""
    writer = JournalWriter(tmp_path)
    recorder = Recorder(tmp_path, store)
    writer.append(begin(1))
    writer.append(end(1, response=b"first"))
    writer.append(begin(1))  # written twice, as after a failed sync
    writer.append(end(1, response=b"first and more"))
    recorder.drain()
    writer.append(end(1, response=b"first and more, later"))
    recorder.drain()
    assert [row.response for row in store.exchanges()] == [b"first and more, later"]


def test_a_record_that_the_store_refuses_is_put_aside_and_stops_no_other(
    tmp_path: Path, store: SqliteStore
) -> None:
    poison = end(1, usage=Usage(input=1 << 63, output=1, source="upstream"))  # SQLite's integers have 63 bits
    writer = JournalWriter(tmp_path / "j")
    for record in (begin(1), poison, begin(3), end(3)):
        writer.append(record)
    writer.close()
    recorder = Recorder(tmp_path / "j", store)
    recorder.drain()
    assert ids(store) == ["e000001", "e000003"]
    assert store.exchanges()[1].complete
    assert recorder.poisoned == 1
    (kept,) = (tmp_path / "j").iterdir()
    assert kept.suffix == ".poison"
    assert kept.read_bytes() == encode(poison)  # not lost: it can be looked at


def test_a_record_that_makes_no_sense_is_put_aside(tmp_path: Path, store: SqliteStore) -> None:
    strange = b"\x07\x00\x00\x00" + zlib.crc32(b"\x93strange"[:7]).to_bytes(4, "little") + b"\x93strange"[:7]
    segment = tmp_path / "j" / "1.journal"
    segment.parent.mkdir()
    segment.write_bytes(encode(begin(1)) + strange + encode(begin(2)))
    assert Reader().read(segment, 0)[0][1] == Poison(strange)
    recorder = Recorder(tmp_path / "j", store)
    assert recorder.drain() == 3
    assert ids(store) == ["e000001", "e000002"]
    assert (tmp_path / "j" / "1.poison").read_bytes() == strange


def test_a_torn_tail_is_kept_aside(tmp_path: Path, store: SqliteStore) -> None:
    segment = tmp_path / "1.journal"
    segment.write_bytes(encode(begin(1)) + encode(begin(2))[:-1])
    Recorder(tmp_path, store).drain()
    assert ids(store) == ["e000001"]
    assert not segment.exists()
    assert (tmp_path / "1.torn").read_bytes().endswith(encode(begin(2))[:-1])


def test_while_its_writer_lives_a_half_written_record_is_waited_for(tmp_path: Path, store: SqliteStore) -> None:
    writer = JournalWriter(tmp_path)
    writer.append(begin(1))
    late = encode(begin(2))
    with only(tmp_path).open("ab") as file:  # as seen while a write is on its way to the file
        file.write(late[:20])
        file.flush()
        recorder = Recorder(tmp_path, store)
        recorder.drain()
        assert ids(store) == ["e000001"]
        file.write(late[20:])
    recorder.drain()
    assert ids(store) == ["e000001", "e000002"]


def test_a_locked_store_is_an_outage_and_no_poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.stores.sqlite_file.LOCKED_SECONDS", 0.05)
    store = SqliteStore(tmp_path / "store.db")
    JournalWriter(tmp_path / "j").append(begin(1))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder = Recorder(tmp_path / "j", store)
    with pytest.raises(StoreError, match="locked"):
        recorder.drain()
    other.execute("ROLLBACK")
    assert recorder.drain() == 1
    assert recorder.poisoned == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_segment_that_cannot_be_read_stops_no_other(tmp_path: Path, store: SqliteStore) -> None:
    for name, number in (("1.journal", 1), ("2.journal", 2)):
        (tmp_path / name).write_bytes(encode(begin(number)))
    (tmp_path / "1.journal").chmod(0)
    with pytest.raises(StoreError, match=r"1\.journal"):
        Recorder(tmp_path, store).drain()
    assert ids(store) == ["e000002"]


def _record(folder: Path, database: Path, rounds: int) -> None:
    recorder = Recorder(folder, SqliteStore(database))
    for _ in range(rounds):
        recorder.drain()


def _write(folder: Path, first: int, count: int) -> None:
    writer = JournalWriter(folder, segment_bytes=3000)
    for number in range(first, first + count):
        writer.append(begin(number))
        writer.append(end(number))


def test_several_writers_and_recorders_at_once_lose_nothing_and_double_nothing(
    tmp_path: Path, store: SqliteStore
) -> None:
    context = multiprocessing.get_context("fork")
    folder, database = tmp_path / "j", tmp_path / "store.db"
    writers = [context.Process(target=_write, args=(folder, 1000 * n, 300)) for n in range(2)]
    recorders = [context.Process(target=_record, args=(folder, database, 40)) for _ in range(2)]
    for process in (*writers, *recorders):
        process.start()
    for process in (*writers, *recorders):
        process.join(60)
    assert [process.exitcode for process in (*writers, *recorders)] == [0] * 4
    Recorder(folder, store).drain()
    rows = store.exchanges()
    assert [row.id for row in rows] == [f"e{n:06}" for n in (*range(300), *range(1000, 1300))]
    assert all(row.complete for row in rows)
    assert list(folder.iterdir()) == []
