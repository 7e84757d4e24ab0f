"""What is recorded and counted of one exchange; the relay itself is in `forward`.

Nothing here may hold up or break the relay: what cannot be read is None, and keys are blanked out first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.domain.exchange import Begin, End, Outcome, Usage
from gateway.domain.price import PriceBook
from gateway.encoding import decoded
from gateway.errors import (
    BodyTooLarge,
    CircuitOpen,
    GatewayError,
    OutOfSockets,
    Overloaded,
    StoreUnavailable,
    TooManyRequests,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.joining import join
from gateway.providers import ResponseFacts
from gateway.proxy.asked import Asked
from gateway.proxy.capture import LARGE, Capture, kept_headers
from gateway.proxy.router import Attempt, Plan
from gateway.proxy.secrets import blank_out, blank_text
from gateway.stores.journal import Record
from gateway.upstreams import Head

log = logging.getLogger(__name__)

_NO_FACTS = ResponseFacts()
_NO_PLAN = Plan(attempts=())


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One finished exchange, for metrics. Durations in seconds."""

    begin: Begin
    end: End
    operation: str
    outcome: Outcome
    overhead: float
    fallback: str | None


class Books(Protocol):
    """What recording needs of the house."""

    capture: Capture
    prices: PriceBook
    record_bodies: bool
    record_bytes: int

    @property
    def observe(self) -> Callable[[Seen], None]: ...


class Recording:
    """Collects what passes, and writes the two records: `begin` before the upstream is asked, `end` before
    the last byte leaves."""

    # how it begins
    _begin: Begin | None = None
    _end: End | None = None
    _is_recorded = _is_begun_aside = False
    _answer: Head | None = None
    _request_bytes = passed = _ended_at = status = 0
    _first_piece: float | None = None
    _tunnel: str | None = None
    streamed = False
    copy_of: str | None = None

    def __init__(self, books: Books, exchange_id: str, asked: Asked, started: float) -> None:
        self._books, self._id, self._asked, self._started = books, exchange_id, asked, started
        self._secrets = asked.secrets
        self._pieces: list[bytes] = []

    # --- the request -----------------------------------------------------------------------------

    def begin(self, model: str | None, body: bytes | None, plan: Plan) -> None:
        """Note the request, on disk unless the client does not want that. `body` None: it is not seen.

        Raises:
            StoreUnavailable: it cannot be written, and the operator chose `fail_closed`.
        """
        begin = self._note_request(model, body, plan)
        if self._asked.log != "off":
            self._books.capture.begin(begin)
            self._is_recorded = True

    def begin_aside(
        self, model: str | None, body: bytes, plan: Plan, then: Callable[[StoreUnavailable | None], None]
    ) -> None:
        """The same for a large body, by a thread: `then` is called when it is written down, or cannot be."""

        def written(begin: Record | StoreUnavailable) -> None:
            if isinstance(begin, StoreUnavailable):
                then(begin)
                return
            self._is_recorded = self._is_begun_aside = True
            refused = None
            if isinstance(begin, Begin):  # without its body, so that the end has something to belong to here
                try:
                    self._books.capture.begin(msgspec.structs.replace(begin, request=b"", request_truncated=False))
                except StoreUnavailable as error:
                    refused = error
            then(refused)

        if self._asked.log == "all" and self._books.record_bodies:
            self._books.capture.aside(lambda: self._note_request(model, body, plan), written)
        else:
            self.begin(model, body, plan)
            then(None)

    def refused(self) -> None:
        """The request was turned down before it was read: what is known of it is noted all the same.

        Never raises.
        """
        if self._begin is not None:
            return
        try:
            begin = self._note_request(None, None, _NO_PLAN)
            if self._asked.log != "off":
                self._is_recorded = self._books.capture.note(begin)
        except Exception:  # it may be turned down because its record cannot be made
            log.exception("exchange %s: a request that is turned down cannot be recorded", self._id)

    def _note_request(self, model: str | None, body: bytes | None, plan: Plan) -> Begin:
        asked = self._asked
        kept, headers, truncated = b"", asked.headers_kept, body is None
        if body:
            self._request_bytes = len(body)
            coding = headers.get("content-encoding")
            if coding is None:
                kept, encoding_kept = self._keep(body, cut=False), True
            else:
                plain = decoded(body, coding, limit=self._books.record_bytes)
                kept, encoding_kept = self._clean(body, plain, cut=False)
            if not encoding_kept:
                headers = {name: value for name, value in headers.items() if name != "content-encoding"}
            truncated = len(kept) < len(body) and encoding_kept
        self._begin = begin = Begin(
            id=self._id,
            started_at=time.time(),
            method=asked.method,
            endpoint=asked.endpoint,
            provider=asked.place.provider,
            route=None if plan.route is None else plan.route.name,
            task=plan.task,
            task_hint=asked.task_hint,
            model_requested=None if model is None else blank_text(model, self._secrets),
            key_id=asked.key_id,
            tags=asked.tags_kept,
            request_headers=headers,
            request=kept,
            request_truncated=truncated,
            copy_of=self.copy_of,
        )
        return begin

    def hide(self, secret: bytes) -> None:
        """Keep a key of our own out of what is recorded, too."""
        if secret not in self._secrets:
            self._secrets = (*self._secrets, secret)

    def _keep(self, data: bytes, *, cut: bool) -> bytes:
        """What may be kept of a body that is not encoded. `cut`: it may end in the middle of a key."""
        books = self._books
        if not data or not books.record_bodies or self._asked.log != "all":
            return b""
        if len(data) > books.record_bytes:
            data, cut = data[: books.record_bytes], True
        return blank_out(data, self._secrets, cut=cut) if self._secrets else data

    def _clean(self, data: bytes, plain: bytes | None, *, cut: bool) -> tuple[bytes, bool]:
        """What may be kept of an encoded body, and whether that is still in its content encoding.

        `plain`: the same without its encoding, None when it cannot be read. A compressed body could hide a
        key: one that cannot be read is not kept, and one with a key in it is kept plain, the key blanked out.
        """
        if not data or not self._books.record_bodies or self._asked.log != "all" or not self._secrets:
            return self._keep(data, cut=cut), True
        if plain is data:
            return self._keep(data, cut=cut), True
        if plain is None:
            return b"", True
        clean = blank_out(plain, self._secrets, cut=cut)
        return (data[: self._books.record_bytes], True) if clean == plain else (clean, False)

    # --- the answer ------------------------------------------------------------------------------

    def answered(self, head: Head) -> None:
        """The answer's head is there."""
        self._answer, self.status = head, head.status
        kind = head.first.get(b"content-type")
        if kind is not None and kind != b"application/json":
            self.streamed = kind.lower().startswith(b"text/event-stream")

    def piece(self, piece: bytes, now: float) -> None:
        """A piece of the answer's body; `now` as `time.perf_counter()`."""
        if self._first_piece is None:
            self._first_piece = now
        self.further(piece)

    def further(self, piece: bytes) -> None:
        """The same for a piece that is not the first."""
        before, limit = self.passed, self._books.record_bytes
        passed = self.passed = before + len(piece)
        if passed <= limit:
            self._pieces.append(piece)
        elif before < limit:
            self._pieces.append(piece[: limit - before])

    def tunnelled(self, sent: int, received: int) -> None:
        """How many bytes went through a tunnel in each direction, instead of a body."""
        self._tunnel = f"sent={sent}, received={received}"

    # --- the end ---------------------------------------------------------------------------------

    @property
    def outcome_by_status(self) -> Outcome:
        """How the exchange ended, if it ended well."""
        if self.status >= 500:
            return Outcome.UPSTREAM_HTTP_5XX
        return Outcome.UPSTREAM_HTTP_4XX if self.status >= 400 else Outcome.OK

    def end(self, outcome: Outcome, *, complete: bool, attempt: Attempt | None, failures: tuple[str, ...]) -> None:
        """Record the end, or record it again where more has passed since: the last one counts."""
        if self._begin is None:
            return
        if self._end is not None:
            if self.passed == self._ended_at:
                return
            if self._end.complete:  # the client had its answer: the rest is an epilogue
                outcome, complete = self.outcome_by_status, True
        self._ended_at = self.passed
        self._end = end = self._make_end(outcome, complete, attempt, failures)
        if self._is_recorded:
            self._books.capture.end(end)

    @property
    def is_large(self) -> bool:
        """Whether writing the answer down would hold up everybody else."""
        size = min(self.passed, self._books.record_bytes)
        return size >= LARGE and self._is_recorded and self.passed != self._ended_at

    def end_aside(
        self, outcome: Outcome, attempt: Attempt | None, failures: tuple[str, ...], then: Callable[[], None]
    ) -> None:
        """`end` of a large answer that is whole, by a thread: `then` is called when it is written down."""

        def written(end: Record | StoreUnavailable) -> None:
            if isinstance(end, End):
                self._end, self._ended_at = end, self.passed
            then()

        begin = self._begin
        if begin is not None and not self._is_begun_aside:  # an end belongs to what stands before it
            self._books.capture.aside(lambda: begin, lambda _: None)
        self._books.capture.aside(lambda: self._make_end(outcome, True, attempt, failures), written)

    def _make_end(
        self, outcome: Outcome, complete: bool, attempt: Attempt | None, failures: tuple[str, ...]
    ) -> End:
        pieces, answer, secrets = self._pieces, self._answer, self._secrets
        raw = pieces[0] if len(pieces) == 1 else b"".join(pieces) if self.passed < LARGE else join(pieces)
        headers = {} if answer is None else kept_headers(answer.first, secrets)
        cut, coding = self.passed > len(raw), headers.get("content-encoding")
        plain: bytes | None = raw
        if coding is None:
            kept, encoding_kept = self._keep(raw, cut=cut or not complete), True
        else:
            plain = decoded(raw, coding, limit=self._books.record_bytes)
            kept, encoding_kept = self._clean(raw, plain, cut=cut or not complete)
            if not encoding_kept:
                del headers["content-encoding"]
        if self._tunnel is not None:
            headers["x-unprompt-tunnel-bytes"] = self._tunnel
        facts = self._facts(plain)
        if facts.failed and outcome is Outcome.OK:
            outcome = Outcome.OTHER  # status 200, and says that it is an error
        first, started = self._first_piece, self._started
        return End(
            id=self._id,
            target=None if attempt is None else blank_text(attempt.label, secrets),
            stripped=attempt is not None and attempt.stripped,
            status=self.status,
            streamed=self.streamed,
            complete=complete,
            error_type=None if outcome is Outcome.OK else outcome.value,
            latency_ms=(time.perf_counter() - started) * 1000,
            ttft_ms=(first - started) * 1000 if first is not None and self.streamed else None,
            model_served=None if facts.model is None else blank_text(facts.model, secrets),
            finish_reason=None if facts.finish_reason is None else blank_text(facts.finish_reason, secrets),
            usage=facts.usage,
            cost_usd=self._cost(facts, attempt),
            attempts=[blank_text(failure, secrets) for failure in failures] if failures else [],
            response_headers=headers,
            response=kept,
            response_truncated=cut or (encoding_kept and len(kept) < len(raw)),
        )

    def _facts(self, plain: bytes | None) -> ResponseFacts:
        if not 200 <= self.status < 300 or not plain or self._answer is None:
            return _NO_FACTS
        asked = self._asked
        kind = self._answer.first.get(b"content-type", b"json")
        if not self.streamed and kind != b"application/json":
            kind = kind.lower()
            if asked.operation != "other" and b"html" in kind:
                return ResponseFacts(failed=True)
            if b"json" not in kind:
                return _NO_FACTS
        facts = asked.provider.read_response(plain, streamed=self.streamed)
        if facts.usage.source == "none" and asked.operation != "other" and not facts.failed:
            return msgspec.structs.replace(facts, usage=self._estimate(plain))
        return facts

    def _estimate(self, plain: bytes) -> Usage:
        """Four bytes a token; a stream's events carry about one token each."""
        made = _count(plain, b"\ndata:") if self.streamed else len(plain) // 4
        return Usage(input=self._request_bytes // 4, output=max(made, 1), source="estimated")

    def _cost(self, facts: ResponseFacts, attempt: Attempt | None) -> float | None:
        if attempt is None or not 200 <= self.status < 300:
            return None
        price, usage = self._books.prices.cost, facts.usage
        cost = price(attempt.upstream, facts.model, usage)
        return cost if cost is not None else price(attempt.upstream, attempt.model, usage)

    @property
    def ended_as(self) -> tuple[Outcome, float | None]:
        """How it ended, and its cost in USD where that is known."""
        end = self._end
        if end is None:
            return Outcome.INTERNAL, None
        return Outcome.OK if end.error_type is None else Outcome(end.error_type), end.cost_usd

    def observe(self, overhead: float, fallback: str | None) -> None:
        """Count the exchange, once, after its end. `fallback`: why it went to a fallback, if it did."""
        begin, end = self._begin, self._end
        if begin is None or end is None:
            return
        counted = Outcome.OK if end.error_type is None else Outcome(end.error_type)
        self._books.observe(
            Seen(
                begin=begin,
                end=end,
                operation=self._asked.operation,
                outcome=counted,
                overhead=overhead,
                fallback=fallback,
            )
        )


def _count(data: bytes, text: bytes) -> int:
    """How often it stands there; in steps, between which other threads may run."""
    return sum(data.count(text, start, start + LARGE + len(text) - 1) for start in range(0, len(data), LARGE))


def outcome_of(error: GatewayError) -> Outcome:
    """How an exchange ended that ended in this error."""
    if isinstance(error, TooManyRequests | BodyTooLarge | Overloaded | CircuitOpen):
        return Outcome.POLICY_LIMIT
    if isinstance(error, UpstreamTimeout):
        return Outcome.UPSTREAM_TIMEOUT
    if isinstance(error, UpstreamUnreachable):
        return Outcome.UPSTREAM_CONNECT
    if isinstance(error, UpstreamError) and not isinstance(error, OutOfSockets):
        return Outcome.UPSTREAM_TRUNCATED
    return Outcome.CALLER_ERROR if error.status < 500 else Outcome.INTERNAL
