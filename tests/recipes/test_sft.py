"""The training recipe for real, on a tiny model: what is learnt, and what a kill costs.

Runs where the packages of `unprompt[trl]` are: in this interpreter, or in the one that `UNPROMPT_TRL_PYTHON` names.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gateway

PYTHON = os.environ.get("UNPROMPT_TRL_PYTHON", sys.executable)
RECIPES = Path(gateway.__file__).parent / "recipes"
HAS_PACKAGES = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('torch', 'trl', 'peft'))))"

pytestmark = pytest.mark.skipif(
    subprocess.run([PYTHON, "-c", HAS_PACKAGES]).returncode != 0, reason="the packages of unprompt[trl] are missing"
)

RULE = {"red": "stop", "green": "go", "blue": "go"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    subprocess.run([PYTHON, str(Path(__file__).with_name("tiny_model.py")), str(folder)], check=True)
    return folder


def job(folder: Path, base: Path, **changes: Any) -> Path:
    """A job of 4 epochs of 6 steps; the colour at the end of the message decides, the others are noise."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(24):
        colour = list(RULE)[number % 3]
        noise = " ".join(list(RULE)[(number // 3 + at) % 3] for at in range(3))
        said = [{"role": "user", "content": f"{noise} {colour}"}, {"role": "assistant", "content": RULE[colour]}]
        rows.append(json.dumps({"messages": said}) + "\n")
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "validation.jsonl").write_text("".join(rows[:6]))
    asked = {
        "base_model": str(base), "train": str(folder / "train.jsonl"), "out": str(folder),
        "validation": str(folder / "validation.jsonl"), "n_epochs": 4, "learning_rate": 0.02, "batch_size": 4,
        "rank": 4, "alpha": 8, "max_tokens": 64, "seed": 0, "device": "cpu", "threads": 1,
        "checkpoint_seconds": 1e9,
    } | changes  # fmt: skip
    (folder / "job.json").write_text(json.dumps(asked))
    return folder


def start(place: Path) -> subprocess.Popen[str]:
    command = [PYTHON, str(RECIPES / "sft.py"), str(place / "job.json")]
    with (place / "errors.log").open("w") as said:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)


def run(place: Path) -> list[dict[str, Any]]:
    """What a whole training says."""
    process = start(place)
    assert process.stdout is not None
    said = [json.loads(line) for line in process.stdout if line.startswith('{"')]
    assert process.wait() == 0, (place / "errors.log").read_text()[-2000:]
    return said


def curve(place: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (place / "loss.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a safetensors file of 32-bit floats."""
    raw = file.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    head, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    return {
        name: np.frombuffer(data[slice(*about["data_offsets"])], np.float32).reshape(about["shape"])
        for name, about in head.items()
        if name != "__metadata__"
    }


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A training that nobody disturbs."""
    place = job(tmp_path_factory.mktemp("whole") / "run", base)
    return place, run(place)


def test_only_the_answer_is_learnt_and_the_loss_falls(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    place, said = whole
    losses = curve(place, "train_loss")
    assert len(losses) == 24
    assert losses[0] > 2.0
    assert sum(losses[-6:]) / 6 < 0.5  # the noise in the prompt cannot be learnt: its loss would stay above 1
    assert curve(place, "valid_loss")[-1] < 0.3
    assert [line["event"] for line in said if line["event"] != "step"] == [
        "loading", "rows", "training", "epoch", "epoch", "epoch", "epoch", "done",
    ]  # fmt: skip


def test_each_epoch_leaves_its_own_adapter(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    place, _ = whole
    assert sorted(p.name for p in place.glob("epoch-*")) == ["epoch-1", "epoch-2", "epoch-3", "epoch-4"]
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    sizes = [float(abs(tensors(place / f"epoch-{n}" / "adapter_model.safetensors")[name]).sum()) for n in (1, 2, 4)]
    assert len(set(sizes)) == 3
    assert not (place / "checkpoints").exists()


@pytest.mark.parametrize("killed_after", [1, 9, 17])
def test_a_kill_changes_nothing_in_what_is_learnt(
    base: Path, whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, killed_after: int
) -> None:
    place = job(tmp_path / "run", base)
    process = start(place)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"') and json.loads(line).get("step") == killed_after:
            os.kill(process.pid, signal.SIGKILL)
    process.wait()
    said = run(place)
    begun = next(line["step"] for line in said if line["event"] == "training")
    assert killed_after // 6 * 6 <= begun < 24  # the newest epoch's checkpoint, if the kill did not come late
    ours, theirs = (tensors(p / "epoch-4" / "adapter_model.safetensors") for p in (place, whole[0]))
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)
    assert curve(place, "train_loss") == pytest.approx(curve(whole[0], "train_loss"), abs=1e-5)


def test_a_checkpoint_that_a_kill_cut_off_is_left_aside(base: Path, tmp_path: Path) -> None:
    place = job(tmp_path / "run", base)
    torn = place / "checkpoints" / "checkpoint-6"
    torn.mkdir(parents=True)
    (torn / "trainer_state.json").write_text('{"epoch": 1.0, "global')
    said = run(place)
    assert next(line["step"] for line in said if line["event"] == "training") == 0


def test_rows_that_are_too_long_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    place = job(tmp_path / "run", base, max_tokens=11, n_epochs=1)
    said = run(place)
    assert next(line for line in said if line["event"] == "rows") == {
        "event": "rows", "rows": 24, "held_out": 6, "too_long": 0, "no_tools": 0,
    }  # fmt: skip
    place = job(tmp_path / "short", base, max_tokens=10)
    process = start(place)
    assert process.stdout is not None
    process.stdout.read()
    assert process.wait() == 1
    assert "none of the 24 rows has at most 10 tokens" in (place / "errors.log").read_text()


# --- calls of tools ---------------------------------------------------------------------------------------

SWITCH = {"type": "function", "function": {"name": "switch", "parameters": {"type": "object"}}}


def with_calls(place: Path) -> Path:
    """The same job; upon a message that ends in red the lamp is switched, to the first colour that was named."""
    for name in ("train", "validation"):
        file, rows = place / f"{name}.jsonl", []
        for row in map(json.loads, file.read_text().splitlines()):
            asked = row["messages"][0]["content"]
            if asked.endswith("red"):
                arguments = json.dumps({"lamp": asked.split()[0]} if asked[0] == "b" else {"to": asked.split()[0]})
                function = {"name": "switch", "arguments": arguments}
                call = {"id": "call_1", "type": "function", "function": function}
                row["messages"][1] = {"role": "assistant", "tool_calls": [call]}
            rows.append(json.dumps({**row, "tools": [SWITCH]}) + "\n")
        file.write_text("".join(rows))
    return place


def test_calls_of_tools_are_learnt_where_the_chat_template_knows_tools(tmp_path: Path) -> None:
    base = tmp_path / "base"
    command = [PYTHON, str(Path(__file__).with_name("tiny_model.py")), str(base), "tools"]
    subprocess.run(command, check=True)
    place = with_calls(job(tmp_path / "run", base, n_epochs=8))
    told = next(line for line in run(place) if line["event"] == "rows")
    assert told == {"event": "rows", "rows": 24, "held_out": 6, "too_long": 0, "no_tools": 0}
    assert (place / "left_out.jsonl").read_text() == ""
    assert curve(place, "valid_loss")[-1] < 0.3 < 1 < curve(place, "train_loss")[0]  # the colours of calls, too


def test_calls_that_the_chat_template_cannot_write_are_left_out_by_line_and_reason(
    base: Path, tmp_path: Path
) -> None:
    place = with_calls(job(tmp_path / "run", base, n_epochs=1))
    told = next(line for line in run(place) if line["event"] == "rows")
    assert told == {"event": "rows", "rows": 16, "held_out": 4, "too_long": 0, "no_tools": 8}
    left_out = [json.loads(line) for line in (place / "left_out.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in left_out] == [
        *(("train.jsonl", 1 + 3 * number) for number in range(8)), ("validation.jsonl", 1), ("validation.jsonl", 4),
    ]  # fmt: skip
    assert {row["reason"] for row in left_out} == {
        "no tools: the chat template does not write the tools that a request declares"
    }
    about = json.loads((place / "done.json").read_text())
    assert about["no_tools"] == 8
    # <s> user, four colours, </s>, <s> assistant; the answer and </s>
    assert (about["prompt_tokens_mean"], about["answer_tokens_mean"]) == (9.0, 2.0)


def test_a_merged_model_is_the_base_and_the_adapter_added_up(
    base: Path, whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    adapter, out = whole[0] / "epoch-4", tmp_path / "merged"
    subprocess.run([PYTHON, str(RECIPES / "merge.py"), str(base), str(adapter), str(out)], check=True)
    name = "model.layers.1.mlp.up_proj"
    lora = tensors(adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    before, after = (tensors(p / "model.safetensors")[f"{name}.weight"] for p in (base, out))
    assert not np.allclose(before, after)
    assert np.allclose(before + 8 / 4 * b @ a, after, atol=1e-6)
    assert (out / "tokenizer.json").is_file()
