"""The flywheel, whole: dataset -> finetune -> evaluate -> gate -> promote, and again as data grows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune
from gateway.domain.price import PriceBook
from gateway.errors import DatasetError, TaskError
from gateway.pipeline import dataset, evaluate, finetune, promote
from gateway.pipeline.gate import Decision, decide
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)


class Workshop(msgspec.Struct, frozen=True, kw_only=True):
    """What every stage needs. `say` is told of progress, one sentence at a time."""

    store: SqliteStore
    config: Config
    prices: PriceBook
    routes: Path
    models: Path
    datasets: Path
    say: Callable[[str], None] = log.info


def turn(shop: Workshop, task: str) -> Decision | None:
    """One turn for one task; None when it is not due. Stopped anywhere, the next call goes on where it was:
    the job's row holds the dataset, and every stage gives the same result for the same dataset."""
    job = _job(shop, task)
    if job is None:
        return None
    data = dataset.load(shop.store, job["dataset"]) if "dataset" in job else _build(shop, task, job)
    _note(shop, task, job | {"dataset": data.id}, "finetune")
    planned = finetune.plan(shop.store, data, finetune.sweep_of(shop.config, data, shop.models))
    trained = finetune.run(shop.store, shop.config, data, planned, shop.models)
    _note(shop, task, job | {"dataset": data.id}, "evaluate")
    report = evaluation(shop, data, trained)
    decision = decide(report, shop.config.policy(task))
    shop.say(f"task {task}: {decision.reason}")
    _settle(shop, report, decision)
    _note(shop, task, job | {"dataset": data.id, "decision": decision.reason}, "done", state="done")
    return decision


def evaluation(shop: Workshop, data: Dataset, trained: list[FineTune]) -> evaluate.Report:
    """Ask all candidates the held-out rows."""
    asks = evaluate.asker(shop.config, shop.prices, shop.models, lambda name: key_of(shop.config, name))
    return evaluate.evaluate(shop.store, shop.config, data, trained, shop.models, shop.prices, asks)


def key_of(config: Config, provider: str) -> str:
    """Our own key for a provider, empty where there is none."""
    section = config.providers.get(provider)
    return os.environ.get((section.api_key_env if section else None) or "OPENAI_API_KEY", "")


def _settle(shop: Workshop, report: evaluate.Report, decision: Decision) -> None:
    policy = shop.config.policy(decision.task)
    if not decision.promote:
        promote.note_refusal(shop.store, decision)
    elif policy.approve == "ask":
        shop.say(f"task {decision.task}: waits for 'unprompt promote {decision.task}' (approve: ask)")
    else:
        promote.promote(shop.store, shop.config, shop.routes, decision, report.template, report.incumbent,
                        share=policy.share)  # fmt: skip


def _build(shop: Workshop, task: str, job: dict[str, Any]) -> Dataset:
    data = dataset.build(shop.store, task, shop.datasets)
    shop.say(f"task {task}: dataset {data.id}, {len(data.rows)} rows from {data.card['recorded']} exchanges")
    return data


# --- when a turn is due --------------------------------------------------------------------------------


def _job(shop: Workshop, task: str) -> dict[str, Any] | None:
    """The state of the turn to go on with, a fresh one when it is due, else None."""
    found = shop.store.rows("jobs", "kind = 'cycle' AND task = ?", [task])
    last: dict[str, Any] = json.loads(found[-1]["detail"]) if found else {}
    if found and found[-1]["state"] == "running":
        return last
    usable = shop.store.count("task = ? AND complete = 1 AND stripped = 0 AND status = 200", [task])
    needed = last.get("usable", 0) * shop.config.policy(task).retrain_growth or shop.config.policy(task).min_rows
    if usable < needed:
        return None
    fresh = {"id": f"cycle-{task}-{usable}", "usable": usable, "started_at": time.time()}
    _note(shop, task, fresh, "dataset")
    return fresh


def _note(shop: Workshop, task: str, detail: dict[str, Any], step: str, state: str = "running") -> None:
    now = time.time()
    shop.store.put("jobs", {
        "id": detail["id"], "kind": "cycle", "task": task, "state": state, "step": step, "detail": detail,
        "error": detail.get("error"), "created_at": detail["started_at"], "updated_at": now,
    })  # fmt: skip


def turn_all(shop: Workshop) -> list[Decision]:
    """A turn for every task that is due. What stops one task is noted on its job and stops no other."""
    decisions = []
    for row in shop.store.tasks():
        task = row["name"]
        try:
            decision = turn(shop, task)
        except (DatasetError, TaskError) as error:
            shop.say(f"task {task}: {error}")
            _fail(shop, task, str(error))
        else:
            decisions += [decision] if decision else []
    return decisions


def _fail(shop: Workshop, task: str, error: str) -> None:
    found = shop.store.rows("jobs", "kind = 'cycle' AND task = ? AND state = 'running'", [task])
    for row in found:
        detail = json.loads(row["detail"]) | {"error": error}
        _note(shop, task, detail, row["step"], state="failed")


@contextlib.contextmanager
def one_at_a_time(home: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process may run turns: the worker and the commands exclude each other by a file lock."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".jobs.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
