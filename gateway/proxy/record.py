"""What is recorded and counted of one exchange; the relay itself is in `forward`.

Nothing here may hold up or break the relay: what cannot be read is None, and keys are blanked out first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from gateway.domain.exchange import Begin, End, Outcome, Usage
from gateway.domain.price import PriceBook
from gateway.encoding import decoded
from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.providers import Provider, ResponseFacts
from gateway.proxy.capture import Capture, kept_headers
from gateway.proxy.router import Attempt, Incoming, Plan
from gateway.proxy.secrets import blank_out, blank_text
from gateway.proxy.wire import Place, RequestHead
from gateway.upstreams import Head

_LOG = {b"": "all", b"all": "all", b"on": "all", b"metadata": "metadata", b"off": "off"}


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


def wanted(head: RequestHead) -> str | None:
    """How much the client lets us record (`x-unprompt-log`): all, metadata, off; None: it is none of these."""
    return _LOG.get((head.header(b"x-unprompt-log") or b"").strip().lower())


class Recording:
    """Collects what passes, and writes the two records: `begin` before the upstream is asked, `end` before
    the last byte leaves."""

    def __init__(self, books: Books, exchange_id: str, head: RequestHead, started: float) -> None:
        self._books, self._id, self._head, self._started = books, exchange_id, head, started
        self._log = wanted(head) or "off"
        self._secrets: tuple[bytes, ...] = ()
        self._provider: Provider | None = None
        self._begin: Begin | None = None
        self._end: End | None = None
        self._is_recorded = False
        self._request_bytes = 0
        self._answer: Head | None = None
        self._pieces: list[bytes] = []
        self._kept = self._passed = self._ended_at = 0
        self._first_piece: float | None = None
        self._tunnel: str | None = None
        self.status = 0
        self.streamed = False

    # --- the request -----------------------------------------------------------------------------

    def begin(
        self, place: Place, provider: Provider, incoming: Incoming, plan: Plan, secrets: tuple[bytes, ...]
    ) -> None:
        """Note the request, on disk unless the client does not want that.

        Raises:
            StoreUnavailable: it cannot be written, and the operator chose `fail_closed`.
        """
        self._provider, self._secrets = provider, secrets
        self._note_request(place, incoming, plan)
        if self._log != "off" and self._begin is not None:
            self._books.capture.begin(self._begin)
            self._is_recorded = True

    def _note_request(self, place: Place, incoming: Incoming, plan: Plan) -> None:
        body = incoming.body or b""
        self._request_bytes = len(body)
        plain = self._plain(body, self._head.header(b"content-encoding"))
        kept, encoding_kept = self._clean(body, plain, cut=False)
        headers = kept_headers(self._head.first, self._secrets)
        if not encoding_kept:
            headers.pop("content-encoding", None)
        self._begin = Begin(
            id=self._id,
            started_at=time.time(),
            method=self._head.method.decode("latin-1"),
            endpoint=self._text(place.endpoint) or "",
            provider=place.provider,
            route=plan.route.name if plan.route else None,
            task=plan.task,
            task_hint=self._text(incoming.task_hint),
            model_requested=self._text(incoming.model),
            key_id=incoming.key_id,
            tags={blank_text(n, self._secrets): blank_text(v, self._secrets) for n, v in incoming.tags.items()},
            request_headers=headers,
            request=kept,
            request_truncated=incoming.body is None or (bool(body) and len(kept) < len(body) and encoding_kept),
        )

    def refused(self, place: Place, provider: Provider, secrets: tuple[bytes, ...]) -> None:
        """The request was turned down before it was read: what is known of it is noted all the same."""
        if self._begin is None:
            self._provider, self._secrets = provider, secrets
            self._note_request(place, Incoming(provider=place.provider, model=None, body=None), Plan(attempts=()))
            if self._log != "off" and self._begin is not None:
                self._is_recorded = self._books.capture.note(self._begin)

    def hide(self, secret: bytes) -> None:
        """Keep a key of our own out of what is recorded, too."""
        if secret not in self._secrets:
            self._secrets = (*self._secrets, secret)

    def _text(self, text: str | None) -> str | None:
        return text if text is None else blank_text(text, self._secrets)

    def _clean(self, data: bytes, plain: bytes | None, *, cut: bool) -> tuple[bytes, bool]:
        """What may be kept of a body, and whether that is still in its content encoding.

        `plain`: the same without its encoding, None when it cannot be read. A compressed body could hide a
        key: one that cannot be read is not kept, and one with a key in it is kept plain, the key blanked out.
        """
        limit = self._books.record_bytes
        if not data or not self._books.record_bodies or self._log != "all":
            return b"", True
        if plain is data or not self._secrets:
            kept = data[:limit]
            return blank_out(kept, self._secrets, cut=cut or len(kept) < len(data)), True
        if plain is None:
            return b"", True
        clean = blank_out(plain, self._secrets, cut=cut)
        return (data[:limit], True) if clean == plain else (clean, False)

    def _plain(self, data: bytes, coding: bytes | None) -> bytes | None:
        if coding is None or not data:
            return data
        return decoded(data, coding.decode("latin-1"), limit=self._books.record_bytes)

    # --- the answer ------------------------------------------------------------------------------

    def answered(self, head: Head) -> None:
        """The answer's head is there."""
        self._answer, self.status = head, head.status
        self.streamed = head.first.get(b"content-type", b"").lower().startswith(b"text/event-stream")

    def piece(self, piece: bytes, now: float) -> None:
        """A piece of the answer's body; `now` as `time.perf_counter()`."""
        if self._first_piece is None:
            self._first_piece = now
        self._passed += len(piece)
        room = self._books.record_bytes - self._kept
        if room > 0:
            self._pieces.append(piece if len(piece) <= room else piece[:room])
            self._kept += min(len(piece), room)

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

    def end(self, outcome: Outcome, *, complete: bool, attempt: Attempt | None, failures: list[str]) -> None:
        """Record the end, or record it again where more has passed since: the last one counts."""
        if self._begin is None or self._provider is None:
            return
        if self._end is not None and self._passed == self._ended_at:
            return
        if self._end is not None and self._end.complete:  # the client had its answer: the rest is an epilogue
            outcome, complete = self.outcome_by_status, True
        self._ended_at = self._passed
        self._end = end = self._make_end(self._provider, outcome, complete, attempt, failures)
        if self._is_recorded:
            self._books.capture.end(end)

    def _make_end(
        self, provider: Provider, outcome: Outcome, complete: bool, attempt: Attempt | None, failures: list[str]
    ) -> End:
        raw = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        coding = self._answer.first.get(b"content-encoding") if self._answer else None
        cut, plain = self._passed > len(raw), self._plain(raw, coding)
        kept, encoding_kept = self._clean(raw, plain, cut=cut or not complete)
        facts = self._facts(provider, plain)
        if facts.failed and outcome is Outcome.OK:
            outcome = Outcome.OTHER  # status 200, and says that it is an error
        first, started = self._first_piece, self._started
        return End(
            id=self._id,
            target=self._text(attempt.label) if attempt else None,
            stripped=attempt.stripped if attempt else False,
            status=self.status,
            streamed=self.streamed,
            complete=complete,
            error_type=None if outcome is Outcome.OK else outcome.value,
            latency_ms=(time.perf_counter() - started) * 1000,
            ttft_ms=(first - started) * 1000 if first is not None and self.streamed else None,
            model_served=self._text(facts.model),
            finish_reason=self._text(facts.finish_reason),
            usage=facts.usage,
            cost_usd=self._cost(facts, attempt),
            attempts=[blank_text(failure, self._secrets) for failure in failures],
            response_headers=self._answer_headers(encoding_kept),
            response=kept,
            response_truncated=cut or (encoding_kept and len(kept) < len(raw)),
        )

    def _answer_headers(self, encoding_kept: bool) -> dict[str, str]:
        headers = kept_headers(self._answer.first, self._secrets) if self._answer else {}
        if not encoding_kept:
            headers.pop("content-encoding", None)
        if self._tunnel is not None:
            headers["x-unprompt-tunnel-bytes"] = self._tunnel
        return headers

    def _facts(self, provider: Provider, plain: bytes | None) -> ResponseFacts:
        if not 200 <= self.status < 300 or not plain or self._answer is None or self._begin is None:
            return ResponseFacts()
        operation = provider.operation(self._begin.endpoint)
        kind = self._answer.first.get(b"content-type", b"json").lower()
        if operation != "other" and b"html" in kind:
            return ResponseFacts(failed=True)
        if not self.streamed and b"json" not in kind:
            return ResponseFacts()
        facts = provider.read_response(plain, streamed=self.streamed)
        if facts.usage.source == "none" and operation != "other" and not facts.failed:
            return msgspec.structs.replace(facts, usage=self._estimate(plain))
        return facts

    def _estimate(self, plain: bytes) -> Usage:
        """Four bytes a token; a stream's events carry about one token each."""
        made = plain.count(b"\ndata:") if self.streamed else len(plain) // 4
        return Usage(input=self._request_bytes // 4, output=max(made, 1), source="estimated")

    def _cost(self, facts: ResponseFacts, attempt: Attempt | None) -> float | None:
        if attempt is None or not 200 <= self.status < 300:
            return None
        price, usage = self._books.prices.cost, facts.usage
        cost = price(attempt.upstream, facts.model, usage)
        return cost if cost is not None else price(attempt.upstream, attempt.model, usage)

    def observe(self, overhead: float, failures: list[str]) -> None:
        """Count the exchange, once, after its end."""
        begin, end = self._begin, self._end
        if begin is None or end is None or self._provider is None:
            return
        counted = Outcome.OK if end.error_type is None else Outcome(end.error_type)
        fallback = failures[-1].rpartition(": ")[2] if failures else None
        operation = self._provider.operation(begin.endpoint)
        self._books.observe(
            Seen(begin=begin, end=end, operation=operation, outcome=counted, overhead=overhead, fallback=fallback)
        )


def outcome_of(error: GatewayError) -> Outcome:
    """How an exchange ended that ended in this error."""
    if isinstance(error, UpstreamTimeout):
        return Outcome.UPSTREAM_TIMEOUT
    if isinstance(error, UpstreamUnreachable):
        return Outcome.UPSTREAM_CONNECT
    if isinstance(error, UpstreamError):
        return Outcome.UPSTREAM_TRUNCATED
    return Outcome.CALLER_ERROR if error.status < 500 else Outcome.INTERNAL
