"""Linear heads: one separator per label against the rest, and what they say of rows that they have not seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.student import Floats, Scores
from gateway.trainers.classifier.features import Examples, Idf, Labels, Matrix, feature_spec, weigh
from gateway.trainers.classifier.options import Options

FOLDS = ((40_000, 10), (200_000, 5))
"""Rows times labels, and how many folds there are up to so many; beyond them three have to do, for time."""
SMOOTHING = 0.3
"""What complement naive Bayes adds to each feature's total."""


@dataclass(frozen=True)
class Head:
    """What is learnt: `weights` and `centroids` (n-grams and dimensions, labels), `bias` (labels,)."""

    weights: Floats
    bias: Floats
    centroids: Floats


Separators = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Weights (features, labels that are present) and bias (labels that are present,)."""


def fit_head(matrix: Matrix, examples: Examples, n_labels: int, options: Options) -> Head:
    """One linear separator per label against the rest; a label without a row here gets the lowest score."""
    weights = np.zeros((matrix.shape[1], n_labels), dtype=np.float32)
    centroids = np.zeros((matrix.shape[1], n_labels), dtype=np.float32)
    bias = np.full(n_labels, -10.0, dtype=np.float32)
    present = np.unique(examples.answers)
    if len(present) == 1:
        bias[present] = 10.0
        return Head(weights, bias, centroids)
    totals = _totals(matrix, examples.answers, np.ones(len(examples.answers)), n_labels)[present]
    centroids[:, present] = (totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12)).T
    if options.head == "centroid":
        weights[:, present], bias[present] = centroids[:, present], 0.0
    elif options.head != "net":
        weights[:, present], bias[present] = _LEARN.get(options.head, _large_margins)(matrix, examples, options)
    return Head(weights, bias, centroids)


def _large_margins(matrix: Matrix, examples: Examples, options: Options) -> Separators:
    """A linear support vector machine per label."""
    from sklearn.svm import LinearSVC

    machine = LinearSVC(C=options.c or 1.0, random_state=options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noisy labels need not be fitted to the end
        machine.fit(matrix, examples.answers, sample_weight=examples.weights)
    if len(machine.classes_) == 2:
        return np.vstack([-machine.coef_, machine.coef_]).T, np.append(-machine.intercept_, machine.intercept_)
    return machine.coef_.T, machine.intercept_


def _logistic(matrix: Matrix, examples: Examples, options: Options) -> Separators:
    """Logistic regression per label."""
    from sklearn.linear_model import LogisticRegression

    learnt = []
    for label in np.unique(examples.answers):
        one = LogisticRegression(
            C=options.c or 10.0, solver="liblinear", dual=True, tol=0.01, random_state=options.seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            one.fit(matrix, examples.answers == label, sample_weight=examples.weights)
        learnt.append((one.coef_[0], one.intercept_[0]))
    return np.stack([weights for weights, _ in learnt], axis=1), np.array([bias for _, bias in learnt])


def _complement_bayes(matrix: Matrix, examples: Examples, options: Options) -> Separators:
    """Complement naive Bayes with normalised weights (Rennie et al. 2003)."""
    present = np.unique(examples.answers)
    totals = _totals(abs(matrix), examples.answers, examples.weights, int(present.max()) + 1)[present]
    others = totals.sum(axis=0) - totals + SMOOTHING
    surprise = -np.log(others / others.sum(axis=1, keepdims=True))
    surprise /= surprise.sum(axis=1, keepdims=True) / surprise.shape[1]
    return (surprise - surprise.mean(axis=0)).T, np.zeros(len(present))


_LEARN: Mapping[str, Callable[[Matrix, Examples, Options], Separators]] = {
    "lr": _logistic,
    "nb": _complement_bayes,
}


def _totals(matrix: Matrix, answers: Labels, weights: NDArray[np.floating], n_labels: int) -> Scores:
    """The weighted sum (labels, features) of each label's rows."""
    from scipy.sparse import csr_matrix

    whose = csr_matrix((weights, (answers, np.arange(len(answers)))), shape=(n_labels, len(answers)))
    totals: Scores = np.asarray((whose @ matrix).todense(), dtype=np.float64)
    return totals


def folds(answers: Labels, seed: int, count: int) -> Iterator[NDArray[np.bool_]]:
    """Masks of the held-out rows; each label's rows are dealt out evenly, whatever their number."""
    order = np.random.default_rng(seed).permutation(len(answers))
    order = order[np.argsort(answers[order], kind="stable")]
    fold = np.empty(len(answers), dtype=np.int64)
    fold[order] = np.arange(len(answers)) % count
    for number in range(min(count, len(answers))):
        yield fold == number


class Split(NamedTuple):
    """Rows that are held out (mask), and what is left to learn from; both as vectors by what is left alone."""

    held: NDArray[np.bool_]
    seen: Examples
    matrix: Matrix
    unseen: Matrix


def splits(examples: Examples, n_words: int, n_labels: int, options: Options, most: int = 10) -> Iterator[Split]:
    """Each row is held out once, in `most` turns or fewer.

    What only the held-out rows have is unknown to what is learnt, as it is with live texts: n-grams, and labels.
    """
    size, spec = len(examples.answers) - n_labels, feature_spec(options)
    number = next((count for most, count in FOLDS if size * n_labels <= most), 3)
    for held in folds(examples.answers[:size], options.seed, min(most, number)):
        rest = np.flatnonzero(~held)
        named = size + np.unique(examples.answers[rest])
        seen, unseen = examples.at(np.concatenate([rest, named])), examples.at(np.flatnonzero(held))
        idf = Idf.of(seen.counts)
        yield Split(held, seen, weigh(seen, idf, n_words, spec), weigh(unseen, idf, n_words, spec))


def cross_fit(examples: Examples, n_words: int, n_labels: int, options: Options) -> tuple[Scores, Floats]:
    """The scores (rows, labels) and the closeness (rows,) that each row gets from heads that have not seen it."""
    size = len(examples.answers) - n_labels
    scores, closeness = np.empty((size, n_labels)), np.empty(size, dtype=np.float32)
    for split in splits(examples, n_words, n_labels, options):
        head = fit_head(split.matrix, split.seen, n_labels, options)
        scores[split.held] = split.unseen @ head.weights + head.bias
        closeness[split.held] = (split.unseen @ head.centroids).max(axis=1)
    return scores, closeness
