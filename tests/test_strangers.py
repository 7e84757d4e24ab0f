"""What somebody reads who has never seen the command line, and makes mistakes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stories import keep, traffic

from gateway.cli import main
from gateway.commands import offline
from gateway.demo import story
from gateway.demo.stage import Options, Say, stay
from gateway.stores.sqlite import SqliteStore


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a store with 60 letters; nothing is trained yet."""
    store = SqliteStore(tmp_path / "data" / "unprompt.db")
    keep(store, traffic(60))
    store.close()
    file = tmp_path / "gateway.yaml"
    file.write_text(f'store: {{url: "sqlite:///{tmp_path}/data/unprompt.db"}}\n')
    return file


def types(config: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--config", str(config)])


def test_the_commands_are_listed_in_the_order_of_use() -> None:
    said = CliRunner().invoke(main, ["--help"]).output
    listed = said.partition("Commands:")[2]
    named = [line.split()[0] for line in listed.splitlines() if line.strip()]
    assert named[:4] == ["serve", "check", "demo", "tasks"]
    assert named.index("dataset") < named.index("finetune") < named.index("evaluate") < named.index("promote")
    assert "worker" not in named
    assert "..." not in listed  # no sentence is cut


@pytest.mark.parametrize(
    "words", [["dataset"], ["finetune"], ["evaluate"], ["promote"], ["rollback"], ["label"]], ids=lambda one: one[0]
)
def test_a_task_that_there_is_not(config: Path, words: list[str]) -> None:
    said = types(config, *words, "mial")
    assert (said.exit_code, said.output) == (1, "Error: no task 'mial'; known tasks: mail\n")


def test_what_was_not_trained_cannot_be_evaluated_and_nothing_is_noted(config: Path) -> None:
    assert types(config, "dataset", "mail").exit_code == 0
    said = types(config, "evaluate", "mail")
    assert said.exit_code == 1
    assert "no candidate of task mail is trained yet; run 'unprompt finetune mail' first" in said.output
    assert "no evaluations yet" in types(config, "promote", "mail").output


def test_an_export_of_nothing_says_so(config: Path, tmp_path: Path) -> None:
    said = types(config, "export", "--task", "mial")
    assert (said.exit_code, said.stdout, said.stderr) == (0, "", "0 exchanges written\n")
    out = tmp_path / "mail.jsonl"
    assert types(config, "export", "--out", str(out)).stderr == f"60 exchanges written to {out}\n"


def test_a_sweep_that_is_interrupted_says_how_it_goes_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(offline, "_train", interrupted)
    said = types(config, "finetune", "mail")
    assert said.exit_code == 130
    assert said.output.endswith("stopped; 'unprompt finetune mail' goes on where it was, --cancel ends it\n")


def test_check_finds_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where a folder is wanted")
    config = tmp_path / "gateway.yaml"
    config.write_text(f'store: {{url: "sqlite:///{tmp_path}/taken/data/unprompt.db"}}\n')
    said = types(config, "check")
    assert said.exit_code == 1
    assert f"store.url: {tmp_path}/taken cannot be written to" in said.output


def test_check_for_programs(config: Path) -> None:
    assert json.loads(types(config, "check", "--json").stdout) == []
    config.write_text("servr: {port: 1}\n")
    said = types(config, "check", "--json")
    (problem,) = json.loads(said.stdout)
    assert (said.exit_code, problem["line"], problem["key"]) == (1, 1, "servr")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken(config: Path, workers: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = types(config, "serve", "--port", str(port), "--workers", workers, "--no-jobs")
    wanted = f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port"
    assert (said.exit_code, said.output.strip().lower()) == (1, f"Error: {wanted}".lower())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("words", [["export"], ["tasks"], ["tasks", "show", "mail"]], ids=" ".join)
def test_a_disk_that_is_full_is_said_in_one_line(config: Path, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        said = subprocess.run(
            [sys.executable, "-m", "gateway", *words, "--config", str(config)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (said.returncode, said.stderr) == (
        1,
        "Error: the output could not be written: No space left on device\n",
    )


def test_whoever_stops_it_while_it_loads_sees_no_traceback(tmp_path: Path) -> None:
    """A module that is loaded on the way gets the signal."""
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    said = subprocess.run(
        [sys.executable, "-m", "gateway", "tasks"], capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (130, b"")


@pytest.mark.parametrize(("shown", "code"), [(True, 0), (False, 1)])
def test_ctrl_c_at_the_end_of_the_demo_is_its_end(
    monkeypatch: pytest.MonkeyPatch, *, shown: bool, code: int
) -> None:
    async def tell(options: Options, say: Say, show: Any) -> None:
        if shown:
            show({"home": "here"})
        raise KeyboardInterrupt

    monkeypatch.setattr(story, "tell", tell)
    said = CliRunner().invoke(main, ["demo", "--json"])
    assert said.exit_code == code
    assert ("stopped" in said.stderr, "Aborted!" in said.stderr) == (shown, not shown)


def test_what_is_left_up_can_be_looked_at() -> None:
    async def looked_at(told: list[str]) -> None:
        await asyncio.wait_for(stay(Options(keep=True), "http://127.0.0.1:1", told.append), 0.05)

    told: list[str] = []
    with pytest.raises(TimeoutError):  # it stays
        asyncio.run(looked_at(told))
    assert "http://127.0.0.1:1/unprompt/" in told[0]
