"""Cases 1 to 17: what arrives is broken, hostile or odd. What cannot be understood in one way only is refused
before anybody is asked; everything else passes as it is."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from pathlib import Path

import brotli
import pytest
import zstandard
from relaying import (
    CHAT,
    Message,
    Relay,
    Upstream,
    Wire,
    answering,
    openai,
    relay,
    request,
    response,
    story,
    upstream,
)  # fmt: skip

from faults.serving import chunk, serving

POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

SMUGGLING = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "one length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
    "length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "length below zero": POST + b"Content-Length: -2\r\n\r\n{}",
    "length in hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "list of lengths": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length with a space in it": POST + b"Content-Length: 1 2\r\n\r\n{}",
    "length as Python reads it": POST + b"Content-Length: 1_0\r\n\r\n{}0123456",
    "length in other digits": POST + b"Content-Length: \xd9\xa2\r\n\r\n{}",
    "no length at all": POST + b"Content-Length: \r\n\r\n",
    "length beyond 64 bits": POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "space before the length's colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "space before the coding's colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked, then gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "almost chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and identity": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked, chunked": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "quoted coding": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "empty coding": POST + b"Transfer-Encoding: \r\n\r\n0\r\n\r\n",
    "folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunk size of letters": CHUNKED + b"zz\r\n",
    "chunk size below zero": CHUNKED + b"-1\r\n",
    "chunk size with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "space before a chunk size": CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n",
    "space after a chunk size": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"fffffffffffffffff\r\n",
    "chunk size that wraps round to 2": CHUNKED + b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "bare LF after a chunk size": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "chunk longer than it says": CHUNKED + b"2\r\n{}abc\r\n0\r\n\r\n",
    "bare LF after a chunk": CHUNKED + b"2\r\n{}\n0\r\n\r\n",
    "bare LF in a chunk extension": CHUNKED + b"2;a\nb\r\n{}\r\n0\r\n\r\n",
    "bare CR in a chunk extension": CHUNKED + b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "NUL in a chunk extension": CHUNKED + b"2;a\x00b\r\n{}\r\n0\r\n\r\n",
    "folded header": POST + b"X: a\r\n b\r\n\r\n",
    "NUL in a value": POST + b"X: a\x00b\r\n\r\n",
    "NUL in a name": POST + b"X\x00Y: ab\r\n\r\n",
    "CR in a value": POST + b"X: a\rb\r\n\r\n",
    "LF in a value": POST + b"X: a\nY: b\r\n\r\n",
    "bare LFs all over": b"POST /v1/x HTTP/1.1\nHost: a\n\n",
    "space in a name": POST + b"X Y: b\r\n\r\n",
    "no colon": POST + b"XY\r\n\r\n",
    "no name": POST + b": x\r\n\r\n",
    "space before the first header": b"POST /v1/x HTTP/1.1\r\n Host: a\r\n\r\n",
    "tabs for spaces": b"GET\t/v1/x\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "version 1.9": b"GET /v1/x HTTP/1.9\r\nHost: a\r\n\r\n",
    "control byte in the path": b"GET /v1/\x01x HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw UTF-8 in the path": b"GET /v1/\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40,
    "every byte there is": bytes(range(256)),
}


async def fate(gateway: Relay, attack: bytes) -> tuple[int, bool]:
    """The status that an attack gets, and whether its connection ends though a good request follows."""
    wire = await gateway.connect()
    await wire.send(attack)
    status = int((await wire.until(b"\r\n")).split(b" ")[1])
    await wire.send(request(CHAT))
    ended = await wire.ends(0.5 if status == 200 else 5)
    wire.close()
    return status, ended


@story
async def test_what_can_be_read_in_two_ways_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        fates = await asyncio.gather(*(fate(gateway, attack) for attack in SMUGGLING.values()))
        assert dict(zip(SMUGGLING, fates, strict=True)) == dict.fromkeys(SMUGGLING, (400, True))
        assert up.connections == 0
        assert (await gateway.ask(request(CHAT))).status == 200  # and everybody else is served


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="gzip, then chunked"),
        pytest.param(
            b"POST /v1/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="chunks in HTTP 1.0"
        ),
        pytest.param(b"GET /v1/x\r\n\r\n", id="HTTP 0.9"),
        pytest.param(b"GET /v1/x HTTP/2.0\r\nHost: a\r\n\r\n", id="HTTP 2.0"),
        pytest.param(b"CONNECT /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", id="CONNECT"),
        pytest.param(b"TRACE /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", id="TRACE"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", id="two Hosts"),
    ],
)
@story
async def test_what_http_11_forbids_is_refused(tmp_path: Path, attack: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        status, ended = await fate(gateway, attack)
        assert status in (400, 405, 501, 505)
        assert ended
        assert up.connections == 0


@story
async def test_a_tunnel_to_somewhere_is_not_made(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        place = up.url.removeprefix("http://").removesuffix("/v1").encode()
        answer = await gateway.ask(b"CONNECT " + place + b" HTTP/1.1\r\nHost: " + place + b"\r\n\r\n")
        assert answer.status == 400
        assert up.connections == 0


# --- paths and hosts ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [
    b"//evil.test/v1/x", b"/v1/../admin", b"/v1/%2e%2e/admin", b"/v1/%2E./admin", b"/v1/.%2e%2fadmin",
    b"ftp://evil.test/v1/x", b"/v1/a/..%5cadmin", b"/v1\\..\\admin", b"/v1/%00", b"/v1/..", b"/openai/../../admin",
    b"@evil.test", b"http://evil.test/v1/../admin", b"http://evil.test", b"*", b"/v2", b"/",
])  # fmt: skip
@story
async def test_no_path_leads_out_of_the_providers_prefix(tmp_path: Path, path: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT, path=path))
        assert answer.status in (400, 404)
        assert answer.header(b"x-unprompt-error") in (b"bad_request", b"unknown_path")
        assert up.connections == 0


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        (b"http://evil.test/v1/x", b"/v1/x"),
        (b"http://user:word@evil.test:99/v1/x?y=1", b"/v1/x?y=1"),
        (b"HTTPS://evil.test/v1/x", b"/v1/x"),
        (b"/v1//evil.test/x", b"/v1//evil.test/x"),
        (b"/v1/a%2fb/%0d%0aX:y", b"/v1/a%2fb/%0d%0aX:y"),
        (b"/v1/%252e%252e/x", b"/v1/%252e%252e/x"),
        (b"/v1/x?next=../../admin&u=http://evil.test", b"/v1/x?next=../../admin&u=http://evil.test"),
    ],
)
@story
async def test_what_stays_inside_keeps_its_bytes_and_its_upstream(tmp_path: Path, path: bytes, seen: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        assert (await gateway.ask(request(b"", method=b"GET", path=path))).status == 200
        assert up.requests[0].start == b"GET " + seen + b" HTTP/1.1"
        assert up.requests[0].header(b"host") == f"127.0.0.1:{up.port}".encode()


@story
async def test_a_false_host_goes_nowhere_and_no_forwarding_header_is_made_up(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        await gateway.ask(request(CHAT).replace(b"Host: gateway", b"Host: evil.test"))
        await gateway.ask(request(CHAT, b"X-Forwarded-For: 203.0.113.9", b"Forwarded: for=203.0.113.9"))
        first, second = up.requests
        place = f"127.0.0.1:{up.port}".encode()
        assert [got.names.count(b"host") for got in up.requests] == [1, 1]
        assert [got.header(b"host") for got in up.requests] == [place, place]
        assert b"evil" not in first.head
        assert first.names == [b"host", b"content-type", b"content-length"]
        assert second.header(b"x-forwarded-for") == b"203.0.113.9"  # the client's own words pass, ours are none
        assert second.header(b"forwarded") == b"for=203.0.113.9"


@story
async def test_browsers_get_no_permission_from_us(tmp_path: Path) -> None:
    allowed = response(b"", b"Access-Control-Allow-Origin: https://app.test", status=b"204 No Content")
    async with (
        upstream(answering(response(), allowed.replace(b"Content-Length: 0\r\n", b""))) as up,
        relay(tmp_path, openai(up)) as gateway,
    ):
        asked = request(
            b"", b"Origin: https://evil.test", b"Access-Control-Request-Method: POST", method=b"OPTIONS",
            path=b"/v1/chat/completions",
        )  # fmt: skip
        wire = await gateway.connect()
        await wire.send(asked)
        answer = await wire.message()
        assert [name for name in answer.names if name.startswith(b"access-control")] == []
        await wire.send(asked)
        second = await wire.message(bodiless=True)
        assert (
            second.header(b"access-control-allow-origin") == b"https://app.test"
        )  # what the upstream says, passes
        assert [got.start for got in up.requests] == [b"OPTIONS /v1/chat/completions HTTP/1.1"] * 2
        wire.close()


# --- heads -------------------------------------------------------------------------------------------


@story
async def test_many_headers_and_long_ones_pass_until_they_are_too_much(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        many = [b"X-%d: %d" % (number, number) for number in range(400)]
        assert (await gateway.ask(request(CHAT, *many))).status == 200
        assert [b"%b: %b" % pair for pair in up.requests[0].headers if pair[0].startswith(b"X-")] == many
        assert (await gateway.ask(request(CHAT, b"X: " + b"a" * 9_000))).status == 200
        assert len(up.requests[1].header(b"x") or b"") == 9_000
        answer = await endless_head(gateway)
        assert (answer.status, answer.header(b"x-unprompt-error")) == (431, b"bad_request")
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert len(up.requests) == 2


async def endless_head(gateway: Relay) -> Message:
    """The answer to a head that comes in many pieces and has no end."""
    wire = await gateway.connect()
    await wire.send(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n")
    for _ in range(40):
        await wire.send(b"X: " + b"a" * 4_000 + b"\r\n")
        await asyncio.sleep(0.002)
    answer = await wire.message()
    wire.close()
    return answer


@story
async def test_a_head_of_a_hundred_kilobytes_is_too_much_however_it_comes(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        assert (await gateway.ask(request(CHAT, b"X: " + b"a" * 100_000))).status == 431
        assert up.connections == 0


# --- bodies ------------------------------------------------------------------------------------------

ODD_BODIES = {
    "no JSON": b"{this is no JSON",
    "nothing but a number": b"7",
    "empty object": b"{}",
    "deep": b'{"model":"m","messages":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "a number of 5,000 digits": b'{"model":"m","seed":' + b"9" * 5_000 + b"}",
    "beyond 64 bits": b'{"model":"m","seed":18446744073709551616,"max_tokens":1e999}',
    "one key twice": b'{"model":"m","model":"n","messages":[],"messages":[]}',
    "NaN": b'{"model":"m","temperature":NaN,"top_p":-Infinity}',
    "lone surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "lone surrogate as the model": b'{"model":"\\ud800","messages":[]}',
    "NUL": b'{"model":"m\\u0000","user":"\x00"}',
    "byte order mark": b"\xef\xbb\xbf" + CHAT,
    "no UTF-8": b'{"model":"\xff\xfe","messages":[]}',
    "UTF-16": CHAT.decode().encode("utf-16"),
    "model that is no text": b'{"model":["m"],"messages":{},"stream":"yes"}',
    "messages of wrong kinds": b'{"model":"m","messages":[1,null,{"role":7,"content":{"a":[]}}]}',
    "spaces only": b"   \r\n\t ",
}


@story
async def test_odd_bodies_reach_the_upstream_and_the_store_byte_for_byte(tmp_path: Path) -> None:
    no = response(b'{"error":"odd"}', status=b"400 Bad")
    async with upstream(answering(no)) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        for body in ODD_BODIES.values():
            await wire.send(request(body))
            assert (await wire.message()).start == b"HTTP/1.1 400 Bad"  # the upstream's opinion, not ours
        wire.close()
        sent = list(ODD_BODIES.values())
        assert [got.body for got in up.requests] == sent
        rows = gateway.rows()
        assert [row.request for row in rows] == sent
        assert {(row.complete, row.status) for row in rows} == {(True, 400)}
        counted = [line for line in (await gateway.metrics()).splitlines() if 'result="poison"' in line]
        assert [line for line in counted if not line.endswith(" 0.0")] == []


def packed(coding: str, plain: bytes) -> bytes:
    pack = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress, "deflate": zlib.compress}
    done: bytes = pack[coding](plain)
    return done


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
@pytest.mark.parametrize("key", [(), (b"Authorization: Bearer sk-some-key",)], ids=["no key", "a key"])
@story
async def test_a_compressed_request_passes_as_it_is(tmp_path: Path, coding: str, key: tuple[bytes, ...]) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        body = packed(coding, CHAT)
        assert (await gateway.ask(request(body, b"Content-Encoding: " + coding.encode(), *key))).status == 200
        assert up.requests[0].body == body
        assert up.requests[0].header(b"content-encoding") == coding.encode()
        row = await gateway.row()
        assert (row.request, row.request_headers["content-encoding"]) == (body, coding)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
@story
async def test_a_bomb_passes_and_explodes_nowhere(tmp_path: Path, coding: str) -> None:
    """200 MB of spaces behind some kilobytes: relayed as they are, never unpacked whole."""
    bomb = packed(coding, b" " * 200_000_000)
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        asked = request(bomb, b"Content-Encoding: " + coding.encode(), b"Authorization: Bearer sk-some-key")
        started = asyncio.get_running_loop().time()
        assert (await gateway.ask(asked)).status == 200
        assert asyncio.get_running_loop().time() - started < 3
        assert up.requests[0].body == bomb
        row = await gateway.row()
        assert row.complete
        assert len(row.request) <= len(bomb)


@story
async def test_an_upload_of_many_chunks_with_extensions_and_trailers_is_one_body(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "é" * 300}]}).encode()
        cut = b"".join(b"%x;name=%d\r\n%b\r\n" % (1, at, body[at : at + 1]) for at in range(len(body)))
        head = request(b"", b"Content-Type: application/json", b"Transfer-Encoding: CHUNKED")
        assert (await gateway.ask(head + cut + b"0\r\nX-Trailer: gone\r\n\r\n")).status == 200
        assert up.requests[0].body == body
        assert b"trailer" not in up.requests[0].head.lower()
        assert (await gateway.row()).request == body


@story
async def test_two_hundred_pipelined_requests_keep_their_order_and_their_rows(tmp_path: Path) -> None:
    async def echo(told: Upstream, wire: Wire) -> None:
        while True:
            asked = await told.asked(wire)
            await asyncio.sleep(0.002 if asked.body.endswith(b"7") else 0)
            await wire.send(response(b'{"answer":' + asked.body + b"}"))

    async with upstream(echo) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        sending = asyncio.create_task(wire.send(b"".join(request(b"%d" % number) for number in range(200))))
        answers = [await wire.message() for _ in range(200)]
        await sending
        wire.close()
        assert [answer.body for answer in answers] == [b'{"answer":%d}' % number for number in range(200)]
        rows = {row.id.encode(): (row.request, row.response) for row in gateway.rows()}
        assert [rows[answer.header(b"x-unprompt-exchange") or b""] for answer in answers] == [
            (b"%d" % number, b'{"answer":%d}' % number) for number in range(200)
        ]


@story
async def test_a_refusal_ends_only_its_own_connection_when_its_body_still_comes(tmp_path: Path) -> None:
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, openai(up), server={"max_body_mb": 1}) as gateway,
    ):
        large, other = await gateway.connect(), await gateway.connect()
        head = request(b"", b"Content-Type: application/json", b"Transfer-Encoding: chunked")
        await large.send(head + b"".join(chunk(b"x" * 100_000) for _ in range(12)))
        await other.send(request(CHAT))
        assert (await other.message()).status == 200
        assert (await large.message()).status == 413
        assert await large.ends(5)
        assert len(up.requests) == 1
        other.close()


@story
async def test_a_body_in_pieces_of_two_bytes_takes_no_more_memory_than_others(tmp_path: Path) -> None:
    """An object for each would take twenty times as much."""
    size = 6_000_000

    async with upstream(answering(response())) as up, serving(tmp_path, up) as served:
        assert (await served.ask(request(CHAT))).status == 200
        before = served.memory()
        wire = await served.connect()
        await wire.send(request(b"", b"Content-Type: application/json", b"Transfer-Encoding: chunked"))
        for _ in range(size // 20_000):
            await wire.send(b"2\r\nab\r\n" * 10_000)
        assert (await served.get(b"/healthz")).status == 200  # and all of it has come
        assert served.memory() - before < 60_000_000
        await wire.send(b"0\r\n\r\n")
        assert (await wire.message()).status == 200
        assert up.requests[-1].body == b"ab" * (size // 2)
        wire.close()
