"""Two templates: versions of one task, variants of it, or two tasks?"""

from __future__ import annotations

import pytest

from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline.versions import Use, place, revision, wording

REVIEW = "Rate the review of a hotel. Think of the staff first.\nReview: {}\nAnswer with one number."


def template(*texts: str) -> PromptTemplate:
    """One user message, its slots written as {}; with two texts the first is the system message."""
    roles = ("system", "user")[-len(texts) :]
    patterns = []
    for role, text in zip(roles, texts, strict=True):
        literals = tuple(text.split("{}"))
        patterns.append(
            MessagePattern(f"{role}\x1fs\x1f", (TextPattern(literals, tuple(Slot("x") for _ in literals[1:])),))
        )
    return PromptTemplate("", 1, tuple(patterns))


def names(*uses: Use) -> list[str]:
    return [placed.name for placed in place(uses, [])]


def side_by_side(*texts: str, settings: tuple[str, ...] = ("0", "0")) -> list[str]:
    uses = [
        Use(template(text), i, 1000.0 + i, settings={"temperature": setting})
        for i, (text, setting) in enumerate(zip(texts, settings, strict=True))
    ]
    return [name.rpartition("@")[0] for name in names(*uses)]


@pytest.mark.parametrize(
    "other",
    [
        REVIEW.replace(
            "Think of the staff first.", "Whoever complains about the price has paid too little attention."
        ),
        REVIEW.replace("Think of the staff first.", ""),
        REVIEW.replace(
            "Answer with one number.", "Give the number that a strict critic would give, without a word."
        ),
        "The hotel belongs to a chain with many houses.\n\n" + REVIEW,
        REVIEW.replace("\nAnswer", "\nSome earlier reviews by the same guest: {}\nAnswer"),
    ],
)
def test_a_sentence_changed_or_a_section_added_is_one_task_in_two_versions(other: str) -> None:
    first, second = side_by_side(REVIEW, other)
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        REVIEW.replace("hotel", "train")
        .replace("staff", "seats")
        .replace("number", "word")
        .replace("Rate", "Sum up"),
        REVIEW.replace("of a hotel", "of {}"),
        "Which city is it?\nReview: {}\nName nothing but the city, in the language of the country that it is in.",
    ],
)
def test_prompts_of_one_style_are_two_tasks(other: str) -> None:
    first, second = side_by_side(REVIEW, other)
    assert first != second


def test_a_revised_sentence_is_no_version_when_the_model_is_called_otherwise() -> None:
    other = REVIEW.replace(
        "Rate the review of a hotel. Think of the staff first.", "How much does the guest like it?"
    )
    assert len(set(side_by_side(REVIEW, other))) == 1
    assert len(set(side_by_side(REVIEW, other, settings=("0", "0.7")))) == 2


def test_less_wording_must_stay_where_one_prompt_takes_over_from_the_other() -> None:
    other = template(
        "Listen to what the guest has to say and find out how much of it is about the people who work "
        "there, for that is all we want to know.\nReview: {}\nAnswer with one number."
    )
    before, beside, after = (Use(template(REVIEW), 0, 100), Use(other, 0, 100), Use(other, 101, 200))
    assert names(before, after) == ["rate-review-hotel@1", "rate-review-hotel@2"]
    assert len({name.rpartition("@")[0] for name in names(before, beside)}) == 2


def test_a_shared_system_prompt_makes_no_versions() -> None:
    system = "You work for the city library and know every book in it. Be polite and exact, and never guess."
    one = template(system, "Who wrote this?\n\n{}\n\nAuthor:")
    two = template(system, "Translate the page below into plain English for children.\n\n{}")
    assert len({name.rpartition("@")[0] for name in names(Use(one, 0, 100), Use(two, 1, 101))}) == 2


def test_a_revision_says_what_was_there_and_what_is_there_now() -> None:
    changed = revision(wording(template("Say {} in one word now.")), wording(template("Say {} in many words now.")))
    assert changed is not None
    assert changed.passages == ((("one", "word"), ("many", "words")),)
    assert (changed.shared, changed.most) == (3, 5)
