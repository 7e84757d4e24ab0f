"""Asks a candidate what a live request would ask it: directly here, or through a relay (`gateway/loopback.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.config import Config
from gateway.domain.dataset import Row
from gateway.domain.exchange import Usage
from gateway.domain.finetune import FineTune
from gateway.domain.price import PriceBook
from gateway.domain.route import LOCAL
from gateway.errors import TaskError
from gateway.pipeline.quality import same_answer
from gateway.pipeline.tool_calls import spelled
from gateway.providers.answers import UNREADABLE, chat
from gateway.providers.answers.confidence import confidence_of
from gateway.providers.asked_whole import HOW_SURE
from gateway.upstreams.embedded import EmbeddedModel

__all__ = ["Answered", "Ask", "Asking", "Envelope", "asker", "directly", "in_turn", "other_models", "same_answer",
           "several_at_once"]  # fmt: skip

_AT_ONCE = 4
_TRIED = 8
Envelope = dict[str, Any]
"""What a request says beside its model and its messages: temperature, tools, response format."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate's answer to one row. `text` None: it gave none, and the incumbent would be asked; calls of tools
    are written as `tool_calls.spelled` does. `sure` None: a model that cannot tell."""

    text: str | None
    sure: float | None
    latency_ms: float
    cost_usd: float | None
    error: str | None = None


Ask = Callable[[Iterable[tuple[Row, Envelope]]], list[Answered]]
"""Asks all rows, each with the envelope of its recorded request."""


class Asking(NamedTuple):
    """How candidates are asked, also how sure they are, and other models by the names of their provider and their
    own. `relayed`: through a running relay, as a client would ask them."""

    candidate: Callable[[FineTune], Ask]
    other: Callable[[str, str], Ask]
    relayed: bool = False


def directly(config: Config, prices: PriceBook, models: Path) -> Asking:
    """Embedded models in this process, all others at their provider's address."""
    return Asking(asker(config, prices, models), other_models(config, prices))


def asker(config: Config, prices: PriceBook, models: Path) -> Callable[[FineTune], Ask]:
    """How each candidate is asked.

    Raises (the function that is returned):
        TaskError: the candidate's model, or its provider, is not there any more.
    """

    def ask_of(finetune: FineTune) -> Ask:
        if finetune.upstream == LOCAL:
            return _ask_embedded(EmbeddedModel.load(models, finetune.model or ""))
        return _ask_remote(config, prices, finetune.upstream or "", finetune.model or "", is_candidate=True)

    return ask_of


def other_models(config: Config, prices: PriceBook) -> Callable[[str, str], Ask]:
    """How any model of a provider is asked, by the provider's name and its own: baselines and judges.

    Raises (the function that is returned):
        TaskError: there is no such provider in the config, any more.
    """

    def ask_of(upstream: str, model: str) -> Ask:
        return _ask_remote(config, prices, upstream, model)

    return ask_of


class Sureness:
    """Asks a model how sure it is of each token, until it says that it does not tell."""

    _REFUSALS = (400, 403, 422)
    """What servers say to `logprobs` that do not know it, or have it not for this model or this key."""

    def __init__(self, asks: bool) -> None:
        self._asks = asks

    def put(self, envelope: Envelope, ask: Callable[[Envelope], tuple[int, Answered]]) -> Answered:
        """What is said to a request that says this beside its messages. `ask` gives the status, too (0: none)."""
        if self._asks:
            status, answered = ask(envelope | HOW_SURE)
            if not (answered.error and status in self._REFUSALS):
                return answered
        _, plain = ask(envelope)
        if not plain.error:  # else it is the request that is refused, and not the question
            self._asks = False
        return msgspec.structs.replace(plain, sure=None)


def _ask_embedded(model: EmbeddedModel) -> Ask:
    def one(row: Row) -> Answered:
        started = time.perf_counter()
        text, sure = model.answer(row.text)
        return Answered(text=text, sure=sure, latency_ms=(time.perf_counter() - started) * 1000, cost_usd=0.0)

    return in_turn(lambda asked: one(asked[0]))


def _ask_remote(config: Config, prices: PriceBook, upstream: str, model: str, *, is_candidate: bool = False) -> Ask:
    import openai

    if upstream not in config.providers:
        raise TaskError(f"no provider {upstream!r} in the config; there are: {', '.join(config.providers)}")
    sureness = Sureness(is_candidate and config.providers[upstream].logprobs)
    key = config.key(upstream) or "none"  # never None: the package would take another key from the environment
    client = openai.OpenAI(base_url=config.providers[upstream].base_url, api_key=key, max_retries=2)

    def one(asked: tuple[Row, Envelope]) -> Answered:
        row, envelope = asked
        return sureness.put(envelope, lambda sent: ask(row, sent))

    def ask(row: Row, sent: Envelope) -> tuple[int, Answered]:
        started = time.perf_counter()
        try:
            made = client.chat.completions.create(model=model, messages=row.messages, extra_body=sent)  # type: ignore[arg-type]
            text = _said(made.choices[0].message)
        except openai.APIStatusError as error:
            return error.status_code, failed(error, started)
        except (openai.OpenAIError, ValueError, LookupError, TypeError, AttributeError) as error:
            # TypeError, AttributeError: the package does not check what it parses, a page of HTML for one
            return 0, failed(error, started)
        usage = Usage(
            input=made.usage.prompt_tokens if made.usage else None,
            output=made.usage.completion_tokens if made.usage else None,
        )
        cost = prices.cost(upstream, model, usage)
        return 200, Answered(text=text, sure=_sure_of(made), latency_ms=_since(started), cost_usd=cost)

    def failed(error: Exception, started: float) -> Answered:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].replace(key, "[key]")
        return Answered(text=None, sure=None, latency_ms=_since(started), cost_usd=0.0, error=reason)

    return several_at_once(one)


def _said(message: Any) -> str:
    """What a message of the `openai` package says, in a text or by the tools that it calls."""
    functions = [(call.function.name, call.function.arguments) for call in message.tool_calls or ()
                 if call.type == "function"]  # fmt: skip
    others = [(call.custom.name, call.custom.input) for call in message.tool_calls or () if call.type == "custom"]
    return spelled([*functions, *others]) if message.tool_calls else message.content or ""


def _sure_of(made: Any) -> float | None:
    """How sure the model was of a completion of the `openai` package, where it tells."""
    try:
        answer = chat.assemble([made.model_dump()])
        return None if answer is None else confidence_of(answer.choices[0])
    except UNREADABLE:
        return None


def in_turn(one: Callable[[tuple[Row, Envelope]], Answered]) -> Ask:
    """Asks one row after the other."""
    return lambda rows: [one(asked) for asked in rows]


def several_at_once(one: Callable[[tuple[Row, Envelope]], Answered]) -> Ask:
    """Asks in four threads; where none of the first eight rows has an answer, nobody is asked the others."""

    def ask(rows: Iterable[tuple[Row, Envelope]]) -> list[Answered]:
        given = list(rows)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="evaluate") as pool:
            first = list(pool.map(one, given[:_TRIED]))
            if all(answer.error for answer in first):  # it is down: do not wait for each row
                return first + first[-1:] * (len(given) - len(first))
            return first + list(pool.map(one, given[_TRIED:]))

    return ask


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
