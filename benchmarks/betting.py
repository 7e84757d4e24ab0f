"""The bets of `gateway/pipeline/sequential.py` on many runs at once, in numpy; each benchmark that uses them checks
them against the real code first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.pipeline.alarms import CHANGE_WARNING, UNEASY, UNEASY_AUDITS
from gateway.pipeline.sequential import MOST, ODDS, SETTLED, WARNING, WEIGHTS

Flags = NDArray[np.bool_]
Numbers = NDArray[np.float64]


class ManyBets:
    """One test, in many runs side by side: for each run and bet, what `sequential.Bets` keeps."""

    def __init__(self, runs: int) -> None:
        self.wealth, self.logs = np.zeros((runs, len(ODDS))), np.zeros((runs, len(ODDS)))

    def observe(self, which: Flags, value: Numbers, allowed: Numbers | float) -> None:
        """One observation each (runs,), of those runs `which` have one; see `sequential.observed`."""
        factor = np.where(which[:, None], _payoffs(value, allowed), 1.0)
        self.wealth = np.where(which[:, None], np.minimum((self.wealth + 1) * factor, MOST), self.wealth)
        self.logs += np.log(factor)

    def begin_anew(self, which: Flags) -> None:
        """Forget all that these runs have seen."""
        self.wealth[which] = self.logs[which] = 0.0

    @property
    def change(self) -> Numbers:
        """Evidence of a change at whatever time, (runs,)."""
        return np.asarray(self.wealth @ np.array(WEIGHTS))

    @property
    def excess(self) -> Numbers:
        """Evidence from the first observation on, (runs,)."""
        return np.asarray(np.exp(np.minimum(self.logs, 700)) @ np.array(WEIGHTS))


class Audits:
    """Of many runs side by side, how much of what their candidates answer is audited (see `alarms.compared`)."""

    def __init__(self, runs: int) -> None:
        self.raised, self.suspicion = np.zeros(runs, dtype=bool), np.zeros(runs)

    def weigh(self, which: Flags, against_margin: Numbers, against_usual: Numbers) -> None:
        """What the evidence, each times what is allowed by it (runs,), makes of those runs `which` compared."""
        suspicion = np.maximum(against_margin / WARNING, against_usual / CHANGE_WARNING)
        self.suspicion = np.where(which, suspicion, self.suspicion)
        self.raised = np.where(which, suspicion >= np.where(self.raised, SETTLED, 1.0), self.raised)

    def share(self, least: float, trial: Flags | bool = False) -> Numbers:
        """The share of answers that is audited, from 0 to 1, where the policy asks for `least`."""
        uneasy = np.where(self.suspicion >= UNEASY, max(least, UNEASY_AUDITS / 100), least)
        return np.asarray(np.where(self.raised | trial, 1.0, uneasy))


def _payoffs(value: Numbers, allowed: Numbers | float) -> Numbers:
    """What each bet of 1 becomes, (runs, bets)."""
    mean, odds = np.reshape(allowed, (-1, 1)), np.array([ODDS])
    meant = odds * mean / (1 + (odds - 1) * mean)
    at_0, at_1 = (1 - meant) / (1 - mean), meant / mean
    return np.asarray(at_0 + np.reshape(value, (-1, 1)) * (at_1 - at_0))
