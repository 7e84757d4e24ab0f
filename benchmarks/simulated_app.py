"""One app and its gateway with a clock of their own, for `simulate.py`: all parts of the gateway are real but the
network, and the incumbent knows the label of each of the demo's messages."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gateway.app import Files, build_switchboard, price_book
from gateway.config import load_config
from gateway.demo.messages import Labelled, descriptions, messages
from gateway.demo.prompts import Prompt, few_shot
from gateway.domain.dataset import Row
from gateway.domain.exchange import Exchange, Usage, id_maker
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.route import LOCAL
from gateway.files import fingerprint
from gateway.pipeline import canary, dataset, evaluate, promote
from gateway.pipeline.asking import Answered
from gateway.pipeline.cycle import Workshop, turn_all
from gateway.pipeline.discover import Discovery
from gateway.pipeline.gate import decide
from gateway.pipeline.monitor import look_after
from gateway.providers.openai import chat_completion
from gateway.proxy.router import Attempt, Incoming, Plan, Switchboard
from gateway.stores.audited import open_alarms, served_tasks
from gateway.stores.sqlite import SqliteStore

MODEL = "gpt-6-luna"
REQUESTS_A_DAY = 1000
DAY = 86_400.0
BATCH = 25
"""So many requests come between two turns of the worker. It looks after the candidates that serve after each one:
for real it does so every second, and a request comes every 86 seconds."""
INCUMBENT_MS, CANDIDATE_MS = 800.0, 60.0


@dataclass
class Made:
    """A candidate that is made up: how often it says what the incumbent would."""

    agreement: float = 1.0


@dataclass
class World:
    """One app, its gateway, and a clock."""

    home: Path
    seed: int
    days: float
    error_rate: float = 0.01
    policy: dict[str, Any] = field(default_factory=dict)
    now: float = 1.8e9
    down: bool = False
    made: Made = field(default_factory=Made)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.texts = messages(self.seed, 6000)
        self.prompt: Prompt = few_shot(self.texts, descriptions())
        self.new_id = id_maker(lambda: self.now)
        files = self._configured()
        config = load_config(files.gateway)
        self.files, self.store = files, SqliteStore(config.store.path)
        data = config.store.home
        self.shop = Workshop(
            store=self.store, config=config, prices=price_book(config), routes=files.routes, models=data / "models",
            datasets=data / "datasets", say=lambda _: None,
        )  # fmt: skip
        self.discovery = Discovery(self.store)
        self.seen: tuple[Any, ...] = ()
        self.board, self.models = Switchboard.build(build_switchboard(files, config)[0].table, []), {}
        self.waiting: list[Exchange] = []
        self.told: list[Told] = []
        self.known: set[str] = set()
        self.numbers = 0

    def _configured(self) -> Files:
        told = {
            "providers": {
                "openai": {"protocol": "openai", "base_url": "http://127.0.0.1:9/v1"},
                "made": {"protocol": "openai", "base_url": "http://127.0.0.1:9/v1"},
            },
            "store": {"url": f"sqlite:///{self.home}/data/unprompt.db"},
            "tasks": {"default": {"min_rows": 600, **self.policy}},
        }
        (self.home / "gateway.yaml").write_text(json.dumps(told))
        return Files.beside(self.home / "gateway.yaml")

    # --- a request ---------------------------------------------------------------------------------------

    def live(self, days: float, texts: list[Labelled] | None = None) -> None:
        """So many days of requests."""
        texts = texts or self.texts
        for _ in range(round(days * REQUESTS_A_DAY)):
            self.now += DAY / REQUESTS_A_DAY
            self.ask(self.rng.choice(texts))
            if self.numbers % BATCH == 0:
                self.work()
            elif served_tasks(self.store):
                self.watch()

    def ask(self, row: Labelled) -> None:
        """One request of the app, and the copies that the gateway makes of it."""
        self.numbers += 1
        body = json.dumps({"model": MODEL, "messages": self.prompt.request(row.text)}).encode()
        incoming = Incoming(provider="openai", model=MODEL, body=body, is_chat=True)
        plan = self.board.plan(incoming, self.rng.random)
        failures: list[str] = []
        answer: str | None = None
        attempt = plan.attempts[0]
        for attempt in plan.attempts:
            answer, why = self._answered(attempt, row)
            if answer is not None:
                break
            failures.append(f"{attempt.label}: {why}")
        own = self._record(plan, attempt, body, answer, failures)
        wrong = attempt.stripped and _asked(attempt) != row.text
        right = answer == self.prompt.answer(row.label)
        self.told.append(Told(self.numbers, right, attempt.stripped, wrong, answer is None))
        copied = plan.shadow
        if answer is not None and attempt.stripped and plan.audited:
            copied = next(one for one in plan.attempts if not one.stripped)
        elif attempt.stripped:
            copied = None
        if answer is not None and copied is not None:
            again, why = self._answered(copied, row)
            self._record(plan, copied, body, again, [] if again is not None else [f"{copied.label}: {why}"], own)

    def _answered(self, attempt: Attempt, row: Labelled) -> tuple[str | None, str]:
        if attempt.upstream == LOCAL:
            said, sure = self.models[attempt.model or ""].answer(attempt.text or "")
            return (said, "") if sure >= attempt.min_confidence else (None, "abstained")
        if attempt.upstream == "made":
            if self.rng.random() < self.made.agreement:
                return self.prompt.answer(row.label), ""
            return self.prompt.answer("other"), ""
        if self.down:
            return None, "http_503"
        label = row.label
        if self.rng.random() < self.error_rate:
            label = self.rng.choice(self.texts).label
        return self.prompt.answer(label), ""

    def _record(
        self, plan: Plan, attempt: Attempt, body: bytes, answer: str | None, failures: list[str],
        copy_of: str | None = None,
    ) -> str:  # fmt: skip
        ours = attempt.stripped
        tokens = len(attempt.body or b"") // 4
        usage = Usage(input=tokens, output=2, source="upstream")
        said = chat_completion("1", attempt.model or "", answer or "", usage)
        row = Exchange(
            id=self.new_id(), started_at=self.now, route=plan.route.name if plan.route else None, task=plan.task,
            provider="openai", endpoint="/v1/chat/completions", model_requested=MODEL, model_served=attempt.model,
            target=attempt.label, stripped=ours, status=200 if answer is not None else 503, complete=True,
            error_type=None if answer is not None else "upstream_http_5xx", finish_reason="stop",
            latency_ms=(CANDIDATE_MS if ours else INCUMBENT_MS) * self.rng.lognormvariate(0, 0.2),
            input_tokens=tokens, output_tokens=2, usage_source="upstream",
            cost_usd=0.0 if ours else tokens * 1e-7, attempts=failures, request=body,
            response=said if answer is not None else b"{}", copy_of=copy_of,
        )  # fmt: skip
        self.waiting.append(row)
        return row.id

    # --- the worker --------------------------------------------------------------------------------------

    def work(self) -> None:
        """What the worker does every few seconds."""
        self._record_all()
        self.discovery.step()
        turn_all(self.shop)
        self.watch()

    def watch(self) -> None:
        """What the worker does every second, and the relay when a file has changed."""
        self._record_all()
        look_after(self.shop, self.now)
        home = self.store.path.parent
        seen = tuple(fingerprint(one) for one in (self.files.routes, home / "withheld.json", home / "audits.json"))
        if seen != self.seen:
            self.seen = seen
            self.board, self.models = build_switchboard(self.files, self.shop.config)
        for alarm in open_alarms(self.store, self.task):
            self.known.add(alarm["kind"])

    def _record_all(self) -> None:
        with self.store.transaction():
            self.store.absorb("simulated", 0, self.waiting)
        self.waiting.clear()

    @property
    def task(self) -> str:
        """The name that the gateway found for the app's task; empty before."""
        rows = sorted(self.store.tasks(), key=lambda row: -int(row["exchanges"]))
        return str(rows[0]["name"]) if rows else ""

    def flips(self, action: str, since: float = 0.0) -> list[float]:
        """When routes were flipped: `promote`, `advance`, `rollback`."""
        rows = self.store.rows("promotions", "action = ? AND state = 'done'", [action])
        return [row["created_at"] for row in rows if row["created_at"] >= since]

    def promote_made(self) -> None:
        """A made-up candidate is evaluated on the real held-out rows, and promoted whatever the gate says."""
        data = dataset.build(self.store, self.task, self.shop.datasets)
        one = FineTune(
            id=f"made-{self.seed}", task=self.task, dataset=data.id, trainer="made", state=FineTuneState.SUCCEEDED,
            upstream="made", model="made-1",
        )  # fmt: skip
        self.store.save_finetune(one)
        report = evaluate.evaluate(
            self.store, self.shop.config, data, [one], self.shop.models, lambda _: self._asks
        )
        decision = msgspec.structs.replace(decide(report, self.shop.config.policy(self.task)), promote=True)
        steps = canary.steps(self.shop.config.policy(self.task))
        promote.promote(
            self.store, self.shop.config, self.shop.routes, self.shop.models, report, decision, steps=steps
        )

    def _asks(self, rows: Any) -> list[Answered]:
        return [self._made_answer(row) for row, _ in rows]

    def _made_answer(self, row: Row) -> Answered:
        text = row.output if self.rng.random() < self.made.agreement else "other"
        return Answered(text=text, sure=None, latency_ms=CANDIDATE_MS, cost_usd=1e-6)


def _asked(attempt: Attempt) -> str | None:
    """What a stripped request asks of whoever it goes to: a model in the process gets the text, others a body."""
    if attempt.upstream == LOCAL:
        return attempt.text
    said = json.loads(attempt.body or b"{}").get("messages", [])
    return said[-1]["content"] if len(said) == 1 else None


@dataclass
class Told:
    """What became of one request."""

    number: int
    right: bool
    stripped: bool
    wrong: bool
    failed: bool
