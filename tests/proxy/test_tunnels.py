"""Websockets: after the upstream's 101 the connection is a raw tunnel, recorded as one exchange."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from relaying import Upstream, Wire, answering, openai, relay, request, response, soon, story, upstream

OFFER = (
    b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Protocol: realtime",
)  # fmt: skip
ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def dial(*headers: bytes) -> bytes:
    return request(b"", *(headers or OFFER), method=b"GET", path=b"/v1/realtime?model=gpt-realtime")


async def mirror(told: Upstream, wire: Wire) -> None:
    """Greets in the same packet as the 101, then sends everything back until it hears `bye`."""
    await told.asked(wire)
    await wire.send(ACCEPT + b"hello")
    while piece := await wire.some():
        await wire.send(piece)
        if piece == b"bye":
            return


@story
async def test_bytes_pass_both_ways_at_once_and_are_counted(tmp_path: Path) -> None:
    async with upstream(mirror) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(dial() + b"\x81\x05early")  # sent before the 101
        head = await wire.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        for line in (
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        ):
            assert head.count(line + b"\r\n") == 1
        assert await wire.read(12) == b"hello\x81\x05early"
        assert up.requests[0].start == b"GET /v1/realtime?model=gpt-realtime HTTP/1.1"
        assert up.requests[0].header(b"upgrade") == b"websocket"
        for message in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 200_000):
            await wire.send(message)
            assert await wire.read(len(message)) == message
        await wire.send(b"bye")
        assert await wire.rest() == b"bye"  # the upstream's end is the client's end
        row = await gateway.row()
        assert (row.method, row.status, row.complete, row.error_type) == ("GET", 101, True, None)
        assert (row.request, row.response, row.truncated) == (b"", b"", False)
        count = 7 + 6 + 18 + 200_000 + 3
        assert row.response_headers["x-unprompt-tunnel-bytes"] == f"sent={count}, received={count + 5}"
        wire.close()


@pytest.mark.parametrize("how", ["in order", "broken"])
@story
async def test_a_client_that_leaves_ends_the_tunnel(tmp_path: Path, how: str) -> None:
    heard: list[bytes] = []

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(ACCEPT)
        heard.append(await wire.rest())

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(dial())
        await wire.until(b"\r\n\r\n")
        await wire.send(b"last words")
        await asyncio.sleep(0.05)
        if how == "broken":
            linger = struct.pack("ii", 1, 0)  # close with a reset
            wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wire.close()
        assert await soon(lambda: gateway.app.house.active == set(), 1)
        row = await gateway.row()
        assert (row.complete, row.error_type) == (
            (True, None) if how == "in order" else (False, "caller_cancelled")
        )
        if how == "in order":
            assert await soon(lambda: heard == [b"last words"], 1)


@story
async def test_an_upstream_that_breaks_off_is_no_normal_end(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(ACCEPT + b"half a")
        await asyncio.sleep(0.05)
        wire.reset()

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(dial())
        await wire.until(b"half a")
        assert await wire.ends(2)
        assert (await gateway.row()).status == 101
        wire.close()


@story
async def test_a_refused_upgrade_is_an_ordinary_answer(tmp_path: Path) -> None:
    refusal = response(b'{"error":{"message":"no"}}', status=b"401 Unauthorized")
    async with upstream(answering(refusal)) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(dial())
        assert (answer.status, answer.body) == (401, b'{"error":{"message":"no"}}')
        assert ((await gateway.row()).status, (await gateway.row()).complete) == (401, True)


@pytest.mark.parametrize(
    "headers",
    [
        (b"Connection: upgrade", b"Upgrade: h2c"),
        (b"Upgrade: websocket",),
        (b"Connection: Upgrade, HTTP2-Settings",),
    ],
)
@story
async def test_other_offers_are_not_taken_up(tmp_path: Path, headers: tuple[bytes, ...]) -> None:
    two = answering(response(b'{"n":1}'), response(b'{"n":2}'))
    async with upstream(two) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(dial(*headers) + dial(b"Accept: */*"))
        assert [(await wire.message()).body, (await wire.message()).body] == [b'{"n":1}', b'{"n":2}']
        assert all(b"upgrade" not in got.names for got in up.requests)
        wire.close()


@story
async def test_tunnels_are_closed_when_the_gateway_drains(tmp_path: Path) -> None:
    async with upstream(mirror) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(dial())
        await wire.until(b"hello")
        await asyncio.wait_for(gateway.app.server.drain(30), 1)
        assert await wire.ends(1)
        row = await gateway.row()
        assert (row.complete, row.status) == (True, 101)
        wire.close()
