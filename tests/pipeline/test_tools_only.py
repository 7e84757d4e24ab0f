"""A task whose answers are calls of tools: rows like others, settled and split like them, for chat models only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stories import answer, asked, config_in, exchange, keep, mail, template, workshop_in

from gateway import formats
from gateway.domain import layout
from gateway.domain.dataset import Dataset
from gateway.domain.exchange import Exchange
from gateway.pipeline import sweep
from gateway.pipeline.cycle import turn
from gateway.pipeline.dataset import build, load
from gateway.pipeline.formatting import write_format
from gateway.stores.sqlite import SqliteStore

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def call(number: int, text: str, *orders: str, tool: str = "look_up", arguments: str | None = None) -> Exchange:
    """An exchange in which the prompted model looks these orders up."""
    said = [json.dumps({"order": order}) if arguments is None else arguments for order in orders]
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": tool, "arguments": each}}
             for n, each in enumerate(said)]  # fmt: skip
    whole = answer(None, finish="tool_calls", tool_calls=calls)
    return exchange(number, asked(text, tools=[TOOL]), whole, finish_reason="tool_calls")


def calls(count: int) -> list[Exchange]:
    return [call(n, f"what of order K-{n}", f"K-{n}") for n in range(count)]


def texts(count: int, start: int = 5000) -> list[Exchange]:
    return [exchange(start + n, asked(text, tools=[TOOL]), label) for n, (text, label) in enumerate(mail()[:count])]


def built(store: SqliteStore, folder: Path, *exchanges: Exchange) -> Dataset:
    keep(store, exchanges, msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[TOOL]))))
    return build(store, "mail", folder / "data" / "datasets")


def lines(data: Dataset, name: str) -> list[Any]:
    return [json.loads(line) for line in (Path(data.directory) / f"{name}.jsonl").read_bytes().splitlines()]


def test_they_are_rows_of_which_a_fifth_is_held_out(store: SqliteStore, tmp_path: Path) -> None:
    data = built(store, tmp_path, *calls(120))
    card = data.card
    assert (card["kind"], card["recorded"], card["rows"], card["dropped"]) == ("tools", 120, 120, {})
    assert card["calls"] == {"train": card["train"], "validation": card["validation"]}
    assert 10 < card["validation"] < 40
    assert card["called"] == {"look_up": 120}
    assert set(card["on_both_sides"].values()) == {0}
    assert card["samples"][0]["output"] == 'tool calls: {"look_up": [{"order": "K-0"}]}'
    assert "rows that call one, which chat models alone learn" in (Path(data.directory) / "card.md").read_text()
    taught, held_out = lines(data, "train"), lines(data, "validation")
    assert (len(taught), len(held_out)) == (card["train"], card["validation"])
    openai = formats.load("openai")
    assert [
        wrong for row in (*taught, *held_out) for wrong in formats.invalid_rows(openai, [json.dumps(row).encode()])
    ] == []
    assert {row["messages"][-1]["tool_calls"][0]["id"] for row in taught} == {"call_1"}
    assert load(store, data.id) == data


def test_the_same_input_has_one_answer_whether_it_is_a_text_or_a_call(store: SqliteStore, tmp_path: Path) -> None:
    """One is called upon twice and answered in words once; of the other it is the other way round."""
    reused = [call(500, "where is it", "K-1"), exchange(501, asked("where is it", tools=[TOOL]), "delivery"),
              call(502, "where is it", "K-1"), call(503, "and that", "K-2"),
              exchange(504, asked("and that", tools=[TOOL]), "other"),
              exchange(505, asked("and that", tools=[TOOL]), "other")]  # fmt: skip
    data = built(store, tmp_path, *calls(80), *texts(40), *reused)
    assert [len(row.tool_calls) for row in data.calls if row.text == "where is it"] == [1]
    assert [row.output for row in data.rows if row.text == "and that"] == ["other"]
    assert data.card["dropped"] == {"duplicate input": 4}
    assert data.card["answers_differ_on_repeated_inputs"] == 1.0
    assert (data.card["rows"], len(data.rows), len(data.calls)) == (122, 41, 81)


def test_the_order_of_parallel_calls_makes_no_other_answer(store: SqliteStore, tmp_path: Path) -> None:
    twice = [call(500, "both", "K-1", "R-2"), call(501, "both", "R-2", "K-1")]
    data = built(store, tmp_path, *calls(80), *twice)
    assert data.card["answers_differ_on_repeated_inputs"] == 0.0


@pytest.mark.parametrize("odd", [{"tool": "delete"}, {"arguments": "K-1"}])
def test_a_call_that_nothing_can_learn_is_counted_and_no_row(
    store: SqliteStore, tmp_path: Path, odd: dict[str, str]
) -> None:
    """It names a tool that the requests do not declare, or its arguments are no JSON."""
    data = built(store, tmp_path, *calls(80), *(call(500 + n, f"odd number {n}", "K-1", **odd) for n in range(20)))
    assert (data.card["rows"], data.card["dropped"]) == (80, {"tool calls": 20})
    assert 0 < data.card["held_out_beyond"] < 20
    assert {row.text[:3] for row in data.beyond} == {"odd", "wha"}
    assert {row.text[:3] for row in data.calls} == {"wha"}


def test_nearly_the_same_inputs_are_thinned_out_and_on_one_side(store: SqliteStore, tmp_path: Path) -> None:
    """Messages of forty words that differ in the last one."""
    long = " ".join(f"word{n}" for n in range(40))
    alike = [call(500 + n, f"{long} and K-{n}", f"K-{n}") for n in range(60)]
    data = built(store, tmp_path, *calls(80), *alike)
    kept = [row for row in data.calls if row.text.startswith("word0")]
    assert len({row.split for row in kept}) == 1
    assert len(kept) == 4
    assert data.card["rows"] == 84


# --- who learns them --------------------------------------------------------------------------------------

CHAT = {"kind": "openai", "provider": "openai", "sweep": [{"base_model": "small"}]}
TRAINERS = {"classifier": {"kind": "classifier", "sweep": [{"features": "word"}]}, "tuned": CHAT}


@pytest.mark.parametrize(
    ("exchanges", "chosen"),
    [
        ([*calls(120)], ["tuned"]),
        ([*calls(60), *texts(120)], ["classifier", "tuned"]),
        ([*texts(120)], ["classifier"]),
    ],
)
def test_chat_models_are_tried_where_answers_call_tools(
    store: SqliteStore, tmp_path: Path, exchanges: list[Exchange], chosen: list[str]
) -> None:
    data = built(store, tmp_path, *exchanges)
    found = sweep.sweep_of(config_in(tmp_path, trainers=TRAINERS), data, tmp_path)
    assert list(found) == chosen


def test_without_such_a_trainer_the_task_says_what_is_missing(store: SqliteStore, tmp_path: Path) -> None:
    shop = workshop_in(tmp_path, store, config_in(tmp_path))
    keep(store, calls(120), msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[TOOL]))))
    decision = turn(shop, "mail")
    assert decision is not None
    assert not decision.promote
    (failed,) = store.finetunes()
    assert "one of kind trl, openai, together, fireworks or export does" in (failed.error or "")


def test_a_classifier_s_file_leaves_them_out_by_their_reason(store: SqliteStore, tmp_path: Path) -> None:
    data = built(store, tmp_path, *calls(60), *texts(120))
    made = write_format(store, data, "classifier", tmp_path / "made")
    assert made.left_out == {"tool_call": 60}
    assert sum(made.rows.values()) == 120
