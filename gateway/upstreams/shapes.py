"""Answers of a shape that was met before, read in one go.

What an upstream answers differs in its body and in some values of its head; the names of the headers and their
order are the same from one answer to the next. After a few heads of one shape, which llhttp has parsed, a pattern
made of those names finds the next ones: an answer that came whole is then read in one step instead of forty. What
differs in anything else (a name, the order, the framing, a part that is still to come) is for the parser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from gateway.upstreams import NOTED, Head

HEADS_TO_LEARN = 3
SHAPES_AT_MOST = 4
"""Each that does not fit costs a look at the answer's beginning."""
_COUNTED_AT_MOST = 64
_LINES_AT_MOST = 64

_VALUE = b"[\t -~\x80-\xff]*"
"""What llhttp takes for a value: no control character but the tab."""

_SINGULAR = frozenset({b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-connection", b"connection"})
"""Heads with one of these are the parser's, but for a plain `Connection: keep-alive`."""


class Shape:
    """The header names of an answer, in their order and spelling."""

    def __init__(self, names: tuple[bytes, ...]) -> None:
        lower = [name.lower() for name in names]
        self._noted = tuple(name for name in lower if name in NOTED)
        self._length_at = self._noted.index(b"content-length")
        lines = b"".join(map(_line, names))
        self._match: Callable[[bytes], re.Match[bytes] | None]
        self._match = re.compile(b"HTTP/1\\.1 200 " + _VALUE + lines + b"\r\n\r\n").match

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body, where `data` is a whole answer of this shape with status 200, and nothing else."""
        found = self._match(data)
        if found is None:
            return None
        values, start = found.groups(), found.end()
        length = int(values[self._length_at])
        if start + length != len(data):
            return None
        head = Head(200, data[: start - 4], dict(zip(self._noted, values, strict=True)), length, plain=True)
        return head, data[start:]


def _line(name: bytes) -> bytes:
    """The pattern of one header, from the line end before it."""
    lower, start = name.lower(), b"\r\n" + re.escape(name) + b": "
    if lower == b"content-length":
        return start + b"([0-9]{1,15})"
    if lower == b"connection":
        return start + b"(keep-alive)"
    return start + (b"(?![ \t])(" + _VALUE + b")(?<![ \t])" if lower in NOTED else _VALUE)


class Shapes:
    """The shapes of one upstream's answers."""

    def __init__(self) -> None:
        self._known: list[Shape] = []
        self._counts: Counter[tuple[bytes, ...]] = Counter()

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body of an answer that came whole, and in a shape that is known; None: parse it."""
        for shape in self._known:
            found = shape.read(data)
            if found is not None:
                return found
        return None

    def met(self, names: tuple[bytes, ...], first: dict[bytes, bytes]) -> None:
        """Count a head with status 200 that came on plain lines, each name once."""
        if len(self._counts) >= _COUNTED_AT_MOST:
            self._counts.clear()
        self._counts[names] += 1
        if self._counts[names] == HEADS_TO_LEARN and _is_usual(names, first):
            self._known = [Shape(names), *self._known][:SHAPES_AT_MOST]


def _is_usual(names: tuple[bytes, ...], first: dict[bytes, bytes]) -> bool:
    unusual = _SINGULAR.intersection(first)
    return (
        b"content-length" in first
        and (not unusual or (unusual == {b"connection"} and first[b"connection"] == b"keep-alive"))
        and len(names) <= _LINES_AT_MOST
    )
