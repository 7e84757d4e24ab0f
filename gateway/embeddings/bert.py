"""A sentence encoder of BERT's architecture (Devlin et al. 2019) in numpy, for small models as all-MiniLM-L6-v2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from gateway.embeddings.tensors import Floats, read_tensors
from gateway.embeddings.wordpiece import WordPieces

MOST_PIECES = 128
"""What such models were trained on; a longer text is read at its beginning."""
_TOGETHER = 4096  # pieces in one pass of the network


class _Shape(msgspec.Struct, frozen=True):
    """What is read of `config.json`."""

    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-12


class _Layer(NamedTuple):
    """One block of the network: queries, keys and values in one matrix; matrices are (inputs, outputs)."""

    qkv: Floats
    qkv_bias: Floats
    out: Floats
    out_bias: Floats
    norm: tuple[Floats, Floats]
    wide: Floats
    wide_bias: Floats
    narrow: Floats
    narrow_bias: Floats
    last_norm: tuple[Floats, Floats]


class BertEncoder:
    """From texts to the mean of their pieces' last hidden states, of length 1."""

    def __init__(self, tokenize: WordPieces, tensors: Mapping[str, Floats], shape: _Shape) -> None:
        self._tokenize, self._heads, self._epsilon = tokenize, shape.num_attention_heads, shape.layer_norm_eps
        self._pieces = tensors["embeddings.word_embeddings.weight"]
        places = tensors["embeddings.position_embeddings.weight"]
        self._places = places[:MOST_PIECES] + tensors["embeddings.token_type_embeddings.weight"][0]
        self._norm = _norm(tensors, "embeddings")
        self._layers = [_layer(tensors, f"encoder.layer.{n}.") for n in range(shape.num_hidden_layers)]
        self._threads = ThreadpoolController()
        self.dimensions = self._pieces.shape[1]

    @classmethod
    def read(cls, folder: Path) -> BertEncoder:
        """From a folder with `config.json`, `vocab.txt` and `model.safetensors`.

        Raises:
            OSError, ValueError, KeyError: a file is missing, damaged, or of another architecture.
        """
        shape = msgspec.convert(json.loads((folder / "config.json").read_bytes()), _Shape)
        tokenize = WordPieces.read(folder / "vocab.txt", MOST_PIECES)
        return cls(tokenize, read_tensors(folder / "model.safetensors"), shape)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(texts, dimensions). Texts of one length go through the network together, so none is padded."""
        pieces = [self._tokenize(text) for text in texts]
        found = np.empty((len(texts), self.dimensions), dtype=np.float32)
        by_length: dict[int, list[int]] = {}
        for number, one in enumerate(pieces):
            by_length.setdefault(len(one), []).append(number)
        with self._threads.limit(limits=1):  # on busy cores, threads that wait for each other take seconds
            for length, numbers in by_length.items():
                step = max(1, _TOGETHER // length)
                for start in range(0, len(numbers), step):
                    part = numbers[start : start + step]
                    found[part] = self._encode(np.array([pieces[n] for n in part]))
        return found

    def _encode(self, pieces: NDArray[np.int64]) -> Floats:
        texts, length = pieces.shape
        states = self._pieces[pieces] + self._places[:length]
        states = _normalised(states.reshape(texts * length, -1), self._norm, self._epsilon)
        for layer in self._layers:
            states = self._block(states, layer, texts)
        means: Floats = states.reshape(texts, length, -1).mean(axis=1)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return means

    def _block(self, states: Floats, layer: _Layer, texts: int) -> Floats:
        attended = self._attend(states @ layer.qkv + layer.qkv_bias, texts) @ layer.out + layer.out_bias
        states = _normalised(states + attended, layer.norm, self._epsilon)
        widened = gelu(states @ layer.wide + layer.wide_bias) @ layer.narrow + layer.narrow_bias
        return _normalised(states + widened, layer.last_norm, self._epsilon)

    def _attend(self, qkv: Floats, texts: int) -> Floats:
        """Scaled dot-product attention (Vaswani et al. 2017), each head by itself."""
        parts = qkv.reshape(texts, -1, 3, self._heads, self.dimensions // self._heads).transpose(2, 0, 3, 1, 4)
        queries, keys, values = parts
        scores = queries @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(queries.shape[-1]))
        np.exp(scores - scores.max(axis=-1, keepdims=True), out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed: Floats = (scores @ values).transpose(0, 2, 1, 3).reshape(-1, self.dimensions)
        return mixed


def gelu(x: Floats) -> Floats:
    """x times the normal distribution's share below it (Hendrycks and Gimpel 2016), good to 1e-6.

    erf by Abramowitz and Stegun 1964, formula 7.1.26.
    """
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.float32(1.061405429) * t
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(term)) * t
    below = np.exp(-z * z) * series  # 1 - erf(z)
    found: Floats = x * np.where(x > 0, 1 - below / 2, below / 2)
    return found


def _normalised(states: Floats, norm: tuple[Floats, Floats], epsilon: float) -> Floats:
    centred = states - states.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", centred, centred)[:, None] / centred.shape[1]
    centred /= np.sqrt(variance + np.float32(epsilon))
    found: Floats = centred * norm[0] + norm[1]
    return found


def _norm(tensors: Mapping[str, Floats], name: str) -> tuple[Floats, Floats]:
    return tensors[f"{name}.LayerNorm.weight"], tensors[f"{name}.LayerNorm.bias"]


def _layer(tensors: Mapping[str, Floats], at: str) -> _Layer:
    def matrix(name: str) -> Floats:
        return np.ascontiguousarray(tensors[f"{at}{name}.weight"].T)

    own = [f"attention.self.{name}" for name in ("query", "key", "value")]
    return _Layer(
        qkv=np.ascontiguousarray(np.concatenate([matrix(name) for name in own], axis=1)),
        qkv_bias=np.concatenate([tensors[f"{at}{name}.bias"] for name in own]),
        out=matrix("attention.output.dense"),
        out_bias=tensors[f"{at}attention.output.dense.bias"],
        norm=_norm(tensors, f"{at}attention.output"),
        wide=matrix("intermediate.dense"),
        wide_bias=tensors[f"{at}intermediate.dense.bias"],
        narrow=matrix("output.dense"),
        narrow_bias=tensors[f"{at}output.dense.bias"],
        last_norm=_norm(tensors, f"{at}output"),
    )
