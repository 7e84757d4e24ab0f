"""Several relay processes on one port: bound once, forked, watched, replaced when they die, drained together.

Each relay has a listening socket of its own on the port (SO_REUSEPORT), which the kernel fills evenly: of 32
connections to four relays each got 4 to 12, where one socket that all accept from gave them 0 to 31
(`benchmarks/workers.py`). The supervisor holds every socket too, so that connections that wait for a relay that was
killed are served by its successor. Where the kernel does not balance, all accept from one socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from gateway.errors import ConfigError
from gateway.pulse import Pulse, Watch, tell_where_on_request

log = logging.getLogger(__name__)

BALANCES = sys.platform == "linux"
"""Whether the kernel spreads connections over sockets that share a port."""

TICK_SECONDS = 0.2
BACKLOG = 4096
OFFLINE_SECONDS = 20.0
"""So long the offline process may take to move what is left."""
LAST_WORDS_SECONDS = 1.0
"""So long a relay that hangs has to write down where."""

Sockets = list[socket.socket]


class Backoff:
    """How long to wait before something that ended is started again: not at all, unless it keeps ending."""

    def __init__(self, *, longest: float = 30.0, sound: float = 10.0) -> None:
        self._longest, self._sound = longest, sound
        self._early = 0

    def pause(self, lived: float) -> float:
        """Seconds. `lived` is how long it ran; `sound` seconds and more is no failure to start."""
        self._early = 0 if lived >= self._sound else self._early + 1
        return 0.0 if self._early < 2 else min(0.25 * 2.0 ** min(self._early - 2, 20), self._longest)


def bind(host: str, port: int, count: int) -> list[Sockets]:
    """Listening sockets for so many relays, one for each address of the host; port 0 takes any that is free.

    Raises:
        ConfigError: the port is taken, the address is not ours.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        if port == 0:
            family, address = addresses[0]
            addresses = [(family, (str(address[0]), _free_port(family, address)))]
        for family, address in addresses:  # alone: one that shares would join another program of ours in silence
            _listening(family, address, shared=False).close()
        if BALANCES:
            return [[_listening(*address, shared=True) for address in addresses] for _ in range(count)]
        return [[_listening(*address, shared=False) for address in addresses]] * count
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
        ) from error


def _free_port(family: int, address: tuple[object, ...]) -> int:
    with socket.socket(family) as probe:
        probe.bind((address[0], 0))
        return int(probe.getsockname()[1])


def _listening(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
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
        self._offline = Offline(offline, told) if offline else None
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
                relay.sockets = [_listening(family, address, shared=True) for family, address in self._addresses()]
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

    def _addresses(self) -> list[tuple[int, tuple[object, ...]]]:
        found = socket.getaddrinfo(
            self._address[0] or None, self._address[1], type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return [(family, address) for family, _, _, _, address in found]

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


class Offline:
    """The offline process, from a supervisor's side. It ends by itself when its standard input does."""

    def __init__(self, command: list[str], told: Told) -> None:
        self._command, self._told = command, told
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._backoff = Backoff()

    def look_after(self) -> None:
        """Start it where it is due, notice where it has ended."""
        now = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            pause = self._backoff.pause(now - self._started)
            self._process, self._due = None, now + pause
            self._told.writer(False)
            self._told.restarted("process")
            log.error("the worker ended with code %s; starting it again in %.1f s", code, pause)
        if self._process is None and now >= self._due:
            self._started = now
            try:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
            except OSError as error:  # no memory, no process left
                self._due = now + max(1.0, self._backoff.pause(0.0))
                log.error("the worker cannot be started: %s", error.strerror)
                return
            self._told.writer(True)

    def let_go(self) -> None:
        """In a process that was forked: its standard input is not ours to hold open."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self) -> None:
        """Let it move what is left."""
        if self._process is not None:
            self.let_go()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(OFFLINE_SECONDS)


def _ended(pid: int) -> int | None:
    """The exit code of a child, negative for a signal; None while it runs."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 1
    return os.waitstatus_to_exitcode(status) if found else None


async def keep_running(
    command: list[str], writer: Callable[[bool], None], restarted: Callable[[str], None]
) -> None:
    """The offline process of a relay that is alone: started, and again when it dies, until cancelled."""
    backoff = Backoff()
    while True:
        started = time.monotonic()
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
        except OSError as error:  # no memory, no process left
            log.error("the worker cannot be started: %s", error.strerror)
            await asyncio.sleep(max(1.0, backoff.pause(0.0)))
            continue
        writer(True)
        code = await _until_it_ends(process)
        pause = backoff.pause(time.monotonic() - started)
        writer(False)
        restarted("process")
        log.error("the worker ended with code %s; starting it again in %.1f s", code, pause)
        await asyncio.sleep(pause)


async def _until_it_ends(process: asyncio.subprocess.Process) -> int:
    """Its exit code. When we are cancelled, it is let go, and waited for."""
    try:
        return await process.wait()
    except asyncio.CancelledError:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), OFFLINE_SECONDS)
        raise
