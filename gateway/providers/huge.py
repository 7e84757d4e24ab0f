"""Bodies too large to be parsed at once: what the route and the books need of them is found piece by piece.

JSON lets us look without parsing. Inside a string every quote is escaped, so `"model"` that follows no
backslash and is followed by a colon is a key. How deep it stands is known near the beginning by counting
brackets from there; anywhere else by counting them to the end of the body, where the depth is 0 again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from gateway.providers import RequestFacts

HUGE = 4 << 20
"""Bytes from which on a body is scanned in pieces: parsing it would hold the event loop for over 2 ms."""

_FRONT = 1 << 14  # so far from the beginning brackets are counted in any case
_SLICE = 1 << 18
_VALUE = 1 << 10  # bytes of the longest value that is read
_KEYS = (b'"model"', b'"stream"')
_VALUE_OF = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*"|true|false|null)?', re.DOTALL)

_Found = dict[tuple[int, bytes], bytes | None]  # by depth and key: the last value


class RequestScanner:
    """Finds `model` and `stream` among the outermost keys of a JSON request, fed with its pieces as they come.

    The last one of equal keys counts, as for every JSON reader here. Not seen are keys spelt with `\\u`
    escapes, which no encoder writes, and values of more than 1 KB. What is no JSON gives any facts; nothing
    is raised.
    """

    def __init__(self) -> None:
        self._carry = self._before = b""
        self._depth: _Depth | None = _Depth()  # None: not counted at the moment
        self._is_front, self._passed = True, 0
        self._front: _Found = {}
        self._later: _Found = {}

    def feed(self, piece: bytes) -> None:
        """Look through the next piece of the body."""
        data, start = self._carry + piece, 0
        while len(data) - start > _VALUE:  # a key beyond may have its value in the next piece
            end = min(len(data) - _VALUE, start + (_FRONT if self._is_front else _SLICE))
            self._scan(data, start, end)
            start = end
        self._carry, self._before = data[start:], data[start - 1 : start] if start else self._before

    def close(self) -> RequestFacts:
        """The facts, when the body is whole."""
        self._scan(self._carry, 0, len(self._carry))
        self._carry = b""
        values = {key: value for (depth, key), value in self._front.items() if depth == 1}
        bottom = self._depth.depth if self._depth is not None else 0
        values |= {key: value for (depth, key), value in self._later.items() if depth - bottom == 1}
        model = values.get(b'"model"')
        return RequestFacts(_text(model) if model else None, values.get(b'"stream"') == b"true")

    def _scan(self, data: bytes, start: int, end: int) -> None:
        self._passed += end - start
        hits = sorted((at, key) for key in _KEYS for at in _places(data, key, start, end))
        for at, key in hits:
            value = _VALUE_OF.match(data, at + len(key))
            if value is None or (data[at - 1 : at] if at else self._before) == b"\\":
                continue
            if self._depth is None:
                self._depth = _Depth()
            else:
                self._depth.count(data[start:at])
            start = at
            (self._front if self._is_front else self._later)[self._depth.depth, key] = value[1]
        if self._depth is not None:
            self._depth.count(data[start:end])
        if self._is_front and self._passed >= _FRONT:
            self._is_front, self._depth = False, None


class _Depth:
    """How deep in brackets, relative to where the counting began: outside of a string."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = self._escapes = False

    def count(self, data: bytes) -> None:
        """Go on over the next bytes."""
        if self._escapes:
            data = data[1:]
        if b"\\" in data:  # an escaped backslash first: what is left before a quote escapes it
            data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
        self._escapes = data.endswith(b"\\")
        parts = data.split(b'"')  # in turn outside and inside of strings
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        self.depth += outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")


def _places(data: bytes, key: bytes, start: int, end: int) -> Iterator[int]:
    stop = end + len(key) - 1
    while (at := data.find(key, start, stop)) >= 0:
        yield at
        start = at + 1


def _text(value: bytes) -> str | None:
    """The string in a JSON value, None where it is none."""
    try:
        return msgspec.json.decode(value, type=str)
    except ValueError:  # msgspec's and UnicodeDecodeError are ValueErrors
        return None
