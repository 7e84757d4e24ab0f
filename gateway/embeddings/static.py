"""Static embeddings: a vector for each piece of text, and a text is the mean of its pieces; as WordLlama's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from gateway.embeddings.tensors import Floats, read_tensors

MOST_CHARS = 4000
_BLANK = "\u2581"


class StaticEncoder:
    """From texts to the mean of their pieces' vectors, of length 1 (0 for an empty text)."""

    def __init__(self, numbers: Mapping[str, int], ranks: Mapping[tuple[str, str], int], vectors: Floats) -> None:
        self._numbers, self._ranks, self._vectors = numbers, ranks, vectors
        self._pieces = lru_cache(maxsize=50_000)(self._split)
        self.dimensions = vectors.shape[1]

    @classmethod
    def read(cls, tokenizer: Path, weights: Path) -> StaticEncoder:
        """From the `tokenizer.json` of a byte-pair encoding, and a safetensors file with one matrix.

        Raises:
            OSError, ValueError, LookupError: a file is missing, damaged, or of another kind.
        """
        model = json.loads(tokenizer.read_bytes())["model"]
        pairs = (tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
        ranks = {(first, second): rank for rank, (first, second) in enumerate(pairs)}
        (vectors,) = read_tensors(weights).values()
        return cls(model["vocab"], ranks, vectors)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(texts, dimensions)."""
        found = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            words = text[:MOST_CHARS].split()
            numbers = [number for word in words for number in self._pieces(_BLANK + word)]
            if numbers:
                found[row] = self._vectors[numbers].mean(axis=0)
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found

    def _split(self, word: str) -> tuple[int, ...]:
        """Byte-pair encoding (Sennrich et al. 2016): the pair that was learnt first is joined first."""
        parts = list(word)
        while len(parts) > 1:
            rank, at = min((self._ranks.get(pair, 1 << 30), at) for at, pair in enumerate(pairwise(parts)))
            if rank == 1 << 30:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return tuple(number for part in parts for number in self._number(part))

    def _number(self, part: str) -> list[int]:
        """A piece's number; one that is not there is read as its bytes."""
        if part in self._numbers:
            return [self._numbers[part]]
        names = (f"<0x{byte:02X}>" for byte in part.encode("utf-8", "replace"))
        return [self._numbers[name] for name in names if name in self._numbers]
