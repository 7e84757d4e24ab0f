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
from gateway.trainers.classifier.calibration import calibrate, fit_sharpness, log_loss
from gateway.trainers.classifier.features import (
    EMBEDDING_WEIGHTS,
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
        examples, left_out, weight = _best(examples, kinds, n_words, len(labels), options)
        matrix = weigh(examples, Idf.of(examples.counts), n_words, vectoriser.spec)
        head = fit_head(matrix, examples, len(labels), options)
        networks: tuple[Network, ...] = ()
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
        embedding=embedding_spec(encoder, weight) if encoder else None,
        encoder=encoder,
        networks=networks,
        sharpness=left_out.sharpness,
    )
    return Trained(student, measure(left_out, calibration), cross_fitted(left_out, calibration))


def embedding_spec(encoder: Encoder, weight: float) -> EmbeddingSpec:
    """What a model file says of the embedding that it needs, and of the length that it is read with."""
    return EmbeddingSpec(name=encoder.name, sha256=encoder.sha256, dimensions=encoder.dimensions, weight=weight)


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


def _best(
    examples: Examples, kinds: Sequence[NDArray[np.bool_]], n_words: int, n_labels: int, options: Options
) -> tuple[Examples, _LeftOut, float]:
    """The rows with the length of the embedding, and with or without networks, that give rows which they have not
    seen the least log loss; and that length."""
    weights = EMBEDDING_WEIGHTS if examples.vectors.shape[1] else EMBEDDING_WEIGHTS[:1]
    found = []
    opinions: list[Scores] = []
    for weight in weights:
        read, left_out = _weighed_and_left_out(examples.with_embedding(weight), n_words, n_labels, options)
        if options.head in WITH_NETWORKS:
            # an embedding of any length is the same to a network, so they are asked once
            opinions = opinions or cross_fit_networks(kinds, read, n_words, n_labels, options)
            left_out = _with_networks(left_out, opinions, options)
        found.append((read, left_out, weight))
    return min(found, key=lambda one: _loss(one[1]))


def _loss(left_out: _LeftOut) -> float:
    """The log loss of the rows whose label has another row, 0 where there is none: of the others, the label was not
    seen when they were left out."""
    answers = left_out.answers
    judged = np.flatnonzero(np.bincount(answers)[answers] >= 2)
    if not len(judged):
        return 0.0
    scores, answers = left_out.scores[judged], answers[judged]
    return log_loss(scores, answers, fit_sharpness(scores, answers))


def _with_networks(left_out: _LeftOut, said: Sequence[Scores], options: Options) -> _LeftOut:
    """What networks `said` of rows that they have not seen, blended with what the linear head says, if it may.

    As it was, where the networks make a blend worse, by accuracy or by log loss: of a label's single row they learn
    little.
    """
    opinions = [left_out.scores, *said]
    sharpness = tuple(fit_sharpness(scores, left_out.answers) for scores in opinions)
    if options.head == "net" and len(opinions) > 1:
        sharpness = (0.0, *sharpness[1:])
    both = replace(left_out, scores=blended(opinions, sharpness), sharpness=sharpness)
    is_worse = _accuracy(both) < _accuracy(left_out) or _loss(both) > _loss(left_out)
    return left_out if options.head == "blend" and is_worse else both


def _accuracy(left_out: _LeftOut) -> float:
    return float((left_out.scores.argmax(axis=1) == left_out.answers).mean())


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
