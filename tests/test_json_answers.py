"""What a teacher writes is written again byte for byte: order of keys, spaces, missing keys, nulls, fences."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.json_answers import AnswerForm, Field, Shape, Spelling, shaped, values_of

NAME, DAY, WHEN = Field(keys=("name",), shape="copy"), Field(keys=("day",), shape="copy"), ("when", "hour")


def test_a_key_without_a_value_is_left_out_or_null_as_the_teacher_has_it() -> None:
    form = AnswerForm(
        fields=(NAME, Field(keys=("day",), shape="copy", absent="null"), Field(keys=("v",), absent="2"))
    )
    assert form.write({0: "Ann"}, {}) == '{"name": "Ann", "day": null, "v": 2}'
    assert form.write({1: "Monday"}, {}) == '{"day": "Monday", "v": 2}'


def test_an_object_without_values_is_left_out_unless_it_is_always_there() -> None:
    hour = Field(keys=WHEN, shape="copy")
    assert AnswerForm(fields=(NAME, hour)).write({0: "Ann"}, {}) == '{"name": "Ann"}'
    kept = AnswerForm(fields=(Field(keys=("when",), absent="{}"), hour, NAME))
    assert kept.write({2: "Ann"}, {}) == '{"when": {}, "name": "Ann"}'
    assert kept.write({1: "5"}, {}) == '{"when": {"hour": "5"}}'
    null = AnswerForm(fields=(Field(keys=("when",), absent="null"), hour))
    assert null.write({}, {}) == '{"when": null}'
    assert null.write({1: "5"}, {}) == '{"when": {"hour": "5"}}'


def test_keys_may_follow_the_text() -> None:
    form = AnswerForm(fields=(NAME, DAY, Field(keys=("kind",), chosen=True)), by_text=True)
    written = form.write({0: "Ann", 1: "Monday", 2: "visit"}, {0: 30, 1: 4})
    assert written == '{"kind": "visit", "day": "Monday", "name": "Ann"}'


@pytest.mark.parametrize(
    ("spelling", "written"),
    [
        (Spelling(), '{"name": "Zo\\u00eb"}'),
        (Spelling(ascii=False, comma=",", colon=":"), '{"name":"Zoë"}'),
        (Spelling(ascii=False, indent=1, comma=","), '{\n "name": "Zoë"\n}'),
        (Spelling(before="```json\n", after="\n```"), '```json\n{"name": "Zo\\u00eb"}\n```'),
    ],
)
def test_the_signs_around_and_between_are_the_teachers(spelling: Spelling, written: str) -> None:
    assert AnswerForm(fields=(NAME,), spelling=spelling).write({0: "Zoë"}, {}) == written


@pytest.mark.parametrize(
    ("piece", "shape", "value"),
    [
        ("New york", "copy", "New york"),
        ("New york", "lower", "new york"),
        ("New york", "upper", "NEW YORK"),
        ("New york", "title", "New York"),
        ("12", "number", 12),
        ("2.5", "number", 2.5),
        ("twelve", "number", None),
        ("true", "number", None),
        ("007", "number", None),
    ],
)
def test_a_piece_of_text_takes_the_shape_of_its_field(piece: str, shape: Shape, value: object) -> None:
    assert shaped(piece, shape) == value


_ANSWERS = st.recursive(
    st.none() | st.text() | st.integers() | st.lists(st.text(), max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, min_size=1, max_size=4),
    max_leaves=12,
).map(lambda value: value if isinstance(value, dict) else {"one": value})


@given(_ANSWERS)
def test_any_answer_is_made_again_of_its_values(answer: dict[str, Any]) -> None:
    values = values_of(answer)
    form = AnswerForm(fields=tuple(Field(keys=keys, shape="copy") for keys in values))
    assert form.write(dict(enumerate(values.values())), {}) == json.dumps(answer)
