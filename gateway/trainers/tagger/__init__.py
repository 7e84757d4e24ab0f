"""Extraction without an LLM: texts whose answers are JSON made of pieces of the text.

Trained here on the CPU, served inside the relay by `gateway.extraction`.

A CRF learns where the values are; fields whose values are not in the text, but from a closed set, get a
classifier each.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune
from gateway.errors import DatasetError
from gateway.files import write_whole
from gateway.trainers import Save, TrainerSettings, check_texts, train_here
from gateway.trainers.classifier import model_name
from gateway.trainers.tagger.learning import Options, Trained, train

__all__ = ["Options", "TaggerTrainer", "build"]


class TaggerTrainer:
    """A `Trainer` that needs no accelerator, no network and no second process."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """The usual one; values learnt from their own rows only; the same smoother, for a teacher that errs."""
        sweep: list[dict[str, Any]] = [{"swaps": 4}, {"swaps": 0}, {"swaps": 4, "l1": 0.3, "l2": 0.1}]
        return [{**self._settings.options, **options} for options in sweep]

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Train, calibrate and write the model file."""

        def work() -> tuple[str, dict[str, float]]:
            options = msgspec.convert(finetune.options, Options)
            started = time.perf_counter()
            rows = dataset.part("train")
            check_texts(dataset, rows)
            try:
                trained = train(rows, options)
            except ImportError as error:
                raise DatasetError(f"{error}; install it with: pip install python-crfsuite") from error
            seconds = round(time.perf_counter() - started, 3)
            model = model_name(finetune)
            _write(self._settings.models / model, trained, options, dataset.digest, seconds)
            return model, {**trained.metrics, "train_seconds": seconds}

        return train_here(finetune, save, "tagger", work)


def build(settings: TrainerSettings) -> TaggerTrainer:
    """The trainer of kind `tagger`; `settings.models` is where model folders go."""
    return TaggerTrainer(settings)


def _write(folder: Path, trained: Trained, options: Options, digest: str, seconds: float) -> None:
    """Write `model.json` and `crossfit.json`, then `model.bin`: a folder that has a `model.bin` is whole."""
    form = trained.student.form
    about = {
        "fields": [field.name for field in form.fields],
        "copied": [field.name for field in form.fields if field.shape],
        "chosen": [field.name for field in form.fields if field.chosen],
        "options": msgspec.structs.asdict(options),
        "dataset_digest": digest,
        "train_seconds": seconds,
        "metrics": trained.metrics,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "model.json", json.dumps(about, indent=1).encode())
    write_whole(folder / "crossfit.json", json.dumps(trained.cross_fit).encode())
    write_whole(folder / "model.bin", trained.student.to_bytes())
