"""A sweep is planned once, trained once and resumed where it was, whatever dies or fails beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stories import config_in, keep, traffic

from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import ConfigError
from gateway.pipeline import finetune, sweep
from gateway.pipeline.dataset import build
from gateway.pipeline.finetune import Elsewhere, run
from gateway.pipeline.sweep import plan, problems, sweep_of
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Fault
from gateway.trainers import Trainer

WORD: dict[str, Any] = {"features": "word"}
CLOUD = {"base_model": "gpt-4.1-mini-2025-04-14", "n_epochs": 3}

LONGER = CLOUD | {"n_epochs": 6}


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(80))
    return build(store, "mail", tmp_path / "data" / "datasets")


def cloud(folder: Path, api: FakeOpenAI, **trainer: Any) -> Config:
    """A config whose trainer `cloud` trains at the fake service, two candidates, and asks every 10 ms."""
    section = {
        "kind": "openai",
        "provider": "openai",
        "poll_seconds": 0.01,
        "sweep": [CLOUD, CLOUD | {"n_epochs": 6}],
    }
    return config_in(
        folder,
        providers={"openai": {"base_url": api.base_url}},
        trainers={"cloud": section | trainer},
        tasks={"default": {"trainers": ["cloud"]}},
    )


def test_planning_the_same_twice_is_planning_it_once(store: SqliteStore, data: Dataset) -> None:
    sweep = {"classifier": [WORD, WORD | {"balance": 0.0}]}
    first = plan(store, data, sweep)
    store.save_finetune(first[0].but(state=FineTuneState.FAILED, error="a reason"))
    again = plan(store, data, sweep)
    assert [one.id for one in again] == [one.id for one in first]
    assert [one.state.value for one in again] == ["failed", "created"]
    assert len(plan(store, data, {"classifier": [WORD]})) == 1
    assert len(store.finetunes()) == 2


def test_the_sweep_is_the_configs_own_or_the_trainers(data: Dataset, tmp_path: Path) -> None:
    assert sweep_of(config_in(tmp_path), data, tmp_path) == {"classifier": [{"features": "word"}]}
    usual = config_in(tmp_path, trainers={"classifier": {"kind": "classifier"}})
    assert len(sweep_of(usual, data, tmp_path)["classifier"]) > 1


def test_a_sweep_is_trained_in_the_order_of_the_plan_and_told_of(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []
    planned = plan(store, data, {"classifier": [WORD, {"features": "nothing"}]})
    done = run(store, config_in(tmp_path), data, planned, tmp_path / "models",
               lambda one: told.append((one.id, one.state.value)))  # fmt: skip
    assert [one.state.value for one in done] == ["succeeded", "failed"]
    assert "the options of trainer 'classifier' are wrong" in (done[1].error or "")
    assert [state for id, state in told if id == planned[0].id] == ["running", "succeeded"]
    assert [one.state for one in store.finetunes()] == [one.state for one in done]


def test_what_is_trained_is_not_trained_again_unless_its_model_is_gone(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    models = tmp_path / "models"

    def trained() -> tuple[FineTune, float]:
        (one,) = run(store, config_in(tmp_path), data, plan(store, data, {"classifier": [WORD]}), models)
        return one.but(updated_at=0.0), (models / (one.model or "") / "model.bin").stat().st_mtime_ns

    first = trained()
    assert trained() == first
    file = models / (first[0].model or "") / "model.bin"
    whole = file.read_bytes()
    for damaged in (None, whole[:-1], b""):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        again, _ = trained()
        assert again.state is FineTuneState.SUCCEEDED
        assert file.read_bytes() == whole


class Odd:
    """A trainer of somebody's own that breaks in its own way."""

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        return [{}]

    def run(self, finetune: FineTune, dataset: Dataset, save: Callable[[FineTune], None]) -> FineTune:
        raise ZeroDivisionError("learning rate")


def test_a_trainer_that_breaks_costs_only_its_own_candidate(
    store: SqliteStore, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: Config, name: str, *more: Any) -> Trainer:
        return Odd() if name == "odd" else sweep.build(config, name, *more)

    monkeypatch.setattr(finetune, "build", build)
    config = config_in(tmp_path, trainers={"odd": {"kind": "classifier"}, "classifier": {"kind": "classifier"}})
    done = run(store, config, data, plan(store, data, {"odd": [{}], "classifier": [WORD]}), tmp_path / "models")
    assert [(one.state.value, one.error) for one in done] == [
        ("failed", "ZeroDivisionError: learning rate"),
        ("succeeded", None),
    ]


# --- at a provider ---------------------------------------------------------------------------------------


def test_candidates_at_a_provider_train_side_by_side(store: SqliteStore, data: Dataset, tmp_path: Path) -> None:
    with FakeOpenAI() as api:
        config = cloud(tmp_path, api)
        done = run(store, config, data, plan(store, data, sweep_of(config, data, tmp_path)), tmp_path)
        assert [one.state.value for one in done] == ["succeeded", "succeeded"]
        assert {one.model for one in done} == {job["fine_tuned_model"] for job in api.jobs}
        assert len(api.files) == 2  # which they share
        assert [one.upstream for one in done] == ["openai", "openai"]


def test_a_refusal_by_the_provider_is_a_failed_candidate_with_its_reason(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    with FakeOpenAI() as api:
        api.inject(Fault(403, path="/v1/fine_tuning/jobs", method="POST", times=9, message="winding down"))
        config = cloud(tmp_path, api)
        done = run(store, config, data, plan(store, data, sweep_of(config, data, tmp_path)), tmp_path)
    assert [one.state.value for one in done] == ["failed", "failed"]
    assert "winding down" in (done[0].error or "")


def test_two_processes_that_want_the_same_candidate_start_one_job(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    """The worker is at it when a person types `unprompt finetune`."""
    with FakeOpenAI(seconds_per_state=0.1) as api:
        config = cloud(tmp_path, api, sweep=[CLOUD])
        (planned,) = plan(store, data, {"cloud": [CLOUD]})
        worker = Elsewhere()
        worker.start(store, config, data, [planned], tmp_path)
        worker.start(store, config, data, [planned], tmp_path)
        (done,) = run(store, config, data, [planned], tmp_path)
        assert done.state is FineTuneState.SUCCEEDED
        assert len(api.jobs) == 1


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import stories
from gateway.config import Config
from gateway.pipeline import dataset, finetune, sweep
from gateway.stores.sqlite import SqliteStore
folder = Path(sys.argv[1])
store = SqliteStore(folder / "data" / "unprompt.db")
data = dataset.load(store, store.rows("datasets")[0]["id"])
config = Config.model_validate_json(sys.argv[2])
finetune.run(store, config, data, sweep.plan(store, data, sweep.sweep_of(config, data, folder)), folder)
"""


@pytest.mark.parametrize("path", ["/v1/files", "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/*"])
def test_killed_at_a_providers_any_request_no_job_is_started_twice(
    store: SqliteStore, data: Dataset, tmp_path: Path, path: str
) -> None:
    """kill -9 when the service has carried the request out but not yet answered."""
    from fnmatch import fnmatchcase

    with FakeOpenAI() as api:
        config = cloud(tmp_path, api, sweep=[CLOUD])
        here = str(Path(__file__).parent.parent)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), config.model_dump_json(), here])
        dead = threading.Event()

        def observe(moment: str, request: Any) -> None:
            asked_for = fnmatchcase(request.path, path) and (request.method == "POST" or path.endswith("*"))
            if moment == "processed" and asked_for:
                child.kill()
                dead.set()

        api.observe = observe
        assert dead.wait(30)
        assert child.wait(30) == -9
        api.observe = lambda moment, request: None
        (done,) = run(store, config, data, plan(store, data, {"cloud": [CLOUD]}), tmp_path)
        assert done.state is FineTuneState.SUCCEEDED
        assert len(api.jobs) == 1


def test_the_worker_does_other_things_while_a_provider_trains(
    store: SqliteStore, data: Dataset, tmp_path: Path
) -> None:
    with FakeOpenAI(seconds_per_state=0.1) as api:
        config, worker = cloud(tmp_path, api, sweep=[CLOUD]), Elsewhere()
        (planned,) = plan(store, data, {"cloud": [CLOUD]})
        started = time.monotonic()
        worker.start(store, config, data, [planned], tmp_path)
        assert time.monotonic() - started < 0.2
        assert worker.working(planned.id)
        deadline = time.monotonic() + 20
        while worker.working(planned.id) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert store.finetunes()[0].state is FineTuneState.SUCCEEDED


# --- the config and the lock -----------------------------------------------------------------------------


def test_every_wrong_trainer_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("""\
trainers:
  mine: {kind: clasifier}
  cloud: {kind: openai, provider: openai, options: {epochs: 3}}
  good: {kind: classifier}
""")
    config = config_in(tmp_path, trainers={
        "mine": {"kind": "clasifier"}, "good": {"kind": "classifier"},
        "cloud": {"kind": "openai", "provider": "openai", "options": {"epochs": 3}},
    })  # fmt: skip
    said = [str(problem).removeprefix(str(tmp_path)) for problem in problems(config, file)]
    assert len(said) == 2
    assert said[0].startswith(
        "/gateway.yaml:2: trainers.mine: trainer kind 'clasifier' is not known; known kinds: "
    )
    assert said[1].startswith("/gateway.yaml:3: trainers.cloud: trainer kind 'openai': unknown option 'epochs'")


def test_an_unknown_trainer_is_an_error_of_the_config(store: SqliteStore, data: Dataset, tmp_path: Path) -> None:
    config = config_in(tmp_path, trainers={"classifier": {"kind": "clasifier"}})
    with pytest.raises(ConfigError, match="'clasifier' is not known"):
        sweep_of(config, data, tmp_path)
