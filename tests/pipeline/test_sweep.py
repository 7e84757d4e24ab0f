"""A sweep keeps to its budget, gives up what is hopeless, is cancelled by hand, and waits for nobody's model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from stories import config_in, keep, traffic

from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Budget
from gateway.errors import TaskError
from gateway.pipeline import finetune
from gateway.pipeline.dataset import build
from gateway.pipeline.finetune import Elsewhere, cancel, register, run
from gateway.pipeline.ledger import Ledger
from gateway.pipeline.sweep import estimated, plan, sweep_in, sweep_of
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Fault

SMALL, LARGE = "gpt-4.1-nano-2025-04-14", "gpt-4.1-mini-2025-04-14"


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(80))
    return build(store, "mail", tmp_path / "data" / "datasets")


def cloud(folder: Path, api: FakeOpenAI, grid: dict[str, Any], **trainer: Any) -> Config:
    """A config whose trainer `cloud` trains this grid at the fake service; 1M training tokens cost 1,000 USD."""
    section = {"kind": "openai", "provider": "openai", "poll_seconds": 0.01, "sweep": grid, "prices": {"*": 1000.0}}
    return config_in(
        folder,
        providers={"openai": {"base_url": api.base_url}},
        trainers={"cloud": section | trainer},
        tasks={"default": {"trainers": ["cloud"]}},
    )


def planned(store: SqliteStore, config: Config, data: Dataset, folder: Path) -> list[FineTune]:
    return estimated(store, config, data, plan(store, data, sweep_of(config, data, folder)), folder)


def states(candidates: list[FineTune]) -> list[str]:
    return [one.state.value for one in candidates]


# --- which candidates ------------------------------------------------------------------------------------


def test_the_default_sweep_is_by_the_kind_of_task_and_of_ten_candidates_at_most(
    data: Dataset, tmp_path: Path
) -> None:
    with FakeOpenAI() as api:
        config = cloud(tmp_path, api, {}, sweep=None)
        assert len(sweep_of(config, data, tmp_path)["cloud"]) == 8
        by_kind = config.model_copy(update={"tasks": {}})
        assert set(sweep_of(by_kind, data, tmp_path)) == {"classifier"}
        data.card["kind"] = "generation"
        assert set(sweep_of(by_kind, data, tmp_path)) == {"cloud"}
        both = cloud(tmp_path, api, {}, sweep=None).model_copy(
            update={
                "tasks": {"default": config.policy("mail").model_copy(update={"trainers": ("cloud", "classifier")})}
            }
        )
        assert sum(map(len, sweep_of(both, data, tmp_path).values())) == 10


def test_a_sweep_file_is_a_grid_over_trainers_and_their_options(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("classifier:\n  features: [word, char]\n  c: [1.0, 3.0, 10.0]\n")
    assert len(sweep_in(file, config_in(tmp_path))["classifier"]) == 6
    file.write_text("- {trainer: [classifier], features: [word, char]}\n")
    assert sweep_in(file, config_in(tmp_path)) == {"classifier": [{"features": "word"}, {"features": "char"}]}
    file.write_text("- {trainer: forest}\n")
    with pytest.raises(TaskError, match="no trainer 'forest'; the config has classifier"):
        sweep_in(file, config_in(tmp_path))


# --- the budget ------------------------------------------------------------------------------------------


def test_what_a_candidate_will_cost_is_known_before_it_starts(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    with FakeOpenAI() as api:
        config = cloud(tmp_path, api, {"base_model": [SMALL, LARGE], "n_epochs": [1, 4]}, prices={SMALL: 10.0})
        one, four, unpriced, _ = planned(store, config, data, tmp_path)
        tokens = one.metrics["estimated_tokens"]
        characters = (Path(data.directory) / "train.jsonl").stat().st_size
        assert characters / 12 < tokens < characters / 4
        assert one.metrics["estimated_usd"] == pytest.approx(10 * tokens / 1e6)
        assert four.metrics["estimated_usd"] == pytest.approx(4 * one.metrics["estimated_usd"])
        assert "estimated_usd" not in unpriced.metrics
        assert api.received == []


def test_the_embedded_ones_are_estimated_by_rows_and_by_what_earlier_ones_took(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    config = config_in(tmp_path)
    (first,) = planned(store, config, data, tmp_path)
    assert first.metrics["estimated_usd"] == 0.0
    assert first.metrics["estimated_hours"] > 0
    (done,) = run(store, config, data, [first], tmp_path / "models")
    store.save_finetune(done.but(metrics=done.metrics | {"train_seconds": 7200.0}))
    (second,) = estimated(store, config, data, plan(store, data, {"classifier": [{"features": "char"}]}), tmp_path)
    assert second.metrics["estimated_hours"] == pytest.approx(2.0)


def test_a_budget_starts_what_fits_and_no_more_and_a_larger_one_the_rest(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    with FakeOpenAI() as api:
        config = cloud(tmp_path, api, {"base_model": SMALL, "n_epochs": [1, 2, 3]})
        candidates = planned(store, config, data, tmp_path)
        expected = [one.metrics["estimated_usd"] for one in candidates]
        done = run(store, config, data, candidates, tmp_path, budget=Budget(usd=expected[0] + expected[1] + 0.001))
        assert states(done) == ["succeeded", "succeeded", "created"]
        assert "USD are left" in (done[2].error or "")
        assert len(api.jobs) == 2
        done = run(store, config, data, planned(store, config, data, tmp_path), tmp_path, budget=Budget(usd=1e9))
        assert states(done) == ["succeeded"] * 3
        assert done[2].error is None
        assert len(api.jobs) == 3


def test_what_was_refused_is_started_when_others_have_cost_less(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    """The fake service trains 100 tokens a row, and the estimate is made five times as high."""
    with FakeOpenAI() as api:
        config = cloud(tmp_path, api, {"base_model": SMALL, "n_epochs": [2, 3]})
        candidates = [
            one.but(
                metrics=one.metrics | {"estimated_usd": 5.0, "estimated_tokens": 500.0 * len(data.part("train"))}
            )
            for one in planned(store, config, data, tmp_path)
        ]
        for one in candidates:
            store.save_finetune(one)
        ledger = Ledger(store, candidates, Budget(usd=6.0))
        store.save_finetune(candidates[0].but(state=FineTuneState.RUNNING))
        assert "1.00 of 6.00 USD are left" in (ledger.refusal(store, candidates[1]) or "")
        store.save_finetune(candidates[0])
        done = [one.but() for one in run(store, _without_estimates(config), data, candidates, tmp_path,
                                         budget=Budget(usd=6.0))]  # fmt: skip
        assert states(done) == ["succeeded", "succeeded"]


def _without_estimates(config: Config) -> Config:
    """The same config; estimates that stand in the store are made again, so they are priced to stay small."""
    trainers = {"cloud": config.trainers["cloud"].model_copy(update={"prices": {"*": 1.0}})}
    return config.model_copy(update={"trainers": trainers | {"classifier": config.trainers["classifier"]}})


def test_without_a_price_nothing_is_started_on_a_budget(store: SqliteStore, data: Dataset, tmp_path: Path) -> None:
    with FakeOpenAI() as api:
        config = cloud(tmp_path, api, {"base_model": SMALL}, prices={})
        (done,) = run(
            store, config, data, planned(store, config, data, tmp_path), tmp_path, budget=Budget(usd=99.0)
        )
        assert (done.state, api.received) == (FineTuneState.CREATED, [])
        assert "it has no price" in (done.error or "")


def test_what_still_trains_when_the_hours_are_over_is_cancelled_at_the_service(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    with FakeOpenAI(seconds_per_state=60) as api:
        config = cloud(tmp_path, api, {"base_model": SMALL})
        (done,) = run(store, config, data, planned(store, config, data, tmp_path), tmp_path,
                      budget=Budget(hours=1 / 3600))  # fmt: skip
        assert done.state is FineTuneState.CANCELLED
        assert (done.error or "").startswith("over budget: still training after")
        assert [job["status"] for job in api.jobs] == ["cancelled"]


def test_the_hours_of_a_sweep_go_on_where_they_were(store: SqliteStore, data: Dataset, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    candidates = planned(store, config, data, tmp_path)
    first = Ledger(store, candidates, Budget(hours=1.0))
    time.sleep(0.05)
    first.note(store)
    (row,) = store.rows("jobs", "kind = 'sweep'")
    assert (row["state"], row["step"]) == ("running", "0 of 1 candidates")
    row["detail"] = row["detail"].replace('"seconds": 0', '"seconds": 360')
    store.change("jobs", row["id"], detail=row["detail"])
    assert 0.1 <= Ledger(store, candidates, Budget(hours=1.0)).hours() < 0.11
    run(store, config, data, candidates, tmp_path)
    (row,) = store.rows("jobs", "kind = 'sweep'")
    assert (row["state"], row["step"]) == ("done", "1 of 1 candidates")


# --- stopping early, and by hand -------------------------------------------------------------------------


def loss_by_rate(job: Mapping[str, Any], epoch: int) -> float:
    """The higher the learning rate, the worse."""
    return float(job["hyperparameters"]["learning_rate_multiplier"]) / epoch


def test_a_hopeless_candidate_is_stopped_after_the_epoch_that_shows_it(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    running = ("validating_files", "queued", *["running"] * 8, "succeeded")
    with FakeOpenAI(states=running, seconds_per_state=0.15, loss=loss_by_rate) as api:
        rates = [1.0, 1.02, 1.04, 5.0]
        config = cloud(tmp_path, api, {"base_model": SMALL, "n_epochs": 8, "learning_rate_multiplier": rates})
        done = run(store, config, data, planned(store, config, data, tmp_path), tmp_path)
        assert states(done)[:4] == ["succeeded", "succeeded", "succeeded", "cancelled"]
        assert (done[3].error or "").startswith("stopped early: validation loss")
        assert [job["status"] for job in api.jobs].count("cancelled") == 1


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_person_cancels_what_the_worker_is_at(store: SqliteStore, data: Dataset, tmp_path: Path) -> None:
    with FakeOpenAI(seconds_per_state=60) as api:
        config = cloud(tmp_path, api, {"base_model": SMALL, "n_epochs": [1, 2]})
        candidates, worker = planned(store, config, data, tmp_path), Elsewhere()
        worker.start(store, config, data, candidates, tmp_path)
        until(lambda: len(api.jobs) == 2)
        done = cancel(store, config, candidates, tmp_path)
        assert states(done) == ["cancelled", "cancelled"]
        assert [one.error for one in done] == ["cancelled by hand"] * 2
        assert [job["status"] for job in api.jobs] == ["cancelled", "cancelled"]
        until(lambda: not any(worker.working(one.id) for one in candidates))
        assert states(run(store, config, data, candidates, tmp_path)) == ["cancelled", "cancelled"]


def test_what_nobody_is_at_is_cancelled_at_the_service(
    store: SqliteStore, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started it has been interrupted."""

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with FakeOpenAI(seconds_per_state=60) as api:
        config = cloud(tmp_path, api, {"base_model": SMALL})
        candidates = planned(store, config, data, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(finetune, "watch", lambda *_: interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(store, config, data, candidates, tmp_path)
        assert [job["status"] for job in api.jobs] == ["validating_files"]
        assert states(cancel(store, config, candidates, tmp_path)) == ["cancelled"]
        assert [job["status"] for job in api.jobs] == ["cancelled"]


def test_a_cancel_that_the_service_does_not_hear_is_tried_again_with_the_next_run(
    store: SqliteStore, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.pipeline.finetune.CANCEL_TRIES", 1)
    with FakeOpenAI(seconds_per_state=60) as api:
        config = cloud(tmp_path, api, {"base_model": SMALL})
        candidates = planned(store, config, data, tmp_path)
        api.inject(Fault(503, path="/v1/fine_tuning/jobs/*/cancel"))
        (late,) = run(store, config, data, candidates, tmp_path, budget=Budget(hours=0.5 / 3600))
        assert late.state is FineTuneState.RUNNING
        assert "not cancelled yet, the service gives no answer" in (late.error or "")
        (done,) = run(store, config, data, candidates, tmp_path, budget=Budget(hours=0.5 / 3600))
        assert done.state is FineTuneState.CANCELLED
        assert [job["status"] for job in api.jobs] == ["cancelled"]


# --- models of earlier epochs, and of a person -------------------------------------------------------------


def test_the_models_of_earlier_epochs_are_candidates_when_they_were_better(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    """The loss is least after the second of three epochs."""
    with FakeOpenAI(loss=lambda job, epoch: [0.9, 0.3, 0.6][epoch - 1]) as api:
        config = cloud(tmp_path, api, {"base_model": SMALL, "n_epochs": 3})
        whole, early = run(store, config, data, planned(store, config, data, tmp_path), tmp_path)
        assert whole.model == api.jobs[0]["fine_tuned_model"]
        assert early.model == f"{whole.model}:ckpt-step-{2 * len(data.part('train'))}"
        assert early.state is FineTuneState.SUCCEEDED
        assert [one.id for one in store.finetunes()] == [whole.id, early.id]
        assert whole.metrics["valid_loss_epoch_2"] == pytest.approx(0.33)


def test_files_go_out_and_wait_for_a_model_without_holding_up_the_others(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    config = config_in(
        tmp_path,
        trainers={
            "classifier": {"kind": "classifier", "sweep": [{"features": "word"}]},
            "by-hand": {"kind": "export", "provider": "openai", "sweep": {"learning_rate": [1e-4, 1e-5]}},
        },
        tasks={"default": {"trainers": ["by-hand", "classifier"]}},
    )
    done = run(store, config, data, planned(store, config, data, tmp_path), tmp_path / "data" / "models")
    assert states(done) == ["waiting", "waiting", "succeeded"]
    folder = Path(done[0].remote["directory"])
    assert (folder / "train.jsonl").read_bytes() == (Path(data.directory) / "train.jsonl").read_bytes()
    assert json.loads((folder / "options.json").read_bytes()) == {"learning_rate": 1e-4}
    with pytest.raises(TaskError, match=f"waiting for a model: {done[0].id}, {done[1].id}"):
        register(store, config, "mail", "my-model")
    register(store, config, "mail", "my-model", done[1].id)
    again = run(store, config, data, planned(store, config, data, tmp_path), tmp_path / "data" / "models")
    assert states(again) == ["waiting", "succeeded", "succeeded"]
    assert (again[1].upstream, again[1].model) == ("openai", "my-model")
