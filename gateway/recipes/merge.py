"""Merge a LoRA adapter into its base model: `python merge.py BASE ADAPTER OUT` writes a folder for transformers or
vLLM.

`BASE` is a folder, a hub name or a GGUF file, whose weights are dequantised.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from peft import PeftModel
from sft import load


def main(base: str, adapter: str, out: Path) -> None:
    """The merged folder is seen whole or not at all."""
    model, tokenizer = load(base, "cpu")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    merged.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
