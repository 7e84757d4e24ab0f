"""The embedded classifier: trained here in seconds on the CPU, served inside the relay by `gateway.student`.

For tasks whose answers form a closed set of labels. The output string is learnt verbatim, so an answer such
as `{"intent": "refund"}` is a label like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import DatasetError
from gateway.student import FeatureSpec, Floats, TextClassifier, Vectoriser, softmax
from gateway.trainers import Save, TrainerSettings

Matrix = Any  # scipy.sparse.csr_matrix, which has no type stubs; scipy is imported where it is needed only
Labels = NDArray[np.int64]

MAX_LABEL_CHARS = 200
MAX_WEIGHTS = 16_000_000
SUPPORT_QUANTILES = 101


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate of the sweep may set.

    `c` is the inverse strength of regularisation; `seed` decides folds and the solver's order.
    """

    features: Literal["word", "char", "word+char"] = "word+char"
    head: Literal["svc", "lr"] = "svc"
    c: float = 1.0
    seed: int = 0


class ClassifierTrainer:
    """A `Trainer` that needs no accelerator, no network and no second process."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Four students: both kinds of n-gram under either head, and each kind alone."""
        sweep: list[dict[str, Any]] = [
            {"features": "word+char", "head": "svc"},
            {"features": "word+char", "head": "lr", "c": 30.0},
            {"features": "char", "head": "svc"},
            {"features": "word", "head": "svc"},
        ]
        return [{**self._settings.options, **options} for options in sweep]

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Train, calibrate and write the model file; a crash half-way means no more than starting again."""
        if finetune.state.final:
            return finetune
        finetune = finetune.but(state=FineTuneState.RUNNING, stage="training")
        save(finetune)
        try:
            options = msgspec.convert(finetune.options, Options)
            rows = dataset.part("train")
            check_closed_labels(rows)
            started = time.perf_counter()
            trained = train(rows, options)
            seconds = time.perf_counter() - started
            model = model_name(finetune)
            write_model(self._settings.models / model, trained, options, dataset.digest, seconds)
        except msgspec.ValidationError as error:
            finetune = _failed(finetune, f"the options of trainer 'classifier' are wrong: {error}")
        except DatasetError as error:
            finetune = _failed(finetune, str(error))
        except OSError as error:
            finetune = _failed(finetune, f"the model could not be written: {error}")
        else:
            metrics = {**trained.metrics, "train_seconds": round(seconds, 3)}
            finetune = finetune.but(
                state=FineTuneState.SUCCEEDED, stage="", upstream="local", model=model, metrics=metrics
            )
        save(finetune)
        return finetune


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
        raise DatasetError(
            f"a classifier needs at least 2 different outputs, {len(rows)} rows have {len(counts)}"
        )
    if longest > MAX_LABEL_CHARS:
        raise DatasetError(f"the outputs are no labels: one has {longest} characters, over {MAX_LABEL_CHARS}")
    singles = sum(count == 1 for count in counts.values())
    if singles > len(rows) / 2:
        raise DatasetError(
            f"the outputs are no closed set of labels: {singles} of {len(rows)} rows have one that no other row has"
        )


@dataclass(frozen=True)
class Trained:
    """A student and what was measured on the training rows by cross-fitting."""

    student: TextClassifier
    metrics: dict[str, float]


def train(rows: Sequence[Row], options: Options) -> Trained:
    """A calibrated student of these rows. Deterministic: same rows and options, same bytes."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    texts = [row.text for row in rows]
    labels = tuple(sorted({row.output for row in rows}))
    index = {label: number for number, label in enumerate(labels)}
    answers = np.array([index[row.output] for row in rows])
    with threadpool_limits(limits=1):  # the relay may share these cores
        vectoriser = Vectoriser.fit(texts, feature_spec(options), max_features=MAX_WEIGHTS // len(labels))
        counts = count_matrix(vectoriser, texts)
        held_out = cross_fit(counts, vectoriser, answers, len(labels), options)
        sharpness = fit_sharpness(held_out, answers)
        matrix = weigh(counts, vectoriser.idf, len(vectoriser.words))
        weights, bias = fit_head(matrix, answers, len(labels), options)
    supports = np.linspace(0, 1, SUPPORT_QUANTILES, dtype=np.float32)
    student = TextClassifier(labels, vectoriser, weights, bias, sharpness, supports)
    odds = softmax(held_out, sharpness)
    metrics = {
        "rows": float(len(rows)),
        "labels": float(len(labels)),
        "cv_accuracy": float((odds.argmax(1) == answers).mean()),
        "cv_confidence": float(odds.max(1).mean()),
    }
    return Trained(student, {name: round(value, 4) for name, value in metrics.items()})


def feature_spec(options: Options) -> FeatureSpec:
    """The n-grams that `options.features` stands for."""
    words, chars = "word" in options.features, "char" in options.features
    return FeatureSpec(word_max=2 if words else 0, char_max=5 if chars else 0)


def count_matrix(vectoriser: Vectoriser, texts: Sequence[str]) -> Matrix:
    """How often each known n-gram occurs in each text: (texts, n-grams), sparse."""
    from scipy.sparse import csr_matrix

    found = [vectoriser.counts(text) for text in texts]
    ends = np.cumsum([0, *(len(indices) for indices, _ in found)])
    indices = np.concatenate([indices for indices, _ in found])
    values = np.concatenate([values for _, values in found]).astype(np.float32)
    return csr_matrix((values, indices, ends), shape=(len(texts), len(vectoriser.idf)))


def weigh(counts: Matrix, idf: Floats, n_words: int) -> Matrix:
    """Counts to the weights that `Vectoriser` gives: the same arithmetic, for all rows at once."""
    from scipy.sparse import diags, hstack

    matrix = counts.copy()
    matrix.data = (1 + np.log(matrix.data)) * idf[matrix.indices]
    blocks = []
    for block in (matrix[:, :n_words], matrix[:, n_words:]):
        lengths = np.sqrt(np.asarray(block.multiply(block).sum(axis=1)).ravel())
        blocks.append(diags(1 / np.where(lengths > 0, lengths, 1)) @ block)
    return hstack(blocks, format="csr", dtype=np.float64)


def fit_head(matrix: Matrix, answers: Labels, n_labels: int, options: Options) -> tuple[Floats, Floats]:
    """Weights (n-grams, labels) and bias (labels,). A label that has no row here gets the lowest score."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    present = np.unique(answers)
    weights = np.zeros((matrix.shape[1], n_labels), dtype=np.float32)
    bias = np.full(n_labels, -1.0, dtype=np.float32)
    if len(present) < 2:
        bias[present] = 1.0
        return weights, bias
    head = (
        LinearSVC(C=options.c, random_state=options.seed)
        if options.head == "svc"
        else LogisticRegression(C=options.c, max_iter=300, random_state=options.seed)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "many classes for few rows" is checked above, by our own rule
        head.fit(matrix, answers)
    coefficients, intercepts = head.coef_, head.intercept_
    if len(present) == 2:  # scikit-learn keeps one row for two classes
        coefficients, intercepts = (
            np.vstack([-coefficients, coefficients]) / 2,
            np.array([-1, 1]) * intercepts / 2,
        )
    weights[:, present] = coefficients.T
    bias[present] = intercepts
    return weights, bias


def folds(answers: Labels, seed: int, count: int = 5) -> Iterator[NDArray[np.bool_]]:
    """Masks of the held-out rows; each label's rows are dealt out evenly, whatever their number."""
    order = np.random.default_rng(seed).permutation(len(answers))
    order = order[np.argsort(answers[order], kind="stable")]
    fold = np.empty(len(answers), dtype=np.int64)
    fold[order] = np.arange(len(answers)) % count
    for number in range(min(count, len(answers))):
        yield fold == number


def cross_fit(
    counts: Matrix, vectoriser: Vectoriser, answers: Labels, n_labels: int, options: Options
) -> NDArray[np.float64]:
    """The scores (rows, labels) that each training row gets from a head that has not seen it.

    N-grams that only the held-out rows have are left out, as a live text's unknown n-grams are.
    """
    scores = np.empty((len(answers), n_labels))
    n_words = len(vectoriser.words)
    for held in folds(answers, options.seed):
        seen = counts[~held]
        df = np.diff(seen.tocsc().indptr)
        idf = np.where(df > 0, np.log((1 + seen.shape[0]) / (1 + df)) + 1, 0).astype(np.float32)
        weights, bias = fit_head(weigh(seen, idf, n_words), answers[~held], n_labels, options)
        scores[held] = weigh(counts[held], idf, n_words) @ weights + bias
    return scores


def fit_sharpness(scores: NDArray[np.float64], answers: Labels) -> float:
    """The inverse temperature with the least log loss (Guo et al. 2017, "On Calibration of Modern Neural
    Networks")."""
    rows = np.arange(len(answers))

    def loss(log_sharpness: float) -> float:
        odds = softmax(scores, float(np.exp(log_sharpness)))
        return float(-np.log(np.maximum(odds[rows, answers], 1e-12)).mean())

    low, high = np.log(0.05), np.log(100.0)
    for _ in range(60):  # ternary search: the loss is convex in the sharpness, so it has one valley
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def write_model(folder: Path, trained: Trained, options: Options, digest: str, seconds: float) -> None:
    """Write `model.json`, then `model.bin`: a folder that has a `model.bin` is whole."""
    about = {
        "labels": list(trained.student.labels),
        "options": msgspec.structs.asdict(options),
        "dataset_digest": digest,
        "train_seconds": round(seconds, 3),
        "metrics": trained.metrics,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / "model.json", json.dumps(about, indent=1).encode())
    _write_whole(folder / "model.bin", trained.student.to_bytes())


def _write_whole(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never a part; a power cut leaves one of both."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _failed(finetune: FineTune, sentence: str) -> FineTune:
    return finetune.but(state=FineTuneState.FAILED, error=sentence)
