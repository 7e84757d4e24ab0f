"""Formats of training rows. One file per consumer; the file's name is the format's.

Each file holds a pure function that writes an example as its consumer wants it, and one that checks a row by its
consumer's rules. What is written here and what comes from elsewhere is checked by the same function.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec

from gateway.errors import DatasetError

Json = dict[str, Any]

_NO_FORMATS = frozenset({"messages"})
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
"""Many programs that read lines end one at these, too; JSON leaves them as they are."""


class Reason(StrEnum):
    """Why a row is invalid. The list is closed."""

    NOT_JSON = "not_json"
    NOT_TEXT = "not_text"
    NOT_OBJECT = "not_object"
    MISSING_KEY = "missing_key"
    UNKNOWN_KEY = "unknown_key"
    WRONG_TYPE = "wrong_type"
    NO_MESSAGES = "no_messages"
    UNKNOWN_ROLE = "unknown_role"
    ROLE_ORDER = "role_order"
    MISSING_CONTENT = "missing_content"
    NO_ANSWER = "no_answer"
    EMPTY_ANSWER = "empty_answer"
    WEIGHT = "weight"
    TOOL_CALL = "tool_call"
    TOOLS = "tools"
    SPECIAL_TOKEN = "special_token"
    SAME_OUTPUTS = "same_outputs"
    NO_PAIR = "no_pair"
    TOO_LONG = "too_long"


class InvalidRow(DatasetError):
    """A row that its consumer would refuse. `line` counts from 1; 0 where the row stands in no file yet."""

    def __init__(self, reason: Reason, detail: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}: {detail}" if line else f"{reason}: {detail}")
        self.reason, self.detail, self.line = reason, detail, line


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A training row that has no format yet.

    `messages` is the stripped request as a live one is sent, `text` the same input as one string, `answer` the
    assistant's message to learn; `worse` is one that a person liked less, where there is any.
    """

    id: str
    text: str
    messages: list[Json]
    answer: Json
    tools: list[Json] = []
    worse: Json | None = None


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """How a consumer wants its rows. `write` makes one (raising `InvalidRow` for an example that has no such
    form), `check` raises `InvalidRow` for one that it would refuse; a file has `least_rows` at least."""

    name: str
    write: Callable[[Example], Json]
    check: Callable[[Json], None]
    least_rows: int = 1
    most_bytes: int | None = None


class Written(msgspec.Struct, frozen=True):
    """A file's lines in one format, and the examples that have no valid row in it."""

    lines: list[bytes]
    left_out: list[tuple[str, InvalidRow]]


def names() -> list[str]:
    """The formats that exist: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_FORMATS)


def load(name: str) -> Format:
    """The format of this name.

    Raises:
        DatasetError: there is none.
    """
    if name not in names():
        raise DatasetError(f"no format {name!r}; known: {', '.join(names())}")
    found: Format = importlib.import_module(f"{__name__}.{name}").FORMAT
    return found


def written(form: Format, examples: Iterable[Example]) -> Written:
    """Every example that has a valid row in this format, in their order, and why the others have none."""
    lines, left_out = [], []
    for example in examples:
        try:
            row = form.write(example)
            form.check(row)
            lines.append(line_of(row))
        except InvalidRow as invalid:
            left_out.append((example.id, invalid))
    return Written(lines, left_out)


def line_of(row: Json) -> bytes:
    """One line of a JSONL file, which every reader of lines sees as one.

    Raises:
        InvalidRow: it holds half a surrogate pair, which no encoding has.
    """
    try:
        return json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise InvalidRow(Reason.NOT_TEXT, str(error)) from None


def check_line(form: Format, line: bytes) -> None:
    """Check one line of a file.

    Raises:
        InvalidRow: the consumer would refuse it.
    """
    try:
        row = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidRow(Reason.NOT_JSON, str(error)) from None
    if not isinstance(row, dict):
        raise InvalidRow(Reason.NOT_OBJECT, f"a row is an object, this is {_kind(row)}")
    if b"\\ud" in line.lower():
        line_of(row)
    form.check(row)


def invalid_rows(form: Format, lines: Iterable[bytes]) -> Iterator[InvalidRow]:
    """The rows that the consumer would refuse, each with the number of its line."""
    for number, line in enumerate(lines, start=1):
        try:
            check_line(form, line)
        except InvalidRow as invalid:
            yield InvalidRow(invalid.reason, invalid.detail, number)


def keys_of(row: Json, known: frozenset[str], needed: frozenset[str], where: str) -> None:
    """Check the keys of an object.

    Raises:
        InvalidRow: one is missing, or is not known.
    """
    if missing := sorted(needed - row.keys()):
        raise InvalidRow(Reason.MISSING_KEY, f"{where} has no {missing[0]!r}")
    if unknown := sorted(row.keys() - known):
        raise InvalidRow(Reason.UNKNOWN_KEY, f"{where} has {unknown[0]!r}; known: {', '.join(sorted(known))}")


def expect(value: Any, kind: type, where: str) -> None:
    """Check what a value is.

    Raises:
        InvalidRow: it is something else.
    """
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise InvalidRow(Reason.WRONG_TYPE, f"{where} is {_kind(value)}, not {_WORDS[kind]}")


_WORDS: dict[type, str] = {
    dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"
}  # fmt: skip


def _kind(value: Any) -> str:
    return _WORDS.get(type(value), "null")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
