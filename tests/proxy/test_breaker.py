"""A target's circuit in each of its states; time passes only when the story says so."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.route import CircuitPolicy
from gateway.proxy.breaker import BREAKERS_AT_MOST, Breaker, Breakers, Window


class Target:
    """A target with its circuit, asked by hand."""

    def __init__(self, **policy: Any) -> None:
        self.now = 1000.0
        self.told: list[bool] = []
        self.breaker = Breaker(CircuitPolicy(**policy), lambda: self.now, self.told.append)

    def ask(self, answers: bool) -> bool:
        """Ask, if the circuit lets us; whether it did."""
        if not self.breaker.admit():
            return False
        generation = self.breaker.generation
        (self.breaker.succeeded if answers else self.breaker.failed)(generation)
        return True

    def fails(self, times: int) -> None:
        for _ in range(times):
            assert self.ask(answers=False)


def test_five_failures_in_a_row_open_it_and_one_success_between_them_does_not() -> None:
    target = Target(failures=5)
    target.fails(4)
    target.ask(answers=True)
    target.fails(4)
    assert not target.breaker.is_open
    target.fails(1)
    assert target.breaker.is_open
    assert not target.ask(answers=True)
    assert target.told == [True]


def test_half_of_many_calls_failing_opens_it_though_never_five_in_a_row() -> None:
    target = Target(failures=5, error_rate=0.5, min_calls=20)
    for number in range(19):
        target.ask(answers=number % 2 == 0)
    assert not target.breaker.is_open  # too few calls to judge
    target.fails(1)
    assert target.breaker.is_open


def test_what_is_long_past_does_not_count() -> None:
    target = Target(failures=100, error_rate=0.5, min_calls=20, window_seconds=30)
    target.fails(19)
    target.now += 31
    target.fails(1)
    assert not target.breaker.is_open


def test_after_a_while_one_request_tries_it_and_its_answer_closes_it() -> None:
    target = Target(failures=1, open_seconds=5)
    target.fails(1)
    target.now += 4.9
    assert not target.breaker.admit()
    target.now += 0.2
    assert target.breaker.admit()  # the probe
    assert [target.breaker.admit() for _ in range(3)] == [False] * 3  # one is enough
    target.breaker.succeeded(target.breaker.generation)
    assert [target.breaker.admit() for _ in range(3)] == [True] * 3
    assert target.told == [True, False]


def test_each_probe_that_fails_doubles_the_time_up_to_a_bound() -> None:
    target = Target(failures=1, open_seconds=5, max_open_seconds=30)
    target.fails(1)
    waits = []
    for _ in range(5):
        waits.append(target.breaker.closes_in())
        target.now += waits[-1]
        assert target.ask(answers=False)
    assert waits == [5, 10, 20, 30, 30]
    assert target.told == [True]  # it never closed
    target.now += 30
    assert target.ask(answers=True)
    target.fails(1)
    assert target.breaker.closes_in() == 5  # and starts anew


def test_a_probe_that_is_never_heard_of_again_does_not_keep_it_open_for_ever() -> None:
    target = Target(failures=1, open_seconds=5)
    target.fails(1)
    target.now += 5
    assert target.breaker.admit()
    assert not target.breaker.admit()
    target.now += 5
    assert target.breaker.admit()


def test_a_probe_whose_client_left_gives_its_turn_to_the_next() -> None:
    target = Target(failures=1, open_seconds=5)
    target.fails(1)
    target.now += 5
    assert target.breaker.admit()
    target.breaker.released(target.breaker.generation)
    assert target.breaker.admit()


def test_what_was_asked_before_it_opened_neither_closes_it_nor_keeps_it_open() -> None:
    target = Target(failures=1, open_seconds=5)
    before = target.breaker.generation
    target.fails(1)
    target.breaker.succeeded(before)  # a slow answer from better days
    assert target.breaker.is_open
    target.now += 5
    target.breaker.failed(before)
    assert target.ask(answers=True)
    assert not target.breaker.is_open
    target.breaker.failed(before)
    assert not target.breaker.is_open


def test_a_target_that_is_asked_for_want_of_another_closes_it_by_answering() -> None:
    target = Target(failures=1, open_seconds=5)
    target.fails(1)
    target.breaker.failed(target.breaker.generation)  # asked all the same: that makes it no worse
    assert target.breaker.closes_in() == 5
    target.breaker.succeeded(target.breaker.generation)
    assert not target.breaker.is_open


Steps = st.lists(st.tuples(st.sampled_from(["answers", "fails", "leaves", "hangs"]), st.floats(0, 20)), max_size=80)


@given(Steps, st.integers(1, 6), st.floats(0.1, 10))
def test_whatever_happens_an_open_circuit_lets_one_through_per_period_and_always_comes_back(
    steps: list[tuple[str, float]], failures: int, open_seconds: float
) -> None:
    target = Target(failures=failures, open_seconds=open_seconds, max_open_seconds=60)
    breaker = target.breaker
    for what, later in steps:
        target.now += later
        was_open = breaker.is_open
        if breaker.admit():
            assert not (was_open and breaker.admit())  # never two probes at a moment
            heard_of = {"answers": breaker.succeeded, "fails": breaker.failed, "leaves": breaker.released}
            if what in heard_of:
                heard_of[what](breaker.generation)
        if what == "answers" and not was_open:
            assert not breaker.is_open
        assert 0 <= breaker.closes_in() <= 60
        assert target.told == [number % 2 == 0 for number in range(len(target.told))]
        assert (len(target.told) % 2 == 1) == breaker.is_open
    target.now += 60
    assert target.ask(answers=True)
    assert not breaker.is_open


@given(st.lists(st.tuples(st.floats(0, 8), st.booleans()), max_size=60))
def test_a_window_counts_what_a_list_would_count(calls: list[tuple[float, bool]]) -> None:
    window, now, seen = Window(30.0), 500.0, []
    for later, failed in calls:
        now += later
        window.add(now, failed=failed)
        seen.append((int(now / 3.0), failed))
        recent = [bad for slot, bad in seen if slot > seen[-1][0] - 10]
        assert (window.calls, window.failures) == (len(recent), sum(recent))


def test_each_target_has_its_own_circuit_and_says_its_name() -> None:
    told: list[tuple[str, bool]] = []
    breakers = Breakers(lambda: 0.0, lambda label, is_open: told.append((label, is_open)))
    policy = CircuitPolicy(failures=1)
    breakers.of("local/tuned", policy).failed(0)
    assert breakers.of("local/tuned", policy).is_open
    assert not breakers.of("openai/gpt-6", policy).is_open
    assert told == [("local/tuned", True)]
    for number in range(2 * BREAKERS_AT_MOST):  # names that clients make up
        breakers.of(f"openai/{number}", policy)
    assert len(breakers._breakers) <= BREAKERS_AT_MOST
    assert breakers.of("local/tuned", policy).is_open  # and an open one is not forgotten for them
