from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.student import Network, blended, softmax
from gateway.student.network import INPUT_LENGTH, size_of

READS_TWO = Network(
    inputs=np.array([3, 7]),
    first=np.array([[1, 0], [0, 1]], dtype=np.float32),
    first_bias=np.array([0, -1], dtype=np.float32),
    second=np.array([[2, 0], [0, 1]], dtype=np.float32),
    second_bias=np.array([0, 0.5], dtype=np.float32),
)


def said(indices: list[int], values: list[float]) -> list[float]:
    scores = READS_TWO(np.array(indices, dtype=np.int64), np.array(values, dtype=np.float32))
    return [float(score) for score in scores]


@pytest.mark.parametrize(
    ("indices", "values", "scores"),
    [
        ([3], [0.2], [10, 0.5]),  # scaled to length 5; the second unit stays silent
        ([7], [0.2], [0, 4.5]),
        ([3, 7], [3, 4], [6, 3.5]),
        ([], [], [0, 0.5]),
    ],
)
def test_a_text_is_read_at_one_length(indices: list[int], values: list[float], scores: list[float]) -> None:
    assert INPUT_LENGTH == 5
    assert said(indices, values) == pytest.approx(scores, abs=1e-5)


@given(st.lists(st.sampled_from([0, 1, 2, 4, 5, 6, 8, 9, 1000]), unique=True).map(sorted))
def test_features_that_it_does_not_read_make_no_difference(others: list[int]) -> None:
    indices = sorted([3, *others])
    values = [0.5 if index == 3 else 9.0 for index in indices]
    assert said(indices, values) == said([3], [0.5])


def test_a_network_made_of_its_own_numbers_is_the_same_network() -> None:
    floats = np.concatenate([array.ravel() for array in READS_TWO.arrays]).astype(np.float32)
    assert len(floats) == size_of(2, 2, 2)
    again = Network.of(floats, 2, 2, 2)
    for array, other in zip(READS_TWO.arrays, again.arrays, strict=True):
        assert array.tolist() == other.tolist()


def test_two_opinions_are_worth_their_mean() -> None:
    sure, torn = np.log([0.9, 0.1]), np.log([0.5, 0.5])
    assert np.exp(blended([sure, torn], (1.0, 1.0))) == pytest.approx([0.7, 0.3])


def test_a_model_of_sharpness_0_has_no_say() -> None:
    sure, opposed = np.log([0.9, 0.1]), np.log([0.1, 0.9])
    assert np.exp(blended([sure, opposed], (1.0, 0.0))) == pytest.approx([0.9, 0.1])


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(0.1, 20))
@settings(max_examples=300)
def test_a_blend_is_a_distribution_whatever_is_blended(opinions: list[list[float]], sharp: float) -> None:
    odds = np.exp(blended([np.array(one) for one in opinions], [sharp] * len(opinions)))
    assert odds.sum() == pytest.approx(1, abs=1e-6)
    if len(opinions) == 1:
        assert odds == pytest.approx(softmax(np.array(opinions[0]), sharp), abs=1e-8)
