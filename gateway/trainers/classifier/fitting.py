"""Rows in, a calibrated student out, with what its heads said of rows that they had not seen."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.domain.dataset import Row
from gateway.student import (
    Calibration,
    EmbeddingSpec,
    Encoder,
    Floats,
    Network,
    Scores,
    TextClassifier,
    Vectoriser,
    blended,
    softmax,
)
from gateway.trainers.classifier.calibration import calibrate, fit_sharpness
from gateway.trainers.classifier.features import (
    EMBEDDING_WEIGHT,
    Examples,
    Idf,
    Labels,
    count,
    example_weights,
    feature_spec,
    label_words,
    weigh,
)
from gateway.trainers.classifier.heads import cross_fit, fit_head
from gateway.trainers.classifier.networks import cross_fit_networks, fit_networks
from gateway.trainers.classifier.noise import estimate
from gateway.trainers.classifier.options import Options

MAX_WEIGHTS = 8_000_000
CLOSENESS_QUANTILES = 201
MAX_ROWS = 50_000
WITH_NETWORKS = ("net", "blend")
"""The heads that have neural networks."""
LEAST_NOISE = 0.02
"""Below this share of wrong answers no row is weighed down: it would cost more than it gives."""


@dataclass(frozen=True)
class Trained:
    """A student and what was measured on the training rows by cross-fitting."""

    student: TextClassifier
    metrics: dict[str, float]
    cross_fit: dict[str, list[Any]]
    """For each training row, from a head that has not seen it: `confidence`, `support`, and `right` (0 or 1)."""


@dataclass(frozen=True)
class _LeftOut:
    """What heads that had not seen them say of the training rows: scores, closeness, the teacher's answers, and
    the share of those that is probably wrong. `sharpness` is what the scores of several were blended with."""

    scores: Scores
    closeness: Floats
    answers: Labels
    noise: float
    sharpness: tuple[float, ...] = ()


def train(rows: Sequence[Row], options: Options, encoder: Encoder | None = None) -> Trained:
    """A calibrated student of these rows, which reads texts with `encoder` too where one is given.

    Deterministic: same rows and options, same bytes.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(rows) > MAX_ROWS:
        rows = random.Random(options.seed).sample(rows, MAX_ROWS)
    labels = tuple(sorted({row.output for row in rows}))
    with threadpool_limits(limits=1):  # the relay may share these cores
        vectoriser, examples = _read(rows, labels, options, encoder)
        n_words, kinds = len(vectoriser.words), _kinds(vectoriser, encoder)
        examples, left_out = _weighed_and_left_out(examples, n_words, len(labels), options)
        matrix = weigh(examples, Idf.of(examples.counts), n_words, vectoriser.spec)
        head = fit_head(matrix, examples, len(labels), options)
        networks: tuple[Network, ...] = ()
        if options.head in WITH_NETWORKS:
            left_out = _with_networks(left_out, kinds, examples, n_words, options)
            if left_out.sharpness:
                networks = fit_networks(kinds, matrix, examples, len(labels), options.seed)
    calibration = calibrate(left_out.scores, left_out.closeness, left_out.answers)
    quantiles = np.quantile(left_out.closeness, np.linspace(0, 1, CLOSENESS_QUANTILES)).astype(np.float32)
    student = TextClassifier(
        labels=labels,
        vectoriser=vectoriser,
        weights=head.weights,
        bias=head.bias,
        centroids=head.centroids,
        closeness=quantiles,
        calibration=calibration,
        embedding=embedding_spec(encoder) if encoder else None,
        encoder=encoder,
        networks=networks,
        sharpness=left_out.sharpness,
    )
    return Trained(student, measure(left_out, calibration), cross_fitted(left_out, calibration))


def embedding_spec(encoder: Encoder) -> EmbeddingSpec:
    """What a model file says of the embedding that it needs."""
    return EmbeddingSpec(
        name=encoder.name, sha256=encoder.sha256, dimensions=encoder.dimensions, weight=EMBEDDING_WEIGHT
    )


def _read(
    rows: Sequence[Row], labels: Sequence[str], options: Options, encoder: Encoder | None
) -> tuple[Vectoriser, Examples]:
    """The rows as numbers, and behind them the names of the labels."""
    names = [label_words(label) if options.label_names else "" for label in labels]
    texts = [row.text for row in rows] + names
    answers = np.array([*(bisect_left(labels, row.output) for row in rows), *range(len(labels))])
    vectoriser = Vectoriser.fit(texts, feature_spec(options), max_features=MAX_WEIGHTS // len(labels))
    weights = example_weights(answers, len(labels), options)
    return vectoriser, count(vectoriser, texts, answers, weights, encoder)


def _kinds(vectoriser: Vectoriser, encoder: Encoder | None) -> list[NDArray[np.bool_]]:
    """What each network reads: single words, pieces of words; or the embedding alone, where there is one, since it
    knows what the others would say, and they know less."""
    words, known = len(vectoriser.words), len(vectoriser.idf)
    place = np.arange(known + (encoder.dimensions if encoder else 0))
    single, nothing = np.zeros(len(place), dtype=bool), np.zeros(len(place), dtype=bool)
    if encoder is not None:
        return [nothing, nothing, place >= known]
    single[:words] = [" " not in word for word in vectoriser.words]
    return [single, place >= words, nothing]


def _with_networks(
    left_out: _LeftOut, kinds: Sequence[NDArray[np.bool_]], examples: Examples, n_words: int, options: Options
) -> _LeftOut:
    """What the networks say of rows that they have not seen, blended with what the linear head says, if it may.

    As it was, where the networks make a blend worse: of a label's single row they learn little.
    """
    answers, n_labels = left_out.answers, left_out.scores.shape[1]
    opinions = [left_out.scores, *cross_fit_networks(kinds, examples, n_words, n_labels, options)]
    sharpness = tuple(fit_sharpness(scores, answers) for scores in opinions)
    if options.head == "net" and len(opinions) > 1:
        sharpness = (0.0, *sharpness[1:])
    scores = blended(opinions, sharpness)
    alone = (left_out.scores.argmax(axis=1) == answers).mean()
    if options.head == "blend" and (scores.argmax(axis=1) == answers).mean() < alone:
        return left_out
    return replace(left_out, scores=scores, sharpness=sharpness)


def _weighed_and_left_out(
    examples: Examples, n_words: int, n_labels: int, options: Options
) -> tuple[Examples, _LeftOut]:
    """The rows, weighed down where their answer is probably wrong, and what is said of each when it is left out."""
    given = examples.answers[: len(examples.answers) - n_labels]
    scores, closeness = cross_fit(examples, n_words, n_labels, options)
    noise = estimate(scores, given)
    if options.robust and noise.share >= LEAST_NOISE:
        weights = examples.weights.copy()
        weights[: len(given)] *= noise.trust
        examples = examples.weighing(weights)
        scores, closeness = cross_fit(examples, n_words, n_labels, options)
    return examples, _LeftOut(scores, closeness, given, noise.share)


def cross_fitted(left_out: _LeftOut, calibration: Calibration) -> dict[str, list[Any]]:
    """What a threshold can be chosen from without touching held-out rows."""
    odds, closeness = softmax(left_out.scores, calibration.sharpness), left_out.closeness
    rank = np.searchsorted(np.sort(closeness), closeness, side="right") / len(closeness)
    return {
        "confidence": np.round(calibration(odds.max(1), closeness), 6).tolist(),
        "support": np.round(rank, 6).tolist(),
        "right": (odds.argmax(1) == left_out.answers).astype(int).tolist(),
    }


def measure(left_out: _LeftOut, calibration: Calibration) -> dict[str, float]:
    """How good and how sure the cross-fitted answers to the training rows are, against the teacher's.

    `label_noise` is the share of the teacher's answers that are probably wrong.
    """
    odds = softmax(left_out.scores, calibration.sharpness)
    return {
        "rows": len(left_out.answers),
        "labels": left_out.scores.shape[1],
        "cv_accuracy": round(float((odds.argmax(1) == left_out.answers).mean()), 4),
        "cv_confidence": round(float(calibration(odds.max(1), left_out.closeness).mean()), 4),
        "label_noise": round(left_out.noise, 4),
    }
