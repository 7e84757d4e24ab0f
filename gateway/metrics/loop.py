"""Watches the event loop: how late a timer comes is for how long everything else waited, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

EVERY_SECONDS = 0.02


class LoopWatch:
    """Calls `late(seconds)` fifty times a second, from `start` until `stop`."""

    def __init__(self, late: Callable[[float], None]) -> None:
        self._late = late
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """In the loop that is to be watched."""
        self._set(asyncio.get_running_loop())

    def stop(self) -> None:
        """From any callback of the same loop."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.perf_counter() + EVERY_SECONDS
        self._timer = loop.call_later(EVERY_SECONDS, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._late(max(0.0, time.perf_counter() - self._due))
        self._set(loop)
