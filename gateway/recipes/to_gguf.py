"""LoRA adapters and base models as files that llama.cpp serves.

`python to_gguf.py adapter FOLDER BASE.gguf OUT.gguf` writes an adapter; `python to_gguf.py base BASE.gguf OUT.gguf`
a base model whose weights are quantised in half precision, and nothing for one whose weights are plain numbers
already.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_PLAIN = frozenset({"F32", "F16", "BF16"})


def convert_adapter(folder: Path, base: Path, out: Path) -> None:
    """Write the PEFT adapter of `folder` for the base model in the GGUF file `base`.

    The file is what llama.cpp's own `convert_lora_to_gguf.py` makes: metadata of type `adapter`, and for each
    weight matrix `lora_a` (rank, inputs) and `lora_b` (outputs, rank).

    Raises:
        ValueError: a tensor that the base model does not have.
    """
    settings = json.loads((folder / "adapter_config.json").read_bytes())
    about = gguf.GGUFReader(base)
    arch = str(about.fields["general.architecture"].contents())
    heads = {side: int(about.fields[f"{arch}.attention.{key}"].contents())
             for side, key in (("q", "head_count"), ("k", "head_count_kv"))}  # fmt: skip
    known, name_of = {tensor.name for tensor in about.tensors}, tensor_names(arch, about)
    writer = gguf.GGUFWriter(out, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
    for name, weights in sorted(load_file(folder / "adapter_model.safetensors").items()):
        found = _NAME.fullmatch(name)
        target = name_of(found["module"]) if found else None
        if found is None or target is None or f"{target}.weight" not in known:
            raise ValueError(f"{folder}: the tensor {name} has no place in {base.name}")
        side = target.rpartition("_")[2]
        if arch == "llama" and found["side"] == "B" and side in heads:
            weights = interleaved(weights, heads[side])
        writer.add_tensor(f"{target}.weight.lora_{found['side'].lower()}", weights.astype(np.float32))
    finish(writer)


def tensor_names(arch: str, about: Any) -> Callable[[str], str | None]:
    """From a module's name in transformers to its name in GGUF files of this architecture."""
    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, int(about.fields[f"{arch}.block_count"].contents()))
    return lambda module: names.get_name(module)


def interleaved(weights: Any, heads: int) -> Any:
    """The rows of a query or key matrix in the order that llama.cpp's rotary embedding expects: it rotates
    neighbouring pairs, transformers the two halves of a head."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def is_plain(base: Path) -> bool:
    """Whether the weights are plain numbers, not quantised ones: an adapter is trained on top of plain ones."""
    return all(tensor.tensor_type.name in _PLAIN for tensor in gguf.GGUFReader(base).tensors)


def convert_base(base: Path, out: Path) -> None:
    """Write the model of the GGUF file `base` with weights in half precision, everything else as it is."""
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, weights if weights.ndim == 1 else weights.astype(np.float16))
    finish(writer)


def finish(writer: Any) -> None:
    """Write the file whole: a reader never sees a part under its name."""
    place = writer.path
    writer.path = partial = place.with_name(place.name + ".partial")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(place)


if __name__ == "__main__":
    what, *files = sys.argv[1], *map(Path, sys.argv[2:])
    if what == "adapter":
        convert_adapter(*files)
    elif not is_plain(files[0]):
        convert_base(*files)
