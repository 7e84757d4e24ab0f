"""A candidate is asked just what it was trained on: the same requests go through the relay whole, become training
rows by the ordinary steps, and go through the relay again stripped; both times with the same messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import stories
from relaying import answering, openai, relay, request, response, soon, story, upstream
from stories import template

from gateway.demo.messages import messages
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline import dataset
from gateway.pipeline.discover import Discovery
from gateway.stores.sqlite import SqliteStore

LETTER = template()
ANSWER = PromptTemplate(
    "mail",
    1,
    (
        MessagePattern(
            template().head[1].header,
            (
                TextPattern(
                    ("Answer this letter to a small shop.\nLetter: ", "\nTone of the answer: ", "\nNow write it."),
                    (Slot("letter"), Slot("tone of it")),
                ),
            ),
        ),
    ),
)
CHAT = template(turns=True)
ODD = ["", " a blank before and behind ", "[tone of it]\ncalm", "\\[tone of it]", "tabs\t\r\nand \u2028 ends\n",
       "日本語 😀 é é",
       '"quotes" \\ and {{letter}}', "[letter]", "\n", "</s> \x00 \x7f"]  # fmt: skip
TEXTS = [*ODD, *(row.text for row in messages(seed=0)[:90])]


def one_slot(number: int, text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": stories.SYSTEM}, {"role": "user", "content": f"Message: {text}"}]


def several_slots(number: int, text: str) -> list[dict[str, Any]]:
    tone = ODD[number // 3 % len(ODD)] if number % 3 else "calm"
    said = f"Answer this letter to a small shop.\nLetter: {text}\nTone of the answer: {tone}\nNow write it."
    return [{"role": "user", "content": said}]


def conversation(number: int, text: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes?"},
             {"role": "user", "content": [{"type": "text", "text": f"The {number}th."}]}]  # fmt: skip
    return [{"role": "system", "content": stories.SYSTEM}, *turns[: 1 + number % 3]]


def taught(home: Path) -> dict[str, list[dict[str, Any]]]:
    """The messages of each training row by the exchange it came from, as they are in the files for trainers."""
    store = SqliteStore(home / "data" / "unprompt.db")
    Discovery(store).step(search=False)
    built = dataset.build(store, "mail", home / "data" / "datasets")
    lines = [json.loads(line) for side in ("train", "validation")
             for line in (Path(built.directory) / f"{side}.jsonl").read_text("utf-8").splitlines()]  # fmt: skip
    rows = [row for side in ("train", "validation") for row in built.rows if row.split == side]
    assert [line["messages"][:-1] for line in lines] == [row.messages for row in rows]
    store.close()
    return {row.exchange_id: row.messages for row in rows}


@pytest.mark.parametrize(
    ("prompt", "ask"),
    [(LETTER, one_slot), (ANSWER, several_slots), (CHAT, conversation)],
    ids=["one-slot", "several-slots", "conversation"],
)
@story
async def test_a_live_request_is_stripped_to_its_own_training_row(
    tmp_path: Path, prompt: PromptTemplate, ask: Any
) -> None:
    store = SqliteStore(tmp_path / "data" / "unprompt.db")
    store.add_template(prompt)
    store.close()
    bodies = [
        json.dumps({"model": "gpt-6", "messages": ask(n, text), "seed": n}).encode() for n, text in enumerate(TEXTS)
    ]
    async with upstream(answering(response())) as tuned, upstream(answering(response())) as home:
        async with relay(tmp_path, openai(home)) as gateway:
            wire = await gateway.connect()
            for body in bodies:
                await wire.send(request(body))
                await wire.message()
            assert await soon(lambda: sum(row.complete for row in gateway.rows()) == len(bodies))
            recorded = {row.id: row.request for row in gateway.rows()}
        rows = taught(tmp_path)
        assert len(rows) >= 60  # the others repeat an input, or could be cut in several ways

        providers = openai(home) | {"tuned": openai(tuned)["openai"]}
        route = {"name": "mail", "match": {"task": "mail"}, "targets": [{"upstream": "tuned", "strip": "mail@1"}]}
        async with relay(tmp_path, providers, routes=[route]) as gateway:
            for exchange_id, taught_with in rows.items():
                answer = await gateway.ask(request(recorded[exchange_id]))
                assert answer.header(b"x-unprompt-target") == b"tuned/gpt-6 stripped"
                live = tuned.requests[-1].json()
                assert live["messages"] == taught_with
                assert live["seed"] == json.loads(recorded[exchange_id])["seed"]
    forms = {json.dumps(taught_with) for taught_with in rows.values()}
    inputs = {json.dumps(json.loads(recorded[exchange_id])["messages"]) for exchange_id in rows}
    assert len(forms) == len(inputs) == len(rows)  # different inputs, different forms


def test_one_slot_is_bare_and_several_have_their_names() -> None:
    bare = LETTER.strip({"messages": one_slot(0, "[letter]\nhello")})
    assert bare is not None
    assert bare.messages == [{"role": "user", "content": "[letter]\nhello"}]
    named = ANSWER.strip({"messages": several_slots(0, "Where is it?\n[tone of it]\nangry")})
    assert named is not None
    assert named.messages == [
        {"role": "user", "content": "[letter]\nWhere is it?\n\\[tone of it]\nangry\n[tone of it]\ncalm"}
    ]
