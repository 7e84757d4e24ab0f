"""A small shop whose app has its mail sorted by a prompted model: what the tests of the offline wing tell of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from gateway.app import price_book
from gateway.config import Config
from gateway.domain import layout
from gateway.domain.exchange import Exchange
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline.cycle import Workshop
from gateway.stores.sqlite import SqliteStore

SYSTEM = "You sort the mail of a small shop. Answer with one word: refund, delivery, praise or other."
NEW_SYSTEM = "You sort the mail of a small shop. Answer with one word: money, delivery, praise or other."
MODEL = "gpt-6"

_SAID = {
    "refund": ("I want my money back for the", "please refund the broken", "pay me back, I return the"),
    "delivery": ("where is the parcel with the", "still waiting for delivery of the", "when do you ship the"),
    "praise": ("I love the", "thank you, a wonderful", "five stars for the beautiful"),
    "other": ("do you sell gift cards for the", "which colours are there of the", "opening hours to see the"),
}
_THINGS = ("kettle", "blue scarf", "desk lamp", "teapot", "garden chair", "wool hat", "radio", "bread knife",
           "picture frame", "umbrella", "rug", "alarm clock")  # fmt: skip
_WHO = ("", " my aunt gave me", " from last week", " of my neighbour")


def template(system: str = SYSTEM, version: int = 1, *, task: str = "mail", turns: bool = False) -> PromptTemplate:
    """The shop's prompt: a system message, and the customer's words behind `Message: ` or as turns."""
    first = MessagePattern(_header("system"), (TextPattern((system,)),))
    if turns:
        return PromptTemplate(task, version, (first,), turns=True)
    asked = MessagePattern(_header("user"), (TextPattern(("Message: ", ""), (Slot("message"),)),))
    return PromptTemplate(task, version, (first, asked))


def _header(role: str) -> str:
    return layout.read_message({"role": role, "content": ""})[0]


def mail() -> list[tuple[str, str]]:
    """576 different messages with their labels, all labels from the first few on."""
    rows = zip(*_SAID.values(), strict=True)
    said = [(words, label) for row in rows for label, words in zip(_SAID, row, strict=True)]
    return [(f"{words} {thing}{who}", label) for thing, who, (words, label) in product(_THINGS, _WHO, said)]


def sorted_by_the_model(text: str) -> str:
    """What the prompted model answers to any message."""
    return next((label for label, said in _SAID.items() if any(words in text for words in said)), "other")


def asked(text: str, *, system: str = SYSTEM, model: str = MODEL, **more: Any) -> dict[str, Any]:
    """The body of the app's request for one message."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Message: {text}"}]
    return {"model": model, "messages": messages, **more}


def answer(content: str | None, *, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """The body of a model's answer."""
    said = {"role": "assistant", "content": content, **message}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": said, "finish_reason": finish}]}


def exchange(
    number: int, body: dict[str, Any], reply: dict[str, Any] | str, *, version: int | None = 1, **columns: Any
) -> Exchange:
    """An exchange as the relay records it, assigned to the task `mail`; ids are in the order of the numbers."""
    said = reply if isinstance(reply, dict) else answer(reply)
    values: dict[str, Any] = {
        "started_at": 1000.0 + number, "provider": "openai", "endpoint": "/v1/chat/completions",
        "model_requested": body["model"], "model_served": body["model"], "target": f"openai/{body['model']}",
        "status": 200, "complete": True, "finish_reason": "stop", "latency_ms": 400.0 + number % 7 * 50,
        "input_tokens": 40, "output_tokens": 1, "usage_source": "upstream", "cost_usd": 0.001,
        "task": "mail" if version else None, "task_version": version,
        "request": json.dumps(body).encode(), "response": json.dumps(said).encode(),
    }  # fmt: skip
    return Exchange(id=f"e{number:05}", **(values | columns))


def traffic(count: int, *, start: int = 0) -> list[Exchange]:
    """The first messages of the shop's mail, each asked once and answered as the model does."""
    return [exchange(start + n, asked(text), label) for n, (text, label) in enumerate(mail()[:count])]


def with_the_new_prompt(count: int, *, start: int, form: str = "{}") -> list[Exchange]:
    """The same mail, asked with the prompt's second version and answered in this form."""
    return [
        exchange(start + n, asked(text, system=NEW_SYSTEM), form.format(label), version=2)
        for n, (text, label) in ((n, mail()[(start + n) % 500]) for n in range(count))
    ]


def keep(store: SqliteStore, exchanges: Sequence[Exchange], *templates: PromptTemplate) -> None:
    """Record exchanges that are assigned to the task already."""
    with store.transaction():
        for prompt in templates or (template(),):
            store.add_template(prompt)
        store.absorb("segment", 0, exchanges)
        for one in exchanges:
            found = (one.task, one.task_version) if one.task and one.task_version else None
            store.assign({one.id: found})


def feedback(store: SqliteStore, exchange_id: str, **said: Any) -> None:
    """What a person said of an exchange."""
    number = len(store.rows("feedback"))
    store.put("feedback", {"id": f"f{number}", "exchange_id": exchange_id, "created_at": float(number), **said})


def config_in(folder: Path, **sections: Any) -> Config:
    """A config whose store is in `folder`, and whose trainer tries one small candidate."""
    return Config.model_validate({
        "store": {"url": f"sqlite:///{folder / 'data' / 'unprompt.db'}"},
        "providers": {"openai": {"base_url": "http://127.0.0.1:9/v1"}},
        "tasks": {"default": {"min_rows": 100, "canary": [100], "canary_pairs": 50}},  # promoted at once
        "trainers": {"classifier": {"kind": "classifier", "sweep": [{"features": "word"}]}},
    } | sections)  # fmt: skip


def workshop_in(folder: Path, store: SqliteStore, config: Config, **more: Any) -> Workshop:
    """The offline wing whose store is in `folder`."""
    return Workshop(
        store=store, config=config, prices=price_book(config), routes=folder / "config" / "routes.yaml",
        models=folder / "data" / "models", datasets=folder / "data" / "datasets", **more,
    )  # fmt: skip
