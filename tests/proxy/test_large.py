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
