"""Texts as numbers for all rows at once, read by the same functions that read them when the student serves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.student import Encoder, FeatureSpec, Floats, Vectoriser
from gateway.trainers.classifier.options import Options

Matrix = Any  # scipy.sparse.csr_matrix, which has no type stubs; scipy is imported where it is needed only
Labels = NDArray[np.int64]
EMBEDDING_WEIGHTS = 1.5, 0.7
"""How long an embedding may be beside the character vector's 1. Longer is better where a label has a row or two,
whose n-grams tell little of the next one; shorter where it has ten."""

PAIRS = 8
"""How many words apart the words of a pair are at most: further apart they told no more."""


@dataclass(frozen=True)
class Examples:
    """Rows as numbers: n-gram counts (rows, n-grams), how many n-grams of each kind are unknown (rows, 2), the
    label's index, the weight of each row, and its embedding (rows, dimensions; 0 of them without one). The last
    rows are the names of the labels, one each."""

    counts: Matrix
    strangers: Floats
    answers: Labels
    weights: Floats
    vectors: Floats

    def at(self, chosen: Any) -> Examples:
        """Some of the rows, by mask or by index."""
        parts = self.counts, self.strangers, self.answers, self.weights, self.vectors
        return Examples(*(part[chosen] for part in parts))

    def weighing(self, weights: Floats) -> Examples:
        """The same rows with other weights."""
        return Examples(self.counts, self.strangers, self.answers, weights, self.vectors)

    def with_embedding(self, weight: float) -> Examples:
        """The same rows, as `count` gave them, with embeddings of this length."""
        vectors = self.vectors * np.float32(weight / EMBEDDING_WEIGHTS[0])
        return Examples(self.counts, self.strangers, self.answers, self.weights, vectors)


def feature_spec(options: Options) -> FeatureSpec:
    """The n-grams that `options.features` stands for."""
    words, chars = "word" in options.features, "char" in options.features
    if "pair" in options.features:
        return FeatureSpec(word_max=1, word_letters=5, pairs=PAIRS, char_max=5, word_weight=1.0)
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


def count(
    vectoriser: Vectoriser, texts: Sequence[str], answers: Labels, weights: Floats, encoder: Encoder | None = None
) -> Examples:
    """The texts as numbers, read by the same function that reads them when the student serves; embeddings are as
    long as the first of `EMBEDDING_WEIGHTS`."""
    from scipy.sparse import csr_matrix

    found = [vectoriser.counts(text) for text in texts]
    ends = np.cumsum([0, *(len(indices) for indices, _, _ in found)])
    indices = np.concatenate([indices for indices, _, _ in found])
    values = np.concatenate([values for _, values, _ in found]).astype(np.float32)
    counts: Matrix = csr_matrix((values, indices, ends), shape=(len(texts), len(vectoriser.idf)))
    strangers = np.array([strangers for _, _, strangers in found], dtype=np.float32)
    vectors = np.empty((len(texts), 0), dtype=np.float32)
    if encoder is not None:
        vectors = np.float32(EMBEDDING_WEIGHTS[0]) * encoder(texts)
    return Examples(counts, strangers, answers, weights, vectors)


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
    """Counts to the vectors that `Vectoriser` gives, by the same arithmetic, and the embeddings beside them."""
    from scipy.sparse import csr_matrix, hstack

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
    return hstack([matrix, csr_matrix(examples.vectors)]).tocsr() if examples.vectors.shape[1] else matrix
