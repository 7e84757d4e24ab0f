"""Small neural networks: one reads words and one characters, or a single one the embedding; all learn alike.

Beside a linear head they err elsewhere, so that what all are sure of is right more often (measured on banking77:
`benchmarks/cascade.py --head svc` and `--head blend`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.student import Floats, Indices, Network, Scores
from gateway.student.network import INPUT_LENGTH
from gateway.trainers.classifier.features import Examples, Labels, Matrix
from gateway.trainers.classifier.heads import splits
from gateway.trainers.classifier.options import Options

HIDDEN = 128
EPOCHS = 40
MOST_STEPS = 1500
BATCH = 256
RATE = np.float32(0.01)
DECAY = np.float32(1e-4)
INPUT_DROPOUT, DROPOUT = np.float32(0.3), np.float32(0.5)
MOST_INPUTS = 8000
FEW_ROWS = 600
"""Up to so many rows a tenth is held out at a time, as it makes a difference; of more rows a fifth, for time."""
LEAST_TEXTS = 2, 8, 0
"""A word is read if so many texts have it, a piece of a word likewise, and every dimension of an embedding."""


def readers(kinds: Sequence[NDArray[np.bool_]], matrix: Matrix) -> Iterator[Indices]:
    """The features that each network reads: of each kind (a mask of all features) those that enough texts have,
    the most frequent if they are too many."""
    frequency = np.bincount(matrix.indices, minlength=matrix.shape[1])
    for kind, least in zip(kinds, LEAST_TEXTS, strict=True):
        found = np.flatnonzero(kind & (frequency >= max(1, least)))
        if not len(found):
            found = np.flatnonzero(kind & (frequency > 0))
        if len(found) > MOST_INPUTS:
            found = np.sort(found[np.argsort(-frequency[found], kind="stable")[:MOST_INPUTS]])
        if len(found):
            yield found


def fit_networks(
    kinds: Sequence[NDArray[np.bool_]], matrix: Matrix, examples: Examples, n_labels: int, seed: int
) -> tuple[Network, ...]:
    """A network for each kind of feature that there is."""
    return tuple(
        fit_network(_unit(matrix[:, inputs]), inputs, examples.answers, examples.weights, n_labels, seed)
        for inputs in readers(kinds, matrix)
    )


def cross_fit_networks(
    kinds: Sequence[NDArray[np.bool_]], examples: Examples, n_words: int, n_labels: int, options: Options
) -> list[Scores]:
    """The scores (rows, labels) that each row gets from networks that have not seen it, by network."""
    size = len(examples.answers) - n_labels
    found: list[Scores] = []
    turns = 10 if size <= FEW_ROWS else 5
    for split in splits(examples, n_words, n_labels, options, turns):
        networks = fit_networks(kinds, split.matrix, split.seen, n_labels, options.seed)
        found = found or [np.zeros((size, n_labels)) for _ in networks]
        for scores, network in zip(found, networks, strict=True):
            scores[split.held] = scores_of(network, split.unseen)
    return found


def scores_of(network: Network, matrix: Matrix) -> Floats:
    """What `Network` says of each row of a matrix (rows, features)."""
    hidden = np.maximum(_unit(matrix[:, network.inputs]) @ network.first + network.first_bias, 0)
    scores: Floats = hidden @ network.second + network.second_bias
    return scores


def _unit(matrix: Matrix) -> Matrix:
    """The rows scaled to the length that a network reads."""
    from scipy.sparse import diags

    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return (diags(INPUT_LENGTH / np.maximum(lengths, 1e-9)) @ matrix).tocsr().astype(np.float32)


@dataclass
class _Parameter:
    """An array that is learnt, and the running means of Adam (Kingma and Ba 2015)."""

    value: Floats
    decays: bool

    def __post_init__(self) -> None:
        self._mean, self._square = np.zeros_like(self.value), np.zeros_like(self.value)

    def move(self, gradient: Floats, rate: np.float32, step: int) -> None:
        """One step, with decoupled weight decay (Loshchilov and Hutter 2019). `gradient` is overwritten."""
        self._mean += np.float32(0.1) * (gradient - self._mean)
        np.multiply(gradient, gradient, out=gradient)
        self._square += np.float32(0.001) * (gradient - self._square)
        np.sqrt(self._square, out=gradient)
        gradient += np.float32(1e-8)
        np.divide(self._mean, gradient, out=gradient)
        gradient *= rate * np.float32(np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
        self.value -= gradient
        if self.decays:
            self.value *= 1 - rate * DECAY


def fit_network(
    matrix: Matrix, inputs: Indices, answers: Labels, weights: Floats, n_labels: int, seed: int
) -> Network:
    """Learn by cross-entropy, with dropout (Srivastava et al. 2014) of inputs and of hidden units, and a rate that
    falls to 0."""
    random = np.random.default_rng(seed)
    first = random.standard_normal((len(inputs), HIDDEN), dtype=np.float32) * np.float32(0.5 * (2 / HIDDEN) ** 0.5)
    second = random.standard_normal((HIDDEN, n_labels), dtype=np.float32) * np.float32(0.05)
    learnt = [
        _Parameter(first, True), _Parameter(np.zeros(HIDDEN, np.float32), False),
        _Parameter(second, True), _Parameter(np.zeros(n_labels, np.float32), False),
    ]  # fmt: skip
    weights = (weights / weights.mean()).astype(np.float32)
    batches = list(_batches(len(answers), random))
    for step, batch in enumerate(batches, 1):
        gradients = _gradients(matrix[batch], answers[batch], weights[batch], [one.value for one in learnt], random)
        rate = RATE * np.float32(1 - step / len(batches))
        for one, gradient in zip(learnt, gradients, strict=True):
            one.move(gradient, rate, step)
    return Network(inputs, *(one.value for one in learnt))


def _batches(rows: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Row numbers, every row once an epoch; fewer epochs where there are many rows."""
    size = min(BATCH, max(16, rows // 6))
    each = -(-rows // size)
    for _ in range(max(1, min(EPOCHS, MOST_STEPS // each))):
        order = random.permutation(rows)
        yield from (order[start : start + size] for start in range(0, rows, size))


def _gradients(
    read: Matrix, answers: Labels, weights: Floats, values: Sequence[Floats], random: np.random.Generator
) -> list[Floats]:
    """Of the weighted mean cross-entropy of these rows, by the four arrays."""
    first, first_bias, second, second_bias = values
    read.data *= (random.random(len(read.data), dtype=np.float32) >= INPUT_DROPOUT) / (1 - INPUT_DROPOUT)
    hidden = np.maximum(read @ first + first_bias, 0)
    hidden *= (random.random(hidden.shape, dtype=np.float32) >= DROPOUT) / (1 - DROPOUT)
    odds = hidden @ second + second_bias
    odds -= odds.max(axis=1, keepdims=True)
    np.exp(odds, out=odds)
    odds /= odds.sum(axis=1, keepdims=True)
    odds[np.arange(len(answers)), answers] -= 1
    odds *= (weights / np.float32(len(answers)))[:, None]
    back = odds @ second.T
    back *= (hidden > 0) / (1 - DROPOUT)
    return [np.asarray(read.T @ back), back.sum(axis=0), hidden.T @ odds, odds.sum(axis=0)]
