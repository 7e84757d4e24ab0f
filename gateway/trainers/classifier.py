"""The embedded classifier: trained here in seconds on the CPU, served inside the relay by `gateway.student`.

For tasks whose answers form a closed set of labels. The output string is learnt verbatim, so an answer such
as `{"intent": "refund"}` is a label like any other.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import DatasetError
from gateway.files import write_whole
from gateway.student import Calibration, FeatureSpec, Floats, TextClassifier, Vectoriser, log_odds, softmax
from gateway.trainers import Save, TrainerSettings

Matrix = Any  # scipy.sparse.csr_matrix, which has no type stubs; scipy is imported where it is needed only
Labels = NDArray[np.int64]
Scores = NDArray[np.float64]

MAX_LABEL_CHARS = 200
MAX_WEIGHTS = 8_000_000
CLOSENESS_QUANTILES = 201
FIVE_FOLDS = 200_000  # rows times labels; beyond it three folds have to do, for time
MAX_ROWS = 50_000


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate of the sweep may set.

    `c` is the inverse strength of regularisation, 0 for the head's usual one. `balance` (0..1) is how far rare
    labels are weighed up to the frequent ones. `label_names` is the weight of a label's own name as one more
    example of it, which helps where examples are few. `seed` decides folds and the solver's order.
    """

    features: Literal["word", "char", "word+char"] = "word+char"
    head: Literal["lr", "svc"] = "lr"
    c: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    balance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    label_names: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0


class ClassifierTrainer:
    """A `Trainer` that needs no accelerator, no network and no second process."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Logistic regression; the same smoother, for a teacher that errs; large margins; characters alone."""
        sweep: list[dict[str, Any]] = [
            {"features": "word+char", "head": "lr"},
            {"features": "word+char", "head": "lr", "c": 3.0},
            {"features": "word+char", "head": "svc"},
            {"features": "char", "head": "lr"},
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
        raise DatasetError(f"a classifier needs at least 2 different outputs, {len(rows)} rows have {len(counts)}")
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
    cross_fit: dict[str, list[Any]]
    """For each training row, from a head that has not seen it: `confidence`, `support`, and `right` (0 or 1)."""


@dataclass(frozen=True)
class Examples:
    """Rows as numbers: n-gram counts (rows, n-grams), how many n-grams of each kind are unknown (rows, 2), the
    label's index, and the weight of each row. The last rows are the names of the labels, one each."""

    counts: Matrix
    strangers: Floats
    answers: Labels
    weights: Floats

    def at(self, chosen: Any) -> Examples:
        """Some of the rows, by mask or by index."""
        return Examples(self.counts[chosen], self.strangers[chosen], self.answers[chosen], self.weights[chosen])


@dataclass(frozen=True)
class Head:
    """What is learnt: `weights` and `centroids` (n-grams, labels), `bias` (labels,)."""

    weights: Floats
    bias: Floats
    centroids: Floats


def train(rows: Sequence[Row], options: Options) -> Trained:
    """A calibrated student of these rows. Deterministic: same rows and options, same bytes."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(rows) > MAX_ROWS:
        rows = random.Random(options.seed).sample(rows, MAX_ROWS)
    labels = tuple(sorted({row.output for row in rows}))
    names = [label_words(label) if options.label_names else "" for label in labels]
    texts = [row.text for row in rows] + names
    answers = np.array([*(bisect_left(labels, row.output) for row in rows), *range(len(labels))])
    spec = feature_spec(options)
    with threadpool_limits(limits=1):  # the relay may share these cores
        vectoriser = Vectoriser.fit(texts, spec, max_features=MAX_WEIGHTS // len(labels))
        examples = count(vectoriser, texts, answers, example_weights(answers, len(labels), options))
        scores, closeness = cross_fit(examples, len(vectoriser.words), len(labels), options)
        calibration = calibrate(scores, closeness, answers[: len(rows)])
        matrix = weigh(examples, Idf.of(examples.counts), len(vectoriser.words), spec)
        head = fit_head(matrix, examples, len(labels), options)
    quantiles = np.quantile(closeness, np.linspace(0, 1, CLOSENESS_QUANTILES)).astype(np.float32)
    student = TextClassifier(labels, vectoriser, head.weights, head.bias, head.centroids, quantiles, calibration)
    given = answers[: len(rows)]
    left_out = cross_fitted(scores, closeness, given, calibration)
    return Trained(student, measure(scores, closeness, given, calibration), left_out)


def cross_fitted(
    scores: Scores, closeness: Floats, answers: Labels, calibration: Calibration
) -> dict[str, list[Any]]:
    """What a threshold can be chosen from without touching held-out rows."""
    odds = softmax(scores, calibration.sharpness)
    rank = np.searchsorted(np.sort(closeness), closeness, side="right") / len(closeness)
    return {
        "confidence": np.round(calibration(odds.max(1), closeness), 6).tolist(),
        "support": np.round(rank, 6).tolist(),
        "right": (odds.argmax(1) == answers).astype(int).tolist(),
    }


def measure(scores: Scores, closeness: Floats, answers: Labels, calibration: Calibration) -> dict[str, float]:
    """How good and how sure the cross-fitted answers to the training rows are, against the teacher's."""
    odds = softmax(scores, calibration.sharpness)
    return {
        "rows": len(answers),
        "labels": scores.shape[1],
        "cv_accuracy": round(float((odds.argmax(1) == answers).mean()), 4),
        "cv_confidence": round(float(calibration(odds.max(1), closeness).mean()), 4),
    }


def feature_spec(options: Options) -> FeatureSpec:
    """The n-grams that `options.features` stands for."""
    words, chars = "word" in options.features, "char" in options.features
    return FeatureSpec(word_max=2 if words else 0, char_max=5 if chars else 0, word_weight=0.7 if chars else 1.0)


def label_words(label: str) -> str:
    """A label's name as a text: `card_arrival`, `CardArrival` and `{"intent": "card-arrival"}` name their words."""
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))


def example_weights(answers: Labels, n_labels: int, options: Options) -> Floats:
    """Rare labels weigh more, by the power `balance` of their rarity; names of labels by `label_names` besides."""
    counts = np.bincount(answers, minlength=n_labels)
    weights: Floats = ((counts.mean() / counts[answers]) ** options.balance).astype(np.float32)
    weights[-n_labels:] *= options.label_names
    return weights


def count(vectoriser: Vectoriser, texts: Sequence[str], answers: Labels, weights: Floats) -> Examples:
    """The texts as numbers, read by the same function that reads them when the student serves."""
    from scipy.sparse import csr_matrix

    found = [vectoriser.counts(text) for text in texts]
    ends = np.cumsum([0, *(len(indices) for indices, _, _ in found)])
    indices = np.concatenate([indices for indices, _, _ in found])
    values = np.concatenate([values for _, values, _ in found]).astype(np.float32)
    counts: Matrix = csr_matrix((values, indices, ends), shape=(len(texts), len(vectoriser.idf)))
    strangers = np.array([strangers for _, _, strangers in found], dtype=np.float32)
    return Examples(counts, strangers, answers, weights)


@dataclass(frozen=True)
class Idf:
    """Inverse document frequencies: of each known n-gram (0 for one that no row has), and of an unknown one."""

    known: Floats
    unseen: float

    @classmethod
    def of(cls, counts: Matrix) -> Idf:
        """The IDF that `Vectoriser.fit` gives, for these rows."""
        total, df = counts.shape[0], np.bincount(counts.indices, minlength=counts.shape[1])
        known = np.where(df > 0, np.log((1 + total) / (1 + df)) + 1, 0)
        return cls(known.astype(np.float32), float(np.log(1 + total) + 1))


def weigh(examples: Examples, idf: Idf, n_words: int, spec: FeatureSpec) -> Matrix:
    """Counts to the vectors that `Vectoriser` gives: the same arithmetic, for all rows at once."""
    matrix = examples.counts.astype(np.float64)
    size = matrix.shape[0]
    rows = np.repeat(np.arange(size), np.diff(matrix.indptr))
    block = 2 * rows + (matrix.indices >= n_words)  # each row has two blocks, words and characters
    unknown = np.where(idf.known[matrix.indices] > 0, 0, matrix.data)
    strangers = examples.strangers.ravel() + np.bincount(block, unknown, minlength=2 * size)
    matrix.data = (1 + np.log(matrix.data)) * idf.known[matrix.indices]
    squares = np.bincount(block, matrix.data**2, minlength=2 * size) + strangers * idf.unseen**2
    lengths = np.tile([spec.word_weight, 1.0], size)
    matrix.data *= (lengths / np.sqrt(np.where(squares > 0, squares, 1)))[block]
    return matrix


def fit_head(matrix: Matrix, examples: Examples, n_labels: int, options: Options) -> Head:
    """One linear separator per label against the rest; a label without a row here gets the lowest score."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    weights = np.zeros((matrix.shape[1], n_labels), dtype=np.float32)
    centroids = np.zeros((matrix.shape[1], n_labels), dtype=np.float32)
    bias = np.full(n_labels, -10.0, dtype=np.float32)
    present = np.unique(examples.answers)
    if len(present) == 1:
        bias[present] = 10.0
        return Head(weights, bias, centroids)
    for label in present:
        own = examples.answers == label
        separator = (
            LinearSVC(C=options.c or 1.0, random_state=options.seed)
            if options.head == "svc"
            else LogisticRegression(
                C=options.c or 10.0, solver="liblinear", dual=True, tol=0.01, random_state=options.seed
            )
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # noisy labels need not be fitted to the end
            separator.fit(matrix, own, sample_weight=examples.weights)
        weights[:, label], bias[label] = separator.coef_[0], separator.intercept_[0]
        total = np.asarray(matrix[own].sum(axis=0)).ravel()
        centroids[:, label] = total / (np.linalg.norm(total) or 1)
    return Head(weights, bias, centroids)


def folds(answers: Labels, seed: int, count: int) -> Iterator[NDArray[np.bool_]]:
    """Masks of the held-out rows; each label's rows are dealt out evenly, whatever their number."""
    order = np.random.default_rng(seed).permutation(len(answers))
    order = order[np.argsort(answers[order], kind="stable")]
    fold = np.empty(len(answers), dtype=np.int64)
    fold[order] = np.arange(len(answers)) % count
    for number in range(min(count, len(answers))):
        yield fold == number


def cross_fit(examples: Examples, n_words: int, n_labels: int, options: Options) -> tuple[Scores, Floats]:
    """The scores (rows, labels) and the closeness (rows,) that each row gets from heads that have not seen it.

    What only the held-out rows have is unknown to the head, as it is with live texts: n-grams, and labels.
    """
    size, spec = len(examples.answers) - n_labels, feature_spec(options)
    scores, closeness = np.empty((size, n_labels)), np.empty(size, dtype=np.float32)
    number = 5 if size * n_labels <= FIVE_FOLDS else 3
    for held in folds(examples.answers[:size], options.seed, number):
        rest = np.flatnonzero(~held)
        named = size + np.unique(examples.answers[rest])
        seen, unseen = examples.at(np.concatenate([rest, named])), examples.at(np.flatnonzero(held))
        idf = Idf.of(seen.counts)
        head = fit_head(weigh(seen, idf, n_words, spec), seen, n_labels, options)
        matrix = weigh(unseen, idf, n_words, spec)
        scores[held] = matrix @ head.weights + head.bias
        closeness[held] = (matrix @ head.centroids).max(axis=1)
    return scores, closeness


def calibrate(scores: Scores, closeness: Floats, answers: Labels) -> Calibration:
    """Temperature first (Guo et al. 2017, "On Calibration of Modern Neural Networks"), then a logistic curve from
    the top label's odds and its closeness to "the top label is right" (Platt 1999)."""
    sharpness = fit_sharpness(scores, answers)
    odds = softmax(scores, sharpness)
    right = (odds.argmax(axis=1) == answers).astype(np.float64)
    inputs = np.column_stack([np.ones(len(answers)), log_odds(odds.max(axis=1)), closeness])
    return Calibration(sharpness, *map(float, fit_curve(inputs, right, np.array([0.0, 1.0, 0.0]))))


def fit_curve(inputs: Scores, right: Scores, prior: Scores) -> Scores:
    """The coefficients (columns,) of logistic regression, drawn towards `prior` by about one row's weight."""

    def loss(curve: Scores) -> float:
        margin = inputs @ curve
        return float((np.logaddexp(0, margin) - right * margin).sum() + ((curve - prior) ** 2).sum() / 2)

    curve = prior
    for _ in range(50):  # Newton's method; a step that does not help is halved
        chance = 1 / (1 + np.exp(-np.clip(inputs @ curve, -50, 50)))
        gradient = inputs.T @ (chance - right) + (curve - prior)
        hessian = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.eye(len(prior))
        step = np.linalg.solve(hessian, gradient)
        while loss(curve - step) > loss(curve) and np.abs(step).max() > 1e-9:
            step = step / 2
        curve = curve - step
    return curve


def fit_sharpness(scores: Scores, answers: Labels) -> float:
    """The inverse temperature with the least log loss."""
    rows = np.arange(len(answers))

    def loss(log_sharpness: float) -> float:
        odds = softmax(scores, float(np.exp(log_sharpness)))
        return float(-np.log(np.maximum(odds[rows, answers], 1e-12)).mean())

    low, high = float(np.log(0.05)), float(np.log(100.0))
    for _ in range(40):  # ternary search: the loss has one valley, being convex in the sharpness
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


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


def _failed(finetune: FineTune, sentence: str) -> FineTune:
    return finetune.but(state=FineTuneState.FAILED, error=sentence)
