"""How far the incumbent agrees with itself: what it answers otherwise by chance is not held against a candidate.

It is asked some held-out rows once more. Where that is not possible, the traffic tells: inputs that the app itself
asked more than once. The assumption then is that those are answered as steadily as all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from gateway.config import Config, TaskPolicy
from gateway.pipeline.intervals import difference_low, unpaired_low
from gateway.pipeline.scores import Itself, Score
from gateway.pipeline.trial import Trial

MOST_AGAIN = 300
"""So many held-out rows are asked again where the policy leaves it open: beyond that, little is gained."""
LEAST_AGAIN = 50
"""Of fewer second answers nothing is concluded."""
LEAST_APART = 100
"""The same for second answers that are not to all the judged rows and to no others; nor of fewer than a tenth of
the judged rows: the rate of errors holds from there on (`intervals`)."""
_TENTH = 0.1
LEAST_ITSELF = 0.8
"""An incumbent that agrees with itself less often is no yardstick for labels or JSON: being like it says little."""
_ALL = 0.99
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

Judged = tuple[float, bool, float | None]
"""Of one row: the quality of what the client got, whether it is the candidate's own answer, and the quality of the
incumbent's second answer (None: it was not asked again)."""


def rows_to_ask(policy: TaskPolicy, config: Config, trial: Trial, target: str) -> int:
    """How many rows the incumbent may be asked again: as the policy says, or as many as `ask_again_usd` pays for; 0
    where that is too few, where its price is not known, or where we have no key for it."""
    if policy.ask_again is not None:
        return policy.ask_again
    if not _has_access(config, target.partition("/")[0]):
        return 0
    costs = [one.cost_usd for one in trial.known if one.cost_usd is not None]
    if not costs:
        return 0
    mean = sum(costs) / len(costs)
    rows = min(MOST_AGAIN, math.floor(policy.ask_again_usd / mean) if mean else MOST_AGAIN)
    return rows if rows >= LEAST_AGAIN else 0


def _has_access(config: Config, provider: str) -> bool:
    """Whether we have a key of our own; a server on this machine mostly wants none."""
    section = config.providers.get(provider)
    return section is not None and (bool(config.key(provider)) or urlsplit(section.base_url).hostname in _LOOPBACK)


def is_in_doubt(best: Score, policy: TaskPolicy) -> bool:
    """Whether it matters how far the incumbent agrees with itself: agreement alone does not show the promise, and
    what is left to chance could be the reason."""
    if best.quality is None or best.quality_low is None:
        return False
    return best.quality_low < 1 - policy.margin and best.quality >= LEAST_ITSELF - policy.margin


def asked_twice(card: Mapping[str, Any], kind: str) -> Itself | None:
    """What the inputs say that the app asked more than once, by a dataset's card: one pair of answers of each. Only
    of labels, whose answers are the same exactly where their texts are."""
    pairs, alike = card.get("asked_twice", 0), card.get("asked_twice_alike", 0)
    if kind != "classification" or pairs < LEAST_APART:
        return None
    return Itself(rows=pairs, value=alike / pairs, source="asked twice by the app")


def beside_itself(rows: Sequence[Judged], twice: Itself | None, confidence: float) -> float | None:
    """Lower bound of how much more often the client gets the recorded answer than the incumbent would give it
    again; None where too little is known of that.

    What is left to the incumbent is as good as its second answer, no better. Row by row where all were asked again;
    else the rows that the candidate answers beside the second answers to some of them, or, where it answers
    everything, to other inputs.
    """
    own = [(value, again) for value, is_own, again in rows if is_own]
    again = [second for _, second in own if second is not None]
    known = [(value if is_own else second, second) for value, is_own, second in rows if second is not None]
    enough = max(LEAST_APART, _TENTH * len(own))
    shares = {value for value, _ in own} | set(again) <= {0.0, 1.0}
    if len(known) >= LEAST_AGAIN and (len(known) == len(rows) or not shares):
        return difference_low([value for value, _ in known], [second for _, second in known], confidence)
    if shares and len(again) >= enough:
        low = _apart([value for value, _ in own], len(again), round(sum(again)), confidence)
        return low * len(own) / len(rows)
    if shares and not known and twice is not None and twice.rows >= enough and len(own) >= _ALL * len(rows):
        return _apart([value for value, _ in own], twice.rows, round(twice.value * twice.rows), confidence)
    return None


def _apart(values: Sequence[float], others: int, alike: int, confidence: float) -> float:
    return unpaired_low(round(sum(values)), len(values), alike, others, confidence)
