"""What Prometheus is told: every exchange once, with labels that no client can multiply."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from relaying import story

from gateway.domain.exchange import Begin, End, Outcome, Usage
from gateway.domain.route import Match, Route, RouteTable, Target
from gateway.matches import FILE, Matches, write_matches
from gateway.metrics import MODELS_AT_MOST, TABLE, LoopWatch, Metrics, Sheet, counting, retire
from gateway.metrics.cells import SheetFull
from gateway.proxy.record import Seen
from gateway.restarts import count_restart
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


@pytest.mark.parametrize("outcome", Outcome)
def test_every_way_to_end_is_counted_under_its_name(metrics: Metrics, outcome: Outcome) -> None:
    metrics.observe(seen(outcome=outcome, error_type=None if outcome is Outcome.OK else outcome.value))
    assert value(metrics, "unprompt_requests_total", outcome=outcome.value) == 1
    assert value(metrics, "unprompt_requests_total") == 1


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
    for outcome in (Outcome.CALLER_CANCELLED, Outcome.POLICY_LIMIT):  # say nothing of the upstream
        metrics.observe(seen(outcome=outcome))
    assert value(metrics, "unprompt_upstream_healthy", **target) == 0
    metrics.observe(seen())
    assert value(metrics, "unprompt_upstream_healthy", **target) == 1


def test_every_metric_of_the_table_can_be_scraped(metrics: Metrics) -> None:
    text = metrics.expose().decode()
    for metric in TABLE:
        assert f"# TYPE {metric.name} {metric.kind}" in text


# --- several processes ---------------------------------------------------------------------------------------


def in_a_child(work: Callable[[], None], *, killed: bool) -> None:
    """Do it in a forked process, which is then killed (`kill -9`) or leaves."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def test_workers_add_up_and_what_a_killed_one_counted_stays(tmp_path: Path) -> None:
    sheets = [Sheet() for _ in range(3)]
    here = Metrics(tmp_path, lambda: 2, sheets=sheets, worker=0)

    def serve(exchanges: int, under_way: int) -> None:
        there = Metrics(tmp_path, lambda: under_way, sheets=sheets, worker=1)
        for _ in range(exchanges):
            there.observe(seen())
            there.record("written")
        there.circuit("openai/gpt-6", True)  # a name that an answer made known
        there.late(0.7)

    here.observe(seen())
    in_a_child(lambda: serve(5, under_way=4), killed=True)
    assert value(here, "unprompt_requests_total", outcome="ok") == 6
    assert value(here, "unprompt_in_flight") == 6  # nobody has noticed its death yet
    assert value(here, "unprompt_upstream_circuit_open", target="openai/gpt-6") == 1
    assert value(here, "unprompt_loop_lag_max_seconds") == 0.7
    retire(sheets[1])
    assert value(here, "unprompt_in_flight") == 2
    assert value(here, "unprompt_upstream_circuit_open", target="openai/gpt-6") == 0
    assert value(here, "unprompt_loop_lag_max_seconds") == 0
    in_a_child(lambda: serve(2, under_way=1), killed=True)  # its successor goes on
    assert value(here, "unprompt_requests_total", outcome="ok") == 8
    assert value(here, "unprompt_log_records_total", result="written") == 7
    assert value(here, "unprompt_in_flight") == 3
    assert value(here, "gen_ai_client_operation_duration_seconds_sum") == 12.0
    assert value(here, "unprompt_cost_usd_total") == 2.0
    other = Metrics(tmp_path, lambda: 0, sheets=sheets, worker=2)
    assert value(other, "unprompt_requests_total") == 8  # whoever is asked


def test_an_upstream_is_as_healthy_as_whoever_asked_it_last_found_it(tmp_path: Path) -> None:
    sheets = [Sheet(), Sheet()]
    one, two = (Metrics(tmp_path, lambda: 0, sheets=sheets, worker=n) for n in (0, 1))
    one.observe(seen(outcome=Outcome.UPSTREAM_TRUNCATED))
    two.observe(seen())
    assert value(one, "unprompt_upstream_healthy") == 1
    one.observe(seen(outcome=Outcome.UPSTREAM_TRUNCATED))
    assert value(two, "unprompt_upstream_healthy") == 0


def test_each_worker_shows_the_version_of_its_routes_and_weights_are_their_mean(tmp_path: Path) -> None:
    sheets = [Sheet(), Sheet()]
    one, two = (Metrics(tmp_path, lambda: 0, sheets=sheets, worker=n) for n in (0, 1))
    targets = (Target(upstream="local", model="m", weight=90), Target(upstream="openai", weight=10))
    before = RouteTable(version="v1")
    after = RouteTable(routes=(Route(name="r", match=Match(), targets=targets),), version="v2")
    one.reloaded(before, 10.0)
    two.reloaded(before, 11.0)
    one.reloaded(after, 20.0)
    versions = [dict(labels) for name, labels in samples(two) if name == "unprompt_config_version_info"]
    assert versions == [{"version": "v2", "worker": "0"}, {"version": "v1", "worker": "1"}]
    assert value(two, "unprompt_route_weight", target="local/m") == 0.45  # half of the workers send it 90 %
    assert value(two, "unprompt_config_last_success_timestamp_seconds") == 11.0  # not all have the new one yet
    two.reloaded(after, 21.0)
    assert value(one, "unprompt_route_weight", target="local/m") == 0.9
    memory = {dict(labels)["worker"]: v for (name, labels), v in samples(one).items() if name == "process_open_fds"}
    assert set(memory) == {"0", "1"}


def test_a_relay_that_is_alone_has_the_usual_process_metrics(metrics: Metrics) -> None:
    assert value(metrics, "process_resident_memory_bytes") > 10_000_000
    assert ("process_open_fds", ()) in samples(metrics)


# --- what else is told -----------------------------------------------------------------------------------------


def test_retries_refusals_circuits_and_restarts_are_told(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.retried("mail", "upstream_timeout")
    metrics.rejected(None, "too_large")
    named = (Target(upstream="local", model="m"), Target(upstream="openai", model="gpt-6"))
    metrics.reloaded(RouteTable(routes=(Route(name="mail", match=Match(), targets=named),), version="v1"), 1.0)
    metrics.circuit("openai/gpt-6", True)
    metrics.circuit("openai/what-a-client-made-up", True)
    metrics.circuit("local/m", True)
    metrics.circuit("local/m", False)
    metrics.restarted("process")
    metrics.replaced()
    assert value(metrics, "unprompt_retries_total", route="mail", reason="upstream_timeout") == 3
    assert value(metrics, "unprompt_rejected_total", route="none", reason="too_large") == 1
    assert value(metrics, "unprompt_upstream_circuit_open", target="openai/gpt-6") == 1
    assert value(metrics, "unprompt_upstream_circuit_open", target="local/m") == 0
    assert value(metrics, "unprompt_upstream_circuit_open", target="openai/other") == 1
    assert value(metrics, "unprompt_log_writer_restarts_total", part="process") == 1
    assert value(metrics, "unprompt_relay_restarts_total") == 1


def test_the_lag_of_the_loop_is_told_with_its_worst(metrics: Metrics) -> None:
    for seconds in (0.0004, 0.003, 0.04):
        metrics.late(seconds)
    assert value(metrics, "unprompt_loop_lag_seconds_bucket", le="0.005") == 2
    assert value(metrics, "unprompt_loop_lag_seconds_count") == 3
    assert value(metrics, "unprompt_loop_lag_max_seconds") == 0.04


@story
async def test_a_loop_that_does_nothing_is_hardly_woken_to_be_watched(metrics: Metrics) -> None:
    watch = LoopWatch(metrics.late)
    watch.start()
    await asyncio.sleep(1)
    watch.stop()
    assert 1 <= value(metrics, "unprompt_loop_lag_seconds_count") <= 10


@story
async def test_a_busy_loop_that_is_held_up_is_seen(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.metrics.loop.BUSY_SHARE", 0.0)  # whatever it does, it is busy
    watch = LoopWatch(metrics.late)
    watch.start()
    await asyncio.sleep(0.1)
    assert value(metrics, "unprompt_loop_lag_seconds_count") >= 2
    time.sleep(0.3)
    await asyncio.sleep(0.05)
    watch.stop()
    assert 0.25 < value(metrics, "unprompt_loop_lag_max_seconds") < 5


def test_files_that_were_set_aside_and_threads_that_died_are_counted(tmp_path: Path, metrics: Metrics) -> None:
    folder = tmp_path / "not" / "yet" / "there"
    assert value(metrics, "unprompt_log_set_aside_files") == 0
    count_restart(folder, "recorder")
    metrics.restarted("process")
    for name in ("1.poison", "2.poison", "3.torn", "4.journal", "poison"):
        (folder / name).write_bytes(b"")
    assert value(metrics, "unprompt_log_set_aside_files", kind="poison") == 2
    assert value(metrics, "unprompt_log_set_aside_files", kind="torn") == 1
    assert value(metrics, "unprompt_log_writer_restarts_total", part="recorder") == 1
    assert value(metrics, "unprompt_log_writer_restarts_total", part="process") == 1


def test_how_long_nobody_moves_records_is_known(metrics: Metrics) -> None:
    assert metrics.writer_down_seconds() == 0  # there never was one: somebody else does it
    assert ("unprompt_log_writer_up", ()) not in samples(metrics)
    metrics.writer(True)
    assert (metrics.writer_down_seconds(), value(metrics, "unprompt_log_writer_up")) == (0, 1)
    metrics.writer(False)
    time.sleep(0.05)
    assert 0.05 <= metrics.writer_down_seconds() < 5
    assert value(metrics, "unprompt_log_writer_up") == 0
    metrics.writer(True)
    assert metrics.writer_down_seconds() == 0


# --- what clients may send ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(max_size=200), st.sampled_from([200, 404, 502])), min_size=1, max_size=20),
    st.text(max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_no_name_breaks_the_text_or_loses_a_count(names: list[tuple[str, int]], route: str) -> None:
    metrics = Metrics(Path("nowhere"), lambda: 0)
    for name, status in names:
        metrics.observe(seen(model=name, served=None, status=status))
        metrics.rejected(route, name)
    text = metrics.expose().decode()  # UTF-8, whatever stood in the names
    assert value(metrics, "unprompt_requests_total") == len(names)
    assert value(metrics, "unprompt_rejected_total") == len(names)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith(("unprompt_", "gen_ai_", "process_")) for line in lines)


def test_a_name_cannot_make_up_a_line(metrics: Metrics) -> None:
    metrics.observe(seen(model='x"} 1\nunprompt_evil_total{a="\\', served="\ud800 lone"))
    assert "unprompt_evil_total" not in {name for name, _ in samples(metrics)}
    requested = [
        dict(found)["model_requested"] for name, found in samples(metrics) if name == "unprompt_requests_total"
    ]
    assert requested == ['x"} 1?unprompt_evil_total{a="\\']


def test_kinds_beyond_all_measure_are_counted_together(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "KINDS_AT_MOST", 50)
    monkeypatch.setattr(counting, "SERIES_AT_MOST", 30)
    for number in range(1000):
        metrics.observe(seen(model=f"m{number % 10}", served=f"m{number % 13}"))
    for number in range(1000):
        metrics.observe(seen(fallback=f"strange-{number}"))  # not even names of ours are trusted
        metrics.retried(f"route-{number}", "x")
    assert value(metrics, "unprompt_requests_total") == 2000
    assert value(metrics, "unprompt_stripped_requests_total") == 0
    assert value(metrics, "unprompt_retries_total") == 1000
    kinds = {found for name, found in samples(metrics) if name == "unprompt_requests_total"}
    reasons = {found for name, found in samples(metrics) if name == "unprompt_fallbacks_total"}
    assert len(kinds) <= 102
    assert len(reasons) <= 102
    assert len({found for name, found in samples(metrics) if name == "unprompt_retries_total"}) == 31


def filled(sheet: Sheet) -> Sheet:
    """Until not even the shortest name fits."""
    for name in ("x" * 1000, "x" * 10, ""):
        with contextlib.suppress(SheetFull):
            for number in range(100_000):
                sheet.row((name, str(number)), 1)
    return sheet


def test_a_sheet_that_is_full_loses_the_name_and_not_the_count() -> None:
    metrics = Metrics(Path("nowhere"), lambda: 0, sheets=[sheet := Sheet()])
    filled(sheet)
    with pytest.raises(SheetFull):
        sheet.row(("one", "more"), 1)
    metrics.retried("late", "comer")
    metrics.observe(seen())
    rows = {key: sheet.values(*where)[0] for key, where in sheet.rows().items() if not key[0].startswith("x")}
    assert rows[("unprompt_series_refused_total",)] == 1
    assert sum(sheet.values(*sheet.rows()[("exchange", *["other"] * 9, "", "")])[:18]) == 1


def test_a_note_that_is_too_long_leaves_the_one_before() -> None:
    sheet = Sheet()
    sheet.write_note(b"short")
    with pytest.raises(SheetFull):
        sheet.write_note(b"x" * 1_000_000)
    assert sheet.note() == b"short"


def test_a_scrape_comes_in_small_pieces(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.observe(seen(model=f"m{number % 150}", served="gpt-6", error_type=f"e{number // 150}"))
    pieces = list(metrics.pages())
    assert len(pieces) > 60
    assert max(map(len, pieces)) < 300_000
    assert b"".join(pieces).decode().endswith("\n")


def test_what_the_worker_knows_of_templates_is_told(metrics: Metrics, tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    home.mkdir(parents=True)
    told = Matches(
        shares={"mail": 0.875, "sums": 1.0},
        counts={"mail@1": {"matched": 35, "literal": 5}, "sums@12": {"matched": 7}},
        states={"mail@1": "trusted", "mail@2": "proposed", "sums@12": "drifting"},
        alarms=["mail"],
    )
    write_matches(home, told)
    assert value(metrics, "unprompt_task_match_ratio", task="mail") == 0.875
    assert value(metrics, "unprompt_task_alarm", task="mail") == 1
    assert value(metrics, "unprompt_task_alarm", task="sums") == 0
    assert value(metrics, "unprompt_template_requests", task="mail", version="1", result="literal") == 5
    assert value(metrics, "unprompt_template_requests", task="sums", version="12", result="matched") == 7
    assert [value(metrics, "unprompt_templates", state=state) for state in ("trusted", "drifting")] == [1, 1]
    (home / FILE).write_bytes(b"{")
    assert value(metrics, "unprompt_templates", state="trusted") == 0
