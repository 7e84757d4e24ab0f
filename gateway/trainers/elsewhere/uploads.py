"""What is sent: files that have been checked, under names that are found again."""

from __future__ import annotations

import re
from pathlib import Path

from gateway import formats
from gateway.domain.dataset import Dataset
from gateway.errors import DatasetError
from gateway.formats import Format, InvalidRow


def checked_files(dataset: Dataset, form: Format) -> dict[str, Path]:
    """What is to be uploaded; validation only where there is any.

    Raises:
        DatasetError: a file is missing, or not fit for training.
    """
    files = {part: Path(dataset.directory) / f"{part}.jsonl" for part in ("train", "validation")}
    if not files["train"].is_file():
        raise DatasetError(f"{files['train'].name} is missing in {dataset.directory}")
    check_jsonl(files["train"], form, least=form.least_rows)
    if not files["validation"].is_file() or check_jsonl(files["validation"], form, least=0) == 0:
        del files["validation"]
    return files


def check_jsonl(path: Path, form: Format, *, least: int) -> int:
    """The number of rows of a chat JSONL file, each of which has been found fit for training.

    Raises:
        DatasetError: names the file, the line and the reason.
    """
    if form.most_bytes is not None and (size := path.stat().st_size) > form.most_bytes:
        raise DatasetError(f"{path.name} has {size:,} bytes; the service takes {form.most_bytes:,} at most")
    rows = 0
    with path.open("rb") as lines:
        for rows, line in enumerate(lines, start=1):
            try:
                formats.check_line(form, line)
            except InvalidRow as invalid:
                raise DatasetError(f"{path.name} line {rows}: {invalid}") from None
    if rows < least:
        raise DatasetError(f"{path.name} has {rows} rows; the service takes no fewer than {least}")
    return rows


def file_name(dataset: Dataset, part: str) -> str:
    """The name by which an upload is found again: it holds the digest of the dataset."""
    return f"unprompt-{re.sub(r'[^0-9A-Za-z]', '', dataset.digest)[:64]}-{part}.jsonl"


def job_suffix(name: str, finetune_id: str, most: int = 64) -> str:
    """At most so many of `a-z0-9-`, ending in our id, so that the tuned model's name shows where it is from."""
    name, own = (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") for text in (name, finetune_id))
    own = own[-most:]
    return f"{name[: max(0, most - 1 - len(own))]}-{own}".strip("-")
