"""Request heads that were met before.

The requests of an app differ in their bodies; their heads are the same from one to the next but for
`Content-Length`. A head is parsed once (strictly, by llhttp), and found again by its bytes without those
digits: whatever number stands there, the parse is the same. That spares most of a request's own work.
"""

from __future__ import annotations

from gateway.proxy.asked import Asked

HEADS_AT_MOST = 1024
BYTES_AT_MOST = 2 * 1024 * 1024
"""Of the heads themselves; what was read from them takes up to fifteen times as much."""
LONGEST = 8 * 1024
LINES_AT_MOST = 64
"""Each takes some 250 bytes, however short it is."""
_DIGITS_AT_MOST = 15
_MARK = b"ength: "
"""Ends `Content-Length: ` in either spelling. Which header it really was is settled when a head is kept."""


class Heads:
    """The heads kept. One that does not fit the pattern is simply not kept, and parsed each time."""

    def __init__(self) -> None:
        self._known: dict[bytes, Asked] = {}
        self._bytes = 0

    def find(self, data: bytes) -> tuple[Asked, int, int] | None:
        """What the head that `data` begins with says, its body's length, and where that begins; None: parse it."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        at = data.find(_MARK, 0, end)
        if at < 0:
            asked = self._known.get(data[:end])
            return None if asked is None else (asked, 0, end + 4)
        at += len(_MARK)
        behind = data.find(b"\r\n", at)
        digits = data[at:behind]
        asked = self._known.get(data[:at] + data[behind:end])
        if asked is None or not digits.isdigit() or len(digits) > _DIGITS_AT_MOST:
            return None
        return asked, int(digits), end + 4

    def keep(self, data: bytes, asked: Asked) -> None:
        """Remember a head that was parsed from the start of `data`."""
        head, end = asked.head, data.find(b"\r\n\r\n")
        if not 0 < end <= LONGEST or head.chunked or head.expects or b"upgrade" in head.first:
            return
        if asked.error is not None:  # it may be for our own pages, which only stand elsewhere on a connection
            return
        if len(head.headers) > LINES_AT_MOST or data.count(b"\n", 0, end) != len(head.headers):
            return
        key, digits = _split(data, end)
        named = head.first.get(b"content-length")
        if named is None:
            if key != data[:end]:  # some other header's digits were taken out
                return
        elif named != digits or not key[: key.find(_MARK) + len(_MARK)].lower().endswith(b"\r\ncontent-length: "):
            return
        if key not in self._known:
            if len(self._known) >= HEADS_AT_MOST or self._bytes + len(key) > BYTES_AT_MOST:
                self._known.clear()
                self._bytes = 0
            self._bytes += len(key)
        self._known[key] = asked


def _split(data: bytes, end: int) -> tuple[bytes, bytes]:
    """The head up to `end` without the digits behind the first mark, and those digits (`0` without a mark).

    Where something else than digits stands there, the key is one that no head is kept by.
    """
    at = data.find(_MARK, 0, end)
    if at < 0:
        return data[:end], b"0"
    at += len(_MARK)
    behind = data.find(b"\r\n", at)
    digits = data[at:behind]
    if not digits.isdigit() or len(digits) > _DIGITS_AT_MOST:
        return b"", b"0"
    return data[:at] + data[behind:end], digits
