"""Case 42: exchanges are exported and deleted while the traffic goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from relaying import Upstream, Wire, request, response, story, upstream

from faults.serving import Served, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")
CLIENTS = 6


async def echo(told: Upstream, wire: Wire) -> None:
    """Every answer is its request's body, so that none can pass for another."""
    with contextlib.suppress(TimeoutError):  # a pooled connection that stands idle meanwhile
        while True:
            await wire.send(response((await told.asked(wire)).body))


class Load:
    """Clients that ask on and on: whose answer was whole, by exchange, and how long each took."""

    def __init__(self, served: Served) -> None:
        self.served, self.over = served, asyncio.Event()
        self.answered: dict[str, bytes] = {}
        self.seconds: list[float] = []

    async def client(self, name: str) -> None:
        wire, number = await self.served.connect(), 0
        while not self.over.is_set():
            number += 1
            body = b'{"client":"%b","n":%d,"text":"%b"}' % (name.encode(), number, b"x" * 2000)
            started = time.perf_counter()
            await wire.send(request(body, b"x-unprompt-tags: age=" + (b"old" if name == "old" else b"new")))
            answer = await wire.message()
            self.seconds.append(time.perf_counter() - started)
            assert (answer.status, answer.body) == (200, body)
            self.answered[(answer.header(b"x-unprompt-exchange") or b"").decode()] = body
        wire.close()


async def command(served: Served, *arguments: str) -> None:
    """One of ours, beside the gateway; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *arguments, "--config", str(served.home / "gateway.yaml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def exported(served: Served, number: int) -> dict[str, dict[str, Any]]:
    out = served.home / f"export-{number}.jsonl"
    await command(served, "export", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {row["id"]: row for row in rows}


@story
async def test_export_and_retention_under_load_hold_nobody_up_and_see_whole_rows(tmp_path: Path) -> None:
    async with upstream(echo) as up, serving(tmp_path, up) as served:
        old = Load(served)
        first = asyncio.create_task(old.client("old"))
        while len(old.answered) < 300:
            await asyncio.sleep(0.01)
        old.over.set()
        await first
        await served.recorded(len(old.answered))

        load = Load(served)
        clients = [asyncio.create_task(load.client(f"c{number}")) for number in range(CLIENTS)]
        exports = []
        for number in range(3):
            known = {row.id for row in served.rows()}
            exports.append((known, await exported(served, number)))
            if number == 0:
                await command(served, "prune", "--tag", "age=old")
        during = len(load.seconds)
        load.over.set()
        await asyncio.gather(*clients)

        for known, rows in exports:  # each has what was there when it began, and every row of it is whole
            assert known <= set(rows)
            for row in rows.values():
                assert row["response"] == row["request"] or not row["complete"]
        assert set(old.answered) <= set(exports[0][1])
        assert not set(old.answered) & set(exports[2][1])
        assert during > 200
        slowest = sorted(load.seconds)[-max(1, during // 100) :]
        assert slowest[0] < 3, slowest  # the 99th in a hundred; a wait for a lock lasts longer
        kept = {row.id: row.response for row in await served.recorded(len(load.answered))}
        assert kept == load.answered
