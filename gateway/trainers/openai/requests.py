"""What is sent: files that have been checked, under names that are found again, and the job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gateway import formats
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune
from gateway.errors import DatasetError
from gateway.formats import InvalidRow
from gateway.trainers.openai.options import Options

OUR_ID = "unprompt_finetune"
"""The metadata key by which a job is known to be ours."""

_FORMAT = formats.load("openai")
_SUFFIX_LENGTH = 64


def checked_files(dataset: Dataset) -> dict[str, Path]:
    """What is to be uploaded; validation only where there is any."""
    files = {part: Path(dataset.directory) / f"{part}.jsonl" for part in ("train", "validation")}
    if not files["train"].is_file():
        raise DatasetError(f"{files['train'].name} is missing in {dataset.directory}")
    check_jsonl(files["train"], least=_FORMAT.least_rows)
    if not files["validation"].is_file() or check_jsonl(files["validation"], least=0) == 0:
        del files["validation"]
    return files


def check_jsonl(path: Path, *, least: int) -> int:
    """The number of rows of a chat JSONL file, each of which has been found fit for training.

    Raises:
        DatasetError: names the file, the line and the reason.
    """
    most = _FORMAT.most_bytes
    if most is not None and (size := path.stat().st_size) > most:
        raise DatasetError(f"{path.name} has {size:,} bytes; the service takes {most:,} at most")
    rows = 0
    with path.open("rb") as lines:
        for rows, line in enumerate(lines, start=1):
            try:
                formats.check_line(_FORMAT, line)
            except InvalidRow as invalid:
                raise DatasetError(f"{path.name} line {rows}: {invalid}") from None
    if rows < least:
        raise DatasetError(f"{path.name} has {rows} rows; the service takes no fewer than {least}")
    return rows


def file_name(dataset: Dataset, part: str) -> str:
    """The name by which an upload is found again: it holds the digest of the dataset."""
    return f"unprompt-{re.sub(r'[^0-9A-Za-z]', '', dataset.digest)[:64]}-{part}.jsonl"


def job_suffix(name: str, finetune_id: str) -> str:
    """At most 64 of `a-z0-9-`, ending in our id, so that the tuned model's name shows where it is from."""
    name, own = (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in (name, finetune_id))
    own = own[-_SUFFIX_LENGTH:]
    return f"{name[: max(0, _SUFFIX_LENGTH - 1 - len(own))]}-{own}".strip("-")


def job_request(finetune: FineTune, options: Options) -> dict[str, Any]:
    """The body of the request that creates the job."""
    chosen = {
        name: value
        for name in ("n_epochs", "learning_rate_multiplier", "batch_size")
        if (value := getattr(options, name)) != "auto"
    }
    body = {
        "model": options.base_model,
        "training_file": finetune.remote["train_file"],
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        "suffix": job_suffix(options.suffix or finetune.task, finetune.id),
        "metadata": {OUR_ID: finetune.id},
    }
    if "validation_file" in finetune.remote:
        body["validation_file"] = finetune.remote["validation_file"]
    return body if options.seed is None else body | {"seed": options.seed}
