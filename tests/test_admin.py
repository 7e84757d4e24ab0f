"""Our own pages: open on loopback, with a token from elsewhere, and never in the way of traffic."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from relaying import CHAT, Wire, answering, openai, relay, request, response, story, upstream

import gateway.app
from gateway import admin

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@story
async def test_pages_and_traffic_share_a_port(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        assert (await wire.message()).status == 200
        await wire.send(request(b"", method=b"GET", path=b"/readyz"))  # the same connection goes on to a page
        assert (await wire.message()).json() == {"status": "ready", "reasons": []}
        assert await wire.rest() == b""  # a page ends it: the next request could be one to relay
        slow = await gateway.connect()
        for byte in b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n":  # recognised however slowly it comes
            await slow.send(bytes([byte]))
        assert (await slow.message()).json() == {"status": "alive"}
        for path in (b"/metricsx", b"/unprompting", b"/health"):
            assert (await gateway.ask(request(b"", method=b"GET", path=path))).header(
                b"x-unprompt-error"
            ) == b"unknown_path"
        assert len(up.requests) == 1


@story
async def test_readiness_tells_that_the_journal_cannot_be_written(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        journal = gateway.app.places.journal
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text("a file where the folder should be")
        assert (await gateway.ask(request(CHAT))).status == 200  # fail_open: traffic first
        answer = await gateway.get(b"/readyz")
        assert (answer.status, answer.json()["reasons"]) == (503, ["the journal cannot be written"])
        assert 'unprompt_log_records_total{result="spooled"} 2.0' in await gateway.metrics()
        journal.unlink()
        assert (await gateway.ask(request(CHAT))).status == 200
        assert (await gateway.get(b"/readyz")).status == 200  # recovered by itself
        assert [row.complete for row in gateway.rows()] == [True, True]


@story
async def test_readiness_tells_that_records_are_not_moved_while_serving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.app, "LAG_SECONDS", 0.3)
    monkeypatch.setattr(gateway.app, "DOWN_SECONDS", 0.2)
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as served:
        assert (await served.ask(request(CHAT))).status == 200
        await asyncio.sleep(0.5)  # nobody moves it: there is no worker here
        answer = await served.get(b"/readyz")
        assert answer.status == 503
        assert answer.json()["reasons"][0].startswith("records are not moved into the store: it is ")
        assert (await served.ask(request(CHAT))).status == 200  # traffic first
        assert len(served.rows()) == 2  # moved
        assert (await served.get(b"/readyz")).status == 200
        served.app.metrics.writer(False)
        assert (await served.get(b"/readyz")).status == 200  # it may be back in a moment
        await asyncio.sleep(0.3)
        reasons = (await served.get(b"/readyz")).json()["reasons"]
        assert reasons == ["records are not moved into the store: its process ended 0 s ago"]
        served.app.metrics.writer(True)
        assert (await served.get(b"/readyz")).status == 200


@story
async def test_fail_closed_answers_503_before_anybody_is_asked(tmp_path: Path) -> None:
    closed = {"on_failure": "fail_closed"}
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), capture=closed) as gateway:
        journal = gateway.app.places.journal
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text("a file where the folder should be")
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (503, b"store_unavailable")
        assert answer.json()["error"]["type"] == "service_unavailable_error"
        assert str(tmp_path) not in answer.body.decode()  # a client need not know our paths
        assert up.requests == []
        journal.unlink()
        assert (await gateway.ask(request(CHAT))).status == 200
        assert len(gateway.rows()) == 1


@web.middleware
async def from_far_away(request: web.Request, handler: Handler) -> web.StreamResponse:
    """As if the connection had come from another machine."""
    return await handler(request.clone(remote="203.0.113.9"))


@contextlib.asynccontextmanager
async def seen_from_far_away(token: str | None) -> AsyncIterator[Wire]:
    app = admin.application(lambda: [b"numbers", b" 1\n"], list, token)
    app.middlewares.insert(0, from_far_away)
    async with TestServer(app) as server:
        yield Wire(*await asyncio.open_connection("127.0.0.1", server.port))


@pytest.mark.parametrize(
    ("given", "status"),
    [(b"X: y", 403), (b"Authorization: Bearer wrong", 403), (b"Authorization: Bearer \xff\xfe", 403),
     (b"Authorization: Basic t0ken", 403), (b"Authorization: Bearer t0ken", 200)],
)  # fmt: skip
@story
async def test_from_elsewhere_a_token_is_needed(given: bytes, status: int) -> None:
    async with seen_from_far_away("t0ken") as wire:
        await wire.send(request(b"", given, method=b"GET", path=b"/metrics"))
        answer = await wire.message()
        assert answer.status == status
        assert (answer.body == b"numbers 1\n") is (status == 200)


@pytest.mark.parametrize("token", [None, ""])
@story
async def test_without_a_token_set_nobody_comes_in_from_elsewhere(token: str | None) -> None:
    async with seen_from_far_away(token) as wire:
        await wire.send(request(b"", b"Authorization: Bearer ", method=b"GET", path=b"/metrics"))
        answer = await wire.message()
        assert (answer.status, answer.json()["error"]["code"]) == (403, "forbidden")
    async with seen_from_far_away(token) as wire:
        await wire.send(request(b"", method=b"GET", path=b"/healthz"))
        assert (await wire.message()).status == 200  # a load balancer may ask


@story
async def test_pages_answer_in_full(tmp_path: Path) -> None:
    app = admin.application(lambda: [b"numbers", b" 1\n"], lambda: ["tired"], None)
    async with TestClient(TestServer(app)) as client:
        metrics = await client.get("/metrics")
        assert (await metrics.read(), metrics.headers["Content-Type"]) == (
            b"numbers 1\n", "text/plain; version=0.0.4; charset=utf-8",
        )  # fmt: skip
        ready = await client.get("/readyz")
        assert (ready.status, (await ready.json())["reasons"]) == (503, ["tired"])
        missing = await client.get("/unprompt/x")
        assert (missing.status, missing.headers["x-unprompt-error"]) == (404, "unknown_path")
