"""Watches the event loop: how late a timer comes is for how long everything else waited, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.ticks import until_next

OFTEN_SECONDS = 0.02
BUSY_SHARE = 0.2
"""Of one core; a process that uses less is looked at with every tick only, since each look wakes it."""


class LoopWatch:
    """Calls `late(seconds)`, from `start` until `stop`: fifty times a second while the process is busy or a timer
    came late, else four times."""

    def __init__(self, late: Callable[[float], None]) -> None:
        self._late = late
        self._due = self._looked = self._used = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """In the loop that is to be watched."""
        self._looked, self._used = time.perf_counter(), time.process_time()
        self._set(asyncio.get_running_loop(), OFTEN_SECONDS)

    def stop(self) -> None:
        """From any callback of the same loop."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._due = time.perf_counter() + seconds
        self._timer = loop.call_later(seconds, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        now, used = time.perf_counter(), time.process_time()
        late = max(0.0, now - self._due)
        self._late(late)
        is_busy = used - self._used > BUSY_SHARE * (now - self._looked) or late > OFTEN_SECONDS
        self._looked, self._used = now, used
        self._set(loop, OFTEN_SECONDS if is_busy else until_next(loop.time()))
