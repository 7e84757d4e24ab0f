"""The store in one SQLite file (WAL mode), readable with sqlite-utils and Datasette."""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.domain.dataset import Dataset
from gateway.domain.exchange import Exchange
from gateway.domain.finetune import FineTune
from gateway.domain.template import PromptTemplate
from gateway.errors import StoreError
from gateway.stores import intake, ledger
from gateway.stores import rows as row_of
from gateway.stores.blocks import Blocks
from gateway.stores.dictionaries import Dictionaries
from gateway.stores.journal import LARGE_ENDING
from gateway.stores.kinds import OF_REQUESTS, OF_RESPONSES, Kinds
from gateway.stores.migrations import migrations
from gateway.stores.segments import HalfRecord

if TYPE_CHECKING:
    import sqlite_utils

LOCKED_SECONDS = 30.0
"""How long another process may hold the file before we give up."""

PAGE_BYTES = 8192
"""Of new files. A block ends in the middle of a page: with pages of 16 KB a store is 4 % larger."""
UNEXPLAINED = "task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0"
"""The exchanges that belong to no task although they were looked at and could be read."""
ANSWERED = "complete = 1 AND truncated = 0 AND stripped = 0 AND status BETWEEN 200 AND 299"
"""The exchanges that an incumbent has answered whole."""
_COUNT = f"""
INSERT INTO task_stats
  SELECT COALESCE(task, '') AS name, :sign * COUNT(*), :sign * COUNT(CASE WHEN {ANSWERED} THEN 1 END),
    :sign * SUM(stripped), :sign * COUNT(cost_usd), :sign * TOTAL(cost_usd)
  FROM exchanges
  WHERE id IN (SELECT value FROM json_each(:ids))
    AND (task IS NOT NULL OR (looked_at = 1 AND complete = 1 AND truncated = 0))
  GROUP BY name
ON CONFLICT (task) DO UPDATE SET
  exchanges = exchanges + excluded.exchanges, answered = answered + excluded.answered,
  stripped = stripped + excluded.stripped, priced = priced + excluded.priced,
  cost_usd = cost_usd + excluded.cost_usd
"""
_DAMAGED = (
    "; what was recorded since waits in the journal. Stop unprompt, move {name} and its -wal and -shm aside, save"
    " what can be saved with 'sqlite3 FILE .recover', and start again"
)
Record = dict[str, Any]
_AT_ONCE = 128


class SqliteStore:
    """All tables of one file. An instance belongs to one thread; open another one per thread or process.

    Every method raises `StoreError` when SQLite refuses: locked for 30 s, disk full, damaged.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and brings its tables up to date.

        Raises:
            StoreError: the file cannot be opened, is not ours, or is of a later release.
        """
        self.path = path
        self.blocks = Blocks(self.run)
        self.dictionaries = Dictionaries(self.run)
        self.requests = Kinds(self.run, "request_kinds", OF_REQUESTS)
        self.answers = Kinds(self.run, "response_kinds", OF_RESPONSES)
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
            self._forget_kinds()
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
            self._forget_kinds()
            raise
        finally:
            if self._connection.in_transaction:
                self.run("RELEASE attempt")

    def _forget_kinds(self) -> None:
        self.requests.forget()
        self.answers.forget()

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
        return [dict(zip(names, row, strict=True)) for row in self._fetched(cursor)]

    def _fetched(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
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

    # --- exchanges -----------------------------------------------------------------------------

    def offset(self, segment: str) -> int:
        """How many bytes of this journal segment are in the store."""
        row = self.run("SELECT offset FROM journal WHERE segment = ?", [segment]).fetchone()
        return int(row[0]) if row else 0

    def absorb(self, segment: str, offset: int, exchanges: Iterable[Exchange]) -> None:
        """Rows and the new offset of their segment in one transaction; a row that is there stays as it is."""
        intake.absorb_whole(self, exchanges)
        self._moved(segment, offset)

    def absorb_records(self, segment: str, offset: int, records: Iterable[HalfRecord]) -> None:
        """The same for records of the journal, in their order; an exchange with both its halves is one insert.

        Records of a segment of large bodies fill in rows that are there.

        Raises:
            OverflowError, ValueError: a record holds a value that cannot be kept.
        """
        intake.absorb(self, records, large=segment.endswith(LARGE_ENDING))
        self._moved(segment, offset)

    def _moved(self, segment: str, offset: int) -> None:
        self.run(
            "INSERT INTO journal VALUES (?, ?) ON CONFLICT (segment) DO UPDATE SET offset = excluded.offset",
            [segment, offset],
        )

    @contextlib.contextmanager
    def recounted(self, exchange_ids: Iterable[str]) -> Iterator[None]:
        """Whatever is done to these rows meanwhile, `task_stats` counts them as they are afterwards."""
        named = json.dumps(list(exchange_ids))
        if named == "[]":
            yield
            return
        with contextlib.nullcontext() if self._connection.in_transaction else self.transaction():
            self.run(_COUNT, {"ids": named, "sign": -1})
            yield
            self.run(_COUNT, {"ids": named, "sign": 1})

    def forget_segment(self, segment: str) -> None:
        self.run("DELETE FROM journal WHERE segment = ?", [segment])

    def exchange(self, exchange_id: str) -> Exchange | None:
        found = self.exchanges("id = ?", [exchange_id])
        return found[0] if found else None

    def exchanges(self, where: str = "1", parameters: Iterable[Any] = (), *, limit: int = -1) -> list[Exchange]:
        """The exchanges for which the SQL condition `where` holds, oldest first."""
        return list(self.each_exchange(where, parameters, limit=limit))

    def each_exchange(
        self, where: str = "1", parameters: Iterable[Any] = (), *, limit: int = -1
    ) -> Iterator[Exchange]:
        """As `exchanges`, some at a time: bodies are large, and not all fit into memory. No lock is held meanwhile;
        a row that is deleted before it is reached is left out."""
        query = f"SELECT rowid FROM exchanges WHERE {where} ORDER BY id LIMIT ?"
        found = array("q", (row for (row,) in self._fetched(self.run(query, [*parameters, limit]))))
        for start in range(0, len(found), _AT_ONCE):
            part = json.dumps(found[start : start + _AT_ONCE].tolist())
            query = f"{row_of.SELECT} WHERE rowid IN (SELECT value FROM json_each(?)) ORDER BY id"
            with self._snapshot():
                exchanges = [self._exchange(row) for row in list(self._fetched(self.run(query, [part])))]
            yield from exchanges

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        """What is read meanwhile is of one moment: no row whose body is deleted in between."""
        if self._connection.in_transaction:
            yield
            return
        self.run("BEGIN")
        try:
            yield
        finally:
            self.run("COMMIT")

    def _exchange(self, row: tuple[Any, ...]) -> Exchange:
        try:
            return row_of.exchange(row, self.blocks, self.dictionaries)
        except (StoreError, ValueError) as error:
            raise StoreError(f"store {self.path}: exchange {row[0]}: {error}") from error

    def unseen(self, limit: int) -> list[Exchange]:
        """Complete exchanges that inference has not looked at yet."""
        oldest = (
            "rowid IN (SELECT rowid FROM exchanges WHERE looked_at = 0 AND complete = 1 ORDER BY rowid LIMIT ?)"
        )
        return self.exchanges(oldest, [limit])

    def unassigned(self, limit: int) -> list[Exchange]:
        """The newest unexplained exchanges, oldest first."""
        newest = f"rowid IN (SELECT rowid FROM exchanges WHERE {UNEXPLAINED} ORDER BY rowid DESC LIMIT ?)"
        return self.exchanges(newest, [limit])

    def unexplained_count(self) -> int:
        """How many exchanges belong to no task although they were looked at and could be read; costs one lookup."""
        return self._stat("", "exchanges")

    def answered_count(self, task: str) -> int:
        """How many of the task's exchanges an incumbent has answered whole; costs one lookup."""
        return self._stat(task, "answered")

    def _stat(self, task: str, name: str) -> int:
        row = self.run(f"SELECT {name} FROM task_stats WHERE task = ?", [task]).fetchone()
        return int(row[0]) if row else 0

    def assign(self, assignments: Mapping[str, tuple[str, int] | None]) -> None:
        """Note which task and template version each exchange belongs to; None: none known."""
        rows = [(*(found or (None, None)), key) for key, found in assignments.items()]
        with self.recounted(assignments):
            fresh = ledger.not_entered(self.run, assignments)
            self.run_many("UPDATE exchange_rows SET task = ?, task_version = ?, looked_at = 1 WHERE id = ?", rows)
            ledger.enter(self.run, fresh)

    def set_aside(self, exchange_ids: Iterable[str]) -> None:
        """Note that no template can be found in these: they are no chat requests."""
        rows = [(key,) for key in exchange_ids]
        with self.recounted(key for (key,) in rows):
            change = "UPDATE exchange_rows SET task = NULL, task_version = NULL, looked_at = 2 WHERE id = ?"
            self.run_many(change, rows)

    def count(self, where: str = "1", parameters: Iterable[Any] = ()) -> int:
        return int(self.run(f"SELECT COUNT(*) FROM exchanges WHERE {where}", list(parameters)).fetchone()[0])

    def answered(self, task: str, newest: int = -1) -> list[Record]:
        """Who answered the task's newest exchanges, newest first: provider, model_requested, target,
        model_served, task_version, input_tokens."""
        return self.records(
            "SELECT provider, model_requested, target, model_served, task_version, input_tokens FROM exchanges"
            f" WHERE task = ? AND {ANSWERED} ORDER BY rowid DESC LIMIT ?",
            [task, newest],
        )

    # --- tasks and templates ---------------------------------------------------------------------

    def add_template(self, template: PromptTemplate) -> None:
        now = time.time()
        self.run("INSERT OR IGNORE INTO tasks (name, created_at) VALUES (?, ?)", [template.task, now])
        self.run(
            "INSERT OR IGNORE INTO templates (name, task, version, body, created_at) VALUES (?, ?, ?, ?, ?)",
            [template.name, template.task, template.version, msgspec.json.encode(template).decode(), now],
        )

    def templates(self, task: str | None = None) -> list[PromptTemplate]:
        """All templates, or one task's, oldest version first."""
        where, values = ("1", []) if task is None else ("task = ?", [task])
        rows = self.run(f"SELECT body FROM templates WHERE {where} ORDER BY task, version", values)
        return [msgspec.json.decode(body, type=PromptTemplate) for (body,) in self._fetched(rows)]

    def set_kind(self, task: str, kind: str) -> None:
        self.run("UPDATE tasks SET kind = ? WHERE name = ?", [kind, task])

    def tasks(self) -> list[Record]:
        """Name, kind, alarm and counts of each task; costs a few lookups for each, however many there are."""
        return self.records(
            "SELECT t.name, t.kind, t.created_at, t.alarm, COALESCE(s.exchanges, 0) AS exchanges,"
            " COALESCE(s.stripped, 0) AS stripped,"
            " (SELECT started_at FROM exchanges WHERE task = t.name ORDER BY rowid DESC LIMIT 1) AS last_at,"
            " CASE WHEN s.priced > 0 THEN s.cost_usd END AS cost_usd"
            " FROM tasks t LEFT JOIN task_stats s ON s.task = t.name ORDER BY exchanges DESC, t.name"
        )

    def version_counts(self, task: str, newest: int) -> dict[int, int]:
        """How many of the task's newest exchanges were made with each template version."""
        rows = self.run(
            "SELECT task_version, COUNT(*) FROM (SELECT task_version FROM exchanges WHERE task = ?"
            " ORDER BY rowid DESC LIMIT ?) WHERE task_version IS NOT NULL GROUP BY task_version",
            [task, newest],
        )
        return {int(version): int(count) for version, count in rows}

    # --- what is learned ---------------------------------------------------------------------------

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert a row, or change the columns given of the row with that `id`; mappings and lists become JSON."""
        flat = {k: json.dumps(v) if isinstance(v, dict | list | tuple) else v for k, v in row.items()}
        updates = ", ".join(f"{name} = excluded.{name}" for name in flat if name != "id")
        self.run(
            f"INSERT INTO {table} ({', '.join(flat)}) VALUES ({', '.join(':' + name for name in flat)})"
            f" ON CONFLICT (id) DO UPDATE SET {updates}",
            flat,
        )

    def change(self, table: str, row_id: str, **columns: Any) -> None:
        """Change columns of the row with this `id`."""
        settings = ", ".join(f"{name} = :{name}" for name in columns)
        self.run(f"UPDATE {table} SET {settings} WHERE id = :id", {**columns, "id": row_id})

    def rows(self, table: str, where: str = "1", parameters: Iterable[Any] = ()) -> list[Record]:
        """Rows of a table, oldest first."""
        return self.records(f"SELECT * FROM {table} WHERE {where} ORDER BY created_at, rowid", list(parameters))

    def add_dataset(self, dataset: Dataset) -> None:
        """Note a dataset whose files are written; one that is noted already becomes the newest."""
        self.put("datasets", {
            "id": dataset.id, "task": dataset.task, "template": dataset.template, "directory": dataset.directory,
            "digest": dataset.digest, "train_rows": dataset.count("train"),
            "validation_rows": dataset.count("validation"), "card": dataset.card, "created_at": time.time(),
        })  # fmt: skip

    def save_finetune(self, finetune: FineTune) -> None:
        self.put("finetunes", msgspec.to_builtins(finetune.but(updated_at=time.time())))

    def finetunes(self, where: str = "1", parameters: Iterable[Any] = ()) -> list[FineTune]:
        decoded = [
            row | {name: json.loads(row[name]) for name in ("options", "remote", "metrics")}
            for row in self.rows("finetunes", where, parameters)
        ]
        return msgspec.convert(decoded, list[FineTune])
