"""The held-out rows that candidates are judged by, and what the incumbent took for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway import providers
from gateway.domain.dataset import Dataset, Row
from gateway.domain.exchange import Exchange
from gateway.domain.feedback import correction
from gateway.encoding import decoded
from gateway.pipeline.asking import Envelope
from gateway.pipeline.scrub import scrub
from gateway.pipeline.tool_calls import of_choice, of_row
from gateway.providers.openai import read_chat
from gateway.stores import remarks
from gateway.stores.sqlite import SqliteStore

MOST_ROWS = 2000
"""So many held-out rows are asked at most: enough for an interval of a point, and asking may cost money."""
_NO_PART = ("model", "messages", "stream", "stream_options")
_SECONDS_A_DAY = 86_400
_LEAST_SECONDS = 3600


class Known(msgspec.Struct, frozen=True):
    """What the incumbent's recorded answer to a row took, and what it said. None: it is not known."""

    latency_ms: float | None = None
    cost_usd: float | None = None
    input_tokens: int | None = None
    said: str | None = None


class Trial(msgspec.Struct, frozen=True):
    """Rows with all that is known of them, one entry each; where the incumbent called tools, `output` is the calls
    (see `tool_calls`). `envelopes` and `whole` are of the recorded requests (`whole` None: it cannot be read);
    `beyond` and `gold` are ids of rows: those that nobody but the incumbent may answer, and those whose answer a
    person corrected or approved."""

    rows: list[Row]
    known: list[Known]
    envelopes: list[Envelope]
    whole: list[list[dict[str, Any]] | None]
    beyond: frozenset[str] = frozenset()
    gold: frozenset[str] = frozenset()
    requests_per_day: float | None = None
    masked: bool = False
    """Whether personal data and secrets are replaced in the rows."""

    def sample(self, most: int) -> Trial:
        """At most so many of the rows, evenly spaced, so that all times of recording are there."""
        if len(self.rows) <= most:
            return self
        places = [number * len(self.rows) // most for number in range(most)]
        lists = (self.rows, self.known, self.envelopes, self.whole)
        rows, known, envelopes, whole = ([entries[at] for at in places] for entries in lists)
        return msgspec.structs.replace(self, rows=rows, known=known, envelopes=envelopes, whole=whole)

    def readable(self) -> Trial:
        """Only the rows whose whole request can be asked again, and that expect an answer to compare with."""
        places = [at for at, row in enumerate(self.rows) if self.whole[at] and row.exchange_id not in self.beyond]
        lists = (self.rows, self.known, self.envelopes, self.whole)
        rows, known, envelopes, whole = ([entries[at] for at in places] for entries in lists)
        return msgspec.structs.replace(self, rows=rows, known=known, envelopes=envelopes, whole=whole)


def read_trial(store: SqliteStore, dataset: Dataset, part: Sequence[Row], beyond: Sequence[Row]) -> Trial:
    """The rows of one held-out part with what the store has of them, `MOST_ROWS` at most."""
    rows = [*part, *beyond]
    if len(rows) > MOST_ROWS:
        rows = [rows[number * len(rows) // MOST_ROWS] for number in range(MOST_ROWS)]
    target, gold = dataset.card["teacher"]["target"], _gold(store, rows)
    masked = dataset.card.get("scrub") == "mask"
    found = [store.exchange(row.exchange_id) for row in rows]
    bodies = [_body(exchange) for exchange in found]
    return Trial(
        rows=[msgspec.structs.replace(row, output=of_row(row)) for row in rows],
        known=[_known(e, target, row.exchange_id in gold, masked) for e, row in zip(found, rows, strict=True)],
        masked=masked,
        envelopes=[{key: value for key, value in body.items() if key not in _NO_PART} for body in bodies],
        whole=[body.get("messages") for body in bodies],
        beyond=frozenset(row.exchange_id for row in beyond if not row.tool_calls),
        gold=gold,
        requests_per_day=_rate(dataset.card.get("recorded", 0), [e.started_at for e in found if e is not None]),
    )


def _gold(store: SqliteStore, rows: Sequence[Row]) -> frozenset[str]:
    """The rows on which a person said what the answer should be, or that it is right as it is."""
    found = remarks.said(store, (row.exchange_id for row in rows))
    return frozenset(name for name, said in found.items() if correction(said) or said.get("score", 0) > 0)


def _rate(recorded: int, times: Sequence[float]) -> float | None:
    """Requests a day, the mean over the time of recording; a burst counts as an hour."""
    if not times or not recorded:
        return None
    return recorded * _SECONDS_A_DAY / max(max(times) - min(times), _LEAST_SECONDS)


def _known(exchange: Exchange | None, target: str, gold: bool, masked: bool) -> Known:
    """Nothing is known of a row that a person corrected after a candidate had answered it."""
    if exchange is None or exchange.stripped or exchange.target not in (None, target):
        return Known()
    text = _said(exchange) if gold else None
    text = scrub(text, Counter()) if masked and text else text
    return Known(exchange.latency_ms, exchange.cost_usd, exchange.input_tokens, text)


_OPENAI = providers.load("openai")


def _said(exchange: Exchange) -> str | None:
    plain = decoded(exchange.response, exchange.response_headers.get("content-encoding"))
    read = _OPENAI.read_answer(plain, streamed=exchange.streamed) if plain else None
    return of_choice(read.choices[0]) if read and read.choices and not read.error else None


def _body(exchange: Exchange | None) -> dict[str, Any]:
    if exchange is None:
        return {}
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    return (read_chat(body) if body else None) or {}
