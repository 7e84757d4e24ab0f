"""What is watched of a candidate that answers live requests: a closed list of alarms, each with what is done.

Each test compares a share with what is allowed (`sequential`), so that all of them have the same two guarantees:
while a share is allowed, an alarm comes on average at most once in `ROLLBACK_AT` audits or `ALARM_AT` requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec

from gateway.pipeline.bounds import agreement_low
from gateway.pipeline.canary import HARM_AT
from gateway.pipeline.scores import Measure
from gateway.pipeline.sequential import SETTLED, Bets, Interval, interval, observed

ROLLBACK_AT = 1e5
"""Evidence of a change at which a candidate is rolled back: at the very edge of the margin that takes 100,000
audits on average at the least."""
CHANGED_AT = 1.2e5
"""Evidence that a candidate's answers differ more often than they used to, be it within the margin."""
WORSE_AT = 5e3
"""Then so much evidence against the margin itself is enough: one that has changed and stands at the very edge is
rolled back after 5,000 audits on average at the least, one that has not after 100,000."""
CHANGE_WARNING = 10.0
"""When a change is suspected (`sequential.WARNING` for evidence against what is usual): then all is audited."""
UNEASY, UNEASY_AUDITS = 0.3, 30.0
"""At so much of what raises a suspicion, so many percent are audited: what begins to decay is suspected sooner."""
ALARM_AT = 1e6
"""The same for tests of every request."""
SLOW = 0.05
"""The share of requests that may take longer than the p95 that is allowed."""
COST_SCALE = 4.0
"""A request counts as costing at most so many times what is allowed on average."""
DRIFT = 0.1
"""So much more may be handed over than the held-out rows let expect, at their 99.9 % bound."""
REFERENCE, WINDOW = 400, 200
"""A candidate's first answers that were compared, and how many newer ones are held against them at a time."""
SHIFT_AT = 1e-6
"""How improbable their difference must be, for each window: one false alarm in 200 million answers compared."""
LEAST_SHIFT = 0.15
"""And so great a share of them must have moved to other labels (total variation)."""
MOST_LABELS = 200
_FORGET = 0.995
Action = Literal["log", "retrain", "rollback"]


class Kind(StrEnum):
    """All that is watched."""

    AGREEMENT = "agreement"
    ERRORS = "errors"
    LATENCY = "latency"
    COST = "cost"
    INPUT_DRIFT = "input_drift"
    OUTPUT_DRIFT = "output_drift"
    MATCH_RATE = "match_rate"
    SHUTDOWN = "shutdown"


ACTIONS: Mapping[Kind, Action] = {
    Kind.AGREEMENT: "rollback", Kind.ERRORS: "log", Kind.LATENCY: "rollback", Kind.COST: "log",
    Kind.INPUT_DRIFT: "retrain", Kind.OUTPUT_DRIFT: "log", Kind.MATCH_RATE: "log", Kind.SHUTDOWN: "log",
}  # fmt: skip
"""What is done. A candidate that fails harms nobody, since its requests go on to the fallback, and an outage is no
reason to give it up; during a canary it is one (`_HARMS`)."""
_HARMS = (Kind.AGREEMENT, Kind.ERRORS, Kind.LATENCY)
_SAYS: Mapping[Kind, str] = {
    Kind.AGREEMENT: "answers that differ from the incumbent's", Kind.ERRORS: "requests that it failed to answer",
    Kind.LATENCY: "requests slower than the p95 allowed", Kind.COST: "cost, beside four times what is allowed",
    Kind.INPUT_DRIFT: "requests that it handed over, not being sure",
}  # fmt: skip


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, what is done about it, and the figures that say so."""

    task: str
    kind: Kind
    action: Action
    sentence: str
    figures: dict[str, float] = {}


class Expected(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What the gate promised of a candidate. `margin`: how much its quality, by the gate's `measure`, may fall
    short of the whole, over all requests; None where it is not watched. So much of it, `alike`, two answers of the
    incumbent may (0.5 where a judge finds both equally good): that is what a request that was handed over has.
    `answered` of `rows` held-out rows it answered itself, and `differed` of those differed. `slow_ms`: the p95 that
    is allowed; `cost_usd`: of a request, on average; None where nothing is known."""

    margin: float | None
    error_rate: float
    measure: Measure = "exact"
    alike: float = 0.0
    answered: float = 1.0
    differed: float | None = None
    rows: int = 0
    slow_ms: float | None = None
    cost_usd: float | None = None

    @cached_property
    def handed_over(self) -> float | None:
        """The greatest share of requests that may be handed over to the incumbent; None: it is not known."""
        if not self.rows:
            return None
        likely = 1 - agreement_low(round((1 - self.answered) * self.rows), self.rows, 0.999)
        return min(likely + DRIFT, 0.95)


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one candidate, kept in the store between two looks.

    `promotion` and `step` are rows of `promotions`; `pairs` were compared in this step. `mark` is the last row of
    `exchanges` that was read, `open` are rows before it that were under way. `asked` and `answered` count its
    requests, older ones less and less. `reference` and `window` are labels of answers that were compared. `judged`:
    what was left of a judge's day, and when that was (seconds since the epoch); None: all of it. `usual`: bets on
    answers that differ more often than before. `suspicion`: how near the evidence is to one (1), and `raised`
    whether there is one, until that is settled.
    """

    promotion: str
    step: str
    mark: int = 0
    open: tuple[int, ...] = ()
    pairs: int = 0
    asked: float = 0.0
    answered: float = 0.0
    tests: dict[Kind, Bets] = {}
    reference: dict[str, int] = {}
    window: dict[str, int] = {}
    shift: float = 1.0
    suspicion: float = 0.0
    raised: bool = False
    judged: tuple[float, float] | None = None
    usual: Bets = Bets()

    @property
    def agreement(self) -> Interval | None:
        """The share of compared answers that agree, with bounds of 95 % that hold at all times; None: none yet."""
        bets = self.tests.get(Kind.AGREEMENT)
        if bets is None or not bets.seen:
            return None
        low, mean, high = interval(bets.seen, bets.total, 0.95)
        return Interval(1 - high, 1 - mean, 1 - low)


class Outcome(NamedTuple):
    """What became of a request that the candidate was asked: neither answered nor failed is handed over."""

    answered: bool
    failed: bool
    latency_ms: float | None
    cost_usd: float | None


def asked(watched: Watched, outcome: Outcome, expected: Expected) -> Watched:
    """The same after one more request."""
    tests = dict(watched.tests)

    def add(kind: Kind, value: float, allowed: float) -> None:
        tests[kind] = observed(tests.get(kind, Bets()), value, allowed)

    add(Kind.ERRORS, float(outcome.failed), expected.error_rate)
    if expected.handed_over is not None:  # those that failed count: of the others of an outage all are handed over
        add(Kind.INPUT_DRIFT, float(not outcome.answered and not outcome.failed), expected.handed_over)
    if outcome.answered and expected.slow_ms is not None and outcome.latency_ms is not None:
        add(Kind.LATENCY, float(outcome.latency_ms > expected.slow_ms), SLOW)
    if expected.cost_usd and outcome.cost_usd is not None:
        add(Kind.COST, min(outcome.cost_usd / expected.cost_usd / COST_SCALE, 1.0), 1 / COST_SCALE)
    return msgspec.structs.replace(
        watched, tests=tests, asked=watched.asked * _FORGET + 1,
        answered=watched.answered * _FORGET + outcome.answered,
    )  # fmt: skip


def allowed_difference(watched: Watched, expected: Expected) -> float:
    """The greatest share of the answers it gives that may differ (the mean of how far they do): the margin is a
    share of all requests, and those handed over differ as the incumbent's answers do among themselves."""
    share = (watched.answered + 100 * expected.answered) / (watched.asked + 100)
    margin = (expected.margin or 0.0) - expected.alike
    return min(expected.alike + margin / max(share, margin, 0.01), 0.95)


def usual_difference(watched: Watched, expected: Expected) -> float | None:
    """The share of its answers that differed so far, on the held-out rows and in all audits: what the next one does
    with this probability as long as nothing has changed (Jeffreys' prior, H. Jeffreys 1946). None: nobody knows, or
    two answers of the incumbent differ, too."""
    if expected.differed is None or expected.alike > 0:
        return None
    bets, held_out = watched.tests.get(Kind.AGREEMENT, Bets()), expected.answered * expected.rows
    differed = expected.differed * held_out + bets.total
    return min((differed + 0.5) / (held_out + bets.seen + 1), allowed_difference(watched, expected))


def compared(watched: Watched, agrees: float, label: str | None, expected: Expected) -> Watched:
    """The same after one more answer was compared with the incumbent's. `agrees`: 1 they say the same, 0 they do
    not; `label`: what the candidate said, where it is one of a closed set."""
    if expected.margin is None:
        watched = msgspec.structs.replace(watched, pairs=watched.pairs + 1)
        return watched if label is None else _labelled(watched, label)
    allowed = allowed_difference(watched, expected)
    bets = observed(watched.tests.get(Kind.AGREEMENT, Bets()), 1.0 - agrees, allowed)
    likely = usual_difference(watched, expected)
    usual = watched.usual if likely is None else observed(watched.usual, 1.0 - agrees, likely)
    least = allowed - expected.alike  # where no two answers are the same, evidence comes and goes more easily
    suspicion = max(bets.suspicion(least), usual.suspicion(likely or 0.0, CHANGE_WARNING))
    after = msgspec.structs.replace(
        watched, tests={**watched.tests, Kind.AGREEMENT: bets}, usual=usual, pairs=watched.pairs + 1,
        suspicion=suspicion, raised=suspicion >= (SETTLED if watched.raised else 1.0),
    )  # fmt: skip
    return after if label is None else _labelled(after, label)


def audits_wanted(watched: Watched, *, trial: bool) -> float:
    """Percent of the candidate's answers that should be audited for what is known of it; 0: as its route says.
    `trial`: it is one that takes its steps, of which each answer is compared."""
    if watched.raised or trial:
        return 100.0
    return UNEASY_AUDITS if watched.suspicion >= UNEASY else 0.0


def _labelled(watched: Watched, label: str) -> Watched:
    reference, window = watched.reference, watched.window
    if len(reference) > MOST_LABELS:  # no closed set of answers
        return watched
    if sum(reference.values()) < REFERENCE:
        return msgspec.structs.replace(watched, reference=reference | {label: reference.get(label, 0) + 1})
    window = window | {label: window.get(label, 0) + 1}
    if sum(window.values()) < WINDOW:
        return msgspec.structs.replace(watched, window=window)
    return msgspec.structs.replace(watched, window={}, shift=label_shift(reference, window))


def label_shift(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """How improbable so different counts of labels are in two samples of one distribution: Pearson's chi-squared
    test of homogeneity, rare labels taken together; 1 where less than `LEAST_SHIFT` of them have moved."""
    total, newer = sum(before.values()), sum(now.values())
    labels = {*before, *now}
    if sum(abs(now.get(x, 0) / newer - before.get(x, 0) / total) for x in labels) / 2 < LEAST_SHIFT:
        return 1.0
    often = [x for x in labels if (before.get(x, 0) + now.get(x, 0)) * newer / (total + newer) >= 5]
    cells = [(before.get(x, 0), now.get(x, 0)) for x in often]
    rest = (total - sum(a for a, _ in cells), newer - sum(b for _, b in cells))
    cells += [rest] if sum(rest) else []
    statistic = 0.0
    for cell in cells:
        for count, size in zip(cell, (total, newer), strict=True):
            mean = sum(cell) * size / (total + newer)
            statistic += (count - mean) ** 2 / mean
    return _chi_squared_tail(statistic, len(cells) - 1)


def _chi_squared_tail(statistic: float, degrees: int) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(degrees, statistic)) if degrees > 0 else 1.0


# --- the verdict -------------------------------------------------------------------------------------------


def alarms(task: str, watched: Watched, expected: Expected, *, canary: bool) -> list[Alarm]:
    """What is wrong now. During a canary the evidence from the first request on counts, too: little is at stake in
    taking it back, and errors are a reason."""
    found = []
    for kind, bets in watched.tests.items():
        limit = _rollback_at(watched) if kind is Kind.AGREEMENT else ALARM_AT
        if canary and kind in _HARMS and bets.excess >= HARM_AT:
            found.append(_alarm(task, kind, bets, bets.excess, HARM_AT, "rollback"))
        elif bets.change >= limit:
            found.append(_alarm(task, kind, bets, bets.change, limit, ACTIONS[kind]))
    if watched.shift < SHIFT_AT:
        sentence = f"its answers have other labels than at first (p = {watched.shift:.1g})"
        found.append(Alarm(
            task=task, kind=Kind.OUTPUT_DRIFT, action=ACTIONS[Kind.OUTPUT_DRIFT], sentence=sentence,
            figures={"probability": watched.shift, "limit": SHIFT_AT},
        ))  # fmt: skip
    return found


def _rollback_at(watched: Watched) -> float:
    """How much evidence against the margin rolls a candidate back: less where it was better before, so that decay
    is found in half the time."""
    return WORSE_AT if watched.usual.change >= CHANGED_AT else ROLLBACK_AT


def _alarm(task: str, kind: Kind, bets: Bets, evidence: float, limit: float, action: Action) -> Alarm:
    mean = bets.total / bets.seen
    sentence = f"{_SAYS[kind]}: {mean:.1%} of {bets.seen}, evidence {evidence:,.0f} (limit {limit:,.0f})"
    figures = {"seen": bets.seen, "mean": mean, "evidence": evidence, "limit": limit}
    return Alarm(task=task, kind=kind, action=action, sentence=sentence, figures=figures)


def is_over(kind: Kind, watched: Watched, expected: Expected) -> bool:
    """Whether an alarm that was raised is over: the evidence has gone, not only fallen below the limit."""
    if kind is Kind.OUTPUT_DRIFT:
        return watched.shift >= SHIFT_AT
    allowed = {
        Kind.AGREEMENT: allowed_difference(watched, expected), Kind.ERRORS: expected.error_rate,
        Kind.LATENCY: SLOW, Kind.COST: 1 / COST_SCALE, Kind.INPUT_DRIFT: expected.handed_over or 0.5,
    }  # fmt: skip
    return kind not in watched.tests or kind not in allowed or watched.tests[kind].is_settled(allowed[kind])
