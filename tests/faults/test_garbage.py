"""What nobody thought of: requests and answers with bytes changed, dropped, doubled and cut, by dice. Nothing is
expected of a single one but that it harms no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from pathlib import Path

import pytest
from relaying import ANSWER, CHAT, Upstream, Wire, answering, openai, request, response, story, upstream

from faults.serving import DONE, EVENT, STREAM, Served, chunk, eventually, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")
SECONDS = float(os.environ.get("UNPROMPT_TEST_GARBAGE", "5"))
SEED = int(os.environ.get("UNPROMPT_TEST_SEED", "1"))

REQUESTS = [
    request(CHAT),
    request(CHAT) * 3,
    request(b"", method=b"GET", path=b"/v1/models"),
    request(b"", method=b"HEAD", path=b"/v1/models"),
    request(b"", method=b"GET", path=b"/metrics"),
    request(b"", b"Transfer-Encoding: chunked", b"Content-Type: application/json")
    + chunk(CHAT[:20]) + chunk(CHAT[20:]) + b"0\r\nX-Trailer: 1\r\n\r\n",
    request(b"", b"Transfer-Encoding: chunked", b"Content-Type: audio/wav") + chunk(b"\0" * 500) + b"0\r\n\r\n",
    request(b"", b"Expect: 100-continue", b"Content-Length: 4") + b"null",
    request(b"", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x", method=b"GET"),
    request(CHAT, b"Connection: close, x-hop", b"X-Hop: 1", b"x-unprompt-log: metadata"),
]  # fmt: skip
ANSWERS = [
    response(ANSWER),
    response(ANSWER) * 2,
    STREAM + chunk(EVENT) * 3 + chunk(DONE) + b"0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + response(ANSWER),
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: application/json\r\n\r\n" + ANSWER,
    b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
]


def spoiled(data: bytes, dice: random.Random) -> bytes:
    """The same with up to four faults."""
    for _ in range(dice.choice([0, 1, 1, 2, 4])):
        at, more = dice.randrange(len(data) + 1), dice.choice([1, 2, 7, 40])
        data = dice.choice([
            data[:at] + dice.randbytes(more) + data[at + more :],
            data[:at] + dice.choice([b"\r", b"\n", b"\r\n\r\n", b"\0", b":", b" ", b"0\r\n\r\n"]) + data[at:],
            data[:at] + data[at + more :],
            data[:at] + data[at : at + more] * 2 + data[at + more :],
            data[:at],
        ])  # fmt: skip
    return data or b"\r\n"


async def sent(wire: Wire, data: bytes, dice: random.Random) -> None:
    """In up to four pieces."""
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice([0, 0, 1, 3])))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        await wire.send(data[start:end])
        await asyncio.sleep(0)


async def bother(served: Served, seed: int, until: float) -> int:
    dice, count = random.Random(seed), 0
    while time.monotonic() < until:
        count += 1
        with contextlib.suppress(ConnectionError, TimeoutError, RuntimeError):
            wire = await served.connect()
            try:
                await sent(wire, spoiled(dice.choice(REQUESTS), dice), dice)
                await asyncio.wait_for(wire.reader.read(100), dice.choice([0.01, 0.05, 0.2]))
            finally:
                wire.reset() if dice.random() < 0.3 else wire.close()
    return count


async def is_served(served: Served, until: float) -> int:
    """A sound client beside them, whose upstream is sound, too."""
    wire, count = await served.connect(), 0
    while time.monotonic() < until:
        await wire.send(request(CHAT, path=b"/sound/v1/chat/completions"))
        answer = await wire.message()
        assert (answer.status, answer.body) == (200, ANSWER)
        count += 1
    wire.close()
    return count


@story
async def test_garbage_from_both_sides_harms_nobody_else(tmp_path: Path) -> None:
    dice = random.Random(SEED)

    async def garbage(told: Upstream, wire: Wire) -> None:
        with contextlib.suppress(  # RuntimeError: uvloop, of a connection that is closed
            ConnectionError, RuntimeError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            while True:
                await wire.until(b"\r\n\r\n")
                await sent(wire, spoiled(dice.choice(ANSWERS), dice), dice)
                if dice.random() < 0.5:
                    return

    limits = {"idle_seconds": 3.0, "header_seconds": 2.0}
    route = {"name": "all", "match": {"provider": "openai"}, "targets": [{"upstream": "openai"}]}
    route["timeouts"] = {"first_byte": 2.0, "idle": 2.0}
    async with (
        upstream(garbage) as up,
        upstream(answering(response())) as good,
        serving(tmp_path, {**openai(up), "sound": openai(good)["openai"]}, routes=[route], server=limits) as served,
    ):
        assert await served.ready()
        descriptors, until = served.descriptors(), time.monotonic() + SECONDS
        sound, *bothered = await asyncio.gather(
            is_served(served, until), *(bother(served, SEED * 100 + number, until) for number in range(8))
        )
        assert sound > 20
        assert sum(bothered) > 100
        assert await eventually(lambda: served.descriptors() <= descriptors + 10)
        patience = time.monotonic() + 10
        while await served.metric("unprompt_in_flight") > 0 and time.monotonic() < patience:
            await asyncio.sleep(0.1)
        assert await served.metric("unprompt_in_flight") == 0
        assert "failed inside" not in served.log
        assert await served.metric('unprompt_log_records_total{result="dropped"}') == 0


@story
async def test_a_token_in_a_request_that_is_no_http_is_not_in_the_log(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as served:
        for path in (b"/metrics", b"/healthz", b"/v1/models"):
            wire = await served.connect()
            await wire.send(b"GET %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer canary-4711\0\r\n\r\n" % path)
            assert (await wire.message()).status == 400
            wire.close()
        assert await eventually(lambda: "is no HTTP" in served.log)
        assert "canary" not in served.log
