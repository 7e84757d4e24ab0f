"""The small server for a laptop, over HTTP, with a stand-in for llama.cpp behind it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway.trainers.trl.adapters import Adapters, ServingFailed

SERVE = Path(gateway.__file__).parent / "recipes" / "serve.py"
STAND_IN = Path(__file__).with_name("stand_in")


@dataclass
class Running:
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def post(self, path: str, body: bytes | dict[str, Any], kind: str = "application/json") -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, model: str, text: str = "hello") -> dict[str, Any]:
        """The adapters that the engine used for this model, and the engine's process id."""
        status, answer = self.post("/v1/chat/completions", chat(model, text))
        assert status == 200, answer
        whole = json.loads(answer)
        assert whole["model"] == model
        found: dict[str, Any] = json.loads(whole["choices"][0]["message"]["content"])
        return found

    def adapter(self, name: str) -> str:
        """An adapter's folder; its converted file is there already."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"")
        (self.folder / "work" / f"{name}.gguf").write_bytes(b"")
        return str(folder)


def chat(model: str, text: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "work").mkdir()
    (tmp_path / "base.gguf").write_bytes(b"")
    command = [sys.executable, str(SERVE), "--base", str(tmp_path / "base.gguf"), "--port", str(port),
               "--work", str(tmp_path / "work"), "--with-parent"]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(STAND_IN)}
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE)
    running = Running(f"http://127.0.0.1:{port}", tmp_path, process)
    wait_until_up(running)
    yield running
    process.kill()
    process.communicate()


def wait_until_up(running: Running) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(running.url + "/health", timeout=5).close()
            return
        except OSError:
            assert running.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_each_model_is_answered_with_its_own_adapter(server: Running) -> None:
    adapters = Adapters(f"{server.url}/v1", "")
    adapters.load("one", server.adapter("one"))
    adapters.load("two", server.adapter("two"))
    assert adapters.names() == {"base", "one", "two"}
    assert server.ask("two")["adapters"] == ["two"]
    assert server.ask("one")["adapters"] == ["one"]
    assert server.ask("base")["adapters"] == []


def test_a_stream_passes_under_the_name_that_was_asked_for(server: Running) -> None:
    status, answer = server.post("/v1/chat/completions", chat("base", "hello", stream=True))
    assert status == 200
    assert answer.startswith('data: {"model":"base","choices"')
    assert answer.endswith("data: [DONE]\n\n")


def test_while_an_adapter_is_loaded_requests_under_way_are_answered_by_the_old_engine(server: Running) -> None:
    before = server.ask("base")["engine"]
    go_on, found = server.folder / "go-on", list[dict[str, Any]]()
    waiting = threading.Thread(target=lambda: found.append(server.ask("base", f"wait {go_on}")))
    waiting.start()
    Adapters(f"{server.url}/v1", "").load("one", server.adapter("one"))
    after = server.ask("one")["engine"]
    go_on.touch()
    waiting.join(60)
    assert found[0]["engine"] == before
    assert after != before


def test_an_unloaded_adapter_is_unknown(server: Running) -> None:
    adapters = Adapters(f"{server.url}/v1", "")
    adapters.load("one", server.adapter("one"))
    adapters.unload("one")
    assert adapters.names() == {"base"}
    status, answer = server.post("/v1/chat/completions", chat("one", "hello"))
    assert (status, json.loads(answer)["error"]["message"]) == (404, "The model `one` does not exist.")


def test_an_engine_that_dies_costs_one_request(server: Running) -> None:
    adapters = Adapters(f"{server.url}/v1", "")
    adapters.load("one", server.adapter("one"))
    before = server.ask("one")["engine"]
    status, answer = server.post("/v1/chat/completions", chat("one", "die"))
    assert status == 502
    assert "llama.cpp gave no answer" in answer
    after = server.ask("one")
    assert after["adapters"] == ["one"]
    assert after["engine"] != before


def test_what_cannot_be_loaded_is_refused(server: Running) -> None:
    with pytest.raises(ServingFailed, match="No adapter found for /nowhere"):
        Adapters(f"{server.url}/v1", "").load("one", "/nowhere")
    status, _ = server.post("/v1/load_lora_adapter", {"lora_name": "../one", "lora_path": "/tmp"})
    assert status == 400


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [(b"{", "application/json", 400), (b"[]", "application/json", 400), (b"{}", "text/plain", 415)],
)
def test_a_body_that_is_none_is_refused(server: Running, body: bytes, kind: str, status: int) -> None:
    assert server.post("/v1/chat/completions", body, kind)[0] == status


def test_it_ends_when_its_parent_does(server: Running) -> None:
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(30) == 0
    server.process.stdin = None
