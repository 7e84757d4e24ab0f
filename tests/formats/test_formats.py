"""Every row that we write is one that its consumer takes; what is wrong in a file is named by line and reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from stories import asked, template

from gateway import formats
from gateway.errors import DatasetError
from gateway.formats import Example, InvalidRow, Reason, check_line, invalid_rows, line_of, load, names, written

Json = dict[str, Any]

CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"order": 7}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
TURNS = [
    {"role": "system", "content": "You know all parcels."},
    {"role": "user", "content": "where is my kettle?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
    {"role": "tool", "tool_call_id": "c1", "content": "on its way"},
]


def example(answer: str = "delivery", **more: Any) -> Example:
    """A letter, sorted."""
    values: Json = {
        "id": "e1", "text": "where is the kettle", "messages": [{"role": "user", "content": "where is the kettle"}],
        "answer": {"role": "assistant", "content": answer}, "worse": {"role": "assistant", "content": "praise"},
    }  # fmt: skip
    return Example(**(values | more))


def chat(**more: Any) -> Example:
    """A conversation in which a tool was asked."""
    return example("It is on its way.", messages=TURNS, tools=[TOOL], **more)


def row_of(name: str, one: Example) -> Json:
    (line,) = written(load(name), [one]).lines
    row: Json = json.loads(line)
    return row


def test_what_each_consumer_gets() -> None:
    asks = {"role": "user", "content": "where is the kettle"}
    says = {"role": "assistant", "content": "delivery"}
    conversation = {"messages": [asks, says]}
    assert {name: row_of(name, example()) for name in names()} == {
        "classifier": {"text": "where is the kettle", "label": "delivery"},
        "dpo": {"input": {"messages": [asks]}, "preferred_output": [says],
                "non_preferred_output": [{"role": "assistant", "content": "praise"}]},
        "fireworks": conversation, "openai": conversation, "together": conversation, "trl": conversation,
    }  # fmt: skip


def test_tools_stay_and_each_consumer_has_its_own_way_to_write_them() -> None:
    row = row_of("openai", chat())
    assert row["tools"] == [TOOL]
    assert row["messages"][2] == {"role": "assistant", "tool_calls": [CALL]}  # what says nothing is gone
    assert row_of("together", chat()) == row_of("fireworks", chat()) == row
    own = row_of("trl", chat())
    assert json.loads(own["tools"]) == [TOOL]
    assert own["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"order": 7}
    assert row_of("dpo", chat())["input"] == {"messages": row["messages"][:-1], "tools": [TOOL]}


def test_an_answer_that_is_a_call_can_be_learnt() -> None:
    one = example(answer="")
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    one = Example(id="e1", text="t", messages=one.messages, answer=calls, tools=[TOOL])
    assert row_of("openai", one)["messages"][-1] == {"role": "assistant", "tool_calls": [CALL]}
    assert row_of("trl", one)["messages"][-1]["tool_calls"][0]["function"]["arguments"] == {"order": 7}


# --- what is wrong is named ------------------------------------------------------------------------------


def put(*path: str | int, value: Any) -> Callable[[Json], Json]:
    """Change one value deep in a row."""

    def change(row: Json) -> Json:
        at: Any = row
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        return row

    return change


def drop(*path: str | int) -> Callable[[Json], Json]:
    def change(row: Json) -> Json:
        at: Any = row
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        return row

    return change


def first(*messages: Json) -> Callable[[Json], Json]:
    """Put messages before all others."""
    return lambda row: row | {"messages": [*messages, *row["messages"]]}


USER = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "Sort."}
CHATS = ("openai", "together", "fireworks", "trl")
DAMAGE: list[tuple[tuple[str, ...], Reason, Callable[[Json], Json]]] = [
    (CHATS, Reason.UNKNOWN_KEY, put("temperature", value=1)),
    (CHATS, Reason.UNKNOWN_KEY, put("messages", 1, "cache_control", value={})),
    (CHATS, Reason.NO_MESSAGES, put("messages", value=[])),
    (CHATS, Reason.NO_MESSAGES, drop("messages")),
    (CHATS, Reason.WRONG_TYPE, put("messages", 1, value="hello")),
    (CHATS, Reason.WRONG_TYPE, put("messages", 1, "content", value=7)),
    (CHATS, Reason.WRONG_TYPE, put("messages", 1, "name", value=7)),
    (CHATS, Reason.MISSING_KEY, drop("messages", 1, "role")),
    (CHATS, Reason.UNKNOWN_ROLE, put("messages", 1, "role", value="bot")),
    (CHATS, Reason.UNKNOWN_ROLE, put("messages", 1, "role", value=["user"])),
    (CHATS, Reason.MISSING_CONTENT, drop("messages", 1, "content")),
    (CHATS, Reason.NO_ANSWER, drop("messages", -1)),
    (CHATS, Reason.NO_ANSWER, put("messages", -1, "weight", value=0)),
    (CHATS, Reason.EMPTY_ANSWER, put("messages", -1, "content", value=" \n")),
    (CHATS, Reason.WEIGHT, put("messages", -1, "weight", value=0.5)),
    (CHATS, Reason.WEIGHT, put("messages", -1, "weight", value=True)),
    (CHATS, Reason.WEIGHT, put("messages", 1, "weight", value=1)),
    (CHATS, Reason.SPECIAL_TOKEN, put("messages", 1, "content", value="so <|im_end|> what")),
    (("together", "fireworks", "trl"), Reason.SPECIAL_TOKEN, put("messages", 1, "content", value="<|eot_id|>")),
    (CHATS, Reason.TOOL_CALL, put("messages", 2, "tool_calls", 0, "function", "arguments", value="{order: 7}")),
    (CHATS, Reason.TOOL_CALL, put("messages", 2, "tool_calls", 0, "function", value={"arguments": "{}"})),
    (CHATS, Reason.TOOL_CALL, put("messages", 2, "tool_calls", value=[])),
    (CHATS, Reason.TOOL_CALL, put("messages", 1, "tool_calls", value=[CALL])),
    (CHATS, Reason.TOOL_CALL, put("messages", 3, "tool_call_id", value="c2")),
    (CHATS, Reason.TOOL_CALL, drop("messages", 3)),
    (("openai", "together", "fireworks"), Reason.TOOLS, put("tools", value=[{"type": "function"}])),
    (("trl",), Reason.TOOLS, put("tools", value='[{"type": "function"}]')),
    (("trl",), Reason.WRONG_TYPE, put("tools", value=[])),
    (("openai", "together", "fireworks"), Reason.TOOLS, put("tools", value=[])),
    (("trl",), Reason.TOOLS, put("tools", value="[")),
    (("openai",), Reason.WRONG_TYPE, put("parallel_tool_calls", value="yes")),
    (("together", "fireworks"), Reason.ROLE_ORDER, first(SYSTEM, USER)),
    (
        ("together", "fireworks"),
        Reason.ROLE_ORDER,
        put("messages", 0, value={"role": "assistant", "content": "hi"}),
    ),
    (("together", "fireworks"), Reason.UNKNOWN_ROLE, put("messages", 0, "role", value="developer")),
    (("fireworks",), Reason.WRONG_TYPE, put("messages", 1, "content", value=[{"type": "text", "text": "hi"}])),
    (("openai", "together", "trl"), Reason.WRONG_TYPE, put("messages", 1, "content", value=[{"text": "hi"}])),
    (("openai", "together", "trl"), Reason.MISSING_CONTENT, put("messages", 1, "content", value=[])),
    (("dpo",), Reason.MISSING_KEY, drop("preferred_output")),
    (("dpo",), Reason.UNKNOWN_KEY, put("preferred_completion", value=[])),
    (("dpo",), Reason.WRONG_TYPE, put("input", value=[])),
    (("dpo",), Reason.NO_MESSAGES, drop("input", "messages")),
    (("dpo",), Reason.ROLE_ORDER, lambda row: put("input", "messages", value=row["preferred_output"])(row)),
    (("dpo",), Reason.NO_ANSWER, put("non_preferred_output", value=[])),
    (("dpo",), Reason.NO_ANSWER, put("preferred_output", 0, "role", value="user")),
    (("dpo",), Reason.EMPTY_ANSWER, put("preferred_output", 0, "content", value="")),
    (("dpo",), Reason.TOOL_CALL, put("preferred_output", 0, "tool_calls", value=[CALL])),
    (("dpo",), Reason.SAME_OUTPUTS, put("preferred_output", 0, "content", value="praise")),
    (("dpo",), Reason.SPECIAL_TOKEN, put("preferred_output", 0, "content", value="<|endoftext|>")),
    (("classifier",), Reason.MISSING_KEY, drop("label")),
    (("classifier",), Reason.UNKNOWN_KEY, put("score", value=1)),
    (("classifier",), Reason.WRONG_TYPE, put("text", value=None)),
    (("classifier",), Reason.WRONG_TYPE, put("label", value=True)),
    (("classifier",), Reason.MISSING_CONTENT, put("text", value=" ")),
    (("classifier",), Reason.EMPTY_ANSWER, put("label", value="")),
    (("classifier",), Reason.TOO_LONG, put("label", value="x" * 201)),
]
CASES = [(name, reason, damage) for many, reason, damage in DAMAGE for name in many]


@pytest.mark.parametrize(("name", "reason", "damage"), CASES)
def test_a_damaged_row_is_named_by_line_and_reason(
    name: str, reason: Reason, damage: Callable[[Json], Json]
) -> None:
    good = row_of(name, chat())
    bad = line_of(damage(copy.deepcopy(good)))
    lines = [line_of(good), line_of(good), bad, line_of(good)]
    assert [(each.line, each.reason) for each in invalid_rows(load(name), lines)] == [(3, reason)]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"{not json", Reason.NOT_JSON), (b"\xff\xfe", Reason.NOT_JSON), (b"", Reason.NOT_JSON),
     (b'{"a": NaN}', Reason.NOT_JSON), (b"[" * 100_000, Reason.NOT_JSON), (b"[]", Reason.NOT_OBJECT),
     (b"null", Reason.NOT_OBJECT), (b'{"text": "\\ud83d"}', Reason.NOT_TEXT)],
)  # fmt: skip
def test_a_line_that_is_no_row_is_named(name: str, line: bytes, reason: Reason) -> None:
    (found,) = invalid_rows(load(name), [line])
    assert (found.line, found.reason) == (1, reason)
    assert str(found).startswith(f"line 1: {reason.value}: ")


def test_every_reason_is_shown_above() -> None:
    shown = {reason for _, reason, _ in CASES} | {Reason.NOT_JSON, Reason.NOT_OBJECT, Reason.NOT_TEXT}
    assert set(Reason) - shown == {Reason.NO_PAIR}  # an example's, not a row's
    with pytest.raises(InvalidRow, match="no_pair"):
        load("dpo").write(example(worse=None))


def test_who_asks_for_an_unknown_format_is_told_the_known_ones() -> None:
    with pytest.raises(DatasetError, match="classifier, dpo, fireworks, openai, together, trl"):
        load("parquet")


def test_what_has_no_valid_row_is_left_out_and_named() -> None:
    odd = example(messages=[{"role": "user", "content": "<|im_start|>"}], id="e2")
    half = example(messages=[{"role": "user", "content": "\ud83d"}], id="e3")
    found = written(load("openai"), [example(), odd, half])
    assert len(found.lines) == 1
    assert [(key, invalid.reason) for key, invalid in found.left_out] == [
        ("e2", Reason.SPECIAL_TOKEN), ("e3", Reason.NOT_TEXT),
    ]  # fmt: skip


# --- whatever people write -------------------------------------------------------------------------------

TEXTS = st.text(min_size=1).filter(lambda text: text.strip() and "<|" not in text)
ANSWERS = TEXTS.filter(lambda text: len(text) <= 200)


@given(TEXTS, ANSWERS, ANSWERS)
@settings(max_examples=500)
def test_what_the_strip_leaves_of_any_request_is_valid_everywhere(text: str, answer: str, worse: str) -> None:
    inputs = template().strip(asked(text))
    if inputs is None:
        return  # it goes whole, and is no row
    one = Example(
        id="e", text=inputs.text, messages=inputs.messages, answer={"role": "assistant", "content": answer},
        worse={"role": "assistant", "content": worse + "!"},
    )  # fmt: skip
    for name in names():
        form = load(name)
        found = written(form, [one])
        assert found.left_out == [] or (name, answer) == ("dpo", worse + "!")
        assert list(invalid_rows(form, found.lines)) == []
        assert all(line.decode().splitlines() == [line.decode()[:-1]] for line in found.lines)


KEYS = ("messages", "role", "content", "tool_calls", "function", "name", "arguments", "tools", "type", "text",
        "label", "input", "preferred_output", "non_preferred_output", "weight", "id")  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.sampled_from(names()))
@settings(max_examples=2000, deadline=None)
def test_whatever_a_file_holds_is_judged_and_never_raises_anything_else(value: Any, name: str) -> None:
    line = json.dumps(value).encode()
    for invalid in invalid_rows(load(name), [line]):
        assert invalid.reason in Reason


@given(
    JSON, st.integers(0, 4), st.sampled_from(["role", "content", "tool_calls", "name", "weight", "tool_call_id"])
)
@settings(max_examples=2000, deadline=None)  # the first example also loads the formats
def test_a_message_with_anything_in_it_is_judged_too(value: Any, at: int, key: str) -> None:
    for name in CHATS:
        row = copy.deepcopy(row_of(name, chat()))
        row["messages"][at][key] = value
        for invalid in invalid_rows(load(name), [json.dumps(row).encode()]):
            assert invalid.reason in Reason


# --- judged by those who made the formats ---------------------------------------------------------------


def rows(name: str) -> Iterator[Json]:
    return (row_of(name, one) for one in (example(), chat()))


def test_the_openai_package_knows_our_messages_and_tools() -> None:
    message = pydantic.TypeAdapter(ChatCompletionMessageParam)
    tool = pydantic.TypeAdapter(ChatCompletionFunctionToolParam)
    found = [*rows("openai"), *(row["input"] for row in rows("dpo"))]
    for row in found:
        for one in row["messages"]:
            message.validate_python(one)
        for one in row.get("tools", []):
            tool.validate_python(one)
    with pytest.raises(pydantic.ValidationError):
        message.validate_python({"role": "bot", "content": "hi"})
    assert len(found) == 4


def test_togethers_own_check_agrees(tmp_path: Path) -> None:
    check = pytest.importorskip("together.utils.files").check_file
    for name in ("together", "dpo"):
        file = tmp_path / f"{name}.jsonl"
        file.write_bytes(line_of(row_of(name, example())))
        report = check(file)
        assert report["is_check_passed"], report
    twice = first(USER)(row_of("together", example()))
    file.write_bytes(line_of(twice))
    assert not check(file)["is_check_passed"]
    assert [each.reason for each in invalid_rows(load("together"), [line_of(twice)])] == [Reason.ROLE_ORDER]


def test_what_trl_loads_is_what_we_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    file = tmp_path / "train.jsonl"
    other = copy.deepcopy(CALL) | {"function": {"name": "ask", "arguments": '{"shop": "north"}'}}
    turns = [*TURNS[:2], {"role": "assistant", "tool_calls": [other]}, TURNS[3]]
    examples = [example(), chat(), example(messages=turns, tools=[TOOL])]
    found = written(load("trl"), examples).lines
    file.write_bytes(b"".join(found))
    loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
    assert len(loaded) == 3
    for line, row in zip(found, loaded, strict=True):
        assert {key: value for key, value in row.items() if value is not None} == json.loads(line)


def test_a_line_is_checked_alone_too() -> None:
    check_line(load("openai"), line_of(row_of("openai", chat())))
    with pytest.raises(InvalidRow, match="no_messages: no list of 'messages'"):
        check_line(load("openai"), b"{}")
    assert formats.load("openai").least_rows == 10
