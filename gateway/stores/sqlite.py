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

_EXCHANGE_COLUMNS = tuple(field.name for field in msgspec.structs.fields(Exchange))
_JSON_COLUMNS = frozenset({"tags", "attempts", "request_headers", "response_headers"})
_INSERT = (
    f"INSERT OR IGNORE INTO exchanges ({', '.join(_EXCHANGE_COLUMNS)})"
    f" VALUES ({', '.join(':' + name for name in _EXCHANGE_COLUMNS)})"
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
Record = dict[str, Any]


class SqliteStore:
    """All tables of one file. An instance belongs to one thread; open another one per thread or process."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and brings its tables up to date.

        Raises:
            StoreError: the file cannot be opened, or is not ours.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"store {path}: {error}; check the path in store.url and its permissions") from error
        self._connection = connection
        self.db = sqlite_utils.Database(connection)
        with self.transaction():
            self._migrate()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and one writer at a time from the first statement on.

        Raises:
            StoreError: SQLite refused (locked for 30 s, disk full, damaged).
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"store {self.path}: {error}") from error

    def _migrate(self) -> None:
        done = self._connection.execute("PRAGMA user_version").fetchone()[0]
        folder = resources.files("gateway.stores") / "sql"
        scripts = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
        for script in scripts:
            number = int(script.name.split("_")[0])
            if number > done:
                for statement in _statements(script.read_text("utf-8")):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number}")

    # --- exchanges -----------------------------------------------------------------------------

    def offset(self, segment: str) -> int:
        """How many bytes of this journal segment are in the store."""
        row = self._connection.execute("SELECT offset FROM journal WHERE segment = ?", [segment]).fetchone()
        return int(row[0]) if row else 0

    def absorb(self, segment: str, offset: int, begun: Iterable[Exchange], ended: Iterable[End]) -> None:
        """Rows and the new offset of their segment in one transaction; a row that is there stays as it is."""
        self._connection.executemany(_INSERT, map(_exchange_row, begun))
        self._connection.executemany(_END, map(_end_row, ended))
        self._connection.execute(
            "INSERT INTO journal VALUES (?, ?) ON CONFLICT (segment) DO UPDATE SET offset = excluded.offset",
            [segment, offset],
        )

    def forget_segment(self, segment: str) -> None:
        self._connection.execute("DELETE FROM journal WHERE segment = ?", [segment])

    def exchange(self, exchange_id: str) -> Exchange | None:
        found = self.exchanges("id = ?", [exchange_id])
        return found[0] if found else None

    def exchanges(self, where: str = "1", parameters: Iterable[Any] = (), *, limit: int = -1) -> list[Exchange]:
        """The exchanges for which the SQL condition `where` holds, oldest first."""
        query = f"SELECT {', '.join(_EXCHANGE_COLUMNS)} FROM exchanges WHERE {where} ORDER BY id LIMIT ?"
        cursor = self._connection.execute(query, [*parameters, limit])
        return [_exchange(row) for row in cursor]

    def unseen(self, limit: int) -> list[Exchange]:
        """Complete exchanges that inference has not looked at yet."""
        return self.exchanges("looked_at = 0 AND complete = 1", limit=limit)

    def unassigned(self, limit: int) -> list[Exchange]:
        """The newest exchanges that belong to no task although they were looked at, oldest first."""
        newest = "id IN (SELECT id FROM exchanges WHERE task IS NULL AND looked_at = 1 ORDER BY id DESC LIMIT ?)"
        return self.exchanges(newest, [limit])

    def assign(self, assignments: Mapping[str, tuple[str, int] | None]) -> None:
        """Note which task and template version each exchange belongs to; None: none known."""
        rows = [(*(found or (None, None)), key) for key, found in assignments.items()]
        self._connection.executemany(
            "UPDATE exchanges SET task = ?, task_version = ?, looked_at = 1 WHERE id = ?", rows
        )

    def count(self, where: str = "1", parameters: Iterable[Any] = ()) -> int:
        query = f"SELECT COUNT(*) FROM exchanges WHERE {where}"
        return int(self._connection.execute(query, list(parameters)).fetchone()[0])

    # --- tasks and templates ---------------------------------------------------------------------

    def add_template(self, template: PromptTemplate) -> None:
        now = time.time()
        self.db.table("tasks").insert({"name": template.task, "created_at": now}, ignore=True)
        row = {"name": template.name, "task": template.task, "version": template.version,
               "body": msgspec.json.encode(template).decode(), "created_at": now}  # fmt: skip
        self.db.table("templates").insert(row, ignore=True)

    def templates(self, task: str | None = None) -> list[PromptTemplate]:
        """All templates, or one task's, oldest version first."""
        where, values = ("1", []) if task is None else ("task = ?", [task])
        rows = self.db.query(f"SELECT body FROM templates WHERE {where} ORDER BY task, version", values)
        return [msgspec.json.decode(row["body"], type=PromptTemplate) for row in rows]

    def set_kind(self, task: str, kind: str) -> None:
        self._connection.execute("UPDATE tasks SET kind = ? WHERE name = ?", [kind, task])

    def tasks(self) -> list[Record]:
        """Name, kind and counts of each task."""
        return list(self.db.query(
            "SELECT t.name, t.kind, t.created_at, COUNT(e.id) AS exchanges,"
            " COALESCE(SUM(e.stripped), 0) AS stripped, MAX(e.started_at) AS last_at, SUM(e.cost_usd) AS cost_usd"
            " FROM tasks t LEFT JOIN exchanges e ON e.task = t.name GROUP BY t.name ORDER BY exchanges DESC, t.name"
        ))  # fmt: skip

    def version_counts(self, task: str, newest: int) -> dict[int, int]:
        """How many of the task's newest exchanges were made with each template version."""
        rows = self._connection.execute(
            "SELECT task_version, COUNT(*) FROM (SELECT task_version FROM exchanges WHERE task = ?"
            " ORDER BY id DESC LIMIT ?) WHERE task_version IS NOT NULL GROUP BY task_version",
            [task, newest],
        )
        return {int(version): int(count) for version, count in rows}

    # --- what is learned ---------------------------------------------------------------------------

    def put(self, table: str, row: Mapping[str, Any]) -> None:
        """Insert or replace a row by its primary key; mappings and lists are kept as JSON."""
        flat = {k: json.dumps(v) if isinstance(v, dict | list | tuple) else v for k, v in row.items()}
        key = self.db.table(table).pks[0]
        updates = ", ".join(f"{name} = excluded.{name}" for name in flat if name != key)
        self._connection.execute(
            f"INSERT INTO {table} ({', '.join(flat)}) VALUES ({', '.join(':' + name for name in flat)})"
            f" ON CONFLICT ({key}) DO UPDATE SET {updates}",
            flat,
        )

    def rows(self, table: str, where: str = "1", parameters: Iterable[Any] = ()) -> list[Record]:
        """Rows of a table, oldest first."""
        found = self.db.query(f"SELECT * FROM {table} WHERE {where} ORDER BY created_at, rowid", list(parameters))
        return list(found)

    def add_dataset(self, dataset: Dataset) -> None:
        """Note a dataset whose files are written."""
        row = {"id": dataset.id, "task": dataset.task, "template": dataset.template, "directory": dataset.directory,
               "digest": dataset.digest, "train_rows": len(dataset.part("train")),
               "validation_rows": len(dataset.part("validation")), "card": dataset.card,
               "created_at": time.time()}  # fmt: skip
        self.db.table("datasets").insert(row, ignore=True)

    def save_finetune(self, finetune: FineTune) -> None:
        self.put("finetunes", msgspec.to_builtins(finetune.but(updated_at=time.time())))

    def finetunes(self, where: str = "1", parameters: Iterable[Any] = ()) -> list[FineTune]:
        decoded = [
            row | {name: json.loads(row[name]) for name in ("options", "remote", "metrics")}
            for row in self.rows("finetunes", where, parameters)
        ]
        return msgspec.convert(decoded, list[FineTune])


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
