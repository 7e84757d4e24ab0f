"""What goes wrong with the store itself: each fault is put on a real file, and taken off again. Nothing that is in
the journal may be lost by it, and nothing may come twice."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from halves import Reader, begin, end

from gateway.domain.exchange import Usage
from gateway.errors import StoreError
from gateway.stores import journal
from gateway.stores.journal import JournalWriter, encode
from gateway.stores.recorder import Recorder
from gateway.stores.segments import blank, exchange_id, framed_records, set_aside
from gateway.stores.sqlite import SqliteStore


def write(folder: Path, *numbers: int, size: int = 3000) -> None:
    """Exchanges with bodies that cannot be compressed, in a segment whose writer is gone."""
    writer = JournalWriter(folder)
    for number in numbers:
        writer.append(begin(number, request=os.urandom(size)))
        writer.append(end(number, response=os.urandom(size)))
    writer.close()


def ids(path: Path) -> list[str]:
    store = SqliteStore(path)
    found = [exchange.id for exchange in store.exchanges("complete = 1")]
    store.close()
    return found


def names(*numbers: int) -> list[str]:
    return [f"e{number:06}" for number in numbers]


FULL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from gateway.errors import StoreError
    from gateway.stores.recorder import Recorder
    from gateway.stores.sqlite import SqliteStore

    home = Path(sys.argv[1])
    recorder = Recorder(home / "j", SqliteStore(home / "u.db"))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
    for _ in range(2):
        try:
            recorder.drain()
        except StoreError as error:
            print("refused", "full" in str(error) or "I/O" in str(error), recorder.poisoned)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print("moved", recorder.drain(), recorder.poisoned)
""")


@pytest.mark.parametrize("limit", [150_000, 300_000, 1_000_000])
def test_a_full_disk_is_an_outage_and_no_poison_and_then_all_is_moved_once(tmp_path: Path, limit: int) -> None:
    """The limit falls into the write-ahead log, at different places of the transaction."""
    SqliteStore(tmp_path / "u.db").close()
    write(tmp_path / "j", *range(300))
    told = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(limit)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert told == ["refused True 0", "refused True 0", "moved 600 0"]
    assert ids(tmp_path / "u.db") == names(*range(300))
    assert list((tmp_path / "j").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB that only this test uses."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "t", place], check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_store_on_a_full_file_system_goes_on_when_there_is_room(tmp_path: Path, small_disk: Path) -> None:
    store = SqliteStore(small_disk / "u.db")
    write(tmp_path / "j", *range(100))
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize - 100_000))
    recorder = Recorder(tmp_path / "j", store)
    with pytest.raises(StoreError, match="full"):
        recorder.drain()
    assert len(journal.segments(tmp_path / "j")) == 1
    (small_disk / "ballast").unlink()
    assert recorder.drain() == 200
    assert [one.id for one in store.exchanges()] == names(*range(100))
    store.close()


def test_a_read_only_file_system_is_waited_for(tmp_path: Path, small_disk: Path) -> None:
    store = SqliteStore(small_disk / "u.db")
    write(tmp_path / "j", 1, 2)
    recorder = Recorder(tmp_path / "j", store)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=False)
    probe = subprocess.run(["touch", small_disk / "probe"], check=False, capture_output=True)
    if probe.returncode == 0:
        store.close()
        pytest.skip("it stays writable while the store is open in it")
    with pytest.raises(StoreError):
        recorder.drain()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert recorder.drain() == 4
    store.close()


HOLD = """
import sqlite3, sys
busy = sqlite3.connect(sys.argv[1], isolation_level=None)
busy.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_another_process_is_waited_for_and_is_no_poison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.stores.sqlite_file.LOCKED_SECONDS", 0.1)
    store = SqliteStore(tmp_path / "u.db")
    write(tmp_path / "j", 1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "u.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    recorder = Recorder(tmp_path / "j", store)
    with pytest.raises(StoreError, match="locked"):
        recorder.drain()
    holder.kill()
    holder.wait(10)
    assert (recorder.drain(), recorder.poisoned) == (2, 0)


def test_a_damaged_file_keeps_the_journal_and_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "j", *range(200))
    path = tmp_path / "u.db"
    store = SqliteStore(path)
    Recorder(tmp_path / "j", store).drain()
    tables = store.run(
        "SELECT rootpage FROM sqlite_master WHERE tbl_name IN ('exchange_rows', 'blocks')"
    ).fetchall()
    store.close()
    with path.open("r+b") as file:
        for (page,) in tables:
            file.seek((page - 1) * 8192)
            file.write(os.urandom(8192))
    write(tmp_path / "j", *range(200, 260))
    recorder = Recorder(tmp_path / "j", SqliteStore(path))
    with pytest.raises(StoreError, match=r"malformed; .* waits in the journal\. Stop unprompt, move u\.db and its"):
        recorder.drain()
    assert recorder.poisoned == 0
    assert len(journal.segments(tmp_path / "j")) == 1
    path.rename(tmp_path / "damaged.db")
    for rest in tmp_path.glob("u.db-*"):
        rest.unlink()
    assert Recorder(tmp_path / "j", SqliteStore(path)).drain() == 120
    assert ids(path) == names(*range(200, 260))


def test_a_table_that_is_missing_is_an_outage_until_it_is_back(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "u.db")
    write(tmp_path / "j", 1, 2)
    other = sqlite3.connect(tmp_path / "u.db")
    other.execute("ALTER TABLE journal RENAME TO elsewhere")
    recorder = Recorder(tmp_path / "j", store)
    with pytest.raises(StoreError, match="no such table: journal"):
        recorder.drain()
    other.execute("ALTER TABLE elsewhere RENAME TO journal")
    assert recorder.drain() == 4
    assert ids(tmp_path / "u.db") == names(1, 2)


def test_a_poison_record_is_counted_and_a_retry_stores_the_others_once(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j")
    poison = end(1, usage=Usage(input=1 << 63, output=1, source="upstream"))
    for number in range(400):
        writer.append(begin(number, request=b"the same prompt for all of us, number %d" % number * 20))
        writer.append(poison if number == 1 else end(number))
    writer.close()
    recorder = Recorder(tmp_path / "j", SqliteStore(tmp_path / "u.db"))
    recorder.drain()
    assert ids(tmp_path / "u.db") == names(0, *range(2, 400))
    assert (recorder.poisoned, set_aside(tmp_path / "j")) == (1, {"poison": 1, "torn": 0})
    (tmp_path / "j" / "1.torn").write_bytes(b"x")
    assert set_aside(tmp_path / "j") == {"poison": 1, "torn": 1}
    assert set_aside(tmp_path / "nowhere") == {"poison": 0, "torn": 0}


DYING = textwrap.dedent("""
    import os, sys, threading, time
    from pathlib import Path
    from gateway.stores.recorder import Recorder
    from gateway.stores.sqlite import SqliteStore

    home = Path(sys.argv[1])
    threading.Timer(float(sys.argv[2]), lambda: os._exit(9)).start()
    Recorder(home / "j", SqliteStore(home / "u.db")).drain()
    os._exit(0)
""")


def test_a_recorder_that_dies_at_any_moment_is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    for start in range(0, 6000, 1000):
        write(tmp_path / "j", *range(start, start + 1000), size=200)
    deaths = 0
    for number in range(8):
        command = [sys.executable, "-c", DYING, str(tmp_path), str(0.01 + number * 0.02)]
        deaths += subprocess.run(command, check=False).returncode == 9
    Recorder(tmp_path / "j", SqliteStore(tmp_path / "u.db")).drain()
    assert deaths > 0
    assert ids(tmp_path / "u.db") == names(*range(6000))
    assert list((tmp_path / "j").iterdir()) == []


# --- segments --------------------------------------------------------------------------------------------


def test_moved_records_are_blanked_in_place_and_what_follows_is_read_as_before(tmp_path: Path) -> None:
    first, second = encode(begin(1)) + encode(end(1)), encode(begin(2)) + encode(end(2))
    segment = tmp_path / "1.journal"
    segment.write_bytes(first + second)
    assert blank(segment, len(first))
    assert not blank(segment, len(first))  # nothing is left to do
    assert segment.read_bytes()[len(first) :] == second
    assert b"e000001" not in segment.read_bytes()
    reader = Reader()
    assert reader.read(segment, 0) == ([begin(2), end(2)], len(first + second))
    assert reader.read(segment, len(first)) == ([begin(2), end(2)], len(first + second))


def test_a_reader_grows_for_a_record_larger_than_its_buffer(tmp_path: Path) -> None:
    segment = tmp_path / "1.journal"
    large = begin(2, request=os.urandom(5000))
    segment.write_bytes(encode(begin(1)) + encode(large) + encode(begin(3)))
    reader, offset, found = Reader(1000), 0, []
    while offset < segment.stat().st_size:
        records, offset = reader.read(segment, offset)
        found += records
    assert found == [begin(1), large, begin(3)]


def test_whose_a_torn_record_is(tmp_path: Path) -> None:
    whole, answer = encode(begin(7)), encode(end(8))
    assert exchange_id(whole) == "e000007"
    assert exchange_id(whole[:30]) == "e000007"
    assert exchange_id(answer[:30]) == "e000008"
    assert exchange_id(whole[:12]) is None
    assert exchange_id(b"junk") is None
    assert list(framed_records(whole + answer + whole[:9])) == [whole, answer, whole[:9]]
