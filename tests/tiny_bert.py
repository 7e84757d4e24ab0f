"""A sentence encoder of a few numbers, in the files of a real one: what stands in for an installed embedding."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from gateway.embeddings.tensors import Floats

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "where",
    "is",
    "my",
    "card",
    "##s",
    "##board",
    "?",
    "un",
    "##able",
    "é",
]


def write_tensors(path: Path, tensors: dict[str, Floats], dtype: str = "F32") -> None:
    """A safetensors file, as its README says."""
    header, body = dict[str, object](), b""
    for name, tensor in tensors.items():
        data = tensor.astype("<f4" if dtype == "F32" else "<f2").tobytes()
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)


def tiny_bert(folder: Path, size: int = 8, wide: int = 16, layers: int = 2) -> Path:
    """The files of an encoder with 2 heads and random weights."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Floats:
        return rng.normal(size=shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": drawn(len(PIECES), size),
        "embeddings.position_embeddings.weight": drawn(512, size),
        "embeddings.token_type_embeddings.weight": drawn(2, size),
    }
    norms = ["embeddings"]
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        shapes = {"attention.self.query": (size, size), "attention.self.key": (size, size)}
        shapes |= {"attention.self.value": (size, size), "attention.output.dense": (size, size)}
        shapes |= {"intermediate.dense": (wide, size), "output.dense": (size, wide)}
        for name, (rows, columns) in shapes.items():
            tensors |= {f"{at}.{name}.weight": drawn(rows, columns), f"{at}.{name}.bias": drawn(rows)}
        norms += [f"{at}.attention.output", f"{at}.output"]
    for name in norms:
        tensors |= {f"{name}.LayerNorm.weight": drawn(size), f"{name}.LayerNorm.bias": drawn(size)}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "vocab.txt").write_text("\n".join(PIECES), "utf-8")
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers, "num_attention_heads": 2}))
    return folder
