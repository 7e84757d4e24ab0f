"""What is scraped: the cells of all processes added up, in Prometheus' text format (version 0.0.4).

Written in pieces, since a thousand kinds of exchanges make more than 60,000 lines, and the loop that writes them
has requests to serve. `prometheus_client` writes what it knows better: the numbers of the processes themselves.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add
from pathlib import Path
from typing import TypeVar

import msgspec
import prometheus_client as prom
from prometheus_client.core import Metric as Family

from gateway import __version__
from gateway.matches import matches
from gateway.metrics.cells import Key, Sheet
from gateway.metrics.table import (
    COST,
    DURATION,
    ESTIMATED,
    EXCHANGE,
    FIRST,
    INPUT,
    NO_PRICE,
    NO_USAGE,
    OUTPUT,
    TABLE,
    UNCOUNTED,
    Kind,
    Metric,
    label,
)  # fmt: skip
from gateway.raised import watched_candidates
from gateway.restarts import restarts
from gateway.stores.journal import waiting
from gateway.stores.segments import set_aside

TEMPLATES_AT_MOST = 500
"""Tasks, and versions of templates, that have series of their own: in the order of their names."""
ROWS_AT_ONCE = 50
"""So many rows are added up, or series written, before others may work: about 2 ms."""

T = TypeVar("T")
Values = list[float]
Series = dict[Key, Values]
"""The values of a metric's series by their labels: one, or a histogram's buckets and sum."""


class State(msgspec.Struct, frozen=True):
    """What a process says of itself in its sheet's note. `weights`: (route, target, share)."""

    pid: int
    worker: str
    version: str = ""
    loaded_at: float = 0.0
    weights: list[tuple[str, str, float]] = []


_state = msgspec.msgpack.Decoder(State)


def pages(sheets: Sequence[Sheet], journal: Path) -> Iterator[bytes]:
    """The whole text in pieces; an empty one is a pause."""
    rows: dict[Key, Values] = {}
    found: dict[str, Series] = {}
    for number, (sheet, key) in enumerate([(one, key) for one in sheets for key in one.rows()]):
        _add_up(rows, key, sheet.values(*sheet.rows()[key]))
        if number % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            yield b""
    for number, (key, values) in enumerate(rows.items()):
        _count(found, key, values)
        if number % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            yield b""
    states = [state for sheet in sheets if (state := _state_of(sheet)) is not None]
    for name, series in (
        *_of_states(states),
        *_of_journal(journal),
        *_of_templates(journal.parent),
        *_of_candidates(journal.parent),
    ):
        _merge(found.setdefault(name, {}), series)
    for metric in TABLE:
        yield from _family(metric, found.get(metric.name, {}))
    yield _processes(states)


def down_seconds(sheets: Iterable[Sheet]) -> float:
    """For how long no process has moved records into the store; 0 where one runs or none ever did."""
    key = ("unprompt_log_writer_up",)
    last = max((sheet.cells[sheet.rows()[key][0]] for sheet in sheets if key in sheet.rows()), key=abs, default=0.0)
    return time.monotonic() + last if last < 0 else 0.0


# --- adding up -------------------------------------------------------------------------------------------


def _newest(left: Values, right: Values) -> Values:
    """Cells that hold when they were written, negative for a no."""
    return max(left, right, key=lambda values: abs(values[0]))


def _largest(left: Values, right: Values) -> Values:
    return list(map(max, left, right))


def _sum(left: Values, right: Values) -> Values:
    return list(map(add, left, right))


_COMBINED: dict[str, Callable[[Values, Values], Values]] = {
    "unprompt_upstream_healthy": _newest, "unprompt_log_writer_up": _newest,
    "unprompt_upstream_circuit_open": _largest, "unprompt_loop_lag_max_seconds": _largest,
}  # fmt: skip


def _add_up(rows: dict[Key, Values], key: Key, values: Values) -> None:
    known = rows.get(key)
    rows[key] = values if known is None else _COMBINED.get(key[0], _sum)(known, values)


def _merge(series: Series, more: Series) -> None:
    for labels, values in more.items():
        known = series.get(labels)
        series[labels] = values if known is None else _sum(known, values)


def _count(found: dict[str, Series], key: Key, values: Values) -> None:
    """Add one row to the series that it belongs to."""
    name, *labels = key
    if name == EXCHANGE:
        for part, series in _of_exchanges(Kind(*labels), values):
            _merge(found.setdefault(part, {}), series)
    elif name in ("unprompt_upstream_healthy", "unprompt_log_writer_up"):
        if values[0]:
            found.setdefault(name, {})[tuple(labels)] = [float(values[0] > 0)]
    elif name == "unprompt_loop_lag_max_seconds":
        found[name] = {(): [max(values[:2])]}
    else:
        _merge(found.setdefault(name, {}), {tuple(labels): values})


def _of_exchanges(kind: Kind, values: Values) -> Iterator[tuple[str, Series]]:
    durations, count = values[DURATION:FIRST], sum(values[DURATION : FIRST - 1])
    if count == 0:  # prepared, never used
        return
    yield "gen_ai_client_operation_duration_seconds", {(*kind.gen_ai, kind.error): durations}
    yield (
        "unprompt_requests_total",
        {(kind.route, kind.operation, kind.requested, kind.served, kind.status_class, kind.outcome): [count]},
    )
    if any(first := values[FIRST:INPUT]):
        yield "gen_ai_client_operation_time_to_first_chunk_seconds", {kind.gen_ai: first}
    for tokens, numbers in (("input", values[INPUT:OUTPUT]), ("output", values[OUTPUT:COST])):
        if any(numbers):
            yield "gen_ai_client_token_usage", {(*kind.gen_ai, tokens): numbers}
    if kind.stripped:
        yield "unprompt_stripped_requests_total", {(kind.route, kind.target): [count]}
    if kind.fallback:
        yield "unprompt_fallbacks_total", {(kind.route, kind.fallback): [count]}
    yield from _of_costs(kind, values)


def _of_costs(kind: Kind, values: Values) -> Iterator[tuple[str, Series]]:
    if values[COST]:
        yield "unprompt_cost_usd_total", {(kind.route, kind.target): [values[COST]]}
    for name, why, cell in (
        ("unprompt_cost_unknown_total", "no_usage", NO_USAGE),
        ("unprompt_cost_unknown_total", "no_price", NO_PRICE),
        ("unprompt_usage_missing_total", "estimated", ESTIMATED),
        ("unprompt_usage_missing_total", "none", UNCOUNTED),
    ):
        if values[cell]:
            yield name, {(why,): [values[cell]]}


# --- what stands elsewhere -------------------------------------------------------------------------------


def _state_of(sheet: Sheet) -> State | None:
    """Of the process that writes the sheet; None where it is gone."""
    note = sheet.note()
    return _state.decode(note) if note else None


def _of_states(states: Sequence[State]) -> Iterator[tuple[str, Series]]:
    serving = [state for state in states if state.version]
    yield "unprompt_build_info", {(__version__,): [1.0]}
    if not serving:
        return
    yield "unprompt_config_last_success_timestamp_seconds", {(): [min(state.loaded_at for state in serving)]}
    yield "unprompt_config_version_info", {(state.version, state.worker): [1.0] for state in serving}
    weights: Series = {}
    for state in serving:
        for route, target, share in state.weights:
            _merge(weights, {(route, target): [share / len(serving)]})
    yield "unprompt_route_weight", weights


def _of_journal(folder: Path) -> Iterator[tuple[str, Series]]:
    size, lag = waiting(folder)
    yield "unprompt_log_spool_bytes", {(): [float(size)]}
    yield "unprompt_log_lag_seconds", {(): [lag]}
    yield "unprompt_log_disk_free_bytes", {(): [float(_free(folder))]}
    for name, counts in (
        ("unprompt_log_set_aside_files", set_aside(folder)),
        ("unprompt_log_writer_restarts_total", restarts(folder)),
    ):
        yield name, {(kind,): [float(count)] for kind, count in counts.items()}


def _of_templates(home: Path) -> Iterator[tuple[str, Series]]:
    """What the worker has told of them."""
    told = matches(home)
    yield "unprompt_task_match_ratio", {(label(task),): [share] for task, share in _some(told.shares)}
    yield "unprompt_task_alarm", {(label(task),): [float(task in told.alarms)] for task, _ in _some(told.shares)}
    yield "unprompt_task_saved_usd", {(label(task),): [usd] for task, usd in _some(told.saved_usd)}
    yield "unprompt_task_saved_seconds", {(label(task),): [one] for task, one in _some(told.saved_seconds)}
    results: Series = {}
    for name, counts in _some(told.counts):
        task, _, version = name.rpartition("@")
        results |= {(label(task), version, result): [float(count)] for result, count in counts.items()}
    yield "unprompt_template_requests", results
    states = Counter(told.states.values())
    yield "unprompt_templates", {(state,): [float(states[state])] for state in ("proposed", "trusted", "drifting")}


def _of_candidates(home: Path) -> Iterator[tuple[str, Series]]:
    """What the watch over candidates has told."""
    known = _some(watched_candidates(home))
    yield "unprompt_alarm", {(label(task), kind): [1.0] for task, one in known for kind in one.alarms}
    yield (
        "unprompt_task_agreement",
        {
            (label(task), bound): [value]
            for task, one in known
            for bound, value in zip(("low", "mean", "high"), one.agreement or (), strict=False)
        },
    )


def _some(told: Mapping[str, T]) -> list[tuple[str, T]]:
    return sorted(told.items())[:TEMPLATES_AT_MOST]


def _free(folder: Path) -> int:
    """Of the file system that the folder is on, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free


# --- the text --------------------------------------------------------------------------------------------


def _family(metric: Metric, series: Series) -> Iterator[bytes]:
    yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n".encode()
    if not series and not metric.labels and metric.name != "unprompt_log_writer_up":
        series = {(): [0.0] * metric.width}
    lines: list[str] = []
    for number, (labels, values) in enumerate(series.items()):
        pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(metric.labels, labels, strict=True)]
        if metric.kind == "histogram":
            lines += _histogram(metric, pairs, values)
        else:
            lines.append(f"{metric.name}{_braces(pairs)} {_number(values[0])}\n")
        if number % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _histogram(metric: Metric, pairs: list[str], values: Values) -> list[str]:
    start = f'{metric.name}_bucket{{{"".join(pair + "," for pair in pairs)}le="'
    bounds = [*map(_number, metric.buckets), "+Inf"]
    counts = list(accumulate(values[:-1]))
    lines = [f'{start}{bound}"}} {_number(count)}\n' for bound, count in zip(bounds, counts, strict=True)]
    braces = _braces(pairs)
    lines.append(f"{metric.name}_count{braces} {_number(counts[-1])}\n")
    lines.append(f"{metric.name}_sum{braces} {_number(values[-1])}\n")
    return lines


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else str(value).replace("inf", "Inf").replace("nan", "NaN")


def _processes(states: Sequence[State]) -> bytes:
    """CPU, memory and files of each process that serves; labelled where there are several."""
    families: dict[str, Family] = {}
    for state in states:
        for found in prom.ProcessCollector(pid=lambda pid=state.pid: pid, registry=None).collect():  # type: ignore[misc]
            family = families.setdefault(found.name, Family(found.name, found.documentation, found.type))
            for sample in found.samples:
                labels = {"worker": state.worker} if len(states) > 1 else {}
                family.add_sample(sample.name, labels, sample.value)
    registry = prom.CollectorRegistry()
    registry.register(_Collected(list(families.values())))
    return prom.generate_latest(registry)


class _Collected(prom.registry.Collector):
    """Families that are there already, for `generate_latest`."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families
