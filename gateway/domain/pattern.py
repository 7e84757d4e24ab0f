"""One text with holes: fixed pieces, the slots between them, and how a text is cut there.

Cutting takes time linear in the text, whatever the text: fixed pieces are looked for from left to right with
`str.find`, each from where the one before it ended, and there is nothing to backtrack into. Where `str.find`
itself could be slowed down (a piece that repeats itself, such as a ruler of dashes), a search that never looks
at a character twice takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]{0,6}"
_WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?"
DATE = rf"(?:\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK})?|(?:{_WEEKDAY}, )?{_MONTH} \d{{1,2}}, \d{{4}}|{_CLOCK})"
"""A date, a date with a time, or a time (a regular expression without anchors)."""
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
ID = rf"(?:{_UUID}|(?=[a-f]{{0,31}}\d)[0-9a-f]{{16,64}}(?!\w)|\d{{10,19}})"
"""A UUID, a hash or trace id, an epoch or another long number (a regular expression without anchors)."""
_TYPES = {
    "date": re.compile(DATE),
    "id": re.compile(ID),
    "number": re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3}){1,8}|\d{1,15})(?:\.\d{1,15})?%?"),
}
_OPENING = {"{": "}", "[": "]"}
_ITEM = re.compile(r"\s{0,8}(?:[-*•]|\d{1,3}[.)]|\[\d{1,3}\])\s")
_SENTENCE_END = re.compile(r"[.!?](?:(?<=[^\W\d_]{4}[.])|(?<=[!?]))[\"')\]]{0,3}\s{1,4}(?=[^\sa-z])|[。？！](?=\S)")

_SELF_OVERLAP = 8
"""From here on a piece repeats itself so much that `str.find` could look at a character this many times."""


class Slot(msgspec.Struct, frozen=True):
    """A hole in the text.

    `name` is for people and for the stripped form; `kind` says what it holds: `text`, `choice` (few different
    texts), `number`, `date`, `id`, `json`, `list`, or `part` for a whole content part that is not text. The
    rest is what the requests behind the template never went beyond; a value that does is not stripped: `limit`
    characters (0: any), `single_line`, `choices` (empty: any), `sentence_limit` characters for more than one
    sentence (0: any), or `single_word` (no white space).
    """

    name: str
    kind: str = "text"
    limit: int = 0
    single_line: bool = False
    choices: tuple[str, ...] = ()
    sentence_limit: int = 0
    single_word: bool = False

    def holds(self, value: str) -> bool:
        """Whether the value is of the sort that was seen here."""
        if self.limit and len(value) > self.limit:
            return False
        if self.single_line and "\n" in value:
            return False
        if self.sentence_limit and len(value) > self.sentence_limit and several_sentences(value):
            return False
        if self.single_word and len(value.split(None, 1)) > 1:
            return False
        if self.kind != "text" and not is_kind(self.kind, value):
            return False
        return not self.choices or value in self.choices


def several_sentences(value: str) -> bool:
    """Whether a sentence ends inside the value; what looks like an abbreviation ends none."""
    return _SENTENCE_END.search(value) is not None


def is_kind(kind: str, value: str) -> bool:
    """Whether the value can be of this kind: to the letter for dates, ids and numbers, by how it begins for a
    list, and by its first and last character for JSON. Anything is a text, a choice or a part."""
    if kind in _TYPES:
        return _TYPES[kind].fullmatch(value) is not None
    if kind == "json":
        return value[:1] in _OPENING and value[-1:] == _OPENING[value[0]]
    return kind != "list" or _ITEM.match(value) is not None


def kind_of(value: str) -> str:
    """The kind of slot that this one value suggests: `date`, `id` or `text`."""
    return next((kind for kind in ("date", "id") if _TYPES[kind].fullmatch(value)), "text")


class TextPattern(msgspec.Struct, frozen=True):
    """One text of a message: `literals[0] slots[0] literals[1] ...`; inner literals are not empty."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...] = ()

    def fill(self, values: Sequence[str]) -> str:
        """The text with these slot values."""
        pieces = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            pieces += (value, literal)
        return "".join(pieces)

    def fills(self, values: Sequence[str], text: str) -> bool:
        """Whether `fill` of these values is this text, told by laying the pieces over it side by side."""
        literals, at = self.literals, len(self.literals[0])
        if len(literals) == 1:
            return not values and text == literals[0]
        if len(values) != len(literals) - 1 or not text.startswith(literals[0]):
            return False
        for value, literal in zip(values, literals[1:], strict=True):
            after = at + len(value)
            if not text.startswith(value, at) or not text.startswith(literal, after):
                return False
            at = after + len(literal)
        return at == len(text)

    def cut(self, text: str) -> tuple[str, ...] | None:
        """The slot values, or None where the text does not fit or could be cut in more than one way."""
        literals = self.literals
        if len(literals) == 1:
            return () if text == literals[0] else None
        start, end = len(literals[0]), len(text) - len(literals[-1])
        if start > end or not text.startswith(literals[0]) or not text.endswith(literals[-1]):
            return None
        values = (text[start:end],) if len(literals) == 2 else _cut_inner(literals, text, start, end)
        if values is None:
            return None
        for slot, value in zip(self.slots, values, strict=True):
            if not slot.holds(value):
                return None
        return values


def _cut_inner(literals: Sequence[str], text: str, start: int, end: int) -> tuple[str, ...] | None:
    # Each piece at its first place. There is another way to cut exactly when some piece occurs once more
    # before the piece behind it: of two ways take the last piece that they place differently.
    places, at = [], start
    for literal in literals[1:-1]:
        place = find(literal, text, at, end)
        if place < 0:
            return None
        places.append(place)
        at = place + len(literal)
    values, before = [], start
    for literal, place, following in zip(literals[1:], places, [*places[1:], end], strict=False):
        if find(literal, text, place + 1, following) >= 0:
            return None
        values.append(text[before:place])
        before = place + len(literal)
    values.append(text[before:end])
    return tuple(values)


def find(piece: str, text: str, start: int, end: int) -> int:
    """`text.find(piece, start, end)` for a piece that is not empty, in linear time whatever the two are."""
    search = _search_for(piece)
    if search is None:
        return text.find(piece, start, end)
    found = search.search(text, start, end)
    return found.start() if found is not None else -1


@lru_cache(maxsize=1 << 16)
def _search_for(piece: str) -> re.Pattern[str] | None:
    """None where `str.find` is linear; else an expression of characters alone, which `re` finds by
    Knuth, Morris and Pratt's table.

    `str.find` compares the piece at every place anew while the text is short: in all as often as a beginning
    of the piece can overlap itself. Long texts, or long pieces in them, it searches by the two-way algorithm.
    """
    borders, border = [0], 0
    for i, char in enumerate(piece[1:2500], 1):
        while border and piece[border] != char:
            border = borders[border - 1]
        border += piece[border] == char
        borders.append(border)
        if i + 1 >= _SELF_OVERLAP * (i + 1 - border):
            return re.compile(re.escape(piece))
    return None
