"""A dataset's rows in the format of a consumer: only valid ones, and why the others are left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway import formats
from gateway.domain.dataset import Dataset, Row
from gateway.errors import DatasetError, StoreError
from gateway.files import write_whole
from gateway.formats import Example, Format, Written
from gateway.pipeline.dataset import tools_of
from gateway.pipeline.preferences import preferences
from gateway.pipeline.scrub import scrub
from gateway.stores.sqlite import SqliteStore


class Formatted(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. `rows` by part of the dataset, `left_out` by reason; `sha256` of each file."""

    format: str
    dataset: str
    directory: str
    rows: dict[str, int]
    left_out: dict[str, int]
    sha256: dict[str, str]


def write_format(store: SqliteStore, data: Dataset, name: str, folder: Path) -> Formatted:
    """Write a dataset below `folder`: a JSONL file for each of its parts, `left_out.jsonl` with the exchanges that
    have no valid row and why, and `format.json` with the counts. Same dataset and labels, same bytes.

    Raises:
        DatasetError: no such format, or fewer rows than its consumer takes.
        StoreError: the files could not be written.
    """
    form = formats.load(name)
    made = {part: formats.written(form, examples) for part, examples in _parts(store, data, name).items()}
    _check_size(form, made, data)
    found = Formatted(
        format=name, dataset=data.id, directory=str(folder),
        rows={part: len(each.lines) for part, each in made.items()},
        left_out=dict(Counter(invalid.reason.value for each in made.values() for _, invalid in each.left_out)),
        sha256={part: hashlib.sha256(b"".join(each.lines)).hexdigest() for part, each in made.items()},
    )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, each in made.items():
            write_whole(folder / f"{part}.jsonl", b"".join(each.lines))
        write_whole(folder / "left_out.jsonl", b"".join(_left_out(made)))
        about = msgspec.to_builtins(found) | {"directory": folder.name}  # the same bytes wherever it stands
        write_whole(folder / "format.json", json.dumps(about, indent=1).encode() + b"\n")
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror}; check the disk and its permissions") from error
    return found


def _parts(store: SqliteStore, data: Dataset, name: str) -> dict[str, list[Example]]:
    """The examples of each part; of preference formats, the pairs."""
    tools = _tools(store, data)
    found: list[tuple[Row, str | None]] = [(row, None) for row in (*data.rows, *data.calls)]
    if name == "dpo":
        found = [(row, clean) for row, worse in preferences(store, data) if (clean := _scrubbed(worse, data))]
    parts: dict[str, list[Example]] = {"train": [], "validation": []}
    for row, worse in found:
        parts.setdefault(row.split, []).append(example_of(row, tools, worse))
    return parts


def _scrubbed(worse: str, data: Dataset) -> str:
    """The worse answer, which stands in no row, as clean as the dataset's rows; "" where it must be dropped."""
    policy, counts = data.card.get("scrub", "off"), Counter[str]()
    clean = worse if policy == "off" else scrub(worse, counts)
    return "" if counts and policy == "drop" else clean


def example_of(row: Row, tools: list[dict[str, Any]], worse: str | None = None) -> Example:
    """A row with the tools that the task's requests declare, and an answer that is worse than its own."""
    return Example(
        id=row.exchange_id, text=row.text, messages=row.messages, answer=_answer(row), tools=tools,
        worse=None if worse is None else _said(worse),
    )  # fmt: skip


def _answer(row: Row) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": row.tool_calls} if row.tool_calls else _said(row.output)


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _tools(store: SqliteStore, data: Dataset) -> list[dict[str, Any]]:
    """A stripped request keeps its tools; so a row has them, too."""
    template = next((one for one in store.templates(data.task) if one.name == data.template), None)
    return tools_of(store, template) if template is not None else []


def _check_size(form: Format, made: dict[str, Written], data: Dataset) -> None:
    rows = len(made["train"].lines)
    if rows < form.least_rows:
        invalid = [str(each) for _, each in made["train"].left_out]
        why = f"; {len(invalid)} are left out, the first: {invalid[0]}" if invalid else ""
        what = "pairs: label more rows with 'unprompt label'" if form.name == "dpo" else "rows"
        raise DatasetError(
            f"{data.id} has {rows} training rows in format {form.name}, which needs {form.least_rows} {what}{why}"
        )
    size = sum(map(len, made["train"].lines))
    if form.most_bytes is not None and size > form.most_bytes:
        raise DatasetError(f"{data.id} has {size:,} bytes in format {form.name}, which takes {form.most_bytes:,}")


def _left_out(made: dict[str, Written]) -> Iterator[bytes]:
    for part, each in made.items():
        for name, invalid in each.left_out:
            row = {"exchange_id": name, "part": part, "reason": invalid.reason.value, "detail": invalid.detail}
            yield json.dumps(row).encode() + b"\n"
