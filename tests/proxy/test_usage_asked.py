"""Streams tell their usage only where it is asked for: we ask, and the client sees the stream it asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from relaying import Upstream, Wire, answering, relay, request, story, upstream

STREAM = b'{"model":"gpt-6-luna","stream":true,"messages":[]}'
ASKED = b'{"stream_options":{"include_usage":true},"model":"gpt-6-luna","stream":true,"messages":[]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
SEEN = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n' + DONE


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def asking(told: Upstream, setting: str) -> dict[str, Any]:
    return {"openai": {"protocol": "openai", "base_url": told.url, "stream_usage": setting}}


async def streaming(told: Upstream, wire: Wire) -> None:
    """Answers each request with the usage that it asked for."""
    while True:
        asked = json.loads((await told.asked(wire)).body)
        wants = (asked.get("stream_options") or {}).get("include_usage")
        pieces = [WORD, USAGE, DONE] if wants else [SEEN[: -len(DONE)], DONE]
        await wire.send(HEAD)
        for piece in pieces:
            await wire.send(chunk(piece))
        await wire.send(b"0\r\n\r\n")


@story
async def test_the_usage_is_asked_for_and_taken_out_again(tmp_path: Path) -> None:
    async with upstream(streaming) as up, relay(tmp_path, asking(up, "ask")) as gateway:
        answer = await gateway.ask(request(STREAM, b"Accept-Encoding: gzip", b"X-Mine: 1"))
        assert (answer.status, answer.body, answer.complete) == (200, SEEN, True)
        assert up.requests[0].body == ASKED
        assert b"accept-encoding" not in up.requests[0].names  # the answer must be readable on its way
        assert up.requests[0].header(b"x-mine") == b"1"
        row = await gateway.row()
        assert (row.request, row.response) == (STREAM, WORD + USAGE + DONE)
        assert (row.usage_source, row.input_tokens, row.output_tokens) == ("upstream", 9, 2)


@story
async def test_the_usage_is_taken_out_of_a_stream_that_comes_at_once(tmp_path: Path) -> None:
    """The first three are read by the parser, the others by their shape."""
    whole = HEAD + b"".join(map(chunk, [WORD, USAGE, DONE])) + b"0\r\n\r\n"
    async with upstream(answering(whole)) as up, relay(tmp_path, asking(up, "ask")) as gateway:
        for _ in range(6):
            answer = await gateway.ask(request(STREAM))
            assert (answer.body, answer.chunked, answer.complete) == (SEEN, True, True)
        rows = [(row.response, row.usage_source, row.input_tokens, row.output_tokens) for row in gateway.rows()]
        assert rows == [(WORD + USAGE + DONE, "upstream", 9, 2)] * 6


@pytest.mark.parametrize("setting", ["auto", "leave"])
@story
async def test_an_upstream_that_is_not_known_to_tell_is_not_asked(tmp_path: Path, setting: str) -> None:
    async with upstream(streaming) as up, relay(tmp_path, asking(up, setting)) as gateway:
        answer = await gateway.ask(request(STREAM, b"Accept-Encoding: gzip"))
        assert answer.body == SEEN
        assert up.requests[0].body == STREAM
        assert up.requests[0].header(b"accept-encoding") == b"gzip"
        row = await gateway.row()
        assert row.usage_source == "estimated"


@story
async def test_a_client_that_asks_itself_gets_what_there_is(tmp_path: Path) -> None:
    own = b'{"model":"gpt-6-luna","stream":true,"stream_options":{"include_usage":true},"messages":[]}'
    async with upstream(streaming) as up, relay(tmp_path, asking(up, "ask")) as gateway:
        answer = await gateway.ask(request(own))
        assert answer.body == WORD + USAGE + DONE
        assert up.requests[0].body == own


@story
async def test_each_event_leaves_as_it_comes(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(HEAD)
        for number in range(3):
            await wire.send(chunk(WORD.replace(b"hi", b"%d" % number)))
            assert await gone.read(1) == b"+"  # the client has it before the next one is sent
        await wire.send(chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n")

    async with upstream(script) as up, relay(tmp_path, asking(up, "ask")) as gateway:
        passed, gone = await _pipe()
        wire = await gateway.connect()
        await wire.send(request(STREAM))
        await wire.until(b"\r\n\r\n")
        for number in range(3):
            assert b'"content":"%d"' % number in await wire.until(b"\n\n\r\n")
            await passed.send(b"+")
        assert await wire.until(b"0\r\n\r\n") == chunk(DONE) + b"0\r\n\r\n"
        wire.close()
        passed.close()
        gone.close()


async def _pipe() -> tuple[Wire, Wire]:
    """Two ends of a connection."""
    import asyncio
    import socket

    ends = socket.socketpair()
    opened = [Wire(*await asyncio.open_connection(sock=end)) for end in ends]
    return opened[0], opened[1]


@story
async def test_early_hints_pass_and_continue_is_our_own_affair(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    async with upstream(script) as up, relay(tmp_path, asking(up, "auto")) as gateway:
        wire = await gateway.connect()
        await wire.send(request())
        assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        answer = await wire.message()
        assert (answer.status, answer.body) == (200, b"{}")
        wire.close()
