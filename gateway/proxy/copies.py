"""Requests that the gateway asks once more for the record, after the client has had its answer: a stripped one
whole (an audit), a whole one stripped (a shadow). Nobody waits for them, and nothing that becomes of them reaches
a client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from gateway.domain.exchange import Outcome
from gateway.errors import GatewayError
from gateway.proxy.attempts import Nobody
from gateway.proxy.capture import LARGE
from gateway.proxy.forward import Exchanging
from gateway.proxy.house import House, Served
from gateway.proxy.router import Attempt, Plan

MOST_COPIES = 64
"""So many are under way at once in one process; beyond it a request is not copied, and that is counted."""

Kind = Literal["audit", "shadow"]


class CopyTold(Protocol):
    """Is told of each copy: its route, its kind, how it ended (`skipped`: it was not asked), and its cost."""

    def __call__(self, route: str, kind: Kind, outcome: str, cost_usd: float | None) -> None: ...


class Copies:
    """Asks what a served exchange's plan wants to have asked beside it."""

    def __init__(self, house: House, told: CopyTold) -> None:
        self._house, self._told = house, told
        self._under_way = 0

    def ask(self, served: Served) -> None:
        """Whole, where a stripped attempt answered and the plan is audited; the shadow, where a whole one did."""
        plan = served.plan
        if served.asked.log != "all" or not self._house.record_bodies or plan.original is None:
            return  # it could not be compared
        if not plan.attempts[served.number].stripped:
            if plan.shadow is not None:
                self._start(served, plan.shadow, "shadow")
            return
        whole = next((attempt for attempt in plan.attempts if not attempt.stripped), None)
        if plan.audited and whole is not None:
            self._start(served, whole, "audit")

    def _start(self, served: Served, attempt: Attempt, kind: Kind) -> None:
        plan = served.plan
        route = plan.route.name if plan.route is not None else "none"
        house = self._house
        busy = len(house.active) * 2 > house.guard.max_in_flight  # what is left belongs to clients
        if self._under_way >= MOST_COPIES or busy or len(plan.original or b"") >= LARGE:
            self._told(route, kind, "skipped", None)
            return
        self._under_way += 1

        def over(outcome: Outcome, cost_usd: float | None) -> None:
            self._under_way -= 1
            self._told(route, kind, outcome.value, cost_usd)

        alone = msgspec.structs.replace(plan, attempts=(attempt,), audited=False, shadow=None)
        Copy(house, served, alone, over).begin()


class Copy(Exchanging):
    """An exchange that no client asked for. It is asked once: no retry, no fallback, no circuit breaker, since it
    must neither take the place of clients' requests nor decide about them."""

    def __init__(
        self, house: House, served: Served, plan: Plan, over: Callable[[Outcome, float | None], None]
    ) -> None:
        super().__init__(house, Nobody(), served.asked)
        self._plan, self._over, self._is_streamed = plan, over, served.streamed
        self._recording.copy_of = served.id
        self._length = len(plan.original or b"")
        if plan.route is not None:
            self._timeouts = plan.route.timeouts

    def begin(self) -> None:
        """Note it, and ask."""
        try:
            self._recording.begin(self._plan.model, self._plan.original, self._plan)
        except GatewayError as error:
            self.refuse(error)
            return
        self._overhead = time.perf_counter() - self._started
        self._next_attempt()

    def refuse(self, error: GatewayError) -> None:
        """The reason is kept where an exchange keeps why its attempts failed."""
        self._failures = (*self._failures, f"{self._plan.attempts[0].label}: {error.code}")
        super().refuse(error)

    def _observe(self) -> None:
        self._over(*self._recording.ended_as)
