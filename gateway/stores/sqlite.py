"""The store in one SQLite file (WAL mode), readable with sqlite-utils and Datasette."""

from __future__ import annotations

import contextlib
import json
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
from gateway.stores.segments import HalfRecord
from gateway.stores.sqlite_file import Record, SqliteFile

UNEXPLAINED = "task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0"
"""The exchanges that belong to no task although they were looked at and could be read."""
ANSWERED = "complete = 1 AND truncated = 0 AND looked_at < 2 AND stripped = 0 AND status BETWEEN 200 AND 299"
"""The exchanges that an incumbent has answered whole, and that can be read."""
_OF_A_TASK = (
    "SELECT id FROM exchanges WHERE id IN (SELECT value FROM json_each(?)) AND task IN (SELECT name FROM tasks)"
    " AND (task_hint IS NULL OR stripped OR copy_of IS NOT NULL)"
)
"""Of these exchanges, those whose task the relay itself has found: it is more than a word of the app."""
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
_AT_ONCE = 128


class SqliteStore(SqliteFile):
    """All tables of one file. An instance belongs to one thread; open another one per thread or process.

    Every method raises `StoreError` when SQLite refuses: locked for 30 s, disk full, damaged.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and brings its tables up to date.

        Raises:
            StoreError: the file cannot be opened, is not ours, or is of a later release.
        """
        self.blocks = Blocks(self.run)
        self.dictionaries = Dictionaries(self.run)
        self.requests = Kinds(self.run, "request_kinds", OF_REQUESTS)
        self.answers = Kinds(self.run, "response_kinds", OF_RESPONSES)
        super().__init__(path)

    def forget(self) -> None:
        """Names that were numbered in a transaction that has failed have no numbers."""
        self.requests.forget()
        self.answers.forget()

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
        with contextlib.nullcontext() if self.in_transaction else self.transaction():
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
        found = array("q", (row for (row,) in self.fetched(self.run(query, [*parameters, limit]))))
        for start in range(0, len(found), _AT_ONCE):
            part = json.dumps(found[start : start + _AT_ONCE].tolist())
            query = f"{row_of.SELECT} WHERE rowid IN (SELECT value FROM json_each(?)) ORDER BY id"
            with self.snapshot():
                exchanges = [self._exchange(row) for row in list(self.fetched(self.run(query, [part])))]
            yield from exchanges

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

    def answers_to(self, template: str) -> int:
        """How many answers an incumbent has given to one version of a prompt (`TASK@VERSION`); a scan of the task's
        rows."""
        task, _, version = template.rpartition("@")
        return self.count(f"task = ? AND task_version = ? AND {ANSWERED}", [task, int(version)])

    def extent(self, task: str) -> tuple[int, int]:
        """The first and the last row of a task's exchanges, by their numbers in the order of recording; 0 for none.
        Costs two lookups."""
        query = "SELECT {}(number) FROM exchange_rows WHERE task = ?"
        first, last = (self.run(query.format(which), [task]).fetchone()[0] for which in ("MIN", "MAX"))
        return first or 0, last or 0

    def rows_until(self, task: str, number: int) -> int:
        """How many rows a task has up to this number; a scan of an index."""
        query = "SELECT COUNT(*) FROM exchange_rows WHERE task = ? AND number <= ?"
        return int(self.run(query, [task, number]).fetchone()[0])

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
        """Note that no template can be found in these: they are no chat requests, or were recorded without their
        bodies. Of which task the relay has found them to be when it could read them, they stay."""
        keys = list(exchange_ids)
        if not keys:
            return
        known = {key for (key,) in self.run(_OF_A_TASK, [json.dumps(keys)]).fetchall()}
        with self.recounted(keys):
            fresh = ledger.not_entered(self.run, known)
            self.run_many(
                "UPDATE exchange_rows SET task = CASE WHEN ? THEN task END, task_version = NULL, looked_at = 2"
                " WHERE id = ?",
                [(key in known, key) for key in keys],
            )
            ledger.enter(self.run, fresh)

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
        return [msgspec.json.decode(body, type=PromptTemplate) for (body,) in self.fetched(rows)]

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
