"""The demo's upstream, asked by the real OpenAI client over a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from gateway.demo.answers import Answers, Prefixes, delays, pieces, prompt_tokens
from gateway.demo.messages import Labelled, load, messages
from gateway.demo.prompts import few_shot, one_offs, triage, urgency
from gateway.demo.teacher import TeacherOptions, digest, running
from gateway.errors import ConfigError

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = messages(count=600)
PROMPT, TRIAGE = few_shot(ROWS), triage()
FLAWLESS = TeacherOptions(latency=0.0, error_rate=0.0)


class Client:
    """An OpenAI client and the URL that it talks to."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.openai = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)

    async def ask(self, messages: list[dict[str, str]], **more: Any) -> Any:
        return await self.openai.chat.completions.create(
            model=more.pop("model", "gpt-6-luna"),
            messages=messages,  # type: ignore[arg-type]
            **more,
        )

    async def said(self, messages: list[dict[str, str]]) -> str:
        return str((await self.ask(messages)).choices[0].message.content)

    async def stats(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(self.url.replace("/v1", "/stats")) as reply:
            return dict(await reply.json())


@asynccontextmanager
async def teacher(options: TeacherOptions = FLAWLESS, *, key: str = "any") -> AsyncIterator[Client]:
    async with running(ROWS, options) as url:
        client = Client(url, key)
        async with client.openai:
            yield client


def story(work: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await asyncio.wait_for(work(), 60)

    asyncio.run(within())


def test_a_prompted_request_gets_the_gold_label_and_a_usage_that_adds_up() -> None:
    async def work() -> None:
        async with teacher() as client:
            for row in ROWS[:20]:
                reply = await client.ask(PROMPT.request(row.text))
                usage = reply.usage
                assert reply.choices[0].message.content == row.label
                assert reply.choices[0].finish_reason == "stop"
                assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
                assert usage.prompt_tokens == prompt_tokens(PROMPT.request(row.text))
                assert usage.completion_tokens == -(-len(row.label) // 4)

    story(work)


def test_a_stream_says_the_same_token_by_token_and_ends_with_its_usage() -> None:
    async def work() -> None:
        async with teacher() as client:
            asked = PROMPT.request(ROWS[0].text)
            whole = await client.ask(asked)
            stream = await client.ask(asked, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(said) == whole.choices[0].message.content == ROWS[0].label
            assert [part for part in said if part] == pieces(ROWS[0].label)
            assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
            assert chunks[-1].choices == []
            assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert len({chunk.id for chunk in chunks}) == 1

    story(work)


def test_a_stream_without_the_option_brings_no_usage() -> None:
    async def work() -> None:
        async with teacher() as client:
            stream = await client.ask(PROMPT.request(ROWS[0].text), stream=True)
            chunks = [chunk async for chunk in stream]
            assert all(chunk.usage is None and chunk.choices for chunk in chunks)

    story(work)


def test_two_tasks_share_one_model_and_each_gets_its_own_answer() -> None:
    async def work() -> None:
        async with teacher() as client:
            for row in ROWS[:20]:
                assert await client.said(PROMPT.request(row.text)) == row.label
                assert await client.said(TRIAGE.request(row.text)) == urgency(row.text)

    story(work)


def test_without_its_prompt_the_teacher_does_not_know_what_to_do_and_counts_it() -> None:
    async def work() -> None:
        async with teacher() as client:
            for row in ROWS[:10]:
                said = await client.said([{"role": "user", "content": row.text}])
                assert row.label not in said
                assert len(said) > 40
            stats = await client.stats()
            assert (stats["requests"], stats["bare"], stats["whole"]) == (10, 10, 0)

    story(work)


def test_a_prompt_that_lost_its_system_message_or_its_wrapping_is_counted_as_altered() -> None:
    async def work() -> None:
        async with teacher() as client:
            whole = PROMPT.request(ROWS[0].text)
            await client.ask(whole[1:])
            await client.ask([whole[0], {"role": "user", "content": ROWS[0].text}])
            await client.ask(whole[-1:])
            stats = await client.stats()
            assert (stats["altered"], stats["whole"], stats["bare"]) == (3, 0, 0)

    story(work)


def test_changed_prompts_are_recognised_obeyed_and_counted_by_their_place() -> None:
    async def work() -> None:
        async with teacher() as client:
            for prompt, right in ((PROMPT, ROWS[0].label), (TRIAGE, urgency(ROWS[0].text))):
                for changed in prompt.changes():
                    assert await client.said(changed.request(ROWS[0].text)) == changed.answer(right)
            stats = await client.stats()
            names = sorted(changed.name for prompt in (PROMPT, TRIAGE) for changed in prompt.changes())
            assert stats["by_prompt"] == dict.fromkeys(names, 1)
            assert (stats["whole"], stats["requests"]) == (8, 8)

    story(work)


def test_one_off_requests_get_a_chatty_answer() -> None:
    async def work() -> None:
        async with teacher() as client:
            for chat in one_offs(count=30):
                assert len(await client.said(chat)) > 60
            assert (await client.stats())["chat"] == 30

    story(work)


def test_a_text_that_it_has_never_seen_gets_the_likeliest_label() -> None:
    async def work() -> None:
        async with teacher() as client:
            said = await client.said(
                PROMPT.request("Your driver left the parcel with a neighbour, courier, driver!")
            )
            assert said == "delivery_problem"

    story(work)


def test_about_three_in_a_hundred_labels_are_wrong_and_always_the_same_ones() -> None:
    rows = messages(count=3000)
    first, again, other = (Answers(rows, error_rate=0.03, seed=seed) for seed in (0, 0, 1))
    wrong = [row.text for row in rows if first.to(PROMPT.request(row.text)).text != row.label]
    assert 0.02 < len(wrong) / len(rows) < 0.04
    assert wrong == [row.text for row in rows if again.label(row.text) != row.label]
    assert wrong != [row.text for row in rows if other.label(row.text) != row.label]
    assert {first.label(text) for text in wrong} <= {row.label for row in rows}


def test_a_wrong_label_is_one_that_is_easily_taken_for_the_right_one() -> None:
    rows = [
        *(Labelled(f"the lamp number {n} is broken and cracked", "damaged") for n in range(20)),
        *(Labelled(f"the lamp number {n} is broken, not the one I bought", "wrong_item") for n in range(20)),
        *(Labelled(f"password {n} reset login", "account") for n in range(20)),
    ]
    assert Answers(rows).vocabulary.confusable("damaged") == ["wrong_item", "account"]


def test_half_of_the_answers_take_about_600_ms_and_one_in_twenty_over_a_second() -> None:
    totals = []
    for row in messages(count=1500):
        waits = delays(0, PROMPT.request(row.text))
        totals.append(waits.first + waits.between * len(pieces(row.label)))
    totals.sort()
    assert 0.5 < totals[750] < 0.7
    assert 1.1 < totals[1425] < 1.7
    assert delays(0, PROMPT.request("a")) == delays(0, PROMPT.request("a")) != delays(1, PROMPT.request("a"))


def test_waits_are_real_and_can_be_scaled() -> None:
    async def work() -> None:
        asked = PROMPT.request(ROWS[0].text)
        waits = delays(0, asked)
        planned = (waits.first + waits.between * len(pieces(ROWS[0].label))) * 0.5
        async with teacher(TeacherOptions(latency=0.5)) as client:
            start = time.perf_counter()
            await client.ask(asked)
            assert planned <= time.perf_counter() - start < planned + 2
        async with teacher(TeacherOptions(latency=0.5)) as client:
            start = time.perf_counter()
            stream = await client.ask(asked, stream=True)
            arrived = [time.perf_counter() - start async for _ in stream]
            assert arrived[0] >= waits.first * 0.5
            assert arrived[-1] - arrived[0] >= waits.between * len(pieces(ROWS[0].label)) * 0.5 * 0.9

    story(work)


def test_the_second_call_with_the_same_long_prompt_finds_it_cached() -> None:
    async def work() -> None:
        async with teacher() as client:
            cached = []
            for row in ROWS[:3]:
                usage = (await client.ask(PROMPT.request(row.text))).usage
                cached.append(usage.prompt_tokens_details.cached_tokens)
                assert cached[-1] < usage.prompt_tokens
            assert cached[0] == 0
            assert cached[1] == cached[2] >= 1024
            assert cached[1] % 128 == 0
            assert (await client.stats())["cached_tokens"] == sum(cached)

    story(work)


def test_short_prompts_are_never_cached_and_the_cache_forgets() -> None:
    short = [{"role": "user", "content": "What should I cook?" * 50}]
    cache = Prefixes(capacity=20)
    assert [cache.cached_tokens(short) for _ in range(3)] == [0, 0, 0]
    long = [{"role": "user", "content": "a" * 8000}]
    assert cache.cached_tokens(long) == 0
    assert cache.cached_tokens(long) == 1920
    cache.cached_tokens([{"role": "user", "content": "b" * 20_000}])
    assert cache.cached_tokens(long) == 0


def test_an_answer_that_is_cut_short_says_so() -> None:
    async def work() -> None:
        async with teacher() as client:
            reply = await client.ask(PROMPT.request(ROWS[0].text), max_completion_tokens=1)
            assert reply.choices[0].message.content == ROWS[0].label[:4]
            assert reply.choices[0].finish_reason == "length"
            assert reply.usage.completion_tokens == 1

    story(work)


def test_errors_have_openais_shape() -> None:
    async def work() -> None:
        async with teacher(TeacherOptions(latency=0.0, api_key="right"), key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await client.ask(PROMPT.request("hello"))
            assert refused.value.code == "invalid_api_key"
        async with teacher(TeacherOptions(latency=0.0, api_key="right"), key="right") as client:
            assert [model.id async for model in client.openai.models.list()] == ["gpt-6-luna"]
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.ask(PROMPT.request("hello"), model="gpt-0")
            assert unknown.value.code == "model_not_found"
            cases: list[tuple[list[dict[str, str]], dict[str, Any], str]] = [
                ([], {}, "messages"),
                (PROMPT.request("hello"), {"n": 3}, "n"),
                (PROMPT.request("hello"), {"max_tokens": 0}, "max_tokens"),
            ]
            for asked, more, param in cases:
                with pytest.raises(openai.BadRequestError) as bad:
                    await client.ask(asked, **more)
                assert bad.value.param == param
            with pytest.raises(openai.NotFoundError):
                await client.openai.embeddings.create(model="gpt-6-luna", input="hello")
            assert (await client.stats())["requests"] == 0

    story(work)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "gpt-6-luna", "messages": ["hi"]}', b"\xff\xfe"])
def test_a_body_that_is_no_chat_request_is_refused_and_not_counted(body: bytes) -> None:
    async def work() -> None:
        async with teacher() as client, aiohttp.ClientSession() as session:
            async with session.post(client.url + "/chat/completions", data=body) as reply:
                assert reply.status == 400
                assert (await reply.json())["error"]["type"] == "invalid_request_error"
            assert (await client.stats())["requests"] == 0

    story(work)


def test_the_audit_file_tells_what_arrived_byte_by_byte(tmp_path: Path) -> None:
    async def work() -> None:
        file = tmp_path / "audit.jsonl"
        async with teacher(TeacherOptions(latency=0.0, audit_file=file)) as client:
            await client.ask(PROMPT.request(ROWS[0].text))
            await client.ask(TRIAGE.changed(ROWS[0].text))
        seen = [json.loads(line) for line in file.read_text().splitlines()]
        sent = [digest(PROMPT.request(ROWS[0].text)), digest(TRIAGE.changed(ROWS[0].text))]
        assert [line["messages_sha256"] for line in seen] == sent
        assert [line["prompt"] for line in seen] == ["few_shot", TRIAGE.changed_for(ROWS[0].text).name]

    story(work)


def test_a_client_that_leaves_in_the_middle_of_a_stream_harms_nobody() -> None:
    async def work() -> None:
        async with teacher(TeacherOptions(latency=0.2)) as client:
            stream = await client.ask(PROMPT.request(ROWS[0].text), stream=True)
            await stream.close()
            assert await client.said(PROMPT.request(ROWS[1].text)) == Answers(ROWS).label(ROWS[1].text)

    story(work)


def test_a_port_that_is_taken_is_reported() -> None:
    async def work() -> None:
        async with teacher() as client:
            port = int(client.url.removesuffix("/v1").rsplit(":", 1)[1])
            with pytest.raises(ConfigError, match="teacher"):
                async with running(ROWS, FLAWLESS, port=port):
                    pass

    story(work)


@pytest.mark.parametrize("name", ["banking77.jsonl", "snips_extract.jsonl"])
def test_it_teaches_a_public_data_set_the_same_way(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data sets are not here")
    rows = load(SHARED / name)
    answers, prompt = Answers(rows, error_rate=0.0), few_shot(rows)
    test = [row for row in rows if row.split == "test"][:300]
    right = sum(answers.to(prompt.request(row.text)).text == row.label for row in test)
    assert right >= 297  # the sets hold a few texts twice, with different labels
    assert {answers.to([{"role": "user", "content": row.text}]).kind for row in test} == {"bare"}
    assert {answers.to(prompt.changed(row.text)).kind for row in test} == {"whole"}


def test_the_command_says_where_it_listens_serves_and_stops_when_told(tmp_path: Path) -> None:
    file = tmp_path / "mail.jsonl"
    file.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS))

    async def work() -> None:
        command = ["-m", "gateway.demo.teacher", "--data", str(file), "--latency", "0", "--error-rate", "0"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=pipe, env={**os.environ})
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert line.startswith("teacher listens on http://127.0.0.1:")
            async with (client := Client(line.split()[-1], "any")).openai:
                assert await client.said(PROMPT.request(ROWS[0].text)) == ROWS[0].label
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()

    story(work)
