"""The offline process (`unprompt worker`) from the relay's side: started, watched, started again, waited for at the
end. It ends by itself when its standard input does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import time
from collections.abc import Callable

from gateway.backoff import Backoff

log = logging.getLogger(__name__)

OFFLINE_SECONDS = 20.0
"""So long the offline process may take to move what is left."""


class Offline:
    """The offline process, from a supervisor's side."""

    def __init__(
        self, command: list[str], writer: Callable[[bool], None], restarted: Callable[[str], None]
    ) -> None:
        """`writer` is told whether it is up, `restarted` when it was started again."""
        self._command, self._writer, self._restarted = command, writer, restarted
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._backoff = Backoff()

    def look_after(self) -> None:
        """Start it where it is due, notice where it has ended."""
        now = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            pause = self._backoff.pause(now - self._started)
            self._process, self._due = None, now + pause
            self._writer(False)
            self._restarted("process")
            log.error("the worker ended with code %s; starting it again in %.1f s", code, pause)
        if self._process is None and now >= self._due:
            self._started = now
            try:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
            except OSError as error:  # no memory, no process left
                self._due = now + max(1.0, self._backoff.pause(0.0))
                log.error("the worker cannot be started: %s", error.strerror)
                return
            self._writer(True)

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
