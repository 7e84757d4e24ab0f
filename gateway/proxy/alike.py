"""Requests that differ from one met before in the values of one text, told by their bytes.

On a route that strips, most requests have the same bytes before their first value and the same behind the last.
Where those stand, and what lies between is the inside of one JSON string, the request is the one met before with
another text: only that has to be cut, and nothing else can be new. Whatever differs in more is read as ever: a
conversation, slots in several texts, another key, a prompt that another template could claim.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from gateway.domain import layout
from gateway.domain.layout import Reader, Unreadable
from gateway.domain.matching import MIN_FIXED_WORDS, Match, fixed_size
from gateway.domain.pattern import TextPattern
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate
from gateway.providers.openai import could_hide_keys, read_chat

KNOWN_AT_MOST = 8
"""Each that a request is not like costs a comparison that ends at the first other byte."""
LARGEST = 128 * 1024
"""Larger bodies are read as ever: they are not kept, and their texts count as those of long requests do."""
PLACES_AT_MOST = 8
"""So often the value is looked for in a request."""

_text_of = msgspec.json.Decoder(str).decode


class Known(NamedTuple):
    """A request that was met: its bytes `before` and `behind` what `field` has between its first and its last
    piece, in message `place` of `parsed`."""

    before: bytes
    behind: bytes
    parsed: dict[str, Any]
    match: Match
    place: int
    field: TextPattern

    def read(self, body: bytes) -> tuple[dict[str, Any], Match] | None:
        """The parsed body and its match, where it differs in nothing but the values."""
        before, behind = self.before, self.behind
        start, end = len(before), len(body) - len(behind)
        if start > end or not body.startswith(before) or not body.endswith(behind):
            return None
        if len(body) > LARGEST or could_hide_keys(body, start, end):
            return None
        try:
            text = self._text(layout.sound(_text_of(b'"%b"' % body[start:end])))
        except (msgspec.DecodeError, UnicodeDecodeError, Unreadable):  # more than the inside of one string
            return None
        values = self.field.cut(text)
        if values is None or not self.field.fills(values, text):
            return None
        _, inputs = self.match
        return self._with_text(text), Match(inputs.template, Inputs(inputs.template, values, (), inputs.envelope))

    def with_inside(self, inside: str) -> dict[str, Any]:
        """The parsed body with this between the first and the last piece, in place of what was met."""
        return self._with_text(self._text(inside))

    def _text(self, inside: str) -> str:
        return f"{self.field.literals[0]}{inside}{self.field.literals[-1]}"

    def _with_text(self, text: str) -> dict[str, Any]:
        messages = self.parsed["messages"].copy()
        messages[self.place] = {**messages[self.place], "content": text}
        return {**self.parsed, "messages": messages}


class Alike:
    """What was met last of the requests that `templates` match."""

    def __init__(self, templates: Sequence[PromptTemplate] = ()) -> None:
        self._templates = [template for template in templates if template.fixed_words >= MIN_FIXED_WORDS]
        self._known: list[Known] = []
        self._missed: Counter[str] = Counter()

    def read(self, body: bytes) -> tuple[dict[str, Any], Match] | None:
        """What `read_chat` and the index of these templates make of it, where it is like one met before."""
        for known in self._known:
            found = known.read(body)
            if found is not None:
                return found
        return None

    def met(self, body: bytes, parsed: dict[str, Any], match: Match) -> None:
        """A request was read that is like none that is known. That is looked into ever more rarely."""
        name = match.template.name
        self._missed[name] += 1
        missed = self._missed[name]
        if len(body) <= LARGEST and missed & (missed - 1) == 0:
            known = known_as(body, parsed, match)
            if known is not None and not any(self._rivals(known)):
                self._known = [known, *self._known][:KNOWN_AT_MOST]

    def _rivals(self, known: Known) -> Iterator[PromptTemplate]:
        """The templates that would be preferred to the one known, if they matched a request like it."""
        mine, seen = known.match.template, Reader(known.parsed)
        least = 0 if any(one.replaces == mine.name for one in self._templates) else fixed_size(mine)
        for rival in self._templates:
            if rival.name != mine.name and fixed_size(rival) >= least and _could_claim(rival, known, seen):
                yield rival


def known_as(body: bytes, parsed: dict[str, Any], match: Match) -> Known | None:
    """Where the values stand in the bytes of this request; None where that cannot be told, or is not all."""
    template = match.template
    if template.turns or not template.slots or layout.outside(parsed):
        return None
    place, pattern = next((i, p) for i, p in enumerate(template.head) if p.holes)
    if not pattern.is_plain or pattern.holes != len(template.slots):
        return None
    field = pattern.fields[0]
    first, last = field.literals[0], field.literals[-1]
    text = parsed["messages"][place]["content"]
    inside = text[len(first) : len(text) - len(last)]
    for start, end in islice(_places(body, (first, inside, last)), PLACES_AT_MOST):
        known = Known(body[:start], body[end:], parsed, match, place, field)
        if _stands_there(known):
            return known
    return None


def _places(body: bytes, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the second of three texts may stand, the three being one string, from the end on."""
    for is_ascii in (False, True):  # as most encoders write a text, and as Python's does
        first, value, last = (json.dumps(text, ensure_ascii=is_ascii)[1:-1].encode() for text in texts)
        whole, found = b'"%b%b%b"' % (first, value, last), len(body)
        while (found := body.rfind(whole, 0, found)) >= 0:
            start = found + 1 + len(first)
            yield start, start + len(value)
            found += len(whole) - 1


def _stands_there(known: Known) -> bool:
    """Whether something else in their place makes another text, and nothing else.

    It begins with an x, with which no escape goes on, and ends with a slash as no encoder writes it
    that leaves no spaces: so the keys are looked for, too, which a body without spaces is spared.
    """
    token = "x" + secrets.token_hex(16)
    found = read_chat(known.before + token.encode() + b"\\/" + known.behind)
    return found is not None and layout.same(found, known.with_inside(token + "/"))


def _could_claim(rival: PromptTemplate, known: Known, seen: Reader) -> bool:
    """Whether another template might match a request like this one, for some value. `seen`: this one, read."""
    if rival.bucket != seen.bucket or len(rival.head) > seen.count:
        return False
    if len(rival.head) != seen.count and not rival.turns:
        return False
    return all(
        _fits(pattern, *seen.message(place), known if place == known.place else None)
        for place, pattern in enumerate(rival.head)
    )


def _fits(pattern: MessagePattern, header: str, texts: Sequence[str], known: Known | None) -> bool:
    if pattern.header != header:
        return False
    if known is None:
        return all(field.cut(text) is not None for field, text in zip(pattern.fields, texts, strict=True))
    return _may_cut(pattern.fields[0], known.field.literals[0], known.field.literals[-1])


def _may_cut(field: TextPattern, first: str, last: str) -> bool:
    """Whether some text that begins and ends like this could be cut by it."""
    begins, ends = field.literals[0], field.literals[-1]
    if not field.slots:
        return begins.startswith(first) and begins.endswith(last)
    return (begins.startswith(first) or first.startswith(begins)) and (ends.endswith(last) or last.endswith(ends))
