"""Kills the whole gateway (`kill -9`) at random moments under load, again and again, and counts what is lost.

    python benchmarks/kill.py                 1,000 kills, about an hour
    python benchmarks/kill.py --kills 20      what the tests do

The load is half JSON answers and half streams, from clients in this process that note the id of each exchange
whose answer they have received whole (for a stream: up to `[DONE]`). After each kill the gateway is started
again on the same folder, which is also what happens in life. At the end the store must hold every noted
exchange complete and with the very bytes that the client received.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

WORDS = [
    b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": f"w{n} "}}]}).encode() for n in range(6)
]


@dataclass
class Tally:
    """What was seen from outside: the bytes of each acknowledged answer by its exchange's id."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    asked: int = 0
    broken: int = 0
    kills: int = 0


@dataclass(frozen=True)
class Report:
    """What the store says after the last start. Only `incomplete` may be more than 0."""

    kills: int
    asked: int
    acknowledged: int
    rows: int
    incomplete: int
    lost: int
    different: int
    torn: int

    @property
    def is_good(self) -> bool:
        return self.lost == self.different == self.torn == 0 and self.acknowledged > 0

    def table(self) -> str:
        """For people."""
        rows = [
            ("kills", self.kills), ("requests sent", self.asked), ("answers received whole", self.acknowledged),
            ("rows", self.rows), ("rows of requests under way", self.incomplete), ("lost", self.lost),
            ("rows with other bytes", self.different), ("torn records", self.torn),
        ]  # fmt: skip
        return "\n".join(f"{name:28}{number:>10,}" for name, number in rows)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The upstream: every answer is different, so that no answer can pass for another."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))
            mark = asked["messages"][0]["content"].encode()
            if asked["stream"]:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for data in (*WORDS, b'data: {"mark":"%b"}' % mark, b"data: [DONE]"):
                    writer.write(b"%x\r\n%b\n\n\r\n" % (len(data) + 2, data))
                    await asyncio.sleep(0.0005)
                writer.write(b"0\r\n\r\n")
            else:
                body = json.dumps({"choices": [{"message": {"content": mark.decode()}}]}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
            await writer.drain()
    writer.close()


async def client(port: int, seed: int, tally: Tally, until: asyncio.Event) -> None:
    """Asks on and on; a broken connection is made anew."""
    dice = random.Random(seed)
    while not until.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        try:
            while not until.is_set():
                await _ask(reader, writer, dice, tally)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            tally.broken += 1
        finally:
            writer.close()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dice: random.Random, tally: Tally
) -> None:
    tally.asked += 1
    streamed = dice.random() < 0.5
    said = {"role": "user", "content": f"{dice.random():.12f}"}
    body = json.dumps({"model": "m", "stream": streamed, "messages": [said], "filler": "x" * dice.randrange(3000)})
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body.encode()
    )
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).lower()
    exchange = head.partition(b"x-unprompt-exchange: ")[2].split(b"\r\n")[0].decode()
    if not head.startswith(b"http/1.1 200"):
        raise ConnectionError(head)
    if b"chunked" not in head:
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        tally.acknowledged[exchange] = await asyncio.wait_for(reader.readexactly(length), 20)
        return
    text = b""
    while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), 20), 16):
        text += (await asyncio.wait_for(reader.readexactly(size + 2), 20))[:-2]
        if text.endswith(b"data: [DONE]\n\n"):  # a client stops here: the exchange is acknowledged
            tally.acknowledged[exchange] = text
    await reader.readexactly(2)


class Gateway:
    """`unprompt serve` with its worker, in a session of its own."""

    def __init__(self, home: Path, port: int, upstream: int) -> None:
        self.home, self.port = home, port
        (home / "gateway.yaml").write_text(
            f'providers: {{openai: {{protocol: openai, base_url: "http://127.0.0.1:{upstream}/v1"}}}}\n'
            f'store: {{url: "sqlite:///{home}/data/unprompt.db"}}\n'
        )

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", str(self.port),
            "--config", str(self.home / "gateway.yaml"),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            if time.monotonic() > until or self._process.returncode is not None:
                raise RuntimeError("the gateway does not start")
            await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """The relay and its worker, in the same moment as far as that can be had."""
        self.kill_worker()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    def kill_worker(self) -> None:
        """Only the process that moves records into the store."""
        for pid in _children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


async def run(home: Path, *, kills: int, seed: int, clients: int, longest: float, say: bool) -> Report:
    """`longest`: seconds of load before a kill, at most."""
    dice, tally = random.Random(seed), Tally()
    upstream = await asyncio.start_server(answer, "127.0.0.1", 0)
    gateway = Gateway(home, _free_port(), upstream.sockets[0].getsockname()[1])
    await gateway.start()
    until = asyncio.Event()
    asking = [asyncio.create_task(client(gateway.port, seed * 1000 + n, tally, until)) for n in range(clients)]
    for number in range(kills):
        before = len(tally.acknowledged)
        while len(tally.acknowledged) == before:  # under load, not while starting
            await asyncio.sleep(0.002)
        await asyncio.sleep(dice.uniform(0, longest))
        if dice.random() < 0.2:  # the worker first, so that the relay meets its successor
            gateway.kill_worker()
            await asyncio.sleep(dice.uniform(0, longest))
        await gateway.kill()
        tally.kills += 1
        if say and number % 50 == 49:
            sys.stderr.write(f"{number + 1} kills, {len(tally.acknowledged):,} answers\n")
        await gateway.start()
    until.set()
    await asyncio.gather(*asking)
    await gateway.kill()
    upstream.close()
    return check(home, tally)


def check(home: Path, tally: Tally) -> Report:
    """What a restart finds."""
    store = SqliteStore(home / "data" / "unprompt.db")
    Recorder(home / "data" / "journal", store).drain()
    rows = lost = different = incomplete = 0
    seen = set()
    for row in store.each_exchange():
        rows += 1
        incomplete += not row.complete
        seen.add(row.id)
        expected = tally.acknowledged.get(row.id)
        if expected is not None:
            lost += not row.complete
            different += row.response != expected
    lost += len(tally.acknowledged.keys() - seen)
    store.close()
    torn = len([*(home / "data" / "journal").glob("*.torn"), *(home / "data" / "journal").glob("*.poison")])
    return Report(tally.kills, tally.asked, len(tally.acknowledged), rows, incomplete, lost, different, torn)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds of load before a kill, at most")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        report = asyncio.run(
            run(
                Path(home),
                kills=given.kills,
                seed=given.seed,
                clients=given.clients,
                longest=given.longest,
                say=True,
            )
        )
    sys.stdout.write(report.table() + "\n")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
