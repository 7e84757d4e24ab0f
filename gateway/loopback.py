"""A relay of its own on loopback, for as long as an evaluation asks: what is measured is what a client would see.

It is the ordinary relay, in a thread: a request goes over a socket, is matched, stripped and recorded, and the
answer comes back over the socket. Nothing of that enters the books: it records to a journal of its own, without
contents, in a folder that is deleted at the end.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from gateway import providers
from gateway.config import Config
from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune
from gateway.domain.price import PriceBook
from gateway.domain.route import LOCAL, Match, Retry, Route, RouteTable, Target
from gateway.domain.template import PromptTemplate, parse_stripped
from gateway.errors import TaskError
from gateway.pipeline.asking import Answered, Ask, Asking, Envelope, Sureness, in_turn, several_at_once
from gateway.pipeline.tool_calls import of_choice
from gateway.providers.answers.confidence import confidence_of
from gateway.proxy.house import House
from gateway.proxy.router import Switchboard
from gateway.upstreams.embedded import EmbeddedModel, EmbeddedUpstream

__all__ = ["Relay", "asking_through", "scratch"]

_PATIENCE = 900.0
"""Seconds: longer than the relay itself waits for an upstream."""
_NOBODY = "nobody"
"""A model that there is none of: who abstains is not followed by the incumbent, which would cost money."""
_OPENAI = providers.load("openai")


class Relay(Protocol):
    """A relay that is not running yet; its switchboard and its models are replaced while it runs."""

    house: House
    local: EmbeddedUpstream

    async def start(self) -> str: ...
    async def stop(self) -> None: ...


def scratch(config: Config, folder: Path) -> Config:
    """The same providers, with a store of its own in this folder, and no contents in its records."""
    return config.model_copy(update={
        "store": config.store.model_copy(update={"url": f"sqlite:///{folder / 'scratch.db'}"}),
        "capture": config.capture.model_copy(update={"bodies": False, "on_failure": "fail_open"}),
    })  # fmt: skip


@contextmanager
def asking_through(
    make: Callable[[Config], Relay], config: Config, prices: PriceBook, models: Path, data: Dataset,
    template: PromptTemplate | None,
) -> Iterator[Asking]:  # fmt: skip
    """How the dataset's candidates and their baselines are asked through a relay that `make` makes. `template` is
    what the rows were stripped of; without it embedded models answer nothing.

    Raises:
        ConfigError: the relay cannot listen.
    """
    with (
        tempfile.TemporaryDirectory(prefix="unprompt-evaluation-") as folder,
        _running(lambda: make(scratch(config, Path(folder)))) as (relay, base),
    ):
        asked = _Asked(relay, base, config, prices)
        model = str(data.card["teacher"].get("model") or "any")

        def candidate(finetune: FineTune) -> Ask:
            if finetune.upstream != LOCAL:
                return asked.remote(finetune.upstream or "", finetune.model or "", is_candidate=True)
            found = EmbeddedModel.load(models, finetune.model or "")
            return asked.embedded(found, finetune.model or "", template, model)

        yield Asking(candidate, asked.remote, relayed=True)


@contextmanager
def _running(make: Callable[[], Relay]) -> Iterator[tuple[Relay, str]]:
    """A relay in a thread with an event loop of its own, and its base URL."""
    started: Future[tuple[Relay, str, Callable[[], object]]] = Future()

    async def life() -> None:
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        relay = make()
        base = await relay.start()
        started.set_result((relay, base, lambda: loop.call_soon_threadsafe(over.set)))
        await over.wait()
        await relay.stop()

    def live() -> None:
        try:
            with asyncio.Runner(loop_factory=_loop()) as runner:
                runner.run(life())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=live, name="evaluation-relay", daemon=True)
    thread.start()
    relay, base, stop = started.result()
    try:
        yield relay, base
    finally:
        stop()
        thread.join(_PATIENCE)


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


class _Heard(EmbeddedModel, frozen=True):
    """A model that notes how sure it was of each answer: its answers over a socket do not say."""

    sure: list[float]

    def answer(self, text: str) -> tuple[str, float]:
        found = super().answer(text)
        self.sure.append(found[1])
        return found


class _Asked:
    """Puts requests to the relay and reads its answers."""

    def __init__(self, relay: Relay, base: str, config: Config, prices: PriceBook) -> None:
        self._relay, self._config, self._prices = relay, config, prices
        self._address = urlsplit(base).netloc
        self._mine = threading.local()

    def remote(self, upstream: str, model: str, *, is_candidate: bool = False) -> Ask:
        """A model of a provider, asked the row's messages as they are; a candidate also how sure it is.

        Raises:
            TaskError: there is no such provider in the config, any more.
        """
        if upstream not in self._config.providers:
            known = ", ".join(self._config.providers)
            raise TaskError(f"no provider {upstream!r} in the config; there are: {known}")
        target = (Target(upstream=upstream),)
        route = Route(name="asked", match=Match(), targets=target, fallbacks=target, retry=Retry(), circuit=None)
        key = self._config.key(upstream) or "none"
        path = f"/{upstream}/chat/completions"
        sureness = Sureness(is_candidate and self._config.providers[upstream].logprobs)

        def one(asked: tuple[Row, Envelope]) -> Answered:
            row, envelope = asked
            return sureness.put(envelope, lambda sent: ask({**sent, "model": model, "messages": row.messages}))

        def ask(body: dict[str, Any]) -> tuple[int, Answered]:
            status, plain, answered = self._post(path, body, key)
            usage = _OPENAI.read_response(plain, streamed=False).usage
            cost = 0.0 if answered.error else self._prices.cost(upstream, model, usage)
            return status, msgspec.structs.replace(answered, cost_usd=cost)

        return self._with(route, {}, [], several_at_once(one))

    def embedded(self, model: EmbeddedModel, name: str, template: PromptTemplate | None, called: str) -> Ask:
        """A model in the relay's process, asked the whole request that the row was stripped from."""
        heard = _Heard(model.student, [])
        first = Target(upstream=LOCAL, model=name, strip=template.name if template else None)
        behind = (Target(upstream=LOCAL, model=_NOBODY),)
        route = Route(name="asked", match=Match(), targets=(first,), fallbacks=behind, circuit=None)
        path = f"/{self._any_openai()}/chat/completions"

        def one(asked: tuple[Row, Envelope]) -> Answered:
            row, envelope = asked
            heard.sure.clear()
            _, _, answered = self._post(path, _whole(template, row, {**envelope, "model": called}), "none")
            sure = heard.sure[-1] if heard.sure and not answered.error else None
            return msgspec.structs.replace(answered, sure=sure, cost_usd=0.0, error=None)

        return self._with(route, {name: heard}, [template] if template else [], in_turn(one))

    def _with(
        self, route: Route, models: dict[str, EmbeddedModel], templates: list[PromptTemplate], ask: Ask
    ) -> Ask:
        """The same, with this route alone in force."""

        def asked(rows: Any) -> list[Answered]:
            self._relay.local.models = models
            self._relay.house.switchboard = Switchboard.build(RouteTable(routes=(route,)), templates)
            return ask(rows)

        return asked

    def _any_openai(self) -> str:
        """By whose name a chat request comes in that leaves this machine under no circumstances."""
        found = next((name for name, p in self._config.providers.items() if p.protocol == "openai"), None)
        if found is None:
            raise TaskError("no provider with the protocol openai is in the config; embedded models speak no other")
        return found

    def _post(self, path: str, body: dict[str, Any], key: str) -> tuple[int, bytes, Answered]:
        """The answer's status (0: there is none) and body, and what it says; the time is from the first byte sent
        to the last one received."""
        sent = json.dumps(body).encode()
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection = self._connection()
        started = time.perf_counter()
        try:
            connection.request("POST", path, sent, head)
            response = connection.getresponse()
            plain = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return 0, b"", _failed(f"{type(error).__name__}: {error}", started)
        took = (time.perf_counter() - started) * 1000
        read = _OPENAI.read_answer(plain, streamed=False) if response.status == 200 else None
        if read is None or read.error:
            told = response.headers.get("x-unprompt-error", "")
            said = plain[:400].decode("utf-8", "replace")
            reason = f"{response.status} {told} {said}".replace(key, "[key]")
            return response.status, plain, _failed(reason, started)
        text, sure = of_choice(read.choices[0]), confidence_of(read.choices[0])
        return 200, plain, Answered(text=text, sure=sure, latency_ms=took, cost_usd=None)

    def _connection(self) -> http.client.HTTPConnection:
        """Kept alive, one for each thread; it connects anew where it was closed."""
        found: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if found is None:
            found = self._mine.connection = http.client.HTTPConnection(self._address, timeout=_PATIENCE)
        return found


def _whole(template: PromptTemplate | None, row: Row, envelope: Envelope) -> dict[str, Any]:
    """The row's request with its prompt, with personal data masked as in the row."""
    if template is None:
        return {**envelope, "messages": row.messages}
    inputs = parse_stripped(template, row.messages)
    return template.render(msgspec.structs.replace(inputs, envelope=envelope))


def _failed(reason: str, started: float) -> Answered:
    took = (time.perf_counter() - started) * 1000
    return Answered(text=None, sure=None, latency_ms=took, cost_usd=0.0, error=" ".join(reason.split())[:200])
