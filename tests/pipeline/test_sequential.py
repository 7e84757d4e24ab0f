"""Has a share risen above what is allowed? Looked at after every observation, with few false alarms."""

from __future__ import annotations

import random
from statistics import median

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pipeline.sequential import ODDS, Bets, interval, observed

ALLOWED = 0.05


def after(values: list[float], allowed: float = ALLOWED) -> Bets:
    bets = Bets()
    for value in values:
        bets = observed(bets, value, allowed)
    return bets


def until(limit: float, share: float, seed: int, *, allowed: float = ALLOWED, most: int = 20_000) -> int:
    """How many observations it takes until the evidence of a change reaches this limit."""
    dice, bets = random.Random(seed), Bets()
    for number in range(1, most + 1):
        bets = observed(bets, float(dice.random() < share), allowed)
        if bets.change >= limit:
            return number
    return most


def test_a_run_of_wrong_answers_is_evidence_and_right_ones_take_it_back() -> None:
    assert after([1.0] * 5).excess > 100 > after([1.0] * 3).excess
    assert after([1.0] * 5 + [0.0] * 200).excess < 1
    assert after([0.0] * 1000).excess < 1e-6


def test_a_change_is_found_however_long_all_was_well_before() -> None:
    """The gambler who began first is ruined by then; of those who began later some are not."""
    decayed = after([0.0] * 5000 + [1.0] * 6)
    assert decayed.change > 10_000
    assert decayed.excess < 1e-6


def test_as_long_as_it_is_just_allowed_it_takes_as_many_observations_as_stated() -> None:
    """At the very edge: at least 1,000 on average until 1,000 is reached (theorem), here over 100 runs."""
    runs = [until(1000, ALLOWED, seed, most=5000) for seed in range(100)]
    assert sum(runs) / len(runs) > 1000


def test_twice_as_many_wrong_answers_are_found_within_a_few_hundred() -> None:
    assert 100 < median(until(100_000, 2 * ALLOWED, seed) for seed in range(40)) < 800


def test_below_what_is_allowed_there_is_no_alarm() -> None:
    assert {until(100_000, 0.02, seed, most=5000) for seed in range(20)} == {5000}


def test_from_the_first_on_the_evidence_is_rarely_great() -> None:
    """Ville: in at most 1 of 100 runs at the edge it ever reaches 100; here in 300 runs of 300."""
    reached = 0
    for seed in range(300):
        dice, bets, most = random.Random(seed), Bets(), 0.0
        for _ in range(300):
            bets = observed(bets, float(dice.random() < ALLOWED), ALLOWED)
            most = max(most, bets.excess)
        reached += most >= 100
    assert reached <= 6


def test_a_suspicion_comes_before_the_alarm_and_is_settled_by_right_answers() -> None:
    quiet = after([0.0] * 2000)
    assert quiet.suspicion(ALLOWED) < 0.5
    suspicious = after([0.0] * 100 + [1.0] * 3)
    assert suspicious.suspicion(ALLOWED) >= 1
    assert suspicious.change < 100_000
    assert not after([0.0] * 100 + [1.0] * 3 + [0.0] * 10).is_settled(ALLOWED)
    assert after([0.0] * 100 + [1.0] * 3 + [0.0] * 150).is_settled(ALLOWED)


@given(st.floats(0, 1), st.floats(0.001, 0.9), st.lists(st.floats(0, 1), max_size=5))
def test_no_bet_is_favourable_while_the_mean_is_allowed(mean: float, allowed: float, before: list[float]) -> None:
    """A fair game: what a bet becomes on average is no more than the bet, for observations of any kind."""
    share = min(mean, allowed)
    bets = after(before, allowed)
    won, lost = observed(bets, 1.0, allowed), observed(bets, 0.0, allowed)
    middle = observed(bets, share, allowed)
    for k in range(len(ODDS)):
        expected = share * won.restarted[k] + (1 - share) * lost.restarted[k]
        assert expected <= (bets.restarted[k] + 1) * (1 + 1e-9)
        assert middle.restarted[k] == pytest.approx(expected)  # linear: only the mean matters


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=30))
def test_it_goes_on_after_a_restart(values: list[float]) -> None:
    kept = msgspec.json.decode(msgspec.json.encode(after(values)), type=Bets)
    assert observed(kept, 1.0, ALLOWED) == after([*values, 1.0])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        observed(Bets(), value, ALLOWED)


def test_endless_harm_is_a_number_still() -> None:
    bets = after([1.0] * 5000)
    assert bets.change <= 1e8
    assert bets.excess < float("inf")


# --- bounds ----------------------------------------------------------------------------------------------


def test_bounds_narrow_around_the_mean() -> None:
    assert interval(0, 0, 0.95) == (0.0, 0.5, 1.0)
    low, mean, high = interval(100, 3, 0.95)
    assert (round(low, 3), mean, round(high, 3)) == (0.002, 0.03, 0.13)
    wide = interval(10, 0.3, 0.95)
    narrow = interval(10_000, 300, 0.95)
    assert (wide.high - wide.low) > 0.3 > 0.02 > (narrow.high - narrow.low)
    assert interval(50, 0, 0.95).low == 0.0
    assert interval(50, 50, 0.95).high == 1.0


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_bounds_hold_at_all_times_at_once(share: float) -> None:
    """At 90 %: of 200 runs at most 20 ever miss, and some chance beside it."""
    missed = 0
    for seed in range(200):
        dice, total = random.Random(seed), 0.0
        for seen in range(1, 201):
            total += dice.random() < share
            low, _, high = interval(seen, total, 0.9)
            if not low <= share <= high:
                missed += 1
                break
    assert missed <= 30
