"""A trained candidate for the shop's mail, and candidates that answer what they are told to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stories import config_in

from gateway.config import Config
from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.pipeline import evaluate
from gateway.pipeline.asking import Answered, Ask
from gateway.pipeline.evaluate import Report, Score
from gateway.stores.sqlite import SqliteStore

REMOTE = FineTune(id="ft-r", task="mail", dataset="d", trainer="openai", options={"base_model": "small"},
                  state=FineTuneState.SUCCEEDED, upstream="openai", model="small-1")  # fmt: skip


def says(reply: Any, *, sure: float | None = None, cost: float | None = 0.0, ms: float = 10.0) -> Ask:
    """A candidate that answers each text by this function."""

    def ask(rows: Iterable[tuple[Row, dict[str, Any]]]) -> list[Answered]:
        return [Answered(text=reply(row.text), sure=sure, latency_ms=ms, cost_usd=cost) for row, _ in rows]

    return ask


def evaluated(
    store: SqliteStore, folder: Path, data: Dataset, ask: Ask, *finetunes: FineTune, config: Config | None = None
) -> Report:
    found = config or config_in(folder)
    models = folder / "data" / "models"
    return evaluate.evaluate(store, found, data, finetunes or [REMOTE], models, lambda finetune: ask)


def only(report: Report) -> Score:
    (score,) = report.candidates
    return score
