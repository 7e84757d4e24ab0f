"""Bodies too large to be parsed at once are searched piece by piece, with the parser's own result."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.providers import RequestFacts, huge
from gateway.providers.huge import RequestScanner


def facts_of(body: bytes, cuts: list[int]) -> RequestFacts:
    scanner = RequestScanner()
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in pairwise(places):
        scanner.feed(body[start:end])
    return scanner.close()


def parsed(body: bytes) -> RequestFacts:
    read = json.loads(body)
    model = read.get("model")
    return RequestFacts(model if isinstance(model, str) else None, read.get("stream") is True)


KEYS = st.sampled_from(["model", "stream", "messages", "content", '"model":"x"', "\\", 'a\\"stream', "é", "[", "}"])
SCALARS = st.none() | st.booleans() | st.integers(0, 9) | KEYS | st.text(max_size=5).filter(str.isprintable)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=25
)
PAIRS = st.lists(st.tuples(KEYS, JSON), max_size=6)


def text_of(pairs: list[tuple[str, Any]], indent: Any, ascii_only: bool, separators: tuple[str, str]) -> bytes:
    """An object whose keys may stand twice."""
    comma, colon = separators

    def dump(value: Any) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only, separators=separators)

    return ("{" + comma.join(f"{dump(key)}{colon}{dump(value)}" for key, value in pairs) + "}").encode()


@given(
    PAIRS, st.sampled_from([None, 2]), st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), ("\n,", " :\t")]),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([(4, 1, 8), (16, 40, 60), (1 << 14, 1 << 18, 1 << 10)]),
)  # fmt: skip
@settings(max_examples=2000, deadline=None)
def test_the_scanner_finds_what_the_parser_finds(
    pairs: list[tuple[str, Any]], indent: Any, ascii_only: bool, separators: tuple[str, str], cuts: list[int],
    sizes: tuple[int, int, int],
) -> None:  # fmt: skip
    """Whatever the order, nesting, spaces and cuts; small sizes make every part of a body a middle."""
    body = text_of(pairs, indent, ascii_only, separators)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_FRONT", "_SLICE", "_VALUE"), (sizes[0], sizes[1], max(sizes[2], 40)), strict=True):
            patch.setattr(huge, name, size)
        assert facts_of(body, cuts) == parsed(body)
        assert facts_of(body, list(range(len(body)))) == parsed(body)


@given(st.binary(max_size=200) | st.text(alphabet='"\\{}[]:model,stream ').map(str.encode), st.integers(0, 200))
def test_what_is_no_json_never_raises(body: bytes, cut: int) -> None:
    found = facts_of(body, [cut])
    assert isinstance(found.streamed, bool)


TURN = {"role": "user", "content": 'say "model": "gpt-0", \\ and "stream": true'}


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "stream": True, "messages": [TURN] * 3000},
        {"messages": [TURN] * 3000, "model": "m", "stream": True},
        {"messages": [TURN] * 3000, "metadata": {"model": "inner", "stream": False}},
        {"messages": [TURN] * 3000, "tools": [{"model": "inner"}], "more": [TURN] * 3000, "model": "m"},
        {"model": "first", "messages": [{"content": "A" * 1_000_000}], "stream": True},
        {"messages": [{"content": "A" * 1_000_000, "model": "inner"}]},
    ],
)
def test_a_large_body_with_the_keys_anywhere(body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    assert facts_of(data, list(range(0, len(data), 65_536))) == parsed(data)
    assert facts_of(data, []) == parsed(data)
