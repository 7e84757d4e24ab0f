"""The gate's rate of errors and its power, by the benchmark that prints the whole table: `benchmarks/gate.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RUNS = 150
CHANCE = 3 * (0.05 * 0.95 / RUNS) ** 0.5


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "gate.py"
    spec = importlib.util.spec_from_file_location("gate_benchmark", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def promoted(gate: ModuleType, itself: float, kind: str, known: str, **more: Any) -> float:
    """The share of runs in which the gate promotes, at 200 rows and 50 newer ones."""
    return float(gate.share(RUNS, gate.Setting(200, 50, itself, kind, "coins", known, **more)))


@pytest.mark.parametrize(("itself", "known"), [(1.0, "not"), (0.97, "again"), (0.97, "twice"), (0.97, "not")])
def test_what_is_worse_than_allowed_stays_out_at_200_rows(gate: ModuleType, itself: float, known: str) -> None:
    """At the edge of the margin at the stated rate of errors, five points below it never."""
    assert promoted(gate, itself, "edge", known) <= 0.05 + CHANCE
    assert promoted(gate, itself, "worse", known) == 0.0


@pytest.mark.parametrize(("itself", "known"), [(1.0, "not"), (0.99, "not"), (0.97, "again"), (0.97, "twice")])
def test_an_equal_of_the_incumbent_gets_in_mostly_at_200_rows(gate: ModuleType, itself: float, known: str) -> None:
    assert promoted(gate, itself, "equal", known) >= 0.8


def test_without_its_second_answers_the_incumbents_own_noise_keeps_its_equal_out(gate: ModuleType) -> None:
    assert promoted(gate, 0.95, "equal", "not") < 0.2


@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_the_luckiest_of_ten_that_are_all_just_not_allowed_is_no_more_lucky_than_one(
    gate: ModuleType, alike: float
) -> None:
    assert promoted(gate, 1.0, "edge", "not", candidates=10, alike=alike) <= 0.05 + CHANCE


def test_at_no_share_of_changed_minds_does_one_at_the_edge_pass_too_often(gate: ModuleType) -> None:
    """Counted over all outcomes, not drawn: beside the same 80 rows asked again, and beside 100 other inputs."""
    for changes in (1e-9, 0.005, 0.02, 0.05):
        assert gate.passes_exactly_paired(80, changes, 0.95) <= 0.05
        assert gate.passes_exactly(200, 100, changes, 0.95) <= 0.05
