"""What learns. One file per kind; the file's name is the `kind:` in the config.

Each file holds its `Options` (what a candidate of the sweep may set), its class and
`build(settings) -> Trainer`. A newcomer adds a trainer in one file and edits no other.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Estimate
from gateway.errors import ConfigError, DatasetError, UnpromptError

Save = Callable[[FineTune], None]

_NO_TRAINERS = frozenset({"elsewhere"})
"""Modules here that several trainers share."""


class TrainerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every trainer is built from.

    `upstream` names the provider whose API trains and then serves (empty for embedded trainers);
    `base_url` and `api_key` are that provider's. `models` is the folder for trained model files. `prices` are USD
    per 1M training tokens by base model, `*` for all others. Whoever waits for something that trains elsewhere,
    or for a long time, calls `wait` (seconds), which raises `Stopped` when it is to be cancelled.
    """

    models: Path
    upstream: str = ""
    base_url: str = ""
    api_key: str = ""
    options: dict[str, Any] = {}
    poll_seconds: float = 10.0
    prices: dict[str, float] = {}
    wait: Callable[[float], None] = time.sleep

    def usd(self, base_model: str, tokens: int | None) -> float | None:
        """What so many training tokens cost; None where it is not known."""
        price = self.prices.get(base_model, self.prices.get("*"))
        return None if price is None or tokens is None else price * tokens / 1e6


class Stopped(UnpromptError):
    """Raised by `TrainerSettings.wait`: the candidate is to be cancelled. The text is the reason. A trainer lets
    it pass; whoever called it cancels."""


def train_here(
    finetune: FineTune, save: Save, kind: str, work: Callable[[], tuple[str, dict[str, float]]]
) -> FineTune:
    """A candidate of trainer `kind` trained in this process. `work` trains, writes the model and gives its name and
    metrics; a crash half-way means no more than starting again."""
    if finetune.state.final:
        return finetune
    finetune = finetune.but(state=FineTuneState.RUNNING, stage="training")
    save(finetune)
    try:
        model, metrics = work()
    except msgspec.ValidationError as error:
        finetune = _failed(finetune, f"the options of trainer '{kind}' are wrong: {error}")
    except DatasetError as error:
        finetune = _failed(finetune, str(error))
    except OSError as error:
        finetune = _failed(finetune, f"the model could not be written: {error}")
    else:
        finetune = finetune.but(
            state=FineTuneState.SUCCEEDED, stage="", upstream="local", model=model, metrics=metrics
        )
    save(finetune)
    return finetune


def _failed(finetune: FineTune, sentence: str) -> FineTune:
    return finetune.but(state=FineTuneState.FAILED, error=sentence)


class Trainer(Protocol):
    """Turns a dataset into something that can be routed to."""

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """The default sweep for this dataset: the options of each candidate."""
        ...

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Bring `finetune` from whatever stage it is in to a final state.

        Calls `save` before and after each step that has an effect outside this process, so that a
        second `run` after a crash goes on where the first one was. A refusal, a bad dataset or an
        outage that outlasts the retries ends in state `failed` with a sentence in `error`; nothing
        is raised for those. State `waiting` is for a trainer that a person has to go on for.
        """
        ...


@runtime_checkable
class Estimating(Protocol):
    """A trainer that can say beforehand what a candidate will take."""

    def estimate(self, options: dict[str, Any], dataset: Dataset) -> Estimate:
        """What training with these options will take; wrong options have no estimate, and raise nothing."""
        ...


@runtime_checkable
class Cancelling(Protocol):
    """A trainer whose candidates can be cancelled."""

    def cancel(self, finetune: FineTune) -> FineTune:
        """Cancel what is under way; one that has ended is given as it ended.

        Raises:
            UpstreamError: no usable answer; it may still be training.
        """
        ...


def training_tokens(dataset: Dataset, epochs: int) -> int:
    """The tokens of the training rows, times the epochs, at 4 characters each and the 3 that a message takes; each
    row declares its tools."""
    rows = [*dataset.part("train"), *(row for row in dataset.calls if row.split == "train")]
    tools = int(dataset.card.get("tools_characters", 0)) // 4
    return epochs * sum(
        (len(_answer(row)) + sum(len(_text(message)) for message in row.messages)) // 4
        + 3 * len(row.messages) + 6 + tools
        for row in rows
    )  # fmt: skip


def check_texts(dataset: Dataset, rows: Sequence[Row]) -> None:
    """For trainers that learn texts alone: refuse training `rows` of which none is left beside calls of tools.

    Raises:
        DatasetError: no row has a text to learn; says which trainers learn calls.
    """
    if dataset.calls and not rows:
        raise DatasetError(
            "all answers are calls of tools, which this trainer does not learn; one of kind trl, openai, together, "
            "fireworks or export does: add it to 'trainers' in the config"
        )


def _answer(row: Row) -> str:
    return str(row.tool_calls) if row.tool_calls else row.output


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else str(content or "")


def kinds() -> list[str]:
    """The trainers that exist: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_TRAINERS)


def build(kind: str, settings: TrainerSettings) -> Trainer:
    """The trainer of this kind.

    Raises:
        ConfigError: no file of this package has that name.
    """
    if kind not in kinds():
        raise ConfigError(f"trainer kind {kind!r} is not known; known kinds: {', '.join(kinds())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    trainer: Trainer = module.build(settings)
    return trainer
