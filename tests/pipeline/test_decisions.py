"""The history of a task: a person can read what was decided, on which figures, and what was flipped."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import to_builtins

from gateway.pipeline.cycle import Workshop
from gateway.pipeline.decisions import flips
from gateway.pipeline.gate import Check, Decision
from gateway.pipeline.promotions import note_refusal

FAILS = Check("agreement, lower bound", 0.93, 0.95, holds=False)
HOLDS = Check("agreement, lower bound", 0.97, 0.95, holds=True)


def record(*checks: Check, promote: bool = False) -> Decision:
    return Decision(task="mail", evaluation="e1", candidate="ft-1", score=None, checks=checks, promote=promote)


def flip(shop: Workshop, number: int, action: str, decision: Any, state: str = "done") -> None:
    shop.store.put("promotions", {
        "id": f"p{number}", "task": "mail", "action": action, "target": "mail-1", "created_at": float(number),
        "decision": json.dumps(decision), "state": state,
    })  # fmt: skip


def test_a_refusal_is_told_with_its_whole_record(shop: Workshop) -> None:
    refused = record(FAILS)
    note_refusal(shop.store, refused)
    (line,) = flips(shop.store, "mail")
    assert (line.action, line.decision) == ("refuse", refused)
    assert flips(shop.store, "notes") == []


@pytest.mark.parametrize(
    ("action", "decision", "said"),
    [
        ("advance", {"pairs": 27}, "27 answers compared, nothing wrong"),
        ("rollback", {"alarm": {"sentence": "answers differ too often"}}, "answers differ too often"),
        ("rollback", None, "by hand"),
    ],
)
def test_what_the_gate_has_nothing_to_do_with(shop: Workshop, action: str, decision: Any, said: str) -> None:
    flip(shop, 1, action, decision)
    (line,) = flips(shop.store)
    assert (line.action, line.reason, line.decision) == (action, said, None)


def test_a_promotion_against_the_gate_is_called_so(shop: Workshop) -> None:
    flip(shop, 1, "promote", to_builtins(record(FAILS)))
    flip(shop, 2, "promote", to_builtins(record(HOLDS, promote=True)))
    by_gate, forced = flips(shop.store)
    assert forced.reason == "by hand, against the gate (agreement, lower bound: 0.93, limit 0.95)"
    assert "against" not in by_gate.reason


def test_the_newest_come_first_and_a_flip_that_never_was_is_none(shop: Workshop) -> None:
    for number in range(4):
        flip(shop, number, "advance", {"pairs": number})
    flip(shop, 9, "advance", None, state="abandoned")
    assert [line.at for line in flips(shop.store, most=3)] == [3.0, 2.0, 1.0]
