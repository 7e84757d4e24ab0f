"""Cases 7, 15 and 33 to 35: clients that are slow, silent, many, or gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
import time
from pathlib import Path

import pytest
from relaying import (
    ANSWER,
    CHAT,
    Upstream,
    Wire,
    answering,
    openai,
    relay,
    request,
    response,
    soon,
    story,
    upstream,
)

from faults.serving import EVENT, STREAM, Served, chunk, eventually, serving
from gateway.proxy.concurrency import clients_at_most

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
UPLOAD_MB = int(os.environ.get("UNPROMPT_TEST_UPLOAD_MB", "500"))
IDLE = int(os.environ.get("UNPROMPT_TEST_IDLE", "1500"))
MB = 1 << 20


def peak(served: Served) -> int:
    """The most bytes of memory that the relay has had so far."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# --- large and slow ----------------------------------------------------------------------------------


@linux
@story
async def test_an_upload_of_half_a_gigabyte_fits_in_no_memory_and_needs_none(tmp_path: Path) -> None:
    total, block = UPLOAD_MB * MB, b"\xff" * MB

    async def taking(told: Upstream, wire: Wire) -> None:
        await wire.until(b"\r\n\r\n")
        left = total
        while left and (piece := await wire.some()):
            left -= len(piece)
        await wire.send(response(b'{"id":"file-1"}'))

    async with upstream(taking) as up, serving(tmp_path, up) as served:
        before = peak(served)
        wire = await served.connect()
        kind, length = b"Content-Type: multipart/form-data; boundary=b", b"Content-Length: %d" % total
        await wire.send(request(b"", kind, length, path=b"/v1/files"))
        for _ in range(UPLOAD_MB):
            await wire.send(block)
        assert (await wire.message()).body == b'{"id":"file-1"}'
        assert peak(served) - before < 64 * MB
        row = (await served.recorded(1))[-1]
        assert (row.complete, row.truncated, row.request) == (True, True, b"")  # what it was, not what was in it
        wire.close()


@story
async def test_a_head_that_comes_byte_by_byte_has_ten_seconds_in_all(tmp_path: Path) -> None:
    limits = {"header_seconds": 0.6, "idle_seconds": 30.0}
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), server=limits) as gateway:
        wire = await gateway.connect()
        started = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            for byte in request(CHAT, b"X: " + b"a" * 200):
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.02)
                if wire.reader.at_eof() or wire.writer.is_closing():
                    break
        assert await wire.ends(2)
        assert 0.5 < asyncio.get_running_loop().time() - started < 3
        assert up.requests == []


@pytest.mark.parametrize("kind", [b"application/json", b"application/octet-stream"])
@story
async def test_a_body_that_stands_still_costs_its_connection_and_its_upstreams(tmp_path: Path, kind: bytes) -> None:
    ended = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await told.asked(wire)
        ended.set()

    limits = {"idle_seconds": 0.5}
    async with upstream(script) as up, relay(tmp_path, openai(up), server=limits) as gateway:
        wire = await gateway.connect()
        await wire.send(request(b"", b"Content-Type: " + kind, b"Content-Length: 1000") + b"x" * 10)
        assert await wire.ends(3)
        if b"json" in kind:
            assert up.connections == 0  # it was to be whole first
        else:
            await asyncio.wait_for(ended.wait(), 1)
            assert (await gateway.row()).error_type == "caller_cancelled"
        assert await soon(lambda: not gateway.app.house.active, 1)


async def trickled(wire: Wire, piece: bytes, pause: float, times: int) -> bool:
    """Whether the other side let us send so many pieces."""
    for _ in range(times):
        if wire.reader.at_eof() or wire.writer.is_closing():
            return False
        try:
            await wire.send(piece)
        except ConnectionError:
            return False
        await asyncio.sleep(pause)
    return not wire.reader.at_eof()


@pytest.mark.parametrize("kind", [b"application/json", b"application/octet-stream"])
@story
async def test_a_body_that_trickles_is_ended_and_one_that_keeps_the_rate_is_not(
    tmp_path: Path, kind: bytes
) -> None:
    limits = {"idle_seconds": 0.8, "least_rate": 1000}
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), server=limits) as gateway:
        slow, steady = await gateway.connect(), await gateway.connect()
        for wire in (slow, steady):
            await wire.send(request(b"", b"Content-Type: " + kind, b"Content-Length: 8000"))
        started = asyncio.get_running_loop().time()
        dripped = asyncio.create_task(trickled(slow, b"x" * 10, 0.05, 80))  # 200 bytes a second, never silent
        assert await trickled(steady, b"x" * 100, 0.05, 80)  # 2,000
        assert (await steady.message()).body == ANSWER
        assert not await dripped
        assert await slow.ends(1)
        assert asyncio.get_running_loop().time() - started < 8  # it would have taken 40
        assert [asked.complete for asked in up.requests if len(asked.body) == 8000] == [True]
        assert await soon(lambda: not gateway.app.house.active, 1)
        steady.close()


@story
async def test_who_waits_for_a_slow_upstream_is_not_too_slow(tmp_path: Path) -> None:
    size = 30 * MB

    async def script(told: Upstream, wire: Wire) -> None:
        await wire.until(b"\r\n\r\n")
        await asyncio.sleep(2.0)  # three times what a client may stand still
        left = size
        while left and (piece := await wire.some()):
            left -= len(piece)
        await wire.send(response())

    limits = {"idle_seconds": 0.7, "least_rate": 1000}
    async with upstream(script) as up, relay(tmp_path, openai(up), server=limits) as gateway:
        wire = await gateway.connect()
        kind, length = b"Content-Type: application/octet-stream", b"Content-Length: %d" % size
        await wire.send(request(b"", kind, length))
        for _ in range(30):
            await wire.send(b"x" * MB)
        assert (await wire.message()).body == ANSWER
        wire.close()


@story
async def test_a_client_that_never_takes_its_answer_is_cut_off(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                await wire.send(b"x" * 100_000)
        gone.set()

    routes = [{"name": "impatient", "targets": [{"upstream": "openai"}], "timeouts": {"idle": 0.6}}]
    async with upstream(script) as up, relay(tmp_path, openai(up), routes=routes) as gateway:
        wire = await gateway.connect()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too
        await wire.send(request(CHAT))
        await asyncio.wait_for(gone.wait(), 5)
        row = await gateway.row()
        assert (row.complete, row.error_type) == (False, "caller_cancelled")
        wire.reset()


@linux
@story
async def test_readers_that_stall_hold_up_nobody_and_fill_no_memory(tmp_path: Path) -> None:
    async def large(told: Upstream, wire: Wire) -> None:
        asked = await told.asked(wire)
        if asked.body == CHAT:
            await wire.send(response())
            return
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(500):
                await wire.send(b"x" * 100_000)

    async with upstream(large) as up, serving(tmp_path, up, capture={"max_body_mb": 1}) as served:
        await served.ask(request(CHAT))
        before = served.memory()
        stalled = [await served.connect() for _ in range(20)]
        for wire in stalled:
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too
            await wire.send(request(b"", method=b"GET", path=b"/v1/files/big/content"))
        await asyncio.sleep(0.5)
        slowest = 0.0
        for _ in range(20):
            started = time.perf_counter()
            assert (await served.ask(request(CHAT))).body == ANSWER
            slowest = max(slowest, time.perf_counter() - started)
        assert slowest < 5  # to wait for a reader that stalls would be for ever
        assert served.memory() - before < (20 + 30) * MB  # a record of 1 MB for each, and some
        for wire in stalled:
            wire.reset()
        rows = await served.recorded(41)
        assert sum(row.error_type == "caller_cancelled" for row in rows) == 20


@linux
@story
async def test_idle_connections_cost_little_and_others_are_served_meanwhile(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if clients_at_most(hard) < IDLE + 10 or hard < IDLE + 500:
        pytest.skip(f"{hard} open files are allowed here, too few for {IDLE} clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with (
        upstream(answering(response())) as up,
        serving(tmp_path, up, server={"idle_seconds": 60.0}) as served,
    ):
        await served.ask(request(CHAT))
        before = served.memory()
        idle = []
        for _ in range(IDLE):
            client = socket.create_connection(("127.0.0.1", served.port))
            idle.append(client)
        assert await eventually(lambda: served.descriptors() > IDLE)
        started = time.perf_counter()
        assert (await served.ask(request(CHAT))).body == ANSWER
        assert time.perf_counter() - started < 0.5
        assert served.memory() - before < 150 * MB * IDLE / 10_000 + 8 * MB
        for client in idle:
            client.close()
        assert await eventually(lambda: served.descriptors() < 100)


# --- gone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["in order", "with a reset"])
@pytest.mark.parametrize("moment", ["before the first byte", "within a stream", "within a JSON answer"])
@story
async def test_who_leaves_stops_the_upstream_keeps_a_row_and_is_no_longer_under_way(
    tmp_path: Path, moment: str, how: str
) -> None:
    asked, stopped = asyncio.Event(), asyncio.Event()
    part = {"before the first byte": b"", "within a stream": EVENT, "within a JSON answer": ANSWER[:40]}[moment]

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        asked.set()
        if moment == "within a stream":
            await wire.send(STREAM + chunk(EVENT))
        elif part:
            await wire.send(response(ANSWER)[: -len(ANSWER)] + part)
        if await wire.ends():
            stopped.set()

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        await asyncio.wait_for(asked.wait(), 5)
        if part:
            await wire.until(part[-5:])
        assert "unprompt_in_flight 1.0" in await gateway.metrics()
        if how == "in order":
            wire.close()
        else:
            wire.reset()
        await asyncio.wait_for(stopped.wait(), 1)
        row = await gateway.row()
        assert (row.complete, row.error_type, row.request) == (False, "caller_cancelled", CHAT)
        assert (row.status, row.response) == (200 if part else 499, part)
        assert "unprompt_in_flight 0.0" in await gateway.metrics()
        assert 'outcome="caller_cancelled"' in await gateway.metrics()


@linux
@story
async def test_client_and_upstream_dying_together_leave_one_row_each_and_nothing_open(tmp_path: Path) -> None:
    wires: list[Wire] = []

    async def script(told: Upstream, wire: Wire) -> None:
        while (await told.asked(wire)).body != CHAT:
            await wire.send(response())
        wires.append(wire)
        await wire.send(STREAM + chunk(EVENT))
        await asyncio.sleep(30)

    async with upstream(script) as up, serving(tmp_path, up) as served:
        assert (await served.ask(request(b"{}"))).status == 200
        before = served.descriptors()
        clients = [await served.connect() for _ in range(50)]
        for client in clients:
            await client.send(request(CHAT))
        for client in clients:
            await client.until(b"\n\n")
        for client, wire in zip(clients, wires, strict=True):
            client.reset()
            wire.reset()
        rows = [row for row in await served.recorded(51) if row.request == CHAT]
        assert len({row.id for row in rows}) == len(rows) == 50
        assert {row.complete for row in rows} == {False}
        assert {row.error_type for row in rows} <= {"caller_cancelled", "upstream_truncated"}
        assert await served.metric("unprompt_in_flight") == 0
        assert await eventually(lambda: served.descriptors() <= before)
