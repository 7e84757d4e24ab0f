"""Answers that call a tool: chat models learn them with the tools that a live stripped request declares, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stories import answer, asked, exchange, keep, mail, template

from gateway import formats
from gateway.domain import layout
from gateway.domain.dataset import Dataset
from gateway.pipeline.dataset import build, load
from gateway.pipeline.formatting import write_format
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import training_tokens

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"order": {"type": "string"}}}},
}
ODD_TOOL = {"name": "look_up", "input_schema": {"type": "object"}}


def call(number: int, order: str) -> dict[str, Any]:
    """The model's answer: it looks an order up, under an id that the service made up."""
    arguments = json.dumps({"order": order})
    function = {"name": "look_up", "arguments": arguments}
    return answer(None, finish="tool_calls", tool_calls=[
        {"id": f"call_of_the_service_{number}", "type": "function", "function": function}
    ])  # fmt: skip


def built(store: SqliteStore, folder: Path, tool: dict[str, Any] = TOOL) -> Dataset:
    """Eighty labels, and forty messages upon which an order is looked up."""
    texts = [exchange(n, asked(text, tools=[tool]), label) for n, (text, label) in enumerate(mail()[:80])]
    calls = [
        exchange(900 + n, asked(f"what of order K-{n}?", tools=[tool]), call(n, f"K-{n}")) for n in range(40)
    ]  # fmt: skip
    prompt = msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[tool])))
    keep(store, [*texts, *calls], prompt)
    return build(store, "mail", folder)


def lines_of(data: Dataset, part: str) -> list[Any]:
    file = Path(data.directory) / f"{part}.jsonl"
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]


def test_a_call_is_a_row_for_chat_models_and_every_row_declares_the_tools(
    store: SqliteStore, tmp_path: Path
) -> None:
    data = built(store, tmp_path)
    rows = lines_of(data, "train")
    assert all(row["tools"] == [TOOL] for row in rows + lines_of(data, "validation"))
    called = [row for row in rows if "tool_calls" in row["messages"][-1]]
    assert len(called) == data.card["calls"]["train"] > 20
    assert len(rows) == data.card["train"]
    (number,) = [n for n in range(40) if called[0]["messages"][0]["content"] == f"what of order K-{n}?"]
    assert called[0]["messages"][-1] == {
        "role": "assistant",
        "tool_calls": [{
            "id": "call_1", "type": "function",
            "function": {"name": "look_up", "arguments": json.dumps({"order": f"K-{number}"})},
        }],
    }  # fmt: skip
    assert (data.card["rows"], data.card["dropped"], data.card["kind"]) == (120, {}, "classification")
    assert "rows that call one, which chat models alone learn: " in (Path(data.directory) / "card.md").read_text()


def test_what_is_learnt_is_what_a_live_stripped_request_sends(store: SqliteStore, tmp_path: Path) -> None:
    data = built(store, tmp_path)
    prompt = store.templates("mail")[0]
    for row in lines_of(data, "train"):
        live = prompt.strip(asked(row["messages"][0]["content"], tools=[TOOL]))
        assert live is not None
        assert (live.messages, live.envelope["tools"]) == (row["messages"][:-1], row["tools"])


def test_held_out_calls_still_judge_and_the_others_do_not(store: SqliteStore, tmp_path: Path) -> None:
    data = built(store, tmp_path)
    assert {row.split for row in data.beyond} == {"validation"}
    assert {row.split for row in data.calls} == {"train", "validation"}
    held_out = [row.exchange_id for row in data.calls if row.split != "train"]
    assert [row.exchange_id for row in data.beyond] == held_out
    assert (data.card["held_out_beyond"], data.card["calls"]["validation"]) == (0, len(held_out))
    assert not {row.text for row in data.calls if row.split == "train"} & {row.text for row in data.beyond}
    assert all(row.output == "" and row.tool_calls for row in data.beyond)
    assert not any(row.tool_calls for row in data.rows)


@pytest.mark.parametrize("name", ["openai", "trl", "together", "fireworks"])
def test_the_formats_of_chat_models_have_the_calls_and_are_valid(
    store: SqliteStore, tmp_path: Path, name: str
) -> None:
    data = built(store, tmp_path / "datasets")
    found = write_format(store, data, name, tmp_path / "out")
    assert found.rows["train"] == data.card["train"]
    assert found.left_out == {}
    lines = (tmp_path / "out" / "train.jsonl").read_bytes().split(b"\n")[:-1]
    assert list(formats.invalid_rows(formats.load(name), lines)) == []
    if name != "trl":
        train = (Path(data.directory) / "train.jsonl").read_bytes().split(b"\n")[:-1]
        assert list(formats.invalid_rows(formats.load(name), train)) == []


def test_a_classifier_is_given_no_calls(store: SqliteStore, tmp_path: Path) -> None:
    data = built(store, tmp_path / "datasets")
    found = write_format(store, data, "classifier", tmp_path / "out")
    assert found.rows["train"] == len(data.part("train"))
    assert found.left_out == {"tool_call": len(data.calls)}


def test_tools_of_another_form_are_not_written_and_their_calls_are_not_learnt(
    store: SqliteStore, tmp_path: Path
) -> None:
    data = built(store, tmp_path, ODD_TOOL)
    assert len(data.calls) == 0
    assert all(row.keys() == {"messages"} for row in lines_of(data, "train"))
    assert data.card["train"] == len(lines_of(data, "train"))
    assert len(data.beyond) > 0


def test_personal_data_in_the_arguments_is_masked(store: SqliteStore, tmp_path: Path) -> None:
    texts = [exchange(n, asked(text, tools=[TOOL]), label) for n, (text, label) in enumerate(mail()[:80])]
    own = [
        exchange(900 + n, asked(f"number {n} please", tools=[TOOL]), call(n, f"jo.{n}@shop.de"))
        for n in range(10)
    ]  # fmt: skip
    prompt = msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[TOOL])))
    keep(store, [*texts, *own], prompt)
    data = build(store, "mail", tmp_path)
    assert len(data.calls) == 10
    assert not any("shop.de" in file.read_text() for file in Path(data.directory).glob("*.jsonl"))
    assert all(json.loads(row.tool_calls[0]["function"]["arguments"])["order"] for row in data.calls)


def test_the_dataset_is_loaded_as_it_was_built_and_its_tools_are_paid_for(
    store: SqliteStore, tmp_path: Path
) -> None:
    data = built(store, tmp_path)
    again = load(store, data.id)
    assert list(again.calls) == list(data.calls)
    assert again.beyond == data.beyond
    bare = msgspec.structs.replace(data, calls=(), card={})
    tools = data.card["tools_characters"] // 4
    assert training_tokens(data, 1) > training_tokens(bare, 1) + tools * data.card["train"]
