"""Accepts connections, and watches their deadlines.

The request, whole: bytes from a client -> `connection` parses heads -> `forward` plans, asks and hands on,
`record` notes what passed -> bytes to the client. Own pages (`/metrics`, `/healthz`, `/readyz`,
`/unprompt/...`) never come that far: their connection is handed to the admin application, an ordinary
aiohttp one, before its first byte is parsed here.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from gateway.proxy.concurrency import clients_at_most, is_short_of_files
from gateway.proxy.connection import Connection
from gateway.proxy.heads import Heads
from gateway.proxy.house import House
from gateway.proxy.listening import Listening
from gateway.ticks import tick

log = logging.getLogger(__name__)

BACKLOG = 4096
_FILES = resource.RLIMIT_NOFILE
GUEST_SECONDS = 120.0
"""How long a connection that was handed to the admin application may live."""


class Limits:
    """Bounds that hold for every client. Seconds, bytes, bytes a second of a request's body, and how many
    connections at once."""

    def __init__(
        self, *, body_bytes: int, header_seconds: float, idle_seconds: float, least_rate: int = 0,
        connections: int = 16384,
    ) -> None:  # fmt: skip
        self.body_bytes = body_bytes
        self.header_seconds = header_seconds
        self.idle_seconds = idle_seconds
        self.least_rate = least_rate
        self.connections = connections


class _Timed(Protocol):
    def tick(self, now: float) -> None: ...


class Server:
    """All client connections of a process."""

    def __init__(self, house: House, limits: Limits, admin: Callable[[], asyncio.Protocol]) -> None:
        self.house, self.limits, self.admin = house, limits, admin
        self.heads = Heads()
        self.outbox = house.outbox
        self.connections: set[Connection] = set()
        self.draining = False
        self.files_at_most, self.backlog = 0, BACKLOG
        self._guests: dict[asyncio.Transport, float] = {}
        self._listening = Listening(lambda: Connection(self))

    async def listen(self, host: str, port: int, sockets: Sequence[socket.socket] = ()) -> int:
        """Start accepting; gives the port (asked for 0: any that is free). `sockets` are bound to it already, where
        they are given."""
        self._count_files()
        return await self._listening.start(host, port, sockets, self.backlog)

    def _count_files(self) -> None:
        """Take no more clients than the limit of open files allows, nor so many at a time that a rush uses all of
        them before the first is told to come back."""
        self.files_at_most = files = _files_at_most()
        self.limits.connections = min(self.limits.connections, clients_at_most(files))
        self.backlog = min(BACKLOG, max(16, files // 4))

    @property
    def is_full(self) -> bool:
        """Whether a further connection is one too many."""
        return len(self.connections) + len(self._guests) > self.limits.connections

    def is_short_of_files(self, transport: asyncio.Transport) -> bool:
        """Whether this connection, which was just accepted, took one of the last files. To be asked before they
        run out: then uvloop takes connections only to close them without a word."""
        found = transport.get_extra_info("socket")
        return found is not None and is_short_of_files(found.fileno(), self.files_at_most)

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Let the admin application serve this connection, of which `data` is what was received so far."""
        self._guests[transport] = time.perf_counter()
        protocol = self.admin()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    async def watch(self) -> None:
        """Runs as long as the server: ends what is over its time."""
        while True:
            await tick()
            await self._listening.mind_files()
            now = time.perf_counter()
            _tick(self.house.active, now)
            _tick(self.connections, now)
            for transport, since in list(self._guests.items()):
                if transport.is_closing():
                    del self._guests[transport]
                elif now - since > GUEST_SECONDS:
                    transport.abort()

    def _is_busy(self) -> bool:
        """Whether a request is under way; also one whose client has left, but whose answer is awaited."""
        return bool(self.house.active) or any(connection.is_busy for connection in self.connections)

    async def drain(self, seconds: float) -> None:
        """Stop accepting and wait for the requests under way, `seconds` at most; tunnels are closed at once."""
        self.draining = True
        self._listening.close()
        deadline = time.perf_counter() + seconds
        for exchange in list(self.house.active):
            if exchange.is_tunnel:
                exchange.stop()
        for connection in list(self.connections):
            connection.close_if_idle()
        while self._is_busy() and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        for exchange in list(self.house.active):
            exchange.stop()
        for connection in list(self.connections):
            connection.cut(flush=False)
        await asyncio.sleep(0)


def _files_at_most() -> int:
    """How many files this process may have open, the limit being raised as far as that goes."""
    most = 65_536
    soft, hard = (most if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(_FILES))
    if soft < min(hard, most):
        soft = min(hard, most)
        resource.setrlimit(_FILES, (soft, resource.getrlimit(_FILES)[1]))
    return soft


def _tick(timed: Iterable[_Timed], now: float) -> None:
    for one in list(timed):
        try:
            one.tick(now)
        except Exception:
            log.exception("a deadline could not be kept")  # the next one is kept all the same
