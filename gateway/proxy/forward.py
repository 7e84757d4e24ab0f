"""One exchange on its way: plan, ask, retry, fall back, give up. How its answer passes: `answering`; what is
recorded of it: `record`."""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections.abc import Mapping

from gateway.domain.exchange import Outcome
from gateway.domain.route import LOCAL, Route
from gateway.errors import BodyTooLarge, CircuitOpen, GatewayError, Overloaded, UpstreamError
from gateway.providers import RequestFacts
from gateway.providers.stream_usage import UsageTaker, ask_for_usage
from gateway.proxy import secrets, wire
from gateway.proxy.answering import Answering
from gateway.proxy.attempts import Nobody, is_unacceptable
from gateway.proxy.capture import LARGE
from gateway.proxy.concurrency import check_size, take_seats
from gateway.proxy.house import Served
from gateway.proxy.outgoing import is_home, outgoing, plain_lines
from gateway.proxy.record import outcome_of
from gateway.proxy.retry import cause_of
from gateway.proxy.router import Attempt, Incoming, Plan
from gateway.upstreams import Head, Outgoing

log = logging.getLogger(__name__)

_NO_FACTS = RequestFacts()


class Exchanging(Answering):
    """The sink of an upstream's answer, and the source of the client's.

    Its life: `start` (or `refuse`), attempts until one gives a first byte, pieces, and one end: whole,
    failed, refused, or left by the client. After the end nothing more is written or recorded.
    """

    # --- the request ----------------------------------------------------------------------------------

    def start(self, body: bytes | None, length: int | None, scanned: RequestFacts | None = None) -> None:
        """`body` None: it follows through `upload`; `length` None: it came chunked; `scanned`: what was found in
        a huge body while it came."""
        self._length = length
        said = self._asked
        if said.error is not None:
            self.refuse(said.error)
            return
        house = self._house
        try:
            if len(house.active) > house.guard.max_in_flight:
                raise Overloaded("the gateway has as many requests under way as server.max_in_flight allows")
            facts = self._facts(body, scanned) if body else _NO_FACTS
            self._is_streamed = facts.streamed
            if house.switchboard.table.routes:
                plan = self._plan_along_routes(facts, body, scanned)
            else:
                whole = Attempt(upstream=said.place.provider, model=facts.model, body=body)
                plan = Plan(attempts=(whole,), task=said.task_hint, model=facts.model, original=body)
            self._plan = plan
            if body is not None and len(body) >= LARGE:
                self._recording.begin_aside(facts.model, body, plan, self._begun)
                return
            self._recording.begin(facts.model, body, plan)
        except GatewayError as error:
            self.refuse(error)
            return
        self._begun(None)

    def _plan_along_routes(self, facts: RequestFacts, body: bytes | None, scanned: RequestFacts | None) -> Plan:
        said, house = self._asked, self._house
        incoming = Incoming(
            provider=said.place.provider,
            model=facts.model,
            streamed=facts.streamed,
            tags=said.tags,
            key_id=said.key_id,
            task_hint=said.task_hint,
            route_name=said.route_name,
            body=body,
            is_chat=said.is_chat and scanned is None,
        )
        self._plan = plan = house.switchboard.plan(incoming, house.dice)
        if plan.route is not None:
            self._timeouts = plan.route.timeouts
            self._has_copies = plan.audited or plan.shadow is not None
            self._attempts = house.guard.attempts(plan, house.dice)
            if plan.route.limits is not None:
                self._check_size(plan.route, body)
        return plan

    def _facts(self, body: bytes, scanned: RequestFacts | None) -> RequestFacts:
        said = self._asked
        facts = said.provider.read_request(said.place.endpoint, body if scanned is None else b"{}")
        return scanned if scanned is not None and facts.model is None else facts

    def _begun(self, error: GatewayError | None) -> None:
        """The request is on disk, or it cannot be and must not be served."""
        if self._ended:  # the client left while it was written
            self._record_end(Outcome.CALLER_CANCELLED, complete=False)
            self._recording.observe(self._overhead, self._fell_back)
            return
        route, house = self._plan.route, self._house
        try:
            if error is not None:
                raise error
            if route is not None and route.limits is not None:
                self._seats = take_seats(house.guard.seats, route, self._asked.key_id)
        except GatewayError as refused:
            self.refuse(refused)
            return
        self._overhead = time.perf_counter() - self._started
        self._next_attempt()

    def _ask_copies(self) -> None:
        self._house.copied(Served(self.id, self._asked, self._plan, self._number, self._is_streamed))

    def _check_size(self, route: Route, body: bytes | None) -> None:
        check_size(route, len(body) if body is not None else self._length or 0)
        if body is None and route.limits is not None and route.limits.body_bytes is not None:
            self._upload_limit = route.limits.body_bytes

    def upload(self, piece: bytes, *, last: bool) -> None:
        """A piece of a streamed request body, or of what a tunnel's client sends."""
        if self._call is None or self._ended:
            return
        self._sent += len(piece)
        self._is_sent = last
        if self._sent > self._upload_limit:
            self._call.abort()
            self.refuse(BodyTooLarge("the body is larger than its route's limits.max_body_mb allows"))
            return
        self._wait(self._timeouts.idle if self._answering else self._timeouts.first_byte, time.perf_counter())
        self._call.write(piece)
        if last:
            self._call.write_end()

    # --- asking ---------------------------------------------------------------------------------------

    def _next_attempt(self) -> None:
        self._number += 1
        if self._attempts is not None:
            try:
                self._skip_to(self._attempts.choose(self._number))
            except CircuitOpen as error:
                self.refuse(error)
                return
        self._ask()

    def _skip_to(self, number: int) -> None:
        for skipped in self._plan.attempts[self._number : number]:
            self._failures = (*self._failures, f"{skipped.label}: circuit_open")
            self._fell_back = "circuit_open"
        self._number = number

    def _ask(self) -> None:
        house, timeouts = self._house, self._timeouts
        turn = self._turn = self._turn + 1
        self._call, self._takes_upload = None, False
        attempt = self._attempt = self._plan.attempts[self._number]
        upstream = attempt.upstream
        if self._attempts is not None:
            self._attempts.asked()
        self._wait(timeouts.first_byte, time.perf_counter())
        key = house.keys.get(upstream)
        self._blanker = None
        if key is not None:
            self._guard_our_key(key.encode())
        request = outgoing(house, self._asked, self._plan, attempt, self._length)
        if self._is_streamed:
            self._ask_for_usage(request, upstream)
        call = house.upstreams[upstream].send(request, self, connect_timeout=timeouts.connect)
        if turn != self._turn or self._ended:  # it failed or answered within `send`, and we are past it
            return
        self._call = call
        if self._paused:
            call.pause()
        if self._takes_upload:
            self._client.upload(ready=True)

    def _ask_for_usage(self, request: Outgoing, upstream: str) -> None:
        """Streams tell their usage only where it is asked for; what comes for that is taken out again."""
        said, self._taker = self._asked, None
        is_made_here = upstream != LOCAL and request.min_confidence > 0  # of a whole answer, which tells it anyway
        may_ask = is_made_here or self._house.may_ask_usage(upstream, said.place.endpoint)
        if may_ask and "content-encoding" not in said.headers_kept:
            body = ask_for_usage(request.body or b"")
            if body is not None:
                request.body, request.lines = body, plain_lines(said, request, upstream)
                request.length = None if request.length is None else len(body)
                self._taker = UsageTaker()

    def _guard_our_key(self, key: bytes) -> None:
        """A key of our own that goes there comes back to nobody."""
        self._blanker = secrets.Blanker([key])
        self._recording.hide(key)

    # --- its failures, and another try ----------------------------------------------------------------

    def on_upload(self, ready: bool) -> None:
        self._takes_upload = ready
        if self._call is not None:
            self._client.upload(ready)

    def on_failure(self, error: UpstreamError) -> None:
        if self._ended:
            return
        if self._held is not None:
            self._held.append(error)
            return
        if self._attempts is not None:
            self._attempts.failed(error)
        if self._answering:  # no second answer and no invented end after the first byte
            log.warning("exchange %s: %s", self.id, error)
            self._end(outcome_of(error), complete=False)
            self._client.cut(flush=self._framed)
        elif self._asks_again(cause_of(error), {}, error.code):
            pass
        elif self._may_fall_back():
            self._fall_back(error.code)
        else:
            self.refuse(error)

    def _is_another_wanted(self, head: Head, piece: bytes) -> bool:
        attempt = self._plan.attempts[self._number]
        home = not attempt.stripped and is_home(self._house, self._asked, attempt)
        return is_unacceptable(head, piece, stripped=attempt.stripped, home=home)

    def _goes_elsewhere(self, head: Head, piece: bytes, done: bool) -> bool:
        if self._attempts is not None:
            self._attempts.answered(head.status)
            if self._asks_again(head.status, head.first, f"http_{head.status}", done=done):
                return True
        if not self._may_fall_back() or not self._is_another_wanted(head, piece):
            return False
        if self._call is not None and not done:
            self._call.abort()
        self._fall_back(f"http_{head.status}" if head.status != 200 else "not_an_answer")
        return True

    def _may_send_again(self) -> bool:
        """A streamed body is gone once its first piece has left."""
        return self._sent == 0 or self._plan.attempts[self._number].body is not None

    def _asks_again(
        self, cause: int | str | None, headers: Mapping[bytes, bytes], reason: str, *, done: bool = True
    ) -> bool:
        """Whether the same target is asked once more, after a pause."""
        if self._attempts is None or not self._may_send_again():
            return False
        pause = self._attempts.again(self._number, cause, headers)
        now, total = time.perf_counter(), self._timeouts.total
        if pause is None or (total is not None and now + pause >= self._started + total):
            return False
        if self._call is not None and not done:
            self._call.abort()
        self._failures = (*self._failures, f"{self._plan.attempts[self._number].label}: {reason}")
        self._house.guard.retried(self._route_name, reason)
        self._turn, self._call = self._turn + 1, None
        self._wait(pause + self._timeouts.first_byte, now)
        self._timer = asyncio.get_running_loop().call_later(pause, self._ask)
        return True

    def _may_fall_back(self) -> bool:
        return self._number + 1 < len(self._plan.attempts) and self._may_send_again()

    def _fall_back(self, reason: str) -> None:
        self._fell_back = reason
        self._failures = (*self._failures, f"{self._plan.attempts[self._number].label}: {reason}")
        self._next_attempt()

    # --- time and back-pressure -----------------------------------------------------------------------

    def pause(self) -> None:
        """The client does not take more at the moment."""
        self._paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self._paused = False
        if self._answering and not self._ended:
            self._wait(self._timeouts.idle, time.perf_counter())
        if self._call is not None:
            self._call.resume()

    # --- the end --------------------------------------------------------------------------------------

    def client_gone(self, *, broken: bool) -> None:
        """The client left: the upstream is stopped and what there was is kept."""
        if self._ended:
            return
        if self._is_finished_alone():
            self._client = Nobody()
            if self._paused:
                self.resume()
            return
        left_in_order = self._tunnel and not broken
        if self._call is not None and left_in_order:
            self._call.write_end()
        elif self._call is not None:
            self._call.abort()
        self._recording.status = self._recording.status or 499
        self._end(Outcome.OK if left_in_order else Outcome.CALLER_CANCELLED, complete=left_in_order)

    @property
    def _route_name(self) -> str | None:
        return self._plan.route.name if self._plan.route is not None else None

    def _is_finished_alone(self) -> bool:
        """Whether the answer is awaited for the record: the route wants it, and the request is whole."""
        route = self._plan.route
        if route is None or route.on_client_gone == "cancel" or self._asked.head.offers_websocket:
            return False
        return self._is_sent or self._plan.original is not None

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error of our own in the provider's shape, unless an answer has begun."""
        if self._ended:
            return
        if self._answering:
            self._end(outcome_of(error), complete=False)
            self._client.cut(flush=False)
            return
        self._recording.refused()
        if not isinstance(error, UpstreamError) or isinstance(error, CircuitOpen):
            self._house.guard.rejected(self._route_name, error.code)
        body = self._asked.provider.error_body(error.status, error.code, str(error))
        reason = http.HTTPStatus(error.status).phrase.encode()
        headers = [(b"x-unprompt-error", error.code.encode())]
        if error.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % error.retry_after))
        head = wire.own_answer(error.status, reason, headers, body)
        self._recording.answered(head)
        self._recording.piece(body, time.perf_counter())
        self._end(outcome_of(error), complete=not isinstance(error, UpstreamError))
        sent = b"" if self._asked.head.method == b"HEAD" else body
        self._client.write(wire.answer_head(head, self._own_lines(), close=True) + sent)
        self._client.finish(keep_alive=False)
