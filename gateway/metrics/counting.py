"""Counts: a few stores into cells for each exchange, which a scrape turns into text (`scrape`).

An exchange costs one look-up of its kind, which names a row of cells that was prepared when the first of its
kind came; `benchmarks/metrics.py` measures it.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.domain.exchange import Outcome
from gateway.domain.route import RouteTable
from gateway.metrics import scrape
from gateway.metrics.cells import Key, Sheet, SheetFull
from gateway.metrics.table import (
    BY_NAME,
    COST,
    DURATION,
    ESTIMATED,
    EXCHANGE,
    FIRST,
    FIRST_CHUNK,
    INPUT,
    LAG,
    NO_PRICE,
    NO_USAGE,
    OUTPUT,
    OVERHEAD,
    SECONDS,
    TOKENS,
    UNCOUNTED,
    WIDTH,
    Kind,
    label,
)  # fmt: skip
from gateway.proxy.record import Seen

MODELS_AT_MOST = 200
KINDS_AT_MOST = 1000
SERIES_AT_MOST = 500
"""Of one metric; what comes later is counted as `other`."""

_REMEMBERED = 4096
_HEALTHY = {
    Outcome.OK: 1.0, Outcome.UPSTREAM_HTTP_4XX: 1.0, Outcome.UPSTREAM_HTTP_5XX: -1.0,
    Outcome.UPSTREAM_CONNECT: -1.0, Outcome.UPSTREAM_TIMEOUT: -1.0, Outcome.UPSTREAM_TRUNCATED: -1.0,
}  # fmt: skip
"""What an outcome says of the upstream; a client that left, or was turned away, says nothing."""

_GAUGES = ("unprompt_in_flight", "unprompt_loop_lag_max_seconds", "unprompt_upstream_circuit_open")
"""What a process that is gone no longer has."""

_DURATION_SUM, _FIRST_SUM = DURATION + len(SECONDS) + 1, FIRST + len(FIRST_CHUNK) + 1
_TOKENS_SUM, _OVERHEAD_SUM, _LAG_SUM = len(TOKENS) + 1, len(OVERHEAD) + 1, len(LAG) + 1

_OTHERS = Kind(**dict.fromkeys(Kind.__struct_fields__, "other") | {"stripped": "", "fallback": ""})

_Row = tuple[int, int, float, bool]
"""First cell, cell of the upstream's health, what the outcome says of it (0: nothing), whether tokens count."""


class Metrics:
    """What one process counts, and how all of them add up.

    `sheets` are those of all processes that serve together, `worker` says which of them is ours; a successor of a
    process that died goes on with its sheet. Every method is for the thread of the event loop.
    """

    def __init__(
        self,
        journal: Path,
        in_flight: Callable[[], int],
        *,
        sheets: Sequence[Sheet] = (),
        worker: int = 0,
        name: str | None = None,
    ) -> None:
        """`name` stands in the label `worker`, the number where it is not given."""
        self._journal, self._in_flight = journal, in_flight
        self._sheets = tuple(sheets) or (Sheet(),)
        self._sheet = sheet = self._sheets[worker]
        self._cells = sheet.cells
        self._rows: dict[tuple[Any, ...], _Row] = {}
        self._plain: dict[Key, int] = {}
        kinds = [key for key in sheet.rows() if key[0] == EXCHANGE]
        self._models = {key[field] for key in kinds for field in (3, 4)} - {"", "other"}
        self._configured: set[str] = set()
        self._kinds = len(kinds)
        self._taken = Counter(key[0] for key in sheet.rows())
        self._refused = sheet.row(("unprompt_series_refused_total",), 1)
        self._others = sheet.row((EXCHANGE, *msgspec.structs.astuple(_OTHERS)), WIDTH)
        self._overhead = self._index("unprompt_overhead_seconds")
        self._lag = self._index("unprompt_loop_lag_seconds")
        self._lag_max = sheet.row(("unprompt_loop_lag_max_seconds",), 3)
        self._under_way = self._index("unprompt_in_flight")
        results = ("written", "spooled", "dropped", "poison")
        self._results = {result: self._index("unprompt_log_records_total", result) for result in results}
        self._results["unsynced"] = self._index("unprompt_log_sync_failures_total")
        self._state = scrape.State(pid=os.getpid(), worker=name or str(worker))
        self._note()

    # --- on the way of a request -------------------------------------------------------------------------

    def record(self, result: str) -> None:
        """Count one record of an exchange by what became of it: `written`, `spooled`, `dropped` or `poison`; or, as
        `unsynced`, one time that the journal could not be forced to the disk."""
        self._cells[self._results[result]] += 1.0

    def observe(self, seen: Seen) -> None:
        """Count one finished exchange."""
        begin, end = seen.begin, seen.end
        served, outcome = end.model_served, seen.outcome
        kind = (
            begin.model_requested, served, end.status, outcome, end.target, begin.route, begin.provider,
            seen.operation, end.error_type, end.stripped, seen.fallback,
        )  # fmt: skip
        row = self._rows.get(kind)
        if row is None:
            row = self._prepare(seen, kind)
        at, health, verdict, has_tokens = row
        cells = self._cells
        seconds = end.latency_ms / 1000
        cells[at + bisect_left(SECONDS, seconds)] += 1.0  # the row begins with the durations
        cells[at + _DURATION_SUM] += seconds
        if end.ttft_ms is not None:
            seconds = end.ttft_ms / 1000
            cells[at + FIRST + bisect_left(FIRST_CHUNK, seconds)] += 1.0
            cells[at + _FIRST_SUM] += seconds
        seconds = seen.overhead
        cells[self._overhead + bisect_left(OVERHEAD, seconds)] += 1.0
        cells[self._overhead + _OVERHEAD_SUM] += seconds
        if verdict:
            cells[health] = verdict * time.monotonic()
        if has_tokens:
            self._count_tokens(at, end.usage.input, end.usage.output, end.usage.source, end.cost_usd)

    def _count_tokens(self, at: int, given: int | None, made: int | None, source: str, cost: float | None) -> None:
        cells = self._cells
        if source == "upstream":
            if given is not None:
                cells[at + INPUT + bisect_left(TOKENS, given)] += 1.0
                cells[at + INPUT + _TOKENS_SUM] += given
            if made is not None:
                cells[at + OUTPUT + bisect_left(TOKENS, made)] += 1.0
                cells[at + OUTPUT + _TOKENS_SUM] += made
        else:
            cells[at + (ESTIMATED if source == "estimated" else UNCOUNTED)] += 1.0
        if cost is not None:
            cells[at + COST] += cost
        else:
            cells[at + (NO_USAGE if source == "none" else NO_PRICE)] += 1.0

    # --- the first of its kind ---------------------------------------------------------------------------

    def _prepare(self, seen: Seen, kind: tuple[Any, ...]) -> _Row:
        begin, end = seen.begin, seen.end
        if len(self._rows) >= _REMEMBERED:  # names that clients make up; the rows themselves are few
            self._rows.clear()
        requested = self._model(begin.model_requested, end.status)
        served = self._model(end.model_served or begin.model_requested, end.status)
        target = self._target(end.target, end.status)
        told = Kind(
            operation=label(seen.operation), provider=label(begin.provider), requested=requested, served=served,
            error=label(end.error_type or ""), route=label(begin.route or "none"),
            status_class=f"{end.status // 100}xx", outcome=label(seen.outcome), target=target,
            stripped="stripped" if end.stripped else "", fallback=label(seen.fallback or ""),
        )  # fmt: skip
        health = self._index("unprompt_upstream_healthy", target)
        verdict = _HEALTHY.get(seen.outcome, 0.0) if health != self._refused else 0.0
        row = self._row_of(told), health, verdict, end.status < 400 and seen.operation != "other"
        self._rows[kind] = row
        return row

    def _row_of(self, kind: Kind) -> int:
        """Where it is counted: beyond `KINDS_AT_MOST` under other names, which are few."""
        key = (EXCHANGE, *msgspec.structs.astuple(kind))
        known = self._sheet.rows()
        if key not in known and self._kinds >= KINDS_AT_MOST:
            upstream = kind.target.partition("/")[0]
            kind = msgspec.structs.replace(kind, requested="other", served="other", target=upstream)
            key = (EXCHANGE, *msgspec.structs.astuple(kind))
        if key not in known and self._kinds >= 2 * KINDS_AT_MOST:
            return self._others
        self._kinds += key not in known
        try:
            return self._sheet.row(key, WIDTH)
        except SheetFull:
            return self._others

    def _model(self, model: str | None, status: int) -> str:
        """Models that the routes name, or that an upstream answered for, become labels, of the latter only so many:
        the name is the client's."""
        if model is None:
            return ""
        model = label(model)
        if model in self._configured:
            return model
        if model not in self._models and status < 400 and len(self._models) < MODELS_AT_MOST:
            self._models.add(model)
            self._rows.clear()  # it was `other` until now
        return model if model in self._models else "other"

    def _target(self, target: str | None, status: int) -> str:
        upstream, slash, model = (target or "none").partition("/")
        return f"{label(upstream)}/{self._model(model, status)}" if slash else label(upstream)

    def _index(self, name: str, *labels: str) -> int:
        """The first cell of a series, prepared when it is new; that of the refused ones when there is no room."""
        key = (name, *labels)
        index = self._plain.get(key)
        if index is None:
            if len(self._plain) >= _REMEMBERED:
                self._plain.clear()
            index = self._plain[key] = self._new_series(name, tuple(label(one) for one in labels))
        return index

    def _new_series(self, name: str, labels: Key) -> int:
        known = self._sheet.rows()
        if (name, *labels) not in known and self._taken[name] >= SERIES_AT_MOST:
            labels = tuple("other" for _ in labels)
        self._taken[name] += (name, *labels) not in known
        try:
            return self._sheet.row((name, *labels), BY_NAME[name].width)
        except SheetFull:
            return self._refused

    def _set(self, value: float, name: str, *labels: str) -> None:
        index = self._index(name, *labels)
        self._cells[index] = value if index != self._refused else self._cells[index] + 1.0

    # --- what else there is to tell ----------------------------------------------------------------------

    def retried(self, route: str | None, reason: str) -> None:
        """A request is sent once more."""
        self._cells[self._index("unprompt_retries_total", route or "none", reason)] += 1.0

    def rejected(self, route: str | None, reason: str) -> None:
        """The gateway itself turned a request away: `limit`, `circuit`, `too_large` and the like."""
        self._cells[self._index("unprompt_rejected_total", route or "none", reason)] += 1.0

    def copied(self, route: str, kind: str, outcome: str, cost_usd: float | None) -> None:
        """The gateway asked a request once more for the record, or skipped that."""
        self._cells[self._index("unprompt_copies_total", route, kind, outcome)] += 1.0
        if cost_usd is not None:
            self._cells[self._index("unprompt_copies_cost_usd_total", route, kind)] += cost_usd

    def circuit(self, target: str, is_open: bool) -> None:
        """Whether requests to this target are held back for now."""
        self._set(float(is_open), "unprompt_upstream_circuit_open", self._target(target, 503))

    def restarted(self, part: str) -> None:
        """Something that moves records was started again: `process`, `journal`."""
        self._cells[self._index("unprompt_log_writer_restarts_total", part)] += 1.0

    def replaced(self) -> None:
        """A relay process died and has a successor."""
        self._cells[self._index("unprompt_relay_restarts_total")] += 1.0

    def writer(self, is_up: bool) -> None:
        """Whether the process runs that moves records into the store; told when it starts and when it ends."""
        now = time.monotonic()
        self._set(now if is_up else -now, "unprompt_log_writer_up")

    def late(self, seconds: float) -> None:
        """How late a timer of the event loop came; told up to fifty times a second (`LoopWatch`)."""
        cells, first = self._cells, self._lag_max
        cells[self._lag + bisect_left(LAG, seconds)] += 1.0
        cells[self._lag + _LAG_SUM] += seconds
        cells[self._under_way] = self._in_flight()
        minute = time.monotonic() // 60
        if minute != cells[first + 2]:
            cells[first + 1] = cells[first] if minute == cells[first + 2] + 1 else 0.0
            cells[first], cells[first + 2] = 0.0, minute
        cells[first] = max(cells[first], seconds)

    def reloaded(self, table: RouteTable | None, when: float) -> None:
        """A reload succeeded with this table, or failed (None) and changed nothing. `when`: since the epoch."""
        result = "failed" if table is None else "ok"
        self._cells[self._index("unprompt_config_reload_total", result)] += 1.0
        if table is not None:
            targets = (target for route in table.routes for target in (*route.targets, *route.fallbacks))
            self._configured = {label(target.model) for target in targets if target.model is not None}
            self._rows.clear()  # what was `other` may have a name now
            weights = [
                (label(route.name), label(target.label), target.weight / sum(t.weight for t in route.targets))
                for route in table.routes
                for target in route.targets
            ]
            state = msgspec.structs.replace(self._state, version=table.version, loaded_at=when, weights=weights)
            self._state = state
            self._note()

    def _note(self) -> None:
        try:
            self._sheet.write_note(msgspec.msgpack.encode(self._state))
        except SheetFull:
            self._sheet.write_note(msgspec.msgpack.encode(msgspec.structs.replace(self._state, weights=[])))

    # --- told ----------------------------------------------------------------------------------------------

    def pages(self) -> Iterator[bytes]:
        """The text that Prometheus scrapes, of all processes, in pieces between which others may work."""
        self._cells[self._under_way] = self._in_flight()
        return scrape.pages(self._sheets, self._journal)

    def expose(self) -> bytes:
        """The same at once."""
        return b"".join(self.pages())

    def writer_down_seconds(self) -> float:
        """For how long no process has moved records into the store; 0 where one runs or none ever did."""
        return scrape.down_seconds(self._sheets)


def retire(sheet: Sheet) -> None:
    """Its process is gone: what it had counted stays, what it was doing does not."""
    sheet.write_note(b"")
    for (name, *_), (first, width) in sheet.rows().items():
        if name in _GAUGES:
            for cell in range(first, first + width):
                sheet.cells[cell] = 0.0
