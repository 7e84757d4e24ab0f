"""A head that was met before means the same again: whatever came between, and however its bytes arrive."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from relaying import ANSWER, CHAT, Upstream, Wire, answering, openai, relay, request, response, story, upstream

H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
"""What Java's own HTTP client sends with each request to an `http://` address."""

HEADS = [
    (b"POST", b"/v1/chat/completions", (b"X-App: one",)),
    (b"POST", b"/v1/chat/completions", (b"X-App: two",)),
    (b"POST", b"/v1/files", (b"X-Length: 7", b"Content-Type: application/octet-stream")),
    (b"PUT", b"/v1/x?Content-Length: 5", ()),
    (b"GET", b"/v1/models", ()),
    (b"POST", b"/v1/chat/completions", (b"content-length: %d", b"X-App: three")),
    (b"POST", b"/v1/chat/completions", (b"X-Note: Content-Length: 3", b"Content-Length: %d")),
]


def as_bytes(which: int, body: bytes) -> bytes:
    """One request with one of the heads above."""
    method, path, headers = HEADS[which]
    headers = tuple(header.replace(b"%d", b"%d" % len(body)) for header in headers)
    return request(b"" if method == b"GET" else body, *headers, method=method, path=path.replace(b" ", b"%20"))


async def ask_in_pieces(home: Path, asked: list[tuple[int, bytes]], cuts: list[int]) -> Upstream:
    """All of them one after the other on one connection, each cut where `cuts` say."""
    async with upstream(answering(response())) as told, relay(home, openai(told)) as gateway:
        wire = await gateway.connect()
        for number, (which, body) in enumerate(asked):
            sent = as_bytes(which, body)
            cut = cuts[number % len(cuts)] % len(sent)
            await wire.send(sent[:cut])
            await asyncio.sleep(0.001)
            await wire.send(sent[cut:])
            answer = await wire.message()
            assert (answer.status, answer.body) == (200, ANSWER)
        wire.close()
    return told


@given(
    asked=some.lists(
        some.tuples(some.integers(0, len(HEADS) - 1), some.binary(max_size=40)), min_size=2, max_size=8
    ),
    cuts=some.lists(some.integers(0, 400), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_heads_met_again_bring_each_request_its_own_body(asked: list[tuple[int, bytes]], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as home:
        told = uvloop.run(ask_in_pieces(Path(home), asked, cuts))
    sent = [(HEADS[which][0], b"" if HEADS[which][0] == b"GET" else body) for which, body in asked]
    assert [(one.start.split(b" ")[0], one.body) for one in told.requests] == sent
    apps = [next((h[7:] for h in HEADS[which][2] if h.startswith(b"X-App: ")), None) for which, _ in asked]
    assert [one.header(b"x-app") for one in told.requests] == apps


@story
async def test_our_own_pages_answer_after_somebody_asked_for_them_behind_another_request(tmp_path: Path) -> None:
    probe = request(b"", b"User-Agent: probe", method=b"GET", path=b"/healthz")

    async def slow(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await asyncio.sleep(0.3)
        await wire.send(response())

    async with upstream(slow) as told, relay(tmp_path, openai(told)) as gateway:
        wire = await gateway.connect()
        await wire.send(request())
        await asyncio.sleep(0.1)
        await wire.send(probe)  # while the first is being answered: it is no page of ours here
        assert [(await wire.message()).status, (await wire.message()).status] == [200, 404]
        assert (await gateway.ask(probe)).status == 200


@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@story
async def test_an_offer_to_upgrade_leaves_the_body_where_it_belongs(
    tmp_path: Path, framing: str, again: int
) -> None:
    smuggled = request(CHAT, path=b"/v1/smuggled")
    headers: tuple[bytes, ...] = H2C
    sent = smuggled
    if framing == "chunked":
        headers, sent = (*H2C, b"Transfer-Encoding: chunked"), b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)
    async with upstream(answering(response())) as told, relay(tmp_path, openai(told)) as gateway:
        wire = await gateway.connect()
        for _ in range(again):
            await wire.send(request(sent, *headers))
            assert (await wire.message()).body == ANSWER
        wire.close()
    assert [(one.start, one.body) for one in told.requests] == [
        (b"POST /v1/chat/completions HTTP/1.1", smuggled)
    ] * again
    assert {b"upgrade", b"http2-settings"}.isdisjoint(told.requests[0].names)
