"""Files out, a model's name in: for a service that has no trainer here, or for training by hand.

The candidate waits until a person has trained on the files and says what came of it, with
`unprompt finetune TASK --model CANDIDATE=MODEL`. Nothing else waits for it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Estimate
from gateway.errors import ConfigError
from gateway.trainers import Save, TrainerSettings

FILES = ("train.jsonl", "validation.jsonl", "card.md")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer's `options`: the folder below which each candidate has one of its own; default `exports` beside
    the models."""

    directory: str = ""


class ExportTrainer:
    """A `Trainer` that trains nothing: `settings.upstream` is where the model will be served."""

    def __init__(self, settings: TrainerSettings, options: Options) -> None:
        self._upstream = settings.upstream
        self._folder = Path(options.directory) if options.directory else settings.models.parent / "exports"

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """One: the options of a sweep are notes for whoever trains."""
        return [{}]

    def estimate(self, options: dict[str, Any], dataset: Dataset) -> Estimate:
        """Writing files costs nothing; what training costs elsewhere is not known here."""
        return Estimate(usd=0.0, hours=0.0)

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Write the files and wait for a model; the same files each time."""
        if finetune.state.final or finetune.state is FineTuneState.WAITING:
            return finetune
        folder = self._folder / finetune.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                shutil.copyfile(Path(dataset.directory) / name, folder / name)
            (folder / "options.json").write_bytes(msgspec.json.format(msgspec.json.encode(finetune.options)))
        except OSError as error:
            finetune = finetune.but(state=FineTuneState.FAILED, error=f"the files could not be written: {error}")
        else:
            todo = f"train on {folder}, then: unprompt finetune {dataset.task} --model {finetune.id}=MODEL"
            remote = finetune.remote | {"directory": str(folder), "todo": todo}
            finetune = finetune.but(state=FineTuneState.WAITING, stage="waiting for a model", remote=remote)
        save(finetune)
        return finetune

    def cancel(self, finetune: FineTune) -> FineTune:
        """No longer wait; the files stay."""
        return finetune if finetune.state.final else finetune.but(state=FineTuneState.CANCELLED)


def build(settings: TrainerSettings) -> ExportTrainer:
    """The trainer of kind `export`.

    Raises:
        ConfigError: no provider that will serve the model, or an option that is not known.
    """
    if not settings.upstream:
        raise ConfigError("trainer kind 'export' needs a provider: whose API will serve the model")
    try:
        return ExportTrainer(settings, msgspec.convert(settings.options, Options))
    except msgspec.ValidationError as error:
        raise ConfigError(f"trainer kind 'export': {error}") from None
