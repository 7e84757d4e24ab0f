"""What a candidate and the trainer may set, and where a training's files are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from gateway.domain.dataset import Dataset
from gateway.errors import ConfigError

Count = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Output = Literal["adapter", "merged"]
Serve = Literal["vllm", "local", "by_hand"]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate.

    `base_model` is a folder, a GGUF file or a hub name. `epoch` says whose epoch's adapter the candidate is (0: the
    last one's): candidates that differ in it alone are trained together, once. `alpha` 0 stands for twice the
    `rank`. Rows of more than `max_tokens` are left out. `output` `merged` also writes the whole model, for a server
    that takes no adapters.
    """

    base_model: Annotated[str, Meta(min_length=1)]
    n_epochs: Annotated[int, Meta(ge=1, le=50)] = 3
    epoch: Annotated[int, Meta(ge=0, le=50)] = 0
    learning_rate: Rate = 5e-4
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 8
    rank: Annotated[int, Meta(ge=1, le=512)] = 16
    alpha: Annotated[int, Meta(ge=0)] = 0
    max_tokens: Annotated[int, Meta(ge=16)] = 2048
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    output: Output = "adapter"

    @property
    def taken(self) -> int:
        """The epoch, counted from 1, whose adapter this candidate is."""
        return self.epoch or self.n_epochs


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer's `options` in the config: the default candidates, where they are trained, how they are served.

    Candidates are every combination of the lists, each epoch of each training one of them. `python` is the
    interpreter that has the packages of `unprompt[trl]`, by default the gateway's own. `threads` 0: one less than
    there are cores. With `serve: local` the worker runs llama.cpp for the base model `gguf` (by default the base
    model itself, if it is such a file); with `vllm` adapters are loaded into a running server, which sees the
    folder of models as `adapters_at`; with `by_hand` you load them.
    """

    base_models: tuple[str, ...] = ()
    learning_rates: tuple[Rate, ...] = (5e-4, 2e-4)
    n_epochs: Annotated[int, Meta(ge=1, le=50)] = 4
    batch_size: Annotated[int, Meta(ge=1, le=1024)] = 8
    rank: Annotated[int, Meta(ge=1, le=512)] = 16
    alpha: Annotated[int, Meta(ge=0)] = 0
    max_tokens: Annotated[int, Meta(ge=16)] = 2048
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    output: Output = "adapter"
    python: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Meta(ge=0)] = 0
    checkpoint_seconds: Annotated[float, Meta(gt=0)] = 300.0
    serve: Serve = "vllm"
    adapters_at: str = ""
    gguf: str = ""
    context: Count = 4096


T = TypeVar("T", Options, Settings)


def checked(values: dict[str, Any], kind: type[T]) -> T:
    """The options as `kind`.

    Raises:
        ConfigError: a key is not known, is missing or has a value out of range; says which are valid.
    """
    valid = kind.__struct_fields__
    if unknown := sorted(values.keys() - set(valid)):
        raise ConfigError(f"trainer kind 'trl': unknown option {unknown[0]!r}; valid: {', '.join(valid)}")
    try:
        found = msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"trainer kind 'trl': {error}") from None
    if isinstance(found, Options) and found.epoch > found.n_epochs:
        raise ConfigError(f"trainer kind 'trl': epoch {found.epoch} of a training of {found.n_epochs}")
    return found


def training_name(dataset: Dataset, options: Options) -> str:
    """`<task>-<8 hex digits>`, the folder of one training: what is trained on what, whatever epoch is taken."""
    trained = msgspec.structs.replace(options, epoch=0, output="adapter")
    text = json.dumps([dataset.id, dataset.digest, msgspec.to_builtins(trained)], sort_keys=True)
    task = re.sub(r"[^A-Za-z0-9_-]+", "-", dataset.task).strip("-") or "task"
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def model_name(training: str, options: Options) -> str:
    """The name under which the candidate is served: its training and its epoch."""
    return f"{training}-e{options.taken}"


def adapter_folder(models: Path, model: str) -> Path | None:
    """Where the adapter of a served model is, below the folder of models; None for a name that is none of ours."""
    found = re.fullmatch(r"([A-Za-z0-9_-]+-[0-9a-f]{8})-e([0-9]+)", model)
    return models / found[1] / f"epoch-{found[2]}" if found else None
