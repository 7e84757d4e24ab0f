"""Tokens of texts, counted by a vocabulary that lies on this machine: a base model's, or tiktoken's.

Nothing is downloaded: where there is none, tokens are estimated.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gateway.config import Config, TrainerConfig

_USUAL = "o200k_base"
_CACHED = {
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
"""The names of tiktoken's files in its cache: without the file, it would fetch it."""


class Tokenizer(NamedTuple):
    """How many tokens each text is; `name` says whose."""

    name: str
    counts: Callable[[Sequence[str]], list[int]]


def tokenizer_of(config: Config, task: str) -> Tokenizer | None:
    """The tokenizer of the first base model of the task's trainers that lies here, else tiktoken's for those
    models; None where neither can be read."""
    wanted = config.policy(task).trainers
    trainers = [one for name, one in config.trainers.items() if wanted is None or name in wanted]
    models = list(dict.fromkeys(model for one in trainers for model in base_models(one)))
    own = (_own(model) for model in models)
    return next((found for found in own if found), None) or _tiktoken(models)


def base_models(trainer: TrainerConfig) -> Iterator[str]:
    """The base models that a trainer's settings name."""
    grids = trainer.sweep if isinstance(trainer.sweep, tuple) else (trainer.sweep or {},)
    for settings in (trainer.options, *grids):
        for key in ("base_models", "base_model"):
            named = settings.get(key, ())
            yield from (str(one) for one in ([named] if isinstance(named, str) else named))


def _own(model: str) -> Tokenizer | None:
    """That of a folder, or of a hub name whose files have been fetched before."""
    library, file = _imported("tokenizers"), _file(model)
    if library is None or file is None:
        return None
    try:
        found = library.Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - a damaged file: the library has no error of its own
        return None
    found.no_truncation()

    def counts(texts: Sequence[str]) -> list[int]:
        return [len(one.ids) for one in found.encode_batch(list(texts), add_special_tokens=False)]

    return Tokenizer(f"the tokenizer of {model}", counts)


def _file(model: str) -> Path | None:
    """Where `tokenizer.json` of a folder or of a hub name is."""
    hub = _imported("huggingface_hub")
    try:
        if (file := Path(model) / "tokenizer.json").is_file():
            return file
        cached = hub.try_to_load_from_cache(model, "tokenizer.json") if hub else None
    except (OSError, ValueError):  # no name of a file, or none of the hub
        return None
    return Path(cached) if isinstance(cached, str) else None


def _tiktoken(models: Sequence[str]) -> Tokenizer | None:
    """The encoding of the first model that tiktoken knows, else the newest models'; if its file was fetched."""
    library = _imported("tiktoken")
    if library is None:
        return None
    name = next((found for model in models if (found := _encoding(library, model))), _USUAL)
    usual = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", str(usual)))
    if not cache or not (Path(cache) / _CACHED.get(name, "none")).is_file():
        return None
    encoding = library.get_encoding(name)

    def counts(texts: Sequence[str]) -> list[int]:
        return [len(tokens) for tokens in encoding.encode_ordinary_batch(list(texts))]

    return Tokenizer(f"tiktoken, {name}", counts)


def _encoding(library: Any, model: str) -> str | None:
    try:
        return str(library.encoding_name_for_model(model))
    except KeyError:
        return None


def _imported(name: str) -> Any:
    """A package that need not be there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
