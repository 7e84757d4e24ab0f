"""From a candidate's answers to its line in the table; pure functions of rows and answers.

A candidate that can say how sure it is answers only above a threshold; below it the request goes on, whole, to
the incumbent. What is judged is that blend, since it is what clients get. A baseline has nobody behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.domain.dataset import Row
from gateway.domain.finetune import FineTune
from gateway.domain.route import LOCAL
from gateway.pipeline import quality
from gateway.pipeline.asking import Answered
from gateway.pipeline.bounds import agreement_low, mean, p95, ratio_high
from gateway.pipeline.intervals import Figure, difference_low, mean_figure, mean_high, mean_low
from gateway.pipeline.itself import beside_itself
from gateway.pipeline.schemas import fits
from gateway.pipeline.scores import Gold, Itself, Measure, Role, Score
from gateway.pipeline.trial import Known, Trial

RECORDED = "recorded by the gateway on these rows"
_THEN = "; where it abstains, and then the incumbent's recorded time"
_HERE = "in this process, without a network"
_ASKED = "asked directly, four at once, the whole answer"
_RELAYED = "asked over a socket through a relay started for it"
_RELAYED_HERE = f"{_RELAYED}, one after the other; matched, stripped and recorded on the way"
_RELAYED_AWAY = f"{_RELAYED}, four at once, until the whole answer is there"
_WHOLE = ("incumbent again", "base whole", "sibling")
"""Who is asked the whole prompt: about as many tokens as the incumbent's."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What all lines of an evaluation are scored by. `confidence` is one-sided; `hosting` is USD a request for
    each upstream that is paid by the hour; `again` the quality of the incumbent asked again, by row id; `twice`
    what the traffic tells of that. `relayed`: answers came through a running relay."""

    kind: str
    measure: Measure
    confidence: float
    hosting: Mapping[str, float] = {}
    again: Mapping[str, float] = {}
    twice: Itself | None = None
    relayed: bool = False
    likeness: quality.Likeness | None = None
    """By which the meanings of answers in prose are compared, where an embedding is configured."""


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """Who is scored: a fine-tune above its threshold, or a baseline that answers everything itself."""

    name: str
    upstream: str
    model: str
    role: Role = "candidate"
    finetune: str | None = None
    threshold: float = 0.0
    expected: float | None = None


class Line(msgspec.Struct, frozen=True):
    """A score, and for each row what the client got (None: an answer that is wrong as such), its quality, and
    whether it is the contender's own answer."""

    score: Score
    given: list[str | None]
    values: list[float]
    own: list[bool]


class _Got(msgspec.Struct, frozen=True):
    """What a client got for one row: from the candidate, or after it abstained from the incumbent."""

    answered: bool
    text: str | None
    latency_ms: float | None
    cost_usd: float | None
    input_tokens: int | None


def describe(finetune: FineTune) -> str:
    """A candidate in a few words: its trainer and the values of its options."""
    values = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in finetune.options.values())
    return " ".join([finetune.trainer, *values])


def values_of(measure: Measure, pairs: Sequence[quality.Pair]) -> list[float]:
    """The quality of each row, 0 to 1; what a judge has not seen is measured by similarity. Calls of tools are no
    prose, so they are the same or not."""
    figure = {"exact": quality.exact, "fields": quality.field_f1}.get(measure, quality.chrf)
    if figure is not quality.chrf:
        return [figure(expected, given) for expected, given in pairs]
    called = [quality.has_calls(expected) or quality.has_calls(given) for expected, given in pairs]
    return [(quality.exact if calls else figure)(*pair) for pair, calls in zip(pairs, called, strict=True)]


def scored(who: Contender, trial: Trial, answers: Sequence[Answered], terms: Terms) -> Line:
    """The line of a contender that gave these answers to the trial's rows."""
    hosting = terms.hosting.get(who.upstream, 0.0)
    got = [
        _got(who, row, answer, before, hosting, beyond=row.exchange_id in trial.beyond)
        for row, answer, before in zip(trial.rows, answers, trial.known, strict=True)
    ]
    given = [one.text for one in got]
    pairs = [(row.output, text) for row, text in zip(trial.rows, given, strict=True)]
    same = values_of("exact", pairs)
    values = same if terms.measure == "exact" else values_of(terms.measure, pairs)
    score = Score(
        candidate=who.name, finetune=who.finetune, upstream=who.upstream, model=who.model, role=who.role,
        min_confidence=who.threshold, expected=who.expected, rows=len(got),
        **_agreement(same, got, trial, terms.confidence), **_costs(who, got, trial, terms),
        metrics=metrics_of(terms, trial, given), gold=gold_of(trial, given),
    )  # fmt: skip
    line = Line(score, given, values, [one.answered for one in got])
    if terms.measure == "judge":  # its word is still to come
        return line
    score = with_quality(score, trial.rows, values, terms)
    judged = [
        (value, own, terms.again.get(row.exchange_id))
        for row, value, own in zip(trial.rows, values, line.own, strict=True)
    ]
    beside = beside_itself(judged, terms.twice, terms.confidence)
    return msgspec.structs.replace(line, score=msgspec.structs.replace(score, difference_low=beside))


def _got(who: Contender, row: Row, answer: Answered, known: Known, hosting: float, *, beyond: bool) -> _Got:
    cost = 0.0 if answer.cost_usd is None and hosting else answer.cost_usd
    alone = who.role != "candidate"
    sure = answer.sure is not None and answer.sure >= who.threshold
    if alone or (answer.text is not None and (sure or not who.threshold)):
        text = None if beyond else answer.text
        tokens = known.input_tokens if who.role in _WHOLE else len(row.text) // 4
        return _Got(not alone or text is not None, text, answer.latency_ms, cost, tokens)
    after = None if known.latency_ms is None else answer.latency_ms + known.latency_ms
    both = None if known.cost_usd is None else known.cost_usd + (cost or 0.0)
    return _Got(False, row.output, after, both, known.input_tokens)


def _agreement(same: Sequence[float], got: Sequence[_Got], trial: Trial, confidence: float) -> dict[str, Any]:
    answered = [value for value, one in zip(same, got, strict=True) if one.answered]
    wrong = sum(value < 1 for value in same)
    return {
        "agreement": 1 - wrong / len(same),
        "agreement_low": agreement_low(wrong, len(same), confidence),
        "agreement_requests": _as_asked(trial.rows, same),
        "answered": len(answered) / len(same),
        "agreement_answered": sum(answered) / len(answered) if answered else None,
    }


def _as_asked(rows: Sequence[Row], values: Sequence[float]) -> float:
    """The mean in which each input counts as often as it was asked."""
    total = sum(row.seen for row in rows)
    return sum(row.seen * value for row, value in zip(rows, values, strict=True)) / total


def _costs(who: Contender, got: Sequence[_Got], trial: Trial, terms: Terms) -> dict[str, Any]:
    """Cost with hosting, latency, and both beside the incumbent on the same rows."""
    known, hosting, confidence = trial.known, terms.hosting.get(who.upstream, 0.0), terms.confidence
    costs = [None if one.cost_usd is None else one.cost_usd + hosting for one in got]
    base = [one.cost_usd for one in known]
    priced = [cost for cost, before in zip(costs, base, strict=True) if before is not None] or costs
    average = None if None in priced else average_of([cost for cost in priced if cost is not None], 1000)
    times, before = [one.latency_ms for one in got], [one.latency_ms for one in known]
    p50, high = percentiles([time for time in times if time is not None])
    return {
        "cost_per_1k_usd": average,
        "hosting_per_1k_usd": 1000 * hosting,
        "cost_ratio_high": ratio_high(costs, base, mean, confidence),
        "break_even_per_day": _break_even(average, base, hosting, trial.requests_per_day),
        "p50_ms": p50,
        "p95_ms": high,
        "latency_ratio_high": ratio_high(times, before, p95, confidence),
        "latency_source": _source(who, relayed=terms.relayed),
        "input_tokens": average_of([one.input_tokens for one in got if one.input_tokens is not None]),
    }


def _source(who: Contender, *, relayed: bool) -> str:
    """How its latency was measured, in words."""
    here, away = (_RELAYED_HERE, _RELAYED_AWAY) if relayed else (_HERE, _ASKED)
    return (here if who.upstream == LOCAL else away) + (_THEN if who.role == "candidate" else "")


def _break_even(
    cost_per_1k: float | None, base: Sequence[float | None], hosting: float, requests_per_day: float | None
) -> float | None:
    """Requests a day from which on what is saved on each pays for the hours; 0 where no hours are paid."""
    incumbent = average_of([cost for cost in base if cost is not None])
    if cost_per_1k is None or incumbent is None:
        return None
    saved = incumbent - (cost_per_1k / 1000 - hosting)
    if saved <= 0:
        return None
    return hosting * (requests_per_day or 0.0) / saved


def with_quality(score: Score, rows: Sequence[Row], values: Sequence[float], terms: Terms) -> Score:
    """The score with the quality that these values make, by its measure's bounds. For the same answer they are
    exact (Clopper and Pearson 1934), for other values by betting."""
    if terms.measure == "exact":
        wrong = sum(value < 1 for value in values)
        low = agreement_low(wrong, len(values), terms.confidence)
        high = 1 - agreement_low(len(values) - wrong, len(values), terms.confidence)
    else:
        low, high = mean_low(values, terms.confidence), mean_high(values, terms.confidence)
    return msgspec.structs.replace(
        score, quality=sum(values) / len(values), quality_low=low, quality_high=high,
        quality_requests=_as_asked(rows, values),
    )  # fmt: skip


def beaten(lines: Sequence[Line], confidence: float) -> list[Line]:
    """The lines, and in each but the first how far that one is ahead; all were asked the same rows."""
    if not lines:
        return []
    mine = _served(lines[0])
    behind = [
        msgspec.structs.replace(line.score, beaten_low=difference_low(mine, _served(line), confidence))
        for line in lines[1:]
    ]
    rest = zip(lines[1:], behind, strict=True)
    return [lines[0], *(msgspec.structs.replace(line, score=score) for line, score in rest)]


def _served(line: Line) -> list[float]:
    """The quality of its own answers, row by row; 0 where it leaves the request to the incumbent."""
    return [value if own else 0.0 for value, own in zip(line.values, line.own, strict=True)]


def metrics_of(terms: Terms, trial: Trial, given: Sequence[str | None]) -> dict[str, Figure]:
    """The measures of this kind of task, over the rows whose answer is a text, and those of calls of tools."""
    held = [
        (row.output, text)
        for row, text in zip(trial.rows, given, strict=True)
        if row.exchange_id not in trial.beyond
    ]
    texts = [pair for pair in held if not quality.has_calls(pair[0])]
    calls = [pair for pair in held if quality.has_calls(pair[0])]
    return (_of_texts(terms, trial, given, texts) if texts else {}) | (_of_calls(calls) if calls else {})


def _of_texts(
    terms: Terms, trial: Trial, given: Sequence[str | None], pairs: Sequence[quality.Pair]
) -> dict[str, Figure]:
    if terms.kind == "classification":
        return {"macro_f1": quality.macro_f1(pairs)}
    if terms.kind == "extraction":
        fields = [(wanted, None if quality.has_calls(text) else text) for wanted, text in pairs]
        return {
            "field_f1": quality.fields_f1(fields),
            "json_valid": mean_figure([quality.is_json_object(text) for _, text in pairs]),
            **_schema_valid(trial, given),
        }
    meaning = {"embedding": mean_figure(terms.likeness.of(pairs))} if terms.likeness is not None else {}
    return {"chrf": mean_figure([quality.chrf(*pair) for pair in pairs]), **meaning}


def _of_calls(pairs: Sequence[quality.Pair]) -> dict[str, Figure]:
    """How often the same tools are called with the same arguments, and the F1 of the arguments."""
    said = [(wanted, text if quality.has_calls(text) else None) for wanted, text in pairs]
    return {
        "calls_same": mean_figure([quality.exact(*pair) for pair in pairs]),
        "calls_f1": quality.fields_f1(said),
    }


def _schema_valid(trial: Trial, given: Sequence[str | None]) -> dict[str, Figure]:
    """Where the requests asked for a schema: the share of answers that keep to it. It binds no calls of tools."""
    kept = [
        fits(text or "", asked)
        for row, envelope, text in zip(trial.rows, trial.envelopes, given, strict=True)
        if (asked := envelope.get("response_format")) and not quality.has_calls(row.output)
    ]
    return {"schema_valid": mean_figure(kept)} if kept else {}


def gold_of(trial: Trial, given: Sequence[str | None]) -> Gold | None:
    """Accuracy where a person has said what is right, and how far that is from the incumbent's."""
    places = [at for at, row in enumerate(trial.rows) if row.exchange_id in trial.gold]
    if not places:
        return None
    right = {at: quality.exact(trial.rows[at].output, given[at]) for at in places}
    both = [(right[at], quality.exact(trial.rows[at].output, trial.known[at].said))
            for at in places if trial.known[at].said is not None]  # fmt: skip
    return Gold(
        rows=len(places),
        accuracy=mean_figure(list(right.values())),
        difference=mean_figure([own - other for own, other in both]) if both else None,
    )


def incumbent(target: str, trial: Trial) -> Score:
    """The prompted model as it was recorded on the same rows."""
    upstream, _, model = target.partition("/")
    known = trial.known
    p50, high = percentiles([one.latency_ms for one in known if one.latency_ms is not None])
    said = [one.said for one in known]
    gold = frozenset(row.exchange_id for row, text in zip(trial.rows, said, strict=True) if text is not None)
    own = msgspec.structs.replace(trial, gold=trial.gold & gold)
    found = gold_of(own, said)
    return Score(
        candidate="incumbent",
        role="incumbent",
        upstream=upstream,
        model=model,
        rows=len(known),
        agreement=1.0,
        agreement_low=1.0,
        answered=1.0,
        agreement_answered=1.0,
        min_confidence=0.0,
        cost_per_1k_usd=average_of([one.cost_usd for one in known if one.cost_usd is not None], 1000),
        p50_ms=p50,
        p95_ms=high,
        input_tokens=average_of([one.input_tokens for one in known if one.input_tokens is not None]),
        gold=None if found is None else msgspec.structs.replace(found, difference=None),
        latency_source=RECORDED,
    )


def percentiles(times: Sequence[float]) -> tuple[float | None, float | None]:
    """p50 and p95; None for nothing."""
    if not times:
        return None, None
    low, high = np.percentile(times, [50, 95])
    return float(low), float(high)


def average_of(values: Sequence[float], factor: float = 1) -> float | None:
    """The mean times `factor`; None for nothing."""
    return factor * float(np.mean(values)) if values else None
