"""P1: the upstream receives what the client sent, and the client what the upstream sent, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import re
from pathlib import Path

import pytest
from relaying import ANSWER, CHAT, Upstream, Wire, answering, openai, relay, request, response, story, upstream

from gateway.upstreams.http import HttpUpstream
from gateway.upstreams.selective import SelectiveUpstream
from gateway.upstreams.shapes import HEADS_TO_LEARN

EVENTS = [b'data: {"n":%d,"t":"caf\xc3\xa9"}\n\n' % n for n in range(5)]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@story
async def test_a_json_request_and_its_answer_pass_unchanged(tmp_path: Path) -> None:
    body = b'{ "model":"gpt-6-luna",\n "messages":[], "unknown": {"\\u00e9":1e400}, "messages":[] }'
    async with upstream(
        answering(response(ANSWER, b"X-Request-Id: r1", b"Set-Cookie: a=1", b"Set-Cookie: b=2"))
    ) as up:
        async with relay(tmp_path, openai(up)) as gateway:
            sent = request(body, b"Authorization: Bearer sk-client-123", b"X-Custom:  spaced ", b"Accept: */*")
            answer = await gateway.ask(sent)
        got = up.requests[0]
        assert got.start == b"POST /v1/chat/completions HTTP/1.1"
        assert got.body == body
        assert got.headers == [
            (b"Host", up.url.removeprefix("http://").removesuffix("/v1").encode()),
            (b"Authorization", b"Bearer sk-client-123"), (b"X-Custom", b"spaced"), (b"Accept", b"*/*"),
            (b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body)),
        ]  # fmt: skip
        assert (answer.start, answer.body) == (b"HTTP/1.1 200 OK", ANSWER)
        assert [v for n, v in answer.headers if n == b"Set-Cookie"] == [b"a=1", b"b=2"]
        assert answer.header(b"x-unprompt-target") == b"openai/gpt-6-luna whole"


@pytest.mark.parametrize(
    ("method", "path", "seen"),
    [
        (b"GET", b"/v1/models?limit=2&after=%2Fa%20b", b"GET /v1/models?limit=2&after=%2Fa%20b"),
        (b"DELETE", b"/openai/files/file-1", b"DELETE /v1/files/file-1"),
        (b"PATCH", b"/openai/v1/things//x?", b"PATCH /v1/things//x?"),
        (b"GET", b"http://elsewhere.test/v1/models", b"GET /v1/models"),
        (b"PROPFIND", b"/v1/a;b=c/%E2%82%AC", b"PROPFIND /v1/a;b=c/%E2%82%AC"),
    ],
)
@story
async def test_any_method_and_path_reaches_the_same_place(
    tmp_path: Path, method: bytes, path: bytes, seen: bytes
) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(b"", method=method, path=path))
        assert answer.status == 200
        assert up.requests[0].start == seen + b" HTTP/1.1"
        assert b"content-length" not in up.requests[0].names


@story
async def test_hop_by_hop_and_own_headers_stay_here(tmp_path: Path) -> None:
    back = response(ANSWER, b"Connection: x-secret-hop, keep-alive", b"X-Secret-Hop: 1", b"Keep-Alive: timeout=9")
    async with upstream(answering(back)) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(
            CHAT, b"Connection: X-Hop, keep-alive", b"X-Hop: 1", b"TE: trailers",
            b"Proxy-Authorization: Basic eHh4eHh4eHg=", b"x-unprompt-tags: team=a", b"X-Unprompt-Task: mail",
        ))  # fmt: skip
        assert up.requests[0].names == [b"host", b"content-type", b"content-length"]
        assert b"x-secret-hop" not in answer.names
        assert b"keep-alive" not in answer.names


@story
async def test_a_multipart_upload_streams_through_before_it_is_whole(tmp_path: Path) -> None:
    first, second = b"--b\r\n" + b"\x00\xff" * 50_000, b"\x01" * 70_000 + b"\r\n--b--\r\n"
    seen = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        head = await wire.until(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % (len(first) + len(second)) in head
        assert await wire.read(len(first)) == first
        seen.set()  # the client has sent nothing more yet
        assert await wire.read(len(second)) == second
        await wire.send(response(b'{"id":"file-1"}'))

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        kind, length = (
            b"Content-Type: multipart/form-data; boundary=b",
            b"Content-Length: %d" % (len(first) + len(second)),
        )
        await wire.send(request(b"", kind, length, path=b"/v1/files") + first)
        await asyncio.wait_for(seen.wait(), 5)
        await wire.send(second)
        assert (await wire.message()).body == b'{"id":"file-1"}'
        row = await gateway.row()
        assert (row.complete, row.truncated, row.request) == (True, True, b"")
        wire.close()


@pytest.mark.parametrize("kind", [b"application/json", b"application/octet-stream"])
@story
async def test_a_chunked_body_stays_chunked(tmp_path: Path, kind: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        chunks = chunk(CHAT[:10]) + chunk(CHAT[10:]) + b"0\r\nX-Trailer: 1\r\n\r\n"
        sent = request(b"", b"Content-Type: " + kind, b"Transfer-Encoding: chunked") + chunks
        assert (await gateway.ask(sent)).status == 200
        assert up.requests[0].chunked
        assert up.requests[0].body == CHAT
        assert b"content-length" not in up.requests[0].names


@story
async def test_compressed_bodies_pass_as_they_are_and_are_read_for_the_record(tmp_path: Path) -> None:
    packed = gzip.compress(ANSWER)
    back = response(packed, b"Content-Encoding: gzip")
    async with upstream(answering(back)) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT, b"Accept-Encoding: gzip"))
        assert answer.body == packed
        assert up.requests[0].header(b"accept-encoding") == b"gzip"
        row = await gateway.row()
        assert (row.response, row.response_headers["content-encoding"]) == (packed, "gzip")
        assert (row.input_tokens, row.output_tokens, row.usage_source) == (9, 2, "upstream")


@story
async def test_each_event_of_a_stream_leaves_before_the_next_one_is_made(tmp_path: Path) -> None:
    received = [asyncio.Event() for _ in EVENTS]

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(HEAD)
        for event, got in zip(EVENTS, received, strict=True):
            await wire.send(chunk(event))
            await asyncio.wait_for(got.wait(), 5)  # until the client has it, the next one does not exist
        await wire.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        await wire.until(b"\r\n\r\n")
        for event, got in zip(EVENTS, received, strict=True):
            assert await wire.read(len(chunk(event))) == chunk(event)
            got.set()
        assert await wire.until(b"0\r\n\r\n") == chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        row = await gateway.row()
        assert row.response == b"".join(EVENTS) + b"data: [DONE]\n\n"
        assert (row.streamed, row.complete) == (True, True)
        wire.close()


@story
async def test_a_stream_is_the_same_wherever_the_network_cuts_it(tmp_path: Path) -> None:
    """Every cut of the upstream's bytes, inside heads, chunk marks and UTF-8 sequences, gives the same stream."""
    body = b"".join(EVENTS[:2]) + b"data: [DONE]\n\n"
    whole = HEAD + chunk(EVENTS[0]) + chunk(EVENTS[1] + b"data: [DONE]\n\n") + b"0\r\n\r\n"
    cuts = iter(range(1, len(whole)))

    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            await told.asked(wire)
            cut = next(cuts)
            await wire.send(whole[:cut])
            await asyncio.sleep(0.001)
            await wire.send(whole[cut:])

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        for _ in range(1, len(whole)):
            await wire.send(request(CHAT))
            answer = await wire.message()
            assert (answer.status, answer.body, answer.complete) == (200, body, True)
        assert up.connections == 1  # kept alive and reused all the way
        assert {(row.response, row.complete) for row in gateway.rows()} == {(body, True)}
        wire.close()


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (b"401 Unauthorized", ()),
        (b"429 Too Many Requests", (b"Retry-After: 7", b"x-ratelimit-remaining-requests: 0")),
        (b"529 Overloaded", ()),
        (b"307 Temporary Redirect", (b"Location: http://elsewhere.test/v1/x",)),
        (b"500 Oh No", (b"Content-Type: text/html",)),
    ],
)
@story
async def test_an_error_of_the_upstream_is_relayed_as_it_is(
    tmp_path: Path, status: bytes, headers: tuple[bytes, ...]
) -> None:
    error = b'{"error":{"message":"no","type":"x","code":null}}'
    async with upstream(answering(response(error, *headers, status=status))) as up:
        async with relay(tmp_path, openai(up)) as gateway:
            answer = await gateway.ask(request(CHAT))
            assert (answer.start, answer.body) == (b"HTTP/1.1 " + status, error)
            assert answer.header(b"x-unprompt-error") is None
            for header in headers:
                name, _, value = header.partition(b": ")
                assert answer.header(name) == value
            row = await gateway.row()
            assert (row.status, row.complete, row.response) == (int(status[:3]), True, error)
            expected = {3: None, 4: "upstream_http_4xx", 5: "upstream_http_5xx"}[int(status[:1])]
            assert row.error_type == expected
        assert len(up.requests) == 1  # not followed, not repeated


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', b""),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"{}"), b"{}"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Type: text/a\r\nConnection: close\r\n\r\nto end", b"to end"),
        (b"GET", b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold", b"old"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n0\r\nT: 1\r\n\r\n", b"ab"),
    ],
)  # fmt: skip
@story
async def test_every_framing_keeps_its_meaning(tmp_path: Path, method: bytes, answer: bytes, body: bytes) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(answer)
        if b"close" not in answer and b"HTTP/1.0" not in answer:
            await asyncio.sleep(0.2)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(b"", method=method, path=b"/v1/models"))
        got = await wire.message(bodiless=method == b"HEAD" or b" 204" in answer or b" 304" in answer)
        assert (got.body, got.complete) == (body, True)
        assert got.status == int(answer.split(b"HTTP/1.")[-1].split(b" ")[1])
        if method == b"HEAD":
            assert got.header(b"content-length") == b"1234"
        row = await gateway.row()
        assert (row.complete, row.response) == (True, body)
        await wire.send(request(b"", method=b"GET", path=b"/healthz"))  # the connection is in order for another one
        assert (await wire.message()).json() == {"status": "alive"}
        wire.close()


@story
async def test_an_http_1_0_client_gets_a_plain_body_and_the_end_of_the_connection(tmp_path: Path) -> None:
    stream = HEAD + chunk(EVENTS[0]) + b"0\r\n\r\n"
    async with upstream(answering(stream)) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT)
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert body == EVENTS[0]
        assert b"transfer-encoding" not in head.lower()
        assert (await gateway.row()).complete


@story
async def test_expect_continue_is_answered_when_the_body_is_wanted(tmp_path: Path) -> None:
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, openai(up), server={"max_body_mb": 1}) as gateway,
    ):
        wire = await gateway.connect()
        head = request(
            b"", b"Content-Type: application/json", b"Expect: 100-continue", b"Content-Length: %d" % len(CHAT)
        )
        await wire.send(head)
        assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(CHAT)
        assert (await wire.message()).status == 200
        assert b"expect" not in up.requests[0].names
        await wire.send(
            request(b"", b"Content-Type: application/json", b"Expect: 100-continue", b"Content-Length: 2000000")
        )
        assert (await wire.message()).status == 413  # and no invitation to send it
        wire.close()


DONE = b"data: [DONE]\n\n"
AT_ONCE = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\nContent-Type: "
JSON_AT_ONCE = AT_ONCE + b"application/json\r\n\r\n" + chunk(ANSWER[:50]) + chunk(ANSWER[50:]) + b"0\r\n\r\n"
STREAM_AT_ONCE = AT_ONCE + b"text/event-stream\r\n\r\n" + b"".join(map(chunk, [*EVENTS, DONE])) + b"0\r\n\r\n"
TO_1_0 = b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT


@pytest.mark.parametrize(
    ("asked", "framing"),
    [
        (request(), b"\r\nTransfer-Encoding: chunked"),
        (request(CHAT, b"Connection: close"), b"\r\nTransfer-Encoding: chunked\r\nConnection: close"),
        (TO_1_0, b"\r\nConnection: close"),
    ],
)
@pytest.mark.parametrize(
    ("answer", "kind", "body"),
    [(JSON_AT_ONCE, b"application/json", ANSWER), (STREAM_AT_ONCE, b"text/event-stream", b"".join(EVENTS) + DONE)],
)
@story
async def test_an_answer_whose_chunks_came_at_once_leaves_as_one_chunk_however_it_was_read(
    tmp_path: Path, asked: bytes, framing: bytes, answer: bytes, kind: bytes, body: bytes
) -> None:
    """The first three by the parser, the others by their shape."""
    left = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Type: %b\r\nx-unprompt-exchange: ID" % kind
    left += b"\r\nx-unprompt-target: openai/gpt-6-luna whole%b\r\n\r\n" % framing
    left += chunk(body) + b"0\r\n\r\n" if b"chunked" in framing else body
    async with upstream(answering(answer)) as up, relay(tmp_path, openai(up)) as gateway:
        outer = gateway.app.house.upstreams["openai"]
        assert isinstance(outer, SelectiveUpstream)
        assert isinstance(outer.inner, HttpUpstream)
        for number in range(HEADS_TO_LEARN + 2):
            assert (outer.inner.shapes.read(answer) is not None) == (number >= HEADS_TO_LEARN)
            wire = await gateway.connect()
            await wire.send(asked)
            got = await (wire.until(b"\r\n0\r\n\r\n") if b"chunked" in framing else wire.rest())
            assert re.sub(rb"exchange: [^\r]+", b"exchange: ID", got) == left
            wire.close()
        rows = [(row.response, row.streamed, row.complete, row.output_tokens) for row in gateway.rows()]
        assert len(rows) == HEADS_TO_LEARN + 2
        assert set(rows) == {(body, kind != b"application/json", True, rows[0][3])}
        assert up.connections == 1
