"""Hundreds of thousands of requests through one gateway: is its memory flat, and is every exchange recorded?

    python benchmarks/soak.py                          500,000 requests, then 10,000 idle connections
    python benchmarks/soak.py --requests 20000 --step 5000 --idle 1000

Prints memory and open files of the relay every 50,000 requests, the slope of both, what was accepted and what is
recorded. One request in ten is a stream. The upstream and the load generator are those of the bench harness
(`--bench`, not in this repository), built with cc.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

CONNECTIONS = 32
STREAMS = 10
"""One request in so many is a stream."""


@dataclass(frozen=True)
class Reading:
    """After so many requests: megabytes of the relay, of the offline process, open files of the relay."""

    requests: int
    relay: float
    offline: float
    files: int


@dataclass(frozen=True)
class Bench:
    """The harness's programs, built."""

    folder: Path

    @classmethod
    def built(cls, source: Path, folder: Path) -> Bench:
        for name in ("upstream", "loadgen"):
            target = [str(folder / name), str(source / f"{name}.c")]
            subprocess.run(["cc", "-O2", "-w", "-o", *target, "-lm"], check=True)
        subprocess.run(
            [sys.executable, str(source / "payload.py"), str(folder)], check=True, stdout=subprocess.DEVNULL
        )
        return cls(folder)

    @contextlib.contextmanager
    def upstream(self, port: int) -> Iterator[None]:
        """Answers at once, streams of ten chunks."""
        process = subprocess.Popen([str(self.folder / "upstream"), str(port), "0", "10", "0"])
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def load(self, port: int, count: int, *, stream: bool) -> dict[str, float]:
        """So many requests as fast as it goes; what the load generator counted."""
        body = "body_stream.json" if stream else "body.json"
        command = [
            self.folder / "loadgen", port, CONNECTIONS, count, 0, int(stream), self.folder / body,
            self.folder / "headers.txt", "/v1/chat/completions", 3600,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        counted: dict[str, float] = json.loads(done.stdout)
        return counted


class Gateway:
    """`unprompt serve` in a folder of its own."""

    def __init__(self, home: Path, upstream: int) -> None:
        self.home = home
        self.port = free_port()
        (home / "gateway.yaml").write_text(
            f'providers: {{openai: {{protocol: openai, base_url: "http://127.0.0.1:{upstream}/v1"}}}}\n'
            f'store: {{url: "sqlite:///{home}/data/unprompt.db"}}\n'
            "server: {idle_seconds: 3600, connections: 30000}\n"
        )
        command = [sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--config", str(home / "gateway.yaml")], stdout=subprocess.DEVNULL
        )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError("the gateway does not start")
            time.sleep(0.05)

    def reading(self, requests: int) -> Reading:
        pid = self._process.pid
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return Reading(requests, megabytes(pid), sum(map(megabytes, children(pid))), files)

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def recorded(self, wanted: int, patience: float = 900.0) -> int:
        """How many complete exchanges the store has, once it has all of them or time is up."""
        until = time.monotonic() + patience
        while True:
            with contextlib.closing(sqlite3.connect(self.home / "data" / "unprompt.db", timeout=30)) as store:
                count = int(store.execute("SELECT count(*) FROM exchanges WHERE complete").fetchone()[0])
            if count >= wanted or time.monotonic() > until:
                return count
            time.sleep(1.0)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)


def open_files(wanted: int) -> None:
    """Let this process and its children open so many files, or as many as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """Of a process, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def megabytes(pid: int) -> float:
    """Resident, 0 where the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line of least squares; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / sum((x - middle_x) ** 2 for x, _ in points)


async def idle_connections(gateway: Gateway, count: int) -> tuple[int, float]:
    """How many stay open at once, and megabytes of the relay meanwhile."""
    opened = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            opened.append((reader, writer))
        await asyncio.sleep(3)
        alive = sum(not reader.at_eof() for reader, _ in opened)
        return alive, gateway.reading(0).relay
    finally:
        for _, writer in opened:
            writer.close()


class Scraper:
    """Asks for a page twice a second while the load runs; milliseconds that it took."""

    def __init__(self, gateway: Gateway, path: str) -> None:
        self._url = f"http://127.0.0.1:{gateway.port}{path}"
        self._over = threading.Event()
        self.took: list[float] = []

    def __enter__(self) -> Scraper:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(0.5):
            started = time.perf_counter()
            with urllib.request.urlopen(self._url, timeout=30) as answer:
                answer.read()
            self.took.append((time.perf_counter() - started) * 1000)


def soak(gateway: Gateway, bench: Bench, requests: int, step: int) -> tuple[list[Reading], int]:
    """A reading after each step, and how many requests were answered well."""
    say = sys.stdout.write
    say("requests   relay MB  worker MB  open files  requests/s  /metrics ms, worst  /healthz ms, worst\n")
    readings, good = [gateway.reading(0)], 0
    for sent in range(step, requests + 1, step):
        streams = step // STREAMS
        with Scraper(gateway, "/metrics") as metrics, Scraper(gateway, "/healthz") as health:
            plain = bench.load(gateway.port, step - streams, stream=False)
            streamed = bench.load(gateway.port, streams, stream=True)
        good += sum(int(one["done"] - one["errs"] - one["bad"]) for one in (plain, streamed))
        now = gateway.reading(sent)
        readings.append(now)
        say(
            f"{sent:8,}{now.relay:11.1f}{now.offline:11.1f}{now.files:12}{plain['rps']:12,.0f}"
            f"{max(metrics.took, default=0):21.0f}{max(health.took, default=0):20.0f}\n"
        )
        sys.stdout.flush()
    return readings, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--step", type=int, default=50_000)
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections at the end")
    parser.add_argument("--bench", type=Path, default=Path("../shared/bench"))
    given = parser.parse_args()
    if not (given.bench / "loadgen.c").exists():
        sys.stdout.write(f"soak: skipped, no bench harness in {given.bench} (name its folder with --bench)\n")
        return 0
    open_files(65_536)
    with tempfile.TemporaryDirectory() as folder:
        bench, port = Bench.built(given.bench, Path(folder)), free_port()
        home = Path(folder) / "home"
        home.mkdir()
        with bench.upstream(port):
            gateway = Gateway(home, port)
            try:
                return report(gateway, bench, given.requests, given.step, given.idle)
            finally:
                gateway.stop()


def report(gateway: Gateway, bench: Bench, requests: int, step: int, idle: int) -> int:
    """The soak with its sums; 1 where an exchange is missing."""
    say = sys.stdout.write
    readings, good = soak(gateway, bench, requests, step)
    settled = readings[len(readings) // 3 :]  # memory for the first requests is not a leak
    per = 100_000
    say(f"slope after the first third: {slope([(r.requests, r.relay) for r in settled]) * per:+.2f} MB, ")
    say(f"{slope([(r.requests, r.files) for r in settled]) * per:+.2f} files per {per:,} requests\n")
    counted = int(gateway.metric("unprompt_requests_total", outcome="ok"))
    recorded = gateway.recorded(good)
    say(f"answered {good:,}, counted {counted:,}, recorded {recorded:,}\n")
    before = gateway.reading(0).relay
    alive, now = asyncio.run(idle_connections(gateway, idle))
    each = (now - before) * 1024 / max(alive, 1)
    say(f"{alive:,} of {idle:,} idle connections open: {now:.0f} MB, {each:.1f} KB each\n")
    return 0 if good == counted == recorded == requests else 1


if __name__ == "__main__":
    sys.exit(main())
