"""Answers of a shape that was met before, read in one go.

What an upstream answers differs in its body and in some values of its head; the names of the headers and their
order are the same from one answer to the next. After a few heads of one shape, which llhttp has parsed, a pattern
made of those names finds the next ones: an answer that came whole, by its length or in chunks, is then read in one
step instead of forty. What differs in anything else (a name, the order, the framing, a part that is still to come)
is for the parser.
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

_LAST = b"\r\n0\r\n\r\n"
"""The end of a chunk, and the last chunk, without trailers."""
_SIZE = re.compile(b"([1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
"""A chunk's size, as servers write it: no zeros before it, no extensions behind."""

_SINGULAR = frozenset({b"transfer-encoding", b"upgrade", b"te", b"trailer", b"proxy-connection", b"connection"})
"""Heads with one of these are the parser's, but for the plain ones in `_PLAIN`."""
_PLAIN = {b"connection": b"keep-alive", b"transfer-encoding": b"chunked"}


class Shape:
    """The header names of an answer, in their order and spelling."""

    def __init__(self, names: tuple[bytes, ...]) -> None:
        lower = [name.lower() for name in names]
        self._noted = tuple(name for name in lower if name in NOTED)
        self._length_at = self._noted.index(b"content-length") if b"content-length" in self._noted else None
        lines = b"".join(map(_line, names))
        self._match: Callable[[bytes], re.Match[bytes] | None]
        self._match = re.compile(b"HTTP/1\\.1 200 " + _VALUE + lines + b"\r\n\r\n").match

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body, where `data` is a whole answer of this shape with status 200, and nothing else. Of an
        answer in chunks it is known already that it ends with `_LAST`."""
        found = self._match(data)
        if found is None:
            return None
        values, start = found.groups(), found.end()
        length = None
        if self._length_at is None:
            body = _of_chunks(data, start)
            if body is None:
                return None
        else:
            length = int(values[self._length_at])
            if start + length != len(data):
                return None
            body = data[start:]
        head = Head(200, data[: start - 4], dict(zip(self._noted, values, strict=True)), length, plain=True)
        return head, body


def _of_chunks(data: bytes, start: int) -> bytes | None:
    """The body whose chunks begin at `start` and go to the end; None where anything is unusual about them."""
    end, pieces = len(data) - len(_LAST), []
    while (size := _SIZE.match(data, start)) is not None:
        begin = size.end()
        behind = begin + int(size[1], 16)
        pieces.append(data[begin:behind])
        if behind == end:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if behind > end or data[behind : behind + 2] != b"\r\n":
            break
        start = behind + 2
    return None


def _line(name: bytes) -> bytes:
    """The pattern of one header, from the line end before it."""
    lower, start = name.lower(), b"\r\n" + re.escape(name) + b": "
    if lower == b"content-length":
        return start + b"([0-9]{1,15})"
    if lower in _PLAIN:
        return start + b"(" + _PLAIN[lower] + b")"
    return start + (b"(?![ \t])(" + _VALUE + b")(?<![ \t])" if lower in NOTED else _VALUE)


class Shapes:
    """The shapes of one upstream's answers."""

    def __init__(self) -> None:
        self._known: list[Shape] = []
        self._chunked: list[Shape] = []
        self._counts: Counter[tuple[bytes, ...]] = Counter()

    def read(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body of an answer that came whole, and in a shape that is known; None: parse it."""
        for shape in self._chunked if data.endswith(_LAST) else self._known:
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
            if b"content-length" in first:
                self._known = [Shape(names), *self._known][:SHAPES_AT_MOST]
            else:
                self._chunked = [Shape(names), *self._chunked][:SHAPES_AT_MOST]


def _is_usual(names: tuple[bytes, ...], first: dict[bytes, bytes]) -> bool:
    return (
        (b"content-length" in first) != (b"transfer-encoding" in first)
        and all(first[name] == _PLAIN.get(name) for name in _SINGULAR.intersection(first))
        and len(names) <= _LINES_AT_MOST
    )
