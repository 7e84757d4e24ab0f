"""What a client sees, and what is recorded, when somebody breaks off: the upstream, the client, or we ourselves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
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


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def nobody_listens() -> dict[str, dict[str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"openai": {"protocol": "openai", "base_url": f"http://127.0.0.1:{port}/v1"}}


@contextlib.contextmanager
def shut_door() -> Iterator[str]:
    """The base URL of a listener whose queue is full: attempts to connect hang."""
    with contextlib.ExitStack() as sockets:
        door = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            knock = sockets.enter_context(socket.socket())
            knock.setblocking(False)
            knock.connect_ex(door.getsockname())
        yield f"http://127.0.0.1:{door.getsockname()[1]}/v1"


# --- the upstream does not answer ---------------------------------------------------------------


@story
async def test_an_upstream_that_is_not_there_gives_502_in_the_providers_shape_and_a_row(tmp_path: Path) -> None:
    async with relay(tmp_path, nobody_listens()) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert answer.status == 502
        assert answer.header(b"x-unprompt-error") == b"upstream_unreachable"
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "upstream_unreachable")
        assert "openai" in error["message"]
        row = await gateway.row()
        assert (row.status, row.error_type, row.complete) == (502, "upstream_connect", False)
        assert (row.request, row.id.encode()) == (CHAT, answer.header(b"x-unprompt-exchange"))


@pytest.mark.parametrize(
    ("provider", "path", "shape"),
    [
        ("anthropic", b"/anthropic/v1/messages", {"type", "error"}),
        ("gemini", b"/gemini/v1beta/models/g:generateContent", {"error"}),
    ],
)
@story
async def test_each_provider_has_its_own_shape_of_error(
    tmp_path: Path, provider: str, path: bytes, shape: set[str]
) -> None:
    section = nobody_listens()["openai"] | {"protocol": provider}
    async with relay(tmp_path, {provider: section}) as gateway:
        answer = await gateway.ask(request(CHAT, path=path))
        assert answer.status == 502
        assert set(answer.json()) == shape
        if provider == "gemini":
            assert answer.json()["error"]["status"] == "UNAVAILABLE"
        else:
            assert answer.json()["error"]["type"] == "api_error"


@story
async def test_a_silent_upstream_gives_504_and_is_closed(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        if await wire.ends():
            closed.set()

    patient = [{"name": "quick", "targets": [{"upstream": "openai"}], "timeouts": {"first_byte": 0.2}}]
    async with upstream(script) as up, relay(tmp_path, openai(up), routes=patient) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (504, b"upstream_timeout")
        assert (await gateway.row()).error_type == "upstream_timeout"
        await asyncio.wait_for(closed.wait(), 1)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"",
    ],
    ids=["another protocol", "two lengths", "endless headers", "a switch that nobody asked for", "nothing at all"],
)
@story
async def test_an_answer_that_is_no_answer_gives_502(tmp_path: Path, nonsense: bytes) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(nonsense)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (502, b"upstream_broken")
        assert (await gateway.row()).error_type == "upstream_truncated"


# --- the upstream dies ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "reset"])
@story
async def test_an_upstream_dying_mid_stream_is_seen_as_that(tmp_path: Path, how: str) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(EVENT))
        await asyncio.sleep(0.05)
        if how == "reset":
            wire.reset()

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.complete) == (200, False)  # no end mark: truncation is visible
        assert answer.body == EVENT
        row = await gateway.row()
        assert (row.complete, row.error_type, row.response) == (False, "upstream_truncated", EVENT)


@story
async def test_a_body_shorter_than_its_length_stays_short(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"a" * 40)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.body, answer.complete) == (b"a" * 40, False)
        assert not (await gateway.row()).complete


@story
async def test_a_stream_that_said_done_is_whole_even_if_the_connection_then_breaks(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(EVENT) + chunk(DONE[:9]) + chunk(DONE[9:]))  # [DONE] is cut in two
        await asyncio.sleep(0.05)
        wire.reset()

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert not answer.complete  # the connection's end is relayed as it is
        row = await gateway.row()
        assert (row.complete, row.error_type, row.response) == (True, None, EVENT + DONE)
        assert 'outcome="ok"' in await gateway.metrics()


@story
async def test_done_inside_an_answers_text_ends_nothing(tmp_path: Path) -> None:
    talk = b'data: {"choices":[{"index":0,"delta":{"content":"say data: [DONE]\\n\\n"}}]}\n\n'

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(talk))
        await asyncio.sleep(0.05)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        await gateway.ask(request(CHAT))
        row = await gateway.row()
        assert (row.complete, row.error_type) == (False, "upstream_truncated")


@story
async def test_what_follows_the_end_mark_is_recorded_too(tmp_path: Path) -> None:
    """The end is on disk before [DONE] leaves, and once more when something came after it."""
    released = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(EVENT + DONE))
        await released.wait()
        await wire.send(chunk(b": bye\n\n") + b"0\r\n\r\n")

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        await wire.until(DONE)
        row = await gateway.row()  # nothing has ended the connection yet
        assert (row.complete, row.response) == (True, EVENT + DONE)
        released.set()
        await wire.until(b"0\r\n\r\n")
        assert (await gateway.row()).response == EVENT + DONE + b": bye\n\n"
        wire.close()


# --- the client leaves -------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the first byte", "mid-stream", "while connecting"])
@story
async def test_a_client_that_leaves_stops_the_upstream_within_a_second(tmp_path: Path, moment: str) -> None:
    closed, asked = asyncio.Event(), asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        asked.set()
        if moment == "mid-stream":
            await wire.send(STREAM + chunk(EVENT))
        if await wire.ends():
            closed.set()

    async with upstream(script) as up:
        with shut_door() as nowhere:
            url = nowhere if moment == "while connecting" else up.url
            await leaves(moment, url, asked, closed, tmp_path)


async def leaves(moment: str, url: str, asked: asyncio.Event, closed: asyncio.Event, home: Path) -> None:
    async with relay(home, {"openai": {"base_url": url}}) as gateway:
        wire = await gateway.connect()
        await wire.send(request(CHAT))
        if moment == "mid-stream":
            await wire.until(b"\n\n")
        elif moment == "before the first byte":
            await asyncio.wait_for(asked.wait(), 5)
        else:
            assert await soon(lambda: len(gateway.app.house.active) == 1)
        wire.close()
        if moment != "while connecting":
            await asyncio.wait_for(closed.wait(), 1)
        assert await soon(lambda: not gateway.app.house.active, 1)
        row = await gateway.row()
        assert (row.complete, row.error_type) == (False, "caller_cancelled")
        assert row.status == (200 if moment == "mid-stream" else 499)
        assert row.response == (EVENT if moment == "mid-stream" else b"")
        assert row.request == CHAT


@story
async def test_an_aborted_upload_never_looks_complete_upstream(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def script(told: Upstream, wire: Wire) -> None:
        await wire.until(b"\r\n\r\n")
        got.append(await wire.rest())

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        parts = b"Content-Type: multipart/form-data", b"Transfer-Encoding: chunked"
        await wire.send(request(b"", *parts, path=b"/v1/files") + chunk(b"first part"))
        await asyncio.sleep(0.1)
        wire.reset()
        assert await soon(lambda: bool(got), 1)
        assert got == [chunk(b"first part")]  # no last chunk was invented
        row = await gateway.row()
        assert (row.complete, row.error_type) == (False, "caller_cancelled")


@story
async def test_an_upload_that_is_refused_early_reaches_the_client_as_that(tmp_path: Path) -> None:
    """The client is still sending when the answer comes; closing at once would reset the answer away."""

    async def script(told: Upstream, wire: Wire) -> None:
        await wire.until(b"\r\n\r\n")
        await wire.send(response(b'{"error":{}}', status=b"401 Unauthorized"))
        await wire.ends(2)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        kind = b"Content-Type: application/octet-stream"
        await wire.send(request(b"", kind, b"Content-Length: 50000000", path=b"/v1/files") + b"x" * 300_000)
        answer = await wire.message()
        assert answer.status == 401
        await wire.send(b"x" * 300_000)  # still no reset
        assert await wire.ends(5)
        assert (await gateway.row()).status == 401


# --- slow ones ----------------------------------------------------------------------------------------


@story
async def test_a_slow_client_slows_the_upstream_down_and_fills_no_memory(tmp_path: Path) -> None:
    sent = 0

    async def script(told: Upstream, wire: Wire) -> None:
        nonlocal sent
        await told.asked(wire)
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 50000000\r\n\r\n"
        )
        for _ in range(500):
            await wire.send(b"x" * 100_000)
            sent += 100_000

    async with upstream(script) as up, relay(tmp_path, openai(up), capture={"max_body_mb": 1}) as gateway:
        wire = await gateway.connect()
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too
        await wire.send(request(b"", method=b"GET", path=b"/v1/files/big/content"))
        await asyncio.sleep(0.5)
        before = sent
        await asyncio.sleep(0.3)
        assert sent == before < 20_000_000  # what kernel buffers hold, and no more
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        body = (await wire.message()).body
        assert len(body) == 50_000_000
        row = await gateway.row()
        assert (row.complete, row.truncated, len(row.response)) == (True, True, 1 << 20)
        wire.close()


@story
async def test_a_slow_upstream_slows_an_upload_down(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await wire.until(b"\r\n\r\n")
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await released.wait()
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await wire.read(50_000_000 - len(await wire.some()))
        await wire.send(response(b"{}"))

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        kind, length = b"Content-Type: application/octet-stream", b"Content-Length: 50000000"
        await wire.send(request(b"", kind, length, path=b"/v1/files"))
        pushing = asyncio.create_task(wire.send(b"x" * 50_000_000))
        await asyncio.sleep(0.4)
        assert not pushing.done()
        released.set()
        await pushing
        assert (await wire.message()).status == 200
        wire.close()


@story
async def test_a_head_or_body_that_does_not_come_costs_its_connection(tmp_path: Path) -> None:
    limits = {"header_seconds": 0.3, "idle_seconds": 0.6}
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up), server=limits) as gateway:
        halves = [b"", b"PO", b"POST /v1/x HTTP/1.1\r\nHo", request(CHAT)[:-5]]
        wires = [await gateway.connect() for _ in halves]
        for wire, half in zip(wires, halves, strict=True):
            await wire.send(half)
        assert (await gateway.ask(request(CHAT))).status == 200  # others are served meanwhile
        assert [await wire.ends(3) for wire in wires] == [True] * 4
        assert len(up.requests) == 1


# --- our own limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@story
async def test_a_body_over_the_limit_gives_413_and_reaches_nobody(tmp_path: Path, chunked: bool) -> None:
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, openai(up), server={"max_body_mb": 1}) as gateway,
    ):
        wire = await gateway.connect()
        body = b'"' + b"x" * 1_200_000 + b'"'
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
        head = request(b"", b"Content-Type: application/json", framing)
        await wire.send(head + (chunk(body[:600_000]) + chunk(body[600_000:]) if chunked else body))
        answer = await wire.message()
        assert (answer.status, answer.header(b"x-unprompt-error")) == (413, b"body_too_large")
        assert "max_body_mb" in answer.json()["error"]["message"]
        assert up.requests == []
        row = await gateway.row()
        assert (row.status, row.error_type, row.request, row.truncated) == (413, "policy_limit", b"", True)
        wire.close()


@pytest.mark.parametrize("path", [
    b"/v1/../admin", b"/v1/%2e%2e/admin", b"/v1/a%2f..%2fb", b"/v1/..;/admin", b"/v1/a\\b", b"/v1/%00", b"/nowhere",
])  # fmt: skip
@story
async def test_a_path_that_could_lead_elsewhere_is_refused(tmp_path: Path, path: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT, path=path))
        expected = (404, b"unknown_path") if path == b"/nowhere" else (400, b"bad_request")
        assert (answer.status, answer.header(b"x-unprompt-error")) == expected
        assert up.requests == []
        row = await gateway.row()  # what was refused is counted, too
        assert (row.error_type, row.endpoint) == ("caller_error", path.decode())


@pytest.mark.parametrize(
    "attack",
    [
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\nTransfer-Encoding: x\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40,
    ],
    ids=["both framings", "two lengths", "bad chunk", "odd encoding", "nul", "TLS"],
)
@story
async def test_smuggling_is_refused_and_the_connection_closed(tmp_path: Path, attack: bytes) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(attack)
        assert (await wire.until(b"\r\n")).startswith(b"HTTP/1.1 400")
        await wire.send(request(CHAT))
        assert await wire.ends(3)
        assert up.requests == []


@story
async def test_endless_headers_and_trailers_are_cut_off(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        heads = b"GET /v1/x HTTP/1.1\r\nX: " + b"a" * 70_000
        trailers = (
            request(b"", b"Content-Type: application/json", b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX: "
        )
        for endless in (heads, trailers + b"a" * 60_000):
            wire = await gateway.connect()
            await wire.send(endless)
            await asyncio.sleep(0.05)
            await wire.send(b"a" * 70_000)
            assert (await wire.until(b"\r\n")).startswith(b"HTTP/1.1 431")
            wire.reset()
        assert up.requests == []


@story
async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            asked = await told.asked(wire)
            await asyncio.sleep(0.03 if asked.body == b"1" else 0)
            await wire.send(response(b"answer to " + asked.body))

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        upload = b"Content-Type: application/octet-stream"
        three = request(b"1") + request(b"2", upload) + request(b"3")
        await wire.send(three + b"\x00 this is no HTTP")
        answers = [await wire.message() for _ in range(3)]
        assert [a.body for a in answers] == [b"answer to 1", b"answer to 2", b"answer to 3"]
        assert await wire.ends(3)  # what came after them ends the connection, but only after their answers
        rows = gateway.rows()
        assert [row.response for row in rows] == [b"answer to 1", b"answer to 2", b"answer to 3"]
        assert [row.request for row in rows] == [b"1", b"", b"3"]
        ids = [a.header(b"x-unprompt-exchange") for a in answers]
        assert [row.id.encode() for row in rows] == ids


@story
async def test_a_client_cannot_fill_memory_by_pipelining_an_upload_behind_a_slow_request(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await released.wait()
        await wire.send(response(b"{}"))
        await told.asked(wire)
        await wire.send(response(b"{}"))

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        upload = b"Content-Type: application/octet-stream", b"Content-Length: 30000000"
        await wire.send(request(CHAT) + request(b"", *upload, path=b"/v1/files"))
        pushing = asyncio.create_task(wire.send(b"x" * 30_000_000))
        await asyncio.sleep(0.3)
        assert not pushing.done()  # it waits in the client's own buffers
        released.set()
        assert (await wire.message()).status == 200
        assert (await wire.message()).status == 200
        await pushing
        assert len(up.requests[1].body) == 30_000_000
        wire.close()


@story
async def test_too_many_connections_are_turned_away(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        gateway.app.server.limits.connections = 2
        kept = [await gateway.connect() for _ in range(2)]
        await asyncio.sleep(0.05)
        third = await gateway.connect()
        assert (await third.until(b"\r\n")).startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1\r\n" in await third.until(b"\r\n\r\n")
        for wire in kept:
            await wire.send(request(CHAT))
            assert (await wire.message()).body == ANSWER
            wire.close()
        third.close()


# --- reused connections ------------------------------------------------------------------------------


@story
async def test_a_kept_alive_connection_that_was_closing_is_replaced_where_that_is_safe(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(response(b"{}"))
        if told.connections == 1:
            await told.asked(wire)  # the second request on this connection is read, and then the door is shut
            return
        await told.asked(wire)
        await wire.send(response(b'{"second":1}'))

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        get = request(b"", method=b"GET", path=b"/v1/models")
        assert (await gateway.ask(get)).status == 200
        assert (await gateway.ask(get)).status == 200  # asked again on a fresh connection
        assert up.connections == 2
        assert len(up.requests) == 3


@story
async def test_a_post_is_never_sent_twice(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(response(b"{}"))
        await told.asked(wire)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        assert (await gateway.ask(request(CHAT))).status == 200
        assert (await gateway.ask(request(CHAT))).status == 502
        assert (up.connections, len(up.requests)) == (1, 2)


@pytest.mark.parametrize(
    "extra",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"garbage", b"HTTP/1.1 200 OK\r\nContent-Le", b"H"],
    ids=["an answer", "garbage", "half a head", "a letter"],
)
@story
async def test_bytes_after_an_answer_never_become_the_next_clients_answer(tmp_path: Path, extra: bytes) -> None:
    async with upstream(answering(response(b'{"mine":1}') + extra)) as up, relay(tmp_path, openai(up)) as gateway:
        for number in range(1, 4):
            assert (await gateway.ask(request(CHAT))).body == b'{"mine":1}'
            assert up.connections == number  # such a connection is not used again


@story
async def test_a_head_answer_with_a_body_confuses_nobody(tmp_path: Path) -> None:
    with_body = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
    async with upstream(with_body) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        for _ in range(2):
            await wire.send(request(b"", method=b"HEAD", path=b"/v1/models"))
            assert (await wire.message(bodiless=True)).header(b"content-length") == b"4"
        await wire.send(request(b"", method=b"GET", path=b"/v1/models"))
        assert (await wire.message()).body == b"body"
        wire.close()


# --- shutting down --------------------------------------------------------------------------------------


@story
async def test_shutting_down_waits_for_answers_and_marks_what_it_had_to_cut(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        asked = await told.asked(wire)
        if asked.body == b'"quick"':
            await asyncio.sleep(0.3)
            await wire.send(response())
        await wire.ends()

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        quick, slow, idle = [await gateway.connect() for _ in range(3)]
        await quick.send(request(b'"quick"'))
        await slow.send(request(b'"slow"'))
        assert await soon(lambda: len(up.requests) == 2)
        draining = asyncio.create_task(gateway.app.server.drain(0.8))
        assert await idle.ends(1)
        assert (await quick.message()).body == ANSWER
        with pytest.raises(ConnectionError):
            await gateway.connect()
        await draining
        assert await slow.ends(1)
        rows = {row.request: (row.complete, row.error_type) for row in gateway.rows()}
        assert rows == {b'"quick"': (True, None), b'"slow"': (False, "internal")}
