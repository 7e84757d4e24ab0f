"""How often does the gate let a candidate through that is worse than allowed, and one that is as good?

Each run draws a task's held-out rows: what was recorded of the incumbent, what it would answer if asked again, and
what a candidate answers; scores them with `gateway/pipeline/scoring.py` and asks the real `decide`. An incumbent
that changes its mind agrees with itself in a share of all cases only. Its noise is either `coins` (on some inputs
it tosses a coin, and so does a candidate that is its equal) or `slips` (any answer goes wrong by chance).

  equal   the candidate answers as the incumbent does, from the same distribution
  edge    it agrees with what was recorded five points less often than the incumbent itself: just not allowed
  worse   five points less than that

    python benchmarks/gate.py [--runs 1000] [--rows 200] [--newer 50]
"""

from __future__ import annotations

import argparse
import sys
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.config import TaskPolicy
from gateway.domain.dataset import Row
from gateway.pipeline.bounds import agreement_low
from gateway.pipeline.gate import decide
from gateway.pipeline.scores import Report, Score
from gateway.pipeline.scoring import Terms, beside_again, with_quality

Noise = Literal["coins", "slips"]
POLICY = TaskPolicy()
WORSE = {"equal": 0.0, "edge": POLICY.margin, "worse": POLICY.margin + 0.05}
ITSELF = (1.0, 0.99, 0.98, 0.97, 0.95, 0.9)
_SCORE = Score(
    candidate="simulated", finetune="ft", upstream="local", model="m", rows=0, agreement=0.0, agreement_low=0.0,
    answered=1.0, agreement_answered=None, min_confidence=0.0, cost_per_1k_usd=0.1, cost_ratio_high=0.1, p50_ms=1.0,
    p95_ms=1.0, input_tokens=1.0, latency_ratio_high=0.1,
)  # fmt: skip
_INCUMBENT = msgspec.structs.replace(_SCORE, candidate="incumbent", role="incumbent", cost_per_1k_usd=1.0)


class Drawn(NamedTuple):
    """Whether each answer is the recorded one (rows,): the candidate's, and the incumbent's second one."""

    candidate: NDArray[np.bool_]
    again: NDArray[np.bool_]


def draw(random: np.random.Generator, rows: int, itself: float, worse: float, noise: Noise) -> Drawn:
    """Answers to fresh rows, where the incumbent agrees with itself in the share `itself` of them."""
    if noise == "slips":
        return Drawn(random.random(rows) < itself - worse, random.random(rows) < itself)
    open_ended = random.random(rows) < 2 * (1 - itself)  # a coin agrees with another one in half of all cases
    first, second = random.random((2, rows)) < 0.5
    spoilt = random.random(rows) < worse / itself
    return Drawn((~open_ended | first) & ~spoilt, ~open_ended | second)


def promoted(random: np.random.Generator, rows: int, newer: int, itself: float, worse: float, noise: Noise,
             *, asked_again: bool) -> bool:  # fmt: skip
    """One run: what the gate decides."""
    drawn = draw(random, rows, itself, worse, noise)
    best = scored(drawn.candidate)
    baselines = []
    if asked_again:
        pairs = [(float(b), float(a), True) for a, b in zip(drawn.candidate, drawn.again, strict=True)]
        best = msgspec.structs.replace(best, difference_low=beside_again(pairs, POLICY.confidence))
        baselines = [msgspec.structs.replace(scored(drawn.again), role="incumbent again")]
    later = draw(random, newer, itself, worse, noise).candidate
    report = Report(
        id="eval-1", task="t", dataset="d", template="t@1", confidence=POLICY.confidence, incumbent=_INCUMBENT,
        candidates=[best], failed={}, baselines=baselines, confirmation=scored(later) if newer else None,
    )  # fmt: skip
    return decide(report, POLICY).promote


def scored(same: NDArray[np.bool_]) -> Score:
    """The score of a candidate that answers these rows so, cheap and fast."""
    values = [float(value) for value in same]
    wrong = len(values) - int(same.sum())
    score = msgspec.structs.replace(
        _SCORE, rows=len(values), agreement=1 - wrong / len(values),
        agreement_low=agreement_low(wrong, len(values), POLICY.confidence),
    )  # fmt: skip
    rows = [Row(exchange_id="", text="", messages=[], output="", split="validation")] * len(values)
    return with_quality(score, rows, values, Terms(kind="", measure="exact", confidence=POLICY.confidence))


def share(runs: int, rows: int, newer: int, itself: float, kind: str, noise: Noise, *, asked_again: bool) -> float:
    """The share of runs in which the candidate is promoted."""
    random = np.random.default_rng(7)
    passed = [
        promoted(random, rows, newer, itself, WORSE[kind], noise, asked_again=asked_again) for _ in range(runs)
    ]
    return sum(passed) / runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--newer", type=int, default=50)
    options = parser.parse_args()
    asked = f"{options.runs} runs each, {options.rows} held-out rows, {options.newer} newer ones"
    say(f"{asked}; {POLICY.margin:.0%} margin, {POLICY.confidence:.0%} confidence. Promoted:")
    kinds = " ".join(f"{kind:>6}" for kind in WORSE)
    say(f"{'agrees with itself':>19} {'noise':>6} | {'asked again':>11}: {kinds} | {'not asked':>9}: {kinds}")
    for itself in ITSELF:
        for noise in ("coins", "slips") if itself < 1 else ("coins",):
            shares = [
                share(options.runs, options.rows, options.newer, itself, kind, noise, asked_again=asked)
                for asked in (True, False) for kind in WORSE
            ]  # fmt: skip
            first, second = (" ".join(f"{value:6.1%}" for value in part) for part in (shares[:3], shares[3:]))
            say(f"{itself:19.0%} {noise:>6} | {'':>11}  {first} | {'':>9}  {second}")


def say(line: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
