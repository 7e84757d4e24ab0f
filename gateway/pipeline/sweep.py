"""Which candidates are trained on a dataset, and what each is expected to take."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from gateway import trainers
from gateway.config import Config, Problem, TrainerConfig, problem_at
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Budget, Estimate, Sweep, by_trainer, expanded, fair_share
from gateway.errors import ConfigError, TaskError
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import Estimating, Trainer, TrainerSettings

_BY_KIND = {"classification": ("classifier",), "extraction": ("tagger", "classifier")}
"""The trainers of a task whose policy names none. For other kinds, all that the config has beside these."""
_EMBEDDED = frozenset(name for names in _BY_KIND.values() for name in names)
_MANY_CALLS = 0.02
"""Where a larger share of the training rows call tools, models that can call one are tried besides."""
SECONDS_PER_ROW = 0.005
"""What an embedded candidate takes, as long as none of this trainer's has been trained here."""


def build(config: Config, name: str, models: Path, wait: Callable[[float], None] = time.sleep) -> Trainer:
    """The trainer that the config has under this name; `wait` may end its waiting with `Stopped`.

    Raises:
        ConfigError: a trainer of unknown kind, or options that are wrong.
    """
    section: TrainerConfig = config.trainers[name]
    provider = config.providers.get(section.provider or "")
    settings = TrainerSettings(
        models=models,
        upstream=section.provider or "",
        base_url=provider.base_url if provider else "",
        api_key=config.key(section.provider or ""),
        options=dict(section.options),
        poll_seconds=section.poll_seconds,
        prices=section.prices,
        wait=wait,
    )
    return trainers.build(section.kind, settings)


def problems(config: Config, file: Path) -> list[Problem]:
    """What is wrong with the trainers of a config, with the lines of its file."""
    found = []
    for name, section in config.trainers.items():
        try:
            build(config, name, config.store.home / "models")
            expanded(section.sweep or ())
        except (ConfigError, ValueError) as error:
            found.append(problem_at(file, ["trainers", name], str(error)))
    return found


# --- which candidates ------------------------------------------------------------------------------------


def sweep_of(config: Config, dataset: Dataset, models: Path) -> Sweep:
    """The candidates that the task's policy asks for. A trainer with a sweep of its own in the config gives all of
    it; of the others' default sweeps, ten candidates at most, by turns.

    Raises:
        ConfigError: a trainer of unknown kind.
    """
    names = config.policy(dataset.task).trainers or _suitable(config, dataset)
    own = {n: expanded(grid) for n in names if (grid := config.trainers[n].sweep) is not None}
    usual = fair_share({n: build(config, n, models).candidates(dataset) for n in names if n not in own})
    return {name: own.get(name, usual.get(name, [])) for name in names}


def _suitable(config: Config, dataset: Dataset) -> tuple[str, ...]:
    wanted = _BY_KIND.get(dataset.card.get("kind", "classification"), ())
    calls = sum(row.split == "train" for row in dataset.calls)
    if not wanted or calls > _MANY_CALLS * dataset.count("train"):
        wanted += tuple(name for name in config.trainers if name not in _EMBEDDED)
    return tuple(name for name in wanted if name in config.trainers) or ("classifier",)


def sweep_in(file: Path, config: Config) -> Sweep:
    """The candidates of a YAML file.

    Raises:
        TaskError: it cannot be read, or names a trainer that the config does not have.
    """
    try:
        sweep = by_trainer(yaml.safe_load(file.read_bytes()))
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(f"{file}: {reason}; write it like 'classifier: [{{features: word}}]'") from error
    for name in sweep:
        if name not in config.trainers:
            raise TaskError(f"{file}: no trainer {name!r}; the config has {', '.join(config.trainers)}")
    return sweep


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


def is_remote(config: Config, finetune: FineTune) -> bool:
    """Whether the candidate trains at a provider, for hours perhaps, and not on this machine."""
    return config.trainers[finetune.trainer].provider is not None


# --- what they take --------------------------------------------------------------------------------------


def budget_of(config: Config, task: str, usd: float | None = None, hours: float | None = None) -> Budget:
    """The budget of a sweep: what is asked for now, else what the task's policy says."""
    policy = config.policy(task)
    return Budget(
        usd=policy.budget_usd if usd is None else usd, hours=policy.budget_hours if hours is None else hours
    )


def estimated(
    store: SqliteStore, config: Config, dataset: Dataset, planned: Sequence[FineTune], models: Path
) -> list[FineTune]:
    """The candidates as they stand in the store, and what each is expected to take, noted there."""
    wanted = {finetune.id for finetune in planned}
    ready = [one for one in store.finetunes("dataset = ?", [dataset.id]) if one.id in wanted]
    speeds = {name: _seconds_per_row(store, name) for name in {one.trainer for one in ready}}
    for at, one in enumerate(ready):
        if one.state is FineTuneState.CREATED:
            estimate = _estimate(config, dataset, one, models, speeds[one.trainer])
            ready[at] = one.but(metrics=one.metrics | estimate.metrics())
            # Only this column: another process may be starting it.
            store.change("finetunes", one.id, metrics=json.dumps(ready[at].metrics))
    return ready


def _estimate(
    config: Config, dataset: Dataset, finetune: FineTune, models: Path, seconds_per_row: float | None
) -> Estimate:
    trainer = build(config, finetune.trainer, models)
    remote = is_remote(config, finetune)
    said = (
        trainer.estimate(finetune.options, dataset)
        if isinstance(trainer, Estimating)
        else Estimate(usd=None if remote else 0.0)
    )
    if said.hours is not None or (remote and seconds_per_row is None):
        return said
    seconds = (SECONDS_PER_ROW if seconds_per_row is None else seconds_per_row) * dataset.count("train")
    return Estimate(usd=said.usd, tokens=said.tokens, hours=seconds / 3600)


def _seconds_per_row(store: SqliteStore, trainer: str) -> float | None:
    """What this trainer has taken so far, in the median; rows are of the dataset that was trained on."""
    rows = {row["id"]: row["train_rows"] for row in store.rows("datasets")}
    took = [
        seconds / rows[one.dataset]
        for one in store.finetunes("trainer = ? AND state = 'succeeded'", [trainer])
        if (seconds := one.metrics.get("train_seconds", one.metrics.get("training_seconds")))
        and rows.get(one.dataset)
    ]  # fmt: skip
    return statistics.median(took) if took else None
