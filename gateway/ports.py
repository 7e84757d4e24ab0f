"""The port that relays share: a listening socket for each of them.

Each relay has a listening socket of its own on the port (SO_REUSEPORT), which the kernel fills evenly: of 32
connections to four relays each got 4 to 12, where one socket that all accept from gave them 0 to 31
(`benchmarks/workers.py`). Where the kernel does not balance, all accept from one socket.
"""

from __future__ import annotations

import os
import socket
import sys

from gateway.errors import ConfigError

BALANCES = sys.platform == "linux"
"""Whether the kernel spreads connections over sockets that share a port."""
BACKLOG = 4096

Sockets = list[socket.socket]


def bind(host: str, port: int, count: int) -> list[Sockets]:
    """Listening sockets for so many relays, one for each address of the host; port 0 takes any that is free.

    Raises:
        ConfigError: the port is taken, the address is not ours.
    """
    try:
        found = addresses(host, port)
        if port == 0:
            family, address = found[0]
            found = [(family, (str(address[0]), _free_port(family, address)))]
        for family, address in found:  # alone: one that shares would join another program of ours in silence
            listening(family, address, shared=False).close()
        if BALANCES:
            return [[listening(*address, shared=True) for address in found] for _ in range(count)]
        return [[listening(*address, shared=False) for address in found]] * count
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason_of(error)}; choose another with --port"
        ) from error


def reason_of(error: OSError) -> str:
    """Why it cannot be listened there, without what asyncio says around it; a host that has no address has no
    number."""
    known = isinstance(error.errno, int) and error.errno > 0
    return os.strerror(error.errno) if known and error.errno is not None else str(error.strerror)


def _free_port(family: int, address: tuple[object, ...]) -> int:
    with socket.socket(family) as probe:
        probe.bind((address[0], 0))
        return int(probe.getsockname()[1])


def listening(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    """A socket that listens there; `shared` with others of ours, each with a queue of its own.

    Raises:
        OSError: the address is taken, or not ours.
    """
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    """Where a host name leads: family and address of each."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
