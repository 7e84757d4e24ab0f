"""LoRA fine-tunes of open weights on this machine, with TRL and PEFT, served by any OpenAI-compatible server.

The training is a process of its own (`gateway/recipes/sft.py`), so that torch is never loaded here, and a crash of
it costs no more than a new start from its newest checkpoint. One training gives an adapter for each epoch; each is
a candidate. The server reads adapters while it runs, or somebody loads them by hand.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Estimate
from gateway.errors import ConfigError
from gateway.trainers import Save, TrainerSettings
from gateway.trainers.trl.adapters import Adapters, ServingFailed
from gateway.trainers.trl.options import Options, Settings, checked, model_name, training_name
from gateway.trainers.trl.process import (
    RECIPES,
    Line,
    TrainingFailed,
    failure,
    figures,
    is_done,
    one_at_a_time,
    run,
    train,
    write_card,
)
from gateway.trainers.trl.server import command

__all__ = ["Options", "Settings", "TrlTrainer", "build"]

PACKAGES = ("torch", "trl", "peft", "transformers", "datasets")
EXTRA = "pip install 'unprompt[trl]'"
SERVER_SECONDS = 120.0
"""So long is a server waited for that is down or just starting."""


class TrlTrainer:
    """A `Trainer` whose trainings are processes on this machine, one at a time."""

    def __init__(self, settings: TrainerSettings, own: Settings, *, patience: float = SERVER_SECONDS) -> None:
        """`patience`: seconds that a server which is down is waited for."""
        self.settings, self.own, self.patience = settings, own, patience

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Each epoch of a training with every base model and every learning rate of the `Settings`.

        Raises:
            ConfigError: no base model is named.
        """
        if not self.own.base_models:
            raise ConfigError(
                "trainer kind 'trl': set its option 'base_models': folders, GGUF files or hub names of open weights"
            )
        fixed = ("n_epochs", "batch_size", "rank", "alpha", "max_tokens", "seed", "output")
        shared = {name: getattr(self.own, name) for name in fixed if getattr(self.own, name) != _USUAL[name]}
        shared["n_epochs"] = self.own.n_epochs
        return [
            {"base_model": model, "learning_rate": rate, "epoch": epoch, **shared}
            for model, rate, epoch in product(
                self.own.base_models, self.own.learning_rates, range(1, self.own.n_epochs + 1)
            )
        ]

    def estimate(self, options: dict[str, Any], dataset: Dataset) -> Estimate:
        """This machine costs nothing; how long it takes is known from earlier trainings."""
        return Estimate(usd=0.0)

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Train unless that has been done, then let the server read the adapter; from wherever it was cut off."""
        if finetune.state.final:
            return finetune
        return _Run(self, finetune, dataset, save).to_the_end()

    def adapters(self) -> Adapters:
        """The adapters of the server that serves the candidates."""
        return Adapters(self.settings.base_url, self.settings.api_key)

    def place_of(self, adapter: Path) -> str:
        """Where the server finds an adapter's folder; it may see the folder of models under another path."""
        models = self.settings.models
        return str(Path(self.own.adapters_at or models.resolve()) / adapter.relative_to(models))


class _Run:
    """One candidate on its way: `finetune` is always what was saved last."""

    def __init__(self, trainer: TrlTrainer, finetune: FineTune, dataset: Dataset, save: Save) -> None:
        self.trainer, self.finetune, self.dataset, self.save = trainer, finetune, dataset, save
        self.saved = 0.0

    def record(self, **changes: Any) -> None:
        self.finetune = self.finetune.but(updated_at=time.time(), **changes)
        self.saved = time.monotonic()
        self.save(self.finetune)

    def to_the_end(self) -> FineTune:
        try:
            options = checked(self.finetune.options, Options)
            model = self.trained(options)
            self.served(model, options)
        except ServingFailed as error:
            remedy = "; 'unprompt serve' runs that server" if self.trainer.own.serve == "local" else ""
            self.record(state=FineTuneState.FAILED, error=f"{error}{remedy}"[:500])
        except (ConfigError, TrainingFailed) as error:
            self.record(state=FineTuneState.FAILED, error=str(error)[:500])
        except OSError as error:
            self.record(state=FineTuneState.FAILED, error=f"the model could not be written: {error}")
        return self.finetune

    # Training, once for all the epochs that are candidates

    def trained(self, options: Options) -> str:
        """The candidate's model name; its adapter is there, and so is the merged model where one is asked for."""
        models = self.trainer.settings.models
        training = training_name(self.dataset, options)
        place = models / training
        adapter = place / f"epoch-{options.taken}"
        self.record(state=FineTuneState.RUNNING, stage="waiting", remote={"training": training})
        with one_at_a_time(models / "training.lock"):
            if not is_done(place):
                self.record(stage="training")
                train(self.python, self.job(options, place), self.told)
            if not (place / "card.json").is_file():
                write_card(place, self.dataset)
            merged = place / f"merged-{options.taken}"
            if options.output == "merged" and not merged.is_dir():
                self.record(stage="merging")
                self.merge(options.base_model, adapter, merged)
        if not adapter.is_dir():
            raise TrainingFailed("training_failed", f"the training {training} has no epoch {options.taken}")
        self.finetune = self.finetune.but(metrics=self.finetune.metrics | figures(place, options.taken))
        return model_name(training, options)

    @property
    def python(self) -> str:
        return self.trainer.own.python or sys.executable

    def job(self, options: Options, place: Path) -> dict[str, Any]:
        """What the recipe is told."""
        own, folder = self.trainer.own, Path(self.dataset.directory)
        validation = folder / "validation.jsonl"
        if not (folder / "train.jsonl").is_file():
            raise TrainingFailed("training_failed", f"train.jsonl is missing in {folder}")
        return {
            "base_model": options.base_model, "train": str(folder / "train.jsonl"),
            "validation": str(validation) if validation.is_file() else "", "out": str(place),
            "n_epochs": options.n_epochs, "learning_rate": options.learning_rate, "batch_size": options.batch_size,
            "rank": options.rank, "alpha": options.alpha or 2 * options.rank, "max_tokens": options.max_tokens,
            "seed": options.seed, "device": own.device,
            "threads": own.threads or max(1, (os.cpu_count() or 2) - 1),
            "checkpoint_seconds": own.checkpoint_seconds,
        }  # fmt: skip

    def told(self, line: Line) -> None:
        """Keep the newest figures; the store is not written for every step."""
        facts = {name: value for name, value in line.items() if isinstance(value, int | float)}
        metrics = self.finetune.metrics | (facts if line["event"] in ("step", "rows") else {})
        if metrics.get("seconds"):
            metrics["tokens_per_second"] = round(metrics.get("tokens", 0.0) / metrics["seconds"], 1)
        self.finetune = self.finetune.but(metrics=metrics)
        if line["event"] != "step" or time.monotonic() - self.saved > self.trainer.settings.poll_seconds:
            self.record()
        self.trainer.settings.wait(0)  # raises when the candidate is to be cancelled; the process ends with it

    def merge(self, base: str, adapter: Path, out: Path) -> None:
        command = [self.python, str(RECIPES / "merge.py"), base, str(adapter), str(out)]
        if run(command, adapter.parent, lambda line: None) != 0:
            raise failure(adapter.parent)

    # Serving

    def served(self, model: str, options: Options) -> None:
        """The candidate is something that a route can name."""
        settings, own = self.trainer.settings, self.trainer.own
        if own.serve != "by_hand" and options.output == "adapter":
            self.record(stage="loading")
            folder = settings.models / training_name(self.dataset, options) / f"epoch-{options.taken}"
            self.trainer.adapters().load(model, self.trainer.place_of(folder), patience=self.trainer.patience)
        self.record(state=FineTuneState.SUCCEEDED, stage="done", upstream=settings.upstream, model=model)


_USUAL = dict(zip(Options.__struct_fields__, (None, *Options.__struct_defaults__), strict=True))


def build(settings: TrainerSettings) -> TrlTrainer:
    """The trainer whose candidates the upstream of these settings serves.

    Raises:
        ConfigError: no upstream, or one that `serve: local` cannot be; an option that is not known or has a wrong
            value; or the packages of the extra are missing: says what to install.
    """
    own = checked(settings.options, Settings)
    if not settings.base_url:
        raise ConfigError(
            "trainer kind 'trl' needs a provider: the OpenAI-compatible server that serves its models"
        )
    if own.python and shutil.which(own.python) is None:
        raise ConfigError(f"trainer kind 'trl': there is no interpreter {own.python!r}")
    missing = [] if own.python else [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"trainer kind 'trl' needs the package {missing[0]!r}: {EXTRA}, or name an interpreter that has it in "
            "the option 'python'"
        )
    if own.serve == "local":
        command(own, settings.base_url, settings.models)
    return TrlTrainer(settings, own)
