"""One exchange on its way: plan, ask, hand each piece on as it comes. What is recorded of it: `record`."""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import time
from collections.abc import Mapping

from gateway.domain.exchange import Outcome
from gateway.domain.route import Route, Timeouts
from gateway.errors import BodyTooLarge, CircuitOpen, GatewayError, Overloaded, UpstreamError, UpstreamTimeout
from gateway.providers import WINDOW, RequestFacts
from gateway.providers.stream_usage import UsageTaker, ask_for_usage
from gateway.proxy import secrets, wire
from gateway.proxy.asked import Asked
from gateway.proxy.attempts import Attempts, Nobody, is_unacceptable
from gateway.proxy.capture import LARGE
from gateway.proxy.concurrency import check_size, take_seats
from gateway.proxy.house import Client, House
from gateway.proxy.outgoing import is_home, outgoing, plain_lines
from gateway.proxy.record import Recording, outcome_of
from gateway.proxy.retry import cause_of
from gateway.proxy.router import Attempt, Incoming, Plan
from gateway.upstreams import Call, Head, Outgoing

log = logging.getLogger(__name__)

_NEVER = float("inf")
_NO_PLAN = Plan(attempts=())
_NO_FACTS = RequestFacts()
_DEFAULT_TIMEOUTS = Timeouts()


class Exchanging:
    """The sink of an upstream's answer, and the source of the client's.

    Its life: `start` (or `refuse`), attempts until one gives a first byte, pieces, and one end: whole,
    failed, refused, or left by the client. After the end nothing more is written or recorded.
    """

    # how it begins; most exchanges never change most of this
    _attempts: Attempts | None = None
    _seats: tuple[str, ...] = ()
    _timer: asyncio.TimerHandle | None = None
    _plan = _NO_PLAN
    _attempt: Attempt | None = None
    _call: Call | None = None
    _timeouts = _DEFAULT_TIMEOUTS
    _failures: tuple[str, ...] = ()
    _fell_back: str | None = None
    _blanker: secrets.Blanker | None = None
    _taker: UsageTaker | None = None
    _held: list[tuple[Head | None, bytes, bool] | UpstreamError] | None = None
    _number, _turn = -1, 0
    _takes_upload = _paused = _is_sent = _is_streamed = False
    _answering = _ended = _chunked = _flows = _tunnel = _marked = False
    _framed = True
    _window = b"\n"
    _upload_limit = deadline = _NEVER
    _sent = _received = 0
    _overhead = 0.0

    def __init__(self, house: House, client: Client, asked: Asked) -> None:
        self._house, self._client, self._asked = house, client, asked
        self._started = started = time.perf_counter()
        self.id = exchange_id = house.new_id()
        self._recording = Recording(house, exchange_id, asked, started)
        self._close = not asked.head.keep_alive
        house.active.add(self)

    # --- the request -----------------------------------------------------------------------------

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

    # --- asking ----------------------------------------------------------------------------------

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
        if self._house.may_ask_usage(upstream, said.place.endpoint) and "content-encoding" not in said.headers_kept:
            body = ask_for_usage(request.body or b"")
            if body is not None:
                request.body, request.lines = body, plain_lines(said, request, upstream)
                request.length = None if request.length is None else len(body)
                self._taker = UsageTaker()

    def _guard_our_key(self, key: bytes) -> None:
        """A key of our own that goes there comes back to nobody."""
        self._blanker = secrets.Blanker([key])
        self._recording.hide(key)

    # --- the answer (Sink) -----------------------------------------------------------------------

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

    def on_interim(self, head: Head) -> None:
        """An answer before the answer (1xx), for a client that can know of them."""
        if not (self._ended or self._answering or self._asked.head.http_1_0 or self._blanker is not None):
            self._client.write(head.raw + b"\r\n\r\n")

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        if self._ended:
            return
        if self._held is not None:
            self._held.append((head, piece, done))
            return
        if self._flows and not done:
            self.on_chunk(b"%x\r\n%b\r\n" % (len(piece), piece), piece)
            return
        try:
            if head is None:
                self._take(None, piece, done)
            elif done and head.length is not None and self._is_plain(head):
                self._pass_whole(head, piece)
            else:
                self._take(head, piece, done)
        except Exception:
            log.exception("exchange %s failed inside the gateway", self.id)
            self._fail()

    def _fail(self) -> None:
        """A fault of ours ends this exchange, and no other."""
        if self._call is not None:
            self._call.abort()
        self.refuse(GatewayError("the gateway failed to relay this answer; its log says why"))

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        """A further piece of a stream: what `_take` does with one, in the fewest steps."""
        if self._ended or not self._flows or self._held is not None:
            self.on_data(None, piece, False)
            return
        try:
            now = time.perf_counter()
            self._wait(self._timeouts.idle, now)
            self._recording.piece(piece, now)
            is_whole = self._is_whole(piece)
            if self._taker is not None:
                framed = self._without_usage(framed, piece, self._taker)
            if is_whole and self._recording.is_large:
                self._hold_back(framed)
                return
            if is_whole:
                self._record_end(self._recording.outcome_by_status, complete=True)
            if framed:
                self._client.write(framed)
        except Exception:
            log.exception("exchange %s failed inside the gateway", self.id)
            self._fail()

    def _is_plain(self, head: Head) -> bool:
        """Whether nothing can become of this answer but that the client gets it as it is."""
        return (
            self._attempts is None
            and self._number + 1 >= len(self._plan.attempts)
            and self._taker is None
            and (self._blanker is None or head.status < 400)
        )

    def _pass_whole(self, head: Head, body: bytes) -> None:
        """A plain answer that came in one piece: what `_take` does with one, in the fewest steps."""
        now = time.perf_counter()
        if len(body) >= LARGE:
            self._take(head, body, True)
            return
        self._answering = True
        recording = self._recording
        recording.answered(head)
        if body:
            recording.piece(body, now)
        out = wire.answer_head(head, self._own_lines(), close=self._close) + body
        self._end(recording.outcome_by_status, complete=True, last_received=now)
        self._client.write(out)
        self._client.finish(keep_alive=not self._close)

    def _take(self, head: Head | None, piece: bytes, done: bool) -> None:
        now = time.perf_counter()
        out = b""
        if head is not None:
            if self._attempts is not None:
                self._attempts.answered(head.status)
                if self._asks_again(head.status, head.first, f"http_{head.status}", done=done):
                    return
            if self._may_fall_back() and self._is_another_wanted(head, piece):
                if self._call is not None and not done:
                    self._call.abort()
                self._fall_back(f"http_{head.status}" if head.status != 200 else "not_an_answer")
                return
            out = self._open(head)
        if piece or (done and (self._blanker is not None or self._taker is not None)):
            out += self._relayed(piece, now, done)
        if done:
            if self._chunked:
                out += b"0\r\n\r\n"
            if self._recording.is_large:
                self._finish_aside(out, now)
                return
            self._end(self._recording.outcome_by_status, complete=True, last_received=now)
        else:
            self._wait(self._timeouts.idle, now)
            if self._recording.streamed and self._is_whole(piece):
                if self._recording.is_large:
                    self._hold_back(out)
                    return
                self._record_end(self._recording.outcome_by_status, complete=True)
        if out:
            self._client.write(out)
        if done:
            self._client.finish(keep_alive=not self._close)

    def _finish_aside(self, out: bytes, received: float) -> None:
        """The last bytes of a large answer leave when a thread has written it down."""

        def written() -> None:
            if not self._ended:
                self._end(self._recording.outcome_by_status, complete=True, last_received=received)
                self._client.write(out)
                self._client.finish(keep_alive=not self._close)

        self._call, self.deadline = None, _NEVER
        outcome = self._recording.outcome_by_status
        self._recording.end_aside(outcome, self._attempt, self._failures, written)

    def _hold_back(self, out: bytes) -> None:
        """What tells the client that a large stream is whole leaves when a thread has written the stream down. What
        comes from the upstream meanwhile waits behind it."""
        held: list[tuple[Head | None, bytes, bool] | UpstreamError] = []
        self._held, self.deadline = held, _NEVER
        if self._call is not None:
            self._call.pause()

        def written() -> None:
            self._held = None
            if self._ended:
                return
            self._wait(self._timeouts.idle, time.perf_counter())
            self._client.write(out)
            if self._call is not None and not self._paused:
                self._call.resume()
            for one in held:
                if isinstance(one, UpstreamError):
                    self.on_failure(one)
                else:
                    self.on_data(*one)

        outcome = self._recording.outcome_by_status
        self._recording.end_aside(outcome, self._attempt, self._failures, written)

    @staticmethod
    def _without_usage(framed: bytes, piece: bytes, taker: UsageTaker) -> bytes:
        """The piece as a chunk, without what the client did not ask for."""
        kept = taker.feed(piece)
        if kept is piece:
            return framed
        return b"%x\r\n%b\r\n" % (len(kept), kept) if kept else b""

    def _relayed(self, piece: bytes, now: float, done: bool) -> bytes:
        """A piece as it leaves for the client."""
        if self._tunnel:
            self._received += len(piece)
            return piece
        if self._blanker is not None:
            piece = self._blanker.feed(piece, last=done)
            if not piece:
                return b""
        if piece:
            self._recording.piece(piece, now)
        if self._taker is not None:
            piece = self._taker.feed(piece) + (self._taker.close() if done else b"")
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked and piece else piece

    def _is_whole(self, piece: bytes) -> bool:
        """Whether the client may take the stream for whole now: its last event has begun, and a line is full."""
        if not self._marked:
            window = self._window + piece
            if not self._asked.provider.ends_stream(window):
                self._window = window[-WINDOW:]
                return False
            self._marked = True
        return self._marked and piece.endswith((b"\n", b"\r"))

    def _is_another_wanted(self, head: Head, piece: bytes) -> bool:
        attempt = self._plan.attempts[self._number]
        home = is_home(self._house, self._asked, attempt)
        return is_unacceptable(head, piece, stripped=attempt.stripped, home=home)

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

    def _open(self, head: Head) -> bytes:
        self._answering = True
        self._recording.answered(head)
        self._tunnel = head.status == 101
        if self._tunnel:
            return wire.answer_head(head, self._own_lines())
        bodiless = self._asked.head.method == b"HEAD" or head.status in (204, 304)
        if not bodiless and head.length is None:
            self._chunked = self._framed = not self._asked.head.http_1_0
            self._close = self._close or self._asked.head.http_1_0
        if head.status < 400:
            self._blanker = None  # an answer, not an error that quotes the request
        if not self._recording.streamed or head.length is not None or b"content-encoding" in head.first:
            self._taker = None  # nothing that it could read, or whose length it could change
        self._flows = self._chunked and self._recording.streamed and self._blanker is None
        return wire.answer_head(head, self._own_lines(), chunked=self._chunked, close=self._close)

    def _own_lines(self) -> bytes:
        attempt = self._attempt
        target = b"" if attempt is None else _target_line(attempt.label, attempt.stripped)
        return b"\r\nx-unprompt-exchange: " + self.id.encode() + target

    # --- time and back-pressure --------------------------------------------------------------------

    def _wait(self, seconds: float, now: float) -> None:
        total = self._timeouts.total
        self.deadline = now + seconds if total is None else min(now + seconds, self._started + total)

    def tick(self, now: float) -> None:
        """Called about every quarter of a second; `now` as `time.perf_counter()`."""
        if now <= self.deadline or self._ended:
            return
        self.deadline = _NEVER
        if self._paused:  # it is the client that does not take its answer
            self._client.cut(flush=False)
            return
        if self._call is not None:
            self._call.abort()
        waited = "next byte" if self._answering else "first byte"
        upstream = self._attempt.upstream if self._attempt else self._asked.place.provider
        self.on_failure(UpstreamTimeout(f"{upstream}: no {waited} within the route's time limit"))

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

    # --- the end ---------------------------------------------------------------------------------

    @property
    def is_tunnel(self) -> bool:
        """Whether it has no end of its own (a websocket)."""
        return self._tunnel

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

    def stop(self) -> None:
        """The gateway shuts down before the answer is whole."""
        if not self._ended:
            if self._call is not None:
                self._call.abort()
            self._end(Outcome.OK if self._tunnel else Outcome.INTERNAL, complete=self._tunnel)
            self._client.cut(flush=self._tunnel)

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

    def _record_end(self, outcome: Outcome, *, complete: bool) -> None:
        if self._recording.status == 101:
            self._recording.tunnelled(self._sent, self._received)
        self._recording.end(outcome, complete=complete, attempt=self._attempt, failures=self._failures)

    def _end(self, outcome: Outcome, *, complete: bool, last_received: float | None = None) -> None:
        self._ended, self._call = True, None  # a call knows its sink: left alone, only the collector frees the two
        self._house.active.discard(self)
        if self._attempts is not None or self._seats:
            self._let_go()
        try:
            self._record_end(outcome, complete=complete)
        except Exception:  # the client's answer is not held hostage
            log.exception("exchange %s: its end cannot be recorded", self.id)
        if last_received is not None:
            self._overhead += time.perf_counter() - last_received
        self._house.outbox.afterwards(self._observe)

    def _observe(self) -> None:
        self._recording.observe(self._overhead, self._fell_back)

    def _let_go(self) -> None:
        """Give back what others wait for."""
        if self._timer is not None:
            self._timer.cancel()
        if self._attempts is not None and not self._answering:
            self._attempts.left()
        for seat in self._seats:
            self._house.guard.seats.leave(seat)


@functools.lru_cache(1024)
def _target_line(label: str, stripped: bool) -> bytes:
    return b"\r\nx-unprompt-target: " + wire.header_value(label) + (b" stripped" if stripped else b" whole")
