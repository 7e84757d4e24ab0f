"""When there is a next turn, and what becomes of one whose prompt the app has left."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stories import (
    NEW_SYSTEM,
    config_in,
    keep,
    sorted_by_the_model,
    template,
    traffic,
    with_the_new_prompt,
    workshop_in,
)

from gateway.pipeline import by_hand, cycle, due
from gateway.pipeline.cycle import Workshop, turn
from gateway.pipeline.finetune import Elsewhere
from gateway.pipeline.overview import overview
from gateway.stores.pruning import Criteria, prune
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

BASE = "gpt-4.1-mini-2025-04-14"
LEFT = "mail@1 is hardly sent any more (0 of the last 200 requests); most are mail@2"


def change_the_prompt(store: SqliteStore, count: int, *, start: int = 5000) -> None:
    """From here on the app sends its second version."""
    keep(store, with_the_new_prompt(count, start=start), template(), template(NEW_SYSTEM, 2))


def jobs(store: SqliteStore) -> list[tuple[str, str | None]]:
    return [(row["state"], row["error"]) for row in store.rows("jobs", "kind = 'cycle'")]


def of(shop: Workshop, **policy: Any) -> Workshop:
    """The same shop with another policy."""
    told = {"default": {"min_rows": 100, "canary": [100], **policy}}
    return msgspec.structs.replace(shop, config=config_in(shop.store.path.parent.parent, tasks=told))


@pytest.mark.parametrize(
    ("new", "own", "gone"), [(0, 200, False), (190, 10, False), (191, 9, True), (400, 0, True)]
)
def test_a_version_is_left_when_hardly_one_of_the_newest_requests_has_it(
    shop: Workshop, new: int, own: int, gone: bool
) -> None:
    keep(shop.store, traffic(300))
    change_the_prompt(shop.store, new)
    use = due.use_of(shop.store, "mail@1")
    assert (use.own, use.asked, use.is_gone, use.check.holds) == (own, 200, gone, not gone)


def test_of_many_versions_side_by_side_none_is_left(shop: Workshop) -> None:
    """Each of 25 tenants has its own prompt, and 4 % of the requests."""
    versions = range(1, 26)
    prompts = [template(f"You sort the mail of shop {n}. Answer with one label only.", n) for n in versions]
    mixed = [msgspec.structs.replace(one, task_version=1 + n % 25) for n, one in enumerate(traffic(500))]
    keep(shop.store, mixed, *prompts)
    assert not any(due.use_of(shop.store, f"mail@{n}").is_gone for n in versions)
    (row,) = overview(shop.store, shop.config)
    assert row["next"] == "training is due"


def test_of_a_task_that_nobody_asks_nothing_is_known(shop: Workshop) -> None:
    shop.store.add_template(template())
    use = due.use_of(shop.store, "mail@1")
    assert (use.share, use.is_gone, use.most, use.check.value) == (None, False, "mail@1", None)


def test_no_training_begins_for_a_prompt_that_the_app_has_left(shop: Workshop) -> None:
    """Most of the newest 500 answers are still to the first version: the turn waits for the second."""
    shop = of(shop, min_rows=500)
    keep(shop.store, traffic(300))
    change_the_prompt(shop.store, 220)
    assert turn(shop, "mail") is None
    (row,) = overview(shop.store, shop.config)
    assert row["next"] == "30 more exchanges until training"
    change_the_prompt(shop.store, 29, start=6000)
    assert turn(shop, "mail") is None
    change_the_prompt(shop.store, 1, start=7000)
    assert turn(shop, "mail") is not None
    assert [row["template"] for row in shop.store.rows("datasets")] == ["mail@2"]


def delete_the_oldest(shop: Workshop, count: int) -> None:
    """As `store.keep_days` does."""
    oldest = [row["id"] for row in shop.store.records("SELECT id FROM exchanges ORDER BY rowid LIMIT ?", [count])]
    prune(shop.store, shop.store.path.parent / "journal", Criteria(ids=tuple(oldest)))


def test_where_old_exchanges_are_deleted_what_came_since_counts(shop: Workshop) -> None:
    """The store never has more than 500 exchanges: as many as at the last turn."""
    keep(shop.store, traffic(500))
    assert turn(shop, "mail") is not None
    for start, left in ((1000, "250 more whole answers until the next training"), (2000, "training is due")):
        assert turn(shop, "mail") is None
        delete_the_oldest(shop, 250)
        keep(shop.store, traffic(250, start=start))
        (row,) = overview(shop.store, shop.config)
        assert (row["exchanges"], row["next"]) == (500, left)
    assert turn(shop, "mail") is not None


def test_when_nothing_is_left_of_what_was_trained_on_the_next_turn_takes_what_there_is(shop: Workshop) -> None:
    """Less is asked than before: the answers will never be as many again."""
    keep(shop.store, traffic(500))
    assert turn(shop, "mail") is not None
    keep(shop.store, traffic(300, start=1000))
    delete_the_oldest(shop, 499)
    assert turn(shop, "mail") is None
    delete_the_oldest(shop, 1)
    assert turn(shop, "mail") is not None


def test_a_turn_ends_when_the_app_leaves_its_prompt_and_the_next_one_is_for_the_new_one(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(shop.store, traffic(500))
    with monkeypatch.context() as during:
        during.setattr(cycle, "_candidates", lambda *_: None)  # they train
        assert turn(shop, "mail") is None
        change_the_prompt(shop.store, 99)
        assert turn(shop, "mail") is None
        assert jobs(shop.store) == [("running", None)]  # half of the newest requests still have it
        change_the_prompt(shop.store, 101, start=5099)
        assert turn(shop, "mail") is None
    assert jobs(shop.store) == [("ended", LEFT)]
    (row,) = overview(shop.store, shop.config)
    assert row["next"] == f"{LEFT}; training is due"
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.template == "mail@2"
    assert jobs(shop.store)[1:] == [("done", None)]


def test_what_was_trained_meanwhile_is_not_even_asked(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(shop.store, traffic(500))

    def for_hours(*_: object) -> list[Any]:
        change_the_prompt(shop.store, 200)
        return []

    monkeypatch.setattr(cycle, "_candidates", for_hours)
    assert turn(shop, "mail") is None
    assert jobs(shop.store) == [("ended", LEFT)]
    assert shop.store.rows("evaluations") == []


def test_a_candidate_that_waits_for_a_person_is_refused_when_its_prompt_is_gone(shop: Workshop) -> None:
    shop = of(shop, approve="ask")
    keep(shop.store, traffic(500))
    assert turn(shop, "mail") is not None
    assert by_hand.judged(shop, "mail", None)[1].promote
    change_the_prompt(shop.store, 195)
    decision = by_hand.judged(shop, "mail", None)[1]
    assert not decision.promote
    assert decision.failing == "sent with mail@1 (share of the last 200 requests): 0.025, limit 0.05"


def test_a_decision_that_comes_too_late_is_a_refusal_with_its_record(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(shop.store, traffic(500))
    evaluation = cycle.evaluation

    def asked_for_long(*given: Any) -> Any:
        report = evaluation(*given)
        change_the_prompt(shop.store, 200)
        return report

    monkeypatch.setattr(cycle, "evaluation", asked_for_long)
    decision = turn(shop, "mail")
    assert decision is not None
    assert "sent with mail@1" in decision.failing
    (row,) = shop.store.rows("promotions")
    assert (row["action"], json.loads(row["decision"])["promote"]) == ("refuse", False)
    assert not shop.routes.exists()


def test_jobs_at_a_provider_for_a_prompt_that_is_gone_are_cancelled(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(500))
    with FakeOpenAI(lambda body: sorted_by_the_model(body["messages"][-1]["content"]), clock=lambda: 0.0,
                    seconds_per_state=1.0) as api:  # fmt: skip
        config = config_in(
            tmp_path, providers={"openai": {"base_url": api.base_url}},
            trainers={"cloud": {"kind": "openai", "provider": "openai", "poll_seconds": 0.01,
                                "sweep": [{"base_model": BASE}]}},
            tasks={"default": {"min_rows": 100, "trainers": ["cloud"]}},
        )  # fmt: skip
        shop = workshop_in(tmp_path, store, config, elsewhere=Elsewhere())
        assert turn(shop, "mail") is None
        soon = time.monotonic() + 30
        while not api.jobs and time.monotonic() < soon:
            time.sleep(0.02)
        change_the_prompt(store, 200)
        assert turn(shop, "mail") is None
        while api.jobs[0]["status"] != "cancelled" and time.monotonic() < soon:
            time.sleep(0.02)
        assert [job["status"] for job in api.jobs] == ["cancelled"]
    assert jobs(store) == [("ended", LEFT)]
