"""The trainer `trl` with a stand-in for the training process: what it asks for, survives, and hands to the server.

The recipe itself is tested with torch in `tests/recipes`, where the packages of `unprompt[trl]` are installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import ConfigError
from gateway.testing import Fault
from gateway.testing.vllm import FakeVLLM
from gateway.trainers import TrainerSettings, build, trl
from gateway.trainers.trl import Options, Settings, TrlTrainer
from gateway.trainers.trl.adapters import Adapters, ServingFailed
from gateway.trainers.trl.options import adapter_folder, checked, model_name, training_name
from gateway.trainers.trl.process import figures, loss_curve

BASE = "some/base-model"

STAND_IN = '''\
#!{python}
"""Trains nothing: two steps an epoch, an adapter folder for each. `plan.json` beside it says what goes wrong."""
import json, os, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
plan = json.loads((here / "plan.json").read_text())
with (here / "starts.txt").open("a") as starts:
    starts.write(Path(sys.argv[1]).name + "\\n")
if sys.argv[1].endswith("merge.py"):
    Path(sys.argv[4]).mkdir()
    sys.exit()
if plan.get("complains"):
    sys.exit(plan["complains"])
job = json.loads(Path(sys.argv[2]).read_text())
(here / "job.json").write_text(json.dumps(job))
out = Path(job["out"])
log = out / "loss.jsonl"
done = len(log.read_text().splitlines()) if log.is_file() else 0
print("a library says hello")
print(json.dumps({{"event": "rows", "rows": 12, "held_out": 3, "too_long": 1}}), flush=True)
for step in range(done + 1, 2 * job["n_epochs"] + 1):
    if plan.get("kill_at_start"):
        os.kill(os.getpid(), signal.SIGKILL)
    line = {{"step": step, "epoch": step / 2, "seconds": 10.0 * step, "tokens": 500.0 * step}}
    line["train_loss"] = 8 / step
    with log.open("a") as file:
        file.write(json.dumps(line) + "\\n")
    print(json.dumps({{"event": "step", "steps": 2 * job["n_epochs"], **line}}), flush=True)
    if step % 2 == 0:
        folder = out / f"epoch-{{step // 2}}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{{}}")
    if plan.get("hang_at") == step:
        plan["hang_at"] = 0
        (here / "plan.json").write_text(json.dumps(plan))
        (here / "hangs").write_text(str(os.getpid()))
        while os.read(0, 4096):
            pass
        sys.exit(3)
    if step in plan.get("kill_at", []):
        os.kill(os.getpid(), signal.SIGKILL)
for name, line in plan.get("left_out", []):
    with (out / "left_out.jsonl").open("a") as file:
        file.write(json.dumps({{"file": name, "line": line, "reason": "no tools: too small"}}) + "\\n")
(out / "done.json").write_text(json.dumps({{"rows": 12}}))
print(json.dumps({{"event": "done"}}))
'''


class StandIn:
    """An interpreter that runs no recipe but the stand-in for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, folder / "python"
        self.plan()
        self.python.write_text(STAND_IN.format(python=sys.executable))
        self.python.chmod(0o755)

    def plan(self, **plan: Any) -> None:
        (self.folder / "plan.json").write_text(json.dumps(plan))

    @property
    def starts(self) -> list[str]:
        file = self.folder / "starts.txt"
        return file.read_text().splitlines() if file.is_file() else []

    @property
    def job(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "job.json").read_text())
        return found


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    (tmp_path / "stand-in").mkdir()
    return StandIn(tmp_path / "stand-in")


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM(base=BASE) as running:
        yield running


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "ds-1"
    folder.mkdir()
    row = {"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "delivery"}]}
    for side in ("train", "validation"):
        (folder / f"{side}.jsonl").write_text(json.dumps(row) + "\n")
    return Dataset(
        id="ds-1", task="Shop mail", template="mail@1", rows=[], directory=str(folder), digest="d1", card={}
    )


def trainer(tmp_path: Path, stand_in: StandIn, server: FakeVLLM, **options: Any) -> TrlTrainer:
    settings = TrainerSettings(
        models=tmp_path / "models", upstream="laptop", base_url=server.base_url, poll_seconds=0.0
    )
    own = msgspec.convert({"python": str(stand_in.python), **options}, Settings)
    return TrlTrainer(settings, own, patience=0.0)


def finetune(**options: Any) -> FineTune:
    options = {"base_model": BASE, "n_epochs": 3, **options}
    return FineTune(id="ft-1", task="Shop mail", dataset="ds-1", trainer="trl", options=options)


def ignore(saved: FineTune) -> None:
    """For the tests that do not look at what was saved."""


# The way when all goes well


def test_a_training_ends_in_an_adapter_that_the_server_answers_with(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    saved: list[FineTune] = []
    done = trainer(tmp_path, stand_in, server).run(finetune(), dataset, saved.append)

    assert (done.state, done.error) == (FineTuneState.SUCCEEDED, None)
    training = training_name(dataset, Options(base_model=BASE))
    assert training.startswith("Shop-mail-")
    assert (done.upstream, done.model) == ("laptop", f"{training}-e3")
    assert server.adapters == {f"{training}-e3": str(tmp_path / "models" / training / "epoch-3")}
    assert list(dict.fromkeys(each.stage for each in saved)) == ["waiting", "training", "loading", "done"]
    assert saved[-1] == done


def test_the_recipe_is_told_all_options_and_the_datasets_own_files(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    asked = trainer(tmp_path, stand_in, server, threads=2, device="cpu")
    asked.run(finetune(learning_rate=0.001, batch_size=4, rank=8, seed=7, max_tokens=64), dataset, ignore)
    assert stand_in.job == {
        "base_model": BASE,
        "train": str(tmp_path / "ds-1" / "train.jsonl"),
        "validation": str(tmp_path / "ds-1" / "validation.jsonl"),
        "out": str(tmp_path / "models" / (dict(server.adapters).popitem()[0].removesuffix("-e3"))),
        "n_epochs": 3,
        "learning_rate": 0.001,
        "batch_size": 4,
        "rank": 8,
        "alpha": 16,
        "max_tokens": 64,
        "seed": 7,
        "device": "cpu",
        "threads": 2,
        "checkpoint_seconds": 300.0,
    }


def test_progress_is_saved_while_it_trains(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    saved: list[FineTune] = []
    trainer(tmp_path, stand_in, server).run(finetune(), dataset, saved.append)
    losses = dict.fromkeys(each.metrics.get("train_loss") for each in saved if each.stage == "training")
    assert list(losses) == [None, 8.0, 4.0, 8 / 3, 2.0, 1.6, 8 / 6]
    assert saved[-1].metrics["rows"] == 12
    assert saved[-1].metrics["too_long"] == 1
    assert saved[-1].metrics["tokens_per_second"] == 50.0


def test_the_card_names_the_rows_that_were_left_out_by_their_exchange(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    rows = [Row(exchange_id=f"e{n}", text=f"{n}", messages=[], output="yes", split="train") for n in range(3)]
    called = Row(exchange_id="e-call", text="t", messages=[], output="", tool_calls=[{}], split="train")
    held_out = msgspec.structs.replace(rows[0], exchange_id="e-held", split="validation")
    data = msgspec.structs.replace(dataset, rows=[held_out, *rows], calls=[called])
    stand_in.plan(left_out=[("train.jsonl", 2), ("train.jsonl", 4), ("validation.jsonl", 1)])
    done = trainer(tmp_path, stand_in, server).run(finetune(), data, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    card = json.loads(next(tmp_path.rglob("card.json")).read_text())
    assert (card["dataset_digest"], card["rows"]) == (data.digest, 12)
    assert [(one["exchange_id"], one["reason"]) for one in card["left_out"]] == [
        (name, "no tools: too small") for name in ("e1", "e-call", "e-held")
    ]


def test_each_epoch_is_a_candidate_and_all_of_them_are_one_training(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    asked = trainer(tmp_path, stand_in, server)
    done = [asked.run(finetune(epoch=epoch).but(id=f"ft-{epoch}"), dataset, ignore) for epoch in (1, 2, 3)]
    assert stand_in.starts == ["sft.py"]
    assert [(one.model or "")[-3:] for one in done] == ["-e1", "-e2", "-e3"]
    assert len(server.adapters) == 3
    assert [one.metrics["train_loss"] for one in done] == [4.0, 2.0, 8 / 6]  # its own epoch's, not the last one's


def test_the_usual_sweep_is_eight_candidates_from_two_trainings(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    asked = trainer(tmp_path, stand_in, server, base_models=[BASE], rank=8)
    candidates = asked.candidates(dataset)
    assert candidates[0] == {"base_model": BASE, "learning_rate": 5e-4, "epoch": 1, "n_epochs": 4, "rank": 8}
    assert len(candidates) == 8
    assert len({training_name(dataset, checked(one, Options)) for one in candidates}) == 2


def test_a_sweep_without_a_base_model_says_what_to_set(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    with pytest.raises(ConfigError, match="'base_models': folders, GGUF files or hub names"):
        trainer(tmp_path, stand_in, server).candidates(dataset)


def test_a_merged_model_is_written_and_left_to_its_own_server(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    done = trainer(tmp_path, stand_in, server).run(finetune(output="merged"), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert stand_in.starts == ["sft.py", "merge.py"]
    assert (tmp_path / "models" / (done.model or "").removesuffix("-e3") / "merged-3").is_dir()
    assert server.adapters == {}


def test_served_by_hand_nothing_is_asked_of_the_server(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    done = trainer(tmp_path, stand_in, server, serve="by_hand").run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert server.received == []


def test_a_server_elsewhere_is_told_its_own_path(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    shared = tmp_path / "mnt"
    shared.symlink_to(tmp_path / "models")
    trainer(tmp_path, stand_in, server, adapters_at=str(shared)).run(finetune(), dataset, ignore)
    assert all(folder.startswith(str(shared)) for folder in server.adapters.values())
    assert len(server.adapters) == 1


def test_a_finished_fine_tune_is_left_alone(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    over = finetune().but(state=FineTuneState.FAILED, error="killed: no memory.")
    assert trainer(tmp_path, stand_in, server).run(over, dataset, ignore) == over
    assert stand_in.starts == []


# Kills, crashes, refusals


def test_a_process_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    stand_in.plan(kill_at=[1, 3, 4, 5])
    done = trainer(tmp_path, stand_in, server).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    assert stand_in.starts == ["sft.py"] * 5
    steps = [line["step"] for line in loss_curve(tmp_path / "models" / done.remote["training"])]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_process_that_is_killed_again_and_again_is_given_up(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    stand_in.plan(kill_at_start=True)
    failed = trainer(tmp_path, stand_in, server).run(finetune(), dataset, ignore)
    assert failed.state is FineTuneState.FAILED
    assert failed.error == ("killed: the training was killed by signal 9 3 times at step 0; memory may be short.")
    assert stand_in.starts == ["sft.py"] * 3


PARENT = """
    import json, sys
    from pathlib import Path
    import msgspec
    from gateway.domain.dataset import Dataset
    from gateway.domain.finetune import FineTune
    from gateway.trainers import TrainerSettings
    from gateway.trainers.trl import Settings, TrlTrainer
    python, models, url, dataset, finetune = sys.argv[1:]
    settings = TrainerSettings(models=Path(models), upstream="laptop", base_url=url)
    trainer = TrlTrainer(settings, Settings(python=python), patience=0.0)
    trainer.run(msgspec.json.decode(finetune, type=FineTune), msgspec.json.decode(dataset, type=Dataset), print)
"""


def test_when_the_parent_is_killed_the_training_ends_too_and_the_next_one_goes_on(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    stand_in.plan(hang_at=3)
    words = [str(stand_in.python), str(tmp_path / "models"), server.base_url]
    given = [msgspec.json.encode(dataset).decode(), msgspec.json.encode(finetune()).decode()]
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), *words, *given], stdout=subprocess.DEVNULL
    )
    child = int(_content(stand_in.folder / "hangs"))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait_until(lambda: not _is_running(child))

    done = trainer(tmp_path, stand_in, server).run(finetune(), dataset, ignore)
    assert done.state is FineTuneState.SUCCEEDED
    steps = [line["step"] for line in loss_curve(tmp_path / "models" / done.remote["training"])]
    assert steps == [1, 2, 3, 4, 5, 6]


def _content(file: Path) -> str:
    _wait_until(lambda: file.is_file() and bool(file.read_text()))
    return file.read_text()


def _wait_until(what: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_two_trainings_never_share_the_machine(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    stand_in.plan(hang_at=1)
    asked = trainer(tmp_path, stand_in, server)
    first = threading.Thread(target=asked.run, args=(finetune(seed=1), dataset, ignore), daemon=True)
    first.start()
    hanging = int(_content(stand_in.folder / "hangs"))
    stages: list[str] = []
    second = threading.Thread(
        target=asked.run, args=(finetune(seed=2), dataset, lambda saved: stages.append(saved.stage)), daemon=True
    )
    second.start()
    _wait_until(lambda: bool(stages))
    time.sleep(0.2)
    assert stages == ["waiting"]
    os.kill(hanging, signal.SIGKILL)
    first.join(30)
    second.join(30)
    assert stages[-1] == "done"


@pytest.mark.parametrize(
    ("complaint", "error"),
    [
        (
            "ModuleNotFoundError: No module named 'trl'",
            "missing_packages: ModuleNotFoundError: No module named 'trl'; install the extra with: "
            "pip install 'unprompt[trl]'.",
        ),
        (
            "OSError: no-such/model is not a local folder",
            "training_failed: OSError: no-such/model is not a local folder (more in {}/errors.log).",
        ),
    ],
)
def test_what_the_recipe_complains_of_is_the_reason(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset, complaint: str, error: str
) -> None:
    stand_in.plan(complains=complaint)
    failed = trainer(tmp_path, stand_in, server).run(finetune(), dataset, ignore)
    assert failed.state is FineTuneState.FAILED
    assert failed.error == error.format(failed.remote["training"])
    assert stand_in.starts == ["sft.py"]


def test_a_dataset_without_its_files_is_named(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    (tmp_path / "ds-1" / "train.jsonl").unlink()
    failed = trainer(tmp_path, stand_in, server).run(finetune(), dataset, ignore)
    assert (failed.error or "").startswith("training_failed: train.jsonl is missing in")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": 3}, "unknown option 'epochs'; valid: base_model, n_epochs, epoch, learning_rate"),
        ({"epoch": 4}, "epoch 4 of a training of 3"),
        ({"rank": 0}, "Expected `int` >= 1 - at `$.rank`"),
        ({"base_model": ""}, "Expected `str` of length >= 1 - at `$.base_model`"),
    ],
)
def test_a_wrong_option_is_named(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset, options: dict[str, Any], error: str
) -> None:
    failed = trainer(tmp_path, stand_in, server).run(finetune(**options), dataset, ignore)
    assert failed.state is FineTuneState.FAILED
    assert error in (failed.error or "")
    assert stand_in.starts == []


# The server


def test_a_server_that_is_down_fails_the_candidate_and_keeps_the_training(
    tmp_path: Path, stand_in: StandIn, server: FakeVLLM, dataset: Dataset
) -> None:
    asked = trainer(tmp_path, stand_in, server)
    server.stop()
    failed = asked.run(finetune(), dataset, ignore)
    server.start()
    assert failed.state is FineTuneState.FAILED
    assert f"the server at {server.base_url} does not list its models: Connection error" in (failed.error or "")
    again = asked.run(finetune().but(id="ft-2"), dataset, ignore)
    assert again.state is FineTuneState.SUCCEEDED
    assert stand_in.starts == ["sft.py"]


def test_a_server_that_is_starting_is_waited_for(server: FakeVLLM, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    server.stop()
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            server.start()

    Adapters(server.base_url, "", sleep=nap).load("one", str(tmp_path), patience=60.0)
    assert naps == [0.2, 0.4, 0.8]
    assert list(server.adapters) == ["one"]


def test_what_is_loaded_is_not_loaded_again_and_what_is_gone_is_no_error(server: FakeVLLM, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    adapters = Adapters(server.base_url, "")
    adapters.load("one", str(tmp_path))
    adapters.load("one", str(tmp_path))
    assert adapters.names() == {BASE, "one"}
    adapters.unload("one")
    adapters.unload("one")
    assert adapters.names() == {BASE}
    assert [got.path for got in server.received].count("/v1/load_lora_adapter") == 1


def test_a_refusal_is_told_in_the_servers_words(server: FakeVLLM, tmp_path: Path) -> None:
    with pytest.raises(ServingFailed, match=r"does not load one from .*nothing: .*No adapter found for"):
        Adapters(server.base_url, "").load("one", str(tmp_path / "nothing"))
    server.inject(Fault(status=401, message="Invalid key sk-secret"))
    with pytest.raises(ServingFailed, match=r"Invalid key \[key\]"):
        Adapters(server.base_url, "sk-secret").names()


def test_a_server_that_takes_no_adapters_names_the_remedy(
    tmp_path: Path, stand_in: StandIn, dataset: Dataset
) -> None:
    with FakeVLLM(base=BASE, runtime_loading=False) as plain:
        failed = trainer(tmp_path, stand_in, plain).run(finetune(), dataset, ignore)
    assert failed.state is FineTuneState.FAILED
    assert "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in (failed.error or "")


# The config


def test_a_wrong_config_is_refused_when_the_trainer_is_built(tmp_path: Path, stand_in: StandIn) -> None:
    good = TrainerSettings(
        models=tmp_path, base_url="http://127.0.0.1:9/v1", options={"python": str(stand_in.python)}
    )
    assert isinstance(build("trl", good), TrlTrainer)
    with pytest.raises(ConfigError, match="needs a provider"):
        build("trl", msgspec.structs.replace(good, base_url=""))
    with pytest.raises(ConfigError, match="there is no interpreter '/nowhere/python'"):
        build("trl", msgspec.structs.replace(good, options={"python": "/nowhere/python"}))
    with pytest.raises(ConfigError, match="unknown option 'epochs'"):
        build("trl", msgspec.structs.replace(good, options={"epochs": 3}))


def test_without_the_packages_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"needs the package 'no_such_package': pip install 'unprompt\[trl\]'"):
        build("trl", TrainerSettings(models=tmp_path, base_url="http://127.0.0.1:9/v1"))


def test_the_gateway_runs_without_torch() -> None:
    code = "import sys, gateway.app, gateway.trainers.trl, gateway.pipeline.cycle; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


# Names


@given(st.text(max_size=40), st.integers(1, 50), st.integers(0, 9))
def test_the_folder_is_found_again_by_the_name_that_is_served(task: str, epochs: int, seed: int) -> None:
    data = Dataset(id="d", task=task, template="t@1", rows=[], directory="", digest="x", card={})
    options = Options(base_model=BASE, n_epochs=epochs, seed=seed)
    training = training_name(data, options)
    assert adapter_folder(Path("models"), model_name(training, options)) == Path(
        "models", training, f"epoch-{epochs}"
    )


@pytest.mark.parametrize("name", ["gpt-4.1", "", "../../etc-0123abcd-e1", "mail-0123abcd", BASE])
def test_other_names_have_no_folder(name: str) -> None:
    assert adapter_folder(Path("models"), name) is None


def test_figures_of_an_epoch_end_with_it_and_a_torn_line_is_none(tmp_path: Path) -> None:
    lines = [{"step": n, "epoch": n / 2, "train_loss": 1 / n} for n in (1, 2, 3)]
    (tmp_path / "loss.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "ep')
    assert figures(tmp_path, 1)["train_loss"] == 0.5
    assert figures(tmp_path, 2)["step"] == 3
    assert len(loss_curve(tmp_path)) == 3
