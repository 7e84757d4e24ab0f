"""An HTTP/1.1 upstream: pooled connections, answers handed on in the same turn of the event loop.

Written on `asyncio.Protocol` and httptools (llhttp) instead of aiohttp's client because the client's
session costs more than the rest of the relay together, and hides what a transparent proxy must pass on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import deque
from urllib.parse import urlsplit

from gateway.errors import OutOfSockets, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.upstreams import Outgoing, Sink
from gateway.upstreams.connection import HttpConnection, is_our_own_want, reason_of
from gateway.upstreams.names import Host
from gateway.upstreams.outbox import Outbox
from gateway.upstreams.shapes import Shapes

IDLE_AT_MOST = 1024


class HttpUpstream:
    """One origin and the path in front of every request."""

    def __init__(self, name: str, base_url: str, outbox: Outbox | None = None) -> None:
        """`outbox`: through which its connections write; one of its own where none is given."""
        parts = urlsplit(base_url)
        self.name = name
        self.prefix = parts.path.rstrip("/").encode("ascii")
        self._host_name = parts.hostname or ""
        self._host = Host(self._host_name)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self.host_header = parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii")
        self.outbox = outbox or Outbox()
        self.shapes = Shapes()
        self._idle: deque[HttpConnection] = deque()
        self._open: set[HttpConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, request: Outgoing, sink: Sink, *, connect_timeout: float) -> HttpCall:
        call = HttpCall(self, request, sink, connect_timeout)
        if request.websocket or not self._reuse(call):
            self.connect(call)
        return call

    def _reuse(self, call: HttpCall) -> bool:
        """Put the call on a kept-alive connection, the most recently used one first."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable(now):
                connection.start(call, reused=True)
                return True
            connection.close()
        return False

    def connect(self, call: HttpCall) -> None:
        """Give the call a connection of its own."""
        task = asyncio.get_running_loop().create_task(self._connect(call))
        call.connecting = task
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, call: HttpCall) -> None:
        try:
            transport, connection = await self._reach(asyncio.get_running_loop().time() + call.connect_timeout)
        except TimeoutError:
            message = f"no connection to {self.name} within {call.connect_timeout:g} s"
            call.fail(UpstreamTimeout(message, reached=False))
        except (OSError, ssl.SSLError, UnicodeError) as error:
            failure = OutOfSockets if is_our_own_want(error) else UpstreamUnreachable
            call.fail(failure(f"cannot connect to {self.name}: {reason_of(error)}"))
        else:
            _keep_alive(transport)
            self._open.add(connection)
            call.connecting = None
            if call.over:  # the client left while we connected
                connection.rest()
            else:
                connection.start(call, reused=False)

    async def _reach(self, deadline: float) -> tuple[asyncio.Transport, HttpConnection]:
        """A connection to the first address that takes one; each has its share of the time that is left.

        Raises:
            TimeoutError: the look-up, or the last address, took too long.
            OSError, UnicodeError: there is no such name, or the last address refused.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(deadline):
            addresses = await self._host.addresses()
        failure = OSError("it has no address")
        for number, address in enumerate(addresses):
            share = (deadline - loop.time()) / (len(addresses) - number)
            try:
                async with asyncio.timeout(share):
                    reached = await self._open_connection(address)
            except OSError as error:
                if isinstance(error, ssl.SSLError) or is_our_own_want(error):
                    raise  # no other address would change that
                failure = error
            else:
                if number:
                    self._host.prefer(address)
                return reached
        raise failure

    async def _open_connection(self, address: str) -> tuple[asyncio.Transport, HttpConnection]:
        return await asyncio.get_running_loop().create_connection(
            lambda: HttpConnection(self.name, self.host_header, self),
            address,
            self._port,
            ssl=self._tls,
            server_hostname=self._host_name if self._tls else None,
        )

    def release(self, connection: HttpConnection) -> None:
        """It can serve another call. Connections over their time go, the oldest first."""
        now = time.monotonic()
        while self._idle and (len(self._idle) >= IDLE_AT_MOST or not self._idle[0].is_usable(now)):
            self._idle.popleft().close()
        self._idle.append(connection)

    def forget(self, connection: HttpConnection) -> None:
        """It is closed."""
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
        self.connection: HttpConnection | None = None
        self.uploaded = not request.uploads
        self.paused = False
        self.over = False

    def write(self, piece: bytes) -> None:
        if self.connection is not None and piece:
            chunked = self.request.length is None and not self.request.websocket
            self.connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)

    def write_end(self) -> None:
        self.uploaded = True
        if self.request.websocket:
            self.over = True
            if self.connection is not None:
                self.connection.close()
            elif self.connecting is not None:
                self.connecting.cancel()
        elif self.connection is not None and self.request.length is None:
            self.connection.write(b"0\r\n\r\n")

    def pause(self) -> None:
        self.paused = True
        if self.connection is not None:
            self.connection.pause_reading()

    def resume(self) -> None:
        self.paused = False
        if self.connection is not None:
            self.connection.resume_reading()

    def abort(self) -> None:
        self.over = True
        if self.connection is not None:
            self.connection.abort()
        elif self.connecting is not None:
            self.connecting.cancel()

    def retry(self) -> None:
        """The kept-alive connection was closing when it was reused: nothing has happened yet."""
        self.connection = None
        if not self.over:
            self.upstream.connect(self)

    def fail(self, error: UpstreamError) -> None:
        self.connection = None
        if not self.over:
            self.over = True
            self.sink.on_failure(error)


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    """A model may think for minutes without a byte; gateways on the way forget connections that seem dead."""
    found = transport.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30)
