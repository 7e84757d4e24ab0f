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
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.proxy.connection import Connection
from gateway.proxy.forward import House
from gateway.proxy.heads import Heads

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
GUEST_SECONDS = 120.0
"""How long a connection that was handed to the admin application may live."""


class Limits:
    """Bounds that hold for every client. Seconds, bytes, and how many connections at once."""

    def __init__(
        self, *, body_bytes: int, header_seconds: float, idle_seconds: float, connections: int = 8192
    ) -> None:
        self.body_bytes = body_bytes
        self.header_seconds = header_seconds
        self.idle_seconds = idle_seconds
        self.connections = connections


class _Timed(Protocol):
    def tick(self, now: float) -> None: ...


class Server:
    """All client connections of a process."""

    def __init__(self, house: House, limits: Limits, admin: Callable[[], asyncio.Protocol]) -> None:
        self.house, self.limits, self.admin = house, limits, admin
        self.heads = Heads()
        self.connections: set[Connection] = set()
        self.draining = False
        self._guests: dict[asyncio.Transport, float] = {}
        self._listener: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> int:
        """Start accepting; gives the port (asked for 0: any that is free)."""
        loop = asyncio.get_running_loop()
        self.limits.connections = min(self.limits.connections, _connections_possible())
        self._listener = await loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        return int(self._listener.sockets[0].getsockname()[1])

    @property
    def is_full(self) -> bool:
        """Whether a further connection is one too many."""
        return len(self.connections) + len(self._guests) > self.limits.connections

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
            await asyncio.sleep(TICK_SECONDS)
            now = time.perf_counter()
            _tick(self.house.active, now)
            _tick(self.connections, now)
            for transport, since in list(self._guests.items()):
                if transport.is_closing():
                    del self._guests[transport]
                elif now - since > GUEST_SECONDS:
                    transport.abort()

    async def drain(self, seconds: float) -> None:
        """Stop accepting and wait for the requests under way, `seconds` at most; tunnels are closed at once."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        deadline = time.perf_counter() + seconds
        for exchange in list(self.house.active):
            if exchange.is_tunnel:
                exchange.stop()
        for connection in list(self.connections):
            connection.close_if_idle()
        while any(connection.is_busy for connection in self.connections) and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        for exchange in list(self.house.active):
            exchange.stop()
        for connection in list(self.connections):
            connection.cut(flush=False)
        await asyncio.sleep(0)


def _connections_possible() -> int:
    """How many clients the limit of open files allows, when each may need a connection to an upstream too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        wanted = min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        soft = max(soft, wanted)
    return max(16, (soft - 128) // 2)


def _tick(timed: Iterable[_Timed], now: float) -> None:
    for one in list(timed):
        try:
            one.tick(now)
        except Exception:
            log.exception("a deadline could not be kept")  # the next one is kept all the same
