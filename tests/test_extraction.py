"""The extraction student as a file and as something that answers: small ones, written down by hand."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.extraction import MAX_TOKENS, SIGNS, Extractor, written
from gateway.json_answers import AnswerForm, Field
from gateway.student import ModelFileError
from gateway.tagging import Chain, Segment, Tokens

FORM = AnswerForm(
    fields=(Field(keys=("people",), shape="number", absent="null"), Field(keys=("names",), shape="copy", many=True))
)
GUESTS = Tokens.of("4 or 5 for Ann and Bob")


def hand_made(weight: float = 9.0) -> Extractor:
    """A student that takes every number for `people` and every capital word for a name."""
    names = {"any": 0, "m=Xx+": 1, "m=d": 2}
    chain = Chain(
        tags=("B-1", "I-0", "O"),
        names=names,
        starts=np.array([0, 1, 2, 3]),
        cells=np.array([2, 0, 1]),
        weights=np.array([1.0, weight, weight]),
        steps=np.zeros((3, 3)),
    )
    return Extractor(FORM, (chain, chain), (), {"ann": ("1",)}, (1.0,) + (0.0,) * (len(SIGNS) - 1), (0.06, 0.5))


def test_values_are_read_out_of_a_text_and_written_as_json() -> None:
    assert hand_made().predict("a table for 4, Ann and Bob").label == '{"people": 4, "names": ["Ann", "Bob"]}'
    assert hand_made().predict("a table").label == '{"people": null}'
    assert hand_made().predict("").label == '{"people": null}'


def test_of_two_values_for_one_field_the_surer_one_is_written() -> None:
    found = [Segment(0, 0, 1, 0.6), Segment(0, 5, 6, 0.9)]
    assert written(FORM, GUESTS, found, {}) == ('{"people": 5}', 1)


def test_what_cannot_take_its_fields_shape_is_left_out_and_counted() -> None:
    assert written(FORM, GUESTS, [Segment(0, 2, 4, 0.9)], {}) == ('{"people": null}', 1)


def test_a_chosen_value_is_written_as_it_was_chosen() -> None:
    form = AnswerForm(fields=(Field(keys=("urgent",), chosen=True), *FORM.fields))
    assert written(form, GUESTS, [], {0: True})[0] == '{"urgent": true, "people": null}'


def test_a_text_unlike_all_it_knows_and_one_that_is_too_long_have_no_support() -> None:
    assert hand_made().predict("4").support > 0.01
    assert hand_made().predict("anything else that it has never seen").support == 0.0
    assert hand_made().predict("4 " * (MAX_TOKENS + 1)).support == 0.0


def test_a_file_holds_the_whole_student() -> None:
    student = hand_made()
    again = Extractor.from_bytes(student.to_bytes())
    assert again.to_bytes() == student.to_bytes()
    for text in ("a table for 4, Ann and Bob", "", "x"):
        assert again.predict(text) == student.predict(text)


@given(st.data())
@settings(max_examples=200)
def test_an_altered_or_shortened_file_is_refused(data: st.DataObject) -> None:
    blob = hand_made().to_bytes()
    place = data.draw(st.integers(0, len(blob) - 1))
    altered = blob[:place] + bytes([blob[place] ^ data.draw(st.integers(1, 255))]) + blob[place + 1 :]
    with pytest.raises(ModelFileError):
        Extractor.from_bytes(blob[:place])
    if altered[:46] == blob[:46] or place < 42:  # the header's length alone is not in the checksum
        with pytest.raises(ModelFileError):
            Extractor.from_bytes(altered)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tags": ["B-1", "I-7", "O"]}, "fields are missing"),
        ({"chains": [[3, 3, 89]]}, "bytes announced"),
        ({"chains": [[3, 3, 70], [3, 3, 108]]}, "bytes of numbers announced"),
        ({"sureness": [1.0]}, "coefficients expected"),
        ({"chains": []}, "length >= 1"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_even_with_a_right_checksum(
    change: dict[str, object], reason: str
) -> None:
    blob = hand_made().to_bytes()
    size = int.from_bytes(blob[42:46], "little")
    head = json.dumps(json.loads(blob[46 : 46 + size]) | change).encode()
    body = head + blob[46 + size :]
    forged = blob[:10] + hashlib.sha256(body).digest() + len(head).to_bytes(4, "little") + body
    with pytest.raises(ModelFileError, match=reason):
        Extractor.from_bytes(forged)


@given(st.text())
def test_any_text_gets_an_answer_that_is_json(text: str) -> None:
    prediction = hand_made().predict(text)
    assert isinstance(json.loads(prediction.label), dict)
    assert 0 <= prediction.probability <= 1
    assert 0 <= prediction.support <= 1
