"""How evenly relays on one port get their connections: a socket for each (SO_REUSEPORT) beside one for all.

    python benchmarks/workers.py

Four processes count connections and requests in memory that they share; clients connect all at once and then ask
on and on for three seconds. Printed: the connections of each, and the most requests of one over the mean.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import sys
import time
from typing import cast

import uvloop

from gateway.ports import bind

PROCESSES, SECONDS, WORK = 4, 3.0, 150e-6


class Counting(asyncio.Protocol):
    """Answers each piece of data after a moment of work, and counts."""

    def __init__(self, cells: memoryview[int], number: int) -> None:
        self._cells, self._number = cells, number

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._cells[2 * self._number] += 1

    def data_received(self, data: bytes) -> None:
        self._cells[2 * self._number + 1] += 1
        until = time.perf_counter() + WORK
        while time.perf_counter() < until:
            pass
        self._transport.write(b"done\n")


def processes(sockets: list[list[socket.socket]], cells: memoryview[int]) -> list[int]:
    """Their ids; each accepts from its own sockets."""
    found = []
    for number, mine in enumerate(sockets):
        pid = os.fork()
        if pid == 0:
            uvloop.run(accept(mine, cells, number))
            os._exit(0)
        found.append(pid)
    return found


async def accept(mine: list[socket.socket], cells: memoryview[int], number: int) -> None:
    loop = asyncio.get_running_loop()
    for one in mine:
        await loop.create_server(lambda: Counting(cells, number), sock=one, backlog=4096)
    await asyncio.sleep(10 * SECONDS)


async def clients(port: int, count: int) -> None:
    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            writer.write(b"x")
            await reader.readline()
        writer.close()

    await asyncio.gather(*[client() for _ in range(count)])


def spread(count: int, *, shared: bool) -> tuple[list[int], list[int]]:
    """Connections and requests of each process."""
    sockets = bind("127.0.0.1", 0, PROCESSES)
    if shared:
        for mine in sockets[1:]:
            for one in mine:
                one.close()
        sockets = [sockets[0]] * PROCESSES
    cells = memoryview(mmap.mmap(-1, 4096)).cast("Q")
    pids = processes(sockets, cells)
    time.sleep(0.3)
    asyncio.run(clients(sockets[0][0].getsockname()[1], count))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for mine in sockets:
        for one in mine:
            one.close()
    both = list(cells[: 2 * PROCESSES])
    return both[::2], both[1::2]


def main() -> None:
    sys.stdout.write("connections  sockets        of each process  requests, most over mean\n")
    for count in (8, 32, 128):
        for shared in (False, True):
            for _ in range(3):
                connections, requests = spread(count, shared=shared)
                name = "one for all" if shared else "one each"
                most = max(requests) / (sum(requests) / PROCESSES)
                sys.stdout.write(f"{count:11}  {name:12}{connections!s:>20}{most:12.2f}\n")


if __name__ == "__main__":
    main()
