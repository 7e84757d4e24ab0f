"""The real command in a process of its own, so that limits, signals and broken disks can be put on it and on
nothing else. What is asked of it is what anybody could see: sockets, files, `/proc`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from relaying import Message, Upstream, Wire, openai, request

from gateway.domain.exchange import Exchange
from gateway.stores.sqlite import SqliteStore

PATIENCE = 15.0


@dataclass
class Served:
    """`unprompt serve` with its worker, as it runs."""

    process: subprocess.Popen[bytes]
    home: Path
    port: int = 0

    @property
    def store(self) -> Path:
        return self.home / "data" / "unprompt.db"

    @property
    def journal(self) -> Path:
        return self.home / "data" / "journal"

    @property
    def routes(self) -> Path:
        return self.home / "routes.yaml"

    @property
    def log(self) -> str:
        """What the relay and its worker have said so far."""
        return (self.home / "log").read_text("utf-8", "replace")

    # --- as a client ---------------------------------------------------------------------------------

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))

    async def connect_from(self, address: str) -> Wire:
        """From another address of this machine, which has ports of its own."""
        opened = asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0), limit=1 << 20)
        return Wire(*await opened)

    async def ask(self, data: bytes) -> Message:
        """One request on a connection of its own."""
        wire = await self.connect()
        try:
            await wire.send(data)
            return await wire.message()
        finally:
            wire.close()

    async def get(self, path: bytes) -> Message:
        return await self.ask(request(b"", method=b"GET", path=path))

    async def metric(self, name: str) -> float:
        """The value of one line of `/metrics`, by its name and labels as they stand there; 0 where it is absent."""
        text = (await self.get(b"/metrics")).body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def ready(self) -> bool:
        return (await self.get(b"/readyz")).status == 200

    async def ready_again(self, seconds: float = PATIENCE) -> bool:
        """Whether it is ready within so many seconds: it recovers by itself, a moment after its rows are there."""
        until = time.monotonic() + seconds
        while not await self.ready():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.05)
        return True

    # --- as the operator -------------------------------------------------------------------------------

    def rows(self) -> list[Exchange]:
        """What the worker has put into the store so far."""
        if not self.store.exists():
            return []
        opened = SqliteStore(self.store)
        try:
            return opened.exchanges()
        finally:
            opened.close()

    async def recorded(self, count: int, seconds: float = PATIENCE) -> list[Exchange]:
        """The rows, as soon as there are so many that have ended."""
        rows: list[Exchange] = []

        def there() -> bool:
            nonlocal rows
            rows = self.rows()
            return sum(row.status is not None for row in rows) >= count

        assert await eventually(there, seconds), f"{len(rows)} of {count} rows; the log ends:\n{self.log[-2000:]}"
        return rows

    def worker(self) -> int | None:
        """The process that moves records into the store."""
        found = [pid for pid in children(self.process.pid) if b"worker" in commandline(pid)]
        return found[0] if found else None

    def descriptors(self) -> int:
        """How many files and sockets the relay has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Bytes of the relay's resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def limit(self, what: int, soft: int) -> None:
        """Set a resource limit of the relay while it runs (Linux)."""
        _, hard = resource.prlimit(self.process.pid, what)
        resource.prlimit(self.process.pid, what, (soft, hard))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = PATIENCE) -> int | None:
        """The exit code, None when it still runs after so many seconds."""
        await eventually(lambda: self.process.poll() is not None, seconds)
        return self.process.poll()


@contextlib.asynccontextmanager
async def serving(
    home: Path,
    providers: dict[str, Any] | Upstream,
    *,
    routes: list[dict[str, Any]] | None = None,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
    workers: int = 1,
    clean: bool = True,
    **sections: dict[str, Any],
) -> AsyncIterator[Served]:
    """`unprompt serve` on a free port. `before` runs in its process before the program does; `clean`: its log may
    show no traceback."""
    home.mkdir(parents=True, exist_ok=True)
    named = openai(providers) if isinstance(providers, Upstream) else providers
    store = {"url": f"sqlite:///{home}/data/unprompt.db", **sections.pop("store", {})}
    config = {"providers": named, "store": store, **sections}
    (home / "gateway.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if routes is not None:
        (home / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    served = await start(home, environment=environment, before=before, workers=workers)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.signal(signal.SIGTERM)
            if await served.ended() is None:
                end_whole(served.process)
        if served.process.stdout is not None:
            served.process.stdout.close()
    assert not clean or "Traceback" not in served.log, served.log


async def start(
    home: Path,
    *,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
    workers: int = 1,
) -> Served:
    """The command on the files that are in `home`; returns when it listens."""
    command = [sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", "0"]
    command += ["--config", str(home / "gateway.yaml"), *([f"--workers={workers}"] if workers > 1 else [])]
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            env={**os.environ, **(environment or {})}, preexec_fn=before,
        )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    found = re.search(rb"127\.0\.0\.1:(\d+)", line)
    assert found is not None, (home / "log").read_text()
    return Served(process, home, int(found[1]))


def end_whole(process: subprocess.Popen[bytes]) -> None:
    """The relay and whatever it started."""
    for pid in (process.pid, *children(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(PATIENCE)


def children(pid: int) -> list[int]:
    """The processes that this one has started (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def commandline(pid: int) -> bytes:
    """How it was started; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def eventually(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether it holds within so many seconds."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.05)
    return True


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
