"""Kills a sweep of nine candidates (`kill -9`) at random moments of the whole run, and compares how it ends.

    python benchmarks/sweep.py                10 kills, two to three minutes
    python benchmarks/sweep.py --kills 3      what the tests do

Five candidates are embedded classifiers, trained for real; four train at a fake fine-tuning service on loopback
that counts what is asked of it. The sweep is the command `unprompt finetune`, in a process of its own. It runs once
undisturbed, and once killed so many times; then both tables must be the same (times apart), the service must have
been asked for four jobs and two files, and no model that was finished may have been written again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.demo.messages import messages
from gateway.domain.exchange import Exchange
from gateway.pipeline.discover import Discovery
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

PROMPT = (
    "You sort the mail of a shop. Answer with the name of the intent, in lower case, and with nothing else at all."
)
STATES = ("validating_files", "queued", *["running"] * 4, "succeeded")
OVER = frozenset({"succeeded", "failed", "cancelled"})
FIGURES = ("cv_accuracy", "cv_confidence", "rows", "labels", "trained_tokens", "valid_loss", "cost_usd")


@dataclass
class Report:
    """What became of the sweep that was killed, beside the one that was not."""

    kills: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    """How many candidates were in which state at the kills, all kills together."""
    after: int = 0
    """Kills that came when at least one candidate was over."""
    undisturbed: list[tuple[str, ...]] = field(default_factory=list)
    killed: list[tuple[str, ...]] = field(default_factory=list)
    jobs_created: int = 0
    files_uploaded: int = 0
    finished_and_written_again: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def is_good(self) -> bool:
        remote = sum(row[0].startswith("cloud") for row in self.undisturbed)
        once = self.jobs_created == remote and self.files_uploaded == 2 and not self.finished_and_written_again
        return self.killed == self.undisturbed and once

    def text(self) -> str:
        """For people."""
        lines = ["| candidate | state | model | figures |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.killed]
        was = ", ".join(f"{count} {state}" for state, count in sorted(self.hits.items()))
        return "\n".join([
            *lines, "",
            f"kills {self.kills}, {self.after} of them after a candidate was over; candidates at the kills: {was}",
            f"tables the same: {self.killed == self.undisturbed}",
            f"jobs created at the service {self.jobs_created}, files uploaded {self.files_uploaded}, "
            f"finished models written again {self.finished_and_written_again}",
            f"seconds undisturbed {self.seconds[0]:.1f}, killed {self.seconds[1]:.1f}",
        ])  # fmt: skip


class Sweep:
    """One store with recorded traffic, one service, and the command that trains."""

    def __init__(self, folder: Path, rows: int, polls_per_state: int) -> None:
        self.folder, self.store_file = folder, folder / "data" / "unprompt.db"
        # Jobs go on while somebody looks at them, so that the sweep lasts until it has been killed often enough.
        self.api = FakeOpenAI(states=STATES, polls_per_state=polls_per_state)
        self.api.start()
        self.task = record(self.store_file, rows)
        self.config = folder / "gateway.yaml"
        self.config.write_text(yaml.safe_dump(self.settings()))

    def settings(self) -> dict[str, Any]:
        """Five embedded candidates and four elsewhere."""
        grid = {"base_model": "gpt-4.1-nano-2025-04-14", "n_epochs": [2, 4], "learning_rate_multiplier": [0.5, 2.0]}
        embedded = [{"features": ["word", "char", "word+char"]}, {"features": "word+char", "c": [3.0, 30.0]}]
        return {
            "store": {"url": f"sqlite:///{self.store_file}"},
            "providers": {"openai": {"base_url": self.api.base_url}},
            "tasks": {"default": {"trainers": ["classifier", "cloud"], "budget_usd": 1000}},
            "trainers": {
                "classifier": {"kind": "classifier", "sweep": embedded},
                "cloud": {"kind": "openai", "provider": "openai", "sweep": grid, "prices": {"*": 5.0},
                          "poll_seconds": 0.05},
            },
        }  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        """The command, in a process of its own."""
        words = [sys.executable, "-m", "gateway", "finetune", self.task, "--json", "--config", str(self.config)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def finish(self) -> list[tuple[str, ...]]:
        """Let it run to its end; gives its table."""
        process = self.start()
        out, _ = process.communicate(timeout=600)
        if process.returncode != 0:
            raise RuntimeError(f"the sweep ended with {process.returncode}")
        return [row_of(one) for one in json.loads(out)]

    def states(self) -> dict[str, str]:
        """The state of each candidate by its id, as the store has it."""
        store = SqliteStore(self.store_file)
        found = {one.id: one.state.value for one in store.finetunes()}
        store.close()
        return found

    def written(self) -> dict[str, int]:
        """When the model of each finished embedded candidate was written, in nanoseconds."""
        store = SqliteStore(self.store_file)
        done = [one for one in store.finetunes("upstream = 'local' AND state = 'succeeded'") if one.model]
        store.close()
        return {
            one.id: (self.folder / "data" / "models" / str(one.model) / "model.bin").stat().st_mtime_ns
            for one in done
        }


def row_of(one: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table, without times and without the numbers that the service gives its jobs."""
    name = " ".join([one["trainer"], *map(str, one["options"].values())])
    figures = " ".join(f"{key}={one['metrics'][key]:.4g}" for key in FIGURES if key in one["metrics"])
    return name, one["state"], re.sub(r":\d{6}(?=:|$)", "", one["model"] or "-"), figures


def record(file: Path, rows: int) -> str:
    """So many labelled messages as recorded exchanges; gives the name of the task that is found in them."""
    file.parent.mkdir(parents=True)
    store = SqliteStore(file)
    exchanges = []
    for number, message in enumerate(messages(count=rows)):
        told = [{"role": "system", "content": PROMPT}, {"role": "user", "content": message.text}]
        said = {"role": "assistant", "content": message.label}
        exchanges.append(Exchange(
            id=f"e{number:06}", started_at=1000.0 + number, provider="openai", endpoint="/v1/chat/completions",
            model_requested="gpt-6", model_served="gpt-6", target="openai/gpt-6", status=200, complete=True,
            finish_reason="stop", request=json.dumps({"model": "gpt-6", "messages": told}).encode(),
            response=json.dumps({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}).encode(),
        ))  # fmt: skip
    with store.transaction():
        store.absorb("segment", 0, exchanges)
    Discovery(store).step()
    task = max(store.tasks(), key=lambda row: int(row["exchanges"]))["name"]
    store.close()
    return str(task)


@dataclass(frozen=True)
class Course:
    """How a run went that was let alone: its seconds of work, and after how many each candidate was over."""

    seconds: float
    ends: tuple[float, ...]

    def over_at(self, seconds: float) -> int:
        """How many candidates were over after so many seconds of work."""
        return sum(end <= seconds for end in self.ends)

    def left(self, over: int) -> float:
        """The seconds of work that were still to do when so many candidates were over."""
        return self.seconds - (self.ends[over - 1] if over else 0.0)


def watched(sweep: Sweep) -> Course:
    """Let the command run to its end, and look on; it is at work from its first request to the service on."""
    process, begun, ends = sweep.start(), 0.0, list[float]()
    while process.poll() is None:
        begun = begun or (time.monotonic() if sweep.api.received else 0.0)
        over = sum(state in OVER for state in sweep.states().values())
        ends += [time.monotonic() - begun] * (over - len(ends))
        time.sleep(0.02)
    process.communicate()
    return Course(time.monotonic() - begun, tuple(ends))


def killed(sweep: Sweep, kills: int, dice: random.Random, course: Course, longest: float, report: Report) -> None:
    """Start the command and kill it, so many times, then let it finish.

    The kills are spread over the whole run: each waits until as many candidates are over as were at a random
    moment of its share of the undisturbed run, and then some seconds more, at most half of those that are left, so
    that there is still something to kill. The last one comes when a candidate is over, whatever the dice say.
    """
    finished: dict[str, int] = {}
    while report.kills < kills:
        wanted = course.over_at((report.kills + dice.random()) / kills * course.seconds)
        is_last = report.kills == kills - 1
        wanted = min(max(wanted, int(is_last)), len(course.ends) - 1)
        process = sweep.start()
        over = until(sweep, process, wanted)
        time.sleep(dice.uniform(0, min(longest, course.left(wanted) / 2)))
        over = over or process.poll() is not None
        os.kill(process.pid, signal.SIGKILL) if not over else None
        process.communicate()
        report.kills += 1
        states = list(sweep.states().values())
        report.after += not over and any(state in OVER for state in states)
        for state in states if not over else ["over already"]:
            report.hits[state] = report.hits.get(state, 0) + 1
        for name, when in sweep.written().items():
            finished.setdefault(name, when)
    report.killed = sweep.finish()
    now = sweep.written()
    report.finished_and_written_again = sum(now.get(name) != when for name, when in finished.items())


def until(sweep: Sweep, process: subprocess.Popen[bytes], wanted: int) -> bool:
    """Wait until the command is at work and so many candidates are over; whether it has ended before."""
    before, begun = len(sweep.api.received), time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 120:
        states = list(sweep.states().values())
        # With all jobs over at the service, nothing is asked there any more.
        is_working = len(sweep.api.received) > before or sum(state in OVER for state in states) >= 4
        if is_working and sum(state in OVER for state in states) >= wanted:
            return False
        time.sleep(0.02)
    return process.poll() is not None


def run(
    folder: Path, *, kills: int, seed: int, rows: int, polls_per_state: int, longest: float | None = None
) -> Report:
    """The same sweep twice: undisturbed, and killed. `longest` seconds at most are between a kill and what it
    waited for, by default the run's time over the kills."""
    report = Report()
    calm = Sweep(folder / "undisturbed", rows, polls_per_state)
    course = watched(calm)
    report.undisturbed = calm.finish()  # it is over: this only tells the table
    calm.api.stop()
    sweep = Sweep(folder / "killed", rows, polls_per_state)
    started = time.monotonic()
    killed(sweep, kills, random.Random(seed), course, longest or course.seconds / max(kills, 1), report)
    report.seconds = course.seconds, time.monotonic() - started
    asked = [(one.method, one.path) for one in sweep.api.received]
    report.jobs_created = asked.count(("POST", "/v1/fine_tuning/jobs"))
    report.files_uploaded = asked.count(("POST", "/v1/files"))
    sweep.api.stop()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1500)
    waits = "seconds before a kill, at most; default: the undisturbed run's time over the kills"
    parser.add_argument("--longest", type=float, help=waits)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), kills=chosen.kills, seed=chosen.seed, rows=chosen.rows, polls_per_state=10,
                     longest=chosen.longest)  # fmt: skip
    print(report.text())  # noqa: T201
    raise SystemExit(not report.is_good)


if __name__ == "__main__":
    main()
