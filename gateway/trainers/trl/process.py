"""The training itself: a process of its own, followed line by line and started again when it is killed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gateway
from gateway.domain.dataset import Dataset, Split
from gateway.errors import UnpromptError
from gateway.files import write_whole

RECIPES = Path(gateway.__file__).parent / "recipes"
DEATHS = 3
"""A training that is killed so often without a step in between is given up."""
_SAID = 4000

Line = dict[str, Any]
"""What the recipe says: its `event` and the facts of it."""


class TrainingFailed(UnpromptError):
    """The training cannot go on; the text is `class: sentence.`. Classes: missing_packages, training_failed,
    killed."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {' '.join(reason.split()).rstrip('.')}."[:500])


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Wait until no other training, of whatever process, uses this machine."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def train(python: str, job: dict[str, Any], told: Callable[[Line], None]) -> None:
    """Run the recipe to its end in `job["out"]`; `told` gets each line that it says. A process that is killed is
    started again and goes on from its newest checkpoint.

    Raises:
        TrainingFailed: the recipe refuses, breaks, or is killed again and again.
    """
    place = Path(job["out"])
    place.mkdir(parents=True, exist_ok=True)
    write_whole(place / "job.json", json.dumps(job, indent=1).encode())
    deaths, reached = 0, 0
    while not is_done(place):
        code = run([python, str(RECIPES / "sft.py"), str(place / "job.json")], place, told)
        if code > 0 or (code == 0 and not is_done(place)):
            raise failure(place)
        now = newest_step(place)
        deaths, reached = (deaths + 1, reached) if now <= reached else (0, now)
        if deaths >= DEATHS:
            reason = f"the training was killed by signal {-code} {deaths} times at step {now}; memory may be short"
            raise TrainingFailed("killed", reason)


def is_done(place: Path) -> bool:
    """Whether the training of this folder has come to its end."""
    return (place / "done.json").is_file()


def run(command: list[str], place: Path, told: Callable[[Line], None]) -> int:
    """The exit code of a recipe, negative for a signal. What it complains of goes to `errors.log`."""
    with (place / "errors.log").open("wb") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints,
            env=os.environ | {"TQDM_DISABLE": "1"},  # bars are no complaints
        )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if (said := read_line(line)) is not None:
                told(said)
        return process.wait()
    finally:
        process.kill()  # where `told` raised: nobody would follow it any more
        process.communicate()


def read_line(line: bytes) -> Line | None:
    """What the recipe said; None for what a library printed, or a line that a kill cut off."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "event" in said else None


def newest_step(place: Path) -> int:
    """The last step that was logged before now, 0 where there is none."""
    return max((int(line["step"]) for line in loss_curve(place)), default=0)


def loss_curve(place: Path) -> list[Line]:
    """The lines of a training's `loss.jsonl`: `step`, `epoch`, `seconds` and `train_loss` or `valid_loss`, ..."""
    log, found = place / "loss.jsonl", []
    for line in log.read_bytes().splitlines() if log.is_file() else []:
        with suppress(ValueError):  # the last one may be cut by a kill
            found.append(json.loads(line))
    return found


def write_card(place: Path, dataset: Dataset) -> None:
    """Write `card.json` into a training's folder: its dataset, what it counted, and the rows that it left out, each
    by its exchange, its part and the reason."""
    parts = {"train.jsonl": _names(dataset, "train"), "validation.jsonl": _names(dataset, "validation")}
    left_out = [
        {"exchange_id": parts[row["file"]][row["line"] - 1], "file": row["file"], "reason": row["reason"]}
        for row in map(json.loads, _lines_of(place / "left_out.jsonl"))
    ]
    counted = json.loads((place / "done.json").read_bytes())
    about = {"dataset": dataset.id, "dataset_digest": dataset.digest, **counted, "left_out": left_out}
    write_whole(place / "card.json", json.dumps(about, indent=1).encode())


def _names(dataset: Dataset, part: Split) -> list[str]:
    """The exchanges of a part's lines: its rows, and behind them its calls of tools."""
    return [row.exchange_id for row in (*dataset.rows, *dataset.calls) if row.split == part]


def _lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.is_file() else []


def figures(place: Path, epoch: int) -> dict[str, float]:
    """The newest figures of a training up to the end of an epoch."""
    known: dict[str, float] = {}
    for line in loss_curve(place):
        if line["epoch"] <= epoch + 1e-6:
            known |= line
    return known


def failure(place: Path) -> TrainingFailed:
    """Why the recipe ended, from the last line that it complained with."""
    text = (place / "errors.log").read_bytes()[-_SAID:].decode("utf-8", "replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
    if last.startswith("ModuleNotFoundError"):
        return TrainingFailed("missing_packages", f"{last}; install the extra with: pip install 'unprompt[trl]'")
    return TrainingFailed("training_failed", f"{last} (more in {place.name}/errors.log)")
