"""Linear heads: one separator per label against the rest, and what they say of rows that they have not seen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.student import Floats
from gateway.trainers.classifier.features import Examples, Idf, Labels, Matrix, feature_spec, weigh
from gateway.trainers.classifier.options import Options

Scores = NDArray[np.float64]
FOLDS = ((40_000, 10), (200_000, 5))
"""Rows times labels, and how many folds there are up to so many; beyond them three have to do, for time."""


@dataclass(frozen=True)
class Head:
    """What is learnt: `weights` and `centroids` (n-grams and dimensions, labels), `bias` (labels,)."""

    weights: Floats
    bias: Floats
    centroids: Floats


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
    number = next((count for most, count in FOLDS if size * n_labels <= most), 3)
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
