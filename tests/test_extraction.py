"""The extraction student as a file and as something that answers: small ones, written down by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.domain.dataset import Row
from gateway.extraction import MAX_TOKENS, NOBODYS, NOTHING, SIGNS, Choice, Extractor, Own, Usual, pattern, written
from gateway.json_answers import AnswerForm, Field
from gateway.student import EmbeddingMissing, ModelFileError
from gateway.student.wording import Wording
from gateway.tagging import Chain, Segment, Tokens
from gateway.trainers.classifier import Options, train
from gateway.upstreams.embedded import SUPPORT_FLOOR, EmbeddedModel

FORM = AnswerForm(
    fields=(Field(keys=("people",), shape="number", absent="null"), Field(keys=("names",), shape="copy", many=True))
)
GUESTS = Tokens.of("4 or 5 for Ann and Bob")


class Lengths:
    """An encoder that only knows how long a text is."""

    name, sha256, dimensions, heavy = "lengths", "0" * 64, 2, True

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        angles = np.array([len(text) for text in texts], dtype=np.float32) / 40
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


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


def test_a_classifier_inside_reads_with_its_embedding_or_the_file_is_not_loaded() -> None:
    texts = ["a dog", "a dog that barks at every door", "two dogs", "two dogs that bark at every door"] * 5
    rows = [
        Row(exchange_id=text, text=text, messages=[], output="true" if "bark" in text else "", split="train")
        for text in texts
    ]
    chooser = train(rows, Options(embedding="lengths"), Lengths()).student
    form = AnswerForm(fields=(Field(keys=("barks",), chosen=True), *FORM.fields))
    student = replace(hand_made(), form=form, choices=(Choice(0, chooser),))
    again = Extractor.from_bytes(student.to_bytes(), {"lengths": Lengths()}.get)
    assert json.loads(again.predict("a dog that barks at every door").label)["barks"] is True
    assert EmbeddedModel(again).heavy
    assert not EmbeddedModel(hand_made()).heavy
    with pytest.raises(EmbeddingMissing):
        Extractor.from_bytes(student.to_bytes())


WORDING = Wording.of([("a", "table", "please"), ("a", "table", "inside"), ("is", "there", "parking")])


def test_a_text_without_a_value_is_answered_only_where_its_words_are_known() -> None:
    """Half of the texts without a value that it was tried on were at most 1.1 strange, the others up to 2.5."""
    student = replace(hand_made(), known=(0.0,), usual=Usual(WORDING), strange=(0.5, 1.1, 1.8, 2.5))
    usual, foreign = student.read("a table inside"), student.read("my card was declined abroad")
    assert usual.empty
    assert usual.strange < 1.1 < 2.5 < foreign.strange
    assert student.support(usual) > NOTHING / 2 > SUPPORT_FLOOR
    assert student.support(foreign) == 0.0
    assert not student.read("4 of us, my card was declined").empty
    assert student.support(student.read("4 of us, my card was declined")) == 1.0  # a value was found


def test_where_no_text_without_a_value_was_learnt_none_is_answered_so() -> None:
    student = replace(hand_made(), known=(0.0,), usual=Usual(WORDING))
    assert (student.predict("a table inside").support, student.predict("a table for 4").support) == (0.0, 1.0)


def test_values_that_were_met_and_patterns_that_were_usual_are_signs() -> None:
    usual = Usual(WORDING, {pattern({1}, {}): 7, pattern({0, 1}, {}): 2, pattern(set(), {0: "true", 1: ""}): 1})
    assert usual.patterns == {"1": 7, "0 1": 2, "0=true": 1}
    student = replace(hand_made(), usual=usual)

    def signs(text: str, own: Own = NOBODYS) -> dict[str, float]:
        return dict(zip(SIGNS, student.read(text, own).signs, strict=True))

    ann = signs("a table for Ann and Bob")  # of the two, the lexicon has Ann
    assert ann["values"] == pytest.approx(np.log(3))
    assert (ann["met"], ann["new"]) == (0.5, 1)
    assert ann["pattern"] == pytest.approx(np.log(8))
    assert signs("a table for Ann and Bob", Own(pattern="1"))["pattern"] == pytest.approx(np.log(7))
    assert signs("a table for 4")["pattern"] == 0.0  # no row had people and no names
    assert signs("a table")["met"] == 1.0


def test_a_training_text_is_as_strange_as_if_it_had_not_been_learnt() -> None:
    texts = [("a", "table", "please"), ("a", "table", "inside"), ("is", "there", "parking")]
    for left_out in texts:
        others = Wording.of(text for text in texts if text is not left_out)
        assert WORDING.strangeness(left_out, left_out) == pytest.approx(others.strangeness(left_out))


@given(st.lists(st.sampled_from("abcdef"), max_size=8))
def test_a_word_never_seen_makes_a_text_stranger(words: list[str]) -> None:
    known = Wording.of([words, list("abc"), list("bcd")])
    assert 0 <= known.strangeness(words) <= known.strangeness([*words, "zebra"]) + 1e-9


def test_numbers_are_alike_signs_no_words_and_values_left_out() -> None:
    assert GUESTS.outside([Segment(1, 11, 14, 0.9), Segment(1, 19, 22, 0.9)]) == ("0", "or", "0", "for", "and")
    assert Tokens.of("7pm, ok?").outside([]) == ("0", "pm", "ok")


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
