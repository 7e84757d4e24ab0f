"""The trainers `together` and `fireworks` against real servers on loopback: the same way through both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import checkpoints, cost
from gateway.errors import ConfigError, UpstreamError
from gateway.testing import FakeFireworks, FakeTogether, Fault, Received
from gateway.trainers import Stopped, TrainerSettings, build
from gateway.trainers.elsewhere import ServiceTrainer
from gateway.trainers.elsewhere.api import Api, client
from gateway.trainers.fireworks import Fireworks, dataset_id

KEY = "key-of-the-test"
LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"
LLAMA_FIREWORKS = "accounts/fireworks/models/llama-v3p1-8b-instruct"
HOME = "/v1/accounts/acme"

Fake = FakeTogether | FakeFireworks


@dataclass(frozen=True)
class Side:
    """What differs from service to service."""

    kind: str
    fake: Callable[..., Fake]
    model: str
    create: str
    job: str
    upload: str
    served: dict[str, Any]
    own: dict[str, Any]


SIDES = [
    Side("together", FakeTogether, LLAMA, "/v1/fine-tunes", "/v1/fine-tunes/ft-*", "/v1/files/upload",
         {"serverless": True}, {}),
    Side("fireworks", FakeFireworks, LLAMA_FIREWORKS, f"{HOME}/supervisedFineTuningJobs",
         f"{HOME}/supervisedFineTuningJobs/*", f"{HOME}/datasets/*:upload", {"deployment": "shared"},
         {"account": "acme"}),
]  # fmt: skip


@pytest.fixture(params=SIDES, ids=lambda side: side.kind)
def side(request: pytest.FixtureRequest) -> Side:
    found: Side = request.param
    return found


def lines(rows: int, start: int = 0) -> bytes:
    made = [
        {"messages": [{"role": "user", "content": f"Where is order {number}?"},
                      {"role": "assistant", "content": "delivery"}]}
        for number in range(start, start + rows)
    ]  # fmt: skip
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "train.jsonl").write_bytes(lines(40))
    (tmp_path / "validation.jsonl").write_bytes(lines(8, start=100))
    rows = [
        Row(exchange_id=str(n), text=f"order {n}", messages=[{"role": "user", "content": f"order {n}"}],
            output="delivery", split="train")
        for n in range(40)
    ]  # fmt: skip
    return Dataset(
        id="ds-1", task="shop-intent", template="shop-intent@1", rows=rows, directory=str(tmp_path),
        digest="ab" * 32, card={},
    )  # fmt: skip


def tune(side: Side, **options: Any) -> FineTune:
    options = {"base_model": side.model, "n_epochs": 2, **options}
    made = FineTune(id="ft-0123456789abcdef", task="shop-intent", dataset="ds-1", trainer=side.kind)
    return made.but(options=options)


def trainer(
    side: Side, api: Fake, wait: Callable[[float], None] = lambda seconds: None, **options: Any
) -> ServiceTrainer:
    if isinstance(api, FakeFireworks):
        options = {"api_url": api.api_url} | options
    options = {"base_models": [side.model]} | side.own | side.served | options
    made = build(side.kind, TrainerSettings(
        models=Path("models"), upstream="tuned", base_url=api.base_url, api_key=KEY, options=options,
        poll_seconds=10.0, prices={"*": 2.0}, wait=wait,
    ))  # fmt: skip
    assert isinstance(made, ServiceTrainer)
    return made


def asked(api: Fake, method: str, path: str) -> list[Received]:
    return [got for got in api.received if (got.method, got.path) == (method, path)]


def ignore(saved: FineTune) -> None:
    """For the tests that do not look at what was saved."""


# The way when all goes well


def test_a_dataset_becomes_a_model_that_answers_by_the_name_of_the_route(side: Side, dataset: Dataset) -> None:
    with side.fake(answer=lambda asked: "tuned", api_key=KEY, checks=3) as api:
        done = trainer(side, api).run(tune(side), dataset, ignore)
        assert (done.state, done.error, done.upstream) == (FineTuneState.SUCCEEDED, None, "tuned")
        chat = openai.OpenAI(base_url=api.base_url, api_key=KEY).chat.completions
        said = chat.create(model=done.model or "", messages=[{"role": "user", "content": "hello"}])
        assert said.choices[0].message.content == "tuned"
        assert all(got.headers["Authorization"] == f"Bearer {KEY}" for got in api.received)
        sent = sorted(content for content in api.contents.values())
        assert sent == sorted([lines(40), lines(8, start=100)])


def test_together_is_asked_for_an_evaluation_and_a_checkpoint_an_epoch(dataset: Dataset) -> None:
    side = SIDES[0]
    with side.fake() as api:
        trainer(side, api).run(tune(side, learning_rate=1e-4, lora_rank=8, seed=7), dataset, ignore)
        (job,) = asked(api, "POST", side.create)
        assert job.json() == {
            "model": LLAMA, "training_file": "file-000001", "validation_file": "file-000002", "n_epochs": 2,
            "n_checkpoints": 2, "n_evals": 2, "batch_size": "max", "learning_rate": 1e-4,
            "training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16},
            "training_method": {"method": "sft", "train_on_inputs": "auto"},
            "suffix": "shop-intent-ft-0123456789abcdef", "random_seed": 7,
        }  # fmt: skip


def test_no_more_is_asked_of_together_than_it_allows_for_the_model(dataset: Dataset) -> None:
    side = SIDES[0]
    with side.fake() as api:  # ten checkpoints at most
        done = trainer(side, api).run(tune(side, n_epochs=20), dataset, ignore)
        assert done.state is FineTuneState.SUCCEEDED
        assert asked(api, "POST", side.create)[0].json()["n_checkpoints"] == 10


def test_fireworks_is_given_the_names_of_dataset_job_and_model(dataset: Dataset) -> None:
    side, name = SIDES[1], "unprompt-shop-intent-ft-0123456789abcdef"
    with side.fake() as api:
        done = trainer(side, api).run(tune(side, learning_rate=1e-4, lora_rank=8, batch_size=16), dataset, ignore)
        (job,) = asked(api, "POST", side.create)
        assert job.query == {"supervisedFineTuningJobId": name}
        assert job.json() == {
            "dataset": f"accounts/acme/datasets/unprompt-{'ab' * 16}-train",
            "evaluationDataset": f"accounts/acme/datasets/unprompt-{'ab' * 16}-validation",
            "baseModel": LLAMA_FIREWORKS, "epochs": 2, "displayName": name,
            "outputModel": f"accounts/acme/models/{name}", "learningRate": 1e-4, "loraRank": 8,
            "batchSizeSamples": 16,
        }  # fmt: skip
        assert done.model == f"accounts/acme/models/{name}#accounts/acme/deployments/shared"


def test_figures_of_together_are_those_of_each_epoch_and_its_checkpoints_are_candidates(dataset: Dataset) -> None:
    side = SIDES[0]
    with side.fake() as api:
        done = trainer(side, api).run(tune(side), dataset, ignore)
    assert done.metrics["train_loss"] == 0.5
    assert done.metrics["valid_loss_epoch_1"] == pytest.approx(1.1)
    assert done.metrics["valid_loss_epoch_2"] == pytest.approx(0.55)
    assert done.metrics["trained_tokens"] == 8000
    assert done.metrics["cost_usd"] == pytest.approx(0.24)  # 40 rows, two epochs
    assert done.remote["checkpoint_80"] == done.model
    assert done.remote["message"] == "Training completed"
    (first,) = checkpoints(done.but(metrics=done.metrics | {"valid_loss_step_40": 0.5}))
    assert first.model == f"project/{done.remote['job']}-step-40"
    assert checkpoints(done) == []  # its loss is above that of the last one


def test_fireworks_tells_its_progress_and_its_price(dataset: Dataset) -> None:
    side, saved = SIDES[1], list[FineTune]()
    with side.fake(states=("CREATING", "RUNNING", "RUNNING", "COMPLETED")) as api:
        done = trainer(side, api).run(tune(side), dataset, saved.append)
    assert [one.remote["message"] for one in saved if one.metrics.get("step") == 50] == ["epoch 1, 50 %"]
    assert done.metrics["cost_usd"] == pytest.approx(0.16)
    assert done.metrics["step"] == done.metrics["total_steps"] == 100


def test_the_candidates_of_a_sweep_share_one_upload(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        for number in (1, 2):
            one = tune(side, n_epochs=number).but(id=f"ft-{number}")
            assert trainer(side, api).run(one, dataset, ignore).state is FineTuneState.SUCCEEDED
        assert len(api.contents) == 2
        assert len(api.jobs) == 2


def test_a_large_file_goes_to_fireworks_by_a_signed_url_that_never_sees_our_key(dataset: Dataset) -> None:
    with FakeFireworks(api_key=KEY) as api:
        settings = TrainerSettings(models=Path("m"), base_url=api.api_url, api_key=KEY)
        service = Fireworks(Api(client(settings)), "acme", simple_bytes=100)
        name = f"unprompt-{dataset.digest}-train.jsonl"
        assert service.send_file(name, Path(dataset.directory) / "train.jsonl") == dataset_id(name)
        while not service.is_ready(dataset_id(name)):
            pass
        (put,) = asked(api, "PUT", f"/storage/{dataset_id(name)}")
        assert put.body == lines(40)
        assert "Authorization" not in put.headers


# Where nobody serves it


@pytest.mark.parametrize(
    ("side", "served", "todo"),
    [
        (SIDES[0], {"serverless": False}, "on a dedicated endpoint (paid by the minute), then: unprompt finetune "),
        (SIDES[1], {"deployment": ""}, "(paid by the hour), then: unprompt finetune shop-intent --model ft-"),
    ],
    ids=["together", "fireworks"],
)
def test_a_model_that_nobody_serves_waits_for_a_person_and_has_its_price(
    side: Side, served: dict[str, Any], todo: str, dataset: Dataset
) -> None:
    with side.fake() as api:
        waiting = trainer(side, api, **served).run(tune(side), dataset, ignore)
        assert (waiting.state, waiting.model) == (FineTuneState.WAITING, None)
        assert todo in waiting.remote["todo"]
        assert waiting.remote["model"] in waiting.remote["todo"]
        assert cost(waiting) > 0
        before = len(api.received)
        assert trainer(side, api, **served).run(waiting, dataset, ignore) == waiting
        assert len(api.received) == before


def test_a_deployment_that_is_not_there_is_said_as_the_service_says_it(dataset: Dataset) -> None:
    side = SIDES[1]
    with side.fake() as api:
        failed = trainer(side, api, deployment="nowhere").run(tune(side), dataset, ignore)
    assert failed.error is not None
    assert "deployment accounts/acme/deployments/nowhere not found" in failed.error


# Refusals


def test_what_is_wrong_with_the_config_is_said_when_the_trainer_is_built(side: Side) -> None:
    settings = TrainerSettings(models=Path("m"), base_url="http://127.0.0.1:9/v1", options={"base_models": ["x"]})
    with pytest.raises(ConfigError, match="needs an upstream with a base_url"):
        build(side.kind, msgspec.structs.replace(settings, base_url=""))
    with pytest.raises(ConfigError, match="base_models"):
        build(side.kind, msgspec.structs.replace(settings, options=side.own))
    with pytest.raises(ConfigError, match="unknown option 'epochs'; valid: "):
        build(side.kind, msgspec.structs.replace(settings, options={"epochs": 3}))
    if side.kind == "fireworks":
        with pytest.raises(ConfigError, match="account"):
            build(side.kind, settings)


def test_a_wrong_option_and_a_bad_row_are_found_before_anything_is_sent(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        failed = trainer(side, api).run(tune(side, epochs=3), dataset, ignore)
        assert (failed.error or "").startswith("invalid_options: option 'epochs' is not known; valid options: ")
        bad = {"messages": [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "second"}]}
        (Path(dataset.directory) / "train.jsonl").write_bytes(lines(12) + json.dumps(bad).encode() + b"\n")
        failed = trainer(side, api).run(tune(side), dataset, ignore)
        assert (failed.error or "").startswith("invalid_file: train.jsonl line 13: role_order")
        assert api.received == []


def test_a_file_that_the_service_refuses_is_said_with_its_reason(side: Side, dataset: Dataset) -> None:
    with side.fake(checks=2) as api:
        api.fail_next_file("line 3: an emoji that we do not like")
        failed = trainer(side, api).run(tune(side), dataset, ignore)
        assert (failed.error or "").startswith("invalid_file: the upstream refuses unprompt-abab")
        assert "line 3: an emoji" in (failed.error or "")
        assert api.jobs == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(status=401, message=f"Invalid API key {KEY}"), "unauthorized"),
        (Fault(status=402, message="You have no credits left"), "quota"),
        (Fault(status=400, message="this model is not available for tuning"), "rejected"),
        (Fault(status=501, message="Not implemented"), "backend_unavailable"),
    ],
)
def test_a_refused_create_is_final_and_never_tells_our_key(
    side: Side, dataset: Dataset, fault: Fault, kind: str
) -> None:
    with side.fake() as api:
        api.inject(replace(fault, method="POST", path=side.create))
        failed = trainer(side, api).run(tune(side), dataset, ignore)
        assert (failed.error or "").startswith(f"{kind}: the upstream answered {fault.status}")
        assert KEY not in (failed.error or "")
        assert len(asked(api, "POST", side.create)) == 1


def test_a_job_that_fails_late_says_why(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        api.fail_next_job("", "CUDA ran out of memory")
        failed = trainer(side, api).run(tune(side), dataset, ignore)
        assert failed.state is FineTuneState.FAILED
        assert (failed.error or "").startswith("training_failed: the job ")
        assert "CUDA ran out of memory." in (failed.error or "")


def test_a_state_that_nobody_knows_is_waited_out(side: Side, dataset: Dataset) -> None:
    usual = {"together": "running", "fireworks": "RUNNING"}[side.kind]
    last = {"together": "completed", "fireworks": "COMPLETED"}[side.kind]
    saved: list[FineTune] = []
    with side.fake(states=("pondering", usual, "resting", last)) as api:
        assert trainer(side, api).run(tune(side), dataset, saved.append).state is FineTuneState.SUCCEEDED
    assert any("resting" in one.remote.get("status", "") for one in saved)


def test_a_job_that_is_gone_is_lost(side: Side, dataset: Dataset) -> None:
    gone = tune(side).but(state=FineTuneState.RUNNING, stage="created", remote={"job": "ft-nobody"})
    with side.fake() as api:
        failed = trainer(side, api).run(gone, dataset, ignore)
    assert (failed.error or "").startswith("lost: the job is no longer known")


# Outages, and being cut off


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(drop=True), Fault(status=429), Fault(body="<html>")])
def test_a_passing_fault_anywhere_costs_time_but_no_second_job(side: Side, dataset: Dataset, fault: Fault) -> None:
    naps: list[float] = []
    with side.fake() as quiet:
        trainer(side, quiet).run(tune(side), dataset, ignore)
    for path in sorted({got.path for got in quiet.received}):
        with side.fake() as api:
            status = fault.status if fault.body is None else 200
            api.inject(replace(fault, path=path, times=2, status=status))
            done = trainer(side, api, naps.append).run(tune(side), dataset, ignore)
            assert done.state is FineTuneState.SUCCEEDED, (path, done.error)
            assert (len(api.jobs), len(api.contents)) == (1, 2), path
    assert naps


def test_an_outage_that_outlasts_the_patience_leaves_a_sentence(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        api.inject(Fault(status=503, times=10_000))
        failed = trainer(side, api, outage_hours=2.0).run(tune(side), dataset, ignore)
    assert (failed.error or "").startswith("backend_unavailable: no usable answer for 2.")


class Cut(BaseException):
    """The process ends here."""


def test_cut_off_at_any_save_it_goes_on_and_starts_nothing_twice(side: Side, dataset: Dataset) -> None:
    saves: list[FineTune] = []
    with side.fake() as api:
        trainer(side, api).run(tune(side), dataset, saves.append)
    for count in range(1, len(saves)):
        with side.fake() as api:
            kept: list[FineTune] = []

            def save(changed: FineTune, kept: list[FineTune] = kept, most: int = count) -> None:
                kept.append(changed)
                if len(kept) == most:
                    raise Cut

            with pytest.raises(Cut):
                trainer(side, api).run(tune(side), dataset, save)
            done = trainer(side, api).run(kept[-1], dataset, ignore)
            assert (done.state, done.error) == (FineTuneState.SUCCEEDED, None)
            assert (len(api.jobs), len(api.contents)) == (1, 2)
            assert len(asked(api, "POST", side.create)) == 1


@pytest.mark.parametrize("moment", ["arrived", "processed"])
def test_cut_off_at_any_request_that_changes_something_it_goes_on_and_starts_nothing_twice(
    side: Side, dataset: Dataset, moment: str
) -> None:
    """The answer of the request is lost with the process, whether or not it was carried out."""
    with side.fake() as api:
        trainer(side, api).run(tune(side), dataset, ignore)
        changing = [at for at, got in enumerate(api.received) if got.method == "POST"]
    for at in changing:
        with side.fake() as api:
            kept = [tune(side)]

            def cut(seconds: float) -> None:
                raise Cut

            count = iter(range(10_000))

            def observe(now: str, got: Received, api: Fake = api, at: int = at, count: Any = count) -> None:
                if now == "arrived" and next(count) == at:
                    api.inject(Fault(drop=True) if moment == "processed" else Fault(status=500))

            api.observe = observe
            with pytest.raises(Cut):
                trainer(side, api, cut).run(kept[0], dataset, kept.append)
            api.observe = lambda now, got: None
            done = trainer(side, api).run(kept[-1], dataset, ignore)
            assert (done.state, done.error) == (FineTuneState.SUCCEEDED, None), at
            assert (len(api.jobs), len(api.contents)) == (1, 2), at


# Cancelling


def started(side: Side, api: Fake, dataset: Dataset) -> FineTune:
    """A fine-tune whose job is under way."""

    def save(changed: FineTune) -> None:
        kept.append(changed)
        if changed.stage == "created":
            raise Cut

    kept: list[FineTune] = []
    with pytest.raises(Cut):
        trainer(side, api).run(tune(side), dataset, save)
    return kept[-1]


def test_a_running_job_is_cancelled_at_the_service(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        job = started(side, api, dataset)
        assert trainer(side, api).cancel(job).state is FineTuneState.CANCELLED
        (shown,) = api.jobs
        assert shown["status" if side.kind == "together" else "state"] in ("cancelled", "JOB_STATE_CANCELLED")


def test_cancelling_too_late_tells_how_it_ended(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        job = started(side, api, dataset)
        done = trainer(side, api).run(job, dataset, ignore)
        late = trainer(side, api).cancel(job)
        assert (late.state, late.model) == (FineTuneState.SUCCEEDED, done.model)


def test_cancelling_during_an_outage_is_an_error_not_a_lie(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        job = started(side, api, dataset)
        api.inject(Fault(status=500))
        with pytest.raises(UpstreamError, match="is not cancelled"):
            trainer(side, api).cancel(job)


def test_a_wait_that_is_called_off_leaves_the_job_for_whoever_cancels(side: Side, dataset: Dataset) -> None:
    def called_off(seconds: float) -> None:
        raise Stopped("over budget")

    with side.fake(polls_per_state=3) as api, pytest.raises(Stopped):
        trainer(side, api, called_off).run(tune(side), dataset, ignore)


# What it is expected to cost


def test_the_estimate_is_tokens_times_epochs_times_the_price(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        made = trainer(side, api)
        one, three = (made.estimate({"base_model": side.model, "n_epochs": n}, dataset) for n in (1, 3))
        assert one.tokens
        assert one.usd == pytest.approx(one.tokens * 2.0 / 1e6)
        assert three.usd == pytest.approx(3 * (one.usd or 0))
        assert made.estimate({"epochs": 1}, dataset).usd is None
        assert api.received == []


def test_the_usual_sweep_is_taken_by_the_service(side: Side, dataset: Dataset) -> None:
    with side.fake() as api:
        made = trainer(side, api)
        sweep = made.candidates(dataset)
        assert [one["n_epochs"] for one in sweep] == [3, 3, 6, 6]
        for number, options in enumerate(sweep):
            one = tune(side).but(id=f"ft-{number}", options=options)
            assert made.run(one, dataset, ignore).state is FineTuneState.SUCCEEDED
