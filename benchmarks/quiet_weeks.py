"""A thousand quiet weeks of a promoted candidate: how often does each alarm of the watch go off for nothing?

    python benchmarks/quiet_weeks.py                      every row, some minutes
    python benchmarks/quiet_weeks.py quiet --weeks 10000

Each week is one candidate of its own: promoted by the default canary, then 7,000 requests of which 10 % are
audited, all of its answers on trial or under suspicion. What it does is drawn at random with the shares that a row
states; nothing ever changes, so that each alarm is a false one, but where a row tells of an outage. An alarm counts
once a week; a rollback ends the week.

The numbers are those of `gateway/pipeline/alarms.py`, for all weeks at once in numpy. First 3,000 requests of each
row are told to the real code, call by call, and both must hold the same evidence and raise the same alarms at every
look. The real code itself counts what nearly matches (`MatchRate`) and compares labels (`label_shift`). The store,
the relay, the training do not run here: `simulate.py` runs them, for a few weeks.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np
from betting import Audits, Flags, ManyBets, Numbers
from numpy.typing import NDArray

from gateway.config.settings import TaskPolicy
from gateway.pipeline.alarms import (
    ALARM_AT,
    CHANGED_AT,
    COST_SCALE,
    REFERENCE,
    ROLLBACK_AT,
    SHIFT_AT,
    SLOW,
    WINDOW,
    WORSE_AT,
    Expected,
    Kind,
    Outcome,
    Watched,
    alarms,
    asked,
    compared,
    label_shift,
)
from gateway.pipeline.canary import HARM_AT, steps
from gateway.pipeline.matchrate import MatchRate

REQUESTS, LOOK, LABELS = 7000, 25, 12
OUTAGE = 250
"""Requests of six hours."""


@dataclass(frozen=True)
class Quiet:
    """What a week is like, in shares from 0 to 1: answers that differ from the incumbent's; requests that the
    candidate fails to answer; answers slower than the p95 allowed; requests handed over; requests of the app that
    nearly match. `cost`: the mean cost beside what is allowed. `down`: who is down for six hours."""

    differs: float = 0.025
    fails: float = 0.002
    slow: float = 0.02
    handed_over: float = 0.17
    near_misses: float = 0.01
    cost: float = 0.5
    down: str = ""


ROWS = {
    "quiet": Quiet(),
    "label noise": Quiet(differs=0.04),
    "at the edge": Quiet(differs=0.05, fails=0.02, slow=0.05, handed_over=0.27, near_misses=0.05, cost=1.0),
    "incumbent down": Quiet(down="incumbent"),
    "candidate down": Quiet(down="candidate"),
}
"""`label noise`: the incumbent errs at random, and where it does in an audit, that is a difference. `at the edge`:
all that is watched is just as bad as it may be, all the time."""

POLICY = TaskPolicy()
STEPS = np.array([step.share / 100 for step in steps(POLICY)])
ANSWERED = 0.83
PROMISED = Expected(
    margin=0.05 * ANSWERED, error_rate=POLICY.max_error_rate, answered=ANSWERED, differed=0.025, rows=400,
    slow_ms=1000.0, cost_usd=0.001,
)  # fmt: skip
"""What the gate knew: of 400 held-out rows it answered 83 %; 5 % of its answers may differ."""


TESTS = (Kind.AGREEMENT, Kind.ERRORS, Kind.LATENCY, Kind.COST, Kind.INPUT_DRIFT)


@dataclass(frozen=True)
class Events:
    """What happens at one request, in all weeks: `asked` is the candidate at all, and then ..."""

    asked: Flags
    answered: Flags
    failed: Flags
    slow: Flags
    cost: Numbers
    compared: Flags
    differs: Flags
    labels: NDArray[np.int64]


class Weeks:
    """Many weeks side by side."""

    def __init__(self, world: Quiet, weeks: int, seed: int) -> None:
        self.world, self.dice = world, np.random.default_rng(seed)
        held_out = PROMISED.rows * PROMISED.answered
        self.differed = self.dice.binomial(round(held_out), world.differs, weeks).astype(float)
        self.started, self.held_out = self.differed.copy(), held_out
        self.tests, self.usual = {kind: ManyBets(weeks) for kind in TESTS}, ManyBets(weeks)
        self.asked, self.answered = np.zeros(weeks), np.zeros(weeks)
        self.seen, self.audits = np.zeros(weeks), np.zeros(weeks)
        self.closer = Audits(weeks)
        self.step, self.pairs = np.zeros(weeks, dtype=int), np.zeros(weeks)
        self.lived = np.zeros(weeks)
        self.reference, self.window = np.zeros((weeks, LABELS), int), np.zeros((weeks, LABELS), int)
        self.outage = self.dice.integers(0, REQUESTS - OUTAGE, weeks)
        self.found: list[set[str]] = [set() for _ in range(weeks)]
        self.back = np.full(weeks, "", dtype="<U6")

    @property
    def trial(self) -> Flags:
        return np.asarray((self.step < len(STEPS) - 1) | (self.pairs < POLICY.canary_pairs))

    @property
    def alive(self) -> Flags:
        return np.asarray((self.back == "") & (self.lived < REQUESTS))

    def draw(self) -> Events:
        """One request of the app in each week."""
        world, weeks = self.world, len(self.asked)
        first, second, third, fourth, fifth, sixth = self.dice.random((6, weeks))
        down = (self.lived >= self.outage) & (self.lived < self.outage + OUTAGE) & (self.step == len(STEPS) - 1)
        handed_over = second < world.handed_over
        failed = ~handed_over & ((down & (world.down == "candidate")) | (third < world.fails))
        silent = down & (world.down == "incumbent")
        is_asked = self.alive & (first < STEPS[self.step]) & ~(silent & (handed_over | failed))
        answered = ~handed_over & ~failed
        audited = fourth < self.closer.share(POLICY.audit / 100, self.trial)
        return Events(
            asked=is_asked, answered=answered, failed=failed, slow=fifth < world.slow,
            cost=world.cost * self.dice.exponential(size=weeks), compared=is_asked & answered & audited & ~silent,
            differs=sixth < world.differs, labels=self.dice.integers(0, LABELS, weeks),
        )  # fmt: skip

    def tell(self, on: Events) -> None:
        """The same after a request: as `alarms.asked` and `alarms.compared` have it."""
        self.lived += self.alive & (self.step == len(STEPS) - 1)
        self._asked(on)
        share = (self.answered + 100 * ANSWERED) / (self.asked + 100)
        allowed = np.minimum((PROMISED.margin or 0) / np.maximum(share, 0.01), 0.95)
        likely = np.minimum((self.differed + 0.5) / (self.held_out + self.seen + 1), allowed)
        wrong = on.differs.astype(float)
        self.tests[Kind.AGREEMENT].observe(on.compared, wrong, allowed)
        self.usual.observe(on.compared, wrong, likely)
        self.closer.weigh(on.compared, self.tests[Kind.AGREEMENT].change * allowed, self.usual.change * likely)
        for counts, more in ((self.differed, on.compared & on.differs), (self.seen, on.compared),
                             (self.pairs, on.compared), (self.audits, on.compared)):  # fmt: skip
            counts += more
        self._labelled(on)

    def _asked(self, on: Events) -> None:
        no = np.zeros(len(self.asked))
        self.tests[Kind.ERRORS].observe(on.asked, on.failed + no, PROMISED.error_rate)
        handed_over = ~on.answered & ~on.failed
        self.tests[Kind.INPUT_DRIFT].observe(on.asked, handed_over + no, PROMISED.handed_over or 0.5)
        self.tests[Kind.LATENCY].observe(on.asked & on.answered, on.slow + no, SLOW)
        self.tests[Kind.COST].observe(on.asked, np.minimum(on.cost / COST_SCALE, 1.0), 1 / COST_SCALE)
        for counts, one in ((self.asked, np.ones(len(no))), (self.answered, on.answered + no)):
            counts[:] = np.where(on.asked, counts * 0.995 + one, counts)

    def _labelled(self, on: Events) -> None:
        rows = np.flatnonzero(on.compared)
        full = self.reference[rows].sum(axis=1) >= REFERENCE
        for counts, which in ((self.reference, rows[~full]), (self.window, rows[full])):
            counts[which, on.labels[which]] += 1
        for week in rows[full][self.window[rows[full]].sum(axis=1) >= WINDOW]:
            one, other = ({str(n): int(c) for n, c in enumerate(counts[week]) if c}
                          for counts in (self.reference, self.window))  # fmt: skip
            if label_shift(one, other) < SHIFT_AT:
                self.found[week].add(Kind.OUTPUT_DRIFT)
            self.window[week] = 0

    def over(self) -> dict[Kind, Flags]:
        """Which alarms are raised at a look."""
        at = {kind: np.full(len(self.asked), ALARM_AT) for kind in TESTS}
        at[Kind.AGREEMENT] = np.where(self.usual.change >= CHANGED_AT, WORSE_AT, ROLLBACK_AT)
        harms = (Kind.AGREEMENT, Kind.ERRORS, Kind.LATENCY)
        return {
            kind: (bets.change >= at[kind]) | (self.trial & (kind in harms) & (bets.excess >= HARM_AT))
            for kind, bets in self.tests.items()
        }

    def look(self) -> None:
        """A look of the worker: alarms, rollbacks, steps."""
        alive, trial = self.alive, self.trial
        for kind, over in self.over().items():
            for week in np.flatnonzero(over & alive):
                self.found[week].add(kind)
            harm = kind in (Kind.AGREEMENT, Kind.LATENCY)
            fatal = over & alive & (harm | (trial & (kind is Kind.ERRORS)))
            self.back[fatal] = np.where(trial[fatal], "canary", "week")
        on = self.alive & (self.step < len(STEPS) - 1) & (self.pairs >= POLICY.canary_pairs) & ~self.closer.raised
        self.step += on
        self.pairs[on] = 0

    def live(self) -> None:
        """Until all weeks are over."""
        number = 0
        while self.alive.any():
            self.tell(self.draw())
            number += 1
            if number % LOOK == 0:
                self.look()


def near_misses(world: Quiet, weeks: int) -> int:
    """In how many weeks the alarm of the match rate goes off, by the real code; 1,000 requests came before."""
    found = 0
    for seed in range(weeks):
        dice, rate = random.Random(seed), MatchRate(round(1000 * (1 - world.near_misses)), 1000)
        found += any(rate.add(matches=dice.random() >= world.near_misses) for _ in range(REQUESTS))
    return found


def check(world: Quiet, requests: int = 3000) -> None:
    """The real code, call by call, for one week: the same evidence, the same alarms."""
    many = Weeks(world, 1, 7)
    told = msgspec.structs.replace(PROMISED, differed=many.started[0] / many.held_out)
    watched = Watched(promotion="p", step="p")
    for number in range(requests):
        on, trial = many.draw(), bool(many.trial[0])
        many.tell(on)
        if on.asked[0]:
            cost, slow = on.cost[0] * (PROMISED.cost_usd or 0), 1500.0 if on.slow[0] else 100.0
            watched = asked(watched, Outcome(bool(on.answered[0]), bool(on.failed[0]), slow, cost), told)
        if on.compared[0]:
            watched = compared(watched, float(not on.differs[0]), str(on.labels[0]), told)
        if (number + 1) % LOOK == 0:
            trial = bool(many.trial[0])
            real = {alarm.kind for alarm in alarms("t", watched, told, canary=trial)} - {Kind.OUTPUT_DRIFT}
            assert real == {kind for kind, over in many.over().items() if over[0]}, (number, real)
            many.look()
    for kind, bets in watched.tests.items():
        assert np.isclose(bets.change, many.tests[kind].change[0], rtol=1e-6), kind
        assert np.isclose(bets.excess, many.tests[kind].excess[0], rtol=1e-6), kind
    assert np.isclose(watched.usual.change, many.usual.change[0], rtol=1e-6)
    assert watched.raised == many.closer.raised[0]


def line(name: str, weeks: int) -> str:
    """A row of the table, per 1,000 weeks."""
    check(ROWS[name])
    found: Counter[str] = Counter()
    many = Weeks(ROWS[name], weeks, 1)
    many.live()
    for kinds in many.found:
        found.update(kinds)
    found[Kind.MATCH_RATE] = near_misses(ROWS[name], weeks)
    told = " | ".join(f"{1000 * found[kind] / weeks:g}" for kind in KINDS)
    backs = " | ".join(f"{1000 * (many.back == when).sum() / weeks:g}" for when in ("canary", "week"))
    return f"| {name} | {told} | {backs} | {many.audits.mean():,.0f} |"


KINDS = (*TESTS, Kind.OUTPUT_DRIFT, Kind.MATCH_RATE)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    options.add_argument("--weeks", type=int, default=1000)
    given = options.parse_args()
    say(f"| per 1,000 weeks | {' | '.join(kind.value for kind in KINDS)} | rolled back on trial | later | audits |")
    say("|---" * (len(KINDS) + 4) + "|")
    for name in given.rows or ROWS:
        say(line(name, given.weeks))


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
