"""The worker: the offline process beside the relay. It moves the journal into the store, finds tasks, and
turns the flywheel. Stopped or killed anywhere, it goes on from what the store says."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.config import Config
from gateway.errors import UnpromptError
from gateway.pipeline.cycle import Workshop, one_at_a_time, turn_all
from gateway.pipeline.discover import Discovery
from gateway.pipeline.finetune import Elsewhere
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

RECORD_SECONDS = 0.2


class Repeated:
    """Work that is done again and again, and that nothing stops: after a failure with a growing pause. An outage
    is reported when it begins and when it is over, not five times a second."""

    def __init__(self, work: Callable[[], object], name: str, seconds: float, longest: float) -> None:
        self._work, self._name, self._seconds, self._longest = work, name, seconds, longest
        self.failures = 0

    def once(self) -> float:
        """Do it once; gives the seconds to pause before the next time."""
        try:
            self._work()
        except Exception as error:  # a bug must not end the thread in silence, nor the other work
            if self.failures == 0:
                ours = isinstance(error, UnpromptError)
                log.error("%s fails, and is tried again: %s", self._name, error, exc_info=not ours)
            self.failures += 1
        else:
            if self.failures:
                log.info("%s works again", self._name)
            self.failures = 0
        return min(self._seconds * 2.0 ** min(self.failures, 20), max(self._longest, self._seconds))


class Worker:
    """Two threads, so that a long training never holds up recording."""

    def __init__(self, config: Config, journal: Path, workshop: Callable[[], Workshop], *, jobs: bool) -> None:
        """`workshop` opens a store of its own for the thread that calls it."""
        self._config, self._journal, self._open, self._jobs = config, journal, workshop, jobs
        self._stop = threading.Event()
        self._recorder: Recorder | None = None
        self._shop: Workshop | None = None
        self._discovery: Discovery | None = None

    def run(self) -> None:
        """Until SIGTERM, SIGINT, or the end of standard input: then what was recorded is moved, and it ends.
        A training that is under way stays unfinished in a thread that ends with the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        threading.Thread(target=self._watch_parent, daemon=True).start()
        if self._jobs:
            turning = Repeated(self._turn, "the background jobs", self._config.jobs.poll_seconds, 300.0)
            threading.Thread(target=self._repeat, args=[turning], daemon=True).start()
        recording = Repeated(self._record, "recording", RECORD_SECONDS, 5.0)
        self._repeat(recording)
        recording.once()

    def _repeat(self, work: Repeated) -> None:
        pause = work.once()
        while not self._stop.wait(pause):
            pause = work.once()

    def _watch_parent(self) -> None:
        """Standard input is a pipe from the relay: it ends when the relay does, however it died."""
        while sys.stdin.buffer.read(4096):
            pass
        self._stop.set()

    def _record(self) -> None:
        self._recorder = self._recorder or Recorder(self._journal, SqliteStore(self._config.store.path))
        self._recorder.drain()

    def _turn(self) -> None:
        if self._shop is None or self._discovery is None:
            self._shop = msgspec.structs.replace(self._open(), elsewhere=Elsewhere())
            self._discovery = Discovery(self._shop.store)
        with one_at_a_time(self._config.store.home / ".jobs.lock", wait=False) as mine:
            if mine:
                self._discovery.step()
                turn_all(self._shop)
