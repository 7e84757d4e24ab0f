"""One SQLite file in WAL mode: opened, its tables brought up to date, statements and transactions."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import StoreError
from gateway.stores.migrations import migrations

if TYPE_CHECKING:
    import sqlite_utils

LOCKED_SECONDS = 30.0
"""How long another process may hold the file before we give up."""

PAGE_BYTES = 8192
"""Of new files. A block ends in the middle of a page: with pages of 16 KB a store is 4 % larger."""
_DAMAGED = (
    "; what was recorded since waits in the journal. Stop unprompt, move {name} and its -wal and -shm aside, save"
    " what can be saved with 'sqlite3 FILE .recover', and start again"
)
Record = dict[str, Any]


class SqliteFile:
    """A connection to the file. An instance belongs to one thread.

    Every method raises `StoreError` when SQLite refuses: locked for 30 s, disk full, damaged.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and brings its tables up to date.

        Raises:
            StoreError: the file cannot be opened, is not ours, or is of a later release.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=LOCKED_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"store {path}: {error}; check the path in store.url and its permissions") from error
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    @functools.cached_property
    def db(self) -> sqlite_utils.Database:
        """The same connection with sqlite-utils around it, which is slow to import."""
        import sqlite_utils

        return sqlite_utils.Database(self._connection)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def forget(self) -> None:
        """What was kept in memory during a transaction does not hold: it has failed."""

    def _prepare(self) -> None:
        self._write_ahead()
        # FULL: the journal's segments are deleted on the strength of what was committed here. Secure: what is
        # deleted or moved is overwritten.
        for setting in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self.run(f"PRAGMA {setting}")
        scripts = migrations()
        known, found = max(scripts), self._version()
        if found > known:
            raise StoreError(
                f"store {self.path}: its tables have version {found}, this release knows {known}; upgrade unprompt"
            )
        if found < known:  # asked first, so that opening a file that is up to date waits for no writer
            with self.transaction():
                self._migrate(scripts)

    def _write_ahead(self) -> None:
        """SQLite does not wait for a lock when the journal mode is changed, so we do."""
        until = time.monotonic() + LOCKED_SECONDS
        while True:
            try:
                if self.run("PRAGMA page_count").fetchone()[0] == 0:
                    self.run(f"PRAGMA page_size = {PAGE_BYTES}")
                    self.run("PRAGMA auto_vacuum = INCREMENTAL")
                self.run("PRAGMA journal_mode = WAL")
            except StoreError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and one writer at a time from the first statement on."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has rolled it back already
                self.run("ROLLBACK")
            self.forget()
            raise

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """A part of a transaction that leaves nothing behind where it fails; the rest goes on."""
        self.run("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self.run("ROLLBACK TO attempt")
            self.forget()
            raise
        finally:
            if self._connection.in_transaction:
                self.run("RELEASE attempt")

    def run(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        """One statement; outside a `transaction` it is one of its own."""
        try:
            return self._connection.execute(sql, values)
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def run_many(self, sql: str, rows: Iterable[Any]) -> None:
        """One statement for each of the rows to bind."""
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def run_whole(self, sql: str) -> None:
        """A statement without columns that works row by row: `run` would do its first step only."""
        try:
            self._connection.executescript(sql)
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.Error) -> StoreError:
        remedy = (
            _DAMAGED.format(name=self.path.name) if "malformed" in str(error) or "not a d" in str(error) else ""
        )
        return StoreError(f"store {self.path}: {error}{remedy}")

    def records(self, sql: str, values: Any = ()) -> list[Record]:
        """What a query finds, by column names."""
        cursor = self.run(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in self.fetched(cursor)]

    def fetched(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
        """The rows of a query."""
        try:
            yield from cursor
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def _version(self) -> int:
        return int(self.run("PRAGMA user_version").fetchone()[0])

    def _migrate(self, scripts: Mapping[int, list[str]]) -> None:
        done = self._version()  # again: another process may have been faster
        if done == 0 and self.run("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"store {self.path}: a database of something else; name another file in store.url")
        for number in sorted(number for number in scripts if number > done):
            for statement in scripts[number]:
                self.run(statement)
            self.run(f"PRAGMA user_version = {number}")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read meanwhile is of one moment: no row whose body is deleted in between."""
        if self._connection.in_transaction:
            yield
            return
        self.run("BEGIN")
        try:
            yield
        finally:
            self.run("COMMIT")
