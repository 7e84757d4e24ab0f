"""The openai trainer against a real server on loopback: what it sends, survives and gives up on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import formats
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import ConfigError, DatasetError, UpstreamError
from gateway.testing import FakeOpenAI, Fault, Received
from gateway.trainers import TrainerSettings, build
from gateway.trainers.elsewhere import default_epochs
from gateway.trainers.elsewhere.uploads import check_jsonl, job_suffix
from gateway.trainers.openai import OpenAITrainer, Sweep
from gateway.trainers.openai.service import OUR_ID

MODEL = "gpt-4.1-nano-2025-04-14"
KEY = "sk-of-the-test"
JOBS = "/v1/fine_tuning/jobs"
FILES = "/v1/files"

STAGES = [
    "uploading_train",
    "train_uploaded",
    "uploading_validation",
    "validation_uploaded",
    "creating",
    "created",
    "training",
    "done",
]


def jsonl(rows: int, start: int = 0) -> bytes:
    made = [
        {
            "messages": [
                {"role": "user", "content": f"Where is order {number}?"},
                {"role": "assistant", "content": "delivery"},
            ]
        }
        for number in range(start, start + rows)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


def made_dataset(folder: Path, train: bytes = jsonl(12), validation: bytes = jsonl(3, start=100)) -> Dataset:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_bytes(train)
    (folder / "validation.jsonl").write_bytes(validation)
    digest = hashlib.sha256(train + validation).hexdigest()
    return Dataset(
        id="ds-1",
        task="shop-intent",
        template="shop-intent@1",
        rows=[],
        directory=str(folder),
        digest=digest,
        card={},
    )


def finetune(**options: Any) -> FineTune:
    options = {"base_model": MODEL, **options}
    return FineTune(id="FT_01", task="shop-intent", dataset="ds-1", trainer="openai", options=options)


def trainer(
    api: FakeOpenAI, *, sleep: Callable[[float], None] = lambda seconds: None, **options: Any
) -> OpenAITrainer:
    made = TrainerSettings(
        models=Path("models"), upstream="tuned", base_url=api.base_url, api_key=KEY, poll_seconds=10.0
    )
    return OpenAITrainer(made, msgspec.convert(options, Sweep), sleep=sleep)


@pytest.fixture
def api() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        yield server


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return made_dataset(tmp_path / "ds-1")


def requests(api: FakeOpenAI, method: str, path: str) -> list[Received]:
    return [got for got in api.received if (got.method, got.path) == (method, path)]


def ignore(saved: FineTune) -> None:
    """For the tests that do not look at what was saved."""


# The way when all goes well


def test_a_dataset_becomes_a_model_that_the_upstream_serves(api: FakeOpenAI, dataset: Dataset) -> None:
    saved: list[FineTune] = []
    done = trainer(api).run(finetune(n_epochs=2, learning_rate_multiplier=0.5, seed=7), dataset, saved.append)

    assert done.state is FineTuneState.SUCCEEDED
    assert (done.upstream, done.model) == ("tuned", f"ft:{MODEL}:org-fake:shop-intent-ft-01:000003")
    assert done.error is None
    assert saved[-1] == done

    [job] = requests(api, "POST", JOBS)
    assert job.json() == {
        "model": MODEL,
        "training_file": "file-000001",
        "validation_file": "file-000002",
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
        },
        "suffix": "shop-intent-ft-01",
        "metadata": {OUR_ID: "FT_01"},
        "seed": 7,
    }
    assert job.headers["Authorization"] == f"Bearer {KEY}"


def test_the_service_gets_the_very_bytes_of_the_files_under_the_digest_of_the_dataset(
    api: FakeOpenAI, dataset: Dataset
) -> None:
    trainer(api).run(finetune(), dataset, ignore)
    sent = {shown["filename"]: api.contents[name] for name, shown in api.files.items()}
    assert sent == {
        f"unprompt-{dataset.digest}-train.jsonl": jsonl(12),
        f"unprompt-{dataset.digest}-validation.jsonl": jsonl(3, start=100),
    }


def test_each_stage_is_saved_in_order_with_the_ids_of_the_other_side(api: FakeOpenAI, dataset: Dataset) -> None:
    saved: list[FineTune] = []
    trainer(api).run(finetune(), dataset, saved.append)
    assert [stage for stage, _ in itertools.groupby(saved, key=lambda each: each.stage)] == STAGES
    by_stage = {each.stage: each.remote for each in reversed(saved)}
    assert by_stage["creating"] == {"train_file": "file-000001", "validation_file": "file-000002"}
    assert by_stage["created"]["job"] == "ftjob-000003"
    assert all(each.state is FineTuneState.RUNNING for each in saved[:-1])


def test_figures_and_the_models_of_earlier_epochs_are_kept(api: FakeOpenAI, dataset: Dataset) -> None:
    done = trainer(api).run(finetune(n_epochs=2), dataset, ignore)
    assert done.metrics["trained_tokens"] == 1200
    assert done.metrics["train_loss"] == 0.5  # of the last epoch, not of the first
    assert done.metrics["valid_loss"] == pytest.approx(0.55)
    assert done.remote["checkpoint_12"] == f"{done.model}:ckpt-step-12"
    assert done.remote["checkpoint_24"] == done.model
    assert done.remote["message"] == "The job has successfully completed"


def test_without_validation_rows_only_the_training_file_goes_out(api: FakeOpenAI, tmp_path: Path) -> None:
    done = trainer(api).run(finetune(), made_dataset(tmp_path, validation=b""), ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert len(api.files) == 1
    assert "validation_file" not in requests(api, "POST", JOBS)[0].json()


def test_the_candidates_of_a_sweep_share_one_upload(api: FakeOpenAI, dataset: Dataset) -> None:
    for number in (1, 2):
        trainer(api).run(finetune(n_epochs=number).but(id=f"FT_{number}"), dataset, ignore)
    assert len(api.files) == 2  # train and validation, once each
    assert [job["hyperparameters"]["n_epochs"] for job in api.jobs] == [1, 2]


def test_a_finished_fine_tune_is_left_alone(api: FakeOpenAI, dataset: Dataset) -> None:
    over = finetune().but(state=FineTuneState.FAILED, error="quota: no credit.")
    assert trainer(api).run(over, dataset, ignore) == over
    assert api.received == []


# The sweep


def test_the_usual_sweep_has_eight_candidates_that_the_service_takes(api: FakeOpenAI, dataset: Dataset) -> None:
    candidates = trainer(api).candidates(dataset)
    assert len(candidates) == 8
    assert len({json.dumps(each) for each in candidates}) == 8
    for number, options in enumerate(candidates):
        each = finetune().but(id=f"FT_{number}", options=options)
        assert trainer(api).run(each, dataset, ignore).state is FineTuneState.SUCCEEDED


def test_the_sweep_can_be_set_in_the_config(api: FakeOpenAI, dataset: Dataset) -> None:
    chosen = trainer(api, base_models=["a", "b"], n_epochs=[3], learning_rate_multipliers=[2.0], seed=1, suffix="s")
    assert chosen.candidates(dataset) == [
        {"base_model": name, "n_epochs": 3, "learning_rate_multiplier": 2.0, "seed": 1, "suffix": "s"}
        for name in ("a", "b")
    ]


@pytest.mark.parametrize(
    ("rows", "epochs"), [(10, 10), (33, 3), (34, 3), (2, 25), (8_333, 3), (12_500, 2), (90_000, 1)]
)
def test_the_number_of_epochs_follows_the_number_of_rows(rows: int, epochs: int) -> None:
    assert default_epochs(rows) == epochs


def test_a_wrong_config_is_refused_when_the_trainer_is_built() -> None:
    good = TrainerSettings(models=Path("models"), base_url="http://127.0.0.1:9/v1")
    build("openai", good)
    with pytest.raises(ConfigError, match="needs an upstream with a base_url"):
        build("openai", msgspec.structs.replace(good, base_url=""))
    with pytest.raises(ConfigError, match="unknown option 'epochs'; valid: base_models, n_epochs"):
        build("openai", msgspec.structs.replace(good, options={"epochs": 3}))
    with pytest.raises(ConfigError, match="n_epochs"):
        build("openai", msgspec.structs.replace(good, options={"n_epochs": [0]}))


@given(st.text(max_size=90), st.text(alphabet="abcXYZ019_-", min_size=1, max_size=80))
def test_a_suffix_is_always_one_that_the_service_takes(name: str, finetune_id: str) -> None:
    made = job_suffix(name, finetune_id)
    assert len(made) <= 64
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


# Refusals: one sentence, its class first


def sentence(api: FakeOpenAI, dataset: Dataset, **options: Any) -> str:
    saved: list[FineTune] = []
    failed = trainer(api).run(finetune(**options), dataset, saved.append)
    assert failed.state is FineTuneState.FAILED
    assert saved[-1] == failed
    assert failed.error is not None
    assert (failed.upstream, failed.model) == (None, None)
    return failed.error


def test_an_unknown_option_is_named_beside_the_valid_ones(api: FakeOpenAI, dataset: Dataset) -> None:
    assert sentence(api, dataset, epochs=3) == (
        "invalid_options: option 'epochs' is not known; valid options: "
        "base_model, n_epochs, learning_rate_multiplier, batch_size, seed, suffix."
    )
    assert "n_epochs" in sentence(api, dataset, n_epochs=51)
    assert api.received == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{not json", "not_json"),
        (b"[]", "not_object: a row is an object, this is a list"),
        (b'{"messages": []}', "no_messages"),
        (b'{"messages": ["hello"]}', "wrong_type: message 0 is a text, not an object"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "no_answer: the last message is from 'user'"),
        (b'{"messages": [{"role": "assistant", "content": ""}]}', "empty_answer"),
        (b'{"messages": [{"role": "assistant", "content": "a <|endoftext|> b"}]}', "special_token"),
    ],
)
def test_a_bad_row_is_found_before_anything_is_sent(api: FakeOpenAI, tmp_path: Path, line: bytes, why: str) -> None:
    error = sentence(api, made_dataset(tmp_path, train=jsonl(10) + line + b"\n"))
    assert error.startswith(f"invalid_file: train.jsonl line 11: {why}")
    assert api.received == []


def test_nine_rows_are_too_few_and_a_missing_file_is_named(api: FakeOpenAI, tmp_path: Path) -> None:
    assert sentence(api, made_dataset(tmp_path, train=jsonl(9))) == (
        "invalid_file: train.jsonl has 9 rows; the service takes no fewer than 10."
    )
    (tmp_path / "train.jsonl").unlink()
    dataset = msgspec.structs.replace(made_dataset(tmp_path / "other"), directory=str(tmp_path))
    assert sentence(api, dataset).startswith("invalid_file: train.jsonl is missing")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(status=401, code="invalid_api_key", message=f"Incorrect API key: {KEY}"), "unauthorized"),
        (Fault(status=403, message="Fine-tuning is not open to your organization"), "backend_unavailable"),
        (Fault(status=404, message="Invalid URL (POST /v1/fine_tuning/jobs)"), "backend_unavailable"),
        (Fault(status=404, code="model_not_found", message="The model `x` does not exist"), "rejected"),
        (Fault(status=429, code="insufficient_quota", message="You exceeded your current quota"), "quota"),
        (Fault(status=400, message="The platform is no longer accessible"), "backend_unavailable"),
        (Fault(status=400, code="blocked_by_policy", message="Blocked"), "moderation"),
        (Fault(status=400, code="invalid_value", message="seed must be an integer"), "rejected"),
        (Fault(status=501, message="Not implemented"), "backend_unavailable"),
    ],
)  # fmt: skip
def test_a_refused_create_is_final_and_its_class_is_named(
    api: FakeOpenAI, dataset: Dataset, fault: Fault, kind: str
) -> None:
    api.inject(replace(fault, method="POST", path=JOBS))
    error = sentence(api, dataset)
    assert error.startswith(f"{kind}: the upstream answered {fault.status}")
    assert KEY not in error
    assert len(requests(api, "POST", JOBS)) == 1
    assert api.jobs == []


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("refusals_v3", "The model did not pass our post-training moderation checks", "moderation"),
        ("exceeded_quota", "Creating this model would exceed your hard limit", "quota"),
        ("invalid_training_file", "The job failed due to an invalid training file", "invalid_file"),
        ("server_error", "Something went wrong", "training_failed"),
    ],
)
def test_a_job_that_fails_late_says_why(
    api: FakeOpenAI, dataset: Dataset, code: str, message: str, kind: str
) -> None:
    api.fail_next_job(code, message)
    assert sentence(api, dataset) == f"{kind}: the job ftjob-000003 failed with {code}: {message}."


def test_a_job_that_is_gone_is_lost(api: FakeOpenAI, dataset: Dataset) -> None:
    gone = finetune().but(state=FineTuneState.RUNNING, stage="created", remote={"job": "ftjob-999"})
    failed = trainer(api).run(gone, dataset, ignore)
    assert failed.error is not None
    assert failed.error.startswith("lost: the job is no longer known")


# Outages


class Naps:
    """A sleep that takes no time and keeps the seconds."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


@pytest.mark.parametrize("path", [FILES, JOBS, f"{JOBS}/*", f"{JOBS}/*/events", f"{JOBS}/*/checkpoints"])
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(drop=True), Fault(status=429), Fault(status=409)])
def test_a_passing_fault_anywhere_costs_time_but_no_second_job(
    api: FakeOpenAI, dataset: Dataset, path: str, fault: Fault
) -> None:
    api.inject(replace(fault, path=path, times=3))
    done = trainer(api).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert (len(api.jobs), len(api.files)) == (1, 2)


@pytest.mark.parametrize("path", [FILES, JOBS])
def test_a_lost_answer_to_an_upload_or_a_create_is_found_again_not_repeated(
    api: FakeOpenAI, dataset: Dataset, path: str
) -> None:
    api.inject(Fault(drop=True, method="POST", path=path))
    done = trainer(api).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert len(requests(api, "POST", FILES)) == 2
    assert len(requests(api, "POST", JOBS)) == 1


def test_an_outage_is_waited_out_with_growing_pauses_of_five_minutes_at_most(
    api: FakeOpenAI, dataset: Dataset
) -> None:
    api.inject(Fault(status=502, times=9, path=f"{JOBS}/*"))
    naps = Naps()
    done = trainer(api, sleep=naps).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert naps.taken[:9] == [10, 20, 40, 80, 160, 300, 300, 300, 300]


def test_a_server_that_is_down_for_a_while_is_waited_for(api: FakeOpenAI, dataset: Dataset) -> None:
    naps = Naps()

    def sleep(seconds: float) -> None:
        naps(seconds)
        if len(naps.taken) == 1:
            api.stop()  # from now on connections are refused
        if len(naps.taken) == 4:
            api.start()

    done = trainer(api, sleep=sleep).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert naps.taken[1:4] == [10, 20, 40]
    assert len(api.jobs) == 1


def test_an_outage_that_outlasts_the_patience_leaves_a_sentence(api: FakeOpenAI, dataset: Dataset) -> None:
    api.inject(Fault(status=503, times=10_000))
    naps = Naps()
    failed = trainer(api, sleep=naps, outage_hours=2).run(finetune(), dataset, ignore)
    assert failed.error is not None
    assert failed.error.startswith("backend_unavailable: no usable answer for 2.")
    assert 7200 <= sum(naps.taken) <= 7500


def test_the_wait_that_the_service_asks_for_is_kept(api: FakeOpenAI, dataset: Dataset) -> None:
    api.inject(Fault(status=429, retry_after=77, path=FILES))
    naps = Naps()
    trainer(api, sleep=naps).run(finetune(), dataset, ignore)
    assert naps.taken[0] == 77


def test_a_key_that_is_revoked_while_training_does_not_give_up_a_job_that_is_paid_for(
    api: FakeOpenAI, dataset: Dataset
) -> None:
    api.inject(Fault(status=401, times=5, path=f"{JOBS}/*"))
    assert trainer(api).run(finetune(), dataset, ignore).state is FineTuneState.SUCCEEDED


def test_a_state_that_nobody_knows_is_waited_out(dataset: Dataset) -> None:
    with FakeOpenAI(states=("validating_files", "paused", "reticulating", "running", "succeeded")) as api:
        saved: list[FineTune] = []
        done = trainer(api).run(finetune(), dataset, saved.append)
    assert done.state is FineTuneState.SUCCEEDED
    assert {"paused", "reticulating"} <= {each.remote.get("status") for each in saved}


def test_polling_slows_down_while_nothing_happens(dataset: Dataset) -> None:
    naps = Naps()
    with FakeOpenAI(polls_per_state=8) as api:
        trainer(api, sleep=naps).run(finetune(), dataset, ignore)
    assert naps.taken[:2] == [10, 15]
    assert max(naps.taken) == 60
    assert naps.taken.count(10) >= 3  # each new state is looked at closely again


@pytest.mark.parametrize("nonsense", ["<html>Back soon</html>", "{}", "[]", "null", '{"data": null}', "{"])
@pytest.mark.parametrize("path", [FILES, JOBS, f"{JOBS}/*"])
def test_nonsense_with_status_200_is_an_outage_and_never_means_that_there_is_no_such_job(
    api: FakeOpenAI, dataset: Dataset, path: str, nonsense: str
) -> None:
    api.inject(Fault(drop=True, method="POST", path=path))  # created, but the answer is lost
    api.inject(Fault(status=200, body=nonsense, method="GET", path=path, times=2))
    done = trainer(api).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert (len(api.jobs), len(api.files)) == (1, 2)


# Cut off: Ctrl-C, and kill -9 at every point


def test_ctrl_c_leaves_a_fine_tune_that_goes_on_where_it_was(api: FakeOpenAI, dataset: Dataset) -> None:
    saved = [finetune()]

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(api, sleep=interrupted).run(saved[0], dataset, saved.append)
    assert saved[-1].state is FineTuneState.RUNNING
    done = trainer(api).run(saved[-1], dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert len(requests(api, "POST", JOBS)) == 1


def test_a_run_that_was_cut_off_while_creating_lets_the_request_land_before_it_looks(
    api: FakeOpenAI, dataset: Dataset
) -> None:
    saved: list[FineTune] = []
    trainer(api).run(finetune(), dataset, saved.append)
    creating = next(each for each in saved if each.stage == "creating")
    looked = len(api.received)
    naps = Naps()
    trainer(api, sleep=naps).run(creating, dataset, ignore)
    assert naps.taken[0] == 10
    assert api.received[looked].path == JOBS
    assert len(api.jobs) == 1


def test_a_job_that_exists_is_followed_even_when_the_dataset_is_gone(api: FakeOpenAI, dataset: Dataset) -> None:
    job = started_job(api, dataset)
    (Path(dataset.directory) / "train.jsonl").unlink()
    assert trainer(api).run(job, dataset, ignore).state is FineTuneState.SUCCEEDED


def test_a_job_of_another_store_with_the_same_id_is_not_taken_for_ours(api: FakeOpenAI, tmp_path: Path) -> None:
    theirs = trainer(api).run(finetune(), made_dataset(tmp_path / "a"), ignore)
    ours = trainer(api).run(finetune(), made_dataset(tmp_path / "b", train=jsonl(20)), ignore)
    assert ours.remote["job"] != theirs.remote["job"]


class Mortal:
    """Runs the trainer in a process that can be killed, forked from one that has everything imported."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = 0

    def run(self, state: Path, dataset: Dataset, base_url: str, *, dies: str = "") -> int:
        """The exit code, negative for a signal. `dies` is `before STAGE` or `after STAGE`."""
        order = {
            "state": str(state),
            "dataset": msgspec.to_builtins(dataset),
            "base_url": base_url,
            "dies": dies,
        }
        assert self.parent.stdin is not None
        self.parent.stdin.write(json.dumps(order) + "\n")
        self.parent.stdin.flush()
        self.pid = self._answer()
        self.parent.stdin.write("go\n")
        self.parent.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self.parent.stdout is not None
        return int(self.parent.stdout.readline())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.parent.communicate()


def parent_of_the_mortals() -> None:
    """Fork a child for each order; tell its process id, let it go, tell its exit code."""
    for line in sys.stdin:
        order = json.loads(line)
        gate, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(gate, 1)
            exit_code = 1
            try:
                mortal(order)
                exit_code = 0
            finally:
                os._exit(exit_code)
        print(child, flush=True)  # noqa: T201 - the way to tell the test
        sys.stdin.readline()
        os.write(go, b"!")
        os.close(go)
        os.close(gate)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def mortal(order: dict[str, Any]) -> None:
    path = Path(order["state"])
    when, _, stage = order["dies"].partition(" ")

    def save(saved: FineTune) -> None:
        if (when, stage) == ("before", saved.stage):
            os.kill(os.getpid(), signal.SIGKILL)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(saved))
        fresh.rename(path)
        if (when, stage) == ("after", saved.stage):
            os.kill(os.getpid(), signal.SIGKILL)

    made = TrainerSettings(
        models=Path("models"), upstream="tuned", base_url=order["base_url"], api_key=KEY, poll_seconds=0.01
    )
    started = msgspec.json.decode(path.read_bytes(), type=FineTune)
    build("openai", made).run(started, msgspec.convert(order["dataset"], Dataset), save)


@pytest.fixture(scope="module")
def process() -> Iterator[Mortal]:
    made = Mortal()
    yield made
    made.close()


def fresh_state(folder: Path) -> Path:
    state = folder / "finetune.json"
    state.write_bytes(msgspec.json.encode(finetune()))
    return state


def assert_started_once(api: FakeOpenAI, state: Path) -> None:
    done = msgspec.json.decode(state.read_bytes(), type=FineTune)
    assert done.state is FineTuneState.SUCCEEDED
    assert done.model == api.jobs[0]["fine_tuned_model"]
    assert len(requests(api, "POST", JOBS)) == 1
    assert len(requests(api, "POST", FILES)) == 2
    assert sorted(shown["filename"][-11:] for shown in api.files.values()) == ["ation.jsonl", "train.jsonl"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_kill_9_around_each_saved_stage_starts_nothing_twice(
    api: FakeOpenAI, dataset: Dataset, tmp_path: Path, process: Mortal, when: str, stage: str
) -> None:
    state = fresh_state(tmp_path)
    assert process.run(state, dataset, api.base_url, dies=f"{when} {stage}") == -signal.SIGKILL
    assert process.run(state, dataset, api.base_url) == 0
    assert_started_once(api, state)


@pytest.mark.parametrize("moment", ["arrived", "processed"])
@pytest.mark.parametrize(
    ("method", "path", "nth"),
    [("POST", FILES, 1), ("POST", FILES, 2), ("POST", JOBS, 1), ("GET", FILES, 1), ("GET", JOBS, 1)],
)
def test_kill_9_while_a_request_is_at_the_service_starts_nothing_twice(
    api: FakeOpenAI,
    dataset: Dataset,
    tmp_path: Path,
    process: Mortal,
    moment: str,
    method: str,
    path: str,
    nth: int,
) -> None:
    state = fresh_state(tmp_path)
    hits = itertools.count(1)

    def observe(now: str, got: Received) -> None:
        if (now, got.method, got.path) == (moment, method, path) and next(hits) == nth:
            process.kill()

    api.observe = observe
    assert process.run(state, dataset, api.base_url) == -signal.SIGKILL
    assert process.run(state, dataset, api.base_url) == 0
    assert_started_once(api, state)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.integers(min_value=0, max_value=30), min_size=1, max_size=5))
def test_kill_9_again_and_again_at_any_request_starts_nothing_twice(
    tmp_path: Path, process: Mortal, deaths: list[int]
) -> None:
    """Each number: after so many moments (arrived, processed) of a run, that run is killed."""
    dataset, state = made_dataset(tmp_path / "ds-1"), fresh_state(tmp_path)
    with FakeOpenAI() as api:
        for death in deaths:
            moments = itertools.count()

            def observe(now: str, got: Received, moments: Iterator[int] = moments, at: int = death) -> None:
                if next(moments) == at:
                    process.kill()

            api.observe = observe
            assert process.run(state, dataset, api.base_url) in (0, -signal.SIGKILL)
        api.observe = lambda now, got: None
        assert process.run(state, dataset, api.base_url) == 0
        assert_started_once(api, state)


# Cancelling


def test_a_running_job_is_cancelled_at_the_service(api: FakeOpenAI, dataset: Dataset) -> None:
    job = started_job(api, dataset)
    assert trainer(api).cancel(job).state is FineTuneState.CANCELLED
    assert api.jobs[0]["status"] == "cancelled"


def test_a_job_that_was_cancelled_elsewhere_ends_as_cancelled(api: FakeOpenAI, dataset: Dataset) -> None:
    job = started_job(api, dataset)
    trainer(api).cancel(job)
    assert trainer(api).run(job, dataset, ignore).state is FineTuneState.CANCELLED


def started_job(api: FakeOpenAI, dataset: Dataset, *, stage: str = "created") -> FineTune:
    """A fine-tune whose job the service has, cut off when this stage was saved."""

    class Cut(BaseException):
        pass

    saved: list[FineTune] = []

    def save(each: FineTune) -> None:
        saved.append(each)
        if each.stage == "created":
            raise Cut

    with pytest.raises(Cut):
        trainer(api).run(finetune(), dataset, save)
    return next(each for each in saved if each.stage == stage)


def test_a_job_whose_creation_was_cut_off_is_found_and_cancelled(api: FakeOpenAI, dataset: Dataset) -> None:
    cancelled = trainer(api).cancel(started_job(api, dataset, stage="creating"))
    assert cancelled.state is FineTuneState.CANCELLED
    assert api.jobs[0]["status"] == "cancelled"


def test_nothing_is_asked_of_the_service_when_no_job_was_started(api: FakeOpenAI) -> None:
    assert trainer(api).cancel(finetune()).state is FineTuneState.CANCELLED
    assert api.received == []


def test_cancelling_too_late_tells_how_it_ended(api: FakeOpenAI, dataset: Dataset) -> None:
    saved: list[FineTune] = []
    done = trainer(api).run(finetune(), dataset, saved.append)
    late = trainer(api).cancel(next(each for each in saved if each.stage == "created"))
    assert (late.state, late.model) == (FineTuneState.SUCCEEDED, done.model)


def test_cancelling_during_an_outage_is_an_error_not_a_lie(api: FakeOpenAI, dataset: Dataset) -> None:
    job = started_job(api, dataset)
    api.inject(Fault(status=500))
    with pytest.raises(UpstreamError, match="fine-tune FT_01 is not cancelled"):
        trainer(api).cancel(job)


# Files


def test_a_file_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with path.open("wb") as file:
        file.truncate(512 * 1024 * 1024 + 1)  # sparse: takes no room
    with pytest.raises(DatasetError, match=r"train.jsonl has 536,870,913 bytes"):
        check_jsonl(path, formats.load("openai"), least=10)


if __name__ == "__main__":
    parent_of_the_mortals()
