"""A model elsewhere that may answer only when it is sure: it is asked whole, and what it was not sure of reaches
nobody; what it was sure of arrives as if nobody had looked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from relaying import Relay, Upstream, Wire, answering, relay, request, response, soon, story, upstream
from relaying import openai as at
from sorted_mail import BODY, TEXT, learned, mail_route
from stories import asked

from gateway.testing import FakeOpenAI, Refusal


def tuned(body: dict[str, Any]) -> str:
    """One model for both places: the tuned one is asked without a prompt, and says so."""
    return "refund" if body["model"] == "tiny" else "the incumbent: refund"


def sure_of_refunds(body: dict[str, Any]) -> float:
    return 0.98 if body["messages"][-1]["content"] == TEXT else 0.4


def places(api: FakeOpenAI) -> dict[str, Any]:
    return {name: {"protocol": "openai", "base_url": api.base_url} for name in ("openai", "tuned")}


async def said(gateway: Relay, text: str, *, stream: bool) -> str:
    """What the app reads."""
    address = f"http://127.0.0.1:{gateway.port}/v1"
    async with openai.AsyncOpenAI(base_url=address, api_key="sk-x", max_retries=0) as client:
        if not stream:
            return (await client.chat.completions.create(**asked(text))).choices[0].message.content or ""
        parts = [chunk async for chunk in await client.chat.completions.create(**asked(text), stream=True)]
        return "".join(choice.delta.content or "" for chunk in parts for choice in chunk.choices)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@story
async def test_it_answers_what_it_is_sure_of_and_hands_the_rest_on_whole(tmp_path: Path, stream: bool) -> None:
    learned(tmp_path)
    with FakeOpenAI(tuned, sure=sure_of_refunds) as api:
        routes = mail_route("tuned", "tiny", min_confidence=0.9)
        async with relay(tmp_path, places(api), routes=routes) as gateway:
            assert await said(gateway, TEXT, stream=stream) == "refund"
            assert await said(gateway, "hm", stream=stream) == "the incumbent: refund"
            bodies = [told.json() for told in api.received]
            assert [(body["model"], body.get("stream"), body.get("logprobs")) for body in bodies] == [
                ("tiny", None, True), ("tiny", None, True), ("gpt-6", stream or None, None),
            ]  # fmt: skip
            assert bodies[0]["messages"] == [{"role": "user", "content": TEXT}]
            assert await soon(lambda: len(gateway.rows()) == 2 and gateway.rows()[1].complete)
            sure, unsure = gateway.rows()
            assert (sure.target, sure.stripped, sure.attempts, sure.streamed) == ("tuned/tiny", True, [], stream)
            assert (unsure.stripped, unsure.attempts) == (False, ["tuned/tiny: abstained"])
            assert 'unprompt_fallbacks_total{route="mail",reason="abstained"} 1.0' in await gateway.metrics()


SURE = json.dumps({
    "id": "c1", "object": "chat.completion", "created": 1, "model": "tiny-7",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "refund"}, "finish_reason": "stop",
                 "logprobs": {"content": [{"token": "refund", "logprob": -0.01, "bytes": None}]}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}).encode()  # fmt: skip


@story
async def test_the_client_gets_its_headers_and_no_log_probabilities_it_did_not_ask_for(tmp_path: Path) -> None:
    learned(tmp_path)
    more = b"X-Request-Id: r-7\r\nKeep-Alive: timeout=5"
    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(answering(response(SURE, more))) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            plain = await gateway.ask(request(BODY, b"Accept-Encoding: gzip\r\nX-Mine: 1"))
            assert plain.header(b"x-unprompt-target") == b"tuned/tiny stripped"
            assert plain.header(b"x-request-id") == b"r-7"
            assert plain.names.count(b"content-length") == 1
            assert b"keep-alive" not in plain.names
            assert plain.json() == json.loads(SURE) | {
                "choices": [json.loads(SURE)["choices"][0] | {"logprobs": None}]
            }
            curious = await gateway.ask(request(json.dumps(asked(TEXT, logprobs=True)).encode()))
            assert curious.json() == json.loads(SURE)
            assert [told.header(b"accept-encoding") for told in tiny.requests] == [None, None]
            assert tiny.requests[0].header(b"x-mine") == b"1"
            row = gateway.rows()[0]
            assert (row.input_tokens, row.output_tokens, row.model_served) == (9, 1, "tiny-7")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response(SURE.replace(b"-0.01", b"-0.5")), "abstained"),
        (response(SURE.replace(b"logprobs", b"secret")), "abstained"),
        (response(SURE.replace(b'"refund"', b'"%b"' % (b"r" * (2 << 20)))), "abstained"),
        (response(SURE.replace(b"-0.01", b'1e999},{"token":"s","logprob":-1e999')), "abstained"),
        (response(b"<html>busy</html>", b"Content-Type: text/html"), "abstained"),
        (response(b'{"error":{"message":"logprobs?"}}', status=b"400 Bad Request"), "http_400"),
        (response(b"{}", status=b"500 Down"), "http_500"),
    ],
    ids=["not sure", "it does not tell", "too long", "no logarithm", "a page", "refused", "broken"],
)
@story
async def test_whatever_else_it_says_the_prompted_model_answers(tmp_path: Path, answer: bytes, reason: str) -> None:
    learned(tmp_path)
    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(answering(answer)) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            got = await gateway.ask(request(BODY))
            assert got.header(b"x-unprompt-target") == b"openai/gpt-6 whole"
            assert home.requests[0].body == BODY
            assert (await gateway.row()).attempts == [f"tuned/tiny: {reason}"]


@story
async def test_headers_for_the_next_hop_end_here(tmp_path: Path) -> None:
    learned(tmp_path)
    more = b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nConnection-Id: 7\r\nContent-Type-Hint: 8"
    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(answering(response(SURE, more))) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            got = await gateway.ask(request(BODY))
            assert got.names == [
                b"content-type", b"content-length", b"connection-id", b"content-type-hint",
                b"x-unprompt-exchange", b"x-unprompt-target",
            ]  # fmt: skip


@story
async def test_a_stream_costs_what_the_whole_answer_says(tmp_path: Path) -> None:
    """The client asked for no usage, and gets none; in the books it stands all the same."""
    learned(tmp_path)
    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(answering(response(SURE))) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            got = await gateway.ask(request(json.dumps(asked(TEXT, stream=True)).encode()))
            assert got.header(b"x-unprompt-target") == b"tuned/tiny stripped"
            assert got.body.endswith(b"data: [DONE]\n\n")
            assert b"usage" not in got.body
            assert b"stream_options" not in tiny.requests[0].body
            row = await gateway.row()
            assert (row.usage_source, row.input_tokens, row.output_tokens) == ("upstream", 9, 1)


@story
async def test_nobody_waits_for_the_rest_of_an_error(tmp_path: Path) -> None:
    learned(tmp_path)

    async def slow(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(b"HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
        await wire.ends()

    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(slow) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            got = await asyncio.wait_for(gateway.ask(request(BODY)), 5)
            assert got.header(b"x-unprompt-target") == b"openai/gpt-6 whole"
            assert (await gateway.row()).attempts == ["tuned/tiny: http_503"]


@story
async def test_several_answers_at_once_are_not_its_to_give(tmp_path: Path) -> None:
    learned(tmp_path)
    body = json.dumps(asked(TEXT, n=2)).encode()
    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(answering(response(SURE))) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            assert (await gateway.ask(request(body))).header(b"x-unprompt-target") == b"openai/gpt-6 whole"
            assert tiny.requests == []
            assert home.requests[0].body == body


@story
async def test_a_client_that_leaves_meanwhile_stops_it(tmp_path: Path) -> None:
    learned(tmp_path)
    stopped = asyncio.Event()

    async def slow(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
        if await wire.ends():
            stopped.set()

    routes = mail_route("tuned", "tiny", min_confidence=0.9)
    async with upstream(slow) as tiny, upstream(answering(response())) as home:
        providers = at(home) | {"tuned": at(tiny)["openai"]}
        async with relay(tmp_path, providers, routes=routes) as gateway:
            wire = await gateway.connect()
            await wire.send(request(BODY))
            assert await soon(lambda: bool(tiny.requests))
            wire.close()
            await asyncio.wait_for(stopped.wait(), 5)
            row = await gateway.row()
            assert (row.error_type, row.attempts, home.requests) == ("caller_cancelled", [], [])


@story
async def test_a_server_that_refuses_the_question_is_passed_over_and_others_are_asked(tmp_path: Path) -> None:
    def refuse(body: dict[str, Any]) -> float:
        raise Refusal(403, "You are not allowed to request logprobs from this model", param="logprobs")

    learned(tmp_path)
    with FakeOpenAI(tuned, sure=refuse) as api:
        routes = mail_route("tuned", "tiny", min_confidence=0.9)
        async with relay(tmp_path, places(api), routes=routes) as gateway:
            assert await said(gateway, TEXT, stream=False) == "the incumbent: refund"
            assert (await gateway.row()).attempts == ["tuned/tiny: http_403"]
