"""The gate's rate of errors and its power, by the benchmark that prints the whole table: `benchmarks/gate.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

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


@pytest.mark.parametrize(("itself", "asked_again"), [(1.0, False), (0.97, True), (0.95, True), (0.97, False)])
def test_what_is_worse_than_allowed_stays_out_at_200_rows(
    gate: ModuleType, itself: float, asked_again: bool
) -> None:
    """At the edge of the margin at the stated rate of errors, five points below it never."""
    edge, worse = (
        gate.share(RUNS, 200, 50, itself, kind, "coins", asked_again=asked_again) for kind in ("edge", "worse")
    )
    assert edge <= 0.05 + CHANCE
    assert worse == 0.0


@pytest.mark.parametrize(("itself", "asked_again"), [(1.0, False), (0.99, False), (0.97, True)])
def test_an_equal_of_the_incumbent_gets_in_mostly_at_200_rows(
    gate: ModuleType, itself: float, asked_again: bool
) -> None:
    assert gate.share(RUNS, 200, 50, itself, "equal", "coins", asked_again=asked_again) >= 0.8


def test_without_its_second_answers_the_incumbents_own_noise_keeps_its_equal_out(gate: ModuleType) -> None:
    assert gate.share(RUNS, 200, 50, 0.95, "equal", "coins", asked_again=False) < 0.2
