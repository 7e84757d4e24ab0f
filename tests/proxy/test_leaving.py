"""A route may want an answer recorded whose client has left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from relaying import ANSWER, CHAT, Upstream, Wire, openai, relay, request, response, soon, story, upstream

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
UPLOAD = b"Content-Type: application/octet-stream"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def route(**said: Any) -> list[dict[str, Any]]:
    return [{"name": "all", "targets": [{"upstream": "openai"}], **said}]


@pytest.mark.parametrize("moment", ["before the first byte", "mid-stream", "without taking its answer"])
@story
async def test_a_route_may_finish_for_the_record_what_a_client_left(tmp_path: Path, moment: str) -> None:
    gone = asyncio.Event()
    long = EVENT * (400_000 if moment == "without taking its answer" else 1)

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        if moment == "mid-stream":
            await wire.send(STREAM + chunk(EVENT))
            await gone.wait()
        elif moment == "before the first byte":
            await gone.wait()
            await wire.send(STREAM + chunk(EVENT))
        else:
            await wire.send(STREAM + chunk(long))
        await wire.send(chunk(DONE) + b"0\r\n\r\n")

    thrifty = route(on_client_gone="finish")
    async with (
        upstream(script) as up,
        relay(tmp_path, openai(up), routes=thrifty, capture={"max_body_mb": 64}) as gateway,
    ):
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        assert await soon(lambda: len(up.requests) == 1)
        if moment == "mid-stream":
            await wire.until(b"\n\n")
        elif moment == "without taking its answer":
            await asyncio.sleep(0.5)  # the answer is larger than all buffers on the way
        wire.reset()
        await asyncio.sleep(0.1)
        gone.set()
        assert await soon(lambda: not gateway.app.house.active)
        row = await gateway.row()
        assert (row.status, row.complete, row.error_type) == (200, True, None)
        assert row.response == long + DONE


@story
async def test_shutting_down_waits_for_an_answer_that_is_only_for_the_record(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await gone.wait()
        await asyncio.sleep(0.3)
        await wire.send(response())

    thrifty = route(on_client_gone="finish")
    async with upstream(script) as up, relay(tmp_path, openai(up), routes=thrifty) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        assert await soon(lambda: len(up.requests) == 1)
        wire.close()
        await asyncio.sleep(0.1)
        gone.set()
        await gateway.app.server.drain(5)
        assert (await gateway.row()).response == ANSWER


@story
async def test_half_an_upload_is_not_finished_for_anybody(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def script(told: Upstream, wire: Wire) -> None:
        await wire.until(b"\r\n\r\n")
        got.append(await wire.rest())

    thrifty = route(on_client_gone="finish")
    async with upstream(script) as up, relay(tmp_path, openai(up), routes=thrifty) as gateway:
        wire = await gateway.connect()
        await wire.send(request(b"", UPLOAD, b"Content-Length: 100000", path=b"/v1/files") + b"x" * 1000)
        await asyncio.sleep(0.1)
        wire.close()
        assert await soon(lambda: got == [b"x" * 1000], 1)
        assert (await gateway.row()).error_type == "caller_cancelled"
