"""Prometheus collectors, fed by observing exchanges. Every metric that there is stands in `TABLE`.

Names, units and buckets of `gen_ai_*` follow the OpenTelemetry semantic conventions v1.41 for generative
AI clients, with three more buckets, since a call to a language model can outlast 82 seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import prometheus_client as prom

from gateway import __version__
from gateway.domain.exchange import Outcome
from gateway.domain.route import RouteTable
from gateway.proxy.record import Seen
from gateway.stores.journal import waiting

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
            163.84, 327.68, 600.0)  # fmt: skip
_FIRST_CHUNK = (*_SECONDS[:13], 60.0)
_TOKENS = tuple(float(4**power) for power in range(14))
_OVERHEAD = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25)
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")


class Metric(msgspec.Struct, frozen=True):
    """One row of the table."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE = (
    Metric("histogram", "gen_ai_client_operation_duration_seconds", "Duration of an exchange.",
           (*_GEN_AI, "error_type"), _SECONDS),
    Metric("histogram", "gen_ai_client_operation_time_to_first_chunk_seconds", "Time to a stream's first chunk.",
           _GEN_AI, _FIRST_CHUNK),
    Metric("histogram", "gen_ai_client_token_usage", "Tokens of an exchange, where known.",
           (*_GEN_AI, "gen_ai_token_type"), _TOKENS),
    Metric("counter", "unprompt_requests_total", "Exchanges by how they ended.",
           ("route", "operation", "model_requested", "model_served", "status_class", "outcome")),
    Metric("counter", "unprompt_stripped_requests_total", "Exchanges served without their prompt.",
           ("route", "target")),
    Metric("counter", "unprompt_fallbacks_total", "Requests that went to the fallback, whole, and why.",
           ("route", "reason")),
    Metric("counter", "unprompt_cost_usd_total", "Cost of priced exchanges in USD.", ("route", "target")),
    Metric("counter", "unprompt_cost_unknown_total", "Exchanges without a price.", ("reason",)),
    Metric("counter", "unprompt_usage_missing_total", "Answered exchanges without token counts of the upstream.",
           ("source",)),
    Metric("histogram", "unprompt_overhead_seconds", "Time spent in the gateway itself.", (), _OVERHEAD),
    Metric("gauge", "unprompt_in_flight", "Exchanges under way."),
    Metric("counter", "unprompt_log_records_total", "Records of exchanges: written, spooled, dropped, poison.",
           ("result",)),
    Metric("gauge", "unprompt_log_spool_bytes", "Bytes in the journal that are not yet in the store."),
    Metric("gauge", "unprompt_log_lag_seconds", "For how long the store has been behind the journal."),
    Metric("gauge", "unprompt_upstream_healthy", "1: its last exchange was answered; 0: it failed.", ("target",)),
    Metric("gauge", "unprompt_log_disk_free_bytes", "Free bytes on the journal's file system."),
    Metric("counter", "unprompt_config_reload_total", "Reloads of routes.yaml.", ("result",)),
    Metric("gauge", "unprompt_config_last_success_timestamp_seconds", "When routes were last loaded."),
    Metric("gauge", "unprompt_config_version_info", "1 for the version of routes.yaml in force.", ("version",)),
    Metric("gauge", "unprompt_route_weight", "Share of a route's requests that a target gets.",
           ("route", "target")),
    Metric("gauge", "unprompt_build_info", "1 for the version that runs.", ("version",)),
)  # fmt: skip

MODELS_AT_MOST = 200
_HEALTHY = {
    Outcome.OK: 1, Outcome.UPSTREAM_HTTP_4XX: 1, Outcome.UPSTREAM_HTTP_5XX: 0, Outcome.UPSTREAM_CONNECT: 0,
    Outcome.UPSTREAM_TIMEOUT: 0, Outcome.UPSTREAM_TRUNCATED: 0,
}  # fmt: skip
"""What an outcome says of the upstream; a client that left says nothing."""


class Metrics:
    """All collectors of one process."""

    def __init__(self, journal: Path, in_flight: Callable[[], int]) -> None:
        self.registry = prom.CollectorRegistry()
        prom.ProcessCollector(registry=self.registry)
        self._all = {metric.name: self._make(metric) for metric in TABLE}
        self._children: dict[tuple[str, ...], Any] = {}
        self._models: set[str] = set()
        self._gauge("unprompt_build_info").labels(__version__).set(1)
        self._gauge("unprompt_in_flight").set_function(in_flight)
        self._gauge("unprompt_log_spool_bytes").set_function(lambda: waiting(journal)[0])
        self._gauge("unprompt_log_lag_seconds").set_function(lambda: waiting(journal)[1])
        self._gauge("unprompt_log_disk_free_bytes").set_function(lambda: _free(journal))

    def _make(self, metric: Metric) -> prom.Counter | prom.Gauge | prom.Histogram:
        if metric.kind == "counter":
            return prom.Counter(metric.name, metric.help, metric.labels, registry=self.registry)
        if metric.kind == "gauge":
            return prom.Gauge(metric.name, metric.help, metric.labels, registry=self.registry)
        return prom.Histogram(
            metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry
        )

    def _gauge(self, name: str) -> prom.Gauge:
        found = self._all[name]
        assert isinstance(found, prom.Gauge)
        return found

    def expose(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return prom.generate_latest(self.registry)

    def record(self, result: str) -> None:
        """Count one record of an exchange by what became of it."""
        self._child("unprompt_log_records_total", result).inc()

    def observe(self, seen: Seen) -> None:
        """Count one finished exchange."""
        begin, end = seen.begin, seen.end
        requested = self._model(begin.model_requested, end.status)
        served = self._model(end.model_served or begin.model_requested, end.status)
        route, target = begin.route or "none", self._target(end.target, end.status)
        gen_ai = (seen.operation, begin.provider, requested, served)
        self._child("gen_ai_client_operation_duration_seconds", *gen_ai, end.error_type or "").observe(
            end.latency_ms / 1000
        )
        if end.ttft_ms is not None:
            first = self._child("gen_ai_client_operation_time_to_first_chunk_seconds", *gen_ai)
            first.observe(end.ttft_ms / 1000)
        self._child(
            "unprompt_requests_total", route, seen.operation, requested, served,
            f"{end.status // 100}xx", seen.outcome.value,
        ).inc()  # fmt: skip
        if (healthy := _HEALTHY.get(seen.outcome)) is not None:
            self._child("unprompt_upstream_healthy", target).set(healthy)
        if end.stripped:
            self._child("unprompt_stripped_requests_total", route, target).inc()
        if seen.fallback is not None:
            self._child("unprompt_fallbacks_total", route, seen.fallback).inc()
        self._child("unprompt_overhead_seconds").observe(seen.overhead)
        if end.status < 400 and seen.operation != "other":
            self._books(seen, gen_ai, route, target)

    def _child(self, name: str, *labels: str) -> Any:
        """A collector with its labels set. Kept, since looking it up is the dearest part of counting."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            collector = self._all[name]
            child = self._children[key] = collector.labels(*labels) if labels else collector
        return child

    def _books(self, seen: Seen, gen_ai: tuple[str, ...], route: str, target: str) -> None:
        end = seen.end
        for kind, count in (("input", end.usage.input), ("output", end.usage.output)):
            if count is not None and end.usage.source == "upstream":
                self._child("gen_ai_client_token_usage", *gen_ai, kind).observe(count)
        if end.usage.source != "upstream":
            self._child("unprompt_usage_missing_total", end.usage.source).inc()
        if end.cost_usd is None:
            reason = "no_usage" if end.usage.source == "none" else "no_price"
            self._child("unprompt_cost_unknown_total", reason).inc()
        else:
            self._child("unprompt_cost_usd_total", route, target).inc(end.cost_usd)

    def _model(self, model: str | None, status: int) -> str:
        """Only models that an upstream answered for become labels, and only so many: the name is the client's."""
        if model is None:
            return ""
        if model not in self._models and status < 400 and len(self._models) < MODELS_AT_MOST:
            self._models.add(model)
        return model if model in self._models else "other"

    def _target(self, target: str | None, status: int) -> str:
        upstream, slash, model = (target or "none").partition("/")
        return f"{upstream}/{self._model(model, status)}" if slash else upstream

    def reloaded(self, table: RouteTable | None, when: float) -> None:
        """A reload succeeded with this table, or failed (None) and changed nothing."""
        self._child("unprompt_config_reload_total", "failed" if table is None else "ok").inc()
        if table is None:
            return
        self._gauge("unprompt_config_last_success_timestamp_seconds").set(when)
        version, weights = self._gauge("unprompt_config_version_info"), self._gauge("unprompt_route_weight")
        version.clear()
        version.labels(table.version).set(1)
        weights.clear()
        for route in table.routes:
            total = sum(target.weight for target in route.targets)
            for target in route.targets:
                weights.labels(route.name, target.label).inc(target.weight / total)


def _free(folder: Path) -> int:
    """Of the file system that the folder is on, or will be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free
