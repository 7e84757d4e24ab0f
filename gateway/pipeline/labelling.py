"""Labels: the review queue of a task, what a person says of it, and files of labels."""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.domain.feedback import Feedback
from gateway.domain.finetune import FineTune
from gateway.domain.route import LOCAL
from gateway.errors import DatasetError, TaskError
from gateway.pipeline import dataset
from gateway.pipeline.card import kind_of
from gateway.pipeline.review import LEAST_WORTH, NEWEST, Doubt, Opinion, Reviewable, queue, reviewable
from gateway.stores.remarks import said
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import EmbeddedModel

_RECENT = 1000

Ask = Callable[[Reviewable], Opinion | None]


def recorded_answers(store: SqliteStore, task: str, newest: int = NEWEST) -> list[Reviewable]:
    """The task's newest exchanges that a person may judge, oldest first.

    Raises:
        TaskError: there is no such task.
    """
    templates = sorted(store.templates(task), key=lambda template: -template.version)
    if not templates:
        known = ", ".join(row["name"] for row in store.tasks()) or "none yet"
        raise TaskError(f"no task {task!r}; known tasks: {known}")
    judged, teacher = said(store), teacher_of(store, task)
    of_task = "rowid IN (SELECT rowid FROM exchanges WHERE task = ? AND complete = 1 ORDER BY rowid DESC LIMIT ?)"
    found = (
        reviewable(exchange, templates, judged.get(exchange.id, {}), teacher)
        for exchange in store.each_exchange(of_task, [task, newest])
    )
    return [one for one in found if one is not None]


def teacher_of(store: SqliteStore, task: str) -> str | None:
    """The `upstream/model` that answers the task's requests, our own candidates apart; None where nobody does."""
    students = {
        f"{one.upstream}/{one.model}" for one in store.finetunes("task = ? AND state = 'succeeded'", [task])
    }
    rows = store.answered(task, _RECENT)
    counts = Counter(row["target"] or f"{row['provider']}/{row['model_requested']}" for row in rows)
    return next((target for target, _ in counts.most_common() if target not in students), None)


def review(store: SqliteStore, task: str, models: Path, *, everything: bool = False) -> list[Doubt]:
    """The task's review queue: see `gateway.pipeline.review`. `everything`: also what is in no doubt, last.

    Raises:
        TaskError: there is no such task.
    """
    asked = opinions(store, task, models)
    return queue(recorded_answers(store, task), asked, least=0.0 if everything else LEAST_WORTH)


class Recorded:
    """A task's exchanges as a file of labels names them: by id, or by the newest with an input. Inputs are read
    when one is asked for first: there may be a million."""

    def __init__(self, store: SqliteStore, task: str) -> None:
        self._store, self._task = store, task
        self.ids = {name for (name,) in store.run("SELECT id FROM exchanges WHERE task = ?", [task])}

    @functools.cached_property
    def _by_input(self) -> dict[str, str]:
        return {one.text: one.id for one in recorded_answers(self._store, self._task, -1)}

    def find(self, text: str) -> str | None:
        """The newest exchange with this input; None where there is none."""
        return self._by_input.get(text)


def kind(store: SqliteStore, task: str) -> str:
    """The task's kind, as a dataset or its newest answers show it: `classification`, `extraction`, `generation`."""
    known = next((row["kind"] for row in store.tasks() if row["name"] == task), None)
    return known or kind_of([one.answer for one in recorded_answers(store, task, _RECENT)])


# --- what a candidate thinks -----------------------------------------------------------------------------


def opinions(store: SqliteStore, task: str, models: Path) -> Ask:
    """What the task's best embedded candidate would answer. Of its own training rows, what it said before it had
    seen them (cross-fitting); without a candidate, nothing."""
    succeeded = store.finetunes("task = ? AND state = 'succeeded' AND upstream = ?", [task, LOCAL])
    newest = [one for one in succeeded if one.dataset == succeeded[-1].dataset]
    for one in sorted(newest, key=lambda one: (-one.metrics.get("cv_accuracy", 0.0), one.id)):
        with contextlib.suppress(TaskError):
            model = EmbeddedModel.load(models, one.model or "")
            return _asking(model, dict(_cross_fitted(store, one, models)))
    return lambda seen: None


def _asking(model: EmbeddedModel, known: dict[str, Opinion]) -> Ask:
    def ask(seen: Reviewable) -> Opinion | None:
        return known.get(seen.text) or Opinion(*model.answer(seen.text))

    return ask


def _cross_fitted(store: SqliteStore, finetune: FineTune, models: Path) -> Iterator[tuple[str, Opinion]]:
    """The candidate's opinions of its training rows. Which other answer it would have given is not kept: ""."""
    with contextlib.suppress(DatasetError, OSError, ValueError, KeyError):
        rows = dataset.load(store, finetune.dataset).part("train")
        found = json.loads((models / (finetune.model or "") / "crossfit.json").read_bytes())
        if len(rows) == len(found["confidence"]) == len(found["right"]):
            for row, sure, right in zip(rows, found["confidence"], found["right"], strict=True):
                yield row.text, Opinion(row.output if right else "", sure)


# --- what a person says ----------------------------------------------------------------------------------


def approval(doubt: Doubt) -> Feedback:
    """The answer is right. One that rows are not made of (a candidate's, or rejected before) is said again, so that
    it is learnt."""
    if doubt.learnt and "rejected" not in doubt.why:
        return Feedback(exchange_id=doubt.exchange_id, score=1.0)
    return Feedback(exchange_id=doubt.exchange_id, score=1.0, corrected_output=doubt.answer)


def corrected(doubt: Doubt, output: str, *, is_label: bool) -> Feedback:
    """What the answer should have been."""
    if is_label:
        return Feedback(exchange_id=doubt.exchange_id, label=output)
    return Feedback(exchange_id=doubt.exchange_id, corrected_output=output)
