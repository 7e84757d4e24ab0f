"""Cases 18 to 32: the upstream is not there, dies, stalls, or answers what nobody should answer."""

from __future__ import annotations

import asyncio
import json
import socket
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from relaying import CHAT, Upstream, Wire, answering, openai, relay, request, response, story, upstream

from faults.serving import DONE, EVENT, STREAM, chunk


def impatient(**seconds: float) -> list[dict[str, Any]]:
    """One route for everything, with these timeouts."""
    return [{"name": "impatient", "targets": [{"upstream": "openai"}], "timeouts": seconds}]


def reached_at(url: str) -> dict[str, Any]:
    return {"openai": {"protocol": "openai", "base_url": url}}


# --- no answer ----------------------------------------------------------------------------------------


@story
async def test_a_name_that_does_not_exist_gives_502(tmp_path: Path) -> None:
    async with relay(tmp_path, reached_at("http://no-such-host.invalid/v1")) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (502, b"upstream_unreachable")
        assert (await gateway.row()).error_type == "upstream_connect"


@story
async def test_an_upstream_that_speaks_no_tls_gives_502(tmp_path: Path) -> None:
    async def plain(told: Upstream, wire: Wire) -> None:
        await wire.some()
        await wire.send(b"HTTP/1.1 400 Plain\r\n\r\n")

    async with upstream(plain) as up, relay(tmp_path, reached_at(up.url.replace("http:", "https:"))) as gateway:
        answer = await gateway.ask(request(CHAT, b"Authorization: Bearer sk-secret-words"))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (502, b"upstream_unreachable")
        assert b"TLS" in answer.body
        assert b"sk-secret" not in gateway.everything_written()
        assert (await gateway.row()).error_type == "upstream_connect"


@story
async def test_a_door_that_never_opens_is_given_up(tmp_path: Path) -> None:
    with ExitStack() as sockets:
        door = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            knock = sockets.enter_context(socket.socket())
            knock.setblocking(False)
            knock.connect_ex(door.getsockname())
        url = f"http://127.0.0.1:{door.getsockname()[1]}/v1"
        async with relay(tmp_path, reached_at(url), routes=impatient(connect=0.3)) as gateway:
            started = asyncio.get_running_loop().time()
            answer = await gateway.ask(request(CHAT))
            assert asyncio.get_running_loop().time() - started < 3
            assert answer.status in (502, 504)
            assert answer.header(b"x-unprompt-error") in (b"upstream_unreachable", b"upstream_timeout")
            assert (await gateway.row()).error_type in ("upstream_connect", "upstream_timeout")


@pytest.mark.parametrize("death", ["refuses", "closes at once", "closes after reading", "says 503"])
@story
async def test_a_dead_target_is_fallen_back_from_with_the_same_request_and_both_are_logged(
    tmp_path: Path, death: str
) -> None:
    async def dying(told: Upstream, wire: Wire) -> None:
        if death == "closes at once":
            wire.reset()
            return
        await told.asked(wire)
        if death == "says 503":
            await wire.send(response(b"{}", status=b"503 Down"))

    async with upstream(dying) as dead, upstream(answering(response())) as home:
        if death == "refuses":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                dead.port = probe.getsockname()[1]
        routes = [{"name": "r", "targets": [{"upstream": "other"}], "fallback": {"upstream": "openai"}}]
        async with relay(tmp_path, openai(home) | {"other": openai(dead)["openai"]}, routes=routes) as gateway:
            answer = await gateway.ask(request(CHAT, b"Idempotency-Key: once-only-7"))
            assert (answer.status, answer.header(b"x-unprompt-target")) == (200, b"openai/gpt-6-luna whole")
            assert [(got.body, got.header(b"idempotency-key")) for got in home.requests] == [(CHAT, b"once-only-7")]
            row = await gateway.row()
            assert row.target == "openai/gpt-6-luna"
            assert len(row.attempts) == 1
            assert row.attempts[0].startswith("other/gpt-6-luna: ")


@story
async def test_one_that_dies_before_its_first_byte_is_asked_once(tmp_path: Path) -> None:
    async def dying(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        wire.reset()

    async with upstream(dying) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT, b"Idempotency-Key: once-only-7"))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (502, b"upstream_broken")
        assert len(up.requests) == 1  # a repeat is the client's to decide, with its own key
        row = await gateway.row()
        assert (row.complete, row.error_type, row.request) == (False, "upstream_truncated", CHAT)


# --- an answer that stops ------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [1, 4])
@story
async def test_a_stream_that_stalls_is_cut_and_flagged(tmp_path: Path, events: int) -> None:
    gone = asyncio.Event()

    async def stalling(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM)
        for _ in range(events):
            await wire.send(chunk(EVENT))
            await asyncio.sleep(0.1)
        if await wire.ends():
            gone.set()

    async with upstream(stalling) as up, relay(tmp_path, openai(up), routes=impatient(idle=0.4)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.body, answer.complete) == (200, EVENT * events, False)
        row = await gateway.row()
        assert (row.complete, row.error_type, row.response) == (False, "upstream_timeout", EVENT * events)
        await asyncio.wait_for(gone.wait(), 1)  # and it is not left running


@story
async def test_comments_are_signs_of_life(tmp_path: Path) -> None:
    """What `: ping` means is the provider's affair: any byte counts."""

    async def thinking(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM)
        for _ in range(8):
            await asyncio.sleep(0.15)
            await wire.send(chunk(b": ping\n\n"))
        await wire.send(chunk(EVENT + DONE) + b"0\r\n\r\n")

    async with upstream(thinking) as up, relay(tmp_path, openai(up), routes=impatient(idle=0.6)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.body, answer.complete) == (b": ping\n\n" * 8 + EVENT + DONE, True)
        assert (await gateway.row()).complete


@story
async def test_however_lively_an_answer_has_its_total_time(tmp_path: Path) -> None:
    async def endless(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM)
        while True:
            await wire.send(chunk(EVENT))
            await asyncio.sleep(0.05)

    async with upstream(endless) as up, relay(tmp_path, openai(up), routes=impatient(total=0.8)) as gateway:
        started = asyncio.get_running_loop().time()
        answer = await gateway.ask(request(CHAT))
        assert 0.7 < asyncio.get_running_loop().time() - started < 3
        assert not answer.complete
        row = await gateway.row()
        assert (row.complete, row.error_type) == (False, "upstream_timeout")
        assert row.response.startswith(EVENT * 3)


# --- an answer that is no answer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        response(b'{"error":{"message":"overloaded","code":500}}'),
        response(b"<html>gateway busy</html>", b"Content-Type: text/html"),
        STREAM + chunk(b'data: {"error":{"message":"overloaded"}}\n\n') + chunk(DONE) + b"0\r\n\r\n",
    ],
    ids=["JSON", "a web page", "a stream"],
)
@story
async def test_an_error_that_says_200_is_relayed_and_not_taken_for_an_answer(tmp_path: Path, answer: bytes) -> None:
    async with upstream(answering(answer)) as up, relay(tmp_path, openai(up)) as gateway:
        got = await gateway.ask(request(CHAT))
        assert got.status == 200
        assert got.header(b"x-unprompt-error") is None
        row = await gateway.row()
        assert (row.status, row.error_type) == (200, "other")  # a dataset takes rows without an error_type only
        assert 'outcome="other"' in await gateway.metrics()


ODD_HEADERS = {
    "300 headers": [b"X-%d: %d" % (number, number) for number in range(300)],
    "one of 60 KB": [b"X-Long: " + b"a" * 60_000],
    "no ASCII": [b"X-Name: caf\xc3\xa9 \xff\xfe"],
    "empty": [b"X-Empty:", b"X-Blank:   "],
    "one name often": [b"Set-Cookie: a=1", b"set-cookie: b=2", b"SET-COOKIE: c=3", b"Via: x", b"Via: y"],
    "odd names": [b"x_under: 1", b"X!#$%&'*+-.^_`|~9: 2", b"Date: yesterday"],
    "a length beside": [b"X-Content-Length: 7", b"Content-MD5: x"],
    "a cookie for all": [b"Set-Cookie: id=1; Domain=.test; Path=/"],
}


@pytest.mark.parametrize("name", ODD_HEADERS)
@story
async def test_odd_headers_of_an_answer_arrive(tmp_path: Path, name: str) -> None:
    headers = ODD_HEADERS[name]
    async with upstream(answering(response(b"{}", *headers))) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.body) == (200, b"{}")
        pairs = [tuple(part.strip() for part in header.split(b":", 1)) for header in headers]
        wanted = {pair[0].lower() for pair in pairs}
        assert [pair for pair in answer.headers if pair[0].lower() in wanted] == pairs
        again = await gateway.ask(request(CHAT))
        assert again.status == 200
        assert b"cookie" not in up.requests[1].names  # what one answer set, no later request brings
        assert len(gateway.rows()) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"<html>\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["length below zero", "length and chunks", "length beyond 64 bits", "NUL", "folded header", "odd status",
         "odd version", "no HTTP", "bad chunk"],
)  # fmt: skip
@story
async def test_an_answer_that_can_be_read_in_two_ways_gives_502_or_is_cut(tmp_path: Path, answer: bytes) -> None:
    async with upstream(answering(answer)) as up, relay(tmp_path, openai(up)) as gateway:
        got = await gateway.ask(request(CHAT))
        if got.status == 200:  # the head had passed before the fault came
            assert not got.complete
        else:
            assert (got.status, got.header(b"x-unprompt-error")) == (502, b"upstream_broken")
            assert got.json()["error"]["type"] == "server_error"
        row = await gateway.row()
        assert (row.complete, row.error_type) == (False, "upstream_truncated")


@story
async def test_an_answer_without_a_reason_phrase_is_one(tmp_path: Path) -> None:
    bare = b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}"
    odd = b"HTTP/1.1 299 \xc3\xa9tat\r\nContent-Length: 2\r\n\r\n{}"
    async with upstream(answering(bare, odd)) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        for status in (200, 299):
            await wire.send(request(CHAT))
            answer = await wire.message()
            assert (answer.status, answer.body, answer.complete) == (status, b"{}", True)
        wire.close()


# --- streams ------------------------------------------------------------------------------------------------

ODD_STREAMS = {
    "CR LF": b'data: {"n":1}\r\n\r\ndata: {"n":2}\r\n\r\ndata: [DONE]\r\n\r\n',
    "CR alone": b'data: {"n":1}\r\rdata: {"n":2}\r\rdata: [DONE]\r\r',
    "comments and fields": b': hi\n\nevent: e\nid: 7\nretry: 10\ndata: {"n":1}\n\ndata: [DONE]\n\n',
    "many lines": b'data: {"n":\ndata: 1}\n\ndata: [DONE]\n\n',
    "no space": b'data:{"n":1}\n\ndata:[DONE]\n\n',
    "empty data": b'data\n\ndata:\n\ndata: {"n":1}\n\ndata: [DONE]\n\n',
    "no DONE": b'data: {"n":1}\n\n',
    "DONE twice": b'data: {"n":1}\n\ndata: [DONE]\n\ndata: [DONE]\n\n',
    "no last blank line": b'data: {"n":1}\n\ndata: [DONE]',
    "byte order mark": b'\xef\xbb\xbfdata: {"n":1}\n\ndata: [DONE]\n\n',
    "no UTF-8": b'data: {"t":"\xff\xfe\xed\xa0\x80"}\n\ndata: [DONE]\n\n',
    "UTF-8": 'data: {"t":"é漢🎈"}\n\ndata: [DONE]\n\n'.encode(),
    "nothing": b"",
    "no events at all": b"<html>\n\n</html>",
}


@pytest.mark.parametrize("name", ODD_STREAMS)
@story
async def test_a_stream_is_relayed_and_recorded_byte_for_byte_however_it_is_cut(tmp_path: Path, name: str) -> None:
    """First in one piece, then one byte at a time: the client, the row and what is read of it are the same."""
    body = ODD_STREAMS[name]
    singly = b"".join(chunk(body[at : at + 1]) for at in range(len(body))) + b"0\r\n\r\n"
    whole = (chunk(body) if body else b"") + b"0\r\n\r\n"

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + whole)
        await told.asked(wire)
        await wire.send(STREAM)
        for at in range(0, len(singly), 3):
            await wire.send(singly[at : at + 3])
            await asyncio.sleep(0)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        answers = [await gateway.ask(request(CHAT)) for _ in range(2)]
        assert [(answer.body, answer.complete) for answer in answers] == [(body, True)] * 2
        first, second = gateway.rows()
        assert first.response == second.response == body
        assert (first.complete, first.finish_reason) == (second.complete, second.finish_reason)
        assert (first.input_tokens, first.usage_source) == (second.input_tokens, second.usage_source)


@story
async def test_a_line_of_ten_megabytes_passes(tmp_path: Path) -> None:
    line = b'data: {"t":"' + b"x" * 10_000_000 + b'"}\n\n'
    stream = STREAM + chunk(line) + chunk(DONE) + b"0\r\n\r\n"
    async with upstream(answering(stream)) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert answer.complete
        assert answer.body == line + DONE
        row = await gateway.row()
        assert row.response == line + DONE
        assert row.complete


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TEXT = event(choices=[{"index": 0, "delta": {"content": "hi"}}], usage=None)
USED = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


@pytest.mark.parametrize(
    ("events", "counted"),
    [
        ([TEXT, event(choices=[], usage=USED)], (9, 4, 2)),
        ([event(choices=[{"index": 0, "delta": {"content": "hi"}}], usage=USED)], (9, 4, 2)),
        ([event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 1}), TEXT,
          event(choices=[], usage=USED)], (9, 4, 2)),
        ([event(choices=[], usage=USED), TEXT], (9, 4, 2)),
        ([TEXT, TEXT], None),
    ],
    ids=["null until the last", "beside choices", "twice: the last", "then null again", "absent"],
)  # fmt: skip
@story
async def test_usage_is_the_last_that_is_not_null(
    tmp_path: Path, events: list[bytes], counted: tuple[int, int, int] | None
) -> None:
    stream = STREAM + b"".join(chunk(each) for each in events) + chunk(DONE) + b"0\r\n\r\n"
    async with upstream(answering(stream)) as up, relay(tmp_path, openai(up)) as gateway:
        await gateway.ask(request(CHAT))
        row = await gateway.row()
        assert row.usage_source == ("estimated" if counted is None else "upstream")
        if counted is not None:
            assert (row.input_tokens, row.cached_tokens, row.output_tokens) == counted
        else:
            assert 'unprompt_usage_missing_total{source="estimated"} 1.0' in await gateway.metrics()


def packer(coding: str) -> tuple[Callable[[bytes], bytes], Callable[[], bytes]]:
    """Packs piece by piece, each so that it can be unpacked when it arrives; and the end."""
    if coding == "br":
        brotlied = brotli.Compressor()
        return lambda data: brotlied.process(data) + brotlied.flush(), brotlied.finish
    if coding == "zstd":
        zstd = zstandard.ZstdCompressor().compressobj()
        block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return lambda data: zstd.compress(data) + zstd.flush(block), zstd.flush
    deflate = zlib.compressobj(wbits=31 if coding == "gzip" else 15)
    return lambda data: deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH), deflate.flush


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
@story
async def test_a_compressed_stream_leaves_piece_by_piece_as_it_came(tmp_path: Path, coding: str) -> None:
    pack, end = packer(coding)
    pieces = [pack(EVENT), pack(event(choices=[], usage=USED)), pack(DONE) + end()]
    taken = [asyncio.Event() for _ in pieces]
    head = STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: " + coding.encode() + b"\r\n\r\n")

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(head)
        for piece, seen in zip(pieces, taken, strict=True):
            await wire.send(chunk(piece))
            await asyncio.wait_for(seen.wait(), 5)  # the next one is not made before this one has arrived
        await wire.send(b"0\r\n\r\n")

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT, b"Accept-Encoding: " + coding.encode()))
        await wire.until(b"\r\n\r\n")
        for piece, seen in zip(pieces, taken, strict=True):
            assert await wire.read(len(chunk(piece))) == chunk(piece)
            seen.set()
        assert await wire.until(b"0\r\n\r\n")
        row = await gateway.row()
        assert (row.response, row.response_headers["content-encoding"]) == (b"".join(pieces), coding)
        assert (row.input_tokens, row.output_tokens, row.complete) == (9, 2, True)
        wire.close()


@story
async def test_another_model_than_the_one_asked_for_is_noted_beside_it(tmp_path: Path) -> None:
    other = b'{"model":"gpt-6-luna-2026-01-01","choices":[],"system_fingerprint":"fp_2"}'
    async with upstream(answering(response(other))) as up, relay(tmp_path, openai(up)) as gateway:
        await gateway.ask(request(CHAT))
        row = await gateway.row()
        assert (row.model_requested, row.model_served) == ("gpt-6-luna", "gpt-6-luna-2026-01-01")
        assert b"fp_2" in row.response
