"""Which template a request belongs to, and in which word and sentence people learn why not."""

from __future__ import annotations

import gc
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import chat, pattern

from gateway.domain.matching import CODES, MAX_CANDIDATES, TemplateIndex, reason, why_not
from gateway.domain.pattern import TextPattern, find
from gateway.domain.prefixes import Prefixes
from gateway.domain.template import PromptTemplate, Slot

LETTER = PromptTemplate(
    "letter",
    1,
    (
        pattern("system", "You answer letters to a newspaper."),
        pattern("user", "Letter: ", "\nTone: ", "\nAnswer it.", slots=(Slot("letter", limit=40), Slot("tone"))),
    ),
)
TALK = PromptTemplate("talk", 1, (pattern("system", "You are the guide of a museum."),), turns=True)
SYSTEM = ("system", "You answer letters to a newspaper.")


def asked(letter: str, tone: str = "kind") -> tuple[str, str]:
    return "user", f"Letter: {letter}\nTone: {tone}\nAnswer it."


WHY: list[tuple[str, dict[str, Any], str]] = [
    ("unreadable", {"messages": []}, "no messages"),
    ("unreadable", {"messages": ["Letter: rain"]}, "not an object"),
    ("tools", chat(SYSTEM, asked("rain"), tools=[{"type": "function"}]), "tools"),
    ("tools", chat(SYSTEM, asked("rain"), response_format={"type": "json_object"}), "response format"),
    ("messages", chat(SYSTEM), "1 messages, the template 2"),
    ("messages", chat(SYSTEM, asked("rain"), ("user", "and quickly")), "3 messages"),
    ("messages", chat(SYSTEM, ("assistant", "Letter: rain")), "Message 2 is not a user message"),
    ("literal", chat(("system", SYSTEM[1] + " Be brief."), asked("rain")), "message 1 (system)"),
    ("literal", chat(SYSTEM, ("user", "letter: rain\nTone: kind\nAnswer it.")), "expected 'Letter: '"),
    ("literal", chat(SYSTEM, ("user", "Letter: rain\nTone: kind\nAnswer it. Now.")), "does not end"),
    ("literal", chat(SYSTEM, ("user", "Letter: rain\nMood: kind\nAnswer it.")), "is missing"),
    ("slot", chat(SYSTEM, asked("rain " * 10)), "`letter` is unlike all"),
    ("too_large", chat(SYSTEM, asked("rain " * 200_000)), "characters"),
    ("too_large", chat(*[SYSTEM] * 1001), "1000 messages"),
    ("ambiguous", chat(SYSTEM, asked("is\nTone: a word?")), "more than one way"),
]


@pytest.mark.parametrize(("code", "body", "said"), WHY)
def test_what_does_not_match_has_one_code_and_a_sentence(code: str, body: dict[str, Any], said: str) -> None:
    found = reason(LETTER, body)
    assert LETTER.strip(body) is None
    assert found is not None
    assert (found.code, said in found.sentence) == (code, True)
    assert why_not(LETTER, body) == found.sentence


def test_a_conversation_without_a_turn_of_its_own_leaves_nothing_to_send() -> None:
    body = chat(("system", "You are the guide of a museum."))
    found = reason(TALK, body)
    assert TALK.strip(body) is None
    assert found is not None
    assert found.code == "messages"


def test_a_request_that_matches_has_no_reason_and_every_code_is_told_of_here() -> None:
    assert reason(LETTER, chat(SYSTEM, asked("rain"))) is None
    assert why_not(LETTER, chat(SYSTEM, asked("rain"))) == ""
    of_an_index = {"unknown", "crowded"}
    assert set(CODES) == {code for code, _, _ in WHY} | of_an_index | {"rebuild"}


def test_a_text_that_is_not_the_fixed_text_is_told_by_where_it_parts() -> None:
    body = chat(("system", "You answer letters to a magazine."), asked("rain"))
    assert "ends at character 24: expected 'newspaper.', found 'magazine.'" in why_not(LETTER, body)


def test_an_index_tells_why_the_nearest_template_does_not_match() -> None:
    index = TemplateIndex([LETTER, TALK])
    far, near = chat(("user", "Letter: rain")), chat(SYSTEM, asked("rain " * 10))
    assert [found.code for body in (far, near) if (found := index.reason(body))] == ["unknown", "slot"]
    assert index.reason(chat(SYSTEM, asked("rain"))) is None


def test_only_so_many_templates_are_tried_and_the_reason_says_so() -> None:
    # They differ only in the middle, where no request is looked up: the last one would match.
    some = [
        PromptTemplate(f"t{i}", 1, (pattern("user", "Translate this: ", f"\nInto language {i:03}: ", ""),))
        for i in range(3 * MAX_CANDIDATES)
    ]
    body = chat(("user", f"Translate this: rain\nInto language {len(some) - 1:03}: "))
    assert some[-1].strip(body) is not None
    assert TemplateIndex(some[-MAX_CANDIDATES:]).match(body) is not None
    assert TemplateIndex(some).match(body) is None
    found = TemplateIndex(some).reason(body)
    assert found is not None
    assert found.code == "crowded"


@pytest.mark.parametrize("at", [0, 1, 2, 499, 998])
def test_where_a_long_fixed_text_ends_is_found_whatever_its_place(at: int) -> None:
    fixed = "the end. " * 111
    prompt = PromptTemplate("long", 1, (pattern("user", fixed),))
    found = reason(prompt, chat(("user", fixed[:at] + "#" + fixed[at + 1 :])))
    assert found is not None
    assert f"ends at character {at}: expected {fixed[at : at + 40]!r}, found '#" in found.sentence


few = st.text(alphabet="ab", max_size=6)


@given(st.lists(few, max_size=12), few, st.booleans())
def test_the_tree_finds_just_the_texts_that_a_text_begins_or_ends_with(
    texts: list[str], text: str, ending: bool
) -> None:
    found = Prefixes(((one, 1 << i) for i, one in enumerate(texts)), ending=ending).find(text)
    fits = text.endswith if ending else text.startswith
    assert found == sum(1 << i for i, one in enumerate(texts) if fits(one))


@given(
    st.text("ab-", min_size=1, max_size=30), st.text("ab-", max_size=200), st.integers(0, 200), st.integers(0, 200)
)
def test_a_piece_is_found_where_str_find_finds_it(piece: str, text: str, start: int, end: int) -> None:
    for one in (piece, piece * 10):
        assert find(one, text, start, end) == text.find(one, start, end)


def steps(index: TemplateIndex, body: dict[str, Any]) -> int:
    """How many functions, also those written in C, are called to match."""
    count = 0

    def seen(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    index.match(body)  # what is worked out once
    gc.disable()
    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        index.match(body)
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


ALIKE = [
    PromptTemplate(f"t{i}", 1, (pattern("user", "Read: ", f"\nTone {i}: ", "\nPlace: ", "\nAnswer it."),))
    for i in range(200)
] + [LETTER, TALK]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["\nTone 7: ", "\nTone: ", "\nPlace: ", "Letter: ", "\nTone", "x", "-" * 40]), max_size=6
    )
)
def test_no_text_makes_more_steps_however_long_it_is(pieces: list[str]) -> None:
    index = TemplateIndex(ALIKE)
    for frame in ("Read: {}\nAnswer it.", "Letter: {}\nAnswer it."):
        short, long = (
            [SYSTEM] * frame.startswith("Letter") + [("user", frame.format("".join(pieces) * times))]
            for times in (2, 200)
        )
        assert steps(index, chat(*long)) <= steps(index, chat(*short)) + 10
        assert steps(index, chat(*long)) < 60 * MAX_CANDIDATES


def test_each_turn_more_costs_the_same() -> None:
    index = TemplateIndex(ALIKE)
    spent = [
        steps(index, chat(("system", "You are the guide of a museum."), *[("user", "hm")] * n))
        for n in (200, 400, 800)
    ]
    assert spent[2] - spent[1] <= 2.1 * (spent[1] - spent[0])


def test_a_ruler_of_dashes_is_not_searched_again_and_again() -> None:
    ruler = "-" * 40 + "\nTone\n" + "-" * 40
    field = TextPattern(("Read: ", ruler, ""), (Slot("over"), Slot("under")))
    assert field.cut("Read: a" + ruler + "b") == ("a", "b")
    assert field.cut("Read: " + "-" * 5000) is None


def test_json_parts_of_many_arrays_are_not_read_to_their_end() -> None:
    part = {"type": "x", "deep": [[]] * 600}
    body = {"messages": [{"role": "user", "content": [part] * 1000}]}
    found = reason(LETTER, body)
    assert found is not None
    assert found.code == "too_large"
    assert steps(TemplateIndex(ALIKE), body) < 100
