"""One client connection: parses requests, and answers them one at a time, in their order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Protocol, cast

import httptools

from gateway.errors import BadRequest, BodyTooLarge, GatewayError, Overloaded
from gateway.joining import Joined
from gateway.providers.huge import HUGE, RequestScanner
from gateway.proxy.asked import Asked
from gateway.proxy.forward import Exchanging
from gateway.proxy.heads import Heads
from gateway.proxy.house import House
from gateway.proxy.pace import Pace
from gateway.proxy.wire import RequestHead, objection
from gateway.upstreams import Headers
from gateway.upstreams.outbox import Outbox

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
UPLOAD_BUFFER_BYTES = 64 * 1024
_BLOCK_PIECES = 1000
LINGER_SECONDS = 10.0
LINGER_IDLE_SECONDS = 2.0
TURNED_AWAY_SECONDS = 0.5

_ADMIN = (b"/metrics", b"/healthz", b"/readyz", b"/unprompt")
_BAD = (
    b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"x-unprompt-error: %b\r\n%bConnection: close\r\n\r\n%b"
)


class Bounds(Protocol):
    """The limits that a connection keeps; see `server.Limits`."""

    body_bytes: int
    header_seconds: float
    idle_seconds: float
    least_rate: int


class Host(Protocol):
    """The server, as far as a connection needs it."""

    house: House
    heads: Heads
    outbox: Outbox
    draining: bool
    connections: set[Connection]

    @property
    def limits(self) -> Bounds: ...
    @property
    def is_full(self) -> bool: ...
    def is_short_of_files(self, transport: asyncio.Transport) -> bool: ...
    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None: ...


class _Request:
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


class Connection(asyncio.Protocol):
    """The parser's callbacks only collect; `_advance` acts on what was collected.

    `_queue` holds the requests whose head is there, the one being answered first. While more than one is
    there, or the upstream takes no more of a body, nothing is read: a client cannot fill our memory.
    """

    def __init__(self, server: Host) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []
        self._in_head = False
        self._segment: bytes | None = None
        self._objection: str | None = None
        self._in_framing = False
        self._missing = 0
        self._reading: _Request | None = None
        self._queue: deque[_Request] = deque()
        self._exchange: Exchanging | None = None
        self._first = b""
        self._quiet_bytes = 0
        self._since = time.perf_counter()
        self._upload_ready = self._reading_paused = self._writing_paused = False
        self._lingers_until: float | None = None
        self._pace: Pace | None = None
        self._deaf = False

    # --- the transport ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        accepted = self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        is_short = self._server.is_short_of_files(accepted)
        if is_short or self._server.is_full:
            self._turn_away(accepted, at_once=is_short)

    def _turn_away(self, transport: asyncio.Transport, *, at_once: bool) -> None:
        """One client too many. `at_once`: its descriptor is needed, though closing may cost it the answer."""
        retry = b"Retry-After: %d\r\n" % (Overloaded.retry_after or 1)
        self.write(_refusal(b"503 Service Unavailable", b"too many connections", retry, Overloaded.code.encode()))
        self._linger(TURNED_AWAY_SECONDS)
        if at_once:
            transport.close()
        self._server.house.guard.rejected(None, Overloaded.code)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._queue.clear()
        del self._parser  # it knows us: left alone, only the collector frees the two
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone(broken=exc is not None)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._exchange is not None:
            self._exchange.resume()

    def data_received(self, data: bytes) -> None:
        if self._lingers_until is not None:
            self._since = time.perf_counter()
            return
        if self._deaf:
            return
        if self._missing:
            data = self._count_in(data)
            if not data:
                self._advance()
                return
        if not self._queue and not self._in_head:
            if not self._first:
                self._since = time.perf_counter()
                if self._is_known(data):
                    return
            data = self._first + data
            if self._belongs_to_admin(data):
                return
        if self._queue and self._queue[-1].tunnel:
            self._collect(self._queue[-1], data)
        elif not self._parse(data):
            return
        self._advance()

    def _is_known(self, data: bytes) -> bool:
        """Whether `data` is a request, or the beginning of one, whose head was met before; then it is under way."""
        found = self._server.heads.find(data)
        if found is None:
            return False
        asked, length, start = found
        missing = length - (len(data) - start)
        if missing < 0:  # another request follows in the same piece: for the parser
            return False
        request = _Request(asked, length, self._server.limits.body_bytes)
        self._queue.append(request)
        is_plain = not request.streams and not request.too_large and request.scanner is None
        if not missing and is_plain:  # the usual one, in the fewest steps
            request.complete = True
            self._serve(request, data[start:])
            return True
        self._missing = missing
        if length:
            self._collect(request, data[start:])
        request.complete = not missing
        self._advance()
        return True

    def _count_in(self, data: bytes) -> bytes:
        """A piece of such a request's body; gives what is behind it."""
        piece, rest = (data, b"") if len(data) <= self._missing else (data[: self._missing], data[self._missing :])
        self._missing -= len(piece)
        if self._queue:
            self._collect(self._queue[-1], piece)
            self._queue[-1].complete = not self._missing
        return rest

    def _belongs_to_admin(self, data: bytes) -> bool:
        """Whether this request is for our own pages (or it is too early to tell)."""
        if len(data) < 24 and b"\r" not in data:
            self._first = data  # the start of a request line; the header deadline bounds the wait
            return True
        self._first = b""
        path = data[:64].partition(b" ")[2].partition(b" ")[0].partition(b"?")[0]
        if not path.startswith(_ADMIN) or not any(path == own or path.startswith(own + b"/") for own in _ADMIN):
            return False
        if self._transport is not None:
            self._server.connections.discard(self)
            self._server.outbox.flush()
            self._server.hand_over(self._transport, data)
        return True

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

    # --- the parser ------------------------------------------------------------------------------

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
        self._reading = _Request(asked, head.length, self._server.limits.body_bytes)
        self._queue.append(self._reading)

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._collect(self._reading, body)

    def _collect(self, request: _Request, piece: bytes) -> None:
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

    # --- one request at a time ---------------------------------------------------------------------

    def _advance(self) -> None:
        """Do what the requests collected so far allow."""
        if not self._queue or self._transport is None or self._transport.is_closing():
            return
        request = self._queue[0]
        if self._exchange is None:
            if request.too_large:
                self._refuse_size(request)
            elif request.streams or request.complete or request.tunnel:
                self._continue(request)
                self._start(request)
            else:
                self._continue(request)
        elif request.streams or request.tunnel:
            self._flush_upload()
        self._settle_reading()

    def _continue(self, request: _Request) -> None:
        if request.asked.head.expects and not request.complete and not request.continued:
            request.continued = True
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _start(self, request: _Request) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body: bytes | None = b""
        if request.streams:
            body = None
        elif not request.tunnel:
            body = request.take_body()
        self._serve(request, body)

    def _serve(self, request: _Request, body: bytes | None) -> None:
        self._upload_ready = False
        exchange = self._exchange = Exchanging(self._server.house, self, request.asked)
        if self._writing_paused:  # the client has not taken the answer before this one
            exchange.pause()
        try:
            scanned = None if request.scanner is None else request.scanner.close()
            exchange.start(body, request.length, scanned)
        except Exception:  # a fault of ours is answered as one, and ends no other exchange
            log.exception("exchange %s failed inside the gateway", exchange.id)
            exchange.refuse(GatewayError("the gateway failed to handle this request; its log says why"))

    def _refuse_size(self, request: _Request) -> None:
        limit = self._server.limits.body_bytes >> 20
        error = BodyTooLarge(f"the body is larger than {limit} MB; raise server.max_body_mb to allow it")
        self._exchange = Exchanging(self._server.house, self, request.asked)
        self._exchange.refuse(error)

    # --- Client, as an exchange sees it --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._server.outbox.write(self._transport, data)

    def finish(self, *, keep_alive: bool) -> None:
        """The answer is out: the next request, or the end."""
        self._exchange = None
        self._since = time.perf_counter()
        request = self._queue.popleft() if self._queue else None
        if request is None or not request.complete:
            self._linger()
        elif keep_alive and request.keep_alive and not self._server.draining:
            self._upload_ready = False
            if self._queue:
                asyncio.get_running_loop().call_soon(self._advance)
            if self._reading_paused:
                self._settle_reading()
        elif self._transport is not None:
            self._queue.clear()
            self._server.outbox.flush()
            self._transport.close()

    def cut(self, *, flush: bool) -> None:
        """Close without an end mark, so that the client sees a broken answer.

        `flush`: what was written leaves first, since the answer's framing tells that it is not whole.
        """
        self._exchange = None if flush else self._exchange
        self._since = time.perf_counter()
        if self._transport is not None:
            self._server.outbox.flush()
            if flush:
                self._transport.close()
            else:
                self._transport.abort()

    def upload(self, ready: bool) -> None:
        """Back-pressure from the upstream on a streamed request body."""
        self._upload_ready = ready
        self._flush_upload()
        self._settle_reading()

    def _flush_upload(self) -> None:
        request = self._queue[0] if self._queue else None
        if request is None or self._exchange is None or not self._upload_ready or request.handed_over:
            return
        pieces, request.pieces, request.size, request.blocks = request.pieces, [], 0, 0
        if pieces:
            self._exchange.upload(b"".join(pieces), last=False)
        if request.complete and request.streams:
            request.handed_over = True
            self._exchange.upload(b"", last=True)

    def _settle_reading(self) -> None:
        """Read on, unless that would only fill our memory."""
        if self._transport is None or self._transport.is_closing():
            return
        current = self._queue[0] if self._queue else None
        uploading = current is not None and (current.streams or current.tunnel)
        full = uploading and not self._upload_ready and current is not None and current.size > UPLOAD_BUFFER_BYTES
        pause = len(self._queue) > 1 or full
        if pause != self._reading_paused:
            self._reading_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # --- bounds ------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return bool(self._queue) or self._in_head

    def tick(self, now: float) -> None:
        """Close a connection that rests too long, or whose head or body does not come."""
        limits = self._server.limits
        if self._lingers_until is not None:
            if now > self._lingers_until or now - self._since > LINGER_IDLE_SECONDS:
                self.cut(flush=False)
        elif self._exchange is not None:
            if bool(self._queue) and self._queue[0].streams and self._is_late(self._queue[0], now):
                self.cut(flush=False)
        elif self._queue:
            if self._is_late(self._queue[0], now):
                self.cut(flush=False)
        else:
            in_head = bool(self._first) or self._in_head
            if now - self._since > (limits.header_seconds if in_head else limits.idle_seconds):
                self.cut(flush=False)

    def _is_late(self, request: _Request, now: float) -> bool:
        """Whether a body that is still to come stands still, or comes below the least rate."""
        if request.complete:
            return False
        limits = self._server.limits
        if self._pace is None or self._pace.body is not request:
            self._pace = Pace(request, limits.idle_seconds, limits.least_rate, now)
        if request.streams and not self._upload_ready:  # it is the upstream that takes no more
            self._pace.rests(now)
            return False
        return self._pace.is_over(now) or now - self._since > limits.idle_seconds

    def close_if_idle(self) -> None:
        if not self.is_busy and self._transport is not None:
            self._server.outbox.flush()
            self._transport.close()

    def _bad(self, status: bytes, message: bytes, headers: bytes = b"") -> None:
        """Turn down what is no HTTP request; what came whole before it is answered first."""
        while self._queue and not self._queue[-1].complete and not (self._exchange and len(self._queue) == 1):
            self._queue.pop()
        if self._queue and not self._queue[0].complete:  # the broken body of an upload that is under way
            self.cut(flush=False)
        elif self._queue:
            self._deaf = True
            self._queue[-1].keep_alive = False
            self._advance()
        else:
            self._turn_down(status, message, headers)

    def _turn_down(self, status: bytes, message: bytes, headers: bytes) -> None:
        self.write(_refusal(status, message, headers))
        self._linger()

    def _linger(self, seconds: float = LINGER_SECONDS) -> None:
        """End our side, and take what still comes for a while: closing with unread bytes would reset the
        connection, and the client could lose the answer that says why."""
        self._queue.clear()
        self._lingers_until = time.perf_counter() + seconds
        if self._transport is not None and not self._transport.is_closing():
            self._settle_reading()
            self._server.outbox.flush()
            self._transport.write_eof()


def _refusal(status: bytes, message: bytes, headers: bytes = b"", code: bytes = BadRequest.code.encode()) -> bytes:
    """An answer to what is no HTTP request, or one too many: before any provider's shape is known."""
    kind = b"service_unavailable_error" if status.startswith(b"5") else b"invalid_request_error"
    body = b'{"error": {"message": "%b", "type": "%b", "code": "%b"}}'
    body %= message.replace(b"\\", b"").replace(b'"', b"'"), kind, code
    return _BAD % (status, len(body), code, headers, body)
