"""Whether an event loop still turns: it beats, and whoever watches notices when the beats stop.

A process that waits for something that never comes (a lock, a call that blocks) is not dead, so nobody replaces it,
and its clients wait with it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable

from gateway.ticks import until_next

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
LONGEST_TURN = 1.0
"""A watcher that comes later than this did not run meanwhile, and has seen no more of the silence than so much."""


class Pulse:
    """A count that only grows, in memory that is shared with whoever is forked from here."""

    def __init__(self) -> None:
        self._count = memoryview(mmap.mmap(-1, 8)).cast("Q")

    @property
    def count(self) -> int:
        """How many beats there were."""
        return self._count[0]

    def beat(self) -> None:
        """One more; for one process at a time."""
        self._count[0] += 1

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Beat twice a second as long as this loop turns."""
        self.beat()
        loop.call_later(until_next(loop.time(), BEAT_SECONDS), self.follow, loop)


class Watch:
    """For how long a pulse has been still.

    Only time in which the watcher ran is counted: after Ctrl-Z, or a machine's sleep, both come back together.
    """

    def __init__(self, pulse: Pulse, now: Callable[[], float] = time.monotonic) -> None:
        self._pulse, self._now = pulse, now
        self.reset()

    def reset(self) -> None:
        """As if it had just beaten."""
        self._seen, self._last, self._still = self._pulse.count, self._now(), 0.0

    def seconds(self) -> float:
        """To be asked a few times a second."""
        now = self._now()
        passed, self._last = min(now - self._last, LONGEST_TURN), now
        if self._pulse.count != self._seen:
            self._seen, self._still = self._pulse.count, 0.0
        else:
            self._still += passed
        return self._still


def tell_where_on_request() -> None:
    """From now on SIGUSR2 writes the stacks of all threads to standard error, also while the interpreter hangs."""
    faulthandler.register(signal.SIGUSR2, all_threads=True)


class Watchdog:
    """Watches the loop of its own process from a thread, for want of another process that could.

    `on_hang` is called in that thread, the stacks being in the log. Code that computes without ever letting another
    thread run stops the watchdog, too: then a timer of processor time writes the stacks and ends the process.
    """

    def __init__(self, pulse: Pulse, limit: float, on_hang: Callable[[], None]) -> None:
        """`limit`: seconds without a beat."""
        self._pulse, self._limit, self._on_hang = pulse, limit, on_hang
        self._stopped = threading.Event()

    def start(self) -> None:
        """In the main thread, whose loop `pulse` follows."""
        faulthandler.register(signal.SIGPROF, all_threads=True, chain=True)  # then as by default: the end
        self._set_timer()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """It ends nobody any more."""
        self._stopped.set()
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _run(self) -> None:
        watch = Watch(self._pulse)
        while not self._stopped.wait(BEAT_SECONDS):
            self._set_timer()
            if watch.seconds() >= self._limit:
                signal.setitimer(signal.ITIMER_PROF, 0)  # it would outlive what the process becomes
                log.error("the event loop has not turned for %g s; where it stands:", self._limit)
                faulthandler.dump_traceback(all_threads=True)
                self._on_hang()
                return

    def _set_timer(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, self._limit * (os.cpu_count() or 1))
