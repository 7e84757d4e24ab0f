"""Trains a sweep of candidates on a dataset; what a crash interrupts goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gateway import trainers
from gateway.config import Config, TrainerConfig
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import Trainer, TrainerSettings

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
        api_key=os.environ.get((provider.api_key_env if provider else None) or "OPENAI_API_KEY", ""),
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
    """Bring every planned candidate to a final state. Embedded ones one after the other, since they share this
    machine's cores; those that train elsewhere side by side."""
    remote = [f for f in planned if config.trainers[f.trainer].provider is not None]
    local = [f for f in planned if config.trainers[f.trainer].provider is None]
    lock = threading.Lock()

    def one(finetune: FineTune) -> FineTune:
        own = SqliteStore(store.path)  # a connection belongs to one thread

        def save(changed: FineTune) -> None:
            own.save_finetune(changed)
            with lock:
                progress(changed)

        try:
            trainer = build(config, finetune.trainer, models)
            return finetune if finetune.state.final else trainer.run(finetune, dataset, save)
        finally:
            own.close()

    with ThreadPoolExecutor(REMOTE_AT_ONCE, thread_name_prefix="finetune") as pool:
        waiting = [pool.submit(one, finetune) for finetune in remote]
        done = [one(finetune) for finetune in local]
        done += [future.result() for future in waiting]
    return done
