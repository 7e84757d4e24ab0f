"""Every metric that there is, and how the numbers of an exchange lie in its row of cells.

Names, units and buckets of `gen_ai_*` follow the OpenTelemetry semantic conventions v1.41 for generative
AI clients, with three more buckets, since a call to a language model can outlast 82 seconds.
"""

from __future__ import annotations

from typing import Literal

import msgspec

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
           163.84, 327.68, 600.0)  # fmt: skip
FIRST_CHUNK = (*SECONDS[:13], 60.0)
TOKENS = tuple(float(4**power) for power in range(14))
OVERHEAD = (50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25)
LAG = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_GEN_AI = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")


class Metric(msgspec.Struct, frozen=True):
    """One row of the table."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many cells a series takes: one, or one for each bucket, the infinite one, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


TABLE = (
    Metric("histogram", "gen_ai_client_operation_duration_seconds", "Duration of an exchange.",
           (*_GEN_AI, "error_type"), SECONDS),
    Metric("histogram", "gen_ai_client_operation_time_to_first_chunk_seconds", "Time to a stream's first chunk.",
           _GEN_AI, FIRST_CHUNK),
    Metric("histogram", "gen_ai_client_token_usage", "Tokens of an exchange, where known.",
           (*_GEN_AI, "gen_ai_token_type"), TOKENS),
    Metric("counter", "unprompt_requests_total", "Exchanges by how they ended.",
           ("route", "operation", "model_requested", "model_served", "status_class", "outcome")),
    Metric("counter", "unprompt_stripped_requests_total", "Exchanges served without their prompt.",
           ("route", "target")),
    Metric("counter", "unprompt_fallbacks_total", "Requests that went to the fallback, whole, and why.",
           ("route", "reason")),
    Metric("counter", "unprompt_retries_total", "Requests that were sent once more, and why.", ("route", "reason")),
    Metric("counter", "unprompt_rejected_total", "Requests that the gateway itself turned away, and why.",
           ("route", "reason")),
    Metric("counter", "unprompt_copies_total", "Requests that the gateway itself asked once more, by their end.",
           ("route", "kind", "outcome")),
    Metric("counter", "unprompt_copies_cost_usd_total", "Cost of those that have a price, in USD.",
           ("route", "kind")),
    Metric("counter", "unprompt_cost_usd_total", "Cost of priced exchanges in USD.", ("route", "target")),
    Metric("counter", "unprompt_cost_unknown_total", "Exchanges without a price.", ("reason",)),
    Metric("counter", "unprompt_usage_missing_total", "Answered exchanges without token counts of the upstream.",
           ("source",)),
    Metric("histogram", "unprompt_overhead_seconds", "Time spent in the gateway itself.", (), OVERHEAD),
    Metric("gauge", "unprompt_in_flight", "Exchanges under way."),
    Metric("histogram", "unprompt_loop_lag_seconds", "How late a timer of the event loop came.", (), LAG),
    Metric("gauge", "unprompt_loop_lag_max_seconds", "The latest such timer within the last one to two minutes."),
    Metric("counter", "unprompt_log_records_total", "Records of exchanges: written, spooled, dropped, poison.",
           ("result",)),
    Metric("counter", "unprompt_log_sync_failures_total", "Failed attempts to force the journal to the disk."),
    Metric("gauge", "unprompt_log_spool_bytes", "Bytes in the journal that are not yet in the store."),
    Metric("gauge", "unprompt_log_lag_seconds", "For how long the store has been behind the journal."),
    Metric("gauge", "unprompt_log_set_aside_files", "Files beside the journal with records that cannot be stored.",
           ("kind",)),
    Metric("gauge", "unprompt_log_writer_up", "1 while the process runs that moves records into the store."),
    Metric("counter", "unprompt_log_writer_restarts_total", "Restarts of what moves records into the store.",
           ("part",)),
    Metric("gauge", "unprompt_log_disk_free_bytes", "Free bytes on the journal's file system."),
    Metric("gauge", "unprompt_upstream_healthy", "1: its last exchange was answered; 0: it failed.", ("target",)),
    Metric("gauge", "unprompt_upstream_circuit_open", "1 while some worker sends it nothing, since it failed.",
           ("target",)),
    Metric("counter", "unprompt_relay_restarts_total", "Relay processes that died and were replaced."),
    Metric("counter", "unprompt_config_reload_total", "Reloads of routes.yaml, in each worker.", ("result",)),
    Metric("gauge", "unprompt_config_last_success_timestamp_seconds", "When every worker had loaded its routes."),
    Metric("gauge", "unprompt_config_version_info", "1 for the version of routes.yaml in force.",
           ("version", "worker")),
    Metric("gauge", "unprompt_route_weight", "Share of a route's requests that a target gets.",
           ("route", "target")),
    Metric("gauge", "unprompt_task_match_ratio", "Share of a task's newest requests that match.",
           ("task",)),
    Metric("gauge", "unprompt_task_alarm", "1 while a task's requests match less often than before.",
           ("task",)),
    Metric("gauge", "unprompt_alarm", "1 while an alarm of this kind is raised.", ("task", "kind")),
    Metric("gauge", "unprompt_task_agreement", "Audited answers that agree with the incumbent's, with bounds.",
           ("task", "bound")),
    Metric("gauge", "unprompt_task_saved_usd", "USD that stripped requests saved, net of audits and shadows.",
           ("task",)),
    Metric("gauge", "unprompt_task_saved_seconds", "Seconds that clients of stripped requests did not wait.",
           ("task",)),
    Metric("gauge", "unprompt_template_requests", "Requests of the last 90 days by what became of them.",
           ("task", "version", "result")),
    Metric("gauge", "unprompt_templates", "Templates that are proposed, trusted or drifting.", ("state",)),
    Metric("counter", "unprompt_series_refused_total", "Counts that found no room for a series of their own."),
    Metric("gauge", "unprompt_build_info", "1 for the version that runs.", ("version",)),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in TABLE}

# --- the row of an exchange ------------------------------------------------------------------------------

EXCHANGE = "exchange"
"""First part of the key of such a row; the others are the fields of `Kind`, as texts."""

DURATION = 0
FIRST = DURATION + len(SECONDS) + 2
INPUT = FIRST + len(FIRST_CHUNK) + 2
OUTPUT = INPUT + len(TOKENS) + 2
COST = OUTPUT + len(TOKENS) + 2
NO_USAGE, NO_PRICE, ESTIMATED, UNCOUNTED = range(COST + 1, COST + 5)
WIDTH = UNCOUNTED + 1
"""Offsets in the row: four histograms, USD, exchanges without a price (two reasons) and without counts."""


class Kind(msgspec.Struct, frozen=True, array_like=True):
    """What exchanges must share to be counted in one row; every field is a label that came through `label`."""

    operation: str
    provider: str
    requested: str
    served: str
    error: str
    route: str
    status_class: str
    outcome: str
    target: str
    stripped: str
    fallback: str

    @property
    def gen_ai(self) -> tuple[str, str, str, str]:
        """The labels that the OpenTelemetry metrics share."""
        return self.operation, self.provider, self.requested, self.served


def label(text: str) -> str:
    """A value that is safe as a label: a line of at most 120 characters that UTF-8 can write."""
    cut = text[:120]
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)
