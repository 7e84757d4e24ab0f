"""One exchange from its answer's first byte to its end: each piece is handed on as it comes, and the answer is
written down before the client can take it for whole. How it is asked for: `forward`."""

from __future__ import annotations

import asyncio
import logging
import time

from gateway.domain.exchange import Outcome
from gateway.domain.route import Timeouts
from gateway.errors import GatewayError, UpstreamError, UpstreamTimeout
from gateway.providers import WINDOW
from gateway.providers.stream_usage import UsageTaker
from gateway.proxy import secrets, wire
from gateway.proxy.asked import Asked
from gateway.proxy.attempts import Attempts
from gateway.proxy.capture import LARGE
from gateway.proxy.house import Client, House
from gateway.proxy.record import Recording
from gateway.proxy.router import Attempt, Plan
from gateway.upstreams import Call, Head

log = logging.getLogger(__name__)

NEVER = float("inf")
_NO_PLAN = Plan(attempts=())
_DEFAULT_TIMEOUTS = Timeouts()


def _has_ended(window: bytes) -> bool:
    """What `ends_stream` says once it has said so."""
    return True


class Answering:
    """The half of an exchange that gets its answer; `Exchanging` adds the half that asks.

    They are one object, since each call between two would cost on the path of every chunk.
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
    _has_copies = False
    _early: Head | None = None
    _held: list[tuple[Head | None, bytes, bool] | UpstreamError] | None = None
    _number, _turn = -1, 0
    _takes_upload = _paused = _is_sent = _is_streamed = False
    _answering = _ended = _chunked = _may_flow = _flows = _tunnel = False
    _framed = True
    _window = b"\n"
    _upload_limit = deadline = NEVER
    _sent = _received = _seen = 0
    _overhead = 0.0

    def __init__(self, house: House, client: Client, asked: Asked) -> None:
        self._house, self._client, self._asked = house, client, asked
        self._started = started = time.perf_counter()
        self.id = exchange_id = house.new_id()
        self._recording = Recording(house, exchange_id, asked, started)
        self._close = not asked.head.keep_alive
        self._ends = asked.provider.ends_stream
        house.active.add(self)

    # --- what the half that asks does -----------------------------------------------------------------

    def on_failure(self, error: UpstreamError) -> None:
        """There will be no (further) answer."""
        raise NotImplementedError

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error of our own."""
        raise NotImplementedError

    def _ask_copies(self) -> None:
        """Ask once more for the record what the plan wants to have asked."""
        raise NotImplementedError

    def _goes_elsewhere(self, head: Head, piece: bytes, done: bool) -> bool:
        """Whether this answer is passed over, and another one asked for."""
        raise NotImplementedError

    # --- the upstream's side (Sink) -------------------------------------------------------------------

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
        early, self._early = self._early, None
        if head is None:
            head = early
        elif not piece and not done and self._may_be_passed_over(head):
            self._early = head  # what it is will show in its first bytes
            return
        try:
            if head is not None and self._blanker is not None:
                head = self._blanker.head(head)
            if head is None:
                self._take(None, piece, done)
            elif done and len(piece) < LARGE and self._is_plain(head):
                if not (self._has_others and self._goes_elsewhere(head, piece, done)):
                    self._pass_whole(head, piece)
            else:
                self._take(head, piece, done)
        except Exception:
            log.exception("exchange %s failed inside the gateway", self.id)
            self._fail()

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        """A further piece of a stream: what `_take` does with one, in the fewest steps. That it came is seen by
        `tick`."""
        if not self._flows:
            self.on_data(None, piece, False)
            return
        try:
            self._recording.further(piece)
            if self._taker is not None:
                framed = self._without_usage(framed, piece, self._taker)
            if self._is_whole(piece):
                if self._recording.is_large:
                    self._hold_back(framed)
                    return
                self._record_end(self._recording.outcome_by_status, complete=True)
            if framed:
                self._client.write(framed)
        except Exception:
            log.exception("exchange %s failed inside the gateway", self.id)
            self._fail()

    def _fail(self) -> None:
        """A fault of ours ends this exchange, and no other."""
        if self._call is not None:
            self._call.abort()
        self.refuse(GatewayError("the gateway failed to relay this answer; its log says why"))

    # --- a piece --------------------------------------------------------------------------------------

    def _is_plain(self, head: Head) -> bool:
        """Whether this answer, where it is taken, leaves for the client as it is."""
        has_end = head.length is not None or head.status == 200
        return has_end and self._taker is None and (self._blanker is None or head.status < 400)

    @property
    def _has_others(self) -> bool:
        """Whether another answer may be asked for, or it matters to others what this one says."""
        return self._attempts is not None or self._number + 1 < len(self._plan.attempts)

    def _may_be_passed_over(self, head: Head) -> bool:
        """Whether another answer is asked for if this one's body says that it is none."""
        stripped = self._attempt is not None and self._attempt.stripped
        return stripped and head.status == 200 and self._number + 1 < len(self._plan.attempts)

    def _pass_whole(self, head: Head, body: bytes) -> None:
        """A plain answer that came in one piece: what `_take` does with one, in the fewest steps."""
        now = time.perf_counter()
        self._answering = True
        recording = self._recording
        recording.answered(head)
        if body:
            recording.piece(body, now)
        if head.length is None:
            self._frame(head)
            if self._chunked:
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        out = wire.answer_head(head, self._own_lines(), chunked=self._chunked, close=self._close) + body
        self._end(recording.outcome_by_status, complete=True, last_received=now)
        self._client.write(out)
        self._client.finish(keep_alive=not self._close)

    def _take(self, head: Head | None, piece: bytes, done: bool) -> None:
        now = time.perf_counter()
        out = b""
        if head is not None:
            if self._goes_elsewhere(head, piece, done):
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
            self._flows = self._may_flow and bool(piece)  # from here on `on_chunk` does it
            if self._recording.streamed and self._is_whole(piece):
                if self._recording.is_large:
                    self._hold_back(out)
                    return
                self._record_end(self._recording.outcome_by_status, complete=True)
        if out:
            self._client.write(out)
        if done:
            self._client.finish(keep_alive=not self._close)

    def _open(self, head: Head) -> bytes:
        self._answering = True
        self._recording.answered(head)
        self._tunnel = head.status == 101
        if self._tunnel:
            return wire.answer_head(head, self._own_lines())
        if head.length is None:
            self._frame(head)
        if head.status < 400:
            self._blanker = None  # an answer, not an error that quotes the request
        if not self._recording.streamed or head.length is not None or b"content-encoding" in head.first:
            self._taker = None  # nothing that it could read, or whose length it could change
        self._may_flow = self._chunked and self._recording.streamed and self._blanker is None
        return wire.answer_head(head, self._own_lines(), chunked=self._chunked, close=self._close)

    def _frame(self, head: Head) -> None:
        """How a client is told the end of a body whose length is not known: by a last chunk, or by closing."""
        if self._asked.head.method != b"HEAD" and head.status not in (204, 304):
            self._chunked = self._framed = not self._asked.head.http_1_0
            self._close = self._close or self._asked.head.http_1_0

    def _own_lines(self) -> bytes:
        attempt = self._attempt
        target = b"" if attempt is None else wire.target_line(attempt.label, attempt.stripped)
        return b"\r\nx-unprompt-exchange: " + self.id.encode() + target

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

    @staticmethod
    def _without_usage(framed: bytes, piece: bytes, taker: UsageTaker) -> bytes:
        """The piece as a chunk, without what the client did not ask for."""
        kept = taker.feed(piece)
        if kept is piece:
            return framed
        return b"%x\r\n%b\r\n" % (len(kept), kept) if kept else b""

    def _is_whole(self, piece: bytes) -> bool:
        """Whether the client may take the stream for whole now: its last event has begun, and a line is full."""
        window = self._window + piece
        if not self._ends(window):
            self._window = window[-WINDOW:]
            return False
        self._ends = _has_ended
        return piece.endswith((b"\n", b"\r"))

    def _wait(self, seconds: float, now: float) -> None:
        total = self._timeouts.total
        self.deadline = now + seconds if total is None else min(now + seconds, self._started + total)

    def tick(self, now: float) -> None:
        """Called about every quarter of a second; `now` as `time.perf_counter()`."""
        if self._flows and self._recording.passed != self._seen:
            self._seen = self._recording.passed
            self._wait(self._timeouts.idle, now)
        if now <= self.deadline or self._ended:
            return
        self.deadline = NEVER
        if self._paused:  # it is the client that does not take its answer
            self._client.cut(flush=False)
            return
        if self._call is not None:
            self._call.abort()
        waited = "next byte" if self._answering else "first byte"
        upstream = self._attempt.upstream if self._attempt else self._asked.place.provider
        self.on_failure(UpstreamTimeout(f"{upstream}: no {waited} within the route's time limit"))

    # --- large answers --------------------------------------------------------------------------------

    def _finish_aside(self, out: bytes, received: float) -> None:
        """The last bytes of a large answer leave when a thread has written it down."""

        def written() -> None:
            if not self._ended:
                self._end(self._recording.outcome_by_status, complete=True, last_received=received)
                self._client.write(out)
                self._client.finish(keep_alive=not self._close)

        self._call, self.deadline = None, NEVER
        outcome = self._recording.outcome_by_status
        self._recording.end_aside(outcome, self._attempt, self._failures, written)

    def _hold_back(self, out: bytes) -> None:
        """What tells the client that a large stream is whole leaves when a thread has written the stream down. What
        comes from the upstream meanwhile waits behind it."""
        held: list[tuple[Head | None, bytes, bool] | UpstreamError] = []
        self._held, self._flows, self.deadline = held, False, NEVER
        if self._call is not None:
            self._call.pause()

        def written() -> None:
            self._held = None
            if self._ended:
                return
            self._flows = self._may_flow
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

    # --- the end --------------------------------------------------------------------------------------

    @property
    def is_tunnel(self) -> bool:
        """Whether it has no end of its own (a websocket)."""
        return self._tunnel

    def stop(self) -> None:
        """The gateway shuts down before the answer is whole."""
        if not self._ended:
            if self._call is not None:
                self._call.abort()
            self._end(Outcome.OK if self._tunnel else Outcome.INTERNAL, complete=self._tunnel)
            self._client.cut(flush=self._tunnel)

    def _record_end(self, outcome: Outcome, *, complete: bool) -> None:
        if self._recording.status == 101:
            self._recording.tunnelled(self._sent, self._received)
        self._recording.end(outcome, complete=complete, attempt=self._attempt, failures=self._failures)

    def _end(self, outcome: Outcome, *, complete: bool, last_received: float | None = None) -> None:
        self._ended, self._flows = True, False
        self._call = None  # a call knows its sink: left alone, only the collector frees the two
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
        if self._has_copies and complete and outcome is Outcome.OK:
            self._house.outbox.afterwards(self._ask_copies)

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
