"""How often does the test of audits roll back a candidate that keeps the promise, and how soon one that does not?

Simulates the numbers of `gateway/pipeline/sequential.py` (checked against it first) for many runs at once: requests
answered by a candidate, of which a share is audited, and all of them while there is a warning.

    python benchmarks/sequential.py [--runs 1000] [--margin 0.05] [--audit 10] [--quick]
"""

from __future__ import annotations

import argparse
import random
import sys

import numpy as np
from numpy.typing import NDArray

from gateway.pipeline.alarms import REFERENCE, ROLLBACK_AT, SHIFT_AT, WINDOW, label_shift
from gateway.pipeline.canary import HARM_AT
from gateway.pipeline.sequential import ODDS, WARNING, WEIGHTS, Bets, observed

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


class Runs:
    """Many runs side by side. `wealth` (runs, bets)."""

    def __init__(self, runs: int, allowed: float, audit: float, seed: int) -> None:
        odds = np.array(ODDS)
        meant = odds * allowed / (1 + (odds - 1) * allowed)
        self.allowed, self.audit = allowed, audit
        self.up, self.down = meant / allowed, (1 - meant) / (1 - allowed)
        self.wealth = np.zeros((runs, len(ODDS)))
        self.raised = np.zeros(runs, dtype=bool)
        self.dice = np.random.default_rng(seed)

    def request(self, wrong: float) -> Flags:
        """One request each, answered wrongly with this probability; which of them were audited."""
        runs = len(self.wealth)
        audited: Flags = self.dice.random(runs) < np.where(self.raised, 1.0, self.audit)
        factor = np.where((self.dice.random(runs) < wrong)[:, None], self.up, self.down)
        self.wealth = np.where(audited[:, None], (self.wealth + 1) * factor, self.wealth)
        evidence = self.evidence * self.allowed
        self.raised = np.where(self.raised, evidence >= WARNING / 2, evidence >= WARNING)
        return audited

    @property
    def evidence(self) -> Numbers:
        return np.asarray(self.wealth @ np.array(WEIGHTS))


def false_alarms(runs: int, allowed: float, share: float, audits: int) -> tuple[float, float]:
    """(share of runs with an alarm, audits for each alarm), over so many audits of candidates that are wrong with
    probability `share` all the time; after an alarm it begins anew."""
    state, alarms, hit = Runs(runs, allowed, 1.0, 1), 0, np.zeros(runs, dtype=bool)
    for _ in range(audits):
        state.request(share)
        over = state.evidence >= ROLLBACK_AT
        alarms += int(over.sum())
        hit |= over
        state.wealth[over] = 0.0
    return float(hit.mean()), runs * audits / alarms if alarms else float("inf")


def delays(runs: int, allowed: float, audit: float, before: float, after: float) -> tuple[Numbers, float]:
    """(requests from the change to the rollback, share of requests audited before the change)."""
    state, audited = Runs(runs, allowed, audit, 2), 0.0
    for _ in range(BEFORE):
        audited += float(state.request(before).mean())
        state.wealth[state.evidence >= ROLLBACK_AT] = 0.0
    taken, open_runs = np.full(runs, float(MOST)), np.ones(runs, dtype=bool)
    for number in range(1, MOST + 1):
        state.request(after)
        over = open_runs & (state.evidence >= ROLLBACK_AT)
        taken[over] = number
        open_runs &= ~over
        if not open_runs.any():
            break
    return taken, audited / BEFORE


BEFORE, MOST = 2000, 20_000


def canaries(runs: int, allowed: float, wrong: float, pairs: int) -> tuple[float, float]:
    """(share of candidates that are taken back within so many compared answers, median of how many it took)."""
    state, found = Runs(runs, allowed, 1.0, 3), np.full(runs, np.inf)
    logs = np.zeros((runs, len(ODDS)))
    for number in range(1, pairs + 1):
        logs += np.log(np.where((state.dice.random(runs) < wrong)[:, None], state.up, state.down))
        harm = np.exp(np.minimum(logs, 700)) @ np.array(WEIGHTS) >= HARM_AT
        found = np.where(harm & np.isinf(found), number, found)
    hit = np.isfinite(found)
    return float(hit.mean()), float(np.median(found[hit])) if hit.any() else float("nan")


def shifts(windows: int, labels: int, moved: float) -> float:
    """The share of windows of `WINDOW` labels that raise an alarm, beside `REFERENCE` earlier ones; so great a
    share of the newer ones has `moved` to the rarest label. The n-th label is 1/n as frequent as the first."""
    dice = np.random.default_rng(4)
    before = 1 / np.arange(1, labels + 1)
    before /= before.sum()
    now = before * (1 - moved)
    now[-1] += moved
    alarms = 0
    for _ in range(windows):
        counts = [dice.multinomial(size, p) for size, p in ((REFERENCE, before), (WINDOW, now))]
        one, other = ({str(n): int(c) for n, c in enumerate(found) if c} for found in counts)
        alarms += label_shift(one, other) < SHIFT_AT
    return alarms / windows


def check(allowed: float) -> None:
    """The same numbers as the real code, for one run."""
    dice, bets, state = random.Random(0), Bets(), Runs(1, allowed, 1.0, 0)
    for _ in range(500):
        wrong = dice.random() < 1.2 * allowed
        bets = observed(bets, float(wrong), allowed)
        state.wealth = (state.wealth + 1) * (state.up if wrong else state.down)
    assert abs(bets.change / state.evidence[0] - 1) < 1e-9


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--margin", type=float, default=0.05)
    options.add_argument("--audit", type=float, default=10.0, help="percent")
    options.add_argument("--quick", action="store_true", help="a tenth of the audits of the first table")
    given = options.parse_args()
    margin, audit = given.margin, given.audit / 100
    check(margin)
    audits = 10_000 if given.quick else 100_000
    say(f"margin {margin:.0%}, rollback at evidence {ROLLBACK_AT:,.0f}; {given.runs} runs, {audits:,} audits each")
    for share in (margin, 0.8 * margin, 0.5 * margin):
        rate, each = false_alarms(given.runs, margin, share, audits)
        say(f"  wrong {share:.1%}: {rate:.1%} of runs rolled back, one in {each:,.0f} audits")
    say(f"requests until the rollback at {audit:.0%} audits, after {BEFORE:,} before the change (median, 90 %):")
    edge, half = margin, margin / 2
    changes = [(edge, edge + 0.05), (half, edge + 0.05), (0.0, edge + 0.05), (half, half + 0.05), (edge, 0.3),
               (0.01, 1.0)]  # fmt: skip
    for before, after in changes:
        taken, share = delays(given.runs, margin, audit, before, after)
        low, high = np.quantile(taken, [0.5, 0.9])
        say(f"  {before:.1%} -> {after:.1%}: {low:,.0f}, {high:,.0f}; {share:.1%} of requests audited before")
    say("canaries taken back within 50, 100 and 150 compared answers, and after how many (median):")
    for wrong in (0.4 * margin, margin, 2 * margin, 4 * margin, 0.3, 0.5, 1.0):
        found = [canaries(20 * given.runs, margin, wrong, pairs) for pairs in (50, 100, 150)]
        say(f"  wrong {wrong:.0%}: {', '.join(f'{hit:.1%}' for hit, _ in found)}; {found[-1][1]:.0f}")
    windows = 10 * given.runs
    say(f"windows of {WINDOW} labels with an alarm, of {windows:,} (labels that have moved):")
    for labels in (3, 12, 77):
        rates = [f"{shifts(windows, labels, moved):.2%} ({moved:.0%})" for moved in (0.0, 0.1, 0.2, 0.3)]
        say(f"  {labels} labels: {', '.join(rates)}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
