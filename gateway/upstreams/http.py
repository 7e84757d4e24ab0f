"""An HTTP/1.1 upstream: pooled connections, answers handed on in the same turn of the event loop.

Written on `asyncio.Protocol` and httptools (llhttp) instead of aiohttp's client because the client's
session costs more than the rest of the relay together, and hides what a transparent proxy must pass on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from urllib.parse import urlsplit

import httptools

from gateway.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.upstreams import Head, Headers, Outgoing, Sink

IDLE_SECONDS = 30.0
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
MAX_HEAD_BYTES = 256 * 1024


class HttpUpstream:
    """One origin and the path in front of every request."""

    def __init__(self, name: str, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.name = name
        self.prefix = parts.path.rstrip("/").encode("ascii")
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self.host_header = parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii")
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, request: Outgoing, sink: Sink, *, connect_timeout: float) -> HttpCall:
        call = HttpCall(self, request, sink, connect_timeout)
        if not self.reuse(call):
            self.connect(call)
        return call

    def reuse(self, call: HttpCall) -> bool:
        """Put the call on a kept-alive connection, the most recently used one first."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable_until > now:
                connection.start(call, reused=True)
                return True
            connection.close()
        return False

    def connect(self, call: HttpCall) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(call))
        call.connecting = task
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, call: HttpCall) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(call.connect_timeout):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except TimeoutError:
            call.fail(UpstreamTimeout(f"no connection to {self.name} within {call.connect_timeout:g} s"))
        except (OSError, ssl.SSLError) as error:
            call.fail(UpstreamUnreachable(f"cannot connect to {self.name}: {_reason(error)}"))
        else:
            self._open.add(connection)
            connection.start(call, reused=False)

    def release(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    async def close(self) -> None:
        for task in list(self._connecting):
            task.cancel()
        for connection in list(self._open):
            connection.close()


class HttpCall:
    """One request on its way; see `gateway.upstreams.Call`."""

    def __init__(self, upstream: HttpUpstream, request: Outgoing, sink: Sink, connect_timeout: float) -> None:
        self.upstream = upstream
        self.request = request
        self.sink = sink
        self.connect_timeout = connect_timeout
        self.connecting: asyncio.Task[None] | None = None
        self.connection: _Connection | None = None
        self.uploaded = request.body is not None
        self.over = False

    def write(self, piece: bytes) -> None:
        if self.connection is not None and piece:
            chunked = self.request.length is None
            self.connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)

    def write_end(self) -> None:
        self.uploaded = True
        if self.connection is not None and self.request.length is None:
            self.connection.write(b"0\r\n\r\n")

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause_reading()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume_reading()

    def abort(self) -> None:
        self.over = True
        if self.connection is not None:
            self.connection.abort()
        elif self.connecting is not None:
            self.connecting.cancel()

    def fail(self, error: UpstreamError) -> None:
        self.connection = None
        if not self.over:
            self.over = True
            self.sink.on_failure(error)

    def deliver(self, head: Head | None, piece: bytes, done: bool) -> None:
        if done:
            self.connection = None  # it may serve another call from now on
        if not self.over:
            self.over = done
            self.sink.on_data(head, piece, done)


class _Connection(asyncio.Protocol):
    """One TCP connection. Serves one call at a time."""

    def __init__(self, upstream: HttpUpstream) -> None:
        self._upstream = upstream
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._call: HttpCall | None = None
        self.usable_until = 0.0
        self._reused = False
        self._reset()

    def _reset(self) -> None:
        self._status, self._reason = 0, b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._head: Head | None = None
        self._in_body = False
        self._framed = False
        self._complete = False
        self._answered = False
        self._pieces: list[bytes] = []

    # --- sending -------------------------------------------------------------------------------

    def start(self, call: HttpCall, *, reused: bool) -> None:
        if call.over:  # the client left while we connected
            self._upstream.release(self)
            return
        self._call, self._reused = call, reused
        call.connection = self
        self._reset()
        self.write(_request_head(self._upstream, call.request) + (call.request.body or b""))
        if call.request.body is None:
            call.sink.on_upload(ready=True)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        if self._call is not None and self._call.request.body is None:
            self._call.sink.on_upload(ready=False)

    def resume_writing(self) -> None:
        if self._call is not None and self._call.request.body is None:
            self._call.sink.on_upload(ready=True)

    # --- receiving -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a Transport, for TCP and TLS

    def data_received(self, data: bytes) -> None:
        if self._call is None:  # bytes that nobody asked for
            self.close()
            return
        self._answered = True
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break("the upstream switched protocols, which this request did not ask for")
            return
        except httptools.HttpParserError as error:
            if not self._complete:
                self._break(f"the upstream's answer is not valid HTTP: {error}")
                return
            self.usable_until = -1.0
        if self._head_bytes > MAX_HEAD_BYTES and not self._in_body:
            self._break(f"the upstream's headers are larger than {MAX_HEAD_BYTES // 1024} KiB")
            return
        self._deliver()

    def _deliver(self) -> None:
        call, head, done = self._call, self._head, self._complete
        if call is None or (head is None and not self._pieces and not done):
            return
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._head, self._pieces = None, []
        if done:
            self._finish(call)
        call.deliver(head, piece, done)

    def _finish(self, call: HttpCall) -> None:
        """The answer is whole: the connection can serve the next call, unless one side closes it."""
        self._call = None
        keep = self._framed and self.usable_until >= 0.0 and self._parser.should_keep_alive()
        if keep and call.uploaded and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self.usable_until = time.monotonic() + _keep_alive_seconds(self._headers)
            self._upstream.release(self)
        else:
            self.close()

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # after the head these are trailers, which HTTP lets a proxy drop
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if 100 <= self._status < 200:
            return
        length, self._framed = _framing(self._headers, self._status)
        request = self._call.request if self._call else None
        self._in_body = True
        self._head = Head(self._status, self._reason, self._headers, length)
        if request is not None and request.method == b"HEAD":
            self._framed = self._complete = True
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._in_body:
            self._complete = True
        else:  # an interim answer (1xx); the real one follows
            self._reset()
            self._answered = True

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.forget(self)
        call = self._call
        if call is None:
            return
        if self._in_body and not self._framed and exc is None:
            self._complete = True  # the end of the connection is the end of this answer
            self.usable_until = -1.0
            self._deliver()
            return
        self._call = None
        if self._reused and not self._answered and call.request.method in SAFE_METHODS:
            call.connection = None
            self._upstream.connect(call)  # it was closing when we reused it
            return
        reason = _reason(exc) if exc else "it closed the connection"
        when = "in the middle of its answer" if self._in_body else "before answering"
        call.fail(UpstreamBroken(f"{self._upstream.name} broke off {when}: {reason}"))

    def _break(self, message: str) -> None:
        call, self._call = self._call, None
        self.abort()
        if call is not None:
            call.fail(UpstreamBroken(message))

    # --- ending --------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        self._call = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._call = None
        if self._transport is not None:
            self._transport.close()


def _request_head(upstream: HttpUpstream, request: Outgoing) -> bytes:
    lines = [request.method + b" " + request.path + b" HTTP/1.1", b"Host: " + upstream.host_header]
    lines += [name + b": " + value for name, value in request.headers]
    if request.has_body:
        chunked = request.body is None and request.length is None
        length = request.length if request.body is None else len(request.body)
        lines.append(b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (length or 0))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _framing(headers: Headers, status: int) -> tuple[int | None, bool]:
    """Length of the body where it is known, and whether its end is marked (RFC 9112, section 6.3)."""
    length, chunked = None, False
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-length":
            length = int(value)
        elif lower == b"transfer-encoding":
            chunked = True
    if status in (204, 304):
        return length, True
    return (None, True) if chunked else (length, length is not None)


def _keep_alive_seconds(headers: Headers) -> float:
    for name, value in headers:
        if name.lower() == b"keep-alive" and b"timeout=" in value:
            with contextlib.suppress(ValueError):
                return min(IDLE_SECONDS, float(value.partition(b"timeout=")[2].split(b",")[0]) - 1.0)
    return IDLE_SECONDS


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
