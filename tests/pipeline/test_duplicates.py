"""Near duplicates: what is nearly the same is found, never on two sides, and what was decided stays decided."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.pipeline import duplicates
from gateway.pipeline.duplicates import KEPT_NEAR, NEAR, Columns, pairs_on_two_sides, runs, settle
from gateway.pipeline.examples import split_of, words_of
from gateway.pipeline.signatures import LEAST_WORDS, NUMBERS, SHINGLE, signature, similarity

WORDS = [f"{a}{b}" for a in ("lo", "ka", "mi", "ter", "su", "ban") for b in ("ra", "ne", "fol", "di", "mos", "ka")]


def letter(seed: int, size: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=size))


def with_words_changed(text: str, count: int, seed: int = 0) -> str:
    dice, words = random.Random(seed), text.split()
    for place in dice.sample(range(len(words)), count):
        words[place] = f"other{dice.randrange(1000)}"
    return " ".join(words)


def shared(one: str, two: str) -> float:
    """The share of shingles in common, counted."""
    first, second = ({*zip(*(text.split()[n:] for n in range(SHINGLE)), strict=False)} for text in (one, two))
    return len(first & second) / len(first | second)


def columns(texts: list[str], held_out: list[bool], labels: list[int] | None = None) -> Columns:
    """What the texts are once they were read, in their order."""
    signatures = [signature(words_of(text)) for text in texts]
    signed = [place for place, one in enumerate(signatures) if one is not None]
    known = [one for one in signatures if one is not None]
    numbers = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    return Columns(
        inputs=np.array([[numbers[text], 7] for text in texts], np.uint64).reshape(-1, 2),
        words=np.array([hash(words_of(text)) % 2**63 for text in texts], np.uint64),
        held_out=np.array(held_out, bool), beyond=np.zeros(len(texts), bool), calls=np.zeros(len(texts), bool),
        ranks=np.ones(len(texts), np.uint8),
        answers=np.array(labels or [0] * len(texts), np.uint64), signed=np.array(signed, np.int64),
        signatures=np.array(known, np.uint16).reshape(-1, NUMBERS),
    )  # fmt: skip


def kept(texts: list[str], held_out: list[bool]) -> list[int]:
    return [int(place) for place in settle(columns(texts, held_out)).kept]


def test_a_signature_estimates_the_share_of_shingles() -> None:
    errors = []
    for seed in range(200):
        one = letter(seed, 120)
        two = with_words_changed(one, seed % 12, seed)
        first, second = signature(one), signature(two)
        assert first is not None
        assert second is not None
        errors.append(float(similarity(first, second[None])[0]) - shared(one, two))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.05


def test_a_signature_is_the_same_in_every_release() -> None:
    """Else rows that were dropped would come back, and others go."""
    found = signature(letter(1))
    assert found is not None
    assert found[:6].tolist() == [25837, 7100, 2974, 52799, 65219, 2343]


@pytest.mark.parametrize("text", ["короткое письмо", "add two numbers", letter(1, LEAST_WORDS - 1), ""])
def test_short_inputs_have_no_signature(text: str) -> None:
    assert signature(words_of(text)) is None


def test_scripts_without_spaces_have_words_too() -> None:
    text = "先週注文した青いやかんがまだ届いていません。いつ届くのか教えていただけますでしょうか。"
    one, two = signature(words_of(text)), signature(words_of(text.replace("青い", "赤い")))
    assert one is not None
    assert two is not None
    assert float(similarity(one, two[None])[0]) > 0.6


def test_short_inputs_that_differ_in_a_word_are_all_kept() -> None:
    texts = [f"multiply {n} by three and tell me the result" for n in range(50)]
    assert kept(texts, [split_of(text) != "train" for text in texts]) == list(range(50))


def test_of_near_duplicates_a_few_are_kept() -> None:
    first = letter(1, 120)
    texts = [first, *(with_words_changed(first, 1, n) for n in range(1, 20)), letter(2, 120)]
    assert kept(texts, [False] * 21) == [*range(KEPT_NEAR), 20]
    settled = settle(columns(texts, [False] * 21))
    assert settled.dropped["near duplicate"] == 20 - KEPT_NEAR


def test_a_near_duplicate_of_an_earlier_input_on_the_other_side_is_dropped() -> None:
    first = letter(1, 120)
    texts = [first, with_words_changed(first, 1), letter(2, 120)]
    assert kept(texts, [False, True, True]) == [0, 2]
    assert kept(texts, [True, False, True]) == [0, 2]
    assert settle(columns(texts, [True, False, True])).dropped["near duplicate on the other side"] == 1


def test_an_input_that_would_join_two_sides_is_dropped_and_both_stay() -> None:
    """The first and the second share too little; the third is nearly the same as both."""
    first = letter(1, 200)
    middle = with_words_changed(first, 5, 1)
    last = with_words_changed(middle, 5, 2)
    assert shared(first, last) < NEAR - 0.03
    assert min(shared(first, middle), shared(middle, last)) > NEAR + 0.03
    assert kept([first, last, middle], [False, True, False]) == [0, 1]
    assert kept([first, last, middle], [False, True, True]) == [0, 1]
    assert kept([first, last, middle], [True, True, True]) == [0, 1, 2]


traffic = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.booleans()), min_size=1, max_size=40)
"""Letters that are variations of four, each on one side."""


@settings(max_examples=60, deadline=None)
@given(traffic, st.integers(0, 40))
def test_data_that_grows_changes_nothing_that_was_decided(made: list[tuple[int, int, bool]], cut: int) -> None:
    texts = [with_words_changed(letter(which, 120), changed, n) for n, (which, changed, _) in enumerate(made)]
    held_out = [side for _, _, side in made]
    before = {texts[place] for place in kept(texts[:cut], held_out[:cut])}
    assert {texts[place] for place in kept(texts, held_out)} & set(texts[:cut]) == before


@settings(max_examples=60, deadline=None)
@given(traffic)
def test_no_pair_that_is_nearly_the_same_is_on_two_sides(made: list[tuple[int, int, bool]]) -> None:
    texts = [with_words_changed(letter(which, 120), changed, n) for n, (which, changed, _) in enumerate(made)]
    table = columns(texts, [side for _, _, side in made])
    found = settle(table).kept
    signatures, held_out = table.signatures[found], table.held_out[found]
    by_hand = sum(
        bool(held_out[a] != held_out[b] and similarity(signatures[a], signatures[b][None])[0] >= NEAR)
        for a, b in combinations(range(len(found)), 2)
    )
    assert by_hand == 0
    assert pairs_on_two_sides(signatures, held_out) == 0


def test_the_leak_check_sees_a_leak() -> None:
    first = letter(1, 120)
    table = columns([first, with_words_changed(first, 1), letter(2, 120)], [False, True, True])
    assert pairs_on_two_sides(table.signatures, table.held_out) == 1


def test_crowds_that_share_a_band_are_compared_with_the_newest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MOST_COMPARED", 3)
    first = letter(1, 120)
    texts = [with_words_changed(first, 6, n) for n in range(40)]  # half of the shingles in common
    settled = settle(columns(texts, [False] * 40))
    assert settled.uncompared > 0
    assert len(settled.kept) == 40


def test_of_one_inputs_answers_the_majority_wins_and_the_outvoted_are_counted() -> None:
    table = columns(["one", "two", "one", "one", "two", "three"], [False] * 6, [1, 1, 2, 2, 1, 3])
    settled = settle(table)
    assert settled.kept.tolist() == [3, 4, 5]
    assert settled.seen.tolist() == [3, 2, 1]
    noise = settled.noise
    assert (noise.repeated, noise.differing, noise.answers, noise.outvoted) == (2, 1, 5, 1)


def test_the_same_words_on_the_other_side_are_dropped() -> None:
    """As where two addresses were masked by the same one."""
    assert kept(["Hi, ann!", "hi ann", "bob"], [True, False, False]) == [0, 2]


@given(st.lists(st.integers(0, 3)))
def test_runs_are_where_values_change(values: list[int]) -> None:
    starts, ends = runs(np.array(sorted(values), np.int64))
    parts = [sorted(values)[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    assert [value for part in parts for value in part] == sorted(values)
    assert [part[0] for part in parts] == sorted(set(values))
