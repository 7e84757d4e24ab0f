"""The demo's app: asks through the real `openai` client, streaming and not."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import openai


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request of the app. `expected` is the gold answer, None where nobody checks it."""

    messages: list[dict[str, Any]]
    stream: bool = False
    headers: dict[str, str] = {}
    expected: str | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back, as the app sees it. `target`: who served it, as the gateway says (`x-unprompt-target`)."""

    text: str = ""
    right: bool = False
    milliseconds: float = 0.0
    target: str = ""
    error: str | None = None

    @property
    def stripped(self) -> bool:
        """Whether the gateway says that the prompt was not sent."""
        return self.target.endswith(" stripped")


class App:
    """Holds the client's connections; an asynchronous context manager."""

    def __init__(self, base_url: str, model: str) -> None:
        key = os.environ.get("OPENAI_API_KEY", "sk-demo")
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=1, timeout=60)
        self._model = model

    async def __aenter__(self) -> App:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(
        self, calls: Sequence[Call], *, at_once: int, progress: Callable[[int], None] = lambda done: None
    ) -> list[Reply]:
        """The replies in the order of the calls, `at_once` of them under way at a time."""
        gate = asyncio.Semaphore(at_once)
        done = 0

        async def one(call: Call) -> Reply:
            nonlocal done
            async with gate:
                reply = await self._ask(call)
            done += 1
            progress(done)
            return reply

        return await asyncio.gather(*(one(call) for call in calls))

    async def ask_at(self, calls: Sequence[Call], *, rate: float) -> list[Reply]:
        """The replies to calls that start `rate` times a second, whatever came of those before: latencies
        measured like this compare, since a fast answer does not bring the next question sooner."""

        async def one(number: int, call: Call) -> Reply:
            await asyncio.sleep(number / rate)
            return await self._ask(call)

        return await asyncio.gather(*(one(number, call) for number, call in enumerate(calls)))

    async def _ask(self, call: Call) -> Reply:
        started = time.perf_counter()
        try:
            text, target = await (self._streamed(call) if call.stream else self._whole(call))
        except openai.OpenAIError as error:
            spent = (time.perf_counter() - started) * 1000
            return Reply(milliseconds=spent, error=str(error))
        return Reply(
            text=text,
            right=call.expected is not None and text.strip() == call.expected,
            milliseconds=(time.perf_counter() - started) * 1000,
            target=target,
        )

    async def _whole(self, call: Call) -> tuple[str, str]:
        raw = await self._client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=_typed(call),
            temperature=0,
            extra_headers=call.headers,
        )
        return raw.parse().choices[0].message.content or "", raw.headers.get("x-unprompt-target", "")

    async def _streamed(self, call: Call) -> tuple[str, str]:
        raw = await self._client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=_typed(call),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=call.headers,
        )
        text = ""
        async for chunk in raw.parse():
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
        return text, raw.headers.get("x-unprompt-target", "")


def _typed(call: Call) -> Any:
    """Plain dictionaries, as apps send them; the client's own types are narrower than what it takes."""
    return call.messages
