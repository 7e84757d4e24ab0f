"""Candidates beside the incumbent on the held-out rows: quality with its interval, cost, latency.

The incumbent's answers are the yardstick, so quality is called agreement: a share of requests, against what
the prompted model answered; accuracy is what people's corrections and approvals say, where there are any. The
threshold under which a candidate abstains comes from the training rows alone (cross-fitted), so the validation
rows judge it unseen; where a model elsewhere says how sure it is, they choose it, and pay for that (`thresholds`).
The first candidate is then confirmed once on rows that are newer than all others.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from gateway import embeddings
from gateway.config import Config, TaskPolicy
from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.route import LOCAL
from gateway.errors import DatasetError, TaskError
from gateway.pipeline import itself, judge, thresholds
from gateway.pipeline.asking import Answered, Ask
from gateway.pipeline.bounds import LEAST, CrossFit, choose_threshold
from gateway.pipeline.quality import Likeness, has_calls, same_answer
from gateway.pipeline.report import write_report
from gateway.pipeline.scores import JudgeBill, Measure, Report, Score, load_report
from gateway.pipeline.scoring import Contender, Line, Terms, beaten, describe, incumbent, scored, with_quality
from gateway.pipeline.scrub import scrub
from gateway.pipeline.trial import Trial, read_trial
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import SUPPORT_FLOOR

__all__ = ["Report", "Score", "describe", "evaluate", "load_report"]

log = logging.getLogger(__name__)

AskModel = Callable[[str, str], Ask]
"""How a provider's model is asked, by both names."""


class _Seat(msgspec.Struct, frozen=True):
    """A contender, how it is asked, and the rows that it is asked."""

    who: Contender
    ask: Callable[[], Ask]
    trial: Trial
    whole: bool = False


def evaluate(
    store: SqliteStore, config: Config, dataset: Dataset, finetunes: Sequence[FineTune], models: Path,
    asks: Callable[[FineTune], Ask], others: AskModel | None = None, *, relayed: bool = False,
) -> Report:  # fmt: skip
    """Ask every trained candidate the validation rows, note the report in the store and write its page.

    With `others`, baselines and the judge that the policy names are asked, too: requests that cost money.
    `relayed`: all are asked through a running relay, and the report says so.

    Raises:
        DatasetError: there are no validation rows.
    """
    trained = [f for f in finetunes if f.state is FineTuneState.SUCCEEDED]
    failed = {f.id: f.error or f.state.value for f in finetunes if f.state is not FineTuneState.SUCCEEDED}
    trial, later = _trials(store, dataset)
    policy = config.policy(dataset.task)
    seats = [_seat(finetune, asks, trial) for finetune in trained]
    answered = _asked(seats, failed)
    terms = _terms(config, policy, dataset, trial)
    terms = msgspec.structs.replace(terms, relayed=relayed, likeness=_likeness(policy, terms.kind, failed))
    terms, answered = _selective(answered, {f.id: _cross_fit(models, f) for f in trained}, policy, terms)
    others = others if answered else None  # with nobody to compare them with, they would cost money for nothing
    baselines = _lines(_asked(_baselines(config, policy, trained, trial, others), failed), terms)
    lines = _ranked(answered, terms)
    again = _lines(_asked(_again(config, policy, dataset, trial, others, lines, terms), failed), terms)
    if again:
        terms = msgspec.structs.replace(terms, again=_again_values(again[0], trial))
        lines = _ranked(answered, terms)
    lines = beaten(lines, terms.confidence)
    best, bill = lines[:1], None
    confirmation = _confirmed([seat for seat, _ in answered], best, later, terms, failed)
    if best and terms.measure == "judge" and others is not None:
        best[0], bill = _judged(policy, others, best[0], trial, terms)
        if confirmation is not None:
            confirmation, _ = _judged(policy, others, confirmation, later, terms)
    report = _report(store, dataset, trial, terms, [line.score for line in [*best, *lines[1:]]], failed)
    report = msgspec.structs.replace(
        report, baselines=[line.score for line in [*again, *baselines]], judge=bill, twice=terms.twice,
        confirmation=confirmation.score if confirmation else None,
    )  # fmt: skip
    store.put("evaluations", {
        "id": report.id, "task": report.task, "dataset": report.dataset,
        "report": msgspec.to_builtins(report), "created_at": time.time(),
    })  # fmt: skip
    write_report(dataset, report, policy, trial, best[0] if best else None)
    return report


def _trials(store: SqliteStore, dataset: Dataset) -> tuple[Trial, Trial]:
    """The rows to choose by, and the newer ones to confirm by."""
    validation = dataset.part("validation")
    if not validation and not any(row.split == "validation" for row in dataset.calls):
        raise DatasetError(f"dataset {dataset.id} has no validation rows; send more traffic through the gateway")
    beyond = [row for row in dataset.beyond if row.split != "confirmation"]
    newer = [row for row in dataset.beyond if row.split == "confirmation"]
    trial = read_trial(store, dataset, validation, beyond)
    return trial, read_trial(store, dataset, dataset.part("confirmation"), newer)


def _report(
    store: SqliteStore, dataset: Dataset, trial: Trial, terms: Terms, scores: list[Score], failed: dict[str, str]
) -> Report:
    teacher = dataset.card["teacher"]
    return Report(
        id=f"eval-{dataset.id}-{int(time.time() * 1000)}",
        task=dataset.task,
        dataset=dataset.id,
        template=dataset.template,
        confidence=terms.confidence,
        incumbent=incumbent(teacher["target"], trial),
        candidates=scores,
        failed=failed,
        provider=teacher["provider"],
        model=teacher["model"],
        kind=terms.kind,
        measure=terms.measure,
        confirmed_before=len(store.rows("evaluations", "dataset = ?", [dataset.id])),
        requests_per_day=trial.requests_per_day,
    )


def measure_of(policy: TaskPolicy, kind: str, again: int) -> Measure:
    """By what the gate judges, where the policy leaves it open: labels and JSON by the same answer, since a
    program reads them; prose by the judge if there is one, else by its likeness beside the incumbent's with
    itself if it is asked `again` some rows, else by the same answer, which prose hardly ever is."""
    if policy.measure != "auto":
        return policy.measure
    if kind != "generation":
        return "exact"
    return "judge" if policy.judge else "similarity" if again else "exact"


def _order(score: Score) -> tuple[float, float, str]:
    """Best first, by what training promised where it did, so that the validation rows judge one choice; of equals
    the cheaper one."""
    likeness = score.metrics["chrf"].value if "chrf" in score.metrics else score.agreement
    measured = likeness if score.quality is None else score.quality
    if score.min_confidence > 0:  # what it hands over is right, and not by its merit
        measured = score.answered * (score.agreement_answered or 0.0)
    cost = math.inf if score.cost_per_1k_usd is None else score.cost_per_1k_usd
    return (-(measured if score.expected is None else score.expected), cost, score.candidate)


# --- who is asked ----------------------------------------------------------------------------------------


def _seat(finetune: FineTune, asks: Callable[[FineTune], Ask], trial: Trial) -> _Seat:
    """A candidate, asked all rows; from when on it may answer shows later."""
    who = Contender(
        name=describe(finetune), upstream=finetune.upstream or "", model=finetune.model or "", finetune=finetune.id
    )
    return _Seat(who, lambda: asks(finetune), trial)


def _terms(config: Config, policy: TaskPolicy, dataset: Dataset, trial: Trial) -> Terms:
    """What all are scored by, if there is one candidate."""
    kind = dataset.card.get("kind", "classification")
    again = itself.rows_to_ask(policy, config, trial, dataset.card["teacher"]["target"])
    return Terms(
        kind=kind, measure=measure_of(policy, kind, again), confidence=policy.confidence,
        hosting=_hosting(config, dataset, trial), twice=itself.asked_twice(dataset.card, kind),
    )  # fmt: skip


def _selective(
    answered: Sequence[tuple[_Seat, list[Answered]]], fits: Mapping[str, CrossFit | None], policy: TaskPolicy,
    terms: Terms,
) -> tuple[Terms, list[tuple[_Seat, list[Answered]]]]:  # fmt: skip
    """Each candidate above its threshold, and the confidence of all bounds: one that has no promise of its own is
    chosen by the rows that judge it, so that each look of them at one counts."""
    chosen_here = {
        seat.who.finetune for seat, answers in answered
        if seat.who.upstream != LOCAL and terms.measure == "exact" and thresholds.tells(answers)
    }  # fmt: skip
    looks = [thresholds.LOOKS if name in chosen_here else 1 for name, fit in fits.items() if fit is None]
    looks += [1] if any(fit is not None for fit in fits.values()) else []
    confidence = 1 - (1 - policy.confidence) / max(1, sum(looks))
    found = []
    for seat, answers in answered:
        fit = fits[seat.who.finetune or ""]
        threshold, expected = choose_threshold(fit, policy, len(seat.trial.rows), confidence)
        if seat.who.upstream == LOCAL:
            threshold = max(threshold, LEAST)
        elif seat.who.finetune in chosen_here:
            threshold = thresholds.threshold_of(seat.trial, answers, policy, confidence)
        who = msgspec.structs.replace(seat.who, threshold=threshold, expected=expected)
        found.append((msgspec.structs.replace(seat, who=who), answers))
    return msgspec.structs.replace(terms, confidence=confidence), found


def _likeness(policy: TaskPolicy, kind: str, failed: dict[str, str]) -> Likeness | None:
    """By which answers in prose are compared beside chrF; one that is not here is noted in `failed`."""
    if kind != "generation" or policy.embedding is None:
        return None
    encoder = embeddings.find(policy.embedding)
    if encoder is None:
        here = ", ".join(embeddings.installed()) or "none"
        failed[f"embedding {policy.embedding}"] = f"it is not installed, and no folder of one; installed: {here}"
        return None
    return Likeness(encoder)


def _hosting(config: Config, dataset: Dataset, trial: Trial) -> dict[str, float]:
    """USD a request for each provider that is paid by the hour; the incumbent's own is paid already."""
    paid = dataset.card["teacher"]["target"].partition("/")[0]
    per_day = {name: 24 * provider.hosting_usd_per_hour for name, provider in config.providers.items()}
    rate = trial.requests_per_day
    return {name: usd / rate for name, usd in per_day.items() if usd and rate and name != paid}


def _again(
    config: Config, policy: TaskPolicy, dataset: Dataset, trial: Trial, others: AskModel | None,
    lines: Sequence[Line], terms: Terms,
) -> Iterator[_Seat]:  # fmt: skip
    """The incumbent with its whole prompt once more, where the policy says so or the decision needs it: how far it
    agrees with itself."""
    target = dataset.card["teacher"]["target"]
    rows = itself.rows_to_ask(policy, config, trial, target)
    is_needed = terms.measure == "similarity" or any(itself.is_in_doubt(one.score, policy) for one in lines[:1])
    if others is not None and rows and (policy.ask_again or (is_needed and terms.measure != "judge")):
        yield _whole("incumbent again", "incumbent asked again", target, trial, rows, others)


def _baselines(
    config: Config, policy: TaskPolicy, trained: Sequence[FineTune], trial: Trial, others: AskModel | None
) -> Iterator[_Seat]:
    """The untuned base models of the candidates, stripped and with the whole prompt, and the cheaper sibling."""
    if others is None or not policy.baseline_rows:
        return
    bases = {(f.upstream or "", f.options.get("base_model")) for f in trained if f.upstream != LOCAL}
    for upstream, model in sorted((u, str(m)) for u, m in bases if m and u in config.providers):
        who = Contender(name=f"{model} untuned, stripped", upstream=upstream, model=model, role="base stripped")
        rows = trial.readable().sample(policy.baseline_rows)
        yield _Seat(who, lambda u=upstream, m=model: others(u, m), rows)  # type: ignore[misc]
        name = f"{model} untuned, whole prompt"
        yield _whole("base whole", name, f"{upstream}/{model}", trial, policy.baseline_rows, others)
    if policy.sibling:
        yield _whole("sibling", policy.sibling, policy.sibling, trial, policy.baseline_rows, others)


def _whole(role: str, name: str, target: str, trial: Trial, most: int, others: AskModel) -> _Seat:
    upstream, _, model = target.partition("/")
    who = msgspec.convert({"name": name, "upstream": upstream, "model": model, "role": role}, Contender)
    return _Seat(who, lambda: others(upstream, model), trial.readable().sample(most), whole=True)


def _again_values(again: Line, trial: Trial) -> dict[str, float]:
    """The incumbent's likeness to itself by row, where it was asked again. If it was asked all that can be asked,
    the others (refusals) count as said again: that is the more that is asked of a candidate."""
    rows = trial.readable()
    asked = rows.sample(again.score.rows).rows
    others = {row.exchange_id: 1.0 for row in trial.rows} if len(asked) == len(rows.rows) else {}
    return others | {row.exchange_id: value for row, value in zip(asked, again.values, strict=True)}


# --- asking them -----------------------------------------------------------------------------------------


def _asked(seats: Iterable[_Seat], failed: dict[str, str]) -> list[tuple[_Seat, list[Answered]]]:
    """Each that answers, with its answers; the others are noted in `failed` with their reason."""
    found = []
    for seat in seats:
        try:
            found.append((seat, _answers(seat)))
        except TaskError as error:
            failed[seat.who.finetune or seat.who.name] = str(error)
    return found


def _ranked(answered: Sequence[tuple[_Seat, list[Answered]]], terms: Terms) -> list[Line]:
    return sorted(_lines(answered, terms), key=lambda line: _order(line.score))


def _lines(answered: Sequence[tuple[_Seat, list[Answered]]], terms: Terms) -> list[Line]:
    return [scored(seat.who, seat.trial, answers, terms) for seat, answers in answered]


def _answers(seat: _Seat) -> list[Answered]:
    if not seat.trial.rows:
        raise TaskError("there is no row that it can be asked")
    rows = zip(seat.trial.rows, seat.trial.whole, strict=True)
    asked = [_with_prompt(row, whole) if seat.whole else row for row, whole in rows]
    answers = seat.ask()(zip(asked, seat.trial.envelopes, strict=True))
    if all(answer.text is None for answer in answers):
        raise TaskError(f"it gave no answer to any of {len(answers)} rows; the last: {answers[-1].error}")
    return [_masked(answer) for answer in answers] if seat.whole and seat.trial.masked else answers


def _masked(answer: Answered) -> Answered:
    """As the rows' answers are: who was asked the recorded request says what was replaced in the row."""
    text = None if answer.text is None else scrub(answer.text, Counter())
    return msgspec.structs.replace(answer, text=text)


def _with_prompt(row: Row, whole: object) -> Row:
    return msgspec.structs.replace(row, messages=whole or row.messages)


def _confirmed(
    seats: Sequence[_Seat], best: Sequence[Line], later: Trial, terms: Terms, failed: dict[str, str]
) -> Line | None:
    """The chosen candidate once more, on the confirmation rows."""
    if not best or not later.rows:
        return None
    chosen = next(seat for seat in seats if seat.who.finetune == best[0].score.finetune)
    alone = msgspec.structs.replace(terms, again={}, twice=None)
    lines = _lines(_asked([msgspec.structs.replace(chosen, trial=later)], failed), alone)
    return next(iter(lines), None)


def _judged(policy: TaskPolicy, others: AskModel, line: Line, trial: Trial, terms: Terms) -> tuple[Line, JudgeBill]:
    """The line with the judge's preference as its quality. What says the same is a tie, and not asked; nor are
    calls of tools."""
    places = [number * len(trial.rows) // policy.judge_rows for number in range(policy.judge_rows)]
    chosen = places if len(trial.rows) > policy.judge_rows else list(range(len(trial.rows)))
    values = dict.fromkeys(chosen, 0.5)
    asked: list[int] = []
    for at in chosen:
        text, row = line.given[at], trial.rows[at]
        if text is None or row.exchange_id in trial.beyond:
            values[at] = 0.5 if text is not None else 0.0  # left to the incumbent, or wrong as such
        elif has_calls(row.output) or has_calls(text):
            values[at] = 0.5 if same_answer(row.output, text) else 0.0  # there is nothing to prefer
        elif not same_answer(row.output, text):
            asked.append(at)
    pairs = [
        judge.Comparison(judge.request_text(trial.whole[at] or trial.rows[at].messages), line.given[at] or "",
                         trial.rows[at].output)
        for at in asked
    ]  # fmt: skip
    upstream, _, model = (policy.judge or "").partition("/")
    preferred, bill = judge.compare(others(upstream, model), policy.judge or "", pairs)
    values |= dict(zip(asked, preferred, strict=True))
    rows = [trial.rows[at] for at in chosen]
    score = with_quality(line.score, rows, list(values.values()), terms)
    return msgspec.structs.replace(line, score=score), bill


def _cross_fit(models: Path, finetune: FineTune) -> CrossFit | None:
    """Confidences and rightness of the cross-fitted answers that the trainer left beside its model."""
    file = models / (finetune.model or "") / "crossfit.json"
    if finetune.upstream != LOCAL:
        return None
    try:
        kept: Mapping[str, list[float]] = json.loads(file.read_bytes())
        sure, right = np.array(kept["confidence"], dtype=float), np.array(kept["right"], dtype=bool)
        if "support" in kept:  # as it is when it serves: what is unlike all it has seen is not answered
            sure = np.where(np.array(kept["support"], dtype=float) < SUPPORT_FLOOR, 0.0, sure)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (sure, right) if sure.shape == right.shape and sure.ndim == 1 else None
