"""How often does the gate let a candidate through that is worse than allowed, and one that is as good?

Each run draws a task's held-out rows: what was recorded of the incumbent, what it would answer if asked again, and
what candidates answer; scores them with the product's own functions and asks the real `decide`. An incumbent
that changes its mind agrees with itself in a share of all cases only. Its noise is either `coins` (on some inputs
it tosses a coin, and so does a candidate that is its equal) or `slips` (any answer goes wrong by chance).

  equal   the candidate answers as the incumbent does, from the same distribution
  edge    it agrees with what was recorded five points less often than the incumbent itself: just not allowed
  worse   five points less than that

What is known of the incumbent's second answers: it is asked all rows `again` (what an evaluation does by itself
where a decision needs it and its key and `ask_again_usd` allow), or the app has asked 300 other inputs `twice`, or
nothing (`not`). With `--candidates 10` the best of ten is chosen by the very rows that judge it, and bounds are
shared among them (Bonferroni); a share `--alike` of what goes wrong is common to all ten.

`--exact` draws nothing: it adds up, over all outcomes, how probable it is that one at the edge passes, at the worst
of many shares of the incumbent's own changes of mind.

    python benchmarks/gate.py [--runs 1000] [--rows 200] [--newer 50] [--candidates 1] [--alike 0]
    python benchmarks/gate.py --exact
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
from gateway.pipeline.bounds import agreement_low, most_wrong_that_pass
from gateway.pipeline.gate import decide
from gateway.pipeline.intervals import difference_low, unpaired_low
from gateway.pipeline.itself import beside_itself
from gateway.pipeline.scores import Itself, Report, Score
from gateway.pipeline.scoring import Terms, with_quality

Noise = Literal["coins", "slips"]
Known = Literal["again", "twice", "not"]
NOISE: tuple[Noise, ...] = ("coins", "slips")
KNOWN: tuple[Known, ...] = ("again", "twice", "not")
TWICE = 300
OTHERS = (100, 300, 1000)
CHANGES = (1e-9, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
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
    """Whether each answer is the recorded one: the candidates' (candidates, rows), and the incumbent's second one
    (rows,)."""

    candidates: NDArray[np.bool_]
    again: NDArray[np.bool_]


class Setting(NamedTuple):
    """One cell of the table: `known` is what is known of the incumbent's second answers, `alike` the share of the
    candidates' mistakes that all make."""

    rows: int
    newer: int
    itself: float
    kind: str
    noise: Noise
    known: Known
    candidates: int = 1
    alike: float = 0.0


def draw(random: np.random.Generator, rows: int, cell: Setting) -> Drawn:
    """Answers to fresh rows, where the incumbent agrees with itself in the share `itself` of them."""
    itself, worse, many = cell.itself, WORSE[cell.kind], cell.candidates
    luck = random.random((many, rows))
    common = random.random((2, rows)) < cell.alike  # here all have the same luck
    luck = np.where(common[0], random.random(rows), luck)
    if cell.noise == "slips":
        return Drawn(luck < itself - worse, random.random(rows) < itself)
    open_ended = random.random(rows) < 2 * (1 - itself)  # a coin agrees with another one in half of all cases
    tossed, again = random.random((many, rows)) < 0.5, random.random(rows) < 0.5
    tossed = np.where(common[1], random.random(rows) < 0.5, tossed)
    return Drawn((~open_ended | tossed) & (luck >= worse / itself), ~open_ended | again)


def promoted(random: np.random.Generator, cell: Setting) -> bool:
    """One run: what the gate decides about the best of the candidates."""
    drawn = draw(random, cell.rows, cell)
    confidence = 1 - (1 - POLICY.confidence) / cell.candidates
    which = int(drawn.candidates.sum(axis=1).argmax())
    twice = None
    if cell.known == "twice":
        alike = int((random.random(TWICE) < cell.itself).sum())
        twice = Itself(rows=TWICE, value=alike / TWICE, source="asked twice by the app")
    again = drawn.again if cell.known == "again" else None
    best = scored(drawn.candidates[which], confidence, again, twice)
    itself = [] if again is None else [msgspec.structs.replace(scored(again, confidence), role="incumbent again")]
    later = draw(random, cell.newer, cell).candidates[which]
    report = Report(
        id="eval-1", task="t", dataset="d", template="t@1", confidence=confidence, incumbent=_INCUMBENT,
        candidates=[best], failed={}, baselines=itself, twice=twice,
        confirmation=scored(later, confidence) if cell.newer else None,
    )  # fmt: skip
    return decide(report, POLICY).promote


def scored(
    same: NDArray[np.bool_], confidence: float, again: NDArray[np.bool_] | None = None, twice: Itself | None = None
) -> Score:
    """The score of a candidate that answers these rows so, cheap and fast."""
    values = [float(value) for value in same]
    wrong = len(values) - int(same.sum())
    seconds = [None] * len(values) if again is None else [float(value) for value in again]
    judged = [(value, True, second) for value, second in zip(values, seconds, strict=True)]
    score = msgspec.structs.replace(
        _SCORE, rows=len(values), agreement=1 - wrong / len(values),
        agreement_low=agreement_low(wrong, len(values), confidence),
        difference_low=beside_itself(judged, twice, confidence),
    )  # fmt: skip
    rows = [Row(exchange_id="", text="", messages=[], output="", split="validation")] * len(values)
    return with_quality(score, rows, values, Terms(kind="", measure="exact", confidence=confidence))


def share(runs: int, cell: Setting) -> float:
    """The share of runs in which the candidate is promoted."""
    random = np.random.default_rng(7)
    return sum(promoted(random, cell) for _ in range(runs)) / runs


# --- without chance ---------------------------------------------------------------------------------------


def passes_exactly(rows: int, others: int, changes: float, confidence: float) -> float:
    """How probable it is that a candidate at the edge passes by either promise, beside `others` second answers to
    other rows, where the incumbent changes its mind in the share `changes` of all cases."""
    from scipy.stats import binom

    most = most_wrong_that_pass(rows, POLICY.margin, confidence)
    total = 0.0
    for changed, chance in _likely(others, changes):
        low, high = most, rows + 1  # more wrong answers never help
        while high - low > 1:
            middle = (low + high) // 2
            bound = unpaired_low(rows - middle, rows, others - changed, others, confidence)
            low, high = (middle, high) if bound >= -POLICY.margin else (low, middle)
        total += chance * float(binom.cdf(low, rows, changes + POLICY.margin))
    return total


def passes_exactly_paired(rows: int, better: float, confidence: float) -> float:
    """The same where all rows are asked again: `better` is the share in which only the candidate answers as before.
    What shows the first promise (few wrong answers) shows the second in such a case, too."""
    from scipy.stats import binom

    total = 0.0
    for ahead, chance in _likely(rows, better):
        low, high = -1, rows - ahead + 1
        while high - low > 1:
            middle = (low + high) // 2
            ones = [1.0] * ahead + [0.0] * middle + [1.0] * (rows - ahead - middle)
            others = [0.0] * ahead + [1.0] * (rows - ahead)
            bound = difference_low(ones, others, confidence)
            low, high = (middle, high) if bound >= -POLICY.margin else (low, middle)
        total += chance * float(binom.cdf(low, rows - ahead, (better + POLICY.margin) / (1 - better)))
    return total


def _likely(rows: int, share: float) -> list[tuple[int, float]]:
    """The counts that are not out of the question, with how probable each is."""
    from scipy.stats import binom

    counts = np.arange(int(binom.ppf(1e-7, rows, share)), int(binom.ppf(1 - 1e-7, rows, share)) + 1)
    return [(int(count), float(binom.pmf(count, rows, share))) for count in counts if count >= 0]


def tell_exactly() -> None:
    """The worst case for each number of rows."""
    say("One at the edge is promoted, at worst over how often the incumbent changes its mind; second answers to")
    say(f"{'rows':>6} {'the same rows':>16} " + " ".join(f"{others:>5} others" for others in OTHERS))
    for rows in (50, 100, 150, 200, 300, 500, 700, 1000):
        paired = max(passes_exactly_paired(rows, better, POLICY.confidence) for better in CHANGES)
        apart = [max(passes_exactly(rows, o, c, POLICY.confidence) for c in CHANGES) for o in OTHERS]
        say(f"{rows:6} {paired:16.2%} " + " ".join(f"{value:12.2%}" for value in apart))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--newer", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--alike", type=float, default=0.0)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    if options.exact:
        tell_exactly()
        return
    asked = f"{options.runs} runs each, {options.rows} held-out rows, {options.newer} newer ones"
    of = (
        f", the best of {options.candidates} ({options.alike:.0%} of mistakes common)"
        if options.candidates > 1
        else ""
    )
    say(f"{asked}{of}; {POLICY.margin:.0%} margin, {POLICY.confidence:.0%} confidence. Promoted:")
    kinds = " ".join(f"{kind:>6}" for kind in WORSE)
    say(f"{'agrees with itself':>19} {'noise':>6} | " + " | ".join(f"{known:>5}: {kinds}" for known in KNOWN))
    for itself in ITSELF:
        for noise in NOISE if itself < 1 else NOISE[:1]:
            cells = [
                [Setting(options.rows, options.newer, itself, kind, noise, known, options.candidates, options.alike)
                 for kind in WORSE]
                for known in KNOWN
            ]  # fmt: skip
            parts = [" ".join(f"{share(options.runs, cell):6.1%}" for cell in part) for part in cells]
            say(f"{itself:19.0%} {noise:>6} | " + " | ".join(f"{'':6} {part}" for part in parts))


def say(line: str) -> None:
    """A line of the table, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
