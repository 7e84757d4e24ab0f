"""Tokens, their features and the chain, checked against what a person can count and every path that there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tagging import (
    Chain,
    Floats,
    Lattice,
    Tokens,
    agreed,
    features,
    known_phrases,
    pattern_of,
    phrase,
    segments,
)


def unknown(phrase: str) -> None:
    """A lexicon that knows nothing."""


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in Tokens.of(text).spans]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Table for 4, at 7pm!", ["Table", "for", "4", ",", "at", "7", "pm", "!"]),
        ("Emma's list", ["Emma", "'", "s", "list"]),
        ("café 東京都 привет", ["café", "東", "京", "都", "привет"]),
        ("a_b", ["a", "_", "b"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_words_numbers_and_signs_are_tokens(text: str, tokens: list[str]) -> None:
    assert cut(text) == tokens


def test_of_an_input_with_several_slots_only_the_values_are_tokens() -> None:
    tokens = Tokens.of("[asked for]\ntime\n[message]\nat [6] please")
    assert [tokens.text[start:end] for start, end in tokens.spans] == ["time", "at", "[", "6", "]", "please"]
    assert tokens.sections == ("asked for", *["message"] * 5)


def test_a_short_section_is_known_to_the_tokens_of_the_others() -> None:
    tokens = Tokens.of("[asked]\ntime\n[text]\n6")
    assert {"@asked=time", "in=text", "w=6"} <= set(features(tokens, [], unknown)[1])


def test_a_token_knows_whether_it_stands_right_against_its_neighbours() -> None:
    joined = [
        [one for one in seen if one.startswith("j=")] for seen in features(Tokens.of("7pm 7 pm"), [], unknown)
    ]
    assert joined == [["j= -"], ["j=- "], ["j=  "], ["j=  "]]


def test_what_holds_of_the_whole_text_goes_together_with_each_word() -> None:
    seen = features(Tokens.of("play Hello"), ['"PlayMusic"'], unknown)[1]
    assert {'c0="PlayMusic"', 'c0="PlayMusic"&w=hello', 'c0="PlayMusic"&-1=play'} <= set(seen)


def test_a_bare_value_that_looks_like_a_heading_has_tokens() -> None:
    assert Tokens.of("[urgent]").words == ["[", "urgent", "]"]


@given(st.text())
def test_tokens_cover_all_that_is_not_blank(text: str) -> None:
    tokens = Tokens.of(text)
    if not any(tokens.sections):
        assert "".join(text[start:end] for start, end in tokens.spans) == "".join(text.split())
    assert len(features(tokens, ["x"], unknown)) == len(tokens.spans)


def test_a_pattern_tells_kinds_of_characters() -> None:
    assert [pattern_of(word) for word in ("Paris", "USA", "123", "x", "東", "-")] == [
        "Xx+",
        "X+",
        "d+",
        "x",
        "x",
        "-",
    ]


def test_the_longest_known_phrase_counts() -> None:
    lexicon = {"new york": ("0",), "new": ("1",), "york": ("2",)}
    assert list(known_phrases(["in", "new", "york"], lexicon.get)) == [(1, 3, ("0",)), (2, 3, ("2",))]
    assert phrase("New  York!") == "new york !"


def test_tags_become_segments() -> None:
    tokens = Tokens.of("from New York to York at 5")
    tags = ["O", "I-0", "I-0", "O", "I-0", "O", "I-1"]
    found = [
        (segment.field, tokens.text[segment.start : segment.end], segment.chance)
        for segment in segments(tokens, tags, [1, 0.9, 0.8, 1, 0.7, 1, 0.6])
    ]
    assert found == [(0, "New York", 0.8), (0, "York", 0.7), (1, "5", 0.6)]


def test_a_begin_tag_parts_values_that_touch() -> None:
    tokens = Tokens.of("Ann Bob")
    assert [s.start for s in segments(tokens, ["B-0", "B-0"], [1, 1])] == [0, 4]
    assert [s.start for s in segments(tokens, ["B-0", "I-0"], [1, 1])] == [0]


_weights = st.floats(-4, 4)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """A table of scores (tokens, tags) and the weights of steps (tags, tags)."""
    tokens, tags = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    table = draw(st.lists(_weights, min_size=tokens * tags, max_size=tokens * tags))
    steps = draw(st.lists(_weights, min_size=tags * tags, max_size=tags * tags))
    return np.array(table).reshape(tokens, tags), np.array(steps).reshape(tags, tags)


@given(chains())
@settings(max_examples=200)
def test_the_best_path_and_its_probability_are_those_of_all_paths_tried_out(given_: tuple[Floats, Floats]) -> None:
    table, steps = given_
    lattice = Lattice.of(table, steps)
    scores = scores_of_all_paths(table, steps)
    total = sum(np.exp(score) for score in scores.values())
    assert scores[lattice.path] == pytest.approx(max(scores.values()))
    for path, score in scores.items():
        assert lattice.chance(path) == pytest.approx(np.exp(score) / total)
    for place, tag in itertools.product(range(table.shape[0]), range(table.shape[1])):
        own = sum(np.exp(score) for way, score in scores.items() if way[place] == tag)
        assert lattice.chances[place, tag] == pytest.approx(own / total)


def scores_of_all_paths(table: Floats, steps: Floats) -> dict[tuple[int, ...], float]:
    """Every way to tag the text, tried out."""
    return {
        way: float(table[range(len(way)), way].sum() + sum(steps[a, b] for a, b in itertools.pairwise(way)))
        for way in itertools.product(range(table.shape[1]), repeat=len(table))
    }


def voter(*odds: float) -> Lattice:
    """One token with these probabilities of its tags."""
    return Lattice.of(np.log([odds]), np.zeros((len(odds), len(odds))))


def test_of_what_each_chain_holds_likeliest_the_mean_of_all_decides() -> None:
    verdict = agreed([voter(0.6, 0.4), voter(0.1, 0.9)])
    assert verdict.path == (1,)
    assert [verdict.mean, verdict.least, *verdict.chances] == pytest.approx([0.65, 0.4, 0.65])
    alone = agreed([voter(0.6, 0.4)])
    assert alone.path == (0,)
    assert [alone.mean, alone.least] == pytest.approx([0.6, 0.6])


def test_scores_add_up_the_weights_of_the_known_features() -> None:
    chain = Chain(
        tags=("I-0", "O"),
        names={"w=a": 0, "w=b": 1},
        starts=np.array([0, 2, 3]),
        cells=np.array([0, 1, 1]),
        weights=np.array([1.0, 2.0, 5.0]),
        steps=np.zeros((2, 2)),
    )
    table, known = chain.scores([["w=a", "w=b", "new"], ["new"], []])
    assert table.tolist() == [[1.0, 7.0], [0.0, 0.0], [0.0, 0.0]]
    assert known == 0.5
