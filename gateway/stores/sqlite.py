"""The store in one SQLite file (WAL mode), readable with sqlite-utils and Datasette."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import sqlite_utils

from gateway.domain.dataset import Dataset
from gateway.domain.exchange import End, Exchange
from gateway.domain.finetune import FineTune
from gateway.domain.template import PromptTemplate
from gateway.errors import StoreError

LOCKED_SECONDS = 30.0
"""How long another process may hold the file before we give up."""

_EXCHANGE_COLUMNS = tuple(field.name for field in msgspec.structs.fields(Exchange))
_JSON_COLUMNS = frozenset({"tags", "attempts", "request_headers", "response_headers"})
_INSERT = (
    f"INSERT INTO exchanges ({', '.join(_EXCHANGE_COLUMNS)})"
    f" VALUES ({', '.join(':' + name for name in _EXCHANGE_COLUMNS)}) ON CONFLICT (id) DO NOTHING"
)
_ENDED = tuple(
    name for name in _EXCHANGE_COLUMNS
    if name not in {"id", "started_at", "route", "task", "task_version", "task_hint", "provider", "method",
                    "endpoint", "model_requested", "tags", "key_id", "request_headers", "request", "truncated"}
)  # fmt: skip
_END = (
    f"UPDATE exchanges SET {', '.join(f'{name} = :{name}' for name in _ENDED)},"
    " truncated = MAX(truncated, :truncated) WHERE id = :id"
)
UNEXPLAINED = "task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0"
"""The exchanges that belong to no task although they were looked at and could be read."""
ANSWERED = "complete = 1 AND truncated = 0 AND stripped = 0 AND status BETWEEN 200 AND 299"
"""The exchanges that an incumbent has answered whole."""
Record = dict[str, Any]


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
        self.db = sqlite_utils.Database(self._connection)

    def close(self) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        self._write_ahead()
        # FULL: the journal's segments are deleted on the strength of what was committed here.
        for setting in ("synchronous = FULL", "foreign_keys = ON"):
            self._run(f"PRAGMA {setting}")
        migrations = _migrations()
        known, found = max(migrations), self._version()
        if found > known:
            raise StoreError(
                f"store {self.path}: its tables have version {found}, this release knows {known}; upgrade unprompt"
            )
        if found < known:  # asked first, so that opening a file that is up to date waits for no writer
            with self.transaction():
                self._migrate(migrations)

    def _write_ahead(self) -> None:
        """SQLite does not wait for a lock when the journal mode is changed, so we do."""
        until = time.monotonic() + LOCKED_SECONDS
        while True:
            try:
                self._run("PRAGMA journal_mode = WAL")
            except StoreError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and one writer at a time from the first statement on."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has rolled it back already
                self._run("ROLLBACK")
            raise

    def _run(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, values)
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path}: {error}") from error

    def _run_many(self, sql: str, rows: Iterable[Any]) -> None:
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path}: {error}") from error

    def _records(self, sql: str, values: Any = ()) -> list[Record]:
        cursor = self._run(sql, values)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in self._fetched(cursor)]

    def _fetched(self, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
        try:
            yield from cursor
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path}: {error}") from error

    def _version(self) -> int:
        return int(self._run("PRAGMA user_version").fetchone()[0])

    def _migrate(self, migrations: Mapping[int, str]) -> None:
        done = self._version()  # again: another process may have been faster
        if done == 0 and self._run("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"store {self.path}: a database of something else; name another file in store.url")
        for number in sorted(number for number in migrations if number > done):
            for statement in _statements(migrations[number]):
                self._run(statement)
            self._run(f"PRAGMA user_version = {number}")

    # --- exchanges -----------------------------------------------------------------------------

    def offset(self, segment: str) -> int:
        """How many bytes of this journal segment are in the store."""
        row = self._run("SELECT offset FROM journal WHERE segment = ?", [segment]).fetchone()
        return int(row[0]) if row else 0

    def absorb(self, segment: str, offset: int, begun: Iterable[Exchange], ended: Iterable[End]) -> None:
        """Rows and the new offset of their segment in one transaction; a row that is there stays as it is."""
        self._run_many(_INSERT, map(_exchange_row, begun))
        self._run_many(_END, map(_end_row, ended))
        self._run(
            "INSERT INTO journal VALUES (?, ?) ON CONFLICT (segment) DO UPDATE SET offset = excluded.offset",
            [segment, offset],
        )

    def forget_segment(self, segment: str) -> None:
        self._run("DELETE FROM journal WHERE segment = ?", [segment])

    def exchange(self, exchange_id: str) -> Exchange | None:
        found = self.exchanges("id = ?", [exchange_id])
        return found[0] if found else None

    def exchanges(self, where: str = "1", parameters: Iterable[Any] = (), *, limit: int = -1) -> list[Exchange]:
        """The exchanges for which the SQL condition `where` holds, oldest first."""
        return list(self.each_exchange(where, parameters, limit=limit))

    def each_exchange(
        self, where: str = "1", parameters: Iterable[Any] = (), *, limit: int = -1
    ) -> Iterator[Exchange]:
        """As `exchanges`, one at a time: bodies are large, and not all fit into memory."""
        query = f"SELECT {', '.join(_EXCHANGE_COLUMNS)} FROM exchanges WHERE {where} ORDER BY id LIMIT ?"
        for row in self._fetched(self._run(query, [*parameters, limit])):
            yield _exchange(row)

    def unseen(self, limit: int) -> list[Exchange]:
        """Complete exchanges that inference has not looked at yet."""
        return self.exchanges("looked_at = 0 AND complete = 1", limit=limit)

    def unassigned(self, limit: int) -> list[Exchange]:
        """The newest unexplained exchanges, oldest first."""
        newest = f"id IN (SELECT id FROM exchanges WHERE {UNEXPLAINED} ORDER BY id DESC LIMIT ?)"
        return self.exchanges(newest, [limit])

    def assign(self, assignments: Mapping[str, tuple[str, int] | None]) -> None:
        """Note which task and template version each exchange belongs to; None: none known."""
        rows = [(*(found or (None, None)), key) for key, found in assignments.items()]
        self._run_many("UPDATE exchanges SET task = ?, task_version = ?, looked_at = 1 WHERE id = ?", rows)

    def set_aside(self, exchange_ids: Iterable[str]) -> None:
        """Note that no template can be found in these: they are no chat requests."""
        self._run_many(
            "UPDATE exchanges SET task = NULL, task_version = NULL, looked_at = 2 WHERE id = ?",
            [(key,) for key in exchange_ids],
        )

    def count(self, where: str = "1", parameters: Iterable[Any] = ()) -> int:
        return int(self._run(f"SELECT COUNT(*) FROM exchanges WHERE {where}", list(parameters)).fetchone()[0])

    def answered(self, task: str, newest: int = -1) -> list[Record]:
        """Who answered the task's newest exchanges, newest first: provider, model_requested, target,
        model_served, task_version, input_tokens."""
        return self._records(
            "SELECT provider, model_requested, target, model_served, task_version, input_tokens FROM exchanges"
            f" WHERE task = ? AND {ANSWERED} ORDER BY id DESC LIMIT ?",
            [task, newest],
        )

    # --- tasks and templates ---------------------------------------------------------------------

    def add_template(self, template: PromptTemplate) -> None:
        now = time.time()
        self._run("INSERT OR IGNORE INTO tasks (name, created_at) VALUES (?, ?)", [template.task, now])
        self._run(
            "INSERT OR IGNORE INTO templates (name, task, version, body, created_at) VALUES (?, ?, ?, ?, ?)",
            [template.name, template.task, template.version, msgspec.json.encode(template).decode(), now],
        )

    def templates(self, task: str | None = None) -> list[PromptTemplate]:
        """All templates, or one task's, oldest version first."""
        where, values = ("1", []) if task is None else ("task = ?", [task])
        rows = self._run(f"SELECT body FROM templates WHERE {where} ORDER BY task, version", values)
        return [msgspec.json.decode(body, type=PromptTemplate) for (body,) in self._fetched(rows)]

    def set_kind(self, task: str, kind: str) -> None:
        self._run("UPDATE tasks SET kind = ? WHERE name = ?", [kind, task])

    def tasks(self) -> list[Record]:
        """Name, kind and counts of each task."""
        return self._records(
            "SELECT t.name, t.kind, t.created_at, COUNT(e.id) AS exchanges,"
            " COALESCE(SUM(e.stripped), 0) AS stripped, MAX(e.started_at) AS last_at, SUM(e.cost_usd) AS cost_usd"
            " FROM tasks t LEFT JOIN exchanges e ON e.task = t.name GROUP BY t.name ORDER BY exchanges DESC, t.name"
        )

    def version_counts(self, task: str, newest: int) -> dict[int, int]:
        """How many of the task's newest exchanges were made with each template version."""
        rows = self._run(
            "SELECT task_version, COUNT(*) FROM (SELECT task_version FROM exchanges WHERE task = ?"
            " ORDER BY id DESC LIMIT ?) WHERE task_version IS NOT NULL GROUP BY task_version",
            [task, newest],
        )
        return {int(version): int(count) for version, count in rows}

    # --- what is learned ---------------------------------------------------------------------------

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert a row, or change the columns given of the row with that `id`; mappings and lists become JSON."""
        flat = {k: json.dumps(v) if isinstance(v, dict | list | tuple) else v for k, v in row.items()}
        updates = ", ".join(f"{name} = excluded.{name}" for name in flat if name != "id")
        self._run(
            f"INSERT INTO {table} ({', '.join(flat)}) VALUES ({', '.join(':' + name for name in flat)})"
            f" ON CONFLICT (id) DO UPDATE SET {updates}",
            flat,
        )

    def change(self, table: str, row_id: str, **columns: Any) -> None:
        """Change columns of the row with this `id`."""
        settings = ", ".join(f"{name} = :{name}" for name in columns)
        self._run(f"UPDATE {table} SET {settings} WHERE id = :id", {**columns, "id": row_id})

    def rows(self, table: str, where: str = "1", parameters: Iterable[Any] = ()) -> list[Record]:
        """Rows of a table, oldest first."""
        return self._records(f"SELECT * FROM {table} WHERE {where} ORDER BY created_at, rowid", list(parameters))

    def add_dataset(self, dataset: Dataset) -> None:
        """Note a dataset whose files are written; one that is noted already becomes the newest."""
        self.put("datasets", {
            "id": dataset.id, "task": dataset.task, "template": dataset.template, "directory": dataset.directory,
            "digest": dataset.digest, "train_rows": len(dataset.part("train")),
            "validation_rows": len(dataset.part("validation")), "card": dataset.card, "created_at": time.time(),
        })  # fmt: skip

    def save_finetune(self, finetune: FineTune) -> None:
        self.put("finetunes", msgspec.to_builtins(finetune.but(updated_at=time.time())))

    def finetunes(self, where: str = "1", parameters: Iterable[Any] = ()) -> list[FineTune]:
        decoded = [
            row | {name: json.loads(row[name]) for name in ("options", "remote", "metrics")}
            for row in self.rows("finetunes", where, parameters)
        ]
        return msgspec.convert(decoded, list[FineTune])


def _migrations() -> dict[int, str]:
    """The scripts of `sql/` by their number."""
    folder = resources.files("gateway.stores") / "sql"
    scripts = (file for file in folder.iterdir() if file.name.endswith(".sql"))
    return {int(script.name.split("_")[0]): script.read_text("utf-8") for script in scripts}


def _statements(script: str) -> Iterator[str]:
    """One statement at a time: `executescript` would commit the transaction that we are in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _exchange_row(exchange: Exchange) -> Record:
    row = msgspec.structs.asdict(exchange)
    for name in _JSON_COLUMNS:
        row[name] = json.dumps(row[name])
    return row


def _end_row(end: End) -> Record:
    return _exchange_row(Exchange(id=end.id, started_at=0.0).ended(end))


def _exchange(row: tuple[Any, ...]) -> Exchange:
    values = dict(zip(_EXCHANGE_COLUMNS, row, strict=True))
    for name in _JSON_COLUMNS:
        values[name] = json.loads(values[name])
    for name in ("stripped", "streamed", "complete", "truncated"):
        values[name] = bool(values[name])
    values["request"], values["response"] = values["request"] or b"", values["response"] or b""
    return Exchange(**values)
