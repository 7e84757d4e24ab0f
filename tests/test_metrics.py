"""What Prometheus is told: every exchange once, with labels that no client can multiply."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.domain.exchange import Begin, End, Outcome, Usage
from gateway.domain.route import Match, Route, RouteTable, Target
from gateway.metrics import MODELS_AT_MOST, TABLE, Metrics
from gateway.proxy.record import Seen
from gateway.stores import journal


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path / "not" / "yet" / "there", lambda: 3)


def seen(model: str = "gpt-6", served: str | None = "gpt-6-1", status: int = 200, **changes: Any) -> Seen:
    begin = Begin(
        id="e1", started_at=0.0, method="POST", endpoint="/v1/chat/completions", provider="openai", route="mail",
        task=None, task_hint=None, model_requested=model, key_id=None, tags={}, request_headers={}, request=b"",
    )  # fmt: skip
    end = End(
        id="e1", target=f"openai/{model}", stripped=False, status=status, streamed=True, complete=True,
        error_type=None, latency_ms=1500.0, ttft_ms=90.0, model_served=served, finish_reason="stop",
        usage=Usage(input=100, output=20, source="upstream"), cost_usd=0.25, attempts=[], response_headers={},
        response=b"",
    )  # fmt: skip
    outcome = changes.pop("outcome", Outcome.OK)
    fallback = changes.pop("fallback", None)
    end = msgspec.structs.replace(end, **changes)
    return Seen(begin=begin, end=end, operation="chat", outcome=outcome, overhead=0.0004, fallback=fallback)


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.expose().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    wanted = labels.items()
    return sum(v for (n, found), v in samples(metrics).items() if n == name and wanted <= dict(found).items())


def test_an_exchange_is_counted_once_everywhere(metrics: Metrics) -> None:
    metrics.observe(seen())
    metrics.observe(seen())
    assert value(metrics, "unprompt_requests_total", outcome="ok", status_class="2xx", route="mail") == 2
    duration = "gen_ai_client_operation_duration_seconds"
    assert value(metrics, f"{duration}_sum", gen_ai_request_model="gpt-6", gen_ai_response_model="gpt-6-1") == 3.0
    assert value(metrics, f"{duration}_bucket", le="2.56") == 2
    assert value(metrics, f"{duration}_bucket", le="1.28") == 0
    assert value(metrics, "gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 200
    assert value(metrics, "gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 40
    assert value(metrics, "unprompt_cost_usd_total", target="openai/gpt-6") == 0.5
    assert value(metrics, "unprompt_overhead_seconds_count") == 2
    assert value(metrics, "unprompt_in_flight") == 3


def test_priced_and_unpriced_are_all(metrics: Metrics) -> None:
    metrics.observe(seen())
    metrics.observe(seen(cost_usd=None))
    metrics.observe(seen(cost_usd=None, usage=Usage()))
    metrics.observe(seen(usage=Usage(input=1, output=1, source="estimated")))
    assert value(metrics, "unprompt_cost_unknown_total", reason="no_price") == 1
    assert value(metrics, "unprompt_cost_unknown_total", reason="no_usage") == 1
    assert value(metrics, "unprompt_usage_missing_total", source="estimated") == 1
    assert value(metrics, "unprompt_cost_usd_total") == 0.5
    assert value(metrics, "gen_ai_client_token_usage_sum", gen_ai_token_type="input") == 200  # no estimates


def test_errors_fallbacks_and_strips_are_told_apart(metrics: Metrics) -> None:
    metrics.observe(
        seen(status=502, error_type="upstream_connect", outcome=Outcome.UPSTREAM_CONNECT, cost_usd=None)
    )
    metrics.observe(seen(stripped=True, target="local/mail-1"))
    metrics.observe(seen(fallback="abstained"))
    assert value(metrics, "unprompt_requests_total", outcome="upstream_connect", status_class="5xx") == 1
    assert value(metrics, "gen_ai_client_operation_duration_seconds_count", error_type="upstream_connect") == 1
    assert value(metrics, "unprompt_stripped_requests_total", target="local/mail-1") == 1
    assert value(metrics, "unprompt_fallbacks_total", reason="abstained") == 1
    assert value(metrics, "unprompt_cost_unknown_total") == 0  # an error costs nothing, known or unknown


def test_names_that_clients_make_up_multiply_nothing(metrics: Metrics) -> None:
    metrics.observe(seen())
    before = len(samples(metrics))
    for number in range(200):
        metrics.observe(
            seen(model=f'nonsense-{number}\n"', served=None, status=404, error_type="upstream_http_4xx")
        )
    once = len(samples(metrics))
    assert once - before < 80  # one set of series under the name "other"
    for number in range(2 * MODELS_AT_MOST):  # and also when an upstream takes every name
        metrics.observe(seen(model=f"taken-{number}", served="gpt-6-1"))
    names = {dict(labels).get("gen_ai_request_model", "") for _, labels in samples(metrics)}
    targets = {dict(labels).get("target", "") for _, labels in samples(metrics)}
    assert len(names) <= MODELS_AT_MOST + 2
    assert len(targets) <= MODELS_AT_MOST + 2
    assert "openai/other" in targets


def test_a_reload_shows_its_weights_and_a_failed_one_only_itself(metrics: Metrics) -> None:
    targets = (Target(upstream="local", model="m", weight=95), Target(upstream="openai", weight=5))
    metrics.reloaded(RouteTable(routes=(Route(name="r", match=Match(), targets=targets),), version="v1"), 111.0)
    metrics.reloaded(None, 222.0)
    assert value(metrics, "unprompt_config_reload_total", result="ok") == 1
    assert value(metrics, "unprompt_config_reload_total", result="failed") == 1
    assert value(metrics, "unprompt_config_last_success_timestamp_seconds") == 111.0
    assert value(metrics, "unprompt_route_weight", route="r", target="local/m") == 0.95
    metrics.reloaded(RouteTable(version="v2"), 333.0)
    assert value(metrics, "unprompt_route_weight") == 0
    assert [dict(labels) for name, labels in samples(metrics) if name == "unprompt_config_version_info"] == [
        {"version": "v2", "worker": "0"}
    ]


def test_the_spool_and_the_disk_are_watched(tmp_path: Path, metrics: Metrics) -> None:
    assert value(metrics, "unprompt_log_spool_bytes") == 0
    assert value(metrics, "unprompt_log_disk_free_bytes") > 0  # before the folder exists, too
    folder = tmp_path / "not" / "yet" / "there"
    folder.mkdir(parents=True)
    (folder / "1.journal").write_bytes(b"x" * 1234)
    assert value(metrics, "unprompt_log_spool_bytes") == 1234
    journal.note_moved(folder, lambda segment: 1000)
    assert value(metrics, "unprompt_log_spool_bytes") == 234
    os.utime(folder / "moved.json", (time.time() - 60, time.time() - 60))
    assert 59 < value(metrics, "unprompt_log_lag_seconds") < 90
    journal.note_moved(folder, lambda segment: 1234)
    assert value(metrics, "unprompt_log_spool_bytes") == 0
    assert value(metrics, "unprompt_log_lag_seconds") == 0  # nothing waits, however long ago the last move was


def test_an_upstream_is_healthy_by_its_last_answer(metrics: Metrics) -> None:
    metrics.observe(seen())
    target = {"target": "openai/gpt-6"}
    assert value(metrics, "unprompt_upstream_healthy", **target) == 1
    metrics.observe(seen(outcome=Outcome.UPSTREAM_TIMEOUT))
    assert value(metrics, "unprompt_upstream_healthy", **target) == 0
    metrics.observe(seen(outcome=Outcome.CALLER_CANCELLED))  # says nothing of the upstream
    assert value(metrics, "unprompt_upstream_healthy", **target) == 0
    metrics.observe(seen())
    assert value(metrics, "unprompt_upstream_healthy", **target) == 1


def test_every_metric_of_the_table_can_be_scraped(metrics: Metrics) -> None:
    text = metrics.expose().decode()
    for metric in TABLE:
        assert f"# TYPE {metric.name} {metric.kind}" in text
