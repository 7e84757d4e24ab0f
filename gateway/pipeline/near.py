"""Which template does a request nearly match? The prompt of a task that changes keeps most of its text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from gateway.domain.layout import Layout
from gateway.domain.template import PromptTemplate, TextPattern

NEAR = 0.6
"""Share of a template's pieces of text that a request holds to nearly match it: of all its messages, and of those
that have slots, since a long system prompt may be several tasks'."""
_PIECE = re.compile(r"[^\n]{1,60}(?:\s|$)|[^\n]{1,60}")
_PIECES = 24
_EDGES = (12, 5)
_TRIED = 12
_VOTES = 200


class NearMisses:
    """Finds the template that a request nearly matches: by the ends of its texts, then by how much it holds."""

    def __init__(self, templates: Sequence[PromptTemplate]) -> None:
        self._templates: dict[str, PromptTemplate] = {}
        self._pieces: dict[str, tuple[list[str], list[str]]] = {}
        self._by_edge: dict[tuple[bool, str], dict[str, None]] = defaultdict(dict)
        for template in templates:
            self.put(template)

    def put(self, template: PromptTemplate) -> None:
        """Add a template, or replace the one of this name."""
        self._templates[template.name] = template
        self._pieces[template.name] = (_pieces(template, local=False), _pieces(template, local=True))
        for edge in set(_edges_of(template)):
            self._by_edge[edge][template.name] = None

    def nearest(self, seen: Layout) -> PromptTemplate | None:
        """The template that most of whose text is in the request, if it is enough of it."""
        votes: Counter[str] = Counter()
        count = len(seen.fields)
        for fields in (*seen.fields[:6], *seen.fields[max(6, count - 2) :]):
            for text in fields:
                for edge in _edges(text, text):
                    votes.update(islice(self._by_edge.get(edge, ()), _VOTES))
        if not votes:
            return None
        text = "\n".join(text for fields in seen.fields for text in fields)
        shares = {name: self._share(name, text) for name, _ in votes.most_common(_TRIED)}
        best = max(shares, key=lambda name: (shares[name], votes[name], name))
        return self._templates[best] if shares[best] >= NEAR else None

    def _share(self, name: str, text: str) -> float:
        shares = [sum(piece in text for piece in some) / len(some) for some in self._pieces[name] if some]
        return min(shares, default=0.0)


def _pieces(template: PromptTemplate, *, local: bool) -> list[str]:
    """Some lines and half lines of the fixed text, spread over it."""
    fields = [f for pattern in template.patterns for f in pattern.fields if f.slots or not local]
    texts = [piece.strip() for f in fields for literal in f.literals for piece in _PIECE.findall(literal)]
    pieces = [piece for piece in texts if len(piece) >= 4]
    return [pieces[i * len(pieces) // _PIECES] for i in range(_PIECES)] if len(pieces) > _PIECES else pieces


def _edges_of(template: PromptTemplate) -> Iterator[tuple[bool, str]]:
    for pattern in template.patterns:
        for field in pattern.fields:
            yield from _edges_of_field(field)


def _edges_of_field(field: TextPattern) -> Iterator[tuple[bool, str]]:
    yield from (edge for edge in _edges(field.literals[0], "") if edge[1])
    yield from (edge for edge in _edges("", field.literals[-1]) if edge[1])


def _edges(start: str, end: str) -> Iterator[tuple[bool, str]]:
    """How a text begins and ends, in two lengths; nothing where it is shorter."""
    for size in _EDGES:
        if len(start) >= size:
            yield True, start[:size]
        if len(end) >= size:
            yield False, end[-size:]
