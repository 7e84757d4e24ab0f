"""The patience with a body: used up by time, given back by bytes, never more than at the start."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.pace import Pace

TICK = 0.25


def lasts(rates: list[float], *, patience: float = 10.0, least: float = 500.0) -> float | None:
    """When a body of so many bytes a second, each for a quarter of a second, is over; None: it is not."""
    pace = Pace("a body", patience, least, 0.0)
    for number, rate in enumerate(rates, 1):
        pace.received(int(rate * TICK))
        if pace.is_over(number * TICK):
            return number * TICK
    return None


def test_silence_is_borne_as_long_as_the_patience_lasts() -> None:
    assert lasts([0.0] * 100) == 10.25


def test_half_the_rate_lasts_twice_as_long() -> None:
    assert lasts([252.0] * 200) == 20.25


def test_the_least_rate_lasts_for_ever_and_so_does_any_where_none_is_set() -> None:
    assert lasts([500.0] * 4000) is None
    assert lasts([0.0] * 4000, least=0.0) is None


def test_an_hour_of_speed_buys_no_more_than_the_patience_at_the_start() -> None:
    assert lasts([1e7] * 400 + [0.0] * 100) == 100 + 10.25


def test_a_pause_that_is_ours_costs_nothing() -> None:
    pace = Pace("a body", 1.0, 500.0, 0.0)
    for second in range(100):
        pace.rests(float(second))
    assert not pace.is_over(100.0)
    assert pace.is_over(102.0)


@given(st.lists(st.floats(0, 5000), max_size=80))
def test_nobody_is_ended_before_the_patience_and_slow_ones_always_are(rates: list[float]) -> None:
    ended = lasts(rates, patience=3.0)
    assert ended is None or ended >= 3.0
    assert lasts([*rates, *[400.0] * 80], patience=3.0) is not None
