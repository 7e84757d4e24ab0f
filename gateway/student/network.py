"""A small neural network over n-grams, and how several models' opinions of one text become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.student.ngrams import Floats, Indices

Scores = NDArray[np.float64]
INPUT_LENGTH = np.float32(5.0)
"""The length of the vector that a network reads of each text."""


@dataclass(frozen=True, eq=False)
class Network:
    """One hidden layer of rectified linear units.

    It reads the features `inputs` (ascending), scaled together to one length: `first` is (inputs, hidden), `second`
    (hidden, labels); `first_bias` and `second_bias` go with them.
    """

    inputs: Indices
    first: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats

    def __call__(self, indices: Indices, values: Floats) -> Floats:
        """The scores (labels,) of a text with these features; those that it does not read make no difference."""
        places = np.minimum(self.inputs.searchsorted(indices), len(self.inputs) - 1)
        known = self.inputs[places] == indices
        read = values[known]
        read = read * (INPUT_LENGTH / max(float(np.sqrt(read @ read)), 1e-9))
        hidden = np.maximum(read @ self.first[places[known]] + self.first_bias, 0)
        scores: Floats = hidden @ self.second + self.second_bias
        return scores

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What a model file keeps of it, in this order."""
        return self.inputs, self.first, self.first_bias, self.second, self.second_bias

    @classmethod
    def of(cls, floats: Floats, inputs: int, hidden: int, labels: int) -> Network:
        """From `floats`, `arrays` in one row. An index is exact as a 32-bit float, being below 2^24."""
        ends = np.cumsum([inputs, inputs * hidden, hidden, hidden * labels])
        read, first, first_bias, second, second_bias = np.split(floats, ends)
        shaped = first.reshape(inputs, hidden), first_bias, second.reshape(hidden, labels), second_bias
        return cls(read.astype(np.int64), *shaped)


def size_of(inputs: int, hidden: int, labels: int) -> int:
    """How many numbers a network of this size has."""
    return inputs + inputs * hidden + hidden + hidden * labels + labels


def softmax(scores: NDArray[Any], sharpness: float) -> Scores:
    """Scores (..., labels) to probabilities over the last axis, without overflow."""
    scaled = sharpness * np.asarray(scores, dtype=np.float64)
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    odds: Scores = powers / powers.sum(axis=-1, keepdims=True)
    return odds


def blended(opinions: Sequence[NDArray[Any]], sharpness: Sequence[float]) -> Scores:
    """The logarithm of the mean probability (..., labels) that several models' scores stand for, each made as sharp
    as its own number says (the linear opinion pool, Stone 1961). A model of sharpness 0 has no say."""
    odds = [softmax(scores, sharp) for scores, sharp in zip(opinions, sharpness, strict=True) if sharp]
    mean: Scores = np.mean(odds, axis=0)
    return np.log(np.maximum(mean, 1e-9))
