"""The addresses of an upstream's host, looked up when a connection needs them and kept for a while.

Each host has a thread of its own and one look-up at a time. In a pool that all share, the event loop's own, a name
server that says nothing about one host holds up the look-ups of all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import socket
import threading
import time
from collections.abc import Callable

KEPT_SECONDS = 30.0
"""So long addresses are used without asking again."""

PATIENCE_SECONDS = 0.5
"""So long a look-up may take before the addresses that were good the last time are used again."""

Addresses = tuple[str, ...]


def look_up(host: str) -> Addresses:
    """The host's addresses in the order that the system prefers; blocks.

    Raises:
        OSError: there are none, or nobody knows.
        UnicodeError: it cannot be a name.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class Host:
    """One host by its name or address; used in one event loop."""

    def __init__(
        self,
        name: str,
        look_up: Callable[[str], Addresses] = look_up,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._look_up, self._now = name, look_up, now
        literal = _is_address(name)
        self._known: Addresses = (name,) if literal else ()
        self._fresh_until = math.inf if literal else -math.inf
        self._search: asyncio.Future[Addresses | Exception] | None = None
        self._overdue = 0.0

    async def addresses(self) -> Addresses:
        """Those of the last half minute, else what a look-up finds that all who wait share, else, where that
        fails or takes long, those that were good before.

        Raises:
            OSError: nobody knows, and never did.
            UnicodeError: it cannot be a name.
        """
        if self._now() < self._fresh_until:
            return self._known
        search = self._search or self._start()
        patience = max(0.0, self._overdue - self._now()) if self._known else None
        await asyncio.wait({search}, timeout=patience)  # whoever is cancelled here takes nothing from the others
        if not self._known and isinstance(failure := search.result(), Exception):
            raise failure
        return self._known

    def prefer(self, address: str) -> None:
        """It took a connection when those before it did not."""
        self._known = (address, *(other for other in self._known if other != address))

    def _start(self) -> asyncio.Future[Addresses | Exception]:
        loop = asyncio.get_running_loop()
        search = self._search = loop.create_future()
        self._overdue = self._now() + PATIENCE_SECONDS
        # a daemon: an executor's thread would hold up the end of the process until the name server answers
        threading.Thread(target=self._ask, args=(loop, search), name="look-up", daemon=True).start()
        return search

    def _ask(self, loop: asyncio.AbstractEventLoop, search: asyncio.Future[Addresses | Exception]) -> None:
        outcome: Addresses | Exception = OSError("the look-up broke off")
        try:
            outcome = self._look_up(self._name)
        except (OSError, UnicodeError) as error:
            outcome = error
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._settle, search, outcome)

    def _settle(self, search: asyncio.Future[Addresses | Exception], outcome: Addresses | Exception) -> None:
        self._search = None
        if not isinstance(outcome, Exception):
            self._known, self._fresh_until = outcome, self._now() + KEPT_SECONDS
        search.set_result(outcome)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
