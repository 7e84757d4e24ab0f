"""Pairs of answers to one input, of which a person prefers one: what preference training learns from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.domain.dataset import Dataset, Row
from gateway.domain.feedback import correction
from gateway.pipeline.review import answer_of, inputs_of
from gateway.stores.remarks import said
from gateway.stores.sqlite import SqliteStore


class Judged(msgspec.Struct, frozen=True):
    """A recorded answer of which a person has said something."""

    exchange_id: str
    text: str
    answer: str
    said: Mapping[str, Any]

    @property
    def is_good(self) -> bool:
        """Whether the answer was approved as it is."""
        return correction(self.said) in (None, self.answer) and self.said.get("score", 0) > 0

    @property
    def is_bad(self) -> bool:
        """Whether something else should have been answered."""
        better = correction(self.said)
        return better != self.answer if better is not None else self.said.get("score", 0) < 0


def judged_answers(store: SqliteStore, task: str) -> list[Judged]:
    """The task's recorded answers of which a person has said something, oldest first."""
    remarks = said(store)
    templates = sorted(store.templates(task), key=lambda template: -template.version)
    of_task = "task = ? AND id IN (SELECT value FROM json_each(?))"
    found = []
    for exchange in store.each_exchange(of_task, [task, json.dumps(sorted(remarks))]):
        inputs, answer = inputs_of(exchange, templates), answer_of(exchange)
        if inputs is not None and answer is not None:
            found.append(Judged(exchange.id, inputs.text, answer, remarks[exchange.id]))
    return found


def pairs(rows: Iterable[Row], judged: Iterable[Judged]) -> list[tuple[Row, str]]:
    """Rows whose output a person wrote or approved, each with an answer to the same input that was found wrong;
    one for each such answer."""
    judged = list(judged)
    input_of = {one.exchange_id: one.text for one in judged if one.is_good or correction(one.said) is not None}
    worse: dict[str, dict[str, None]] = defaultdict(dict)
    for one in judged:
        if one.is_bad:
            worse[one.text][one.answer] = None
    return [
        (row, answer)
        for row in rows
        if (text := input_of.get(row.exchange_id)) is not None
        for answer in worse[text]
        if answer != row.output
    ]


def preferences(store: SqliteStore, data: Dataset) -> list[tuple[Row, str]]:
    """The pairs of a dataset: its row, and the answer that is worse than the row's."""
    return pairs(data.rows, judged_answers(store, data.task))
