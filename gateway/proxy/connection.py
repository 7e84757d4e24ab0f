"""One client connection: answers its requests one at a time, in their order. How they are read: `requests`."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol, cast

from gateway.errors import BadRequest, BodyTooLarge, GatewayError, Overloaded
from gateway.proxy.forward import Exchanging
from gateway.proxy.heads import Heads
from gateway.proxy.pace import Pace
from gateway.proxy.requests import Listener, Request, Requests
from gateway.upstreams.outbox import Outbox

log = logging.getLogger(__name__)

UPLOAD_BUFFER_BYTES = 64 * 1024
LINGER_SECONDS = 10.0
LINGER_IDLE_SECONDS = 2.0
TURNED_AWAY_SECONDS = 0.5

_ADMIN = (b"/metrics", b"/healthz", b"/readyz", b"/unprompt")
_BAD = (
    b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"x-unprompt-error: %b\r\n%bConnection: close\r\n\r\n%b"
)


class Host(Listener, Protocol):
    """The server, as far as a connection needs it."""

    heads: Heads
    outbox: Outbox
    draining: bool
    connections: set[Connection]

    @property
    def is_full(self) -> bool: ...
    def is_short_of_files(self, transport: asyncio.Transport) -> bool: ...
    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None: ...


class Connection(Requests, asyncio.Protocol):
    """The parser's callbacks only collect; `_advance` acts on what was collected.

    `_queue` holds the requests whose head is there, the one being answered first. While more than one is
    there, or the upstream takes no more of a body, nothing is read: a client cannot fill our memory.
    """

    _server: Host

    def __init__(self, server: Host) -> None:
        super().__init__(server)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchanging | None = None
        self._first = b""
        self._upload_ready = self._reading_paused = self._writing_paused = False
        self._lingers_until: float | None = None
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
        request = Request(asked, length, self._server.limits.body_bytes)
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

    def _continue(self, request: Request) -> None:
        if request.asked.head.expects and not request.complete and not request.continued:
            request.continued = True
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _start(self, request: Request) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body: bytes | None = b""
        if request.streams:
            body = None
        elif not request.tunnel:
            body = request.take_body()
        self._serve(request, body)

    def _serve(self, request: Request, body: bytes | None) -> None:
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

    def _refuse_size(self, request: Request) -> None:
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

    def _is_late(self, request: Request, now: float) -> bool:
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
