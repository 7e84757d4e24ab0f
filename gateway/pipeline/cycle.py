"""The flywheel, whole: dataset -> finetune -> evaluate -> gate -> promote, and again as data grows."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.price import PriceBook
from gateway.errors import ConfigError, DatasetError, StoreError, UnpromptError
from gateway.pipeline import canary, dataset, due, evaluate, finetune, model_lists, promote, promotions, sweep
from gateway.pipeline.asking import Asking, directly
from gateway.pipeline.bench import Bench
from gateway.pipeline.finetune import Elsewhere
from gateway.pipeline.gate import Check, Decision, decide
from gateway.pipeline.serving import in_force
from gateway.pipeline.token_counts import tokenizer_of
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""What stands outside our power (a file that a person is editing, an upstream that is down) is tried again after
so long."""
MOST_ATTEMPTS = 20
"""A turn during which the process has died so often is given up."""
_PROCESS = str(uuid.uuid4())

Job = dict[str, Any]


class Workshop(msgspec.Struct, frozen=True, kw_only=True):
    """What every stage needs. `say` is told of progress, one sentence at a time. With `elsewhere`, a turn does
    not wait for candidates that train at a provider: the next one does, or the one after it. `relayed` is how an
    evaluation asks through a running relay; without it models are asked directly. Without `bench`, live answers
    that only a judge can compare are not watched."""

    store: SqliteStore
    config: Config
    prices: PriceBook
    routes: Path
    models: Path
    datasets: Path
    say: Callable[[str], None] = log.info
    elsewhere: Elsewhere | None = None
    relayed: Callable[[Dataset], AbstractContextManager[Asking]] | None = None
    bench: Bench | None = None


def turn(shop: Workshop, task: str) -> Decision | None:
    """One turn for one task; None when it is not due, or not over. Stopped anywhere, the next call goes on where
    it was: the job's row holds the dataset and the evaluation, and the candidates hold their own stages."""
    job = _job(shop, task)
    if job is None or _is_over(shop, task, job) or _is_waiting(shop, job):
        return None
    data, job = _dataset(shop, task, job)
    trained = _candidates(shop, data)
    if trained is None or _is_over(shop, task, job):  # training may take hours
        return None
    job = _note(shop, task, job, "evaluate")
    report, job = _report(shop, task, job, data, trained)
    if not report.candidates and any(one.state is FineTuneState.SUCCEEDED for one in trained):
        _wait(shop, task, job | {"evaluation": None}, "evaluate", "; ".join(report.failed.values()))
        return None
    decision = _fresh(shop, decide(report, shop.config.policy(task)), report)
    job = _note(shop, task, job, "promote", decision=decision.reason)
    try:
        _settle(shop, report, decision)
    except ConfigError as error:  # a person's file has a problem; theirs to solve, ours to wait for
        _wait(shop, task, job, "promote", str(error))
        return None
    shop.say(f"task {task}: {decision.sentence}")
    _note(shop, task, job, "done", state="done", error=None)
    return decision


def turn_all(shop: Workshop) -> list[Decision]:
    """A turn for every task that is due. What stops one task is noted on its job and stops no other."""
    decisions = []
    _settle_flips(shop)
    model_lists.refresh(shop.config, time.time())
    for row in shop.store.tasks():
        task = row["name"]
        try:
            decision = turn(shop, task)
        except StoreError:
            raise  # nothing can be noted, for no task
        except UnpromptError as error:
            _fail(shop, task, str(error))
        except Exception as error:
            log.exception("task %s", task)
            _fail(shop, task, f"{type(error).__name__}: {error}")
        else:
            decisions += [decision] if decision else []
    return decisions


def _settle_flips(shop: Workshop) -> None:
    """What became of a flip during which a process died; not known while a person's file is broken."""
    try:
        promote.settle(shop.store, shop.routes)
    except ConfigError as error:
        log.warning("%s", error)


# --- the steps -------------------------------------------------------------------------------------------


def _dataset(shop: Workshop, task: str, job: Job) -> tuple[Dataset, Job]:
    if "dataset" in job:
        try:
            return dataset.load(shop.store, job["dataset"]), job
        except DatasetError as error:
            shop.say(f"task {task}: {error}; building it again")
    data = dataset.build(
        shop.store, task, shop.datasets, shop.config.policy(task), shop.say, shop.config.terms(),
        tokenizer_of(shop.config, task),
    )  # fmt: skip
    shop.say(f"task {task}: dataset {data.id}, {data.card['rows']} rows from {data.card['recorded']} exchanges")
    own = shop.store.answers_to(data.template)
    return data, _note(shop, task, job, "finetune", dataset=data.id, own=own)


def _candidates(shop: Workshop, data: Dataset) -> list[FineTune] | None:
    """The candidates, each trained, failed or beyond the budget; None as long as some train elsewhere."""
    wanted = sweep.plan(shop.store, data, sweep.sweep_of(shop.config, data, shop.models))
    planned = sweep.estimated(shop.store, shop.config, data, wanted, shop.models)
    if shop.elsewhere is None:
        return finetune.run(shop.store, shop.config, data, planned, shop.models)
    shop.elsewhere.start(shop.store, shop.config, data, planned, shop.models)
    trained = finetune.run(shop.store, shop.config, data, planned, shop.models, here_only=True)
    away = any(sweep.is_remote(shop.config, f) and finetune.is_open(f) for f in planned)
    return None if away else trained


def _is_waiting(shop: Workshop, job: Job) -> bool:
    """Whether there is nothing to do yet: asked before anything is read, since it is asked every few seconds."""
    if job.get("retry_at", 0) > time.time():
        return True
    if shop.elsewhere is None or "dataset" not in job or "evaluation" in job:
        return False
    away = [f for f in shop.store.finetunes("dataset = ?", [job["dataset"]]) if shop.elsewhere.working(f.id)]
    return bool(away)


def _is_over(shop: Workshop, task: str, job: Job) -> bool:
    """Whether the turn ends here, since the app has left the version of the prompt that it is about: what still
    trains is cancelled, and the next turn is for the version in use."""
    built = shop.store.rows("datasets", "id = ?", [job.get("dataset")])
    use = due.use_of(shop.store, built[-1]["template"]) if built else None
    if use is None or not use.is_gone:
        return False
    for one in shop.store.finetunes("dataset = ?", [job["dataset"]]):
        if shop.elsewhere is not None and shop.elsewhere.working(one.id):
            finetune.ask_to_cancel(shop.store, one)
    shop.say(f"task {task}: {use.sentence}; this turn ends, the next one is for what is sent")
    _note(shop, task, job, "done", state="ended", error=use.sentence)
    return True


def _report(
    shop: Workshop, task: str, job: Job, data: Dataset, trained: list[FineTune]
) -> tuple[evaluate.Report, Job]:
    """The turn's evaluation: asked once, since asking may cost money and the rows may judge only once."""
    kept = shop.store.rows("evaluations", "id = ?", [job.get("evaluation")])
    if kept and kept[0]["dataset"] == data.id:
        return evaluate.load_report(kept[0]), job
    report = evaluation(shop, data, [*trained, *_serving(shop, task, data.template, trained)])
    return report, _note(shop, task, job, "evaluate", evaluation=report.id)


def _serving(shop: Workshop, task: str, template: str, trained: list[FineTune]) -> list[FineTune]:
    """The candidate that serves the task now, which the new ones are judged beside."""
    now = _serving_id(shop, task)
    if now is None or template != _stripped_now(shop, task):
        return []  # what serves another version of the prompt is asked none of these requests
    found = shop.store.finetunes("id = ? AND state = 'succeeded'", [now])
    return [one for one in found if all(one.id != other.id for other in trained)]


def evaluation(shop: Workshop, data: Dataset, trained: list[FineTune]) -> evaluate.Report:
    """Ask all candidates the held-out rows, and the baselines and the judge that the policy names."""
    direct = nullcontext(directly(shop.config, shop.prices, shop.models))
    with shop.relayed(data) if shop.relayed else direct as asking:
        return evaluate.evaluate(
            shop.store, shop.config, data, trained, shop.models, asking.candidate, asking.other,
            relayed=asking.relayed,
        )  # fmt: skip


def _fresh(shop: Workshop, decision: Decision, report: evaluate.Report) -> Decision:
    """The decision, and not to promote what was rolled back before, is not surely better than what serves
    already, or is for a version of the prompt that the app has left."""
    now = _serving_id(shop, decision.task)
    current = next((score for score in report.candidates if now and score.finetune == now), None)
    checks = []
    if decision.candidate in promotions.taken_back(shop.store, decision.task):
        checks.append(Check("times that it was rolled back", 1.0, 0.0, False))
    elif current is not None and decision.score is not None and decision.candidate != now:
        ahead = current.beaten_low
        name = "answers rightly (share), beyond the candidate that serves, lower bound (above the limit)"
        checks.append(Check(name, ahead, 0.0, ahead is not None and ahead > 0))
    return decision.but(*checks, due.use_of(shop.store, report.template).check)


def _serving_id(shop: Workshop, task: str) -> str | None:
    """The fine-tune that serves the task now."""
    serving = promotions.newest(shop.store, task)
    return promotions.candidate(serving) if serving else None


def _stripped_now(shop: Workshop, task: str) -> str | None:
    """The template that the task's newest candidate strips."""
    serving = promotions.newest(shop.store, task)
    return promotions.stripped(serving) if serving else None


def _settle(shop: Workshop, report: evaluate.Report, decision: Decision) -> None:
    policy = shop.config.policy(decision.task)
    if decision.promote and decision.candidate == _serving_id(shop, decision.task):
        return  # it is there already, and still the best
    if not decision.promote:
        promotions.note_refusal(shop.store, decision)
    elif policy.approve == "ask":
        promotions.note_waiting(shop.store, decision)
        shop.say(f"task {decision.task}: waits for 'unprompt promote {decision.task}' (approve: ask)")
    else:
        promote.promote(
            shop.store, shop.config, shop.routes, shop.models, report, decision, steps=canary.steps(policy)
        )


# --- when a turn is due, and how far it is ---------------------------------------------------------------


def _job(shop: Workshop, task: str) -> Job | None:
    """The turn to go on with, a fresh one when it is due, else None.

    Raises:
        DatasetError: the process has died too often during this turn.
    """
    last = due.last_turn(shop.store, task)
    if last.state == "running":
        return _resumed(shop, task, last.detail, last.step)
    if due.missing(shop.store, task, shop.config, last, lambda: in_force(shop.routes, shop.config)) != 0:
        return None
    there = due.what_is_there(shop.store, task)
    fresh = {"id": f"cycle-{task}-{uuid.uuid4().hex[:12]}", "started_at": time.time(), **there}
    return _note(shop, task, fresh | {"process": _PROCESS, "attempts": 1}, "dataset")


def _resumed(shop: Workshop, task: str, job: Job, step: str) -> Job:
    if job.get("process") == _PROCESS:
        return job
    attempts = job.get("attempts", 0) + 1
    if attempts > MOST_ATTEMPTS:
        raise DatasetError(f"given up: the process has died {MOST_ATTEMPTS} times in step '{step}'")
    return _note(shop, task, job, step, process=_PROCESS, attempts=attempts)


def _note(shop: Workshop, task: str, job: Job, step: str, *, state: str = "running", **more: Any) -> Job:
    """Keep how far the turn is; gives the job with what is new."""
    job = job | more
    shop.store.put("jobs", {
        "id": job["id"], "kind": "cycle", "task": task, "state": state, "step": step, "detail": job,
        "error": job.get("error"), "created_at": job["started_at"], "updated_at": time.time(),
    })  # fmt: skip
    return job


def _wait(shop: Workshop, task: str, job: Job, step: str, error: str) -> None:
    if error != job.get("error"):
        shop.say(f"task {task}: {error}")
    _note(shop, task, job, step, error=error, retry_at=time.time() + RETRY_SECONDS)


def _fail(shop: Workshop, task: str, error: str) -> None:
    shop.say(f"task {task}: {error}")
    for row in shop.store.rows("jobs", "kind = 'cycle' AND task = ? AND state = 'running'", [task]):
        _note(shop, task, json.loads(row["detail"]), row["step"], state="failed", error=error)
