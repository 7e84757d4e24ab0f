"""One TCP connection to an upstream: requests out, answers in, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
import time
from typing import Protocol

import httptools

from gateway.errors import UpstreamBroken, UpstreamError
from gateway.upstreams import Head, Outgoing, Sink, header_lines
from gateway.upstreams.answer_lines import has_plain_lines, headers_of, is_chunked, lower, noted, status_line
from gateway.upstreams.outbox import Outbox
from gateway.upstreams.shapes import Shapes

IDLE_SECONDS = 30.0
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
MAX_HEAD_BYTES = 256 * 1024
_LAST = b"\r\n0\r\n\r\n"
_SIZES = {length: b"%x" % length for length in range(1, 8192)}
"""What stands before a chunk of so many bytes."""
LARGE_BODY = 256 * 1024
"""Written for itself: a copy behind its head would cost more than a second call."""


class Served(Protocol):
    """The call that a connection serves."""

    request: Outgoing
    sink: Sink
    connection: HttpConnection | None
    uploaded: bool
    paused: bool
    over: bool

    def fail(self, error: UpstreamError) -> None: ...
    def retry(self) -> None: ...


class Pool(Protocol):
    """Where connections rest, and through which they write."""

    outbox: Outbox
    shapes: Shapes

    def release(self, connection: HttpConnection) -> None: ...
    def forget(self, connection: HttpConnection) -> None: ...


class HttpConnection(asyncio.Protocol):
    """Serves one call at a time; rests in its pool between calls."""

    def __init__(self, name: str, host_header: bytes, pool: Pool) -> None:
        self._name, self._host_line, self._pool = name, b" HTTP/1.1\r\nHost: " + host_header, pool
        self._transport: asyncio.Transport | None = None
        self._lines: dict[bytes, bytes] = {}
        self.on_header = self._lines.setdefault  # the parser's callback: of a name's values the first counts
        self._parser = httptools.HttpResponseParser(self)
        self._call: Served | None = None
        self._usable_until = 0.0
        self._rests_for: bytes | None = None
        self._paused = self._spoiled = False
        self._reset(reused=False)

    def _reset(self, *, reused: bool) -> None:
        self._reused = reused
        self._reason = b""
        self._lines.clear()
        self._opening = b""
        self._quiet_bytes = 0
        self._head: Head | None = None
        self._between_chunks = self._in_chunk = False
        self._in_body = self._framed = self._complete = self._keep = self._tunnel = self._answered = False
        self._pieces: list[bytes] = []

    # --- sending -------------------------------------------------------------------------------

    def start(self, call: Served, *, reused: bool) -> None:
        """Send the request's head and what there is of its body."""
        self._call = call
        call.connection = self
        if self._answered:
            self._reset(reused=reused)
        self._reused, self._keep = reused, False
        request = call.request
        body = request.body
        if body is not None and len(body) >= LARGE_BODY and request.length is not None:
            request.body = b""
            self.write(_request_bytes(self._host_line, request, len(body)))
            self.write(body)
        else:
            self.write(_request_bytes(self._host_line, request, len(body) if body is not None else None))
        if call.paused:
            self.pause_reading()
        if request.body is None:
            call.sink.on_upload(ready=True)

    def write(self, data: bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._pool.outbox.write(transport, data)

    def pause_writing(self) -> None:
        if self._call is not None and self._call.request.uploads:
            self._call.sink.on_upload(ready=False)

    def resume_writing(self) -> None:
        if self._call is not None and self._call.request.uploads:
            self._call.sink.on_upload(ready=True)

    # --- receiving -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a Transport, for TCP and TLS

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:  # bytes that nobody asked for
            self.close()
            return
        if self._between_chunks:
            # One chunk, as servers flush the events of a stream, is handed on as it is: the parser, which stands
            # between two chunks, need not see it.
            size, _, rest = data.partition(b"\r\n")
            piece = rest.removesuffix(b"\r\n")
            if piece is not rest and size == _SIZES.get(len(piece)):
                call.sink.on_chunk(data, piece)
                return
            if piece is not rest:
                data = self._without_whole_chunks(call, data)
                if not data or self._call is not call:
                    return
        elif self._tunnel:
            call.sink.on_data(None, data, False)
            return
        elif not self._answered and self._is_usual(call, data):
            return
        self._parse(call, data)

    def _parse(self, call: Served, data: bytes) -> None:
        if not self._in_body:
            self._answered, self._opening = True, (self._opening + data).lstrip(b"\r\n")
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._tunnel:
                self._break("the upstream switched protocols, which this request did not ask for")
                return
            self._pieces = [data[upgrade.args[0] :]]
        except httptools.HttpParserError as error:
            if not self._complete:
                self._deliver(call)  # what was valid before
                if self._call is call:
                    self._break(f"the upstream's answer is not valid HTTP: {error}")
                return
            self._spoiled = True
        self._between_chunks = self._in_body and not self._in_chunk and data.endswith(b"\r\n")
        is_body = self._in_body and self._quiet_bytes == 0 and self._head is None and not self._complete
        if is_body:  # and nothing else
            pieces, self._pieces = self._pieces, []
            call.sink.on_data(None, pieces[0] if len(pieces) == 1 else b"".join(pieces), False)
            return
        if self._quiet_bytes > MAX_HEAD_BYTES and not self._complete:
            self._break(f"the upstream's headers or trailers are larger than {MAX_HEAD_BYTES // 1024} KiB")
            return
        self._deliver(call)

    def _is_usual(self, call: Served, data: bytes) -> bool:
        """Whether `data` is a whole answer in a known shape; then it is handed on, and the parser, which stands
        before an answer, need not see it."""
        found = self._pool.shapes.read(data)
        if found is None or call.request.method == b"HEAD":
            return False
        head, body = found
        self._rests_for, self._keep = head.first.get(b"keep-alive"), True
        self._finish(call)
        call.sink.on_data(head, body, True)
        return True

    @staticmethod
    def _without_whole_chunks(call: Served, data: bytes) -> bytes:
        """What the parser has to see of bytes that end a line: several chunks without line ends in them are handed
        on at once, as they are; a last one of none is left."""
        chunks = data[: -len(_LAST) + 2] if data.endswith(_LAST) else data
        lines = chunks.split(b"\r\n")
        pieces = lines[1::2]
        if lines[:-1:2] != list(map(_SIZES.get, map(len, pieces))):
            return data
        call.sink.on_chunk(chunks, b"".join(pieces))
        return data[len(chunks) :]

    def _deliver(self, call: Served) -> None:
        head, pieces, done = self._head, self._pieces, self._complete
        if head is None and not pieces and not done:
            return
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._head, self._pieces = None, []
        if done:
            self._finish(call)
        call.sink.on_data(head, piece, done)
        if head is not None and self._tunnel and self._call is call:
            call.sink.on_upload(ready=True)

    def _finish(self, call: Served) -> None:
        """The answer is whole: the connection can serve the next call, unless one side closes it."""
        self._call = call.connection = None
        call.over = True
        if (
            self._keep
            and not self._spoiled
            and call.uploaded
            and self._transport is not None
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()  # else the request is not sent yet, and never may be
        ):
            if self._paused:
                self.resume_reading()
            self.rest()
        else:
            self.close()

    def rest(self) -> None:
        """Wait in the pool for the next call."""
        self._usable_until = time.monotonic() + _keep_alive_seconds(self._rests_for)
        self._pool.release(self)

    def is_usable(self, now: float) -> bool:
        """Whether a new call can be started on it; `now` as `time.monotonic()`."""
        return self._usable_until > now and self._transport is not None and not self._transport.is_closing()

    # --- the parser ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:  # of an answer to no request
            self._spoiled = True

    def on_status(self, reason: bytes) -> None:
        if not self._complete:
            self._reason += reason

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        request = self._call.request if self._call else None
        if 100 <= status < 200 and not (status == 101 and request is not None and request.websocket):
            return
        self._in_body, self._tunnel = True, status == 101
        self._quiet_bytes = 0
        self._head = self._frame(status)
        if request is not None and request.method == b"HEAD":
            self._framed = self._complete = True
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body

    def _frame(self, status: int) -> Head:
        """The head with its body's length, where it is known, and whether the end is marked (RFC 9112, 6.3)."""
        first = noted(self._lines)
        length = first.get(b"content-length")
        chunked = is_chunked(first, self._opening)
        self._framed = chunked or length is not None or status in (204, 304)
        self._in_chunk = not chunked  # never between two chunks
        self._rests_for = first.get(b"keep-alive")
        known = int(length) if length is not None and not chunked else None
        opening, self._opening = self._opening, b""
        raw = opening[: opening.find(b"\r\n\r\n")]
        is_usual = raw.startswith(status_line(status))
        if is_usual and raw.count(b"\n") == len(set(lower(names := tuple(self._lines)))):  # each once, on one line
            if status == 200:
                self._pool.shapes.met(names, first)
            return Head(status, raw, first, known, plain=True)
        if not is_usual or not has_plain_lines(raw):
            raw = b"HTTP/1.1 %d %b" % (status, self._reason) + header_lines(headers_of(opening))
        return Head(status, raw, first, known)

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        self._in_chunk = False

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._quiet_bytes = 0
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._tunnel or self._complete:
            return
        if self._in_body:
            self._complete = True
            self._keep = self._framed and self._parser.should_keep_alive()  # only known in here
        else:  # an interim answer (1xx); the real one follows
            status, headers, reason = self._parser.get_status_code(), headers_of(self._opening), self._reason
            opening = self._opening.partition(b"\r\n\r\n")[2]
            self._reset(reused=self._reused)
            self._answered, self._opening = True, opening
            if status not in (100, 101) and self._call is not None:
                self._call.sink.on_interim(Head.of(status, reason, headers, 0))

    # --- ending --------------------------------------------------------------------------------

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        call = self._call
        if call is None:
            return
        if self._in_body and not self._framed and exc is None:
            self._complete = self._spoiled = True  # the end of the connection is the end of this answer
            self._deliver(call)
            return
        self._call = None
        request = call.request
        if self._reused and not self._answered and request.method in SAFE_METHODS and not request.uploads:
            call.retry()
            return
        reason = reason_of(exc) if exc else "it closed the connection"
        when = "in the middle of its answer" if self._in_body else "before answering"
        call.fail(UpstreamBroken(f"{self._name} broke off {when}: {reason}"))

    def _break(self, message: str) -> None:
        call = self._call
        self.abort()
        if call is not None:
            call.fail(UpstreamBroken(message))

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; the call hears nothing more."""
        self._call = None
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close when what was written has left; the call hears nothing more."""
        self._call = None
        if self._transport is not None:
            self._pool.outbox.flush()
            self._transport.close()


def _request_bytes(host_line: bytes, request: Outgoing, length: int | None) -> bytes:
    """The head, and the body where it is known. `host_line`: from behind the path to the `Host` header's end;
    `length`: the body's, None where that follows."""
    body = request.body or b""
    framing = b""
    if request.websocket:
        framing = b"\r\nConnection: Upgrade\r\nUpgrade: websocket"
    elif request.has_body and request.length is not None:
        framing = b"\r\nContent-Length: %d" % (request.length if length is None else length)
    elif request.has_body:
        framing = b"\r\nTransfer-Encoding: chunked"
        if request.body is not None:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    return b"".join((request.method, b" ", request.path, host_line, request.lines, framing, b"\r\n\r\n", body))


def _keep_alive_seconds(announced: bytes | None) -> float:
    """How long a connection may rest, by the upstream's `Keep-Alive` header."""
    if announced is not None and b"timeout=" in announced:
        with contextlib.suppress(ValueError):
            return min(IDLE_SECONDS, float(announced.partition(b"timeout=")[2].split(b",")[0]) - 1.0)
    return IDLE_SECONDS


def reason_of(error: BaseException) -> str:
    """An error in a few words, without addresses of ours or keys."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


_WANTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def is_our_own_want(error: BaseException) -> bool:
    """Whether no connection came about because our own files, ports or memory are used up."""
    several = str(error) if getattr(error, "errno", None) is None else ""  # one text for all addresses of a name
    return getattr(error, "errno", None) in _WANTS or any(os.strerror(want) in several for want in _WANTS)
