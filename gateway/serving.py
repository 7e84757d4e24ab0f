"""Runs what `app` built: one relay process, or several that a supervisor forks (`--workers N`)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

from gateway.app import App, Files, Loaded, Places
from gateway.errors import UnpromptError
from gateway.files import fingerprint
from gateway.garbage import spare_what_is_loaded
from gateway.metrics import Metrics, Sheet, retire
from gateway.offline_process import keep_running
from gateway.ports import bind
from gateway.pulse import Pulse, Watchdog, tell_where_on_request
from gateway.workers import Seat, Supervisor, Told


def serve(
    files: Files,
    loaded: Loaded,
    announce: Callable[[str], None],
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int = 1,
    offline: list[str] | None,
) -> None:
    """Relay and record until SIGTERM or SIGINT; a second one ends at once. SIGHUP reads the routes again, SIGUSR2
    writes where every thread stands to standard error.

    `announce` is told our base URL; `offline` is the command of the offline process (None: there is none).

    Raises:
        ConfigError: the port cannot be had.
    """
    if workers == 1:
        _run(_alone(App(files, host=host, port=port, loaded=loaded), announce, offline))
    else:
        _together(files, loaded, announce, host, port, workers, offline)


def _run(work: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(work)
        return
    import uvloop

    uvloop.run(work)


async def _alone(app: App, announce: Callable[[str], None], offline: list[str] | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(app.reload()))
    announce(url := await app.start())
    _tune_interpreter()
    told = app.metrics
    keeper = asyncio.create_task(keep_running(offline, told.writer, told.restarted)) if offline else None
    with _watched(loop, app.config.server.hang_seconds, url.rpartition(":")[2]):
        await stop.wait()
    await app.stop()
    if keeper is not None:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


@contextlib.contextmanager
def _watched(loop: asyncio.AbstractEventLoop, limit: float, port: str) -> Iterator[None]:
    """While the loop does not turn for `limit` seconds (0: for ever), nobody is served: then this process becomes a
    fresh one, on the same port and with the same id, so that whoever started it need not know."""
    if not limit or sys.platform == "win32":
        yield
        return
    tell_where_on_request()
    pulse = Pulse()
    pulse.follow(loop)
    command = [sys.executable, *sys.orig_argv[1:], "--port", port]
    watchdog = Watchdog(pulse, limit, lambda: _become(command))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


def _become(command: list[str]) -> None:
    try:
        os.execv(command[0], command)  # locks, sockets and threads go: every descriptor of ours closes on it
    finally:  # it cannot: then whoever started us may start us again
        os._exit(1)


SWITCH_SECONDS = 0.0005
"""So long may a thread that writes a large body down keep the event loop's waiting; else it is 5 ms."""


def _tune_interpreter() -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    spare_what_is_loaded()


# --- several ---------------------------------------------------------------------------------------------


async def _seated(app: App, seat: Seat) -> None:
    """One of several: run until SIGTERM, or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_end_of_supervisor() -> None:
        loop.remove_reader(seat.supervisor)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(app.reload()))
    loop.add_reader(seat.supervisor, on_end_of_supervisor)
    await app.start()
    seat.pulse.follow(loop)
    _tune_interpreter()
    await stop.wait()
    await app.stop()


def _together(
    files: Files,
    loaded: Loaded,
    announce: Callable[[str], None],
    host: str | None,
    port: int | None,
    workers: int,
    offline: list[str] | None,
) -> None:
    server = loaded.config.server
    host = server.host if host is None else host
    sockets = bind(host, server.port if port is None else port, workers)
    port = int(sockets[0][0].getsockname()[1])
    sheets = [Sheet() for _ in range(workers + 1)]
    journal = Places.of(loaded.config).journal
    metrics = Metrics(journal, lambda: 0, sheets=sheets, worker=workers, name="supervisor")
    routes = Routes(files, loaded)

    def relay(seat: Seat) -> None:
        app = App(files, host=host, port=port, loaded=routes.good, seat=seat, sheets=sheets)
        _run(_seated(app, seat))

    told = Told(
        gone=lambda number: retire(sheets[number]), replaced=metrics.replaced, writer=metrics.writer,
        restarted=metrics.restarted, tick=routes.follow,
    )  # fmt: skip
    gc.freeze()  # before the forks: what is loaded is shared, and stays so
    supervisor = Supervisor(
        (host, port), sockets, relay, offline, told,
        drain_seconds=server.drain_seconds, hang_seconds=server.hang_seconds,
    )  # fmt: skip
    supervisor.run(lambda: announce(f"http://{host}:{port}"))


class Routes:
    """The routes that were last found good: a relay's successor starts with them, whatever stands in the file."""

    def __init__(self, files: Files, loaded: Loaded) -> None:
        self._files = files
        self.good = loaded

    def follow(self) -> None:
        """Look whether the file has changed, and is good; the relays say what is wrong with one that is not."""
        seen = fingerprint(self._files.routes)
        if seen == self.good.seen:
            return
        try:
            self.good = Loaded.from_files(self._files, self.good.config, self.good.switchboard.table)
        except UnpromptError:
            self.good = msgspec.structs.replace(self.good, seen=seen)


def worker_command(files: Files, *, jobs: bool) -> list[str]:
    """How this program starts its offline process."""
    command = [sys.executable, "-m", "gateway", "worker"]
    if files.gateway is not None:
        command += ["--config", str(files.gateway)]
    return command if jobs else [*command, "--record-only"]
