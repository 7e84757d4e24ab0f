"""The requests that come on one connection: bytes in, heads and bodies out, in their order."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

import httptools

from gateway.joining import Joined
from gateway.providers.huge import HUGE, RequestScanner
from gateway.proxy.asked import Asked
from gateway.proxy.heads import Heads
from gateway.proxy.house import House
from gateway.proxy.pace import Pace
from gateway.proxy.wire import RequestHead, objection
from gateway.upstreams import Headers

MAX_HEAD_BYTES = 64 * 1024
_BLOCK_PIECES = 1000


class Bounds(Protocol):
    """The limits that a connection keeps; see `server.Limits`."""

    body_bytes: int
    header_seconds: float
    idle_seconds: float
    least_rate: int


class Listener(Protocol):
    """The server, as far as reading requests needs it."""

    house: House
    heads: Heads

    @property
    def limits(self) -> Bounds: ...


class Request:
    """A request whose head is there, and the part of its body that nobody has taken yet."""

    # what it begins with; most requests come whole and change little of it
    complete = continued = handed_over = too_large = False
    joined: Joined | None = None
    scanner: RequestScanner | None = None
    blocks = size = 0  # of the pieces: how many at the front were joined, and the bytes of all

    def __init__(self, asked: Asked, length: int | None, limit: int) -> None:
        head = asked.head
        self.asked, self.length, self.keep_alive = asked, length, head.keep_alive
        self.tunnel, self.streams = head.offers_websocket, head.streams
        self.pieces: list[bytes] = []
        if length is not None and (length >= HUGE or length > limit) and not head.streams:
            self.too_large = length > limit
            self.scanner = RequestScanner() if length >= HUGE else None

    def add(self, piece: bytes) -> None:
        """The next piece. Many small ones are joined by and by: an object takes 33 bytes more than is in it."""
        self.pieces.append(piece)
        if len(self.pieces) - self.blocks > _BLOCK_PIECES:
            self.pieces[self.blocks :] = [b"".join(self.pieces[self.blocks :])]
            self.blocks += 1

    def fill(self, piece: bytes) -> None:
        """The next piece of a huge body: to join it at the end would hold up everybody else."""
        if self.joined is None:
            self.joined = Joined(self.length or 0)
        self.joined.put(piece)

    def take_body(self) -> bytes:
        """The body, which is complete, once."""
        if self.joined is not None:
            body, self.joined = self.joined.take(), None
            return body
        pieces, self.pieces = self.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Requests:
    """The half of a connection that reads requests; `Connection` adds the half that answers them.

    The parser's callbacks only collect. `_queue` holds the requests whose head is there, the one being answered
    first. They are one object, since each call between two would cost on the path of every request.
    """

    def __init__(self, server: Listener) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []
        self._in_head = False
        self._segment: bytes | None = None
        self._objection: str | None = None
        self._in_framing = False
        self._missing = 0
        self._reading: Request | None = None
        self._queue: deque[Request] = deque()
        self._quiet_bytes = 0
        self._since = time.perf_counter()
        self._pace: Pace | None = None

    def _bad(self, status: bytes, message: bytes) -> None:
        """Turn down what is no HTTP request."""
        raise NotImplementedError

    def _parse(self, data: bytes) -> bool:
        """Whether the connection goes on."""
        self._quiet_bytes += len(data)
        self._segment = None if self._in_head or self._reading is not None else data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._after_offer(data[upgrade.args[0] :])
        except (httptools.HttpParserError, ValueError) as error:
            self._bad(b"400 Bad Request", (self._objection or str(error)).encode("ascii", "replace"))
            return False
        if self._objection is not None:
            self._bad(b"400 Bad Request", self._objection.encode())
            return False
        if self._quiet_bytes > MAX_HEAD_BYTES:
            self._bad(b"431 Request Header Fields Too Large", b"the headers or trailers are larger than 64 KiB")
            return False
        return True

    def _after_offer(self, rest: bytes) -> bool:
        """The client offers to switch protocols. llhttp stops there; `rest` is what follows the head."""
        if self._objection is not None:
            self._bad(b"400 Bad Request", self._objection.encode())
            return False
        if self._queue and self._queue[-1].tunnel:
            self._collect(self._queue[-1], rest)
            return True
        self._parser = httptools.HttpRequestParser(self)  # the offer is not taken up: requests go on
        request = self._reading
        if request is not None and request.length is not None:  # and the body is still the request's
            self._reading, self._missing = None, request.length
            rest = self._count_in(rest)
        elif request is not None:
            self._in_framing = True
            self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            self._in_framing = False
        return not rest or self._parse(rest)

    def _count_in(self, data: bytes) -> bytes:
        """A piece of such a request's body; gives what is behind it."""
        piece, rest = (data, b"") if len(data) <= self._missing else (data[: self._missing], data[self._missing :])
        self._missing -= len(piece)
        if self._queue:
            self._collect(self._queue[-1], piece)
            self._queue[-1].complete = not self._missing
        return rest

    # --- the parser's callbacks -----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if not self._in_framing:
            self._in_head, self._target, self._headers = True, b"", []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._in_framing:
            return
        version = self._parser.get_http_version()
        http_1_0 = version == "1.0"
        head = RequestHead(
            self._parser.get_method(),
            self._target,
            self._headers,
            keep_alive=not http_1_0 and self._parser.should_keep_alive(),
            http_1_0=http_1_0,
        )
        self._in_head = False
        if sum(len(name) + len(value) for name, value in self._headers) > MAX_HEAD_BYTES:
            return  # `_quiet_bytes` tells
        self._objection = objection(head, version)
        if self._objection is not None:
            return
        self._quiet_bytes = 0
        asked = self._server.house.read(head)
        if self._segment is not None:
            self._server.heads.keep(self._segment, asked)
            self._segment = None
        self._reading = Request(asked, head.length, self._server.limits.body_bytes)
        self._queue.append(self._reading)

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._collect(self._reading, body)

    def _collect(self, request: Request, piece: bytes) -> None:
        self._since, self._quiet_bytes = time.perf_counter(), 0
        if self._pace is not None:
            self._pace.received(len(piece))
        if request.too_large or not piece:
            return
        if request.scanner is None:
            request.add(piece)
        else:
            request.fill(piece)
            request.scanner.feed(piece)
        request.size += len(piece)
        if not request.streams and not request.tunnel and request.size > self._server.limits.body_bytes:
            request.too_large = True
            request.pieces.clear()

    def on_message_complete(self) -> None:
        request = self._reading
        if request is None or (self._parser.should_upgrade() and request.length != 0 and not request.tunnel):
            return  # a refused head; or llhttp is done with the message, but its body is still to come
        self._reading = None
        self._since, self._quiet_bytes = time.perf_counter(), 0
        request.complete = not request.tunnel
