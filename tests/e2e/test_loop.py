"""The whole loop, as a user runs it: `unprompt serve` with a real client in front of it and an API behind it,
until requests go out without their prompt; its worker is killed on the way; and back again by command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from gateway.demo.messages import messages
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

PROMPT = (
    "You read the mail of a furniture shop. Answer with one word. Say QUESTION when the customer asks something, "
    "CRY when there is an exclamation mark and no question, and else NOTE.\nExample: Where is it? -> QUESTION"
)
CHANGED = PROMPT.replace("else NOTE", "else REMARK")
TEXTS = [row.text for row in messages(seed=3)]
TRAFFIC = 440


def rule(body: dict[str, Any]) -> str:
    """What the prompted model answers."""
    system, text = body["messages"][0]["content"], body["messages"][-1]["content"]
    if "?" in text:
        return "QUESTION"
    return "CRY" if "!" in text else "REMARK" if "REMARK" in system else "NOTE"


class Gateway:
    """`unprompt serve` in a process of its own, and what it has kept."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.config = folder / "config" / "gateway.yaml"
        self.routes = self.config.with_name("routes.yaml")
        self.config.parent.mkdir(parents=True)
        self.config.write_text(yaml.safe_dump({
            "providers": {"openai": {"base_url": upstream}},
            "store": {"url": f"sqlite:///{folder / 'data' / 'unprompt.db'}"},
            "jobs": {"poll_seconds": 0.2},
            "tasks": {"default": {"min_rows": TRAFFIC, "margin": 0.1, "share": 100, "audit": 0}},
            "trainers": {"classifier": {"kind": "classifier", "sweep": [{"features": "char"}]}},
        }))  # fmt: skip
        self.routes.write_text("# Our switchboard.\nroutes: []   # so far\n")
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(self.config), "--port", "0"]
        self.log = (folder / "gateway.log").open("wb")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split(" relays ")[1].split(" ")[0]
        self.file = folder / "data" / "unprompt.db"

    @property
    def store(self) -> SqliteStore:
        return SqliteStore(self.file)

    def until(self, true: Callable[[SqliteStore], bool], seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.file.exists():
                store = self.store
                done = true(store)
                store.close()
                if done:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s; {Path(self.log.name).read_text()[-3000:]}")

    def kill_the_worker(self) -> None:
        """kill -9, the moment that there is one."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + 15
        while not (pids := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)

    def command(self, *words: str) -> Any:
        """What a command prints with --json."""
        asked = [sys.executable, "-m", "gateway", *words, "--config", str(self.config), "--json"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0
        self.log.close()


class App:
    """An app that knows nothing of us but the base URL."""

    def __init__(self, url: str) -> None:
        self.url, self.sent = url, 0

    async def _ask(self, client: openai.AsyncOpenAI, text: str, prompt: str) -> tuple[str | None, str]:
        told: Any = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
        raw = await client.chat.completions.with_raw_response.create(model="gpt-6", messages=told)
        self.sent += 1
        return raw.parse().choices[0].message.content, raw.headers["x-unprompt-target"]

    def ask(self, *texts: str, prompt: str = PROMPT) -> list[tuple[str | None, str]]:
        """The answers, and who gave them."""

        async def all_of_them() -> list[tuple[str | None, str]]:
            async with openai.AsyncOpenAI(base_url=self.url, api_key="sk-app") as client:
                room = asyncio.Semaphore(16)

                async def one(text: str) -> tuple[str | None, str]:
                    async with room:
                        return await self._ask(client, text, prompt)

                return await asyncio.gather(*map(one, texts))

        return asyncio.run(all_of_them())


@pytest.fixture
def api() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(rule, latency=0.002) as server:
        yield server


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker by /proc")
def test_from_the_first_request_to_stripped_traffic_and_back(api: FakeOpenAI, tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, api.base_url)
    try:
        app = App(gateway.url)
        learn(gateway, app)
        assert_promoted_once(gateway)
        assert_traffic_is_stripped(gateway, app, api)
        assert_another_prompt_comes_back_whole(app, api)
        assert_rolled_back(gateway, app)
        assert_the_commands_do_the_same_by_hand(gateway)
        gateway.until(lambda store: store.count("complete = 1") == app.sent)
    finally:
        gateway.stop()
    assert gateway.store.count() == app.sent


def learn(gateway: Gateway, app: App) -> None:
    """Traffic, and a worker that is killed while it records, when it has built the dataset, and while it trains."""
    first = app.ask(*TEXTS[: TRAFFIC // 2])
    assert {target for _, target in first} == {"openai/gpt-6 whole"}
    gateway.until(lambda store: store.count() >= 100)
    gateway.kill_the_worker()
    app.ask(*TEXTS[TRAFFIC // 2 : TRAFFIC])
    gateway.until(lambda store: bool(store.rows("datasets")))
    gateway.kill_the_worker()
    gateway.until(lambda store: bool(store.finetunes()))
    gateway.kill_the_worker()
    gateway.until(lambda store: bool(store.rows("jobs", "kind = 'cycle' AND state = 'done'")))


def assert_promoted_once(gateway: Gateway) -> None:
    store = gateway.store
    (job,) = store.rows("jobs", "kind = 'cycle'")
    assert "passes the gate" in json.loads(job["detail"])["decision"], job["detail"]
    assert len(store.rows("datasets")) == len(store.finetunes()) == 1
    assert [(row["action"], row["state"]) for row in store.rows("promotions", "state = 'done'")] == [
        ("promote", "done")
    ]
    assert store.count() == TRAFFIC
    assert gateway.routes.read_text().startswith("# Our switchboard.\nroutes:   # so far\n  - name: ")


def assert_traffic_is_stripped(gateway: Gateway, app: App, api: FakeOpenAI) -> None:
    fresh = TEXTS[TRAFFIC : TRAFFIC + 60]
    gateway.until(lambda store: any(target.endswith(" stripped") for _, target in app.ask(*TEXTS[:5])), 10)
    before = len(api.received)
    answers = app.ask(*fresh)
    stripped = [target for _, target in answers if target.startswith("local/") and target.endswith(" stripped")]
    assert len(stripped) > 30
    assert len(api.received) - before == len(answers) - len(stripped)
    right = sum(label == rule({"messages": [{"content": PROMPT}, {"content": text}]})
                for text, (label, _) in zip(fresh, answers, strict=True))  # fmt: skip
    assert right >= 57


def assert_another_prompt_comes_back_whole(app: App, api: FakeOpenAI) -> None:
    """No instruction that we have not learnt is ever dropped."""
    plain = [text for text in TEXTS[:200] if "?" not in text and "!" not in text][:10]
    answers = app.ask(*plain, prompt=CHANGED)
    assert set(answers) == {("REMARK", "openai/gpt-6 whole")}
    assert {json.loads(request.body)["messages"][0]["content"] for request in api.received[-10:]} == {CHANGED}


def assert_rolled_back(gateway: Gateway, app: App) -> None:
    (task,) = gateway.command("tasks")
    assert task["serving"]["percent"] > 0
    assert task["stripped"] > 30
    assert gateway.command("rollback", task["name"])["route"] is None
    assert gateway.routes.read_text() == "# Our switchboard.\nroutes: []   # so far\n"
    gateway.until(lambda store: app.ask(TEXTS[0])[0][1] == "openai/gpt-6 whole", 10)
    assert {target for _, target in app.ask(*TEXTS[:20])} == {"openai/gpt-6 whole"}


def assert_the_commands_do_the_same_by_hand(gateway: Gateway) -> None:
    (task,) = gateway.command("tasks")
    name = task["name"]
    card = gateway.command("dataset", name)
    assert card["rows"] >= TRAFFIC
    assert card["dropped"]["answered by a candidate"] > 30
    (one,) = gateway.command("finetune", name)
    assert one["state"] == "succeeded"
    judged = gateway.command("evaluate", name)
    assert judged["report"]["candidates"][0]["model"] == one["model"]
    promoted = gateway.command("promote", name, one["model"], "--canary", "10%", "--force")
    assert promoted["route"]["targets"][0]["weight"] == 10
    assert gateway.command("rollback", name)["route"] is None
    assert gateway.routes.read_text() == "# Our switchboard.\nroutes: []   # so far\n"
