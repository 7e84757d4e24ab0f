"""Measures of answers: small cases by hand, and what must hold of any texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.pipeline.quality import (
    FieldCount,
    Likeness,
    chrf,
    confusion,
    exact,
    field_counts,
    field_f1,
    fields_f1,
    fields_of,
    is_json_object,
    macro_f1,
    same_answer,
)

leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=3), values, max_size=4)
texts = st.text(max_size=30)


# --- labels ----------------------------------------------------------------------------------------------


def test_macro_f1_counts_each_label_alike_however_rare() -> None:
    """Nine of ten `yes` right; the one `no` is answered `yes`: F1 of yes is 18/19, of no 0."""
    pairs = [("yes", "yes")] * 9 + [("no", "yes")]
    found = macro_f1(pairs)
    assert found.value == pytest.approx((18 / 19 + 0) / 2)
    assert found.low <= found.value <= found.high


def test_an_answer_that_is_no_label_is_a_miss_and_no_class_of_its_own() -> None:
    assert macro_f1([("a", "a"), ("a", "I think it is a"), ("b", "b")]).value == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1([("a", None), ("b", "b")]).value == pytest.approx(0.5)


def test_confusion_counts_pairs_without_the_blanks_around_them() -> None:
    found = confusion([("a", " a\n"), ("a", "b"), ("a", "b"), ("b", None)])
    assert found == {("a", "a"): 1, ("a", "b"): 2, ("b", ""): 1}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=30))
def test_macro_f1_is_a_share_and_1_for_all_right_alone(pairs: list[tuple[str, str | None]]) -> None:
    found = macro_f1(pairs).value
    assert 0 <= found <= 1
    assert (found == 1) == all(expected == given for expected, given in pairs)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab")), min_size=1, max_size=20))
def test_intervals_are_shares_and_the_same_each_time(pairs: list[tuple[str, str | None]]) -> None:
    found = macro_f1(pairs)
    assert 0 <= found.low <= found.high <= 1
    assert macro_f1(pairs) == found


# --- JSON ------------------------------------------------------------------------------------------------


def test_the_fields_of_a_nested_answer() -> None:
    text = json.dumps({"name": "Ada", "tags": ["x", "y"], "at": {"day": 3, "zone": None}, "none": []})
    assert fields_of(text) == {
        ("name", '"Ada"'): 1, ("tags[]", '"x"'): 1, ("tags[]", '"y"'): 1, ("at.day", "3"): 1,
        ("at.zone", "null"): 1, ("none", "[]"): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "given", "f1"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 1.0),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ('{"a": 1, "b": 2}', '{"a": 1}', 2 / 3),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 1.0),
        ("{}", "{}", 1.0),
        ("{}", "no JSON", 0.0),
        ('{"a": 1}', '"a"', 0.0),
        ('{"a": 1}', None, 0.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
    ],
)
def test_f1_of_one_answers_fields(expected: str, given: str | None, f1: float) -> None:
    assert field_f1(expected, given) == pytest.approx(f1)


def test_which_field_is_wrong_how_often_the_worst_first() -> None:
    pairs: list[tuple[str, str | None]] = [
        ('{"day": 1, "who": "a"}', '{"day": 1, "who": "b"}'),
        ('{"day": 2, "who": "c"}', '{"day": 2}'),
        ('{"day": 3}', None),
    ]
    found = field_counts(pairs)
    assert found == {"who": FieldCount(0, 2, 1), "day": FieldCount(2, 1, 0)}
    assert list(found) == ["who", "day"]
    assert found["day"].f1 == pytest.approx(0.8)
    assert fields_f1(pairs).value == pytest.approx(2 * 2 / (5 + 3))


@given(objects, objects)
def test_field_f1_is_a_share_that_does_not_care_which_side_is_which(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    first, second = json.dumps(one), json.dumps(other)
    found = field_f1(first, second)
    assert 0 <= found <= 1
    assert found == pytest.approx(field_f1(second, first))
    assert field_f1(first, json.dumps(one, indent=2, sort_keys=True)) == 1.0


@given(texts)
def test_no_text_is_too_odd_to_be_measured(text: str) -> None:
    assert 0 <= field_f1('{"a": 1}', text) <= 1
    assert is_json_object(text) in (True, False)
    assert exact(text, text) == 1.0


def test_json_that_is_nested_beyond_measure_is_no_json() -> None:
    deep = "[" * 100_000
    assert field_f1('{"a": 1}', deep) == 0.0
    assert not same_answer(deep, "{}")


# --- prose -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "given", "published"),
    [  # as sacreBLEU 2.6.0 gives them (CHRF(), sentence_score / 100)
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("the cat sat on the mat", "the cat is on the mat", 0.6192515),
        ("the cat sat on the mat", "a dog", 0.0347222),
        ("x", "xyz abc", 0.5),
        ("a", "b", 0.0),
    ],
)
def test_chrf_is_what_the_reference_implementation_gives(expected: str, given: str, published: float) -> None:
    assert chrf(expected, given) == pytest.approx(published, abs=1e-6)


@given(texts, texts)
def test_chrf_is_a_share_and_1_for_the_same_text(one: str, other: str) -> None:
    assert 0 <= chrf(one, other) <= 1
    assert chrf(one, one) == pytest.approx(1.0)
    assert chrf(one, None) == 0.0


def letters(texts: Sequence[str]) -> NDArray[Any]:
    """An embedding to which c is the contrary of a, and b something else."""
    return np.array([[text.count("a") - text.count("c"), text.count("b")] for text in texts])


@pytest.mark.parametrize(
    ("expected", "given", "near"),
    [("ab", "ab", 1.0), ("ab", "ba", 1.0), ("a", "b", 0.0), ("a", "c", 0.0), ("a", "ab", 0.5**0.5),
     ("a", None, 0.0), ("a", "", 0.0), ("", "", 1.0), ("a", "zzz", 0.0)],
)  # fmt: skip
def test_meanings_are_as_near_as_their_vectors(expected: str, given: str | None, near: float) -> None:
    assert Likeness(letters).of([(expected, given)]) == [pytest.approx(near)]


def test_no_text_is_embedded_twice_and_what_is_the_same_not_once() -> None:
    read: list[str] = []

    def encode(texts: Sequence[str]) -> NDArray[Any]:
        read.extend(texts)
        return letters(texts)

    likeness = Likeness(encode)
    likeness.of([("a", "b"), ("a", "ab"), ("abc", "abc")])
    likeness.of([("b", "a")])
    assert sorted(read) == ["a", "ab", "b"]
