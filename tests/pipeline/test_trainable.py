"""Conversations as apps send them become rows that a training service takes, or are dropped for a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stories import exchange, keep, template

from gateway import formats
from gateway.pipeline.dataset import build
from gateway.stores.sqlite import SqliteStore

Json = dict[str, Any]
HELD = {"role": "assistant", "content": "How old is it?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


def talk(number: int, *turns: Json) -> Json:
    """A request of the shop's chat: the prompt, and what was said so far."""
    first = {"role": "user", "content": f"kettle number {number} is broken, what now?"}
    return {"model": "gpt-6", "messages": [{"role": "system", "content": template().literals[0]}, first, *turns]}


def built(store: SqliteStore, folder: Path, odd: Json) -> tuple[Json, list[bytes]]:
    talks = [exchange(n, talk(n, HELD, {"role": "user", "content": "a year"}), "refund") for n in range(80)]
    keep(store, [*talks, exchange(900, odd, "praise")], template(turns=True))
    data = build(store, "mail", folder)
    files = sorted(Path(data.directory).glob("[tvc]*.jsonl"))
    return data.card, [line for file in files for line in file.read_bytes().splitlines()]


def test_fields_that_a_client_fills_in_with_nothing_are_left_out(store: SqliteStore, tmp_path: Path) -> None:
    echoed: Json = {
        **HELD,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    card, lines = built(store, tmp_path, talk(900, echoed, {"role": "user", "content": "two years"}))
    assert (card["rows"], card["dropped"]) == (81, {})
    assert [line for line in lines if b"two years" in line and b"annotations" in line] == []
    assert list(formats.invalid_rows(formats.load("openai"), lines)) == []
    assert len(lines) == 81


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({**HELD, "reasoning_content": "hm"}, "unknown_key"),
        ({"role": "bot", "content": "hm"}, "unknown_role"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_call"),
        ({"role": "assistant", "content": None}, "missing_content"),
    ],
)
def test_what_no_service_takes_is_dropped_and_counted(
    store: SqliteStore, tmp_path: Path, turn: Json, reason: str
) -> None:
    card, lines = built(store, tmp_path, talk(900, turn, {"role": "user", "content": "two years"}))
    assert (card["rows"], card["dropped"]) == (80, {f"no valid chat: {reason}": 1})
    assert list(formats.invalid_rows(formats.load("openai"), lines)) == []


def test_a_called_and_answered_tool_stays(store: SqliteStore, tmp_path: Path) -> None:
    turns: list[Json] = [{"role": "assistant", "content": None, "tool_calls": [CALL]},
             {"role": "tool", "tool_call_id": "c1", "content": "bought in May"}]  # fmt: skip
    card, lines = built(store, tmp_path, talk(900, *turns))
    assert (card["rows"], card["dropped"]) == (81, {})
    assert list(formats.invalid_rows(formats.load("openai"), lines)) == []
