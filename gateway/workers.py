"""Several relay processes on one port: forked, watched, replaced when they die, drained together.

The supervisor holds every relay's sockets too (see `ports`), so that connections that wait for a relay that was
killed are served by its successor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from gateway.backoff import Backoff
from gateway.offline_process import Offline
from gateway.ports import BALANCES, Sockets, addresses, listening
from gateway.pulse import Pulse, Watch, tell_where_on_request

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
LAST_WORDS_SECONDS = 1.0
"""So long a relay that hangs has to write down where."""


@dataclass(frozen=True)
class Seat:
    """One relay's place: its number, its listening sockets, a descriptor that ends with the supervisor, and the
    pulse by which that sees that the relay's event loop turns."""

    number: int
    sockets: Sockets
    supervisor: int
    pulse: Pulse


@dataclass(frozen=True)
class Told:
    """Whom the supervisor tells: a relay died (its number), was replaced; the offline process is up or not,
    and was started again. `tick` is called a few times a second."""

    gone: Callable[[int], None]
    replaced: Callable[[], None]
    writer: Callable[[bool], None]
    restarted: Callable[[str], None]
    tick: Callable[[], None]


@dataclass
class _Relay:
    number: int
    sockets: Sockets
    pid: int = 0
    started: float = 0.0
    due: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)
    pulse: Pulse = field(default_factory=Pulse)
    ends_at: float | None = None

    def __post_init__(self) -> None:
        self.watch = Watch(self.pulse)


class Supervisor:
    """Runs `serve` in each relay process, and the offline process beside them, until SIGTERM or SIGINT."""

    def __init__(
        self,
        address: tuple[str, int],
        sockets: Sequence[Sockets],
        serve: Callable[[Seat], None],
        offline: list[str] | None,
        told: Told,
        *,
        drain_seconds: float,
        hang_seconds: float,
    ) -> None:
        """`address` is where the sockets of a relay that keeps dying are bound again; `offline` a command. A relay
        without a pulse for `hang_seconds` is ended (0: never)."""
        self._address, self._serve, self._told = address, serve, told
        self._relays = [_Relay(number, mine) for number, mine in enumerate(sockets)]
        self._offline = Offline(offline, told.writer, told.restarted) if offline else None
        self._patience, self._hang = drain_seconds + 15.0, hang_seconds or float("inf")
        self._stops = 0
        self._hangups = 0

    def run(self, announce: Callable[[], None]) -> None:
        """Returns when all have ended; a second signal ends everything at once, with exit code 130."""
        self._life, self._death = os.pipe()  # the other end of a seat's `supervisor`: closed when this process dies
        with self._woken() as wake:
            self._start_those_due()
            announce()
            while not self._stops:
                self._wait(wake)
                self._end_those_that_hang()
                self._start_those_due()
            self._drain(wake)

    @contextlib.contextmanager
    def _woken(self) -> Iterator[int]:
        """A descriptor that can be read when a signal came; they are noted and end nobody."""
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        noted = {
            signal.SIGTERM: self._on_stop, signal.SIGINT: self._on_stop, signal.SIGHUP: self._on_hangup,
            signal.SIGCHLD: lambda *_: None,
        }  # fmt: skip
        before = {number: signal.signal(number, handler) for number, handler in noted.items()}
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        try:
            yield wake
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_stop(self, *_: object) -> None:
        self._stops += 1

    def _on_hangup(self, *_: object) -> None:
        self._hangups += 1

    def _wait(self, wake: int) -> None:
        """Until something happens, a fifth of a second at most; then look after everybody."""
        select.select([wake], [], [], TICK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        if self._hangups:
            self._hangups = 0
            self._send(signal.SIGHUP)
        self._reap()
        self._told.tick()

    # --- relays ------------------------------------------------------------------------------------------

    def _start_those_due(self) -> None:
        for relay in self._relays:
            if relay.pid == 0 and time.monotonic() >= relay.due:
                self._start(relay)
        if self._offline is not None:
            self._offline.look_after()

    def _start(self, relay: _Relay) -> None:
        if not relay.sockets:
            try:
                relay.sockets = [listening(*found, shared=True) for found in addresses(*self._address)]
            except OSError as error:
                relay.due = time.monotonic() + relay.backoff.pause(0.0)
                log.error("relay %d cannot listen again: %s", relay.number, error.strerror)
                return
        sys.stdout.flush()
        relay.started, relay.ends_at = time.monotonic(), None
        relay.watch.reset()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
        relay.pid = os.fork()
        if relay.pid == 0:
            self._become(relay)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _become(self, relay: _Relay) -> NoReturn:
        """In the new process: let go of what is the supervisor's and the others', and serve."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends these to all: the supervisor decides
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            os.close(self._death)
            tell_where_on_request()
            if self._offline is not None:
                self._offline.let_go()
            for other in self._relays:
                if other is not relay and other.sockets is not relay.sockets:
                    for one in other.sockets:
                        one.close()
            self._serve(Seat(relay.number, relay.sockets, self._life, relay.pulse))
            code = 0
        except Exception:
            log.exception("relay %d cannot serve", relay.number)
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> None:
        for relay in self._relays:
            if relay.pid and (code := _ended(relay.pid)) is not None:
                relay.pid = 0
                self._told.gone(relay.number)
                if not self._stops:
                    self._replace(relay, code)

    def _replace(self, relay: _Relay, code: int) -> None:
        pause = relay.backoff.pause(time.monotonic() - relay.started)
        relay.due = time.monotonic() + pause
        self._told.replaced()
        log.error("relay %d ended with code %d; its successor starts in %.2f s", relay.number, code, pause)
        if pause > 0.5 and BALANCES:  # its share of the connections goes to the others
            for one in relay.sockets:
                one.close()
            relay.sockets = []

    def _end_those_that_hang(self) -> None:
        """They have no use for SIGTERM: the one that is stopped does not even see it."""
        for relay in self._relays:
            if not relay.pid:
                continue
            still = relay.watch.seconds()
            if still < self._hang:
                relay.ends_at = None  # also of one that came back
            elif relay.ends_at is None:
                relay.ends_at = time.monotonic() + LAST_WORDS_SECONDS
                log.error(
                    "relay %d has had no pulse for %.1f s and is ended; where it stands:", relay.number, still
                )
                os.kill(relay.pid, signal.SIGUSR2)
            elif time.monotonic() >= relay.ends_at:
                os.kill(relay.pid, signal.SIGKILL)

    def _send(self, number: int) -> None:
        for relay in self._relays:
            if relay.pid:
                os.kill(relay.pid, number)

    # --- the end -----------------------------------------------------------------------------------------

    def _drain(self, wake: int) -> None:
        for relay in self._relays:
            for one in relay.sockets:
                one.close()
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + self._patience
        while any(relay.pid for relay in self._relays):
            if self._stops > 1:
                self._send(signal.SIGKILL)
                os._exit(130)
            if time.monotonic() > deadline:
                log.error("relays that do not end are killed; what they recorded is in the journal")
                self._send(signal.SIGKILL)
            self._wait(wake)
        if self._offline is not None:
            self._offline.stop()


def _ended(pid: int) -> int | None:
    """The exit code of a child, negative for a signal; None while it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 1
    return os.waitstatus_to_exitcode(status) if found else None
