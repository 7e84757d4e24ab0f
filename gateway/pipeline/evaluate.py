"""Candidates beside the incumbent on the held-out rows: quality with its interval, cost, latency.

The incumbent's answers are the yardstick, so quality is called agreement: a share of requests, against what
the prompted model answered. A candidate that can say how sure it is answers only above a threshold; below it
the request goes on, whole, to the incumbent. What is judged is that blend, since it is what clients get.

The threshold comes from the training rows alone (cross-fitted), so the validation rows judge it unseen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.config import Config
from gateway.domain.dataset import Dataset, Row
from gateway.domain.exchange import Exchange
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.route import LOCAL
from gateway.encoding import decoded
from gateway.errors import DatasetError, TaskError
from gateway.pipeline.asking import Answered, Ask, Envelope, same_answer
from gateway.pipeline.bounds import LEAST, CrossFit, agreement_low, choose_threshold, mean, p95, ratio_high
from gateway.providers.openai import read_chat
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import SUPPORT_FLOOR

MOST_ROWS = 2000
"""So many held-out rows are asked at most: enough for an interval of a point, and asking may cost money."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. Shares from 0 to 1; `agreement_low` is the one-sided lower bound.

    `agreement` counts each distinct input once, `agreement_requests` as often as it was asked. The ratios are
    one-sided upper bounds against the incumbent on the same rows: of mean cost, and of p95 latency.
    """

    candidate: str
    upstream: str
    model: str
    rows: int
    agreement: float
    agreement_low: float
    answered: float
    agreement_answered: float | None
    min_confidence: float
    cost_per_1k_usd: float | None
    p50_ms: float | None
    p95_ms: float | None
    input_tokens: float | None
    finetune: str | None = None
    expected: float | None = None
    """What training alone promised to answer rightly (share of all requests); orders the candidates."""
    agreement_requests: float | None = None
    cost_ratio_high: float | None = None
    latency_ratio_high: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The incumbent, and every candidate that was trained.

    `provider` and `model` are what the task's requests ask for, `incumbent` is who answers them.
    """

    id: str
    task: str
    dataset: str
    template: str
    confidence: float
    incumbent: Score
    candidates: list[Score]
    failed: dict[str, str]
    provider: str = ""
    model: str | None = None


class _Known(msgspec.Struct, frozen=True):
    """What the incumbent's recorded answer to a row took. None: it is not known."""

    latency_ms: float | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None


class _Trial(msgspec.Struct, frozen=True):
    """The rows to judge by, the ids of those that nobody but the incumbent may answer, and what it took."""

    rows: list[Row]
    beyond: frozenset[str]
    known: list[_Known]
    envelopes: list[Envelope]


def evaluate(
    store: SqliteStore, config: Config, dataset: Dataset, finetunes: Sequence[FineTune], models: Path,
    asks: Callable[[FineTune], Ask],
) -> Report:  # fmt: skip
    """Ask every trained candidate the validation rows and note the report in the store.

    Raises:
        DatasetError: there are no validation rows.
    """
    policy = config.policy(dataset.task)
    trained = [f for f in finetunes if f.state is FineTuneState.SUCCEEDED]
    trial = _trial(store, dataset, with_envelopes=any(f.upstream != LOCAL for f in trained))
    failed = {f.id: f.error or f.state.value for f in finetunes if f.state is not FineTuneState.SUCCEEDED}
    fits = {f.id: _cross_fit(models, f) for f in trained}
    # Those without a promise of their own are chosen by the rows that judge them, so each counts as one look.
    looks = sum(fit is None for fit in fits.values()) + any(fit is not None for fit in fits.values())
    confidence = 1 - (1 - policy.confidence) / max(1, looks)
    scores = []
    for finetune in trained:
        threshold, expected = choose_threshold(fits[finetune.id], policy, len(trial.rows), confidence)
        if finetune.upstream == LOCAL:
            threshold = max(threshold, LEAST)
        try:
            answers = _answers(asks(finetune), trial)
        except TaskError as error:
            failed[finetune.id] = str(error)
            continue
        scores.append(_score(finetune, trial, answers, threshold, expected, confidence))
    report = _report(dataset, trial, confidence, scores, failed)
    store.put("evaluations", {
        "id": report.id, "task": report.task, "dataset": report.dataset,
        "report": msgspec.to_builtins(report), "created_at": time.time(),
    })  # fmt: skip
    return report


def _report(
    dataset: Dataset, trial: _Trial, confidence: float, scores: list[Score], failed: dict[str, str]
) -> Report:
    teacher = dataset.card["teacher"]
    return Report(
        id=f"eval-{dataset.id}-{int(time.time() * 1000)}",
        task=dataset.task,
        dataset=dataset.id,
        template=dataset.template,
        confidence=confidence,
        incumbent=incumbent(teacher["target"], trial.known),
        candidates=sorted(scores, key=_order),
        failed=failed,
        provider=teacher["provider"],
        model=teacher["model"],
    )


def _order(score: Score) -> tuple[float, str]:
    """Best first, by what training promised where it did, so that the validation rows judge one choice."""
    promised = score.expected if score.expected is not None else score.agreement
    return (-promised, score.candidate)


def load_report(row: Mapping[str, Any]) -> Report:
    """The report in a row of the table `evaluations`."""
    return msgspec.convert(json.loads(row["report"]), Report)


# --- the rows and what the incumbent took for them -----------------------------------------------------


def _trial(store: SqliteStore, dataset: Dataset, *, with_envelopes: bool) -> _Trial:
    rows = [*dataset.part("validation"), *dataset.beyond]
    if not dataset.part("validation"):
        raise DatasetError(f"dataset {dataset.id} has no validation rows; send more traffic through the gateway")
    if len(rows) > MOST_ROWS:  # every n-th, so that all times of recording are there
        rows = [rows[number * len(rows) // MOST_ROWS] for number in range(MOST_ROWS)]
    found = (store.exchange(row.exchange_id) for row in rows)
    pairs = [(_known(e, dataset), _envelope(e) if with_envelopes else {}) for e in found]
    beyond = frozenset(row.exchange_id for row in dataset.beyond)
    return _Trial(rows, beyond, [known for known, _ in pairs], [envelope for _, envelope in pairs])


def _known(exchange: Exchange | None, dataset: Dataset) -> _Known:
    """Nothing is known of a row that a person corrected after a candidate had answered it."""
    target = dataset.card["teacher"]["target"]
    if exchange is None or exchange.stripped or exchange.target not in (None, target):
        return _Known()
    return _Known(exchange.latency_ms, exchange.cost_usd, exchange.input_tokens)


def _envelope(exchange: Exchange | None) -> Envelope:
    if exchange is None:
        return {}
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    request = (read_chat(body) if body else None) or {}
    return {k: v for k, v in request.items() if k not in ("model", "messages", "stream", "stream_options")}


def incumbent(target: str, known: Sequence[_Known]) -> Score:
    """The prompted model as it was recorded on the same rows."""
    upstream, _, model = target.partition("/")
    p50, high = percentiles([one.latency_ms for one in known if one.latency_ms is not None])
    return Score(
        candidate="incumbent",
        upstream=upstream,
        model=model,
        rows=len(known),
        agreement=1.0,
        agreement_low=1.0,
        answered=1.0,
        agreement_answered=1.0,
        min_confidence=0.0,
        cost_per_1k_usd=_average([one.cost_usd for one in known if one.cost_usd is not None], 1000),
        p50_ms=p50,
        p95_ms=high,
        input_tokens=_average([one.input_tokens for one in known if one.input_tokens is not None]),
    )


def percentiles(times: Sequence[float]) -> tuple[float | None, float | None]:
    """p50 and p95; None for nothing."""
    if not times:
        return None, None
    low, high = np.percentile(times, [50, 95])
    return float(low), float(high)


def _average(values: Sequence[float], factor: float = 1) -> float | None:
    return factor * float(np.mean(values)) if values else None


def _cross_fit(models: Path, finetune: FineTune) -> CrossFit | None:
    """Confidences and rightness of the cross-fitted answers that the trainer left beside its model."""
    file = models / (finetune.model or "") / "crossfit.json"
    if finetune.upstream != LOCAL:
        return None
    try:
        kept = json.loads(file.read_bytes())
        sure, right = np.array(kept["confidence"], dtype=float), np.array(kept["right"], dtype=bool)
        if "support" in kept:  # as it is when it serves: what is unlike all it has seen is not answered
            sure = np.where(np.array(kept["support"], dtype=float) < SUPPORT_FLOOR, 0.0, sure)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (sure, right) if sure.shape == right.shape and sure.ndim == 1 else None


# --- the blend ---------------------------------------------------------------------------------------


class _Blended(msgspec.Struct, frozen=True):
    """What a client got for one row: from the candidate, or after it abstained from the incumbent."""

    answered: bool
    right: bool
    latency_ms: float | None
    cost_usd: float | None
    input_tokens: int | None


def _answers(ask: Ask, trial: _Trial) -> list[Answered]:
    answers = ask(zip(trial.rows, trial.envelopes, strict=True))
    if all(answer.text is None for answer in answers):
        raise TaskError(f"it gave no answer to any of {len(answers)} rows; the last: {answers[-1].error}")
    return answers


def _one(row: Row, answer: Answered, known: _Known, threshold: float, *, beyond: bool) -> _Blended:
    if answer.text is not None and (answer.sure is None or answer.sure >= threshold):
        right = not beyond and same_answer(answer.text, row.output)
        return _Blended(True, right, answer.latency_ms, answer.cost_usd, len(row.text) // 4)
    after = None if known.latency_ms is None else answer.latency_ms + known.latency_ms
    cost = None if known.cost_usd is None else known.cost_usd + (answer.cost_usd or 0.0)
    return _Blended(False, True, after, cost, known.input_tokens)


def _score(
    finetune: FineTune, trial: _Trial, answers: Sequence[Answered], threshold: float, expected: float | None,
    confidence: float,
) -> Score:  # fmt: skip
    rows, known = trial.rows, trial.known
    blend = [
        _one(row, answer, before, threshold, beyond=row.exchange_id in trial.beyond)
        for row, answer, before in zip(rows, answers, known, strict=True)
    ]
    answered = [one for one in blend if one.answered]
    wrong = sum(not one.right for one in blend)
    p50, high = percentiles([one.latency_ms for one in blend if one.latency_ms is not None])
    requests = sum(row.seen for row in rows)
    costs = [one.cost_usd for one, before in zip(blend, known, strict=True) if before.cost_usd is not None]
    all_costs = costs or [one.cost_usd for one in blend]
    return Score(
        candidate=describe(finetune),
        finetune=finetune.id,
        upstream=finetune.upstream or "",
        model=finetune.model or "",
        rows=len(rows),
        agreement=1 - wrong / len(rows),
        agreement_low=agreement_low(wrong, len(rows), confidence),
        agreement_requests=sum(row.seen for row, one in zip(rows, blend, strict=True) if one.right) / requests,
        answered=len(answered) / len(rows),
        agreement_answered=sum(one.right for one in answered) / len(answered) if answered else None,
        min_confidence=threshold,
        cost_per_1k_usd=None if None in all_costs else _average([c for c in all_costs if c is not None], 1000),
        cost_ratio_high=ratio_high(
            [one.cost_usd for one in blend], [one.cost_usd for one in known], mean, confidence
        ),
        p50_ms=p50,
        p95_ms=high,
        latency_ratio_high=ratio_high(
            [one.latency_ms for one in blend], [one.latency_ms for one in known], p95, confidence
        ),
        input_tokens=_average([one.input_tokens for one in blend if one.input_tokens is not None]),
        expected=expected,
    )


def describe(finetune: FineTune) -> str:
    """A candidate in a few words: its trainer and the values of its options."""
    return " ".join([finetune.trainer, *(str(value) for value in finetune.options.values())])
