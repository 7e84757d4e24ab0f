"""The least that a relay in Python costs: a pipe on uvloop that hands on bytes and looks at none of them.

No heads, no routes, no records, no deadlines; each client has a connection to the upstream of its own. In the bench
harness (not in this repository) it stands where a gateway would:

    python $BENCH/bench.py --name pipe --rounds 2 -- python benchmarks/pipe.py {port} {upstream}
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

HOST = "127.0.0.1"


class Back(asyncio.Protocol):
    """The upstream's side."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.close()


class Front(asyncio.Protocol):
    """The client's side; what comes before the upstream is reached waits."""

    def __init__(self, upstream: int) -> None:
        self._port = upstream
        self._upstream: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._reach(transport))  # type: ignore[arg-type]

    async def _reach(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._upstream, _ = await loop.create_connection(lambda: Back(client), HOST, self._port)
        for data in self._early:
            self._upstream.write(data)

    def data_received(self, data: bytes) -> None:
        if self._upstream is None:
            self._early.append(data)
        else:
            self._upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connecting.cancel()
        if self._upstream is not None:
            self._upstream.close()


async def main(port: int, upstream: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Front(upstream), HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
