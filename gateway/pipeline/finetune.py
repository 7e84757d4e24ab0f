"""Trains a sweep of candidates on a dataset; what a crash interrupts goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gateway import trainers
from gateway.config import Config, Problem, TrainerConfig, problem_at
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.route import LOCAL
from gateway.errors import ConfigError, StoreError, TaskError, UnpromptError
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import Trainer, TrainerSettings
from gateway.upstreams.embedded import EmbeddedModel

log = logging.getLogger(__name__)

REMOTE_AT_ONCE = 4
Progress = Callable[[FineTune], None]
Sweep = Mapping[str, Sequence[dict[str, Any]]]
"""Trainer name -> the options of each of its candidates."""


def sweep_of(config: Config, dataset: Dataset, models: Path) -> Sweep:
    """The candidates that the task's policy asks for: the config's sweep, else the trainer's default one.

    Raises:
        ConfigError: a trainer of unknown kind.
    """
    names = config.policy(dataset.task).trainers
    return {name: _candidates(config, name, dataset, models) for name in names}


def _candidates(config: Config, name: str, dataset: Dataset, models: Path) -> Sequence[dict[str, Any]]:
    own = config.trainers[name].sweep
    return own if own is not None else build(config, name, models).candidates(dataset)


def build(config: Config, name: str, models: Path) -> Trainer:
    """The trainer that the config has under this name."""
    section: TrainerConfig = config.trainers[name]
    provider = config.providers.get(section.provider or "")
    settings = TrainerSettings(
        models=models,
        upstream=section.provider or "",
        base_url=provider.base_url if provider else "",
        api_key=config.key(section.provider or ""),
        options=dict(section.options),
        poll_seconds=section.poll_seconds,
    )
    return trainers.build(section.kind, settings)


def plan(store: SqliteStore, dataset: Dataset, sweep: Sweep) -> list[FineTune]:
    """Note every candidate in the store. Its id is a hash of what is trained on what, so planning the same
    twice is planning it once."""
    now = time.time()
    planned = [
        FineTune(
            id=_id(dataset, name, options), task=dataset.task, dataset=dataset.id, trainer=name, options=options,
            created_at=now + number / 1e6, updated_at=now,
        )
        for number, (name, options) in enumerate((n, o) for n, many in sweep.items() for o in many)
    ]  # fmt: skip
    known = {finetune.id for finetune in store.finetunes("dataset = ?", [dataset.id])}
    for finetune in planned:
        if finetune.id not in known:
            store.save_finetune(finetune)
    wanted = {finetune.id for finetune in planned}
    return [finetune for finetune in store.finetunes("dataset = ?", [dataset.id]) if finetune.id in wanted]


def _id(dataset: Dataset, trainer: str, options: dict[str, Any]) -> str:
    text = json.dumps([dataset.id, dataset.digest, trainer, options], sort_keys=True)
    return "ft-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def run(store: SqliteStore, config: Config, dataset: Dataset, planned: Sequence[FineTune], models: Path,
        progress: Progress = lambda finetune: None) -> list[FineTune]:  # fmt: skip
    """Bring every planned candidate to a final state, in the order of the plan. Embedded ones one after the
    other, since they share this machine's cores; those that train elsewhere side by side."""
    lock = threading.Lock()

    def told(finetune: FineTune) -> None:
        with lock:
            progress(finetune)

    def one(finetune: FineTune) -> FineTune:
        return _one(store.path, config, dataset, finetune, models, told)

    with ThreadPoolExecutor(REMOTE_AT_ONCE, thread_name_prefix="finetune") as pool:
        waiting = {f.id: pool.submit(one, f) for f in planned if is_remote(config, f)}
        done = {f.id: one(f) for f in planned if f.id not in waiting}
        done |= {key: future.result() for key, future in waiting.items()}
    return [done[finetune.id] for finetune in planned]


def is_remote(config: Config, finetune: FineTune) -> bool:
    """Whether the candidate trains at a provider, for hours perhaps, and not on this machine."""
    return config.trainers[finetune.trainer].provider is not None


def _one(
    path: Path, config: Config, dataset: Dataset, finetune: FineTune, models: Path, progress: Progress
) -> FineTune:
    """Bring one candidate to a final state. Two processes that want the same one wait for each other, since it
    must not be started twice at a provider."""
    store = SqliteStore(path)  # a connection belongs to one thread

    def save(changed: FineTune) -> None:
        store.save_finetune(changed)
        progress(changed)

    try:
        with one_at_a_time(path.parent / "locks" / f"{finetune.id}.lock", wait=True):
            (now,) = store.finetunes("id = ?", [finetune.id])
            return _trained(now, build(config, finetune.trainer, models), dataset, models, save)
    finally:
        store.close()


class Elsewhere:
    """Candidates that train at a provider while this process does other things. Threads that a killed or ended
    process takes along: what they do is resumed from the store."""

    def __init__(self) -> None:
        self._threads: dict[str, threading.Thread] = {}
        self._places = threading.Semaphore(REMOTE_AT_ONCE)

    def working(self, finetune_id: str) -> bool:
        thread = self._threads.get(finetune_id)
        return thread is not None and thread.is_alive()

    def start(self, path: Path, config: Config, dataset: Dataset, finetune: FineTune, models: Path) -> None:
        """Work on a candidate, unless that is being done."""
        if self.working(finetune.id):
            return

        def work() -> None:
            try:
                with self._places:
                    _one(path, config, dataset, finetune, models, lambda saved: None)
            except UnpromptError as error:  # tried again with the next turn
                log.error("fine-tune %s: %s", finetune.id, error)

        thread = threading.Thread(target=work, name=finetune.id, daemon=True)
        self._threads[finetune.id] = thread
        thread.start()


@contextlib.contextmanager
def one_at_a_time(file: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this is the only one in here: threads and processes exclude each other by a lock on a file.

    Raises:
        StoreError: the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("w")
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}; check the permissions of the store's folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _trained(finetune: FineTune, trainer: Trainer, dataset: Dataset, models: Path, save: Progress) -> FineTune:
    """The candidate in a final state. A trainer that fails in a way of its own costs only this candidate."""
    if finetune.state is FineTuneState.SUCCEEDED and not _is_there(finetune, models):
        finetune = finetune.but(state=FineTuneState.CREATED, stage="", upstream=None, model=None)
        save(finetune)
    if finetune.state.final:
        return finetune
    try:
        return trainer.run(finetune, dataset, save)
    except StoreError:
        raise  # how far it got cannot be noted either
    except Exception as error:
        log.exception("fine-tune %s", finetune.id)
        failed = finetune.but(state=FineTuneState.FAILED, error=f"{type(error).__name__}: {error}"[:500])
        save(failed)
        return failed


def _is_there(finetune: FineTune, models: Path) -> bool:
    """Whether the model can still be used; one that trained elsewhere is kept there."""
    if finetune.upstream != LOCAL:
        return True
    try:
        EmbeddedModel.load(models, finetune.model or "")
    except TaskError:
        return False
    return True


def problems(config: Config, file: Path) -> list[Problem]:
    """What is wrong with the trainers of a config, with the lines of its file."""
    found = []
    for name in config.trainers:
        try:
            build(config, name, config.store.home / "models")
        except ConfigError as error:
            found.append(problem_at(file, ["trainers", name], str(error)))
    return found
