"""What `unprompt tasks` says of each task, and what it says is next."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest
import stories
import yaml
from stories import asked, exchange, keep, mail, template, traffic

from gateway.dashboard import facts, pages
from gateway.pipeline.alarms import Watched
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.gate import Check, Decision
from gateway.pipeline.overview import overview
from gateway.pipeline.promotions import note_refusal
from gateway.pipeline.serving import serves
from gateway.stores.audited import keep_watch_state


def test_a_task_with_its_prompt_in_use_and_how_many_requests_fit_it(shop: Workshop) -> None:
    old = traffic(30)
    new = [exchange(100 + n, asked(text, system=stories.NEW_SYSTEM), label, version=2)
           for n, (text, label) in enumerate(mail()[:70])]  # fmt: skip
    keep(shop.store, [*old, *new], template(), template(stories.NEW_SYSTEM, 2))
    (row,) = overview(shop.store, shop.config)
    assert (row["name"], row["version"], row["versions"], row["slots"]) == ("mail", 2, [1, 2], ["message"])
    assert (row["exchanges"], row["match_rate"], row["next"]) == (100, 0.7, "training is due")


def test_a_task_that_nobody_has_asked_yet(shop: Workshop) -> None:
    shop.store.add_template(template())
    (row,) = overview(shop.store, shop.config)
    assert (row["version"], row["match_rate"]) == (1, None)
    assert row["next"] == "100 more exchanges until training"


LATER = "90 more whole answers until the next training"


@pytest.mark.parametrize(
    ("jobs", "promotions", "said"),
    [
        ([("running", "finetune", None)], [], "in work: finetune"),
        ([("running", "promote", "routes.yaml is broken")], [], "in work: promote (routes.yaml is broken)"),
        ([("failed", "dataset", "too few rows")], [], f"too few rows; {LATER}"),
        ([("done", "done", None)], ["promote"], LATER),
        ([("done", "done", None)], ["refuse"], f"candidate refused; {LATER}"),
        ([("done", "done", None)], ["promote", "rollback"], f"rolled back; {LATER}"),
        ([("done", "done", None)], ["ask"], "m-ask waits for 'unprompt promote mail'"),
        ([("done", "done", None), ("failed", "dataset", "disk")], ["promote"], f"disk; {LATER}"),
        ([("done", "done", None), ("ended", "done", "mail@1 is gone")], ["ask"], f"mail@1 is gone; {LATER}"),
    ],
)
def test_what_is_next(shop: Workshop, jobs: list[Any], promotions: list[str], said: str) -> None:
    keep(shop.store, traffic(10))
    for number, action in enumerate(promotions):
        shop.store.put("promotions", {"id": f"p{number}", "task": "mail", "action": action, "target": f"m-{action}",
                                      "decision": "null", "created_at": 10.0 + number})  # fmt: skip
    for number, (state, step, error) in enumerate(jobs):
        shop.store.put("jobs", {
            "id": f"j{number}", "kind": "cycle", "task": "mail", "state": state, "step": step, "detail": "{}",
            "error": error, "created_at": 9.0 + 90 * number, "updated_at": 0.0,
        })  # fmt: skip
    (row,) = overview(shop.store, shop.config)
    assert row["next"] == said


def test_what_its_stripped_requests_saved(shop: Workshop) -> None:
    whole = [exchange(n, asked(f"letter {n}"), "refund", cost_usd=0.004, latency_ms=900.0) for n in range(10)]
    bare = [exchange(100 + n, asked(f"letter {n}"), "refund", cost_usd=0.0, latency_ms=100.0, stripped=True,
                     target="local/mail-1") for n in range(5)]  # fmt: skip
    keep(shop.store, [*whole, *bare])
    (row,) = overview(shop.store, shop.config)
    assert (row["saved_usd"], row["saved_seconds"]) == (pytest.approx(0.02), pytest.approx(4.0))
    assert [day["stripped"] for day in row["saved_by_day"]] == [5]


def promotion(
    name: str, *targets: dict[str, Any], steps: list[Any] | None = None, at: float = 1.0
) -> dict[str, Any]:
    """A row of the history: the task's route goes to these targets from then on."""
    return {
        "id": name, "task": "mail", "action": "promote", "target": targets[0]["model"], "decision": "null",
        "created_at": at, "steps": steps or [], "routes_after": yaml.safe_dump({"targets": list(targets)}),
    }  # fmt: skip


LOCAL = {"upstream": "local", "strip": "mail@1"}


def test_who_serves_it_is_told_also_while_there_is_work(shop: Workshop) -> None:
    keep(shop.store, traffic(10))
    (row,) = overview(shop.store, shop.config)
    assert (row["serving"], serves(row)) == (None, "")
    shop.store.put("promotions", promotion("p1", LOCAL | {"model": "mail-1", "weight": 95}, at=1.8e9))
    shop.store.put("jobs", {
        "id": "j", "kind": "cycle", "task": "mail", "state": "running", "step": "finetune", "detail": {},
        "created_at": 1.8e9 + 60, "updated_at": 0.0,
    })  # fmt: skip
    (row,) = overview(shop.store, shop.config)
    assert row["serving"] == {"model": "mail-1", "strip": "mail@1", "percent": 95.0, "since": 1.8e9}
    assert serves(row) == "served by mail-1: 95 % of the requests, since 2027-01-15 08:00 UTC"
    assert row["next"] == "in work: finetune"
    page = pages.board(facts.board(shop.store, shop.config))
    for said in (serves(row), "in work: finetune"):
        assert said in page


def test_a_version_that_is_not_the_usual_one_any_more_is_named(shop: Workshop) -> None:
    new = [exchange(n, asked(text, system=stories.NEW_SYSTEM), label, version=2)
           for n, (text, label) in enumerate(mail()[:20])]  # fmt: skip
    keep(shop.store, new, template(), template(stories.NEW_SYSTEM, 2))
    shop.store.put("promotions", promotion("p1", LOCAL | {"model": "mail-1", "weight": 95}))
    (row,) = overview(shop.store, shop.config)
    assert serves(row) == "served by mail-1: 95 % of those with mail@1, since 1970-01-01 00:00 UTC"


def test_why_a_candidate_was_refused_is_said(shop: Workshop) -> None:
    keep(shop.store, traffic(10))
    checks = (Check("agreement", 0.912, 0.95, holds=False), Check("cost ratio", 0.02, 0.7, holds=True))
    note_refusal(shop.store, Decision(task="mail", evaluation="e1", candidate="ft-1", score=None, checks=checks,
                                      promote=False))  # fmt: skip
    (row,) = overview(shop.store, shop.config)
    assert row["next"].startswith("candidate refused (agreement: 0.912, limit 0.95); ")


def test_how_far_a_canary_is(shop: Workshop) -> None:
    keep(shop.store, traffic(10))
    targets = [LOCAL | {"model": "mail-2", "weight": 10}, LOCAL | {"model": "mail-1", "weight": 85}]
    shop.store.put("promotions", promotion("p2", *targets, steps=[{"share": 50}, {"share": 95}]))
    (row,) = overview(shop.store, shop.config)
    since = "since 1970-01-01 00:00 UTC"
    beside = "0 of 50 answers compared, then 50 %; served by mail-1"
    assert serves(row) == f"canary of mail-2: 10 % of the requests, {since}; {beside}"
    watched = {"p2": Watched(promotion="p2", step="p2", pairs=17)}
    keep_watch_state(shop.store, "mail", msgspec.json.encode(watched))
    (row,) = overview(shop.store, shop.config)
    assert row["canary"] == {
        "model": "mail-2", "percent": 10, "compared": 17, "compared_of": 50, "next_percent": 50, "beside": "mail-1",
    }  # fmt: skip


def test_a_model_that_ends_is_told_long_before(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(shop.store, traffic(3))
    monkeypatch.setattr("time.time", lambda: 90_000.0)
    date = datetime.date(1970, 6, 1)
    provider = shop.config.providers["openai"].model_copy(update={"shutdown_dates": {"gpt-6": date}})
    config = shop.config.model_copy(update={"providers": {"openai": provider}})
    (row,) = overview(shop.store, config)
    said = "openai takes gpt-6 away on 1970-06-01 (in 150 days)"
    assert row["shutdowns"] == [{"model": "openai/gpt-6", "date": "1970-06-01", "days": 150, "sentence": said}]
    assert said in pages.task(facts.page(shop.store, config, "mail"))
