"""How a teacher writes its JSON answers: which fields there are, where their values come from, how it is spelled.

An `AnswerForm` is learnt from recorded answers by `gateway.trainers.tagger`; with the values of one text it
writes that text's answer, byte for byte as the teacher would have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Keys = tuple[str, ...]
"""The keys that lead to a value, from the outside in."""
Shape = Literal["copy", "lower", "upper", "title", "number"]


class Spelling(msgspec.Struct, frozen=True, kw_only=True):
    """The signs between values, and what stands around the whole: a code fence, a line end."""

    before: str = ""
    after: str = ""
    indent: int | str | None = None
    comma: str = ", "
    colon: str = ": "
    ascii: bool = True

    def write(self, answer: Any) -> str:
        """The answer as text; `answer` is what `json.loads` gives."""
        separators = self.comma, self.colon
        body = json.dumps(answer, ensure_ascii=self.ascii, indent=self.indent, separators=separators)
        return self.before + body + self.after


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One value of the answers.

    A copied value has a `shape`: how it is made of the piece of text. A `chosen` one comes from a closed set.
    `absent` is the JSON that stands where there is no value, None where the key is left out; a field that is
    neither copied nor chosen is always absent: a constant, or an object that is there even when it is empty.
    `many` is a list of all values, in the text's order.
    """

    keys: Keys
    shape: Shape | None = None
    absent: str | None = None
    many: bool = False
    chosen: bool = False

    @property
    def name(self) -> str:
        """For people: the keys with points between them."""
        return ".".join(self.keys)


class AnswerForm(msgspec.Struct, frozen=True, kw_only=True):
    """All fields in the order in which they are written, an object's own before those inside it.

    `by_text`: copied values stand in the order in which the text has them, after all else.
    """

    fields: tuple[Field, ...]
    spelling: Spelling = Spelling()
    by_text: bool = False

    def write(self, values: Mapping[int, Any], places: Mapping[int, int]) -> str:
        """The answer with these `values`, as JSON has them, by the field's number; `places` are where in the text
        the copied ones begin."""
        answer: dict[str, Any] = {}
        order = range(len(self.fields))
        for number in sorted(order, key=lambda n: (places.get(n, -1), n)) if self.by_text else order:
            field = self.fields[number]
            if number in values:
                _put(answer, field.keys, values[number])
            elif field.absent is not None:
                _put(answer, field.keys, json.loads(field.absent))
        return self.spelling.write(answer)


def shaped(piece: str, shape: Shape) -> str | float | None:
    """The value that a piece of text stands for; None where there is none, as in a number without digits."""
    if shape == "number":
        try:
            number = json.loads(piece)
        except ValueError:
            return None
        return number if isinstance(number, int | float) and not isinstance(number, bool) else None
    if shape == "copy":
        return piece
    return piece.lower() if shape == "lower" else piece.upper() if shape == "upper" else piece.title()


def values_of(answer: Mapping[str, Any], keys: Keys = ()) -> dict[Keys, Any]:
    """The values of an answer by their keys; objects are looked into, lists are values."""
    found: dict[Keys, Any] = {}
    for key, value in answer.items():
        if isinstance(value, dict):
            found |= values_of(value, (*keys, key))
        else:
            found[(*keys, key)] = value
    return found


def _put(answer: dict[str, Any], keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(answer.get(key), dict):  # the object itself may have been absent as null
            answer[key] = {}
        answer = answer[key]
    answer[keys[-1]] = value
