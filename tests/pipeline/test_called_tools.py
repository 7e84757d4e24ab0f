"""What a candidate is worth where the prompted model calls tools: the same tools with the same arguments count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judging import REMOTE, only
from stories import answer, asked, config_in, exchange, keep, mail, sorted_by_the_model, template

from gateway.app import price_book
from gateway.domain import layout
from gateway.domain.dataset import Dataset, Row
from gateway.pipeline import evaluate
from gateway.pipeline.asking import asker
from gateway.pipeline.dataset import build
from gateway.pipeline.evaluate import Report
from gateway.pipeline.quality import exact, field_counts, field_f1, is_json_object, same_answer
from gateway.pipeline.scoring import values_of
from gateway.pipeline.tool_calls import calls_in, of_row, shown, spelled
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

KETTLE, RUG = ("look_up", '{"order": "K-1"}'), ("look_up", '{"order": "R-2"}')
MAILED = ("send", '{"to": "jo", "text": "on its way"}')
arguments = st.dictionaries(st.text(max_size=3), st.integers(-9, 9) | st.text(max_size=3), max_size=3)


# --- two answers ------------------------------------------------------------------------------------------


def test_the_order_of_parallel_calls_and_of_their_keys_does_not_count() -> None:
    one = spelled([KETTLE, MAILED, RUG])
    assert same_answer(one, spelled([RUG, KETTLE, ("send", '{"text":"on its way","to":"jo"}')]))
    assert not same_answer(one, spelled([KETTLE, MAILED]))
    assert not same_answer(one, spelled([KETTLE, MAILED, KETTLE]))
    assert not same_answer(spelled([KETTLE]), spelled([("find", KETTLE[1])]))


@given(st.lists(st.tuples(st.sampled_from(["look_up", "send"]), arguments), min_size=1, max_size=4), st.randoms())
def test_calls_are_the_same_in_any_order_and_others_as_soon_as_one_is_gone(
    calls: list[tuple[str, dict[str, Any]]], chance: Any
) -> None:
    mixed = chance.sample(calls, len(calls))
    one = spelled((name, json.dumps(each)) for name, each in calls)
    other = spelled((name, json.dumps(dict(reversed(each.items())), indent=1)) for name, each in mixed)
    assert same_answer(one, other)
    assert field_f1(one, other) == 1.0
    assert not same_answer(one, spelled((name, json.dumps(each)) for name, each in calls[1:]))


def test_a_text_never_says_what_a_call_says() -> None:
    called = spelled([KETTLE])
    text = json.dumps(calls_in(called))
    assert shown(called) == 'tool calls: {"look_up": [{"order": "K-1"}]}'
    assert not same_answer(called, text)
    assert (exact(called, text), field_f1(called, text), field_f1(text, called)) == (0.0, 0.0, 0.0)
    assert not is_json_object(called)
    assert calls_in(text) is None


def test_arguments_that_are_no_json_are_compared_as_they_stand() -> None:
    assert same_answer(spelled([("run", "ls -l")]), spelled([("run", "ls -l")]))
    assert not same_answer(spelled([("run", "ls -l")]), spelled([("run", "ls")]))
    assert same_answer(spelled([("now", "")]), spelled([("now", "{}")]))


def test_the_arguments_are_the_fields_and_belong_to_their_tool() -> None:
    wanted, said = spelled([KETTLE, MAILED]), spelled([KETTLE, ("send", '{"to": "al", "text": "on its way"}')])
    assert field_f1(wanted, said) == pytest.approx(2 / 3)
    found = field_counts([(wanted, said)])
    assert {path: (each.right, each.missed, each.added) for path, each in found.items()} == {
        "look_up[].order": (1, 0, 0), "send[].text": (1, 0, 0), "send[].to": (0, 1, 1),
    }  # fmt: skip
    assert field_f1(wanted, spelled([("look_down", KETTLE[1]), MAILED])) == pytest.approx(2 / 3)


def test_beside_prose_a_call_is_right_or_wrong() -> None:
    near = spelled([("look_up", '{"order": "K-2"}')])
    pairs = [(spelled([KETTLE]), near), (spelled([KETTLE]), spelled([KETTLE])), ("a kettle", spelled([KETTLE]))]
    assert values_of("similarity", pairs) == [0.0, 1.0, 0.0]
    assert values_of("similarity", [("a kettle", "a kettles")]) > [0.5]


def test_a_row_expects_its_calls_or_its_text() -> None:
    row = Row(exchange_id="e", text="t", messages=[], output="refund", split="validation")
    function = {"name": "look_up", "arguments": '{"order": "K-1"}'}
    called = msgspec.structs.replace(
        row, output="", tool_calls=[{"id": "call_1", "type": "function", "function": function}]
    )
    assert (of_row(row), of_row(called)) == ("refund", spelled([KETTLE]))


# --- an evaluation ----------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def called(*orders: str) -> dict[str, Any]:
    """The message of a model that looks these orders up."""
    return {"content": None, "tool_calls": [
        {"id": f"made_up_{n}", "type": "function",
         "function": {"name": "look_up", "arguments": json.dumps({"order": order, "shop": "here"})}}
        for n, order in enumerate(orders)
    ]}  # fmt: skip


def orders_in(text: str) -> list[str]:
    return text.removeprefix("what of ").split(" and ")


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    """120 labels, and 80 messages upon which the prompted model looks two orders up; every other one streamed."""
    texts = [exchange(n, asked(text, tools=[TOOL]), label) for n, (text, label) in enumerate(mail()[:120])]
    calls = []
    for n in range(80):
        said = called(f"K-{n}", f"R-{n}")
        body = asked(f"what of K-{n} and R-{n}", tools=[TOOL], stream=bool(n % 2))
        reply: dict[str, Any] = {"response": stream_of(said).encode(), "streamed": True} if n % 2 else {}
        whole = answer(None, finish="tool_calls", tool_calls=said["tool_calls"])
        calls.append(exchange(900 + n, body, whole, finish_reason="tool_calls", **reply))
    prompt = msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[TOOL])))
    keep(store, [*texts, *calls], prompt)
    return build(store, "mail", tmp_path / "data" / "datasets")


def stream_of(said: dict[str, Any]) -> str:
    """The same message in chunks, a call's arguments in three."""
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    for n, call in enumerate(said["tool_calls"]):
        text = call["function"]["arguments"]
        head = {"name": call["function"]["name"], "arguments": text[:3]}
        deltas.append({"tool_calls": [{"index": n, "id": call["id"], "type": "function", "function": head}]})
        deltas += [
            {"tool_calls": [{"index": n, "function": {"arguments": piece}}]} for piece in (text[3:9], text[9:])
        ]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    events = [{"object": "chat.completion.chunk", "model": "gpt-6", **chunk} for chunk in chunks]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


Reply = Callable[[str], "str | dict[str, Any]"]


def judged(store: SqliteStore, folder: Path, data: Dataset, reply: Reply, **policy: Any) -> Report:
    """Evaluated against a server that answers a bare message by `reply`."""
    with FakeOpenAI(lambda body: reply(body["messages"][-1]["content"])) as api:
        tasks = {"default": {"min_rows": 100, **policy}}
        config = config_in(folder, providers={"openai": {"base_url": api.base_url}}, tasks=tasks)
        ask = asker(config, price_book(config), folder)
        found = evaluate.evaluate(store, config, data, [REMOTE], folder, ask)
        assert all(request.json()["tools"] == [TOOL] for request in api.received)
        return found


def test_a_candidate_that_calls_the_same_tools_agrees(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    def reply(text: str) -> str | dict[str, Any]:
        if text.startswith("what of "):
            return called(*reversed(orders_in(text)))  # in another order, under other ids
        return sorted_by_the_model(text)

    score = only(judged(store, tmp_path, data, reply))
    assert len(data.beyond) > 8
    assert score.rows == len(data.part("validation")) + len(data.beyond)
    assert (score.agreement, score.answered) == (1.0, 1.0)
    assert (score.metrics["calls_same"].value, score.metrics["calls_f1"].value) == (1.0, 1.0)
    assert score.metrics["macro_f1"].value == 1.0  # of the labels alone


def test_a_wrong_argument_is_a_wrong_answer_with_most_of_its_arguments_right(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    def reply(text: str) -> str | dict[str, Any]:
        return called(orders_in(text)[0], "R-x") if text.startswith("what of ") else sorted_by_the_model(text)

    report = judged(store, tmp_path, data, reply)
    score = only(report)
    assert score.agreement == pytest.approx(1 - len(data.beyond) / score.rows)
    assert score.metrics["calls_same"].value == 0.0
    assert score.metrics["calls_f1"].value == pytest.approx(3 / 4)
    page = (Path(data.directory) / "report.html").read_text()
    assert "look_up[].order" in page
    assert "same tool calls" in page
    assert "\0" not in page


def test_one_that_talks_where_tools_are_to_be_called_is_wrong(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    score = only(judged(store, tmp_path, data, sorted_by_the_model))
    assert score.agreement == pytest.approx(1 - len(data.beyond) / score.rows)
    assert (score.metrics["calls_same"].value, score.metrics["calls_f1"].value) == (0.0, 0.0)


def test_one_that_calls_tools_where_words_are_expected_is_wrong(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    score = only(judged(store, tmp_path, data, lambda text: called(*orders_in(text))))
    assert score.agreement == pytest.approx(len(data.beyond) / score.rows)
    assert score.metrics["calls_same"].value == 1.0
    assert score.metrics["macro_f1"].value == 0.0


def test_by_fields_an_answer_counts_by_its_right_arguments(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    def reply(text: str) -> str | dict[str, Any]:
        return called(orders_in(text)[0], "R-x") if text.startswith("what of ") else sorted_by_the_model(text)

    score = only(judged(store, tmp_path, data, reply, measure="fields"))
    labels = score.rows - len(data.beyond)  # no JSON: by its fields such an answer is worth nothing
    assert score.quality == pytest.approx((0.75 * len(data.beyond) + 0.0 * labels) / score.rows)
