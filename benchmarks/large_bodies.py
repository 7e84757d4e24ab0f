"""Bodies of 500 MB through the gateway: does its memory stay where it was, and are they all there, byte for byte?

    python benchmarks/large_bodies.py                500 MB each, a minute or two
    python benchmarks/large_bodies.py --mb 100       what the tests do

Uploads and downloads, with their length announced and chunked, also with a receiver that stands still for three
seconds in the middle. Growth is the peak of the resident set (VmHWM, set back before each body) above what it
was, of the relay and of its recording worker: this needs Linux. `direct` is the same client and upstream without
the gateway, both in this one process. Exit code 1: the relay grew by more than allowed.

The second table is of bodies of 16 MB that are recorded whole: processor time beside plain nginx in the same run
(where nginx is installed), and for how long the relay's event loop was blocked, from its own metric
(`unprompt_loop_lag_seconds`): while one body after the other passes, nobody else should wait for more than 5 ms.

    python benchmarks/large_bodies.py --costs        only that, half a minute
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httptools

MB = 1024 * 1024
SIZE = 256 * 1024
PIECE = bytes(range(256)) * 1024
TEXT = b'"' + b"QUJD" * (SIZE // 4 - 1) + b'",\n'
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 60)
DONE = b"data: [DONE]\n\n"
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
    piece: bytes = PIECE
    last: bytes = b""

    def pieces(self, size: int) -> Iterator[bytes]:
        """So many bytes: the piece again and again, `last` over the end of the last one."""
        for _ in range(size // SIZE - 1):
            yield self.piece
        yield self.piece[: SIZE - len(self.last)] + self.last

    def checksum(self, size: int) -> int:
        """CRC-32 of them."""
        checksum = 0
        for piece in self.pieces(size):
            checksum = zlib.crc32(piece, checksum)
        return checksum


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
    """MB and MB/s; the relay's resident set `before` and its `growth`, and the worker's growth, in MB."""

    name: str
    mb: int
    direct: float
    proxied: float
    before: float
    growth: float
    worker: float

    def row(self) -> str:
        """A line of the Markdown table."""
        numbers = (self.mb, self.direct, self.proxied, self.before, self.growth, self.worker)
        return " | ".join([f"| {self.name}", *(f"{number:.0f}" for number in numbers)]) + " |"


HEADING = (
    "| body | MB | MB/s direct | MB/s through us | relay before, MB | relay grew, MB | worker grew, MB |\n"
    "|---|---|---|---|---|---|---|"
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

    async def send(self, head: bytes, body: Body, size: int) -> None:
        """The head, then `size` bytes, no faster than they are taken."""
        framing = b"Transfer-Encoding: chunked" if body.chunked else b"Content-Length: %d" % size
        self.transport.write(head + framing + b"\r\n\r\n")
        for piece in body.pieces(size):
            await self._may_write.wait()
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if body.chunked else piece)
            await asyncio.sleep(0)
        if body.chunked:
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
            self._sending = asyncio.ensure_future(self.send(head, self._body, self._size))
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
        await client.send(head, body, size)
    else:
        if body.slow:
            client.stand_still_at(size // 2)
        client.transport.write(b"GET /v1/files/1/content HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(client.whole, 300)
    seconds = time.perf_counter() - started
    client.transport.close()
    given = tuple(map(int, client.said.split())) if body.upload else (client.received, client.checksum)
    if given != (size, body.checksum(size)):
        raise AssertionError(f"{body.name}: {given} arrived instead of {(size, body.checksum(size))}")
    return seconds


def reset_peak(pid: int) -> float:
    """The resident memory of a process in MB; its peak counts from here."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory(pid, "VmRSS")


def memory(pid: int, key: str) -> float:
    """A line of its status (`VmRSS`, `VmHWM`) in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


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
        await _reachable(port)
        await asyncio.sleep(1.0)  # its worker starts after it
        yield port, process.pid
    finally:
        process.terminate()
        await process.wait()


async def _reachable(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"nobody listens on port {port}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# --- processor time, and how long others wait --------------------------------------------------------------

RECORDED = [
    Body("request, JSON", True, "application/json", mb=16, piece=TEXT),
    Body("answer, JSON", False, "application/json", mb=16, piece=TEXT),
    Body("answer, event stream", False, "text/event-stream", chunked=True, mb=16, piece=EVENT * 2048, last=DONE),
]
COSTS = (
    "| body of 16 MB | nginx, ms CPU | relay, ms CPU | recording worker, ms CPU | relay / nginx"
    " | loop late by over 5 ms, times per body | by over 10 ms | latest |\n|---|---|---|---|---|---|---|---|"
)


def cpu_ms(pid: int) -> float:
    """Processor time of one process, all its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


@contextlib.asynccontextmanager
async def _nginx(home: Path, upstream: int):
    """Plain nginx in front of the same upstream, buffering no answer: its port and its worker's process id."""
    port = _free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (home / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; error_log {home}/nginx.err; pid {home}/nginx.pid;\n"
        "events { worker_connections 1024; }\nhttp { access_log off; client_max_body_size 0;\n"
        + "".join(f"{kind}_temp_path {home}/ngx_{kind};\n" for kind in kinds)
        + f"upstream u {{ server 127.0.0.1:{upstream}; keepalive 64; }}\nserver {{ listen 127.0.0.1:{port};\n"
        'location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection "";\n'
        "proxy_buffering off; proxy_request_buffering off; } } }\n"
    )
    home.chmod(0o777)  # nginx's worker is another user
    process = await asyncio.create_subprocess_exec("nginx", "-c", str(home / "nginx.conf"))
    try:
        await _reachable(port)
        yield port, _children(process.pid)[0]
    finally:
        process.terminate()
        await process.wait()


async def _lags(port: int) -> dict[float, float]:
    """How many timers of the relay's loop came late by more than so many seconds, so far."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    counts = re.findall(r'unprompt_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    under = {float(bound): float(count) for bound, count in counts}
    return {bound: under[float("inf")] - count for bound, count in under.items()}


async def costs(home: Path, times: int) -> list[str]:
    """Rows of the second table."""
    told: list[tuple[Body, int]] = [(RECORDED[0], MB)]
    server = await asyncio.get_running_loop().create_server(lambda: UpstreamEnd(told), "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    plain: dict[str, float] = {}
    if shutil.which("nginx"):
        async with _nginx(home, upstream) as (port, pid):
            for body in RECORDED:
                plain[body.name], _ = await _spent(told, port, [pid], body, times)
    rows = []
    async with _gateway(home, upstream) as (port, pid):
        for body in RECORDED:
            await _spent(told, port, [pid], body, 2)
            before = await _lags(port)
            relay, worker = await _spent(told, port, [pid, *_children(pid)], body, times)
            late = {bound: count - before[bound] for bound, count in (await _lags(port)).items()}
            beside = plain.get(body.name)
            least = min((bound for bound, count in late.items() if not count), default=0.0)
            numbers = [
                "-" if beside is None else f"{beside:.1f}", f"{relay:.1f}", f"{worker:.1f}",
                "-" if beside is None else f"{relay / beside:.2f}",
                f"{late[0.005] / times:.2f}", f"{late[0.01] / times:.2f}", f"< {least * 1000:g} ms",
            ]  # fmt: skip
            rows.append(" | ".join([f"| {body.name}", *numbers]) + " |")
    server.close()
    return rows


async def _spent(
    told: list[tuple[Body, int]], port: int, pids: list[int], body: Body, times: int
) -> tuple[float, float]:
    """Milliseconds of processor time for each of so many bodies: of the first process, and of the others."""
    size = (body.mb or 1) * MB
    told.append((body, size))
    before = [cpu_ms(pid) for pid in pids]
    for _ in range(times):
        await transfer(port, body, size)
    await asyncio.sleep(3.0 if len(pids) > 1 else 0.5)  # the worker moves the records
    spent = [(cpu_ms(pid) - was) / times for pid, was in zip(pids, before, strict=True)]
    told.pop()
    return spent[0], sum(spent[1:])


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
            await _warm(port, told, body)
            pids = [pid, *_children(pid)]
            before = [reset_peak(one) for one in pids]
            proxied = await transfer(port, body, size)
            await asyncio.sleep(1.0)  # the worker moves the record
            grown = [memory(one, "VmHWM") - was for one, was in zip(pids, before, strict=True)]
            rates = (size / MB / direct, size / MB / proxied)
            results.append(Result(body.name, size // MB, *rates, before[0], grown[0], sum(grown[1:])))
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
    options.add_argument("--allowed", type=float, default=80, help="MB by which the relay may grow")
    options.add_argument("--costs", action="store_true", help="only processor time and the loop's lag")
    options.add_argument("--times", type=int, default=20, help="bodies of 16 MB of each kind")
    asked = options.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        sys.stdout.write("large bodies: skipped, memory is read from Linux's /proc\n")
        return 0
    results: list[Result] = []
    if not asked.costs:
        with tempfile.TemporaryDirectory() as home:
            results = asyncio.run(measure(Path(home), asked.mb, BODIES))
        sys.stdout.write("\n".join([HEADING, *(result.row() for result in results)]) + "\n\n")
    with tempfile.TemporaryDirectory() as home:
        rows = asyncio.run(costs(Path(home), asked.times))
    sys.stdout.write("\n".join([COSTS, *rows]) + "\n")
    return int(any(result.growth > asked.allowed for result in results))


if __name__ == "__main__":
    sys.exit(main())
