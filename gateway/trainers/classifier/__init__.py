"""The embedded classifier: trained here in seconds on the CPU, served inside the relay by `gateway.student`.

For tasks whose answers form a closed set of labels. The output string is learnt verbatim, so an answer such
as `{"intent": "refund"}` is a label like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway import embeddings
from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune
from gateway.errors import DatasetError
from gateway.files import write_whole
from gateway.student import Encoder
from gateway.trainers import Save, TrainerSettings, check_texts, train_here
from gateway.trainers.classifier.calibration import fit_curve
from gateway.trainers.classifier.fitting import Trained, train
from gateway.trainers.classifier.options import Options

__all__ = ["ClassifierTrainer", "Options", "Trained", "build", "encoder_of", "fit_curve", "model_name", "train"]

MAX_LABEL_CHARS = 200


class ClassifierTrainer:
    """A `Trainer` that needs no accelerator, no network and no second process."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """What differs in features and in how it learns; the likeliest first, and it with each embedding that is
        installed."""
        best = {"features": "pair+char", "head": "blend"}
        sweep: list[dict[str, Any]] = [
            best,
            *({**best, "embedding": name} for name in embeddings.installed()),
            {"features": "word+char", "head": "svc"},
            {"features": "word+char", "head": "lr", "c": 3.0},
            {"features": "pair+char", "head": "svc"},
            {"features": "char", "head": "svc"},
            {"features": "word", "head": "svc"},
            {"features": "word+char", "head": "svc", "c": 0.3},
            {"features": "pair+char", "head": "nb"},
            {"features": "word+char", "head": "centroid"},
        ]
        return [{**self._settings.options, **options} for options in sweep]

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Train, calibrate and write the model file."""

        def work() -> tuple[str, dict[str, float]]:
            options = msgspec.convert(finetune.options, Options)
            rows = dataset.part("train")
            check_texts(dataset, rows)
            check_closed_labels(rows)
            started = time.perf_counter()
            trained = train(rows, options, encoder_of(options))
            seconds = time.perf_counter() - started
            model = model_name(finetune)
            write_model(self._settings.models / model, trained, options, dataset.digest, seconds)
            return model, {**trained.metrics, "train_seconds": round(seconds, 3)}

        return train_here(finetune, save, "classifier", work)


def build(settings: TrainerSettings) -> ClassifierTrainer:
    """The trainer of kind `classifier`; `settings.models` is where model folders go."""
    return ClassifierTrainer(settings)


def model_name(finetune: FineTune) -> str:
    """`<task>-<8 hex digits of the fine-tune's id>`, safe as a folder's name and as a model's."""
    task = re.sub(r"[^A-Za-z0-9_-]+", "-", finetune.task).strip("-") or "task"
    return f"{task}-{hashlib.sha256(finetune.id.encode()).hexdigest()[:8]}"


def check_closed_labels(rows: Sequence[Row]) -> None:
    """Refuse rows whose outputs are not a closed set of labels.

    Raises:
        DatasetError: fewer than 2 labels, a label too long, or over half of the rows with an output of their
            own: the chance that the next row brings a new one (Good 1953, "The Population Frequencies of
            Species").
    """
    counts = Counter(row.output for row in rows)
    longest = max(map(len, counts), default=0)
    if len(counts) < 2:
        raise DatasetError(f"a classifier needs at least 2 different outputs, {len(rows)} rows have {len(counts)}")
    if longest > MAX_LABEL_CHARS:
        raise DatasetError(f"the outputs are no labels: one has {longest} characters, over {MAX_LABEL_CHARS}")
    singles = sum(count == 1 for count in counts.values())
    if singles > len(rows) / 2:
        raise DatasetError(
            f"the outputs are no closed set of labels: {singles} of {len(rows)} rows have one that no other row has"
        )


def encoder_of(options: Options) -> Encoder | None:
    """The embedding that the options ask for; None if they ask for none.

    Raises:
        DatasetError: it is not installed here.
    """
    if not options.embedding:
        return None
    encoder = embeddings.find(options.embedding)
    if encoder is None:
        here = ", ".join(embeddings.installed()) or "none"
        raise DatasetError(f"there is no embedding {options.embedding!r} on this machine; there are: {here}")
    return encoder


def write_model(folder: Path, trained: Trained, options: Options, digest: str, seconds: float) -> None:
    """Write `model.json` and `crossfit.json`, then `model.bin`: a folder that has a `model.bin` is whole."""
    about = {
        "labels": list(trained.student.labels),
        "options": msgspec.structs.asdict(options),
        "dataset_digest": digest,
        "train_seconds": round(seconds, 3),
        "metrics": trained.metrics,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "model.json", json.dumps(about, indent=1).encode())
    write_whole(folder / "crossfit.json", json.dumps(trained.cross_fit).encode())
    write_whole(folder / "model.bin", trained.student.to_bytes())
