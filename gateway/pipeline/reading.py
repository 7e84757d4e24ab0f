"""Exchanges -> examples, in several processes and kept on the disk: a build that is killed goes on where it was.

The task's exchanges, in the order of their ids, are cut into parts of some thousand. What is read of a part goes
into one file: numbers in columns, which decide what becomes a row, and the lines that a row is written from. So
memory holds the columns of all exchanges and the texts of one part.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import DatasetError
from gateway.files import write_whole
from gateway.pipeline.examples import Example, Scope, example
from gateway.pipeline.parts import part_file
from gateway.pipeline.trainable import trainable
from gateway.stores.sqlite import SqliteStore

PART = 4096
"""Exchanges in a part: some megabytes of bodies."""
ALONE = 20_000
"""So many exchanges are read by this process alone: others take a second to start."""
MOST_PROCESSES = 8
_EDITION = 4
"""Of the part files' content: a later release that reads exchanges differently counts on."""
_SECONDS = 5.0
Say = Callable[[str], None]


class Part(msgspec.Struct, frozen=True):
    """Exchanges that are read together, by their rowids; `key` changes when anything in them does."""

    rowids: list[int]
    key: str


def parts(store: SqliteStore, task: str) -> Iterator[Part]:
    """All exchanges of a task, cut into parts."""
    query = "SELECT rowid, complete, request_at, response_at FROM exchanges WHERE task = ? ORDER BY id"
    rows = store.run(query, [task])
    while some := rows.fetchmany(PART):
        key = hashlib.blake2b(json.dumps(some).encode(), digest_size=10).hexdigest()
        yield Part([row[0] for row in some], key)


def read_all(store: SqliteStore, scope: Scope, cut: Sequence[Part], folder: Path, say: Say) -> list[Path]:
    """Read every part that is not in `folder` yet; gives their files, in order.

    Raises:
        OSError: a file cannot be written.
        DatasetError: the processes that read were killed.
    """
    files = [folder / f"{number:06}-{part.key}.part" for number, part in enumerate(cut)]
    open_ones = [(part, file) for part, file in zip(cut, files, strict=True) if not file.is_file()]
    total, exchanges = len(cut), sum(len(part.rowids) for part in cut)
    if total > len(open_ones):
        say(f"{total - len(open_ones)} of {total} parts had been read before")
    left = sum(len(part.rowids) for part, _ in open_ones)
    told = time.monotonic()
    for count in _read(store, scope, open_ones, left):
        left -= count
        if time.monotonic() - told > _SECONDS:
            told = time.monotonic()
            say(f"read {exchanges - left:,} of {exchanges:,} exchanges")
    return files


def _read(store: SqliteStore, scope: Scope, wanted: Sequence[tuple[Part, Path]], left: int) -> Iterator[int]:
    """Read these; gives how many exchanges each part had, when it is there."""
    processes = min(MOST_PROCESSES, len(os.sched_getaffinity(0)), len(wanted))
    if left <= ALONE or processes < 2:
        for part, file in wanted:
            _keep(store, scope, part.rowids, file)
            yield len(part.rowids)
        return
    given = (str(store.path), msgspec.msgpack.encode(scope))
    fresh = multiprocessing.get_context("spawn")  # a fork would share our threads' locks and the store's connection
    try:
        with ProcessPoolExecutor(processes, mp_context=fresh, initializer=_begin, initargs=given) as pool:
            yield from _finished(pool, wanted, 2 * processes)
    except BrokenProcessPool as error:
        raise DatasetError("a process that reads exchanges was killed; what is read is kept, try again") from error


def _finished(pool: ProcessPoolExecutor, wanted: Sequence[tuple[Part, Path]], ahead: int) -> Iterator[int]:
    """Some parts at a time, so that an error ends it soon."""
    rest = iter(wanted)
    running: set[Future[int]] = set()
    while True:
        more = itertools.islice(rest, ahead - len(running))
        running |= {pool.submit(_work, part.rowids, str(file)) for part, file in more}
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for one in done:
            yield one.result()


_given: list[Any] = []


def _begin(path: str, scope: bytes) -> None:
    """In a process of its own: opens the store, and ends with the process that began it."""
    os.nice(10)  # traffic first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _given[:] = [SqliteStore(Path(path)), msgspec.msgpack.decode(scope, type=Scope)]


def _end_with_parent() -> None:
    """A pool's process that waits for work does not notice that nobody will give it any."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(rowids: list[int], file: str) -> int:
    store, scope = _given
    _keep(store, scope, rowids, Path(file))
    return len(rowids)


def _keep(store: SqliteStore, scope: Scope, rowids: Sequence[int], file: Path) -> None:
    """Read these exchanges into a part's file."""
    where = "rowid IN (SELECT value FROM json_each(?))"
    dropped: Counter[str] = Counter()
    found: list[Example] = []
    for exchange in store.each_exchange(where, [json.dumps(list(rowids))]):
        one = trainable(example(exchange, scope), scope.tools)
        if isinstance(one, Example):
            found.append(one)
        dropped.update([one] if isinstance(one, str) else [one.beyond] if one.beyond else [])
    write_whole(file, part_file(found, dropped))


def key_of(scope: Scope) -> str:
    """What a part's content depends on beside its exchanges, as a short name."""
    encoded = msgspec.json.encode([_EDITION, scope], order="sorted")
    return hashlib.blake2b(encoded, digest_size=6).hexdigest()
