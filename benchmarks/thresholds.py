"""How often does a threshold break its promise that was chosen on the very rows that judge the model, and how much
is answered above it?

Each run draws the answers of a model to so many held-out rows: how sure it says it is, and whether it is right; and
chooses a threshold as an evaluation of one candidate does (`pipeline/thresholds.py`). A promise is broken where of
what would be answered above it (100,000 more rows) less agrees than was promised. Models: `calibrated` (as often
right as it says), `two kinds` (easy rows that it is very sure of, and hard ones), `blind` (its confidence tells
nothing; at the edge of the promise), `good` (97 % right, its confidence tells little).

    python benchmarks/thresholds.py [--runs 2000] [--rows 100 300 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.config import TaskPolicy
from gateway.pipeline.thresholds import LOOKS, lowest_threshold

POLICY = TaskPolicy()
MANY = 100_000
Rows = NDArray[Any]
MODELS: dict[str, tuple[Callable[[Any, int], Rows], Callable[[Rows], Rows]]] = {
    "calibrated": (lambda dice, rows: dice.beta(6, 1, rows), lambda sure: sure),
    "two kinds": (
        lambda dice, rows: np.where(dice.random(rows) < 0.7, dice.beta(60, 0.5, rows), dice.beta(3, 1.5, rows)),
        lambda sure: np.where(sure > 0.95, 0.985, 0.35 + 0.5 * sure),
    ),
    "blind": (lambda dice, rows: dice.beta(6, 1, rows), lambda sure: np.full(len(sure), 0.9499)),
    "good": (lambda dice, rows: dice.beta(30, 1, rows), lambda sure: 0.95 + 0.02 * sure),
}
"""How sure each is, and from that how probably it is right."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 300, 1000])
    chosen = parser.parse_args()
    lines = [f"agreement {POLICY.answer_agreement:.0%}, confidence {POLICY.confidence:.0%}, {chosen.runs} runs", ""]
    lines += [
        "| model | right | rows | some threshold | of all answered | promise broken |",
        "|---|---|---|---|---|---|",
    ]
    lines += [line(name, rows, chosen.runs) for name in MODELS for rows in chosen.rows]
    print("\n".join(lines))  # noqa: T201


def line(name: str, rows: int, runs: int) -> str:
    """A row of the table: what became of so many evaluations."""
    drawn, probably = MODELS[name]
    dice = np.random.default_rng(0)
    many = np.sort(drawn(dice, MANY))
    truth = probably(many)
    above = np.cumsum(truth[::-1])[::-1] / np.arange(MANY, 0, -1)  # agreement of all that is as sure, or surer
    found, answered, broken = 0, [], 0
    for _ in range(runs):
        sure = drawn(dice, rows)
        right = dice.random(rows) < probably(sure)
        threshold = lowest_threshold(np.ones(rows, bool), right, sure, POLICY, 1 - (1 - POLICY.confidence) / LOOKS)
        if threshold is None:
            continue
        first = int(np.searchsorted(many, threshold))
        found += 1
        answered.append(1 - first / MANY)
        broken += bool(above[min(first, MANY - 1)] < POLICY.answer_agreement)
    mean = np.mean(answered) if answered else 0.0
    return f"| {name} | {truth.mean():.1%} | {rows} | {found / runs:.1%} | {mean:.1%} | {broken / runs:.2%} |"


if __name__ == "__main__":
    main()
