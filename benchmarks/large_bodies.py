"""Bodies of 500 MB through the gateway: does its memory stay where it was, and are they all there, byte for byte?

    python benchmarks/large_bodies.py                500 MB each, a minute or two
    python benchmarks/large_bodies.py --mb 100       what the tests do

Uploads and downloads, with their length announced and chunked, also with a receiver that stands still for three
seconds in the middle. Memory is the peak of the gateway's resident set (VmHWM, set back before each body), the
relay's and its recording worker's together: this needs Linux. `direct` is the same client and upstream without
the gateway, both in this one process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import httptools

MB = 1024 * 1024
PIECE = bytes(range(256)) * 1024
STANDSTILL_SECONDS = 3.0


@dataclass(frozen=True)
class Body:
    """One transfer. `slow`: its receiver reads nothing for three seconds, then goes on."""

    name: str
    upload: bool
    kind: str = "application/octet-stream"
    chunked: bool = False
    slow: bool = False
    mb: int | None = None


BODIES = [
    Body("upload, multipart", True, "multipart/form-data; boundary=b"),
    Body("upload, chunked", True, chunked=True),
    Body("upload, slow upstream", True, slow=True),
    Body("download, length", False),
    Body("download, chunked", False, chunked=True),
    Body("download, slow client", False, slow=True),
    Body("event stream", False, "text/event-stream", chunked=True),
    Body("upload, JSON of 16 MB", True, "application/json", mb=16),
]


@dataclass(frozen=True)
class Result:
    """MB and MB/s; `before` and `peak` of the resident set in MB."""

    name: str
    mb: int
    direct: float
    proxied: float
    before: float
    peak: float

    @property
    def growth(self) -> float:
        """Of the gateway's memory, in MB."""
        return self.peak - self.before

    def row(self) -> str:
        """A line of the Markdown table."""
        cells = (
            self.name,
            f"{self.mb}",
            f"{self.direct:.0f}",
            f"{self.proxied:.0f}",
            f"{self.before:.0f}",
            f"{self.growth:.0f}",
        )
        return "| " + " | ".join(cells) + " |"


HEADING = (
    "| body | MB | MB/s direct | MB/s through us | memory before, MB | growth, MB |\n|---|---|---|---|---|---|"
)


class End(asyncio.Protocol):
    """One end of a connection: sends a head and a body of so many pieces, and counts what it receives."""

    def __init__(self) -> None:
        self.received = self.checksum = 0
        self.whole = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser
        self._may_write = asyncio.Event()
        self._stands_still_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a TCP Transport
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole.done():
            self.whole.set_exception(exc or ConnectionError("the other side left too early"))
            self.whole.exception()  # retrieved here, for nobody may be waiting

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        self.checksum = zlib.crc32(body, self.checksum)
        if self._stands_still_at and self.received >= self._stands_still_at:
            self._stands_still_at = 0
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(STANDSTILL_SECONDS, self.transport.resume_reading)

    def stand_still_at(self, received: int) -> None:
        """Read nothing for a while after so many bytes."""
        self._stands_still_at = received

    async def send(self, head: bytes, size: int, *, chunked: bool) -> None:
        """The head, then `size` bytes, no faster than they are taken."""
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        self.transport.write(head + framing + b"\r\n\r\n")
        for _ in range(size // len(PIECE)):
            await self._may_write.wait()
            self.transport.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if chunked else PIECE)
            await asyncio.sleep(0)
        if chunked:
            self.transport.write(b"0\r\n\r\n")


class UpstreamEnd(End):
    """Answers an upload with its size and checksum, and a download with what its path asks for."""

    def __init__(self, told: list[tuple[Body, int]]) -> None:
        super().__init__()
        self.parser = httptools.HttpRequestParser(self)
        self._told = told
        self._sending: asyncio.Task[None] | None = None

    def on_message_begin(self) -> None:
        self.received = self.checksum = 0
        self._body, self._size = self._told[-1]
        if self._body.slow and self._body.upload:
            self.stand_still_at(self._size // 2)

    def on_message_complete(self) -> None:
        if self._body.upload:
            said = b"%d %d" % (self.received, self.checksum)
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        else:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % self._body.kind.encode()
            self._sending = asyncio.ensure_future(self.send(head, self._size, chunked=self._body.chunked))
        if not self.whole.done():
            self.whole.set_result(None)


class ClientEnd(End):
    """Asks, and keeps a short answer."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = httptools.HttpResponseParser(self)
        self.said = b""

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.received < 100:
            self.said += body

    def on_message_complete(self) -> None:
        if not self.whole.done():
            self.whole.set_result(None)


async def transfer(port: int, body: Body, size: int) -> float:
    """Seconds for one body; a difference in any byte raises."""
    client: ClientEnd
    _, client = await asyncio.get_running_loop().create_connection(ClientEnd, "127.0.0.1", port)
    started = time.perf_counter()
    if body.upload:
        head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\n" % body.kind.encode()
        await client.send(head, size, chunked=body.chunked)
    else:
        if body.slow:
            client.stand_still_at(size // 2)
        client.transport.write(b"GET /v1/files/1/content HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(client.whole, 300)
    seconds = time.perf_counter() - started
    client.transport.close()
    given = tuple(map(int, client.said.split())) if body.upload else (client.received, client.checksum)
    if given != (size, _checksum(size)):
        raise AssertionError(f"{body.name}: {given} arrived instead of {(size, _checksum(size))}")
    return seconds


def _checksum(size: int) -> int:
    checksum = 0
    for _ in range(size // len(PIECE)):
        checksum = zlib.crc32(PIECE, checksum)
    return checksum


class Memory:
    """Resident memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self._pids = [pid, *_children(pid)]

    def now(self) -> float:
        """In MB; the peak counts from here."""
        for pid in self._pids:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        return self._sum("VmRSS")

    def peak(self) -> float:
        """In MB, since `now`."""
        return self._sum("VmHWM")

    def _sum(self, key: str) -> float:
        lines = [line for pid in self._pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextlib.asynccontextmanager
async def _gateway(home: Path, upstream: int):
    """`unprompt serve` with its recording worker: its port and its process id."""
    port = _free_port()
    (home / "gateway.yaml").write_text(
        f'providers: {{openai: {{protocol: openai, base_url: "http://127.0.0.1:{upstream}/v1"}}}}\n'
        f'store: {{url: "sqlite:///{home}/data/unprompt.db"}}\nserver: {{drain_seconds: 1}}\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", str(port), "--config",
        str(home / "gateway.yaml"), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # its worker starts after it
        yield port, process.pid
    finally:
        process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def measure(home: Path, mb: int, bodies: list[Body]) -> list[Result]:
    """Each body directly and through one gateway that runs all the time."""
    told: list[tuple[Body, int]] = [(bodies[0], 0)]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: UpstreamEnd(told), "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    results = []
    async with _gateway(home, upstream) as (port, pid):
        for body in bodies:
            size = (body.mb or mb) * MB
            told.append((body, size))
            direct = await transfer(upstream, body, size)
            memory = Memory(pid)
            await _warm(port, told, body)
            before = memory.now()
            proxied = await transfer(port, body, size)
            rates = (size / MB / direct, size / MB / proxied)
            results.append(Result(body.name, size // MB, *rates, before, memory.peak()))
    server.close()
    return results


async def _warm(port: int, told: list[tuple[Body, int]], body: Body) -> None:
    """One small body of the same kind: what is loaded or allocated once is there before the measurement."""
    told.append((Body(body.name, body.upload, body.kind, body.chunked), MB))
    await transfer(port, told[-1][0], MB)
    told.pop()
    await asyncio.sleep(0.5)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mb", type=int, default=500)
    options.add_argument("--allowed", type=float, default=64, help="growth in MB that fails the run")
    asked = options.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.stdout.write("large bodies: skipped, memory is read from Linux's /proc\n")
        return 0
    with tempfile.TemporaryDirectory() as home:
        results = asyncio.run(measure(Path(home), asked.mb, BODIES))
    sys.stdout.write("\n".join([HEADING, *(result.row() for result in results)]) + "\n")
    return int(any(result.growth > asked.allowed for result in results))


if __name__ == "__main__":
    sys.exit(main())
