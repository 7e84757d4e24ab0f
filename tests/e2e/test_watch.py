"""The watch over a promoted candidate, for real: three relays under load, a teacher that changes its mind, and the
way back, by command and by itself, without one failed request."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest
import yaml
from relaying import story
from sorted_mail import learned
from stories import asked, mail, sorted_by_the_model

from gateway.config import Config, load_config
from gateway.pipeline import promote
from gateway.pipeline.canary import Step
from gateway.pipeline.evaluate import Report, Score
from gateway.pipeline.gate import Decision
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

AT_ONCE = 12
TEXTS = [text for text, _ in mail()[:120]]


class Answered(NamedTuple):
    """One request of the app: when it was sent (monotonic), the status, and who answered."""

    sent: float
    status: int
    target: str


class House:
    """`unprompt serve --workers 3` with a task whose candidate is trained, and a teacher behind it."""

    def __init__(self, folder: Path) -> None:
        learned(folder)
        self.folder, self.file = folder, folder / "config" / "gateway.yaml"
        self.routes = self.file.with_name("routes.yaml")
        self.changed_its_mind = False
        self.teacher = FakeOpenAI(self._said, latency=0.002)

    def _said(self, body: dict[str, Any]) -> str:
        label = sorted_by_the_model(body["messages"][-1]["content"])
        return f"new {label}" if self.changed_its_mind else label

    def start(self) -> None:
        self.teacher.__enter__()
        self.file.parent.mkdir()
        self.file.write_text(yaml.safe_dump({
            "providers": {"openai": {"base_url": self.teacher.base_url}},
            "store": {"url": f"sqlite:///{self.folder / 'data' / 'unprompt.db'}"},
            "tasks": {"default": {"min_rows": 1_000_000}},
            "jobs": {"poll_seconds": 600},  # the same few texts again and again: that would be found suspicious
        }))  # fmt: skip
        self.routes.write_text("routes: []  # ours\n")
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(self.file), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--workers", "3"], stdout=subprocess.PIPE, stderr=(self.folder / "log").open("wb"), text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split(" relays ")[1].split(" ")[0]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.teacher.__exit__(None, None, None)

    @property
    def config(self) -> Config:
        return load_config(self.file)

    @property
    def store(self) -> SqliteStore:
        return SqliteStore(self.folder / "data" / "unprompt.db")

    def promote(self) -> None:
        """Past the gate, as the worker does it."""
        score = Score(
            candidate="classifier", finetune="ft-1", upstream="local", model="mail-1", rows=300, agreement=0.99,
            agreement_low=0.97, answered=1.0, agreement_answered=0.99, min_confidence=0.1, cost_per_1k_usd=0.0,
            p50_ms=2.0, p95_ms=5.0, input_tokens=10.0,
        )  # fmt: skip
        before = msgspec.structs.replace(
            score, candidate="incumbent", finetune=None, upstream="openai", model="gpt-6", p95_ms=60_000.0
        )
        report = Report(
            id="eval-1", task="mail", dataset="d", template="mail@1", confidence=0.95, incumbent=before,
            candidates=[score], failed={}, provider="openai", model="gpt-6",
        )  # fmt: skip
        decision = Decision(task="mail", evaluation="e", candidate="ft-1", score=score, checks=(), promote=True)
        promote.promote(
            self.store, self.config, self.routes, self.folder / "data" / "models", report, decision,
            steps=[Step(100)],
        )  # fmt: skip

    def roll_back(self) -> None:
        promote.rollback(self.store, self.config, self.routes, "mail")


class Load:
    """An app that asks and asks, on connections of their own, with a `pause` (seconds) behind each answer."""

    def __init__(self, url: str, *, pause: float = 0.0) -> None:
        self.url, self.answers, self.ended, self.pause = url, list[Answered](), False, pause

    async def one(self, http: aiohttp.ClientSession, text: str) -> None:
        sent = time.monotonic()
        try:
            async with http.post(f"{self.url}/chat/completions", json=asked(text)) as answer:
                await answer.read()
                self.answers.append(Answered(sent, answer.status, answer.headers.get("x-unprompt-target", "")))
        except aiohttp.ClientError as error:
            self.answers.append(Answered(sent, 0, repr(error)))

    async def run(self) -> None:
        async def ask(number: int) -> None:
            dice = random.Random(number)
            async with aiohttp.ClientSession(headers={"authorization": "Bearer sk-app"}) as http:
                while not self.ended:
                    await self.one(http, dice.choice(TEXTS))
                    await asyncio.sleep(self.pause)

        await asyncio.gather(*map(ask, range(AT_ONCE)))

    async def until(self, true: Callable[[], bool], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, (len(self.answers), self.answers[-3:])
            await asyncio.sleep(0.02)

    def stripped(self, newest: int) -> bool:
        return len(self.answers) > newest and all(a.target.endswith("stripped") for a in self.answers[-newest:])

    @property
    def failed(self) -> list[Answered]:
        return [one for one in self.answers if one.status != 200]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    opened = House(tmp_path)
    opened.start()
    yield opened
    opened.stop()


@story
async def test_a_flip_and_its_rollback_take_effect_within_a_second_on_every_worker(house: House) -> None:
    load = Load(house.url)
    asking = asyncio.create_task(load.run())
    await load.until(lambda: len(load.answers) > 50)
    promoted = time.monotonic()
    await asyncio.to_thread(house.promote)
    await load.until(lambda: load.stripped(100))
    rolled_back = time.monotonic()
    await asyncio.to_thread(house.roll_back)
    written = time.monotonic()
    await asyncio.sleep(2.5)
    load.ended = True
    await asking
    assert load.failed == []
    last_stripped = max(one.sent for one in load.answers if one.target.endswith("stripped"))
    last_whole = max(one.sent for one in load.answers if one.target.endswith("whole") and one.sent < rolled_back)
    assert last_whole - promoted < 3.0  # the model is loaded, and the file forced to the disk
    assert last_stripped - written < 1.0
    assert sum(one.sent > written + 1 for one in load.answers) > 20
    assert house.routes.read_text() == "routes: []  # ours\n"


@story
async def test_a_teacher_that_changes_its_mind_has_the_candidate_rolled_back_by_itself(house: House) -> None:
    house.promote()
    load = Load(house.url, pause=0.05)  # a worker without a core would be told of it when it gets one
    asking = asyncio.create_task(load.run())
    await load.until(lambda: load.stripped(200) and house.store.count() > 0)
    house.changed_its_mind = True
    changed = len(load.answers)
    await load.until(lambda: house.routes.read_text() == "routes: []  # ours\n")
    needed = len(load.answers) - changed
    await load.until(lambda: not any(one.target.endswith("stripped") for one in load.answers[-60:]))
    load.ended = True
    await asking
    assert load.failed == []
    (_, back) = house.store.rows("promotions")
    record = json.loads(back["decision"])
    assert (back["action"], record["alarm"]["kind"], record["candidate"]) == ("rollback", "agreement", "ft-1")
    assert needed < 10_000
    (alarm,) = house.store.rows("alarms")
    assert alarm["action"] == "rollback"
