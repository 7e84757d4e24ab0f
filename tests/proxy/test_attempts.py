"""Which target of a route is asked next, told by hand: no sockets, and time passes only when the story says so."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.domain.route import CircuitPolicy, Match, Retry, Route, RouteLimits, Target
from gateway.errors import Abstained, CircuitOpen, OutOfSockets, UpstreamBroken, UpstreamUnreachable
from gateway.proxy.attempts import Attempts, Guard
from gateway.proxy.breaker import Breakers
from gateway.proxy.router import Attempt, Plan

DEAD = UpstreamUnreachable("refused")


class House:
    """A guard with a clock of its own, and exchanges on one route with as many targets as are asked for."""

    def __init__(self, targets: int = 2, **said: Any) -> None:
        self.now = 100.0
        clock = self.clock
        self.guard = Guard(breakers=Breakers(clock), clock=clock, wall_clock=clock)
        route = Route(name="mail", match=Match(), targets=(Target(upstream="t0"),), **said)
        attempts = tuple(Attempt(upstream=f"t{number}", model="m", body=b"{}") for number in range(targets))
        self.plan = Plan(attempts=attempts, route=route)

    def clock(self) -> float:
        return self.now

    def exchange(self) -> Attempts:
        attempts = self.guard.attempts(self.plan, lambda: 0.5)
        assert attempts is not None
        return attempts

    def fails(self, times: int) -> None:
        """So many exchanges whose first target cannot be reached."""
        for _ in range(times):
            exchange = self.exchange()
            assert exchange.choose(0) == 0
            exchange.asked()
            exchange.failed(DEAD)


def test_a_route_where_nothing_can_be_done_costs_nothing() -> None:
    guard = Guard()
    assert guard.attempts(Plan(attempts=()), lambda: 0.5) is None
    for said in ({}, {"circuit": None}, {"limits": RouteLimits(concurrency=1)}):
        assert guard.attempts(House(1, **said).plan, lambda: 0.5) is None
    assert guard.attempts(House(2, circuit=None).plan, lambda: 0.5) is None
    assert guard.attempts(House(1, circuit=CircuitPolicy(alone=True)).plan, lambda: 0.5) is not None
    assert guard.attempts(House(1, circuit=None, retry=Retry()).plan, lambda: 0.5) is not None


def test_targets_that_are_left_alone_are_skipped_but_the_last_is_asked_all_the_same() -> None:
    house = House(3, circuit=CircuitPolicy(failures=1))
    exchange = house.exchange()
    asked: list[int] = []
    for _ in range(3):
        asked.append(exchange.choose(len(asked)))
        exchange.asked()
        exchange.failed(DEAD)
    assert asked == [0, 1, 2]
    assert house.exchange().choose(0) == 2


def test_a_route_may_refuse_instead_and_says_for_how_long() -> None:
    house = House(1, circuit=CircuitPolicy(failures=1, open_seconds=5, alone=True, refuse=True))
    house.fails(1)
    house.now += 1.5
    with pytest.raises(CircuitOpen, match="route 'mail': its targets failed too often of late") as refused:
        house.exchange().choose(0)
    assert (refused.value.status, refused.value.retry_after) == (503, 4)
    house.now += 3.5
    assert house.exchange().choose(0) == 0


@pytest.mark.parametrize(
    ("happens", "is_left_alone"),
    [
        (lambda exchange: exchange.failed(DEAD), True),
        (lambda exchange: exchange.failed(UpstreamBroken("closed")), True),
        (lambda exchange: exchange.answered(503), True),
        (lambda exchange: exchange.answered(429), False),  # one client's quota
        (lambda exchange: exchange.answered(400), False),
        (lambda exchange: exchange.failed(Abstained("not sure")), False),
        (lambda exchange: exchange.failed(OutOfSockets("no files left")), False),  # our own fault
        (lambda exchange: exchange.left(), False),
    ],
)
def test_only_what_is_a_targets_own_fault_speaks_against_it(happens: Any, is_left_alone: bool) -> None:
    house = House(2, circuit=CircuitPolicy(failures=2))
    for _ in range(2):
        exchange = house.exchange()
        exchange.choose(0)
        exchange.asked()
        happens(exchange)
    assert (house.exchange().choose(0) == 1) is is_left_alone


def test_a_stream_that_breaks_after_it_began_speaks_against_its_target() -> None:
    house = House(2, circuit=CircuitPolicy(error_rate=0.5, min_calls=20))
    for _ in range(10):
        exchange = house.exchange()
        assert exchange.choose(0) == 0
        exchange.asked()
        exchange.answered(200)
        exchange.failed(UpstreamBroken("in the middle of its answer"))
    assert house.exchange().choose(0) == 1


def test_the_same_target_is_asked_as_often_as_the_route_says_and_then_the_next_as_often() -> None:
    exchange = House(2, circuit=None, retry=Retry(attempts=2, base_seconds=1.0)).exchange()
    for number in range(2):
        assert exchange.choose(number) == number
        exchange.asked()
        assert exchange.again(number, 503, {}) == 0.5  # half of the longest pause
        exchange.asked()
        assert exchange.again(number, 503, {}) is None


def test_a_target_whose_circuit_has_just_opened_is_not_asked_again() -> None:
    house = House(2, circuit=CircuitPolicy(failures=1), retry=Retry())
    exchange = house.exchange()
    exchange.choose(0)
    exchange.asked()
    exchange.answered(503)
    assert exchange.again(0, 503, {}) is None


def test_when_the_budget_is_spent_nothing_is_asked_again() -> None:
    house = House(1, circuit=None, retry=Retry(attempts=2, budget=0.0))
    granted = []
    for _ in range(12):
        exchange = house.exchange()
        exchange.choose(0)
        exchange.asked()
        granted.append(exchange.again(0, 503, {}) is not None)
    assert granted == [True] * 10 + [False] * 2
