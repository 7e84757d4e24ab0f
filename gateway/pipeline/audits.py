"""Audits and shadows: requests that the candidate and the incumbent have both answered, whether they agree, and
what is known of candidates by them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway import providers
from gateway.domain.exchange import Exchange
from gateway.encoding import decoded
from gateway.pipeline.alarms import Outcome, Watched
from gateway.pipeline.judge import Comparison, request_text
from gateway.pipeline.records import recorded
from gateway.pipeline.scores import Measure
from gateway.pipeline.scoring import values_of
from gateway.pipeline.tool_calls import of_choice, shown
from gateway.stores.audited import Recorded, watch_state
from gateway.stores.sqlite import SqliteStore

_OPENAI = providers.load("openai")
ABSTAINED = "abstained"
_NEVER_ASKED = frozenset({"circuit_open"})
_FAILED = frozenset({
    "upstream_http_5xx", "upstream_http_4xx", "upstream_connect", "upstream_timeout", "upstream_truncated", "other",
})  # fmt: skip


class Pair(NamedTuple):
    """One request with both answers, as texts; `whole`: the exchange that holds the request. None: they cannot be
    compared (no text was recorded, or the incumbent's answer is an error), which says nothing of the candidate."""

    whole: Exchange
    candidate: str | None = None
    incumbent: str | None = None

    def agrees(self, measure: Measure) -> float | None:
        """From 0 to 1, by the gate's own measure."""
        if self.candidate is None or self.incumbent is None:
            return None
        return values_of(measure, [(self.incumbent, self.candidate)])[0]

    def comparison(self) -> Comparison | None:
        """What a judge is asked; None: the request cannot be read."""
        request = recorded(self.whole)
        if self.candidate is None or self.incumbent is None or request is None:
            return None
        text = request_text(request.body.get("messages") or [])
        return Comparison(text, shown(self.candidate), shown(self.incumbent))


def outcome(row: Recorded, candidate: str) -> Outcome | None:
    """What became of an exchange at the candidate (its `upstream/model`); None where it was not asked, where the
    client left before there was an answer, or where the incumbent failed, too: that may be the request's fault."""
    reasons = [reason for name, _, reason in (one.rpartition(": ") for one in row.attempts) if name == candidate]
    if row.stripped and row.target == candidate:
        failed = row.error_type in _FAILED
        if row.error_type is not None and not failed:
            return None
        return Outcome(not failed, failed, row.latency_ms, row.cost_usd)
    tried = [reason for reason in reasons if reason not in _NEVER_ASKED]
    failed = bool(tried) and tried[-1] != ABSTAINED
    if not tried or (failed and row.copy_of is None and not 200 <= (row.status or 0) < 400):
        return None
    return Outcome(False, failed, row.latency_ms, row.cost_usd)


def pairs(store: SqliteStore, copies: Sequence[Recorded], candidate: str) -> dict[str, Pair]:
    """Each copy and the client's own exchange, by the copy's id; without those of which one is not in the store,
    yet or any more. Read together: rows beside each other have their bodies in one block."""
    ids = [one for copy in copies for one in (copy.id, copy.copy_of)]
    if not ids:
        return {}
    found = {e.id: e for e in store.each_exchange("id IN (SELECT value FROM json_each(?))", [json.dumps(ids)])}
    return {
        copy.id: _pair(found[copy.id], found[copy.copy_of], candidate)
        for copy in copies
        if copy.id in found and copy.copy_of is not None and copy.copy_of in found
    }


def _pair(one: Exchange, other: Exchange, candidate: str) -> Pair:
    stripped, whole = (one, other) if one.stripped else (other, one)
    if stripped.target != candidate or whole.stripped or not _is_answered(stripped) or not _is_answered(whole):
        return Pair(whole)
    said, wanted = answer_of(stripped), answer_of(whole)
    return Pair(whole) if said is None or wanted is None else Pair(whole, said, wanted)


def _is_answered(exchange: Exchange) -> bool:
    return exchange.complete and not exchange.truncated and 200 <= (exchange.status or 0) < 300


def answer_of(exchange: Exchange) -> str | None:
    """What an exchange answered: its text, or for tool calls and refusals what they say in a form of their own, so
    that a text never agrees with them; None where it cannot be read."""
    plain = decoded(exchange.response, exchange.response_headers.get("content-encoding"))
    read = _OPENAI.read_answer(plain, streamed=exchange.streamed) if plain else None
    if read is None or read.error or not read.choices:
        return None
    answer = read.choices[0]
    return f"\0refusal: {answer.refusal}" if answer.refusal and not answer.tool_calls else of_choice(answer)


def remembered(store: SqliteStore, task: str) -> dict[str, Watched]:
    """What is known of the task's candidates, by promotion."""
    kept = watch_state(store, task) or b"{}"
    try:
        return msgspec.json.decode(kept, type=dict[str, Watched])
    except msgspec.ValidationError:  # of an earlier release: the newest alone
        one = msgspec.json.decode(kept, type=Watched)
        return {one.promotion: one}
