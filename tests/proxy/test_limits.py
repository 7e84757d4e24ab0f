"""What is too much for a route, a server or its process: how it is said, and that it passes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from relaying import (
    ANSWER,
    CHAT,
    Relay,
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

UPLOAD = b"Content-Type: application/octet-stream"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def route(**said: Any) -> list[dict[str, Any]]:
    return [{"name": "all", "targets": [{"upstream": "openai"}], **said}]


Script = Callable[[Upstream, Wire], Awaitable[None]]


def held(released: asyncio.Event) -> Script:
    """Answers when it is released."""

    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            await told.asked(wire)
            await released.wait()
            await wire.send(response())

    return script


async def holding(gateway: Relay, up: Upstream, *keys: bytes) -> list[Wire]:
    """A request under way with each key."""
    wires = []
    for key in keys:
        wires.append(await gateway.connect())
        await wires[-1].send(request(CHAT, b"Authorization: Bearer " + key))
    assert await soon(lambda: len(up.requests) == len(keys))
    return wires


@story
async def test_a_request_too_many_on_a_route_is_told_to_come_back(tmp_path: Path) -> None:
    released = asyncio.Event()
    narrow = route(limits={"concurrency": 2})
    async with upstream(held(released)) as up, relay(tmp_path, openai(up), routes=narrow) as gateway:
        wires = await holding(gateway, up, b"sk-alice-0001", b"sk-bob-0002")
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"retry-after")) == (429, b"1")
        assert answer.header(b"x-unprompt-error") == b"too_many_requests"
        assert answer.json()["error"]["code"] == "too_many_requests"
        refused = gateway.rows()[-1]
        assert (refused.status, refused.route, refused.model_requested) == (429, "all", "gpt-6-luna")
        assert (refused.error_type, refused.request) == ("policy_limit", CHAT)
        counted = 'unprompt_rejected_total{route="all",reason="too_many_requests"} 1.0'
        assert counted in await gateway.metrics()
        released.set()
        assert [(await wire.message()).status for wire in wires] == [200, 200]
        assert (await gateway.ask(request(CHAT))).status == 200
        assert len(up.requests) == 3


@story
async def test_one_busy_key_leaves_room_for_others_and_gives_its_seat_back_when_it_leaves(tmp_path: Path) -> None:
    released = asyncio.Event()
    fair = route(limits={"concurrency_per_key": 1})
    async with upstream(held(released)) as up, relay(tmp_path, openai(up), routes=fair) as gateway:
        (busy,) = await holding(gateway, up, b"sk-alice-0001")
        again = request(CHAT, b"Authorization: Bearer sk-alice-0001")
        assert (await gateway.ask(again)).status == 429
        busy.close()
        assert await soon(lambda: not gateway.app.house.active)
        released.set()
        assert (await gateway.ask(again)).status == 200
        assert (await gateway.ask(request(CHAT, b"Authorization: Bearer sk-bob-0002"))).status == 200


@pytest.mark.parametrize("form", ["json", "upload", "chunked upload"])
@story
async def test_a_route_takes_smaller_bodies_than_the_server(tmp_path: Path, form: str) -> None:
    small, body = route(limits={"max_body_mb": 1}), b'"' + b"x" * 1_100_000 + b'"'
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), routes=small) as gateway:
        if form == "json":
            data = request(body)
        elif form == "upload":
            data = request(body, UPLOAD, path=b"/v1/files")
        else:
            head = request(b"", UPLOAD, b"Transfer-Encoding: chunked", path=b"/v1/files")
            data = head + chunk(body[:600_000]) + chunk(body[600_000:])
        answer = await gateway.ask(data)
        assert (answer.status, answer.header(b"x-unprompt-error")) == (413, b"body_too_large")
        assert "max_body_mb" in answer.json()["error"]["message"]
        assert up.requests == []  # or never one that came to its end
        row = await gateway.row()
        assert (row.status, row.request) == (413, b"")
        assert (await gateway.ask(request(CHAT))).status == 200


@story
async def test_a_server_that_has_enough_to_do_says_so(tmp_path: Path) -> None:
    released = asyncio.Event()
    async with (
        upstream(held(released)) as up,
        relay(tmp_path, openai(up), server={"max_in_flight": 2}) as gateway,
    ):
        wires = await holding(gateway, up, b"sk-alice-0001", b"sk-bob-0002")
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"retry-after")) == (503, b"1")
        assert answer.header(b"x-unprompt-error") == b"overloaded"
        assert (await gateway.get(b"/healthz")).status == 200  # own pages answer all the same
        released.set()
        assert [(await wire.message()).status for wire in wires] == [200, 200]
        assert (await gateway.ask(request(CHAT))).status == 200


# --- no files left -------------------------------------------------------------------------------------


@contextlib.contextmanager
def few_files(more: int) -> Iterator[int]:
    """This process, the gateway included, may have only so many more files open; gives the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + more, before[1]))
    try:
        yield probe + more
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def hoarded(leaving: int) -> Iterator[None]:
    """All files that may still be opened are open, but for so many."""
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for number in held[len(held) - leaving :]:
            os.close(number)
        del held[len(held) - leaving :]
        yield
    finally:
        for number in held:
            os.close(number)


@story
async def test_a_client_that_comes_when_files_run_short_is_told_to_come_back(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        with few_files(100) as gateway.app.server.files_at_most, hoarded(leaving=20):
            wire = await gateway.connect()
            await wire.send(request(CHAT))
            answer = await wire.message()
            assert (answer.status, answer.header(b"retry-after")) == (503, b"1")
            assert answer.header(b"x-unprompt-error") == b"overloaded"
            assert await wire.ends(2)
        assert (await gateway.ask(request(CHAT))).body == ANSWER


@story
async def test_a_server_takes_as_many_clients_as_its_settings_say(tmp_path: Path) -> None:
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, openai(up), server={"connections": 2}) as gateway,
    ):
        kept = [await gateway.connect() for _ in range(2)]
        await asyncio.sleep(0.05)
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"retry-after")) == (503, b"1")
        assert (answer.header(b"x-unprompt-error"), answer.json()["error"]["code"]) == (b"overloaded", "overloaded")
        for wire in kept:
            wire.close()
        await asyncio.sleep(0.8)  # the one that was turned away is gone, too
        assert (await gateway.ask(request(CHAT))).status == 200
        rejected = 'unprompt_rejected_total{route="none",reason="overloaded"} 1.0'
        assert rejected in await gateway.metrics()


@story
async def test_no_file_for_the_upstream_is_our_fault_and_passes(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        with few_files(100), hoarded(leaving=0):
            await wire.send(request(CHAT))
            answer = await wire.message()
            assert (answer.status, answer.header(b"retry-after")) == (503, b"1")
            assert answer.header(b"x-unprompt-error") == b"overloaded"
        assert (await gateway.row()).error_type == "internal"
        assert (await gateway.ask(request(CHAT))).body == ANSWER
        assert len(up.requests) == 1
