"""Files of labels: JSON lines or CSV in, each bad line named by number and reason; the review queue out.

A line names an exchange (`exchange_id`) or an input (`input`, exactly as the queue shows it), and says `label`,
`corrected_output`, `score` or `comment`. A line that says nothing is passed over, and so are the other columns of
an exported queue: a file may go out, be filled in here and there, and come back.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Container, Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from gateway.domain.feedback import GIVEN, Feedback
from gateway.errors import DatasetError
from gateway.pipeline.review import Doubt

Cells = dict[str, Any]
SHOWN = ("answer", "answers", "worth", "why", "candidate", "confidence")
"""Columns of an exported queue that only inform."""
COLUMNS = ("exchange_id", "input", *SHOWN, *GIVEN)
_MOST_BYTES = 256 * 1024 * 1024


class Reason(StrEnum):
    """Why a line is bad. The list is closed."""

    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    NOT_CSV = "not_csv"
    UNKNOWN_COLUMN = "unknown_column"
    NAMES_NOTHING = "names_nothing"
    BAD_VALUE = "bad_value"
    UNKNOWN_EXCHANGE = "unknown_exchange"
    UNKNOWN_INPUT = "unknown_input"
    CONFLICT = "conflict"


class BadLine(DatasetError):
    """A line that cannot be taken; `line` counts from 1, a CSV file's header included."""

    def __init__(self, line: int, reason: Reason, detail: str) -> None:
        super().__init__(f"line {line}: {reason}: {detail}")
        self.line, self.reason, self.detail = line, reason, detail


class Labels(msgspec.Struct, frozen=True):
    """What a file says: the remarks, how many lines say nothing, and the bad lines."""

    remarks: list[Feedback]
    silent: int
    bad: list[BadLine]


def read_labels(content: bytes, *, is_csv: bool, ids: Container[str], find: Callable[[str], str | None]) -> Labels:
    """The remarks in a file on a task's exchanges, which are `ids`; `find` gives the newest of them with an input.

    Raises:
        DatasetError: it is too large.
    """
    if len(content) > _MOST_BYTES:
        raise DatasetError(f"the file has {len(content):,} bytes; {_MOST_BYTES:,} are taken at most")
    remarks: dict[str, tuple[int, Feedback]] = {}
    silent, bad = 0, list[BadLine]()
    for line, cells in (_csv_lines if is_csv else _json_lines)(content):
        try:
            remark = _remark(line, cells, ids, find)
            if remark is None:
                silent += 1
                continue
            before = remarks.setdefault(remark.exchange_id, (line, remark))
            if before[1] != remark:
                raise BadLine(line, Reason.CONFLICT, f"line {before[0]} says something else of the same answer")
        except BadLine as error:
            bad.append(error)
    return Labels([remark for _, remark in remarks.values()], silent, bad)


def _json_lines(content: bytes) -> Iterator[tuple[int, Cells | BadLine]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = msgspec.json.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield number, BadLine(number, Reason.NOT_JSON, str(error))
            continue
        if isinstance(cells, dict):
            yield number, cells
        else:
            yield number, BadLine(number, Reason.NOT_OBJECT, "a line is a JSON object")


def _csv_lines(content: bytes) -> Iterator[tuple[int, Cells | BadLine]]:
    try:
        text = content.decode("utf-8-sig")  # spreadsheets put a mark in front
    except UnicodeDecodeError as error:
        yield 1, BadLine(1, Reason.NOT_CSV, f"the file is no UTF-8 text ({error})")
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        columns = reader.fieldnames
        while columns:
            number = reader.line_num + 1  # a cell may hold several lines: the first of them
            row = next(reader, None)
            if row is None:
                return
            if None in row:
                yield number, BadLine(number, Reason.NOT_CSV, "more cells than the header has columns")
            else:
                yield number, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        yield number, BadLine(number, Reason.NOT_CSV, str(error))


def _remark(
    line: int, cells: Cells | BadLine, ids: Container[str], find: Callable[[str], str | None]
) -> Feedback | None:
    """What the line says; None where it says nothing."""
    if isinstance(cells, BadLine):
        raise cells
    if unknown := sorted(cells.keys() - set(COLUMNS)):
        raise BadLine(line, Reason.UNKNOWN_COLUMN, f"{unknown[0]!r}; known: {', '.join(COLUMNS)}")
    says = {name: cells[name] for name in GIVEN if cells.get(name) not in (None, "")}
    if not says:
        return None
    try:
        says |= {"score": float(says["score"])} if isinstance(says.get("score"), str) else {}
        return msgspec.convert({"exchange_id": _named(line, cells, ids, find)} | says, Feedback)
    except ValueError as error:  # a ValidationError is one
        raise BadLine(line, Reason.BAD_VALUE, str(error)) from None


def _named(line: int, cells: Cells, ids: Container[str], find: Callable[[str], str | None]) -> str:
    """The exchange that the line is about."""
    name, text = (cells.get(key) or "" for key in ("exchange_id", "input"))
    if not isinstance(name, str) or not isinstance(text, str):
        raise BadLine(line, Reason.BAD_VALUE, "exchange_id and input are texts")
    if name:
        if name not in ids:
            raise BadLine(line, Reason.UNKNOWN_EXCHANGE, f"no exchange {name!r} is recorded of this task")
        return name
    if not text:
        raise BadLine(line, Reason.NAMES_NOTHING, "give exchange_id or input")
    found = find(text)
    if found is None:
        raise BadLine(line, Reason.UNKNOWN_INPUT, "no recorded request of the task has this input")
    return found


# --- the queue as a file ---------------------------------------------------------------------------------


def write_queue(doubts: Iterable[Doubt], *, as_csv: bool) -> bytes:
    """The queue as a file with an empty `label` to fill in."""
    rows = [_cells(doubt) for doubt in doubts]
    if not as_csv:
        return b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["exchange_id", "input", *SHOWN, "label"])
    writer.writeheader()
    for row in rows:
        flat = {"answers": json.dumps(row["answers"], ensure_ascii=False), "why": ", ".join(row["why"])}
        writer.writerow(row | flat)
    return text.getvalue().encode("utf-8", "replace")


def _cells(doubt: Doubt) -> Cells:
    opinion = doubt.opinion
    return {
        "exchange_id": doubt.exchange_id, "input": doubt.input, "answer": doubt.answer, "answers": doubt.answers,
        "worth": doubt.worth, "why": list(doubt.why), "candidate": opinion.answer if opinion else None,
        "confidence": round(opinion.confidence, 4) if opinion else None, "label": "",
    }  # fmt: skip
