"""An app whose prompted model calls tools: recorded streamed and not, learnt from, judged through the relay, and at
last asked without its prompt; the tools stay in the request, and the call comes back as it was made. Another app
gets nothing but calls: from its first request to a tuned model that makes them, by the ordinary parts."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import openai
import yaml
from judging import REMOTE, only
from relaying import relay, soon, story
from stories import asked, mail, sorted_by_the_model, template

from gateway.app import Files, workshop
from gateway.config import Config
from gateway.domain import layout
from gateway.domain.dataset import Dataset
from gateway.domain.template import PromptTemplate
from gateway.pipeline import cycle
from gateway.pipeline.dataset import build, load
from gateway.pipeline.discover import Discovery
from gateway.pipeline.gate import Decision
from gateway.pipeline.scores import Score
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
ORDERS = [f"what of order K-{n}?" for n in range(40)]
TEXTS = [
    text
    for number, order in enumerate(ORDERS)
    for text in (*(t for t, _ in mail()[2 * number : 2 * number + 2]), order)
]


def the_shops_model(body: dict[str, Any]) -> str | dict[str, Any]:
    """It looks an order up where it may; the tuned model knows that without the prompt."""
    text = body["messages"][-1]["content"].removeprefix("Message: ")
    if not text.startswith("what of order "):
        return sorted_by_the_model(text)
    arguments = json.dumps({"order": text.removeprefix("what of order ").rstrip("?")})
    function = {"name": "look_up", "arguments": arguments}
    return {"content": None, "tool_calls": [{"id": "call_x", "type": "function", "function": function}]}


def prompt() -> PromptTemplate:
    """The shop's, of requests that declare the tool."""
    return msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[TOOL])))


async def called(client: openai.AsyncOpenAI, text: str, *, stream: bool) -> tuple[str, str]:
    """What the app gets: the content, and the arguments of the calls."""
    body = asked(text, tools=[TOOL])
    if not stream:
        message = (await client.chat.completions.create(**body)).choices[0].message
        calls = [call.to_dict() for call in message.tool_calls or []]
        return message.content or "", "".join(call["function"]["arguments"] for call in calls)
    content, arguments = "", ""
    async for chunk in await client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            arguments += "".join(call.function.arguments for call in choice.delta.tool_calls or [])
    return content, arguments


def judged(home: Path) -> tuple[Dataset, Score]:
    """The dataset of what was recorded, and the tuned model's score on it, asked through a relay."""
    store = SqliteStore(home / "data" / "unprompt.db")
    Discovery(store).step(search=False)
    data = build(store, "mail", home / "data" / "datasets")
    config = Config.model_validate(yaml.safe_load((home / "gateway.yaml").read_text()))
    shop = workshop(Files(None, home / "routes.yaml"), config, store=store)
    score = only(cycle.evaluation(shop, data, [REMOTE]))
    store.close()
    return data, score


@story
async def test_tools_are_learnt_judged_and_called_live(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data" / "unprompt.db")
    store.add_template(prompt())
    store.close()
    with FakeOpenAI(the_shops_model) as api:
        providers = {"openai": {"protocol": "openai", "base_url": api.base_url}}
        async with relay(tmp_path, providers) as gateway:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none")
            for number, text in enumerate(TEXTS):
                await called(client, text, stream=bool(number % 2))
            assert await soon(lambda: sum(row.complete for row in gateway.rows()) == len(TEXTS))
        data, score = await asyncio.to_thread(judged, tmp_path)
        assert len(data.calls) == len(ORDERS)
        assert len(data.beyond) > 2
        assert (score.rows, score.agreement) == (len(data.part("validation")) + len(data.beyond), 1.0)
        assert score.metrics["calls_same"].value == 1.0

        api.received.clear()
        route = {"name": "mail", "match": {"task": "mail"},
                 "targets": [{"upstream": "openai", "model": "small-1", "strip": "mail@1"}]}  # fmt: skip
        async with relay(tmp_path, providers, routes=[route]) as gateway:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none")
            for stream in (False, True):
                assert await called(client, "what of order K-99?", stream=stream) == ("", '{"order": "K-99"}')
            sent = [request.json() for request in api.received]
        bare = [{"role": "user", "content": "what of order K-99?"}]
        assert [(body["model"], body["messages"], body["tools"]) for body in sent] == [
            ("small-1", bare, [TOOL])
        ] * 2


# --- an app that gets nothing but calls -----------------------------------------------------------------------

_WORDS = ("what of order {}?", "where is {} now", "{} has not come, I am waiting", "please look after {} for me")
NOTHING_BUT_CALLS = [_WORDS[n % 4].format(f"{'KRZBT'[n % 5]}-{n}") for n in range(340)]
TUNED = "gpt-4.1-nano-2025-04-14"
SECTIONS: Any = {
    "tasks": {"default": {"min_rows": 300, "margin": 0.1, "canary": [100], "share": 100}},
    "trainers": {"tuned": {"kind": "openai", "provider": "openai", "poll_seconds": 0.01,
                           "sweep": [{"base_model": TUNED, "n_epochs": 1}]}},
}  # fmt: skip


def the_one_that_looks_up(body: dict[str, Any]) -> dict[str, Any]:
    """It calls the tool upon whatever is asked; so does what was tuned on it."""
    order = re.search(r"[A-Z]-\d+", body["messages"][-1]["content"])
    function = {"name": "look_up", "arguments": json.dumps({"order": order and order[0]})}
    return {"content": None, "tool_calls": [{"id": "call_x", "type": "function", "function": function}]}


async def call_all(client: openai.AsyncOpenAI, texts: list[str]) -> list[tuple[str, str]]:
    """What the app gets for each, every other one streamed; some at a time."""
    room = asyncio.Semaphore(16)

    async def one(number: int, text: str) -> tuple[str, str]:
        async with room:
            return await called(client, text, stream=bool(number % 2))

    return await asyncio.gather(*(one(number, text) for number, text in enumerate(texts)))


def one_turn(home: Path) -> tuple[Decision, Dataset]:
    """What the worker does with what was recorded: find the prompt, build, train at the service, judge, promote."""
    store = SqliteStore(home / "data" / "unprompt.db")
    Discovery(store).step()
    config = Config.model_validate(yaml.safe_load((home / "gateway.yaml").read_text()))
    shop = workshop(Files(None, home / "routes.yaml"), config, store=store)
    (decision,) = cycle.turn_all(shop)
    (row,) = store.rows("datasets")
    data = load(store, row["id"])
    store.close()
    return decision, data


@story
async def test_an_app_that_gets_nothing_but_calls_gets_a_model_that_makes_them(tmp_path: Path) -> None:
    with FakeOpenAI(the_one_that_looks_up, latency=0.03) as api:
        providers = {"openai": {"protocol": "openai", "base_url": api.base_url}}
        async with relay(tmp_path, providers, **SECTIONS) as gateway:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none")
            await call_all(client, NOTHING_BUT_CALLS)
            assert await soon(lambda: sum(row.complete for row in gateway.rows()) == len(NOTHING_BUT_CALLS))
        api.latency = 0.0  # a smaller model is faster
        decision, data = await asyncio.to_thread(one_turn, tmp_path)
        assert (data.card["kind"], data.card["rows"], len(data.rows)) == ("tools", 340, 0)
        assert decision.promote, decision.reason
        assert decision.score is not None
        assert decision.score.metrics["calls_same"].value == 1.0
        (job,) = api.jobs
        taught = [json.loads(line) for line in api.contents[job["training_file"]].splitlines()]
        assert len(taught) == data.card["train"]
        assert all(row["messages"][-1]["tool_calls"] and row["tools"] == [TOOL] for row in taught)

        api.received.clear()
        async with relay(tmp_path, providers, **SECTIONS) as gateway:
            client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none")
            got = await call_all(client, ["what of order Z-7?", "where is Z-8 now"])
        assert got == [("", '{"order": "Z-7"}'), ("", '{"order": "Z-8"}')]
        sent = [request.json() for request in api.received if request.json()["model"] == job["fine_tuned_model"]]
        bare = sorted(body["messages"][0]["content"] for body in sent)
        assert (bare, {len(body["messages"]) for body in sent}) == (["what of order Z-7?", "where is Z-8 now"], {1})
        assert [body["tools"] for body in sent] == [[TOOL], [TOOL]]
