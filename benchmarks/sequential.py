"""How often does the test of audits roll back a candidate that keeps the promise, and how soon one that does not?

Simulates the numbers of `gateway/pipeline/alarms.py` (checked against it first) for many runs at once: requests
answered by a candidate, of which a share is audited, and all of them while there is a warning.

    python benchmarks/sequential.py [--runs 1000] [--margin 0.05] [--audit 10] [--quick]
"""

from __future__ import annotations

import argparse
import random
import sys

import numpy as np
from betting import Audits, Flags, ManyBets, Numbers

from gateway.config import TaskPolicy
from gateway.pipeline.alarms import (
    CHANGED_AT,
    REFERENCE,
    ROLLBACK_AT,
    SHIFT_AT,
    WINDOW,
    WORSE_AT,
    Expected,
    Kind,
    Watched,
    alarms,
    audits_wanted,
    compared,
    label_shift,
)
from gateway.pipeline.canary import HARM_AT, steps


class Runs:
    """Many runs side by side. `bets` against what is allowed, `usual` against what was found before: `held_out`
    rows, and all audits since. `held_out` 0: only what is allowed counts."""

    def __init__(self, runs: int, allowed: float, audit: float, seed: int, *, before: float = 0.0,
                 held_out: int = 0) -> None:  # fmt: skip
        self.allowed, self.audit, self.held_out, self.before = allowed, audit, held_out, before
        self.bets, self.usual = ManyBets(runs), ManyBets(runs)
        self.closer = Audits(runs)
        self.dice = np.random.default_rng(seed)
        self.differed, self.seen = np.zeros(runs), np.zeros(runs)
        self.learn(np.ones(runs, dtype=bool))

    def learn(self, which: Flags) -> None:
        """What the held-out rows say of these runs' candidates."""
        self.differed[which] = self.dice.binomial(self.held_out, self.before, int(which.sum())) + 0.5
        self.seen[which] = self.held_out + 1.0

    def request(self, wrong: float) -> Flags:
        """One request each, answered wrongly with this probability; which of them were audited."""
        runs = len(self.seen)
        audited: Flags = self.dice.random(runs) < self.closer.share(self.audit)
        self.compared(audited, self.dice.random(runs) < wrong)
        return audited

    def compared(self, audited: Flags, differs: Flags) -> None:
        """The same after these answers, those of them that were audited."""
        likely = np.minimum(self.differed / self.seen, self.allowed)
        wrong = differs.astype(float)
        self.bets.observe(audited, wrong, self.allowed)
        if self.held_out:
            self.usual.observe(audited, wrong, likely)
        self.differed += audited & differs
        self.seen += audited
        self.closer.weigh(audited, self.bets.change * self.allowed, self.usual.change * likely)

    @property
    def over(self) -> Flags:
        """Which are rolled back."""
        limit = np.where(self.usual.change >= CHANGED_AT, WORSE_AT, ROLLBACK_AT)
        return np.asarray(self.bets.change >= limit)

    def begin_anew(self, which: Flags) -> None:
        """Rolled back, and a candidate of the same kind in its place, with held-out rows of its own."""
        self.bets.begin_anew(which)
        self.usual.begin_anew(which)
        self.learn(which)


def false_alarms(runs: int, allowed: float, share: float, audits: int, held_out: int) -> tuple[float, float]:
    """(share of runs with a rollback, audits for each rollback), over so many audits of candidates that are wrong
    with probability `share` all the time."""
    state = Runs(runs, allowed, 1.0, 1, before=share, held_out=held_out)
    alarms, hit = 0, np.zeros(runs, dtype=bool)
    for _ in range(audits):
        state.request(share)
        over = state.over
        alarms += int(over.sum())
        hit |= over
        state.begin_anew(over)
    return float(hit.mean()), runs * audits / alarms if alarms else float("inf")


def delays(
    runs: int, allowed: float, audit: float, before: float, after: float, *, held_out: int, most: int
) -> tuple[Numbers, float]:
    """(requests from the change to the rollback, at most `most`; share of requests audited before the change)."""
    state, audited = Runs(runs, allowed, audit, 2, before=before, held_out=held_out), 0.0
    for number in range(TRIAL + BEFORE):
        if number < TRIAL:
            state.compared(np.ones(runs, dtype=bool), state.dice.random(runs) < before)
        else:
            audited += float(state.request(before).mean())
        state.begin_anew(state.over)
    taken, open_runs = np.full(runs, np.inf), np.ones(runs, dtype=bool)
    for number in range(1, most + 1):
        state.request(after)
        over = open_runs & state.over
        taken[over] = number
        open_runs &= ~over
        if not open_runs.any():
            break
    return taken, audited / BEFORE


POLICY = TaskPolicy()
HELD_OUT, TRIAL = (160, 400), POLICY.canary_pairs * len(steps(POLICY))
"""Held-out rows that a candidate answered itself (a fifth of 800 and of 2,000 recorded requests), and answers that
are compared in its canary."""
BEFORE, MOST = 2000, 20_000


def canaries(runs: int, allowed: float, wrong: float, pairs: int) -> tuple[float, float]:
    """(share of candidates that are taken back within so many compared answers, median of how many it took)."""
    dice, found = np.random.default_rng(3), np.full(runs, np.inf)
    bets = ManyBets(runs)
    for number in range(1, pairs + 1):
        bets.observe(np.ones(runs, dtype=bool), (dice.random(runs) < wrong).astype(float), allowed)
        found = np.where((bets.excess >= HARM_AT) & np.isinf(found), number, found)
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


def bound(allowed: float, after: float) -> float:
    """The least mean of the audits that any test needs to find a change from the one share to the other, if it is
    not to raise more false alarms than one in `ROLLBACK_AT` audits: those of CUSUM, which is optimal where both are
    known (G. V. Moustakides, "Optimal Stopping Times for Detecting Changes in Distributions", Ann. Stat. 14,
    1986), in the worst case. On a grid, by the mean time until a Markov chain leaves it."""
    low, high = 0.5, 16.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if _run_length(allowed, allowed, after, middle) < ROLLBACK_AT else (low, middle)
    return _run_length(after, allowed, after, high)


def _run_length(share: float, before: float, after: float, limit: float, cells: int = 400) -> float:
    """Audits until CUSUM reaches its limit, on average, where `share` are wrong."""
    step = limit / cells
    at = (np.arange(cells) + 0.5) * step
    moves = np.zeros((cells, cells))
    for chance, gain in ((share, np.log(after / before)), (1 - share, np.log((1 - after) / (1 - before)))):
        place = (np.maximum(at + gain, at[0]) / step) - 0.5
        lower = np.floor(place).astype(int)
        for cell, part in ((lower, 1 - (place - lower)), (lower + 1, place - lower)):
            stays = (place < cells - 0.5) & (cell < cells)
            np.add.at(moves, (np.flatnonzero(stays), cell[stays]), chance * part[stays])
    return float(np.linalg.solve(np.eye(cells) - moves, np.ones(cells))[0])


def check(allowed: float) -> None:
    """The same numbers as the real code, for one run."""
    dice = random.Random(0)
    expected = Expected(margin=allowed, error_rate=0.02, answered=1.0, differed=0.5 * allowed, rows=400)
    watched, state = Watched(promotion="p", step="p"), Runs(1, allowed, 1.0, 0, held_out=400)
    state.differed[:] = 200 * allowed + 0.5
    for _ in range(500):
        wrong = dice.random() < 1.2 * allowed
        watched = compared(watched, float(not wrong), None, expected)
        state.compared(np.array([True]), np.array([wrong]))
        real = [watched.tests[Kind.AGREEMENT].change, watched.usual.change]
        assert np.allclose([state.bets.change[0], state.usual.change[0]], real, rtol=1e-6)
        assert state.closer.share(0.1)[0] == max(10.0, audits_wanted(watched, trial=False)) / 100
        told = any(alarm.kind is Kind.AGREEMENT for alarm in alarms("t", watched, expected, canary=False))
        assert bool(state.over[0]) == told


def main() -> None:
    """Print the tables."""
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
        for held_out in HELD_OUT:
            rate, each = false_alarms(given.runs, margin, share, audits, held_out)
            rows = f"{held_out} held-out rows"
            say(f"  wrong {share:.1%}, {rows}: {rate:.1%} of runs rolled back, one in {each:,.0f} audits")
    tell_delays(given.runs, margin, audit)
    tell_bounds(margin)
    say(f"canaries taken back within 50, {TRIAL} and 150 compared answers, and after how many (median):")
    for wrong in (0.4 * margin, margin, 2 * margin, 4 * margin, 0.3, 0.5, 1.0):
        found = [canaries(20 * given.runs, margin, wrong, pairs) for pairs in (50, TRIAL, 150)]
        say(f"  wrong {wrong:.0%}: {', '.join(f'{hit:.1%}' for hit, _ in found)}; {found[-1][1]:.0f}")
    windows = 10 * given.runs
    say(f"windows of {WINDOW} labels with an alarm, of {windows:,} (labels that have moved):")
    for labels in (3, 12, 77):
        rates = [f"{shifts(windows, labels, moved):.2%} ({moved:.0%})" for moved in (0.0, 0.1, 0.2, 0.3)]
        say(f"  {labels} labels: {', '.join(rates)}")


def tell_delays(runs: int, margin: float, audit: float) -> None:
    """How soon a change is found, and how often one that is still allowed is taken for a reason."""
    say(f"requests until the rollback at {audit:.0%} audits, after {BEFORE:,} before the change (median, 90 %):")
    edge, half = margin, margin / 2
    changes = [(edge, edge + 0.05), (half, edge + 0.05), (0.0, edge + 0.05), (half, half + 0.05), (edge, 0.3),
               (0.01, 1.0)]  # fmt: skip
    for before, after in changes:
        told = []
        for held_out in (*HELD_OUT, 0):
            taken, share = delays(runs, margin, audit, before, after, held_out=held_out, most=MOST)
            low, high = np.quantile(taken, [0.5, 0.9])
            rows = f"with {held_out} held-out rows" if held_out else "by what is allowed alone"
            told.append(f"{rows} {low:,.0f}, {high:,.0f} ({share:.1%} audited before)")
        say(f"  {before:.1%} -> {after:.1%}: {'; '.join(told)}")
    say("a change that is still allowed: rolled back within 7,000 requests")
    for after in (0.7 * margin, 0.8 * margin, margin):
        hit = [np.isfinite(delays(runs, margin, audit, half, after, held_out=rows, most=7000)[0]).mean()
               for rows in HELD_OUT]  # fmt: skip
        told = [f"{share:.1%} with {rows} held-out rows" for share, rows in zip(hit, HELD_OUT, strict=True)]
        say(f"  {half:.1%} -> {after:.1%}: {', '.join(told)}")


def tell_bounds(margin: float) -> None:
    """What no test can do better."""
    say(f"the least audits that a test with one false alarm in {ROLLBACK_AT:,.0f} needs on average (worst case):")
    for before, after in ((margin, margin / 2 + 0.05), (margin, margin + 0.05), (margin / 2, margin / 2 + 0.05)):
        bits = after * np.log(after / before) + (1 - after) * np.log((1 - after) / (1 - before))
        say(f"  {before:.1%} against {after:.1%}: {bound(before, after):,.0f} ({bits:.4f} nats an audit)")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
