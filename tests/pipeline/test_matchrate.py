"""When a task's requests match less often than before, and how rarely that is said of one whose requests do not."""

from __future__ import annotations

import random

import pytest

from gateway.pipeline.matchrate import MatchRate, has_fallen, tail, wilson


def test_wilsons_bounds_as_in_the_textbook() -> None:
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=0.001)
    assert wilson(20, 20) == pytest.approx((0.839, 1.0), abs=0.001)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_binomial_tail() -> None:
    assert tail(0, 5, 0.3) == pytest.approx(1.0)
    assert tail(5, 5, 0.1) == pytest.approx(1e-5)
    assert tail(2, 3, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("matched", "seen", "most"), [(20, 20, 8), (200, 200, 5), (5000, 5000, 5), (900, 1000, 7)])
def test_a_prompt_that_changes_is_noticed_after_a_few_requests(matched: int, seen: int, most: int) -> None:
    rate = MatchRate(matched, seen)
    assert [rate.add(matches=False) for _ in range(most)].index(True) < most


def test_a_few_misses_are_none() -> None:
    rate = MatchRate(200, 200)
    assert not any(rate.add(matches=n % 10 > 0) for n in range(40))
    assert not has_fallen([False] * 4, 5000, 5000)


def test_a_share_that_stays_raises_an_alarm_less_than_once_in_ten_thousand_requests() -> None:
    dice = random.Random(4)
    alarms = 0
    for share in (0.99, 0.95, 0.9, 0.7):
        rate = MatchRate(int(200 * share), 200)
        alarms += sum(rate.add(matches=dice.random() < share) for _ in range(5000))
    assert alarms <= 2


def test_the_share_is_of_the_newest_and_recovers() -> None:
    rate = MatchRate(100, 100)
    assert len(rate.newest) == 0
    for matches in [False] * 10 + [True] * 30:
        rate.add(matches=matches)
    assert rate.share == 0.75
    assert not rate.has_recovered
    for _ in range(6):
        rate.add(matches=True)
    assert rate.has_recovered
    rate.settle()
    assert len(rate.newest) == 0
