"""The request, whole: bytes from a client -> head -> `Exchanging` -> bytes to the client.

Own paths (`/metrics`, `/healthz`, `/readyz`, `/unprompt/...`) never come this far: the connection is
handed to the admin application, an ordinary aiohttp one, before its first byte is parsed here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import httptools

from gateway.errors import BodyTooLarge
from gateway.proxy.forward import Exchanging, House
from gateway.proxy.wire import RequestHead
from gateway.upstreams import Headers

MAX_HEAD_BYTES = 64 * 1024
_ADMIN = (b"/metrics", b"/healthz", b"/readyz", b"/unprompt")
_BAD = (
    b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"x-unprompt-error: bad_request\r\nConnection: close\r\n\r\n%b"
)


class Limits:
    """Bounds that hold for every client. Seconds and bytes."""

    def __init__(self, *, body_bytes: int, header_seconds: float, idle_seconds: float) -> None:
        self.body_bytes = body_bytes
        self.header_seconds = header_seconds
        self.idle_seconds = idle_seconds


class Server:
    """Accepts connections, and watches their deadlines."""

    def __init__(self, house: House, limits: Limits, admin: Callable[[], asyncio.Protocol]) -> None:
        self.house, self.limits, self.admin = house, limits, admin
        self.connections: set[Connection] = set()
        self.draining = False
        self._listener: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start accepting; gives the port (asked for 0: any that is free)."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        return int(self._listener.sockets[0].getsockname()[1])

    async def watch(self) -> None:
        """Runs as long as the server: ends what is over its time."""
        while True:
            await asyncio.sleep(0.25)
            now = time.perf_counter()
            for exchange in list(self.house.active):
                exchange.tick(now)
            for connection in list(self.connections):
                connection.tick(now)

    async def drain(self, seconds: float) -> None:
        """Stop accepting and wait for the exchanges under way, `seconds` at most."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        deadline = time.perf_counter() + seconds
        for connection in list(self.connections):
            connection.close_if_idle()
        while self.house.active and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        for connection in list(self.connections):
            connection.cut()
        await asyncio.sleep(0)


class _Request:
    """A request being read: its head, and the body so far where that is not streamed."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.size = 0
        self.head: RequestHead | None = None
        self.length: int | None = 0
        self.has_body = False
        self.streams = False
        self.complete = False
        self.handed_over = False
        self.too_large = False


class Connection(asyncio.Protocol):
    """One client connection: parses requests, answers them one at a time in their order."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._reading: _Request | None = None
        self._waiting: deque[_Request] = deque()
        self._current: _Request | None = None
        self._exchange: Exchanging | None = None
        self._head_bytes = 0
        self._first = b""
        self._since = time.perf_counter()
        self._paused_for_answer = self._paused_for_upload = False

    # --- the transport ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a TCP Transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        if self._exchange is not None:
            self._exchange.client_gone()
            self._exchange = None

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.resume()

    def data_received(self, data: bytes) -> None:
        if self._exchange is None and self._reading is None and not self._waiting:
            if not self._first:
                self._since = time.perf_counter()
            data = self._first + data
            if self._hand_over(data):
                return
        if self._reading is None or self._reading.head is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # the offer is not taken up: an ordinary request goes on
            self._parser = httptools.HttpRequestParser(self)
        except (httptools.HttpParserError, ValueError) as error:
            self._bad(b"400 Bad Request", str(error).encode("ascii", "replace"))
            return
        if self._head_bytes > MAX_HEAD_BYTES and (self._reading is None or self._reading.head is None):
            self._bad(b"431 Request Header Fields Too Large", b"the headers are larger than 64 KiB")

    def _hand_over(self, data: bytes) -> bool:
        """Whether this request is for our own pages (or it is too early to tell)."""
        if len(data) < 24 and b"\r" not in data:
            self._first = data  # the start of a request line; the header deadline bounds the wait
            return True
        self._first = b""
        path = data[:64].partition(b" ")[2].partition(b" ")[0].partition(b"?")[0]
        if not any(path == own or path.startswith(own + b"/") for own in _ADMIN):
            return False
        transport = self._transport
        if transport is None:
            return True
        self._server.connections.discard(self)
        protocol = self._server.admin()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        return True

    # --- the parser ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = _Request()

    def on_url(self, url: bytes) -> None:
        if self._reading is not None:
            self._reading.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not None and self._reading.head is None:
            self._reading.headers.append((name, value))

    def on_headers_complete(self) -> None:
        request = self._reading
        if request is None:
            return
        request.head = RequestHead(
            method=self._parser.get_method(),
            target=request.target,
            headers=request.headers,
            keep_alive=self._parser.should_keep_alive() and not self._server.draining,
            http_1_0=self._parser.get_http_version() == "1.0",
        )
        self._head_bytes = 0
        self._frame(request)
        if self._exchange is None and self._current is None:
            self._begin(request)
        else:
            self._waiting.append(request)

    def _frame(self, request: _Request) -> None:
        head = request.head
        if head is None:
            return
        length = head.header(b"content-length")
        chunked = head.header(b"transfer-encoding") is not None
        request.has_body = chunked or length is not None
        request.length = None if chunked else int(length or 0)
        is_json = b"json" in (head.header(b"content-type") or b"application/json").lower()
        request.streams = request.has_body and not is_json
        request.too_large = not request.streams and (request.length or 0) > self._server.limits.body_bytes

    def on_body(self, body: bytes) -> None:
        request = self._reading
        if request is None:
            return
        self._since = time.perf_counter()
        request.pieces.append(body)
        if request.streams:
            self._flush_upload()
            return
        request.size += len(body)
        if request.size > self._server.limits.body_bytes and not request.too_large:
            request.too_large = True
            if request is self._current:
                self._refuse_size(request)

    def on_message_complete(self) -> None:
        request, self._reading = self._reading, None
        self._since = time.perf_counter()
        if request is None:
            return
        request.complete = True
        if request is not self._current:
            self._hold_reading()  # pipelined: read on when this one's turn comes
        elif request.streams:
            self._flush_upload()
        else:
            self._start(request)

    # --- one request at a time ---------------------------------------------------------------------

    def _begin(self, request: _Request) -> None:
        """The head is there and it is this request's turn."""
        self._current = request
        if request.too_large:
            self._refuse_size(request)
            return
        head = request.head
        if head is not None and (head.header(b"expect") or b"").lower() == b"100-continue" and not request.complete:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.streams or request.complete:
            self._start(request)

    def _start(self, request: _Request) -> None:
        head = request.head
        if head is None or self._transport is None or self._transport.is_closing():
            return
        exchange = self._exchange = Exchanging(self._server.house, self, head)
        if request.streams:
            self.upload(ready=False)  # until the upstream takes it
        body = None if request.streams else b"".join(request.pieces)
        exchange.start(body, request.length if body is None else len(body), has_body=request.has_body)

    def _refuse_size(self, request: _Request) -> None:
        if request.head is None:
            return
        limit = self._server.limits.body_bytes >> 20
        error = BodyTooLarge(f"the body is larger than {limit} MB; raise server.max_body_mb to allow it")
        self._exchange = Exchanging(self._server.house, self, request.head)
        self._exchange.refuse(error)

    def _next(self) -> None:
        """The answer is out: the next pipelined request, or rest."""
        self._current = self._exchange = None
        self._since = time.perf_counter()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._take_waiting)
        elif self._paused_for_answer:
            self._paused_for_answer = False
            self._settle_reading()

    def _take_waiting(self) -> None:
        if self._transport is not None and self._current is None:
            self._begin(self._waiting.popleft())

    # --- Client, as an exchange sees it --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def finish(self, *, keep_alive: bool) -> None:
        unread = self._current is not None and not self._current.complete
        if keep_alive and not unread and not self._server.draining:
            self._next()
        else:
            self._exchange = None
            if self._transport is not None:
                self._transport.close()

    def cut(self) -> None:
        """Close without an end mark, so that the client sees a broken answer."""
        if self._transport is not None:
            self._transport.abort()

    def upload(self, ready: bool) -> None:
        """Back-pressure from the upstream on a streamed request body."""
        self._paused_for_upload = not ready
        self._flush_upload()
        self._settle_reading()

    def _flush_upload(self) -> None:
        request = self._current
        if request is None or self._exchange is None or self._paused_for_upload or not request.streams:
            return
        pieces, request.pieces = request.pieces, []
        if pieces:
            self._exchange.upload(b"".join(pieces), last=False)
        if request.complete and not request.handed_over:
            request.handed_over = True
            self._exchange.upload(b"", last=True)

    def _hold_reading(self) -> None:
        self._paused_for_answer = True
        self._settle_reading()

    def _settle_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._paused_for_answer or self._paused_for_upload:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # --- bounds ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Close a connection that rests too long, or whose head or body does not come."""
        if self._exchange is not None:
            return
        limits = self._server.limits
        in_head = bool(self._first) or (self._reading is not None and self._reading.head is None)
        if now - self._since > (limits.header_seconds if in_head else limits.idle_seconds):
            self.cut()

    def close_if_idle(self) -> None:
        if self._exchange is None and self._reading is None and self._transport is not None:
            self._transport.close()

    def _bad(self, status: bytes, message: bytes) -> None:
        body = b'{"error": {"message": "%b", "type": "invalid_request_error", "code": "bad_request"}}'
        body %= message.replace(b"\\", b"").replace(b'"', b"'")
        self.write(_BAD % (status, len(body), body))
        if self._transport is not None:
            self._transport.close()
