"""What a route does for a request whose target fails, and what it does not: over real sockets, end to end."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

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

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
BUSY = response(b'{"error":{"message":"busy"}}', status=b"503 Service Unavailable")
UPLOAD = b"Content-Type: application/octet-stream"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def route(**said: Any) -> list[dict[str, Any]]:
    """One route for everything, to the only upstream unless it says otherwise."""
    return [{"name": "all", "targets": [{"upstream": "openai"}], **said}]


def retrying(**said: Any) -> list[dict[str, Any]]:
    return route(retry={"attempts": 3, "base_seconds": 0.01, **said})


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two(first: Upstream, second: Upstream) -> dict[str, Any]:
    return {"openai": {"base_url": first.url}, "spare": {"base_url": second.url}}


def nowhere_and(up: Upstream) -> dict[str, Any]:
    """`openai` is down, `spare` is up."""
    return {"openai": {"base_url": f"http://127.0.0.1:{closed_port()}/v1"}, "spare": {"base_url": up.url}}


# --- asking again ------------------------------------------------------------------------------------


@story
async def test_a_relay_that_is_not_told_to_never_asks_twice(tmp_path: Path) -> None:
    async with upstream(answering(BUSY)) as up, relay(tmp_path, openai(up), routes=route()) as gateway:
        assert (await gateway.ask(request(CHAT))).status == 503
        assert len(up.requests) == 1


@story
async def test_a_busy_upstream_is_asked_again_with_the_same_bytes_until_it_answers(tmp_path: Path) -> None:
    async with (
        upstream(answering(BUSY, BUSY, response())) as up,
        relay(tmp_path, openai(up), routes=retrying()) as gateway,
    ):
        answer = await gateway.ask(request(CHAT, b"Idempotency-Key: abc"))
        assert (answer.status, answer.body) == (200, ANSWER)
        assert [asked.body for asked in up.requests] == [CHAT] * 3
        assert [asked.header(b"idempotency-key") for asked in up.requests] == [b"abc"] * 3
        row = await gateway.row()
        assert (row.status, row.complete, row.attempts) == (200, True, ["openai/gpt-6-luna: http_503"] * 2)
        metrics = await gateway.metrics()
        assert 'unprompt_retries_total{route="all",reason="http_503"} 2.0' in metrics
        assert "unprompt_fallbacks_total{" not in metrics  # asking again is no fallback
        assert up.connections == 1  # the connection of a whole answer serves the next try


@story
async def test_the_last_failure_reaches_the_client_as_it_is(tmp_path: Path) -> None:
    async with upstream(answering(BUSY)) as up, relay(tmp_path, openai(up), routes=retrying()) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.json()) == (503, {"error": {"message": "busy"}})
        assert answer.header(b"x-unprompt-error") is None  # it is the upstream's own
        assert len(up.requests) == 3


@story
async def test_a_pause_is_as_long_as_the_upstream_asks_and_too_long_a_one_is_left_to_the_client(
    tmp_path: Path,
) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            asked = await told.asked(wire)
            hint = b"retry-after-ms: 200" if asked.body == b"1" else b"Retry-After: 60"
            first = [request.body for request in told.requests].count(asked.body) == 1
            await wire.send(response(b"{}", hint, status=b"429 Slow Down") if first else response())

    async with upstream(script) as up, relay(tmp_path, openai(up), routes=retrying()) as gateway:
        started = time.monotonic()
        assert (await gateway.ask(request(b"1"))).status == 200
        assert 0.2 <= time.monotonic() - started < 2
        answer = await gateway.ask(request(b"2"))
        assert (answer.status, answer.header(b"retry-after")) == (429, b"60")
        assert [asked.body for asked in up.requests] == [b"1", b"1", b"2"]


@story
async def test_an_upstream_that_comes_up_in_the_meantime_is_reached(tmp_path: Path) -> None:
    port = closed_port()
    providers = {"openai": {"base_url": f"http://127.0.0.1:{port}/v1"}}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Wire(reader, writer).message()
        writer.write(response())

    patient = retrying(attempts=10, base_seconds=0.3)
    async with relay(tmp_path, providers, routes=patient) as gateway:
        asking = asyncio.create_task(gateway.ask(request(CHAT)))
        await asyncio.sleep(0.05)
        server = await asyncio.start_server(answer, "127.0.0.1", port)
        assert (await asking).body == ANSWER
        assert "openai/gpt-6-luna: upstream_unreachable" in (await gateway.row()).attempts
        server.close()


@story
async def test_silence_and_a_broken_connection_are_retried_only_where_told_so(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        asked = await told.asked(wire)
        first = [request.body for request in told.requests].count(asked.body) == 1
        if asked.body == b'"silent"' and first:
            await wire.ends()
        elif not first:
            await wire.send(response())

    bold = retrying(when=["first_byte", "broken"])
    bold[0]["timeouts"] = {"first_byte": 0.3}
    async with upstream(script) as up:
        async with relay(tmp_path / "bold", openai(up), routes=bold) as gateway:
            assert (await gateway.ask(request(b'"silent"'))).status == 200
            assert (await gateway.ask(request(b'"broken"'))).status == 200
            assert {row.request: row.attempts for row in gateway.rows()} == {
                b'"silent"': ["openai: upstream_timeout"],
                b'"broken"': ["openai: upstream_broken"],
            }
        async with relay(tmp_path / "careful", openai(up), routes=retrying()) as gateway:
            assert (await gateway.ask(request(b'"once"'))).status == 502
            assert [asked.body for asked in up.requests].count(b'"once"') == 1


@story
async def test_nothing_is_asked_again_after_the_first_byte(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(EVENT))

    everything = retrying(when=["connect", "broken", "first_byte", 500, 502, 503])
    async with upstream(script) as up, relay(tmp_path, openai(up), routes=everything) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.body, answer.complete) == (200, EVENT, False)
        assert len(up.requests) == 1


@story
async def test_an_upload_that_has_begun_is_not_sent_again(tmp_path: Path) -> None:
    async with upstream(answering(BUSY)) as up, relay(tmp_path, openai(up), routes=retrying()) as gateway:
        assert (await gateway.ask(request(b"x" * 100_000, UPLOAD, path=b"/v1/files"))).status == 503
        assert len(up.requests) == 1


@story
async def test_an_upload_that_reached_nobody_goes_to_the_fallback_whole(tmp_path: Path) -> None:
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, nowhere_and(up), routes=route(fallback={"upstream": "spare"})) as gateway,
    ):
        body = b"x" * 300_000
        assert (await gateway.ask(request(body, UPLOAD, path=b"/v1/files"))).status == 200
        assert up.requests[0].body == body
        assert (await gateway.row()).attempts == ["openai: upstream_unreachable"]


@story
async def test_a_client_that_leaves_in_a_pause_ends_it(tmp_path: Path) -> None:
    async with (
        upstream(answering(response(b"{}", b"retry-after-ms: 600", status=b"503 Busy"))) as up,
        relay(tmp_path, openai(up), routes=retrying()) as gateway,
    ):
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        assert await soon(lambda: len(up.requests) == 1)
        await asyncio.sleep(0.05)
        wire.close()
        assert await soon(lambda: not gateway.app.house.active, 1)
        row = await gateway.row()
        assert (row.status, row.error_type, row.complete) == (499, "caller_cancelled", False)
        await asyncio.sleep(0.8)
        assert len(up.requests) == 1


@story
async def test_no_retry_begins_after_the_routes_time_is_up(tmp_path: Path) -> None:
    hasty = retrying(attempts=10)
    hasty[0]["timeouts"] = {"total": 0.5}
    slow_down = response(b"{}", b"retry-after-ms: 400", status=b"503 Busy")
    async with upstream(answering(slow_down)) as up, relay(tmp_path, openai(up), routes=hasty) as gateway:
        assert (await gateway.ask(request(CHAT))).status == 503
        assert len(up.requests) == 2


@story
async def test_retries_do_not_multiply_an_outage(tmp_path: Path) -> None:
    greedy = retrying(attempts=10, base_seconds=0, budget=0.1)
    async with upstream(answering(BUSY)) as up, relay(tmp_path, openai(up), routes=greedy) as gateway:
        started, wire = time.monotonic(), await gateway.connect()
        for _ in range(100):
            await wire.send(request(CHAT))
            assert (await wire.message()).status == 503
        wire.close()
        assert 100 < len(up.requests) <= 100 + 10 + 100 * 0.1 + (time.monotonic() - started)


# --- other targets ---------------------------------------------------------------------------------


@story
async def test_fallbacks_are_asked_in_their_order(tmp_path: Path) -> None:
    async with upstream(answering(BUSY)) as busy, upstream(answering(response())) as up:
        providers = nowhere_and(busy) | {"third": {"base_url": up.url}}
        ordered = route(fallback=[{"upstream": "spare", "model": "m2"}, {"upstream": "third", "model": "m3"}])
        async with relay(tmp_path, providers, routes=ordered) as gateway:
            answer = await gateway.ask(request(CHAT))
            assert (answer.status, answer.header(b"x-unprompt-target")) == (200, b"third/m3 whole")
            assert [asked.json()["model"] for asked in (*busy.requests, *up.requests)] == ["m2", "m3"]
            row = await gateway.row()
            assert row.attempts == ["openai/gpt-6-luna: upstream_unreachable", "spare/m2: http_503"]
            assert 'unprompt_fallbacks_total{route="all",reason="http_503"} 1.0' in await gateway.metrics()


@story
async def test_a_target_that_keeps_failing_is_left_alone_and_comes_back(tmp_path: Path) -> None:
    healthy = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            await told.asked(wire)
            await wire.send(response() if healthy.is_set() else BUSY)

    guarded = route(fallback={"upstream": "spare"}, circuit={"failures": 3, "open_seconds": 0.5})
    async with (
        upstream(script) as first,
        upstream(answering(response())) as second,
        relay(tmp_path, two(first, second), routes=guarded) as gateway,
    ):
        for _ in range(10):
            assert (await gateway.ask(request(CHAT))).status == 200
        assert (len(first.requests), len(second.requests)) == (3, 10)  # no client waits for it any more
        reasons = [row.attempts for row in gateway.rows()]
        assert reasons[2:4] == [["openai/gpt-6-luna: http_503"], ["openai/gpt-6-luna: circuit_open"]]
        gauge = 'unprompt_upstream_circuit_open{target="openai/gpt-6-luna"}'
        assert f"{gauge} 1.0" in await gateway.metrics()
        healthy.set()
        await asyncio.sleep(0.6)
        assert (await gateway.ask(request(CHAT))).header(b"x-unprompt-target") == b"openai/gpt-6-luna whole"
        assert f"{gauge} 0.0" in await gateway.metrics()


@story
async def test_the_only_target_of_a_plain_relay_is_always_asked(tmp_path: Path) -> None:
    async with upstream(answering(BUSY)) as up, relay(tmp_path, openai(up), routes=route()) as gateway:
        for _ in range(12):
            assert (await gateway.ask(request(CHAT))).status == 503
        assert len(up.requests) == 12


@story
async def test_a_route_may_refuse_rather_than_ask_a_dead_target(tmp_path: Path) -> None:
    strict = route(circuit={"failures": 2, "open_seconds": 30, "refuse": True})
    async with upstream(answering(BUSY)) as up, relay(tmp_path, openai(up), routes=strict) as gateway:
        for _ in range(2):
            assert (await gateway.ask(request(CHAT))).json() == {"error": {"message": "busy"}}
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (503, b"circuit_open")
        assert 25 <= int(answer.header(b"retry-after") or 0) <= 30
        assert len(up.requests) == 2
        assert [row.error_type for row in gateway.rows()] == [*["upstream_http_5xx"] * 2, "policy_limit"]
