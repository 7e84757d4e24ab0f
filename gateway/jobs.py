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

import msgspec

from gateway.backoff import Backoff
from gateway.config import Config
from gateway.errors import UnpromptError
from gateway.garbage import spare_what_is_loaded
from gateway.pipeline.asking import other_models
from gateway.pipeline.bench import Bench
from gateway.pipeline.cycle import Workshop, turn_all
from gateway.pipeline.discover import Discovery
from gateway.pipeline.finetune import Elsewhere
from gateway.pipeline.locks import DISCOVERY_LOCK, TURN_LOCK, one_at_a_time, worker_at_rest
from gateway.pipeline.monitor import look_after
from gateway.restarts import count_restart
from gateway.stores.pruning import Criteria, prune
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

RECORD_SECONDS = 1.0
LOOK_SECONDS = 1.0
KEEP_SECONDS = 600.0
ADAPTER_SECONDS = 5.0
WATCH_SECONDS = 1.0


class Repeated:
    """Work that is done again and again, and that nothing stops: after a failure with a growing pause. An outage
    is reported when it begins and when it is over, not twice a second."""

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


class Tended:
    """A thread that is started again when it dies, whatever it died of; `died` is told its name."""

    def __init__(self, name: str, life: Callable[[], None], died: Callable[[str], None]) -> None:
        self._name, self._life, self._died = name, life, died
        self._backoff = Backoff()
        self._started = self._due = 0.0
        self._thread: threading.Thread | None = None

    def look_after(self) -> None:
        """Start it where it is due; notice where it has died."""
        now = time.monotonic()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
            self._due = now + self._backoff.pause(now - self._started)
            log.error("the thread of %s died; it starts again in %.1f s", self._name, self._due - now)
            self._died(self._name)
        if self._thread is None and now >= self._due:
            self._started = now
            self._thread = threading.Thread(target=self._life, name=self._name, daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()


class Worker:
    """Some threads, so that a long training holds up neither recording nor the watch; the main thread looks after
    them."""

    def __init__(self, config: Config, journal: Path, workshop: Callable[[], Workshop], *, jobs: bool) -> None:
        """`workshop` opens a store of its own for the thread that calls it."""
        self._config, self._journal, self._open, self._jobs = config, journal, workshop, jobs
        self._stop = threading.Event()

    def run(self) -> None:
        """Until SIGTERM, SIGINT, or the end of standard input: then what was recorded is moved, and it ends.
        A training that is under way stays unfinished in a thread that ends with the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        threading.Thread(target=self._watch_parent, daemon=True).start()
        spare_what_is_loaded()
        recorder = Tended("recorder", self._record, self._died)
        tended = [recorder]
        if self._jobs:
            works = {"discovery": self._discover, "jobs": self._turn, "watch": self._look}
            tended += [Tended(name, life, self._died) for name, life in works.items()]
        if self._serves_adapters():
            tended.append(Tended("adapters", self._load, self._died))
        if self._config.store.keep_days is not None or self._config.store.keep_mb is not None:
            tended.append(Tended("retention", self._keep, self._died))
        while not self._stop.is_set():
            for one in tended:
                one.look_after()
            self._stop.wait(LOOK_SECONDS)
        if recorder.wait(60.0):
            Repeated(self._recording(), "recording", RECORD_SECONDS, 5.0).once()

    def _died(self, part: str) -> None:
        try:
            count_restart(self._journal, part)
        except OSError as error:
            log.error("the restart of %s cannot be noted: %s", part, error.strerror)

    def _serves_adapters(self) -> bool:
        """What it takes is imported only where a trainer makes adapters: it is 15 MB and a second."""
        if all(section.kind != "trl" for section in self._config.trainers.values()):
            return False
        from gateway.pipeline.adapters import keeps_any

        return keeps_any(self._config)

    def _watch_parent(self) -> None:
        """Standard input is a pipe from the relay: it ends when the relay does, however it died."""
        while sys.stdin.buffer.read(4096):
            pass
        self._stop.set()

    def _repeat(self, work: Repeated) -> None:
        pause = work.once()
        while not self._stop.wait(pause):
            pause = work.once()

    # Each thread opens its own store, and a thread that follows one that died opens it anew.

    def _record(self) -> None:
        self._repeat(Repeated(self._recording(), "recording", RECORD_SECONDS, 5.0))

    def _recording(self) -> Callable[[], object]:
        recorder: Recorder | None = None

        def record() -> None:
            nonlocal recorder
            recorder = recorder or Recorder(self._journal, SqliteStore(self._config.store.path))
            recorder.look()

        return record

    def _keep(self) -> None:
        self._repeat(Repeated(self._keeping(), "retention", KEEP_SECONDS, longest=3600.0))

    def _keeping(self) -> Callable[[], object]:
        """What is older or more than the settings say is deleted; not while somebody reads it."""
        kept = self._config.store
        store: SqliteStore | None = None

        def keep() -> None:
            nonlocal store
            store = store or SqliteStore(kept.path)
            criteria = Criteria.of_settings(kept.keep_days, kept.keep_mb, time.time())
            with worker_at_rest(kept.home):
                done = prune(store, self._journal, criteria, oldest_first=True)
            if done.exchanges:
                log.info("retention: %d exchanges deleted", done.exchanges)

        return keep

    def _load(self) -> None:
        self._repeat(Repeated(self._loading(), "serving of adapters", ADAPTER_SECONDS, longest=30.0))

    def _loading(self) -> Callable[[], object]:
        from gateway.pipeline.adapters import Keeper

        keeper: Keeper | None = None

        def load() -> None:
            nonlocal keeper
            keeper = keeper or Keeper(self._open())
            keeper.look()

        return load

    def _look(self) -> None:
        self._repeat(Repeated(self._looking(), "the watch over candidates", WATCH_SECONDS, longest=5.0))

    def _looking(self) -> Callable[[], object]:
        """Beside the turns, which may train for minutes: what harms is taken back meanwhile."""
        shop: Workshop | None = None

        def look() -> None:
            nonlocal shop
            if shop is None:
                opened = self._open()
                judges = other_models(opened.config, opened.prices)
                shop = msgspec.structs.replace(opened, bench=Bench(judges))
            look_after(shop)

        return look

    def _discover(self) -> None:
        self._repeat(Repeated(self._discovering(), "discovery", self._config.jobs.poll_seconds, longest=300.0))

    def _discovering(self) -> Callable[[], object]:
        """Beside the turns, too: a prompt that the app ships during a training has its version meanwhile."""
        discovery: Discovery | None = None

        def discover() -> None:
            nonlocal discovery
            discovery = discovery or Discovery(SqliteStore(self._config.store.path))
            with one_at_a_time(self._config.store.home / DISCOVERY_LOCK, wait=False) as mine:
                if mine:
                    discovery.step()

        return discover

    def _turn(self) -> None:
        self._repeat(
            Repeated(self._turning(), "work in the background", self._config.jobs.poll_seconds, longest=300.0)
        )

    def _turning(self) -> Callable[[], object]:
        shop: Workshop | None = None

        def turn() -> None:
            nonlocal shop
            shop = shop or msgspec.structs.replace(self._open(), elsewhere=Elsewhere())
            with one_at_a_time(self._config.store.home / TURN_LOCK, wait=False) as mine:
                if mine:
                    turn_all(shop)

        return turn
