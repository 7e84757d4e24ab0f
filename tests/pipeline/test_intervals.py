"""Bounds that keep their word: simulated at the very edge of what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.bounds import agreement_low
from gateway.pipeline.intervals import bootstrap, difference_low, mean_figure, mean_high, mean_low

shares = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@pytest.mark.parametrize("rows", [50, 200])
@pytest.mark.parametrize("likely", [0.5, 0.9, 0.97])
def test_the_lower_bound_of_a_mean_is_above_the_truth_in_one_of_20_cases_at_most(rows: int, likely: float) -> None:
    """Values of 0, a half and 1, as a judge gives them; and values near 1, as most fields are right."""
    random = np.random.default_rng(3)
    over = 0
    for _ in range(400):
        values = np.where(random.random(rows) < likely, 1.0, random.choice([0.0, 0.5], size=rows))
        over += mean_low(list(values), 0.95) > likely + (1 - likely) * 0.25
    assert over / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_the_lower_bound_of_a_mean_is_nearly_as_good_as_the_exact_one_of_a_share() -> None:
    values = [1.0] * 200
    assert agreement_low(0, 200, 0.95) - 0.01 <= mean_low(values, 0.95) <= agreement_low(0, 200, 0.95)


@given(shares, st.floats(0.6, 0.99))
def test_bounds_of_a_mean_are_around_it(values: list[float], confidence: float) -> None:
    low, high = mean_low(values, confidence), mean_high(values, confidence)
    assert 0 <= low <= sum(values) / len(values) + 1e-6
    assert sum(values) / len(values) - 1e-6 <= high <= 1
    assert mean_low([], confidence) == 0.0


@pytest.mark.parametrize("itself", [1.0, 0.97, 0.9])
def test_a_candidate_at_the_edge_of_the_margin_beside_a_noisy_incumbent_passes_in_one_of_20_runs(
    itself: float,
) -> None:
    """The candidate is right five points less often than the incumbent's second answer."""
    random, passed, runs = np.random.default_rng(5), 0, 2000
    for _ in range(runs):
        again = (random.random(200) < itself).astype(float)
        candidate = (random.random(200) < itself - 0.05).astype(float)
        passed += difference_low(list(candidate), list(again), 0.95) >= -0.05
    assert passed / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_the_same_answers_twice_differ_by_little_and_nobody_by_nothing() -> None:
    assert -0.02 < difference_low([1.0] * 200, [1.0] * 200, 0.95) < 0
    assert difference_low([0.0] * 50, [1.0] * 50, 0.95) < -0.9
    assert difference_low([], [], 0.95) == -1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=80))
def test_the_bound_of_a_difference_is_below_it_and_above_minus_1(rows: list[tuple[bool, bool]]) -> None:
    one, other = [float(a) for a, _ in rows], [float(b) for _, b in rows]
    low = difference_low(one, other, 0.95)
    assert -1 <= low <= (sum(one) - sum(other)) / len(rows) + 1e-6


def test_differences_of_figures_between_0_and_1_are_bounded_by_betting() -> None:
    random = np.random.default_rng(9)
    base = random.uniform(0.5, 0.9, 300)
    assert difference_low(list(base), list(base), 0.95) > -0.03
    assert difference_low(list(base - 0.2), list(base), 0.95) < -0.2


def test_resampling_says_the_same_each_time_and_nothing_about_nothing() -> None:
    values = list(np.random.default_rng(1).random(100))
    found = mean_figure(values)
    assert found == mean_figure(values)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / 10, rel=0.15)
    nothing = bootstrap(np.zeros((0, 1)), lambda sums: sums[:, 0])
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 1.0)
