"""What learns. One file per kind; the file's name is the `kind:` in the config.

Each file holds its `Options` (what a candidate of the sweep may set), its class and
`build(settings) -> Trainer`. A newcomer adds a trainer in one file and edits no other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune
from gateway.errors import ConfigError

Save = Callable[[FineTune], None]


class TrainerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every trainer is built from.

    `upstream` names the provider whose API trains and then serves (empty for embedded trainers);
    `base_url` and `api_key` are that provider's. `models` is the folder for trained model files.
    """

    models: Path
    upstream: str = ""
    base_url: str = ""
    api_key: str = ""
    options: dict[str, Any] = {}
    poll_seconds: float = 10.0


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
        is raised for those.
        """
        ...


def kinds() -> list[str]:
    """The trainers that exist: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


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
