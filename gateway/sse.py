"""Server-sent events (WHATWG HTML, section 9.2): bytes in, events out, however the bytes are cut."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One event. `data` keeps its bytes; several data lines are joined by a newline."""

    data: bytes
    name: bytes = b"message"
    id: bytes | None = None


_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventParser:
    """Fed with chunks of any size. Comments, `retry:` and events without data yield nothing.

    Lines end in CR LF, LF or CR; one byte-order mark at the start is skipped. A last event without its
    blank line is not an event (that is the standard); `close()` gives it for those who want it.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._started = False
        self._data: list[bytes] = []
        self._name = b""
        self._id: bytes | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are whole with this chunk."""
        self._rest += chunk
        if not self._started:
            if len(self._rest) < 3 and b"\xef\xbb\xbf".startswith(self._rest):
                return []
            self._rest = self._rest.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        return [event for line in self._lines() if (event := self._take(line)) is not None]

    def close(self) -> list[Event]:
        """The event that the stream ended within, if any."""
        events = self.feed(b"\n\n" if not self._rest.endswith(b"\r") else b"\n\n\n")
        self._rest = b""
        return events

    def _lines(self) -> Iterator[bytes]:
        """Whole lines; a CR at the very end waits, since an LF may follow."""
        data, self._rest = self._rest, b""
        if b"\r" not in data:  # as nearly always: one split at C speed
            *lines, self._rest = data.split(b"\n")
            yield from lines
            return
        position = 0
        for end in _LINE_END.finditer(data):
            if end[0] == b"\r" and end.end() == len(data):
                break
            yield data[position : end.start()]
            position = end.end()
        self._rest = data[position:]

    def _take(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        elif field == b"id" and b"\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], b""
        return Event(b"\n".join(data), name or b"message", self._id) if data else None


def events(stream: bytes) -> list[Event]:
    """All events of a recorded stream, a last one without its blank line too."""
    parser = EventParser()
    return parser.feed(stream) + parser.close()


def encode(data: bytes, name: bytes | None = None) -> bytes:
    """One event on the wire; the inverse of parsing for data without carriage returns."""
    head = b"" if name is None else b"event: " + name + b"\n"
    return head + b"".join(b"data: " + line + b"\n" for line in data.split(b"\n")) + b"\n"


_BLOCKS = 64


def last_data(stream: bytes, count: int) -> Iterator[bytes]:
    """The data of the last `count` events, last first, without reading what comes before them.

    At most 64 blocks are looked at: what ends in more comments than that gives less.
    """
    tail = stream[-4096:]
    if b"\r" in tail:
        stream = tail = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    end = len(stream) - len(tail) + len(tail.rstrip(b"\n"))
    for _ in range(_BLOCKS):
        if end <= 0 or count <= 0:
            return
        start = stream.rfind(b"\n\n", 0, end)
        data = _data_of(stream[start + 2 if start >= 0 else 0 : end])
        end = start
        if data is not None:
            count -= 1
            yield data


def _data_of(block: bytes) -> bytes | None:
    if block.startswith(b"data:") and b"\n" not in block:
        return block[6:] if block[5:6] == b" " else block[5:]
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
