"""What no template explains, by what requests have in common: tells when a search for a new prompt is worth while.

A request leaves a few cues: the template that it nearly matches, or how its messages begin and end. Five requests
with one cue may be a new prompt. A search that finds nothing is repeated when twice as many have come,
so that the work for a cue grows with the logarithm of its requests; each search looks at the newest 64, a whole
bucket's at 500. Cues are counted as in lossy counting (G. S. Manku and R. Motwani, VLDB 2002): when there are too
many, those that came once are forgotten, so that memory is bounded however many one-off requests there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from gateway.domain.layout import Layout, parse_header
from gateway.pipeline.alignment import TOKEN

ENOUGH = 5
"""So many requests with one cue are searched for a prompt."""
ENOUGH_OF_BUCKET = 20
"""So many requests that share nothing but their tools and the form of their messages are."""
CUES_AT_MOST = 20_000
_NEWEST, _NEWEST_OF_BUCKET = 64, 500
_GROWTH, _GROWTH_OF_BUCKET = 2.0, 1.5
_READ = 120
_WORDS = 3


class Group(NamedTuple):
    """Requests to search: their ids, oldest first, and the name of the template that all of them nearly match."""

    ids: tuple[str, ...]
    near: str | None = None


class _Cue:
    __slots__ = ("count", "due", "first", "growth", "ids", "near")

    def __init__(self, near: str | None, *, of_bucket: bool) -> None:
        self.near = near
        self.ids: deque[str] = deque(maxlen=_NEWEST_OF_BUCKET if of_bucket else _NEWEST)
        self.first = float(ENOUGH_OF_BUCKET if of_bucket else ENOUGH)
        self.count, self.due = 0, self.first
        self.growth = _GROWTH_OF_BUCKET if of_bucket else _GROWTH


class Residue:
    """Counts cues of unexplained requests; bounded by `CUES_AT_MOST`, not by traffic."""

    def __init__(self) -> None:
        self._cues: dict[Hashable, _Cue] = {}
        self._due: dict[Hashable, None] = {}

    def __len__(self) -> int:
        """How many cues are counted."""
        return len(self._cues)

    def add(self, request_id: str, key: str, seen: Layout, near: str | None = None) -> None:
        """Note a request that no template explains; of one that nearly matches `near`, only that counts."""
        bucket = (key, seen.bucket, _form(seen))
        cues = [("near", near)] if near else [(bucket, *cue) for cue in _cues(seen)]
        for name in (*cues, bucket):
            cue = self._cues.get(name)
            if cue is None:
                cue = self._cues[name] = _Cue(None if name == bucket else near, of_bucket=name == bucket)
            cue.count += 1
            cue.ids.append(request_id)
            if cue.count >= cue.due:
                self._due[name] = None
        if len(self._cues) > CUES_AT_MOST:
            self._forget()

    def due(self) -> Iterator[Group]:
        """The groups to search now, each once: near misses first, then cues, the commonest first (a rare one may be
        some values of a prompt that begin alike), whole buckets last. What was found is told with `found`."""
        searched: set[tuple[str, ...]] = set()
        while self._due:
            name = min(self._due, key=self._order)
            del self._due[name]
            cue = self._cues[name]
            cue.due = cue.count * cue.growth
            ids = tuple(cue.ids)
            if ids and ids not in searched:
                searched.add(ids)
                yield Group(ids, cue.near)

    def newest(self, count: int) -> list[str]:
        """The newest requests that are remembered, oldest first: ids are in the order of time."""
        of_buckets = (cue for cue in self._cues.values() if cue.growth == _GROWTH_OF_BUCKET)
        return sorted(one for cue in of_buckets for one in cue.ids)[-count:]

    def found(self, ids: Sequence[str]) -> None:
        """These are explained now: their cues begin anew with what is left."""
        gone = set(ids)
        for name, cue in list(self._cues.items()):
            if not gone.isdisjoint(cue.ids):
                left = [one for one in cue.ids if one not in gone]
                if not left:
                    del self._cues[name]
                    self._due.pop(name, None)
                    continue
                cue.ids.clear()
                cue.ids.extend(left)
                cue.count = len(left)
                cue.due = max(cue.first, len(left) * cue.growth)
                if cue.count < cue.due:
                    self._due.pop(name, None)

    def _order(self, name: Hashable) -> tuple[bool, bool, int]:
        cue = self._cues[name]
        return cue.growth == _GROWTH_OF_BUCKET, cue.near is None, -cue.count

    def _forget(self) -> None:
        least = 1
        while len(self._cues) > CUES_AT_MOST * 3 // 4:
            for name in [name for name, cue in self._cues.items() if cue.count <= least and name not in self._due]:
                del self._cues[name]
            least *= 2


def _form(seen: Layout) -> tuple[str, ...]:
    """The headers up to the first message of the user: requests of one prompt share them."""
    for i, header in enumerate(seen.headers):
        if parse_header(header)[0] == "user":
            return seen.headers[: i + 1]
    return seen.headers


def _cues(seen: Layout) -> set[tuple[str, int, str]]:
    """The first and the last words of the first message and of the last two."""
    count = len(seen.headers)
    found: set[tuple[str, int, str]] = set()
    for place in {0, count - 1, max(0, count - 2)}:
        texts = seen.fields[place]
        if not texts:
            continue
        first, last = TOKEN.findall(texts[0][:_READ]), TOKEN.findall(texts[-1][-_READ:])
        side = min(place, 1)
        found |= {("starts", side, "".join(first[: 2 * _WORDS])), ("ends", side, "".join(last[-2 * _WORDS :]))}
        found |= {("starts", side, "".join(first[:2])), ("ends", side, "".join(last[-2:]))}
    return found
