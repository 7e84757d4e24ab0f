"""The worker: the offline process beside the relay. It moves the journal into the store, finds tasks, and
turns the flywheel. Stopped or killed anywhere, it goes on from what the store says."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gateway.config import Config
from gateway.errors import UnpromptError
from gateway.pipeline.cycle import Workshop, one_at_a_time, turn_all
from gateway.pipeline.discover import Discovery
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

RECORD_SECONDS = 0.2


class Worker:
    """Two threads, so that a long training never holds up recording."""

    def __init__(self, config: Config, journal: Path, workshop: Callable[[], Workshop], *, jobs: bool) -> None:
        """`workshop` opens a store of its own for the thread that calls it."""
        self._config, self._journal, self._workshop, self._jobs = config, journal, workshop, jobs
        self._stop = threading.Event()

    def run(self) -> None:
        """Until SIGTERM, SIGINT, or the end of standard input: then what was recorded is moved, and it ends."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        threading.Thread(target=self._watch_parent, daemon=True).start()
        if self._jobs:
            threading.Thread(target=self._turn_forever, daemon=True).start()
        self._record_forever()

    def _watch_parent(self) -> None:
        """Standard input is a pipe from the relay: it ends when the relay does, however it died."""
        while sys.stdin.buffer.read(4096):
            pass
        self._stop.set()

    def _record_forever(self) -> None:
        recorder = Recorder(self._journal, SqliteStore(self._config.store.path))
        failing = False
        while not self._stop.wait(RECORD_SECONDS):
            failing = _tried(recorder.drain, "recording", failing)
        _tried(recorder.drain, "recording", failing)

    def _turn_forever(self) -> None:
        shop = self._workshop()
        discovery = Discovery(shop.store)
        failing = False
        while True:
            failing = _tried(lambda: self._turn(shop, discovery), "the background jobs", failing)
            time.sleep(self._config.jobs.poll_seconds)

    def _turn(self, shop: Workshop, discovery: Discovery) -> None:
        with one_at_a_time(self._config.store.home, wait=False) as mine:
            if mine:
                discovery.step()
                turn_all(shop)


def _tried(work: Callable[[], object], name: str, failed_before: bool) -> bool:
    """Whether it failed. An outage is reported once, not five times a second; what is not ours ends the
    process, and the relay starts a new one."""
    try:
        work()
    except UnpromptError as error:
        if not failed_before:
            log.error("%s fails, and is tried again: %s", name, error)
        return True
    if failed_before:
        log.info("%s works again", name)
    return False
