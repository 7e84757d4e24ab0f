"""Tokens, their features and the chain, checked against what a person can count and every path that there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tagging import Chain, Floats, Tokens, features, known_phrases, pattern_of, phrase, segments


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
    count = table.shape[1]
    none = np.zeros(1, dtype=np.int64)
    chain = Chain(tuple("abc"[:count]), {}, none, none[:0], np.zeros(0), steps)
    path, each, together = chain.best(table)
    scores = {
        way: table[range(len(way)), way].sum() + sum(steps[a, b] for a, b in itertools.pairwise(way))
        for way in itertools.product(range(count), repeat=len(table))
    }
    total = sum(np.exp(score) for score in scores.values())
    assert scores[tuple(path)] == pytest.approx(max(scores.values()))
    assert together == pytest.approx(np.exp(max(scores.values())) / total)
    for place, tag in enumerate(path):
        own = sum(np.exp(score) for way, score in scores.items() if way[place] == tag)
        assert each[place] == pytest.approx(own / total)


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
