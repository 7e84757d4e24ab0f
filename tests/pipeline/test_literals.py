"""What stands between two slots: prompt, or what values share by chance."""

from __future__ import annotations

import random

import pytest

from gateway.pipeline.literals import field_literals

WORDS = ["tea", "map", "sea", "day", "red", "fog", "ice", "oak", "sun", "owl", "ash", "elm", "fig", "gem", "hut"]


def value(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(2, words)))


def filled(prompt: str, count: int, words: int = 6) -> list[str]:
    """Requests of a prompt whose slots `{}` hold a few random words each."""
    rng = random.Random(prompt)
    return [prompt.format(*(value(rng, words) for _ in range(prompt.count("{}")))) for _ in range(count)]


@pytest.mark.parametrize("count", [6, 20])
@pytest.mark.parametrize(
    "prompt",
    [
        "Which is better?\n- {}\n- {}\n\nAnswer:",
        "Summary so far of {}:\n{}\n\nGo on from there.",
        "The page has the link [{}]({}) on it. Is that so?",
        "Read all of it.\n---------------------\n{}\n---------------------\n{}",
    ],
)
def test_mark_up_between_two_slots_is_prompt(prompt: str, count: int) -> None:
    assert field_literals(filled(prompt, count)) == prompt.split("{}")


def test_what_follows_a_number_or_a_date_is_prompt_however_little_it_says() -> None:
    rng = random.Random(1)
    dated = [f"Today is 2026-03-{rng.randint(10, 30)}. {value(rng, 5)}\nAnswer:" for _ in range(12)]
    assert field_literals(dated) == ["Today is ", ". ", "\nAnswer:"]
    ranged = [f"Give a number between {rng.randint(1, 99)} and {rng.randint(100, 999)}." for _ in range(8)]
    assert field_literals(ranged) == ["Give a number between ", " and ", "."]


def test_signs_that_any_sentence_holds_and_a_subject_in_common_are_the_values() -> None:
    rng = random.Random(2)
    sentences = [f"{value(rng, 4)}, {value(rng, 4)}" for _ in range(10)]
    assert field_literals([f"Translate: {s}\nGerman:" for s in sentences]) == ["Translate: ", "\nGerman:"]
    about = [f"{value(rng, 4)} insurance {value(rng, 4)}" for _ in range(10)]
    assert field_literals([f"Question: {a}\nAnswer:" for a in about]) == ["Question: ", "\nAnswer:"]


def test_a_separator_that_values_hold_too_is_left_to_them() -> None:
    prompt = "Look at both texts and compare them.\n\n{}\n{}\n\nWhich is it?"
    rng = random.Random(3)
    texts = [prompt.format("\n".join(value(rng, 3) for _ in range(1 + i % 3)), value(rng, 3)) for i in range(12)]
    assert field_literals(texts) == [prompt[: prompt.index("{}")], "\n\nWhich is it?"]


def test_signs_alone_make_no_prompt() -> None:
    assert field_literals(filled("{}\n\n{}", 20)) == ["", ""]
