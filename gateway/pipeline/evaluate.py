"""Candidates beside the incumbent on the held-out rows: quality with its interval, cost, latency.

The incumbent's answers are the yardstick, so quality is called agreement: a share of requests, against what
the prompted model answered. A candidate that can say how sure it is answers only above a threshold; below it
the request goes on, whole, to the incumbent. What is judged is that blend, since it is what clients get.

The threshold comes from the training rows alone (cross-fitted), so the validation rows judge it unseen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.config import Config, TaskPolicy
from gateway.domain.dataset import Dataset, Row
from gateway.domain.exchange import Exchange, Usage
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.price import PriceBook
from gateway.domain.route import LOCAL
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import SUPPORT_FLOOR, EmbeddedModel


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate's answer to one row. `sure` is None for a model that cannot tell."""

    text: str | None
    sure: float | None
    latency_ms: float
    cost_usd: float | None


Ask = Callable[[Row], Answered]


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. Shares from 0 to 1; `agreement_low` is the one-sided lower bound."""

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
    p50_ms: float
    p95_ms: float
    input_tokens: float | None
    finetune: str | None = None
    expected: float | None = None
    """What training alone promised to answer rightly (share of all requests); orders the candidates."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The incumbent, and every candidate that was trained."""

    id: str
    task: str
    dataset: str
    template: str
    confidence: float
    incumbent: Score
    candidates: list[Score]
    failed: dict[str, str]


def evaluate(
    store: SqliteStore, config: Config, dataset: Dataset, finetunes: Sequence[FineTune], models: Path,
    prices: PriceBook, asks: Callable[[FineTune], Ask],
) -> Report:  # fmt: skip
    """Ask every trained candidate the validation rows and note the report in the store."""
    policy = config.policy(dataset.task)
    rows = dataset.part("validation")
    teacher = {row.exchange_id: store.exchange(row.exchange_id) for row in rows}
    known = [exchange for exchange in teacher.values() if exchange is not None]
    trained = [f for f in finetunes if f.state is FineTuneState.SUCCEEDED]
    finalists = 1 + max(0, sum(f.upstream != LOCAL for f in trained))
    confidence = 1 - (1 - policy.confidence) / finalists
    scores = []
    for finetune in trained:
        threshold, expected = choose_threshold(_cross_fit(models, finetune), policy, len(rows))
        answers = [asks(finetune)(row) for row in rows]
        blend = _blend(rows, answers, teacher, threshold)
        scores.append(_score(finetune, rows, blend, threshold, expected, confidence))
    report = Report(
        id=f"eval-{dataset.id}-{int(time.time())}",
        task=dataset.task,
        dataset=dataset.id,
        template=dataset.template,
        confidence=confidence,
        incumbent=incumbent(known, len(rows)),
        candidates=sorted(scores, key=_order),
        failed={f.id: f.error or f.state.value for f in finetunes if f.state is not FineTuneState.SUCCEEDED},
    )
    store.put("evaluations", {
        "id": report.id, "task": report.task, "dataset": report.dataset,
        "report": msgspec.to_builtins(report), "created_at": time.time(),
    })  # fmt: skip
    return report


def _order(score: Score) -> tuple[float, str]:
    """Best first, by what training promised where it did, so that the validation rows judge one choice."""
    promised = score.expected if score.expected is not None else score.agreement
    return (-promised, score.candidate)


def incumbent(exchanges: Sequence[Exchange], rows: int) -> Score:
    """The prompted model as it was recorded on the same rows."""
    costs = [exchange.cost_usd for exchange in exchanges if exchange.cost_usd is not None]
    tokens = [exchange.input_tokens for exchange in exchanges if exchange.input_tokens is not None]
    times = [exchange.latency_ms for exchange in exchanges if exchange.latency_ms is not None]
    p50, p95 = percentiles(times)
    last = exchanges[-1] if exchanges else None
    return Score(
        candidate="incumbent",
        upstream=last.provider if last else "",
        model=(last.model_requested or "") if last else "",
        rows=rows,
        agreement=1.0,
        agreement_low=1.0,
        answered=1.0,
        agreement_answered=1.0,
        min_confidence=0.0,
        cost_per_1k_usd=1000 * float(np.mean(costs)) if costs else None,
        p50_ms=p50,
        p95_ms=p95,
        input_tokens=float(np.mean(tokens)) if tokens else None,
    )


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """p50 and p95; not-a-number for nothing."""
    if not times:
        return float("nan"), float("nan")
    p50, p95 = np.percentile(times, [50, 95])
    return float(p50), float(p95)


# --- the threshold ---------------------------------------------------------------------------------


def _cross_fit(models: Path, finetune: FineTune) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Confidences and rightness of the cross-fitted answers that the trainer left beside its model."""
    file = models / (finetune.model or "") / "crossfit.json"
    if finetune.upstream != LOCAL or not file.exists():
        return None
    kept = json.loads(file.read_text())
    sure = np.where(np.array(kept["support"]) >= SUPPORT_FLOOR, kept["confidence"], 0.0)
    return sure, np.array(kept["right"], dtype=bool)


def choose_threshold(
    cross_fit: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None, policy: TaskPolicy, rows: int
) -> tuple[float, float | None]:
    """(threshold, expected share answered rightly). The lowest threshold at which the answered rows keep the
    promised agreement and the wrong answers stay few enough that `rows` validation rows can confirm it."""
    if cross_fit is None:
        return 0.0, None
    sure, right = cross_fit
    order = np.argsort(-sure, kind="stable")
    sure, right = sure[order], right[order]
    answered = np.arange(1, len(sure) + 1)
    wrong = np.cumsum(~right)
    allowed = wrong_share_that_passes(rows, policy.margin, policy.confidence)
    good = (1 - wrong / answered >= policy.answer_agreement) & (wrong / len(sure) <= allowed)
    ends = np.append(sure[1:] < sure[:-1], True)  # a threshold cannot part rows that are equally sure
    places = np.flatnonzero(good & ends)
    if not len(places):
        return 1.01, 0.0
    last = int(places[-1])
    return float(sure[last]), float((answered[last] - wrong[last]) / len(sure))


def wrong_share_that_passes(rows: int, margin: float, confidence: float, power: float = 0.9) -> float:
    """The true share of wrong answers with which `rows` rows confirm `margin` in `power` of all cases."""
    from scipy.stats import binom

    most = -1
    while most < rows and 1 - agreement_low(most + 1, rows, confidence) <= margin:
        most += 1
    if most < 0:
        return 0.0
    grid = np.linspace(0, margin, 501)
    passing = binom.cdf(most, rows, grid) >= power
    return float(grid[passing][-1])


def agreement_low(wrong: int, rows: int, confidence: float) -> float:
    """One-sided lower bound of the share of rows that agree (Clopper and Pearson 1934, exact binomial)."""
    from scipy.stats import beta

    return 0.0 if wrong >= rows else float(beta.ppf(1 - confidence, rows - wrong, wrong + 1))


# --- the blend ---------------------------------------------------------------------------------------


class _Blended(msgspec.Struct, frozen=True):
    """What a client got for one row: from the candidate, or after it abstained from the incumbent."""

    answered: bool
    right: bool
    latency_ms: float
    cost_usd: float | None
    input_tokens: int | None


def _blend(
    rows: Sequence[Row], answers: Sequence[Answered], teacher: dict[str, Exchange | None], threshold: float
) -> list[_Blended]:
    return [
        _one(row, answer, teacher[row.exchange_id], threshold) for row, answer in zip(rows, answers, strict=True)
    ]


def _one(row: Row, answer: Answered, teacher: Exchange | None, threshold: float) -> _Blended:
    if answer.text is not None and (answer.sure is None or answer.sure >= threshold):
        right = answer.text.strip() == row.output.strip()
        return _Blended(True, right, answer.latency_ms, answer.cost_usd, len(row.text) // 4)
    after = (teacher.latency_ms or 0.0) if teacher else 0.0
    whole = teacher.cost_usd if teacher else None
    cost = None if whole is None else whole + (answer.cost_usd or 0.0)
    return _Blended(False, True, answer.latency_ms + after, cost, teacher.input_tokens if teacher else None)


def _score(
    finetune: FineTune, rows: Sequence[Row], blend: Sequence[_Blended], threshold: float, expected: float | None,
    confidence: float,
) -> Score:  # fmt: skip
    answered = [one for one in blend if one.answered]
    wrong = sum(not one.right for one in blend)
    costs = [one.cost_usd for one in blend if one.cost_usd is not None]
    tokens = [one.input_tokens for one in blend if one.input_tokens is not None]
    p50, p95 = percentiles([one.latency_ms for one in blend])
    return Score(
        candidate=describe(finetune),
        finetune=finetune.id,
        upstream=finetune.upstream or "",
        model=finetune.model or "",
        rows=len(rows),
        agreement=1 - wrong / len(rows),
        agreement_low=agreement_low(wrong, len(rows), confidence),
        answered=len(answered) / len(rows),
        agreement_answered=sum(one.right for one in answered) / len(answered) if answered else None,
        min_confidence=threshold,
        cost_per_1k_usd=1000 * float(np.mean(costs)) if len(costs) == len(blend) else None,
        p50_ms=p50,
        p95_ms=p95,
        input_tokens=float(np.mean(tokens)) if tokens else None,
        expected=expected,
    )


def describe(finetune: FineTune) -> str:
    """A candidate in a few words: its trainer and the values of its options."""
    return " ".join([finetune.trainer, *(str(value) for value in finetune.options.values())])


# --- asking --------------------------------------------------------------------------------------------


def asker(
    config: Config, prices: PriceBook, models: Path, key_of: Callable[[str], str]
) -> Callable[[FineTune], Ask]:
    """How a candidate is asked a row: in this process, or over the network with the stripped messages."""
    loaded: dict[str, Ask] = {}

    def ask_of(finetune: FineTune) -> Ask:
        if finetune.id not in loaded:
            embedded = finetune.upstream == LOCAL
            loaded[finetune.id] = (
                _ask_embedded(EmbeddedModel.load(models, finetune.model or ""))
                if embedded
                else _ask_remote(config, prices, finetune, key_of(finetune.upstream or ""))
            )
        return loaded[finetune.id]

    return ask_of


def _ask_embedded(model: EmbeddedModel) -> Ask:
    def ask(row: Row) -> Answered:
        started = time.perf_counter()
        text, sure = model.answer(row.text)
        return Answered(text=text, sure=sure, latency_ms=(time.perf_counter() - started) * 1000, cost_usd=0.0)

    return ask


def _ask_remote(config: Config, prices: PriceBook, finetune: FineTune, key: str) -> Ask:
    import openai

    upstream = finetune.upstream or ""
    client = openai.OpenAI(base_url=config.providers[upstream].base_url, api_key=key or "none", max_retries=3)

    def ask(row: Row) -> Answered:
        started = time.perf_counter()
        try:
            made = client.chat.completions.create(model=finetune.model or "", messages=row.messages)  # type: ignore[arg-type]
        except openai.OpenAIError:  # no answer: the fallback would have been asked
            return Answered(text=None, sure=None, latency_ms=(time.perf_counter() - started) * 1000, cost_usd=0.0)
        usage = Usage(
            input=made.usage.prompt_tokens if made.usage else None,
            output=made.usage.completion_tokens if made.usage else None,
        )
        return Answered(
            text=made.choices[0].message.content,
            sure=None,
            latency_ms=(time.perf_counter() - started) * 1000,
            cost_usd=prices.cost(upstream, finetune.model, usage),
        )

    return ask
