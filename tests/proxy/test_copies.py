"""What the gateway asks once more for the record: audits of stripped answers, shadows of whole ones, off the
request path; and which side of a split a session stays on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from relaying import (
    ANSWER,
    Relay,
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
from sorted_mail import BODY, STREAM, TEXT, learned, mail_route
from stories import asked

from gateway.domain.exchange import Exchange
from gateway.domain.route import Match, Route, RouteTable, Sticky, Target
from gateway.pipeline.discover import Discovery
from gateway.proxy.copies import MOST_COPIES
from gateway.proxy.router import Incoming, Switchboard
from gateway.raised import raise_audits
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import MATCHED, results

REFUND = ANSWER.replace(b"hello", b"refund")
SHADOW = {"upstream": "local", "model": "mail-1", "strip": "mail@1"}


def audited(percent: float = 100, **target: Any) -> list[dict[str, Any]]:
    return [mail_route("local", "mail-1", **target)[0] | {"audit": percent}]


async def pair(gateway: Relay) -> tuple[Exchange, Exchange]:
    """The client's exchange and its copy, when both have ended."""
    assert await soon(lambda: sum(row.status is not None for row in gateway.rows()) == 2)
    own, copy = sorted(gateway.rows(), key=lambda row: row.copy_of is not None)
    assert (own.copy_of, copy.copy_of) == (None, own.id)
    return own, copy


@story
async def test_the_incumbent_is_asked_too_with_the_whole_prompt_and_the_clients_key(tmp_path: Path) -> None:
    learned(tmp_path)
    async with (
        upstream(answering(response(REFUND))) as home,
        relay(tmp_path, openai(home), routes=audited()) as gateway,
    ):
        answer = await gateway.ask(request(BODY, b"Authorization: Bearer sk-client-1", b"x-unprompt-tags: a=b"))
        assert answer.header(b"x-unprompt-target") == b"local/mail-1 stripped"
        own, copy = await pair(gateway)
        assert home.requests[0].body == BODY
        assert home.requests[0].header(b"authorization") == b"Bearer sk-client-1"
        assert (own.stripped, own.target) == (True, "local/mail-1")
        assert (copy.stripped, copy.target, copy.route, copy.task) == (False, "openai/gpt-6", "mail", "mail")
        assert (copy.request, copy.response, copy.tags) == (BODY, REFUND, {"a": "b"})
        assert (copy.complete, copy.input_tokens, copy.key_id) == (True, 9, own.key_id)
        told = await gateway.metrics()
        assert 'unprompt_copies_total{route="mail",kind="audit",outcome="ok"} 1.0' in told
        requests = [line for line in told.splitlines() if line.startswith("unprompt_requests_total")]
        assert [line.split()[-1] for line in requests] == ["1.0"]  # a client asked once


@story
async def test_nobody_waits_for_an_audit_and_its_failure_reaches_nobody(tmp_path: Path) -> None:
    learned(tmp_path)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        reached.set()
        await go_on.wait()
        await wire.send(response(b"{}", status=b"503 Down"))

    async with upstream(slow) as home, relay(tmp_path, openai(home), routes=audited()) as gateway:
        wire = await gateway.connect()
        await wire.send(request(BODY))
        assert (await wire.message()).status == 200
        await asyncio.wait_for(reached.wait(), 5)
        assert len(home.requests) == 1  # it waits there, and the client has its answer and goes on
        await wire.send(request(b"{}"))
        wire.close()
        go_on.set()
        assert await soon(lambda: any(row.copy_of and row.status for row in gateway.rows()))
        copy = next(row for row in gateway.rows() if row.copy_of)
        assert (copy.status, copy.error_type, copy.complete) == (503, "upstream_http_5xx", True)
        circuit = [line for line in (await gateway.metrics()).splitlines() if "circuit_open" in line]
        assert not any(line.endswith(" 1.0") for line in circuit)


@story
async def test_a_shadow_is_asked_stripped_where_the_incumbent_answers(tmp_path: Path) -> None:
    learned(tmp_path)
    shadowed = [{"name": "mail", "match": {"task": "mail"}, "targets": [{"upstream": "openai"}], "shadow": SHADOW}]
    async with (
        upstream(answering(response(REFUND))) as home,
        relay(tmp_path, openai(home), routes=shadowed) as gateway,
    ):
        answer = await gateway.ask(request(BODY))
        assert answer.header(b"x-unprompt-target") == b"openai/gpt-6 whole"
        own, copy = await pair(gateway)
        assert (own.stripped, copy.stripped, copy.target) == (False, True, "local/mail-1")
        assert json.loads(copy.response)["choices"][0]["message"]["content"] == "refund"
        assert len(home.requests) == 1


@story
async def test_a_shadow_that_abstains_is_recorded_as_such(tmp_path: Path) -> None:
    learned(tmp_path)
    shadow = SHADOW | {"min_confidence": 1.0}
    shadowed = [{"name": "mail", "match": {"task": "mail"}, "targets": [{"upstream": "openai"}], "shadow": shadow}]
    async with upstream(answering(response())) as home, relay(tmp_path, openai(home), routes=shadowed) as gateway:
        assert (await gateway.ask(request(BODY))).body == ANSWER
        _, copy = await pair(gateway)
        assert copy.attempts == ["local/mail-1: abstained"]


@story
async def test_a_shadow_that_nobody_answers_reaches_no_client_and_costs_none(tmp_path: Path) -> None:
    """Its provider is down; the client's answer, its bytes and its price are those of a route without a shadow."""
    learned(tmp_path)
    dead = {"upstream": "dead", "model": "mail-1", "strip": "mail@1"}
    shadowed = [{"name": "mail", "match": {"task": "mail"}, "targets": [{"upstream": "openai"}], "shadow": dead}]
    async with upstream(answering(response(REFUND))) as home:
        down = {"dead": {"protocol": "openai", "base_url": "http://127.0.0.1:9/v1"}}
        async with relay(tmp_path, openai(home) | down, routes=shadowed) as gateway:
            answers = [await gateway.ask(request(BODY)) for _ in range(3)]
            assert {(answer.status, answer.body) for answer in answers} == {(200, REFUND)}
            assert await soon(lambda: sum(row.status is not None for row in gateway.rows()) == 6)
            own = [row for row in gateway.rows() if row.copy_of is None]
            copies = [row for row in gateway.rows() if row.copy_of is not None]
            assert {(row.status, row.error_type, row.complete) for row in own} == {(200, None, True)}
            assert {row.copy_of for row in copies} == {row.id for row in own}
            assert {(row.status, row.output_tokens, row.cost_usd) for row in copies} == {(502, None, None)}
            assert len(home.requests) == 3  # nobody was asked in its place


@story
async def test_the_audit_of_a_stream_is_a_stream(tmp_path: Path) -> None:
    learned(tmp_path)
    events = b'data: {"choices":[{"delta":{"content":"refund"}}]}\n\ndata: [DONE]\n\n'
    stream = STREAM + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events)
    async with upstream(answering(stream)) as home, relay(tmp_path, openai(home), routes=audited()) as gateway:
        body = json.dumps(asked(TEXT, stream=True)).encode()
        assert (await gateway.ask(request(body))).body.endswith(b"data: [DONE]\n\n")
        own, copy = await pair(gateway)
        assert (own.streamed, copy.streamed, copy.complete) == (True, True, True)
        assert copy.response == events


@pytest.mark.parametrize(
    ("routes", "headers", "why"),
    [
        (audited(0), (), "no audit is wanted"),
        (audited(), (b"x-unprompt-log: off",), "the client wants no record"),
        (audited(), (b"x-unprompt-log: metadata",), "there would be nothing to compare"),
        (audited(min_confidence=1.0), (), "the incumbent has answered itself"),
    ],
    ids=["no audit", "off", "metadata", "abstained"],
)
@story
async def test_what_is_not_asked_again(
    tmp_path: Path, routes: list[dict[str, Any]], headers: tuple[bytes, ...], why: str
) -> None:
    learned(tmp_path)
    async with upstream(answering(response())) as home, relay(tmp_path, openai(home), routes=routes) as gateway:
        assert (await gateway.ask(request(BODY, *headers))).status == 200
        await asyncio.sleep(0.2)
        assert [row.copy_of for row in gateway.rows() if row.copy_of] == [], why
        assert len(home.requests) == ("min_confidence" in routes[0]["targets"][0])
        assert "unprompt_copies_total{" not in await gateway.metrics()


@story
async def test_so_many_copies_are_under_way_and_no_more(tmp_path: Path) -> None:
    learned(tmp_path)
    go_on = asyncio.Event()

    async def stuck(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await go_on.wait()
        await wire.send(response(REFUND))

    async with upstream(stuck) as home, relay(tmp_path, openai(home), routes=audited()) as gateway:
        wire = await gateway.connect()
        for _ in range(MOST_COPIES + 3):
            await wire.send(request(BODY))
            assert (await wire.message()).status == 200
        assert await soon(lambda: len(home.requests) == MOST_COPIES)
        assert 'kind="audit",outcome="skipped"} 3.0' in await gateway.metrics()
        go_on.set()
        assert await soon(lambda: sum(row.copy_of is not None and row.complete for row in gateway.rows()) == 64)
        wire.close()


@story
async def test_under_suspicion_more_answers_are_audited_until_it_is_over(tmp_path: Path) -> None:
    learned(tmp_path)
    async with (
        upstream(answering(response(REFUND))) as home,
        relay(tmp_path, openai(home), routes=audited(0)) as gateway,
    ):
        await gateway.ask(request(BODY))
        raise_audits(tmp_path / "data", {"local/mail-1": 100.0})
        assert await soon(lambda: gateway.app.house.switchboard.raised == {"local/mail-1": 100.0}, 2)
        await gateway.ask(request(BODY))
        assert await soon(lambda: len(home.requests) == 1)
        raise_audits(tmp_path / "data", {})
        assert await soon(lambda: gateway.app.house.switchboard.raised == {}, 2)
        await gateway.ask(request(BODY))
        assert await soon(lambda: sum(row.status is not None for row in gateway.rows()) == 4)
        assert len(home.requests) == 1


@story
async def test_a_copy_belongs_to_its_task_but_counts_as_no_request(tmp_path: Path) -> None:
    learned(tmp_path)
    async with (
        upstream(answering(response(REFUND))) as home,
        relay(tmp_path, openai(home), routes=audited()) as gateway,
    ):
        await gateway.ask(request(BODY))
        await pair(gateway)
        store = SqliteStore(gateway.app.places.store)
        Discovery(store).step()
        assert [(row.task, row.task_version) for row in store.exchanges()] == [("mail", 1)] * 2
        assert [found[MATCHED] for found in results(store).values()] == [1]
        assert store.answered_count("mail") == 1  # the incumbent's answer is a row to learn from, ours is not
        store.close()


def split(sticky: Sticky, percent: float) -> Switchboard:
    targets = (Target(upstream="new", weight=percent), Target(upstream="old", weight=100 - percent))
    return Switchboard.build(
        RouteTable(routes=(Route(name="r", match=Match(), targets=targets, sticky=sticky),)),
        [],
    )


def side(board: Switchboard, **of: Any) -> str:
    dice = iter([0.99] * 9)
    return board.plan(Incoming(provider="openai", model="m", **of), lambda: next(dice)).attempts[0].upstream


@given(st.text(min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_a_session_stays_with_the_new_model_as_its_share_grows(session: str, one: float, other: float) -> None:
    few, more = split("session", min(one, other)), split("session", max(one, other))
    tags = {"session": session}
    assert side(few, tags=tags) == side(few, tags=tags)
    if side(few, tags=tags) == "new":
        assert side(more, tags=tags) == "new"


def test_sessions_are_split_as_the_weights_say() -> None:
    board = split("session", 30)
    sides = Counter(side(board, tags={"session": f"s{number}"}) for number in range(2000))
    assert 500 < sides["new"] < 700


def test_what_names_no_session_is_split_by_chance_and_a_key_only_where_that_is_asked_for() -> None:
    assert side(split("session", 98), key_id="k") == "old"  # the dice say 0.99
    by_key = {key: side(split("key", 50), key_id=key) for key in map(str, range(50))}
    assert set(by_key.values()) == {"new", "old"}
    assert side(split("none", 98), tags={"session": "s"}) == "old"
