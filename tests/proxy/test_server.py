"""Where a server listens, and that it stops."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from relaying import ANSWER, CHAT, Relay, answering, openai, relay, request, response, story, upstream

from gateway.proxy.server import Limits, Server


def bound() -> socket.socket:
    one = socket.create_server(("127.0.0.1", 0))
    one.setblocking(False)
    return one


@story
async def test_it_listens_on_every_socket_that_was_bound_for_it_and_draining_closes_all(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        sockets = [bound(), bound()]
        ports = [int(one.getsockname()[1]) for one in sockets]
        limits = Limits(body_bytes=1 << 20, header_seconds=10, idle_seconds=10)
        server = Server(gateway.app.house, limits, gateway.app.server.admin)
        assert await server.listen("nowhere.invalid", 1, sockets) == ports[0]
        for port in ports:
            assert (await Relay(gateway.app, port, tmp_path).ask(request(CHAT))).body == ANSWER
        await server.drain(1)
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
        assert (await gateway.ask(request(CHAT))).body == ANSWER  # the other server goes on
