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
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transfers import MB, SIZE, Body, UpstreamEnd, free_port, gateway_before, reachable, transfer

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


# --- processor time, and how long others wait --------------------------------------------------------------

TEXT = b'"' + b"QUJD" * (SIZE // 4 - 1) + b'",\n'
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 60)
DONE = b"data: [DONE]\n\n"

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
    port = free_port()
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
        await reachable(port)
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
    async with gateway_before(home, upstream) as (port, pid):
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
    async with gateway_before(home, upstream) as (port, pid):
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
