"""The flywheel: from recorded mail to a promoted candidate, killed anywhere, with the real trainers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from stories import asked, config_in, exchange, keep, mail, sorted_by_the_model, traffic, workshop_in

from gateway.domain.finetune import FineTuneState
from gateway.errors import StoreError
from gateway.pipeline import cycle, dataset, promote, reading
from gateway.pipeline.cycle import Workshop, turn, turn_all
from gateway.pipeline.finetune import Elsewhere
from gateway.pipeline.overview import overview
from gateway.pipeline.promote import rollback
from gateway.pipeline.promotions import standing
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Fault

MODEL_A, MODEL_B = "gpt-4.1-mini-2025-04-14", "gpt-4.1-nano-2025-04-14"


def next_step(shop: Workshop) -> str:
    (row,) = overview(shop.store, shop.config)
    return str(row["next"])


def jobs(shop: Workshop) -> list[tuple[str, str]]:
    return [(row["step"], row["state"]) for row in shop.store.rows("jobs", "kind = 'cycle'")]


def the_route(shop: Workshop) -> dict[str, Any]:
    (route,) = yaml.safe_load(shop.routes.read_bytes())["routes"]
    assert isinstance(route, dict)
    return route


# --- a whole turn ----------------------------------------------------------------------------------------


def test_recorded_mail_becomes_a_promoted_candidate(shop: Workshop) -> None:
    keep(shop.store, traffic(500))
    assert next_step(shop) == "training is due"
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.promote, decision.reason
    route = the_route(shop)
    assert route["match"] == {"provider": "openai", "model": "gpt-6", "task": "mail"}
    assert route["targets"][0]["upstream"] == "local"
    assert route["targets"][0]["strip"] == "mail@1"
    assert 0 < route["targets"][0]["min_confidence"] < 1
    assert route["fallback"] == {"upstream": "openai", "model": "gpt-6"}
    assert jobs(shop) == [("done", "done")]
    (row,) = overview(shop.store, shop.config)
    assert row["serving"]["model"] == route["targets"][0]["model"]
    assert (row["serving"]["strip"], row["serving"]["percent"]) == ("mail@1", 95)
    assert row["next"] == "500 more whole answers until the next training"
    assert turn(shop, "mail") is None


def test_a_turn_is_due_when_there_is_enough_and_again_when_it_has_doubled(shop: Workshop) -> None:
    keep(shop.store, traffic(90))
    assert turn(shop, "mail") is None
    assert next_step(shop) == "10 more exchanges until training"
    keep(shop.store, traffic(20, start=90))
    assert turn(shop, "mail") is not None
    keep(shop.store, traffic(100, start=110))
    assert turn(shop, "mail") is None
    keep(shop.store, traffic(20, start=210))
    assert turn(shop, "mail") is not None
    assert len(shop.store.rows("datasets")) == 2


def test_a_candidate_that_is_not_good_enough_is_refused_and_noted(shop: Workshop) -> None:
    """100 rows leave 20 to judge by: not even a perfect candidate could show that it is as good."""
    keep(shop.store, traffic(110))
    decision = turn(shop, "mail")
    assert decision is not None
    assert not decision.promote
    assert "agreement, lower bound" in decision.reason
    (row,) = shop.store.rows("promotions")
    assert (row["action"], json.loads(row["decision"])["promote"]) == ("refuse", False)
    assert not shop.routes.exists()
    why = "held-out rows: 26, limit 50; 3 more in 'unprompt tasks decisions mail'"
    assert next_step(shop) == f"candidate refused ({why}); 110 more whole answers until the next training"


def test_where_a_person_approves_the_candidate_waits(shop: Workshop) -> None:
    policy = {"default": {"min_rows": 100, "approve": "ask"}}
    careful = msgspec.structs.replace(shop, config=config_in(shop.store.path.parent.parent, tasks=policy))
    keep(shop.store, traffic(500))
    decision = turn(careful, "mail")
    assert decision is not None
    assert decision.promote
    assert not shop.routes.exists()
    assert standing(shop.store, "mail") == []
    assert next_step(careful).endswith("waits for 'unprompt promote mail'")


def test_free_text_finds_no_candidate_and_says_so(shop: Workshop) -> None:
    keep(shop.store, [exchange(n, asked(text), f"Dear customer, about '{text}': thank you for writing, {n}.")
                      for n, (text, _) in enumerate(mail()[:150])])  # fmt: skip
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.reason == "refused: there is no candidate to judge"
    assert "no closed set of labels" in (shop.store.finetunes()[0].error or "")


# --- what goes wrong -------------------------------------------------------------------------------------


def test_a_turn_that_fails_is_tried_again_with_more_data_and_not_before(shop: Workshop) -> None:
    told: list[str] = []
    shop = msgspec.structs.replace(shop, say=told.append)
    same = [exchange(900 + n, asked(mail()[0][0]), "refund") for n in range(120)]
    keep(shop.store, same)
    for _ in range(3):
        assert turn_all(shop) == []
    assert jobs(shop) == [("dataset", "failed")]
    assert len(told) == 1
    assert "1 usable rows, and at least 50 are needed" in next_step(shop)
    keep(shop.store, traffic(20))
    assert turn_all(shop) == []
    assert len(jobs(shop)) == 1
    keep(shop.store, traffic(100, start=20))
    assert len(turn_all(shop)) == 1
    assert jobs(shop) == [("dataset", "failed"), ("done", "done")]


def test_a_task_that_breaks_stops_no_other(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from stories import template

    post = [msgspec.structs.replace(one, id=f"p{one.id}", task="post") for one in traffic(120)]
    keep(shop.store, [*traffic(110), *post], template(), template(task="post"))
    build = dataset.build

    def broken(store: SqliteStore, task: str, *more: Any) -> Any:
        if task == "post":
            raise ZeroDivisionError("a bug of ours")
        return build(store, task, *more)

    monkeypatch.setattr(dataset, "build", broken)
    assert [decision.task for decision in turn_all(shop)] == ["mail"]
    states = {row["task"]: (row["state"], row["error"]) for row in shop.store.rows("jobs")}
    assert states == {"mail": ("done", None), "post": ("failed", "ZeroDivisionError: a bug of ours")}
    assert turn_all(shop) == []


def test_a_store_that_cannot_be_written_is_an_outage_and_not_a_failed_task(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(shop.store, traffic(110))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading, "write_whole", full)
    with pytest.raises(StoreError, match="No space left on device"):
        turn_all(shop)
    assert jobs(shop) == [("dataset", "running")]
    monkeypatch.undo()
    assert len(turn_all(shop)) == 1


def test_a_dataset_that_was_deleted_is_built_again(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    keep(shop.store, traffic(110))
    monkeypatch.setattr(cycle, "_candidates", lambda *_: None)
    assert turn(shop, "mail") is None
    shutil.rmtree(shop.datasets)
    monkeypatch.undo()
    assert turn(shop, "mail") is not None
    assert jobs(shop) == [("done", "done")]


def test_a_routes_file_that_a_person_is_editing_is_waited_for_and_the_rows_judge_only_once(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    shop = msgspec.structs.replace(shop, say=told.append)
    shop.routes.parent.mkdir(parents=True)
    shop.routes.write_text("routes:\n  - name: half wri")
    keep(shop.store, traffic(500))
    for _ in range(3):
        assert turn_all(shop) == []
    assert jobs(shop) == [("promote", "running")]
    assert len([sentence for sentence in told if "is left as it is" in sentence]) == 1
    assert "is left as it is" in next_step(shop)
    shop.routes.write_text("routes: []  # done\n")
    assert turn_all(shop) == []  # not every five seconds
    monkeypatch.setattr(cycle, "RETRY_SECONDS", 0.0)
    later = time.time() + 61
    monkeypatch.setattr("time.time", lambda: later)
    (decision,) = turn_all(shop)
    assert decision.promote
    assert len(shop.store.rows("evaluations")) == 1
    assert "# done" in shop.routes.read_text()


def test_a_process_that_dies_again_and_again_in_one_turn_gives_it_up(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(shop.store, traffic(110))
    monkeypatch.setattr(cycle, "_candidates", lambda *_: None)
    for number in range(cycle.MOST_ATTEMPTS + 1):
        monkeypatch.setattr(cycle, "_PROCESS", f"process {number}")
        turn_all(shop)
    assert jobs(shop) == [("finetune", "failed")]
    assert next_step(shop).startswith("given up: the process has died 20 times in step 'finetune'; ")


# --- killed ----------------------------------------------------------------------------------------------

CHILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import stories
from gateway.pipeline import cycle, dataset, evaluate, promote
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import classifier

folder, at = Path(sys.argv[1]), int(sys.argv[2])
store = SqliteStore(folder / "data" / "unprompt.db")
steps = 0

def counted(function):
    def call(*args, **kwargs):
        global steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return call

for name in ("put", "change", "add_dataset", "save_finetune"):
    setattr(SqliteStore, name, counted(getattr(SqliteStore, name)))
os.fsync = counted(os.fsync)
Path.replace = counted(Path.replace)
shop = stories.workshop_in(folder, store, stories.config_in(folder))
cycle.turn_all(shop)
print(steps)
"""


def killed_at(folder: Path, at: int) -> subprocess.CompletedProcess[bytes]:
    """A turn in a process of its own that is killed before its n-th write of any kind."""
    here = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", CHILD, str(folder), str(at), here]
    return subprocess.run(command, capture_output=True, timeout=60)


def test_killed_before_any_write_the_next_turn_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    keep(SqliteStore(whole / "data" / "unprompt.db"), traffic(500))
    steps = int(killed_at(whole, 0).stdout)
    assert steps > 30
    expected = yaml.safe_load((whole / "config" / "routes.yaml").read_bytes())
    folder, at, deaths = tmp_path / "killed", 1, 0
    store = SqliteStore(folder / "data" / "unprompt.db")
    keep(store, traffic(500))
    while at < steps:  # each process gets a few writes further than the one before it
        died = killed_at(folder, at)
        if died.returncode != -9:
            break
        deaths += 1
        at += 6
    shop = workshop_in(folder, store, config_in(folder))
    turn_all(shop)
    promote.settle(store, shop.routes)
    assert deaths >= 4
    assert yaml.safe_load(shop.routes.read_bytes()) == expected
    assert jobs(shop) == [("done", "done")]
    assert len(standing(store, "mail")) == 1
    assert len(store.rows("datasets")) == len(store.finetunes()) == 1
    assert not list(folder.rglob("routes.yaml.partial"))
    rollback(store, shop.config, shop.routes, "mail")
    assert shop.routes.read_text() == "routes: []\n"


# --- candidates at a provider ----------------------------------------------------------------------------


def at_a_provider(folder: Path, store: SqliteStore, api: FakeOpenAI, **more: Any) -> Workshop:
    """The shop's sweep: two base models at the fake service, which prices them and the incumbent alike."""
    prices = {"*": {"input": 1.0, "output": 4.0}}
    config = config_in(
        folder,
        providers={"openai": {"base_url": api.base_url, "prices": prices}},
        trainers={"cloud": {"kind": "openai", "provider": "openai", "poll_seconds": 0.01,
                            "sweep": [{"base_model": MODEL_A}, {"base_model": MODEL_B}]}},
        tasks={"default": {"min_rows": 100, "trainers": ["cloud"]}},
    )  # fmt: skip
    return workshop_in(folder, store, config, **more)


def tuned(body: dict[str, Any]) -> str:
    """One of the tuned models is good; the smaller one says `other` to everything."""
    return "other" if MODEL_B in body["model"] else sorted_by_the_model(body["messages"][-1]["content"])


def test_two_candidates_at_a_provider_are_trained_asked_compared_and_the_better_one_routed(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, traffic(570))
    with FakeOpenAI(tuned) as api:
        shop = at_a_provider(tmp_path, store, api)
        decision = turn(shop, "mail")
        assert decision is not None
        assert decision.promote, decision.reason
        models = [job["fine_tuned_model"] for job in api.jobs]
    route = the_route(shop)
    assert len(models) == 2
    assert route["targets"][0]["upstream"] == "openai"
    assert MODEL_A in route["targets"][0]["model"]
    assert route["targets"][0]["model"] in models
    assert "min_confidence" not in route["targets"][0]
    report = json.loads(store.rows("evaluations")[0]["report"])
    first, second = (score["agreement"] for score in report["candidates"])
    assert first == 1.0
    assert 0.2 < second < 0.4


def test_the_worker_goes_on_while_a_provider_trains_and_comes_back_to_it(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, traffic(570))
    now = 0.0
    with FakeOpenAI(tuned, seconds_per_state=1.0, clock=lambda: now) as api:
        shop = at_a_provider(tmp_path, store, api, elsewhere=Elsewhere())
        assert turn(shop, "mail") is None  # though the provider's clock stands still
        assert next_step(shop) == "in work: finetune"
        decision, deadline = None, time.monotonic() + 60
        while decision is None and time.monotonic() < deadline:
            time.sleep(0.05)
            now += 1
            decision = turn(shop, "mail")
        assert decision is not None
        assert decision.promote
        assert len(api.jobs) == 2


def test_an_outage_of_the_service_is_waited_out_and_nothing_is_paid_twice(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, traffic(570))
    with FakeOpenAI(tuned) as api:
        api.inject(Fault(503, path="/v1/fine_tuning/jobs/*", times=5))
        api.inject(Fault(path="/v1/fine_tuning/jobs", method="POST", drop=True))
        shop = at_a_provider(tmp_path, store, api)
        decision = turn(shop, "mail")
        assert decision is not None
        assert decision.promote
        assert len(api.jobs) == 2
    assert {one.state for one in store.finetunes()} == {FineTuneState.SUCCEEDED}


def test_when_the_candidates_upstream_is_down_they_are_asked_again_later_and_not_trained_again(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store, traffic(570))
    with FakeOpenAI(tuned) as api:
        tried = 2 * 8 * 2  # candidates, rows, and each row with the question how sure it is, and without
        api.inject(Fault(400, path="/v1/chat/completions", times=tried, message="closed for today"))
        shop = at_a_provider(tmp_path, store, api)
        assert turn(shop, "mail") is None
        assert "closed for today" in next_step(shop)
        assert turn(shop, "mail") is None
        later = time.time() + 61
        monkeypatch.setattr("time.time", lambda: later)
        decision = turn(shop, "mail")
        assert len(api.jobs) == 2
    assert decision is not None
    assert decision.promote


def test_answers_of_a_promoted_candidate_are_never_trained_on(store: SqliteStore, tmp_path: Path) -> None:
    """After the flip most of the traffic is the student's: the next dataset has only the teacher's answers."""
    keep(store, traffic(500))
    shop = workshop_in(tmp_path, store, config_in(tmp_path))
    assert turn(shop, "mail") is not None
    target = the_route(shop)["targets"][0]
    student = [exchange(1000 + n, asked(text), "other", stripped=True, target=f"local/{target['model']}")
               for n, (text, _) in enumerate(mail()[:400])]  # fmt: skip
    fresh = [exchange(2000 + n, asked(f"{text}, once more"), label) for n, (text, label) in enumerate(mail()[:520])]
    keep(store, [*student, *fresh])
    assert turn(shop, "mail") is not None
    card = json.loads(store.rows("datasets")[-1]["card"])
    assert card["dropped"]["answered by a candidate"] == 400
    assert card["rows"] == 1020
