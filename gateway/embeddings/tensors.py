"""Reads safetensors files: named arrays behind a JSON header, and no code (its README is the specification)."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_TYPES = {"F16": "<f2", "F32": "<f4"}


class _Tensor(msgspec.Struct, frozen=True):
    dtype: Literal["F16", "F32"]
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


def read_tensors(path: Path) -> dict[str, Floats]:
    """The floating-point arrays of a file, by name, as 32-bit numbers; those of integers are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or is cut short.
    """
    blob = path.read_bytes()
    if len(blob) < 8 or (size := struct.unpack_from("<Q", blob)[0]) > len(blob) - 8:
        raise ValueError("no safetensors file")
    header: dict[str, Any] = json.loads(blob[8 : 8 + size])
    body = memoryview(blob)[8 + size :]
    return {
        name: _array(msgspec.convert(about, _Tensor), body)
        for name, about in header.items()
        if name != "__metadata__" and about.get("dtype") in _TYPES
    }


def _array(tensor: _Tensor, body: memoryview) -> Floats:
    start, end = tensor.data_offsets
    numbers = np.frombuffer(body[start:end], dtype=_TYPES[tensor.dtype])
    return numbers.reshape(tensor.shape).astype(np.float32)
