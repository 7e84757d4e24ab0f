"""One exchange on its way: plan, record the begin, ask, hand each piece on as it comes, record the end."""

from __future__ import annotations

import http
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from gateway.domain.exchange import Begin, End, Outcome, Usage
from gateway.domain.price import PriceBook
from gateway.domain.route import LOCAL, Timeouts
from gateway.encoding import decoded
from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.providers import Provider, RequestFacts, ResponseFacts
from gateway.proxy import wire
from gateway.proxy.capture import Capture, blank_out, kept_headers, key_id
from gateway.proxy.router import Attempt, Incoming, Plan, Switchboard
from gateway.upstreams import Call, Head, Headers, Outgoing, Upstream

log = logging.getLogger(__name__)


class Client(Protocol):
    """The client's connection, as far as an exchange needs it."""

    def write(self, data: bytes) -> None: ...
    def finish(self, *, keep_alive: bool) -> None: ...
    def cut(self) -> None: ...
    def upload(self, ready: bool) -> None: ...


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One finished exchange, for metrics. Durations in seconds."""

    begin: Begin
    end: End
    operation: str
    outcome: Outcome
    overhead: float
    fallback: str | None


class House(msgspec.Struct, kw_only=True, eq=False):
    """What all exchanges of a process share. `switchboard` is replaced whole on a flip."""

    default_provider: str
    prefixes: Mapping[str, bytes]
    providers: Mapping[str, Provider]
    keys: Mapping[str, str]
    upstreams: Mapping[str, Upstream]
    prices: PriceBook
    capture: Capture
    switchboard: Switchboard
    new_id: Callable[[], str]
    dice: Callable[[], float]
    observe: Callable[[Seen], None]
    record_bodies: bool = True
    record_bytes: int = 16 * 1024 * 1024
    active: set[Exchanging] = msgspec.field(default_factory=set)


class Exchanging:
    """The sink of an upstream's answer, and the source of the client's."""

    def __init__(self, house: House, client: Client, head: wire.RequestHead) -> None:
        self._house, self._client, self._head = house, client, head
        self._started = time.perf_counter()
        self.id = house.new_id()
        self._provider: Provider = house.providers[house.default_provider]
        self._place = wire.Place(house.default_provider, b"", "")
        self._secrets: list[bytes] = []
        self._begin: Begin | None = None
        self._log = head.header(b"x-unprompt-log") or b""
        self._plan = Plan(attempts=())
        self._number = -1
        self._attempt: Attempt | None = None
        self._call: Call | None = None
        self._timeouts = Timeouts()
        self.deadline = float("inf")
        self._failures: list[str] = []
        self._status = 0
        self._answer_headers: Headers = []
        self._streamed = self._chunked = self._answering = self._ended = self._whole = False
        self._close = not head.keep_alive
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._first_piece: float | None = None
        self._overhead = 0.0
        self._waiting_since = 0.0

    # --- the request -----------------------------------------------------------------------------

    def start(self, body: bytes | None, length: int | None, *, has_body: bool) -> None:
        """`body` None: it follows through `upload`; `length` None: chunked."""
        self._house.active.add(self)
        try:
            self._place = wire.locate(self._head.target, self._house.prefixes, self._house.default_provider)
            self._provider = self._house.providers[self._place.provider]
            self._secrets = wire.secrets(self._head.headers, self._head.target, self._provider.credentials)
            facts = self._provider.read_request(self._place.endpoint, body) if body else RequestFacts()
            incoming = self._incoming(facts, body)
            self._plan = self._house.switchboard.plan(incoming, self._house.dice)
            self._timeouts = self._plan.route.timeouts if self._plan.route else Timeouts()
            self._record_begin(incoming)
        except GatewayError as error:
            self.refuse(error)
            return
        self._length, self._has_body = length, has_body
        self._next_attempt()

    def _incoming(self, facts: RequestFacts, body: bytes | None) -> Incoming:
        header = self._head.header
        hint, route = header(b"x-unprompt-task"), header(b"x-unprompt-route")
        return Incoming(
            provider=self._place.provider,
            model=facts.model,
            streamed=facts.streamed,
            tags=wire.tags(header(b"x-unprompt-tags")),
            key_id=key_id(self._secrets),
            task_hint=hint.decode("utf-8", "replace")[:128] if hint else None,
            route_name=route.decode("utf-8", "replace") if route else None,
            body=body,
        )

    def _record_begin(self, incoming: Incoming) -> None:
        body = incoming.body or b""
        kept = self._kept(body[: self._house.record_bytes])
        self._begin = Begin(
            id=self.id,
            started_at=time.time(),
            method=self._head.method.decode("latin-1"),
            endpoint=blank_out(self._place.endpoint.encode(), self._secrets).decode(),
            provider=self._place.provider,
            route=self._plan.route.name if self._plan.route else None,
            task=self._plan.task,
            task_hint=incoming.task_hint,
            model_requested=incoming.model,
            key_id=incoming.key_id,
            tags=incoming.tags,
            request_headers=kept_headers(self._head.headers),
            request=kept,
            request_truncated=incoming.body is None or len(kept) < len(body),
        )
        if self._log != b"off":
            self._house.capture.begin(self._begin)

    def _kept(self, data: bytes) -> bytes:
        """What is recorded of a body: nothing, or everything but keys."""
        wanted = self._house.record_bodies and self._log not in (b"off", b"metadata")
        return blank_out(data, self._secrets) if wanted else b""

    def upload(self, piece: bytes, *, last: bool) -> None:
        """A piece of a streamed request body."""
        if self._call is not None and not self._ended:
            self._call.write(piece)
            if last:
                self._call.write_end()

    # --- asking ----------------------------------------------------------------------------------

    def _next_attempt(self) -> None:
        self._number += 1
        attempt = self._attempt = self._plan.attempts[self._number]
        upstream = self._house.upstreams[attempt.upstream]
        now = time.perf_counter()
        self._overhead += now - (self._waiting_since or self._started)
        self._waiting_since = now
        self.deadline = now + self._timeouts.first_byte
        if self._timeouts.total is not None:
            self.deadline = min(self.deadline, self._started + self._timeouts.total)
        self._call = upstream.send(
            Outgoing(
                method=self._head.method,
                path=self._path(attempt),
                headers=self._headers_for(attempt),
                body=attempt.body,
                length=self._length,
                has_body=self._has_body,
                model=attempt.model,
                text=attempt.text,
                streamed=attempt.streamed,
                wants_usage=attempt.wants_usage,
                min_confidence=attempt.min_confidence,
            ),
            self,
            connect_timeout=self._timeouts.connect,
        )

    def _path(self, attempt: Attempt) -> bytes:
        if attempt.upstream in (self._place.provider, LOCAL):
            return self._place.path
        rest = self._place.path[len(self._house.prefixes[self._place.provider]) :]
        return self._house.prefixes[attempt.upstream] + rest

    def _headers_for(self, attempt: Attempt) -> Headers:
        """The client's key goes to the provider that the client called, and to nobody else."""
        key = self._house.keys.get(attempt.upstream)
        if attempt.upstream == self._place.provider and key is None:
            return wire.forwarded(self._head.headers)
        headers = wire.forwarded(self._head.headers, without=self._provider.credentials)
        if key is not None:
            headers.append(self._house.providers[attempt.upstream].key_header(key))
        return headers

    # --- the answer (Sink) -----------------------------------------------------------------------

    def on_upload(self, ready: bool) -> None:
        self._client.upload(ready)

    def on_failure(self, error: UpstreamError) -> None:
        if self._ended:
            return
        if self._answering:  # no second answer and no invented end after the first byte
            log.warning("exchange %s: %s", self.id, error)
            self._end(_outcome_of(error), complete=False)
            self._client.cut()
        elif self._may_fall_back():
            self._fall_back(error.code)
        else:
            self.refuse(error)

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        if self._ended:
            return
        now = time.perf_counter()
        if head is not None:
            if self._is_unacceptable(head.status) and self._may_fall_back():
                if self._call is not None and not done:
                    self._call.abort()
                self._fall_back(f"http_{head.status}")
                return
            out = self._open(head, done)
        else:
            out = b""
        self.deadline = now + self._timeouts.idle
        if self._timeouts.total is not None:
            self.deadline = min(self.deadline, self._started + self._timeouts.total)
        if piece:
            self._first_piece = self._first_piece or now
            self._keep(piece)
            out += b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece
        if done:
            out += b"0\r\n\r\n" if self._chunked else b""
            self._end(self._outcome(), complete=True, last_received=now)
        elif self._streamed and self._provider.ends_stream(piece):
            self._end(self._outcome(), complete=True, last_received=now, final=False)
        if out:
            self._client.write(out)
        if done:
            self._client.finish(keep_alive=not self._close)

    def _is_unacceptable(self, status: int) -> bool:
        """An answer for which the fallback is asked instead: any error of a target that got other bytes
        than the client sent, and what a plain target answers when it is down, overloaded or gone."""
        attempt = self._attempt
        if attempt is not None and attempt.stripped:
            return status >= 400
        return status >= 500 or status in (404, 429)

    def _may_fall_back(self) -> bool:
        has_next = self._number + 1 < len(self._plan.attempts)
        return has_next and self._plan.attempts[self._number].body is not None

    def _fall_back(self, reason: str) -> None:
        self._failures.append(f"{self._plan.attempts[self._number].label}: {reason}")
        self._next_attempt()

    def _open(self, head: Head, done: bool) -> bytes:
        self._answering = True
        self._status, self._answer_headers = head.status, head.headers
        content_type = next((v for n, v in head.headers if n.lower() == b"content-type"), b"")
        self._streamed = content_type.lower().startswith(b"text/event-stream")
        bodiless = self._head.method == b"HEAD" or head.status in (204, 304)
        if not bodiless and head.length is None:
            self._chunked = not self._head.http_1_0
            self._close = self._close or self._head.http_1_0
        return wire.answer_head(head, self._own_headers(), chunked=self._chunked, close=self._close)

    def _own_headers(self) -> Headers:
        headers = [(b"x-unprompt-exchange", self.id.encode())]
        if self._attempt is not None:
            form = b"stripped" if self._attempt.stripped else b"whole"
            headers.append((b"x-unprompt-target", self._attempt.label.encode("latin-1", "replace") + b" " + form))
        return headers

    def _keep(self, piece: bytes) -> None:
        self._body_bytes += len(piece)
        if self._body_bytes <= self._house.record_bytes:
            self._body.append(piece)

    # --- the end ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Called about every quarter of a second; `now` as `time.perf_counter()`."""
        if now > self.deadline and not self._ended:
            self.deadline = float("inf")
            if self._call is not None:
                self._call.abort()
            waited = "first byte" if not self._answering else "next byte"
            self.on_failure(UpstreamTimeout(f"{self._place.provider}: no {waited} within the route's time limit"))

    def client_gone(self) -> None:
        """The client left: the upstream is stopped and what there was is kept."""
        if not self._ended:
            if self._call is not None:
                self._call.abort()
            self._status = self._status or 499
            self._end(Outcome.CALLER_CANCELLED, complete=False)
        self._house.active.discard(self)

    def pause(self) -> None:
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        if self._call is not None:
            self._call.resume()

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error of our own in the provider's shape."""
        body = self._provider.error_body(error.status, error.code, str(error))
        reason = http.HTTPStatus(error.status).phrase.encode()
        head = wire.own_answer(error.status, reason, [(b"x-unprompt-error", error.code.encode())], body)
        self._status, self._answering = error.status, True
        self._body = [body]
        outcome = _outcome_of(error)
        if self._begin is not None:
            self._end(outcome, complete=not isinstance(error, UpstreamError))
        self._ended = True
        self._close = True
        self._client.write(wire.answer_head(head, self._own_headers(), chunked=False, close=True) + body)
        self._client.finish(keep_alive=False)
        self._house.active.discard(self)

    def _outcome(self) -> Outcome:
        if self._status >= 500:
            return Outcome.UPSTREAM_HTTP_5XX
        return Outcome.UPSTREAM_HTTP_4XX if self._status >= 400 else Outcome.OK

    def _end(
        self, outcome: Outcome, *, complete: bool, last_received: float | None = None, final: bool = True
    ) -> None:
        """Record the end. `final` False: the answer is whole for the client, the connection's end follows."""
        self._ended = final
        if final:
            self._house.active.discard(self)
        if self._begin is None:
            return
        if self._whole:  # the client had its whole answer already; how the connection ended is no news
            outcome, complete = self._outcome(), True
        now = time.perf_counter()
        raw = b"".join(self._body)
        truncated = self._body_bytes > len(raw)
        facts = self._facts(raw) if self._status < 400 else ResponseFacts()
        attempt = self._attempt
        end = End(
            id=self.id,
            target=attempt.label if attempt else None,
            stripped=attempt.stripped if attempt else False,
            status=self._status,
            streamed=self._streamed,
            complete=complete,
            error_type=None if outcome is Outcome.OK else outcome.value,
            latency_ms=(now - self._started) * 1000,
            ttft_ms=(self._first_piece - self._started) * 1000 if self._first_piece and self._streamed else None,
            model_served=facts.model,
            finish_reason=facts.finish_reason,
            usage=facts.usage,
            cost_usd=self._cost(facts),
            attempts=self._failures,
            response_headers=kept_headers(self._answer_headers),
            response=self._kept(raw),
            response_truncated=truncated,
        )
        if self._log != b"off" and not self._whole:
            self._house.capture.end(end)
        self._whole = not final
        if final:
            self._observe(end, outcome, now - (last_received or now))

    def _facts(self, raw: bytes) -> ResponseFacts:
        coding = next(
            (v.decode("latin-1") for n, v in self._answer_headers if n.lower() == b"content-encoding"), None
        )
        plain = raw if coding is None else decoded(raw, coding, limit=self._house.record_bytes)
        if not plain:
            return ResponseFacts()
        facts = self._provider.read_response(plain, streamed=self._streamed)
        if facts.usage.source == "none" and self._provider.operation(self._place.endpoint) != "other":
            return msgspec.structs.replace(facts, usage=self._estimate(plain))
        return facts

    def _estimate(self, plain: bytes) -> Usage:
        """Four bytes a token; a stream's events carry about one token each."""
        request = len(self._begin.request) if self._begin else 0
        made = plain.count(b"\ndata:") if self._streamed else len(plain) // 4
        return Usage(input=request // 4, output=max(made, 1), source="estimated")

    def _cost(self, facts: ResponseFacts) -> float | None:
        if self._attempt is None or self._status >= 400:
            return None
        price = self._house.prices.cost
        upstream, usage = self._attempt.upstream, facts.usage
        cost = price(upstream, facts.model, usage)
        return cost if cost is not None else price(upstream, self._attempt.model, usage)

    def _observe(self, end: End, outcome: Outcome, after: float) -> None:
        if self._begin is None:
            return
        fallback = self._failures[-1].rpartition(": ")[2] if self._failures else None
        operation = self._provider.operation(self._place.endpoint)
        self._house.observe(
            Seen(begin=self._begin, end=end, operation=operation, outcome=outcome,
                 overhead=self._overhead + after, fallback=fallback)
        )  # fmt: skip


def _outcome_of(error: GatewayError) -> Outcome:
    if isinstance(error, UpstreamTimeout):
        return Outcome.UPSTREAM_TIMEOUT
    if isinstance(error, UpstreamUnreachable):
        return Outcome.UPSTREAM_CONNECT
    if isinstance(error, UpstreamError):
        return Outcome.UPSTREAM_TRUNCATED
    return Outcome.CALLER_ERROR if error.status < 500 else Outcome.INTERNAL
