"""The real client library through the real command, with the worker beside it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.testing import FakeOpenAI, Fault

KEY = "sk-a-canary-for-the-whole-way"


@pytest.fixture
def api() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(api_key=KEY) as fake:
        yield fake


@contextlib.contextmanager
def serving(home: Path, api: FakeOpenAI) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    (home / "gateway.yaml").write_text(
        f"providers: {{openai: {{base_url: '{api.base_url}'}}}}\nstore: {{url: 'sqlite:///{home}/data/unprompt.db'}}\n"
    )
    command = [
        sys.executable,
        "-m",
        "gateway",
        "serve",
        "--port",
        "0",
        "--no-jobs",
        "--config",
        str(home / "gateway.yaml"),
    ]
    log = (home / "log.txt").open("w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        found = re.search(r"relays (http://\S+)/v1", process.stdout.readline())
        assert found is not None
        yield found[1], process
    finally:
        process.kill()
        process.wait()
        log.close()


def rows(home: Path, at_least: int) -> list[tuple[object, ...]]:
    """What the worker has moved into the store; waits for so many rows that are ended."""
    columns = "endpoint, status, streamed, complete, input_tokens, output_tokens, usage_source"
    found: list[tuple[object, ...]] = []
    until = time.monotonic() + 15
    while len(found) < at_least and time.monotonic() < until:
        time.sleep(0.05)
        database = sqlite3.connect(home / "data" / "unprompt.db")
        with contextlib.closing(database), contextlib.suppress(sqlite3.OperationalError):  # not there yet
            found = database.execute(f"SELECT {columns} FROM exchanges WHERE complete ORDER BY id").fetchall()
    return found


def test_the_openai_library_sees_no_difference_and_everything_is_recorded(tmp_path: Path, api: FakeOpenAI) -> None:
    with serving(tmp_path, api) as (url, process):
        direct = openai.OpenAI(base_url=api.base_url, api_key=KEY, max_retries=0)
        through = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        messages: Any = [{"role": "user", "content": "How are you today?"}]

        def chat(client: openai.OpenAI) -> str | None:
            answer = client.chat.completions.create(model="gpt-4o", messages=messages)
            return answer.choices[0].message.content

        def stream(client: openai.OpenAI) -> list[str | None]:
            chunks = client.chat.completions.create(
                model="gpt-4o",
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
            )
            return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]

        def upload(client: openai.OpenAI) -> int | None:
            return client.files.create(file=("a.jsonl", b'{"a":1}\n' * 9), purpose="fine-tune").bytes

        for ask in (chat, stream, upload):
            assert ask(through) == ask(direct)
        for fault in (Fault(status=429, retry_after=1, times=2), Fault(status=500, times=2)):
            api.inject(fault)
            errors = []
            for client in (direct, through):
                with pytest.raises(openai.APIStatusError) as caught:
                    chat(client)
                errors.append((type(caught.value), caught.value.status_code, caught.value.body))
            assert errors[0] == errors[1]
        with pytest.raises(openai.AuthenticationError):
            chat(openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong-but-secret-too", max_retries=0))
        found = rows(tmp_path, at_least=6)
        assert [row[:4] for row in found] == [
            ("/v1/chat/completions", 200, 0, 1), ("/v1/chat/completions", 200, 1, 1), ("/v1/files", 200, 0, 1),
            ("/v1/chat/completions", 429, 0, 1), ("/v1/chat/completions", 500, 0, 1),
            ("/v1/chat/completions", 401, 0, 1),
        ]  # fmt: skip
        assert found[0][6] == found[1][6] == "upstream"
        assert found[0][4:6] == found[1][4:6]
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert len(rows(tmp_path, at_least=6)) == 6
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"sk-a-canary" not in written
    assert b"sk-wrong" not in written


def test_metrics_health_and_readiness_are_served_beside_the_traffic(tmp_path: Path, api: FakeOpenAI) -> None:
    def get(url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with serving(tmp_path, api) as (url, _process):
        assert get(f"{url}/healthz") == (200, '{"status": "alive"}')
        assert get(f"{url}/readyz") == (200, '{"status": "ready", "reasons": []}')
        openai.OpenAI(base_url=f"{url}/v1", api_key=KEY).models.list()
        status, text = get(f"{url}/metrics")
        assert status == 200
        counted = [line for line in text.splitlines() if line.startswith("unprompt_requests_total{")]
        assert len(counted) == 1
        assert 'outcome="ok"' in counted[0]
        assert counted[0].endswith(" 1.0")
        assert "unprompt_in_flight 0.0" in text
        assert 'unprompt_log_records_total{result="written"} 2.0' in text
        assert get(f"{url}/unprompt/nothing")[0] == 404
