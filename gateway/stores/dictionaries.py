"""Which dictionary each kind of recorded body is compressed with, and when it gets a better one.

A kind is the requests for one model at one endpoint under one task hint, or the answers of one target. Its first
dictionary is made after 32 of them, and others are tried when there are many more, or when frames have become
larger because the prompt has changed; one is taken into use only if it packs bodies better that it has not seen.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gateway.errors import StoreError
from gateway.stores.frames import NO_DICTIONARY, Dictionary, dictionary_of, trained

SAMPLES = 128
SAMPLE_BYTES = 16 * 1024
"""Only the beginning of a longer body goes into a sample: that is where prompts stand."""
HELD_OUT = 16
FIRST_TRY = 32
NEXT_TRY = 16
"""Without need, the next dictionary is tried when there are so many times as many bodies."""
BETTER = 0.95
"""A new dictionary must make frames this much smaller."""
WORSE = 1.25
"""Frames that are so much larger than they were make the next try due."""
MOST_KINDS = 64
"""Of more, the rarest is forgotten: a client can make up model names."""

Kind = tuple[str | None, ...]
Run = Callable[[str, Sequence[Any]], sqlite3.Cursor]


class _Bodies:
    """The bodies of one kind: the dictionary in use, and samples for the next one."""

    __slots__ = ("best", "dictionary", "due", "name", "next_sample", "next_try", "samples", "seen", "sizes")

    def __init__(self, name: str, dictionary: Dictionary) -> None:
        self.name, self.dictionary = name, dictionary
        self.seen = self.next_sample = 0
        self.next_try = FIRST_TRY
        self.samples: deque[tuple[str, bytes]] = deque(maxlen=SAMPLES)
        self.sizes: deque[float] = deque(maxlen=SAMPLES)
        self.best = 1.0
        self.due = False

    def sample(self, exchange_id: str, content: bytes, frame: bytes) -> None:
        """All of the first bodies, then one of sixteen: enough to notice a change, and next to no work."""
        self.next_sample = self.seen + (0 if self.seen < SAMPLES else 15)
        self.samples.append((exchange_id, content[:SAMPLE_BYTES]))
        self.sizes.append(len(frame) / max(len(content), 1))
        if self.seen >= self.next_try:
            self.due = True
        elif len(self.sizes) == SAMPLES and self.seen % 256 < 16:
            recent = sum(self.sizes) / SAMPLES
            self.due = recent > self.best * WORSE
            self.best = min(self.best, recent) if not self.due else recent

    def change(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.sizes.clear()
        self.best = 1.0


class Dictionaries:
    """The dictionaries of one store. Belongs to the store's connection, and to its thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[int, Dictionary] = {NO_DICTIONARY: Dictionary(NO_DICTIONARY, b"")}
        self._kinds: dict[Kind, _Bodies] = {}
        self._current: dict[str, tuple[int, float]] | None = None

    def refresh(self) -> None:
        """Note which dictionaries may be used: asked at the start of each transaction that packs, since another
        process may have retired one."""
        rows = self._run("SELECT used_for, id, created_at FROM dictionaries WHERE retired = 0 ORDER BY id", ())
        current = {name: (number, created) for name, number, created in rows.fetchall()}
        if current == self._current:
            return
        self._current = current
        self._known = {NO_DICTIONARY: self._known[NO_DICTIONARY]}
        for bodies in self._kinds.values():
            number, _ = current.get(bodies.name, (NO_DICTIONARY, 0.0))
            if number or bodies.dictionary.number:
                bodies.change(self._dictionary(number))

    def forget(self) -> None:
        """A transaction failed: a dictionary that was made in it is none, and another may get its number."""
        self._current = None
        self._known = {NO_DICTIONARY: self._known[NO_DICTIONARY]}

    def pack(self, kind: Kind, exchange_id: str, content: bytes) -> bytes:
        """The content as a frame, made with the dictionary of its kind."""
        bodies = self._kinds.get(kind)
        if bodies is None:
            bodies = self._add(kind)
        frame: bytes = bodies.dictionary.pack(content)
        bodies.seen += 1
        if bodies.seen > bodies.next_sample:
            bodies.sample(exchange_id, content, frame)
        return frame

    def _add(self, kind: Kind) -> _Bodies:
        if len(self._kinds) >= MOST_KINDS:
            del self._kinds[min(self._kinds, key=lambda known: self._kinds[known].seen)]
        name = json.dumps(kind, ensure_ascii=False)
        number, _ = (self._current or {}).get(name, (NO_DICTIONARY, 0.0))
        made = _Bodies(name, self._dictionary(number))
        self._kinds[kind] = made
        return made

    def unpack(self, frame: bytes) -> bytes:
        """The content of a frame.

        Raises:
            ValueError: the frame is damaged.
            StoreError: its dictionary is not in the store.
        """
        return self._dictionary(dictionary_of(frame)).unpack(frame)

    def _dictionary(self, number: int) -> Dictionary:
        known = self._known.get(number)
        if known is None:
            row = self._run("SELECT body FROM dictionaries WHERE id = ?", (number,)).fetchone()
            if row is None or row[0] is None:
                raise StoreError(f"dictionary {number} is not in the store")
            known = self._known[number] = Dictionary(number, row[0])
        return known

    def retire(self) -> set[int]:
        """Use no dictionary any more that was made from a deleted exchange; gives those that must be dropped."""
        self._run(
            "UPDATE dictionaries SET retired = 1 WHERE retired = 0 AND EXISTS (SELECT 1 FROM json_each(sources)"
            " JOIN deletions ON exchange_id = value)", (),
        )  # fmt: skip
        rows = self._run("SELECT id FROM dictionaries WHERE retired = 1 AND body IS NOT NULL", ())
        return {number for (number,) in rows.fetchall()}

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget the text of dictionaries that nothing needs any more. Their numbers are not used again."""
        for number in numbers:
            self._run("UPDATE dictionaries SET body = NULL, sources = '[]' WHERE id = ?", (number,))
            self._known.pop(number, None)

    def improve(self) -> None:
        """Try a new dictionary where one is due; to be called in the transaction that packed, at its end."""
        for bodies in self._kinds.values():
            if bodies.due:
                bodies.due = False
                bodies.next_try = max(bodies.next_try, bodies.seen * NEXT_TRY)
                self._try(bodies)

    def _try(self, bodies: _Bodies) -> None:
        there = self._there(
            [key for key, _ in bodies.samples]
        )  # what was deleted must not come back in a dictionary
        samples = [(key, content) for key, content in bodies.samples if key in there]
        held_out, given = [c for _, c in samples[-HELD_OUT:]], samples[:-HELD_OUT]
        number = self._run("SELECT COALESCE(MAX(id), 0) + 1 FROM dictionaries", ()).fetchone()[0]
        body = trained([content for _, content in given], number) if given else None
        if body is None:
            return
        made = Dictionary(number, body)
        if _size(made, held_out) > _size(bodies.dictionary, held_out) * BETTER:
            return
        now = time.time()
        self._run(
            "INSERT INTO dictionaries (id, used_for, created_at, sources, body) VALUES (?, ?, ?, ?, ?)",
            (number, bodies.name, now, json.dumps([key for key, _ in given]), body),
        )
        self._known[number] = made
        if self._current is not None:
            self._current[bodies.name] = (number, now)
        bodies.change(made)

    def _there(self, exchange_ids: Iterable[str]) -> set[str]:
        found = self._run(
            "SELECT id FROM exchanges WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(exchange_ids)),),
        )
        return {key for (key,) in found.fetchall()}


def _size(dictionary: Dictionary, contents: Iterable[bytes]) -> int:
    return sum(len(dictionary.pack(content)) for content in contents)
