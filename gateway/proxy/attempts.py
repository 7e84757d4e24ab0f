"""Which attempt of an exchange is made next, and when: the part of the relay that only routes with more than one
target, retries or limits need. An exchange without such a route never comes here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import msgspec

from gateway.domain.route import CircuitPolicy, Route
from gateway.errors import Abstained, CircuitOpen, UpstreamError
from gateway.proxy.breaker import Breaker, Breakers
from gateway.proxy.concurrency import Seats
from gateway.proxy.retry import RetryBudgets, cause_of, pause
from gateway.proxy.router import Attempt, Plan
from gateway.upstreams import Head

Clock = Callable[[], float]
Told = Callable[[str | None, str], None]


class Guard(msgspec.Struct, kw_only=True, eq=False):
    """What a process remembers of its targets, and how much it takes on at once. `retried` and `rejected` are told
    the route and the reason."""

    breakers: Breakers = msgspec.field(default_factory=lambda: Breakers(time.monotonic))
    budgets: RetryBudgets = msgspec.field(default_factory=RetryBudgets)
    seats: Seats = msgspec.field(default_factory=Seats)
    max_in_flight: float = math.inf
    retried: Told = lambda route, reason: None
    rejected: Told = lambda route, reason: None
    clock: Clock = time.monotonic
    wall_clock: Clock = time.time

    def attempts(self, plan: Plan, dice: Clock) -> Attempts | None:
        """None where nothing needs remembering: nothing is asked twice, and no other target could stand in."""
        route = plan.route
        if route is None:
            return None
        circuit = route.circuit
        if circuit is not None and not circuit.alone and len(plan.attempts) == 1:
            circuit = None
        return None if circuit is None and route.retry is None else Attempts(self, plan, route, circuit, dice)


class Attempts:
    """The attempts of one exchange: which target is asked, and what its answer says of it."""

    __slots__ = ("_attempts", "_breaker", "_circuit", "_dice", "_generation", "_guard", "_route", "_tries")

    def __init__(self, guard: Guard, plan: Plan, route: Route, circuit: CircuitPolicy | None, dice: Clock) -> None:
        self._guard, self._route, self._circuit, self._dice = guard, route, circuit, dice
        self._attempts = plan.attempts
        self._breaker: Breaker | None = None
        self._generation = self._tries = 0

    def choose(self, number: int) -> int:
        """The number of the attempt to make: `number`, or a later one where targets are left alone at the moment.
        The last one is asked all the same.

        Raises:
            CircuitOpen: it is left alone, too, and the route says to refuse.
        """
        self._tries = 0
        last = len(self._attempts) - 1
        while number < last and not self._is_admitted(self._attempts[number]):
            number += 1
        if number == last and not self._is_admitted(self._attempts[last]):
            self._check_refusal()
        if self._route.retry is not None:
            guard = self._guard
            guard.budgets.of(self._attempts[number].label, self._route.retry, guard.clock()).deposit()
        return number

    def _is_admitted(self, attempt: Attempt) -> bool:
        if self._circuit is None:
            return True
        self._breaker = self._guard.breakers.of(attempt.label, self._circuit)
        return self._breaker.admit()

    def _check_refusal(self) -> None:
        if self._breaker is not None and self._circuit is not None and self._circuit.refuse:
            seconds = max(1, math.ceil(self._breaker.closes_in()))
            raise CircuitOpen(f"route {self._route.name!r}: its targets failed too often of late", seconds)

    def asked(self) -> None:
        """The request goes out."""
        self._tries += 1
        if self._breaker is not None:
            self._generation = self._breaker.generation

    def answered(self, status: int) -> None:
        """An answer began. A status of 500 and more is the target's failure; 4xx are between it and the client."""
        if self._breaker is not None:
            (self._breaker.failed if status >= 500 else self._breaker.succeeded)(self._generation)

    def failed(self, error: UpstreamError) -> None:
        """There is no answer, or no more of it."""
        if self._breaker is None:
            return
        if isinstance(error, Abstained):
            self._breaker.succeeded(self._generation)
        elif cause_of(error) is None:  # nothing that the target did
            self._breaker.released(self._generation)
        else:
            self._breaker.failed(self._generation)

    def left(self) -> None:
        """The client left before there was an answer."""
        if self._breaker is not None:
            self._breaker.released(self._generation)

    def again(self, number: int, cause: int | str | None, headers: Mapping[bytes, bytes]) -> float | None:
        """Seconds until the same target is asked once more; None: it is not."""
        retry, guard = self._route.retry, self._guard
        if retry is None or (self._breaker is not None and self._breaker.is_open):
            return None
        seconds = pause(retry, self._tries, cause, headers, now=guard.wall_clock(), point=self._dice())
        if seconds is None:
            return None
        now = guard.clock()
        budget = guard.budgets.of(self._attempts[number].label, retry, now)
        return seconds if budget.withdraw(now) else None


def is_unacceptable(head: Head, piece: bytes, *, stripped: bool, home: bool) -> bool:
    """Whether the next target is asked instead: for anything but a whole answer from one that got other bytes than
    the client sent (`stripped`), and for what says that it is down, overloaded or closed to us. `home`: it is the
    client's own provider, whose refusal of the client's key is an answer. `piece`: the body's beginning."""
    status = head.status
    if stripped:
        kind = head.first.get(b"content-type", b"").lower()
        is_answer = kind.startswith((b"application/json", b"text/event-stream"))
        return status != 200 or not is_answer or piece.startswith((b'data: {"error"', b'{"error"'))
    return status >= 500 or status in (404, 408, 429) or (status in (401, 403) and not home)


class Nobody:
    """Stands in for a client that left, while its answer is awaited for the record."""

    def write(self, data: bytes) -> None: ...
    def finish(self, *, keep_alive: bool) -> None: ...
    def cut(self, *, flush: bool) -> None: ...
    def upload(self, ready: bool) -> None: ...
