"""The sockets that clients connect to, and when nobody is accepted: while there is no file left for one more.

libuv goes on trying to accept as long as a client waits. Where the limit of open files was lowered under a running
process, or the whole machine has none left, that is one core busy with nothing. So the listeners are closed until
there are files again; clients wait in the kernel's queue meanwhile, which a second descriptor of each socket keeps.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)


class Listening:
    """Accepts into protocols that `client` makes; used in one event loop."""

    def __init__(self, client: Callable[[], asyncio.Protocol]) -> None:
        self._client = client
        self._backlog = 100
        self._listeners: list[asyncio.Server] = []
        self._kept: list[socket.socket] = []

    async def start(self, host: str, port: int, sockets: Sequence[socket.socket], backlog: int) -> int:
        """Gives the port (asked for 0: any that is free). `sockets` are bound to it already, where there are any.

        Raises:
            OSError: the port is taken, the address is not ours, there is no file left.
        """
        self._backlog = backlog
        if sockets:
            await self._accept(sockets)
        else:
            loop = asyncio.get_running_loop()
            self._listeners = [await loop.create_server(self._client, host, port, backlog=backlog)]
        bound = [one for listener in self._listeners for one in listener.sockets]
        self._kept = [socket.fromfd(one.fileno(), one.family, one.type) for one in bound]
        return int(bound[0].getsockname()[1])

    async def _accept(self, sockets: Sequence[socket.socket]) -> None:
        create = asyncio.get_running_loop().create_server
        self._listeners = [await create(self._client, sock=one, backlog=self._backlog) for one in sockets]

    async def mind_files(self) -> None:
        """To be called a few times a second: stop or go on, as there are files."""
        if _is_one_left() == bool(self._listeners) or not self._kept:
            return
        if self._listeners:
            log.error("no file can be opened any more: clients wait until one can")
            self._close_listeners()
            return
        try:
            fresh = [one.dup() for one in self._kept]  # a listener closes its socket
        except OSError:  # there was one, and not as many as it takes
            return
        bound, self._kept = self._kept, fresh
        try:
            await self._accept(bound)
        except OSError as error:  # the next time, perhaps
            self._close_listeners()
            log.error("clients still wait: %s", error.strerror)
        else:
            log.warning("files can be opened again: those who waited are accepted")

    def _close_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()

    def close(self) -> None:
        """Accept nobody any more; who waits is refused."""
        self._close_listeners()
        for one in self._kept:
            one.close()
        self._kept = []


def _is_one_left() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in _NONE_LEFT
    return True
