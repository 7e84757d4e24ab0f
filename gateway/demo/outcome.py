"""The demo's last page: before and after, and where to look next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from gateway import tables
from gateway.figures import figure, share
from gateway.pipeline.evaluate import Report
from gateway.pipeline.gate import Decision


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables of a finished demo."""
    console.print(tables.report(msgspec.convert(result["report"], Report)))
    console.print(tables.decision(msgspec.convert(result["decision"], Decision)))
    console.print(_comparison(result))
    console.print(
        f"stripped {share(result['stripped_share'])} of requests, whole to the incumbent "
        f"{share(result['fallback_share'])}; {result['changed_requests']} requests with a changed prompt: "
        f"{result['wrong_strips']} wrongly stripped, {share(result['changed_accuracy'])} answered right"
    )
    console.print(f"{result['rows']} rows, {result['candidates']} candidates, {result['seconds']:.0f} s in all")
    console.print(_next_steps(result), soft_wrap=True)


def show_drift(result: dict[str, Any], console: Console) -> None:
    """Print the timeline of the story of a prompt that changes, and what the app saw of it."""
    console.print(tables.table("What happened, and when", ("second", "requests", "remark"), [
        (f"{event['seconds']:.1f}", f"{event['requests']:,}", event["what"]) for event in result["timeline"]
    ]))  # fmt: skip
    console.print(tables.table("What the app saw", ("", "requests", "stripped", "right", "errors"), [
        (name, str(result[key]["requests"]), share(result[key]["stripped_share"]), share(result[key]["accuracy"]),
         str(result[key]["errors"]))
        for name, key in (("first prompt, served by its model", "before"),
                          ("the first 50 with the second prompt", "at_once"),
                          ("all until that was learnt", "between"),
                          ("second prompt, served by its model", "after"))
    ]))  # fmt: skip
    console.print(
        f"{result['wrong_strips']} requests wrongly stripped; {result['promotions']} promotions, "
        f"{result['rollbacks']} rollbacks; {result['requests_until_promoted_again']:,} requests from the new "
        f"prompt to its model; {result['seconds']:.0f} s; everything is in {result['home']}",
        soft_wrap=True,
    )


def _comparison(result: dict[str, Any]) -> Any:
    before, after = result["before"], result["after"]
    lines = [
        ("accuracy against gold", "accuracy", "{:.1%}"),
        ("cost per 1,000 requests, USD", "cost_per_1k_usd", "{:.4f}"),
        ("input tokens a request", "input_tokens", "{:.0f}"),
        ("latency p50, ms", "p50_ms", "{:,.1f}"),
        ("latency p95, ms", "p95_ms", "{:,.1f}"),
    ]
    title = f"Before and after: {before['requests']} held-out requests, {result['labels']} labels"
    return tables.table(title, ("", "before", "after", "change"), [
        (
            name,
            figure(before[key], form),
            figure(after[key], form),
            _change(key, before[key], after[key]),
        )
        for name, key, form in lines
    ])  # fmt: skip


def _change(key: str, before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "-"
    if key == "accuracy":
        return f"{(after - before) * 100:+.1f} points"
    return f"{(after / before - 1) * 100:+.1f} %" if before else "-"


def _next_steps(result: dict[str, Any]) -> str:
    home = Path(result["home"])
    config = home / "config" / "gateway.yaml"
    flipped = [
        f"  unprompt rollback {result['task']} --config {config}",
        f"  {config.with_name('routes.yaml')}            the flipped route",
    ]
    refused = [
        "  nothing was switched: the decision above names the condition that failed; more --rows usually help"
    ]
    return "\n".join([
        "where to look next:",
        f"  unprompt tasks show {result['task']} --config {config}",
        *(flipped if result["promoted"] else refused),
        f"  {home / 'data' / 'datasets'}    training rows and their card",
        f"  sqlite-utils tables {home / 'data' / 'unprompt.db'} --counts",
    ])  # fmt: skip
