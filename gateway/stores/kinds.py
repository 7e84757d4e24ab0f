"""What many exchanges have in common, such as endpoint, model and target: stored once, and a number in each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gateway.stores.blocks import Run

OF_REQUESTS = ("route", "task_hint", "provider", "method", "endpoint", "model_requested", "key_id")
OF_RESPONSES = (
    "model_served", "target", "stripped", "status", "streamed", "error_type", "finish_reason", "usage_source",
)  # fmt: skip
NO_ANSWER = 0
_KNOWN = 4096
"""So many of the newest kinds are known by heart. One that is not is noted once more: two alike do no harm, and to
look for it would take an index."""

Kind = tuple[Any, ...]


class Kinds:
    """The rows of `request_kinds` or of `response_kinds`. Belongs to the store's connection, and to its thread.
    Whatever changes them is to be called in a transaction, and `forget` when that is rolled back."""

    def __init__(self, run: Run, table: str, columns: tuple[str, ...]) -> None:
        names = ", ".join(columns)
        places = ", ".join("?" * len(columns))
        self._run = run
        self._note = f"INSERT INTO {table} ({names}, exchanges) VALUES ({places}, 0)"
        self._read = f"SELECT id, {names} FROM {table} WHERE id > 0 ORDER BY id DESC LIMIT {_KNOWN}"
        self._more = (
            f"INSERT INTO {table} (id, {names}, exchanges) VALUES (?, {places}, ?)"
            " ON CONFLICT (id) DO UPDATE SET exchanges = exchanges + excluded.exchanges"
        )
        self._fewer = f"UPDATE {table} SET exchanges = exchanges - ? WHERE id = ?"
        self._unused = f"DELETE FROM {table} WHERE id = ? AND id > 0 AND exchanges <= 0"
        self._known: dict[Kind, int] = {}

    def numbers(self, kinds: Iterable[Kind]) -> list[int]:
        """The number of each, for rows that are added in this transaction."""
        given = list(kinds)
        self._know()
        try:
            numbers = [*map(self._known.__getitem__, given)]
        except KeyError:
            numbers = [self._known.get(kind) or self._noted(kind) for kind in given]
        kind_of = dict(zip(numbers, given, strict=True))
        for number, count in Counter(numbers).items():
            self._run(self._more, (number, *kind_of[number], count))  # whoever deleted it meanwhile: it is back
        return numbers

    def _know(self) -> None:
        if not 0 < len(self._known) <= 2 * _KNOWN:
            self._known = {tuple(kind): number for number, *kind in self._run(self._read, ()).fetchall()[::-1]}

    def _noted(self, kind: Kind) -> int:
        number = self._known[kind] = int(self._run(self._note, kind).lastrowid or 0)
        return number

    def release(self, numbers: Iterable[int]) -> None:
        """So many rows do not refer to these any more; what none refers to is deleted."""
        for number, count in Counter(numbers).items():
            self._run(self._fewer, (count, number))
            self._run(self._unused, (number,))

    def forget(self) -> None:
        """What was noted last may not be there."""
        self._known = {}
