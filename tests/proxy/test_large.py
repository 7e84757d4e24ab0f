"""Bodies so large that a thread writes them down: the same promises hold for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from relaying import ANSWER, Upstream, Wire, answering, openai, relay, request, response, soon, story, upstream

from gateway.domain.exchange import Exchange
from gateway.proxy.record import Recording
from gateway.stores.journal import JournalWriter

PICTURE = b"QUJD" * 1_500_000
ASKED = b'{"messages":[{"role":"user","content":"' + PICTURE + b'"}],"model":"gpt-6-luna"}'
LARGE = b'{"picture":"' + PICTURE + b'",' + ANSWER[1:]
SMALL = b'{"model":"gpt-6-luna","messages":[]}'


@pytest.mark.parametrize(("asked", "answer"), [(ASKED, ANSWER), (SMALL, LARGE), (ASKED, LARGE)])
@story
async def test_large_bodies_are_on_disk_before_they_go_on(tmp_path: Path, asked: bytes, answer: bytes) -> None:
    begun: list[Exchange] = []

    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            await told.asked(wire)
            begun.extend(gateway.rows())
            await wire.send(response(answer))

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        wire = await gateway.connect()
        await wire.send(request(asked))
        told = await wire.message()
        [row] = gateway.rows()  # the client has its answer, so it is on disk
        assert (told.status, told.body) == (200, answer)
        assert up.requests[0].body == asked
        assert [(one.request == asked, one.complete) for one in begun] == [(True, False)]
        assert row.request == asked
        assert row.response == answer
        assert (row.complete, row.truncated, row.status, row.model_requested) == (True, False, 200, "gpt-6-luna")
        assert (row.input_tokens, row.output_tokens) == (9, 2)
        await wire.send(request(SMALL))  # and the connection goes on
        assert (await wire.message()).body == answer
        assert len(gateway.rows()) == 2
        wire.close()


@story
async def test_a_client_that_leaves_while_its_request_is_written_down(tmp_path: Path) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        held = asyncio.Event()
        thread = gateway.app.house.capture._thread
        loop = asyncio.get_running_loop()

        def hold() -> None:
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result(10)

        thread.submit(hold)
        wire = await gateway.connect()
        await wire.send(request(ASKED))
        assert await soon(lambda: len(gateway.app.house.active) == 1)
        wire.close()
        assert await soon(lambda: not gateway.app.house.active)
        held.set()
        row = await gateway.row()
        assert (row.request == ASKED, row.complete, row.error_type) == (True, False, "caller_cancelled")
        assert up.requests == []


@story
async def test_fail_closed_asks_nobody_for_what_cannot_be_recorded(tmp_path: Path) -> None:
    async with (
        upstream(lambda told, wire: told.asked(wire)) as up,  # type: ignore[arg-type, return-value]
        relay(tmp_path, openai(up), capture={"on_failure": "fail_closed"}) as gateway,
    ):
        gateway.app.places.journal.parent.mkdir(exist_ok=True)
        gateway.app.places.journal.write_text("a file where the folder should be")
        answer = await gateway.ask(request(ASKED))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (503, b"store_unavailable")
        assert up.requests == []
        gateway.app.places.journal.unlink()


@pytest.mark.parametrize("fault", ["the other journal", "the making of the record"])
@story
async def test_a_large_request_that_cannot_be_recorded_is_refused_and_not_left_waiting(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, openai(up), capture={"on_failure": "fail_closed"}) as gateway,
    ):
        if fault == "the other journal":  # the large body is written, the record that goes with it is not
            (tmp_path / "a file").write_text("where a folder should be")
            broken = JournalWriter(tmp_path / "a file")
            monkeypatch.setattr(gateway.app.house.capture, "_journal", broken)
        else:
            made, real = iter([True]), Recording._note_request

            def fails_once(recording: Recording, *given: Any) -> Any:
                return 1 // 0 if next(made, False) else real(recording, *given)

            monkeypatch.setattr(Recording, "_note_request", fails_once)
        answer = await gateway.ask(request(ASKED))
        assert (answer.status, answer.header(b"x-unprompt-error")) == (503, b"store_unavailable")
        assert up.requests == []
        monkeypatch.undo()
        assert (await gateway.ask(request(ASKED))).body == ANSWER


# --- streams -------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"model":"gpt-6-luna-1","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 50_000)
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
BEFORE = EVENT * 40 + LAST


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def held(gateway: Any) -> asyncio.Event:
    """The thread that writes large bodies down does nothing until this is set."""
    let_go, loop = asyncio.Event(), asyncio.get_running_loop()
    waiting = asyncio.run_coroutine_threadsafe
    gateway.app.house.capture._thread.submit(lambda: waiting(let_go.wait(), loop).result(10))
    return let_go


async def streaming(wire: Wire, *, one_by_one: bool) -> None:
    """All but the end. Chunks that come singly take another way through the relay than those that come together."""
    await wire.send(HEAD)
    if one_by_one:
        for _ in range(40):
            await wire.send(chunk(EVENT))
        await asyncio.sleep(0.2)
        await wire.send(chunk(LAST))
    else:
        await wire.send(chunk(EVENT) * 40 + chunk(LAST))
    await asyncio.sleep(0.2)


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("epilogue", [b"", b": and a comment behind the end\n\n"])
@story
async def test_the_end_of_a_large_stream_leaves_when_the_stream_is_on_disk(
    tmp_path: Path, one_by_one: bool, epilogue: bytes
) -> None:
    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await streaming(wire, one_by_one=one_by_one)
        await wire.send(chunk(DONE))
        await asyncio.sleep(0.3)
        await wire.send((chunk(epilogue) if epilogue else b"") + b"0\r\n\r\n")

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        let_go = held(gateway)
        wire = await gateway.connect()
        await wire.send(request(SMALL))
        came = b""
        while LAST + b"\r\n" not in came:
            came += await wire.some()
        await asyncio.sleep(0.8)  # the end has come, and what follows it
        assert not [row for row in gateway.rows() if row.complete]
        with pytest.raises(TimeoutError):
            assert b"[DONE]" not in await asyncio.wait_for(wire.reader.read(65_536), 0.2)
        let_go.set()
        came += await wire.until(b"[DONE]")
        assert [(row.complete, DONE in row.response) for row in gateway.rows()] == [(True, True)]
        came += await wire.until(b"0\r\n\r\n")
        assert unchunked(came) == BEFORE + DONE + epilogue
        [row] = gateway.rows()
        assert (row.complete, row.response) == (True, BEFORE + DONE + epilogue)
        assert (row.input_tokens, row.output_tokens, row.model_served) == (9, 2, "gpt-6-luna-1")
        await wire.send(request(SMALL))  # and the connection goes on
        assert (await wire.message()).body == BEFORE + DONE + epilogue


def unchunked(data: bytes) -> bytes:
    body = data.partition(b"\r\n\r\n")[2]
    plain = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        plain += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return plain


@pytest.mark.parametrize("who", ["the upstream", "the client"])
@story
async def test_who_leaves_while_the_end_of_a_large_stream_is_written_down(tmp_path: Path, who: str) -> None:
    """Its last event had come: the record says so; what the client got has no end that we made up."""

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await streaming(wire, one_by_one=True)
        await wire.send(chunk(DONE))
        if who == "the upstream":
            await asyncio.sleep(0.2)
            wire.reset()
        else:
            await asyncio.sleep(5)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        let_go = held(gateway)
        wire = await gateway.connect()
        await wire.send(request(SMALL))
        came = b""
        while LAST + b"\r\n" not in came:
            came += await wire.some()
        await asyncio.sleep(0.5)
        if who == "the client":
            wire.close()
            assert await soon(lambda: not gateway.app.house.active)
        let_go.set()
        if who == "the upstream":
            came += await wire.rest()
            assert b"[DONE]" in came
            assert not came.endswith(b"0\r\n\r\n")
        assert await soon(lambda: not gateway.app.house.active)
        row = await gateway.row()
        assert row.response == BEFORE + DONE
        assert row.complete or who == "the client"
