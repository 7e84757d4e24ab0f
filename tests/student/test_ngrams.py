from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.student import FeatureSpec, ngrams, word_pairs


def test_a_pair_is_the_same_in_whichever_order_its_words_stand() -> None:
    assert word_pairs(["top", "up", "failed"], 8) == ["top up", "failed up", "failed top"]
    assert sorted(word_pairs(["failed", "up", "top"], 8)) == sorted(word_pairs(["top", "up", "failed"], 8))


@pytest.mark.parametrize(
    ("apart", "pairs"),
    [(1, ["a b", "b c", "c d"]), (2, ["a b", "b c", "c d", "a c", "b d"]), (0, [])],
)
def test_words_further_apart_make_no_pair(apart: int, pairs: list[str]) -> None:
    assert word_pairs(["a", "b", ",", "c", "d"], apart) == pairs


def test_a_word_makes_no_pair_with_itself() -> None:
    assert word_pairs(["no", "no", "way"], 8) == ["no way", "no way"]


def test_words_cut_short_are_the_same_whatever_their_ending() -> None:
    spec = FeatureSpec(word_max=1, word_letters=5, pairs=8, char_max=0)
    assert ngrams("Cards declined", spec)[0] == ["cards", "decli", "cards decli"]
    assert ngrams("declines cards", spec)[0][2] == ngrams("Cards declined", spec)[0][2]


@given(st.lists(st.sampled_from(["a", "b", "c", "."]), max_size=40), st.integers(1, 8))
def test_there_are_at_most_so_many_pairs_as_words_times_the_distance(tokens: list[str], apart: int) -> None:
    pairs = word_pairs(tokens, apart)
    assert len(pairs) <= len(tokens) * apart
    assert all(first < second for first, second in (pair.split(" ") for pair in pairs))
