"""What stands between two slots: prompt, or what values share by chance."""

from __future__ import annotations

import json
import random

import pytest

from gateway.pipeline.literals import field_cut, field_literals

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


def test_what_separates_a_date_or_a_number_from_the_next_value_may_be_in_that_value_too() -> None:
    rng = random.Random(4)
    talks = [". ".join(value(rng, 4) for _ in range(2 + i % 3)) + " for the day" * (i % 3) for i in range(30)]
    dated = [f"Today is 2026-03-{rng.randint(10, 30)}.{talk}\nAnswer:" for talk in talks]
    assert field_cut(dated) == (["Today is ", ".", "\nAnswer:"], ["date", "text"])
    numbered = [f"Answer issue #{rng.randint(1, 99)} for the {talk} team." for talk in talks]
    assert field_cut(numbered) == (["Answer issue #", " for the ", " team."], ["number", "text"])


def test_lines_behind_a_date_are_the_next_value_however_many_they_are() -> None:
    rng = random.Random(6)
    logs = ["\n".join(value(rng, 4) for _ in range(1 + i % 4)) for i in range(20)]
    dated = [f"Logs.\nDate: 2026-03-{rng.randint(10, 30)}\n{log}\nSummary:" for log in logs]
    assert field_cut(dated) == (["Logs.\nDate: ", "\n", "\nSummary:"], ["date", "text"])


def test_today_may_be_said_twice() -> None:
    prompt = "Today's date is 2026-03-01. Town: {}\nAssume that the date is 2026-03-01."
    assert field_cut(filled(prompt, 12)).types == ["date", "text", "date"]
    examples = "The date is 2026-03-01 in: tea\nThe date is 2025-12-31 in: fog\nNow: {}"
    assert field_cut(filled(examples, 12)).types == ["text"]


def test_an_indentation_says_no_more_than_a_blank() -> None:
    prompt = "## Plan\n{}\n\n## Task\n{}\n\n## Code\n{}\n\nGo."
    rng = random.Random(8)
    plain = [value(rng, 5) for _ in range(12)]
    looped = [f"{value(rng, 5)}\n        if {value(rng, 5)}" for _ in range(12)]
    code = [(a, b) if n % 2 else (b, a) for n, (a, b) in enumerate(zip(plain, looped, strict=True))]
    asked = [prompt.format(first, value(rng, 5), second) for first, second in code]
    assert field_literals(asked) == prompt.split("{}")


def test_an_address_is_one_value() -> None:
    rng = random.Random(7)
    names = [value(rng, 3).replace(" ", ".") for _ in range(20)]
    asked = [f"Who is {name}@example.{rng.choice(WORDS)}, please?\nAnswer:" for name in names]
    assert field_literals(asked) == ["Who is ", ", please?\nAnswer:"]
    sites = [f"Open {rng.choice(['http', 'ftp', 'https'])}://{name} now.\nAnswer:" for name in names]
    assert field_literals(sites) == ["Open ", " now.\nAnswer:"]
    prompt = 'In XML: <a name="{}"href="https://{}">, please.\nAnswer:'
    assert field_literals([prompt.format(name, f"{name}/x") for name in names])[1] == '"href="https://'


def test_objects_with_the_same_keys_are_one_value_each() -> None:
    rng = random.Random(11)
    towns = [
        {"name": value(rng, 4), "sights": {value(rng, 4): value(rng, 4) for _ in range(1 + n % 3)}, "tags": [n]}
        for n in range(12)
    ]
    asked = [f"The guest lives here: {json.dumps(town, indent=1)}. Be brief." for town in towns]
    assert field_literals(asked) == ["The guest lives here: ", ". Be brief."]


def test_an_object_that_the_prompt_writes_is_prompt() -> None:
    prompt = '{{"text": "{}", "language": "{}", "{}": 1}}. Answer in JSON.'
    rng = random.Random(12)
    asked = [prompt.format(value(rng, 5), value(rng, 2), value(rng, 3)) for _ in range(20)]
    assert field_literals(asked) == ['{"text": "', '", "language": "', '", "', '": 1}. Answer in JSON.']


def test_items_that_a_prompt_writes_alike_are_told_by_their_order() -> None:
    prompt = "Rate both.\n### Question: {}\n### {}: {}\n### {}: {}\nThe better one is:"
    assert field_literals(filled(prompt, 20)) == prompt.split("{}")
    listed = [f"Rate all.\n{'### '.join(value(random.Random(i), 9).split())}\nBest:" for i in range(20)]
    assert field_literals(listed) == ["Rate all.\n", "\nBest:"]  # as many items as the app has, not always as many


def test_a_word_that_all_texts_hold_as_often_is_the_language() -> None:
    dice = random.Random(9)
    told = [" ".join(f"{value(dice, 2)} the {value(dice, 2)}" for _ in range(4)) for _ in range(20)]
    assert field_literals([f"Sum up.\n{text}\nSummary:" for text in told]) == ["Sum up.\n", "\nSummary:"]


def test_a_number_in_a_first_item_does_not_part_a_list() -> None:
    rng = random.Random(5)
    turns = [
        [f"Pupil: {rng.randint(1, 99)}\n\nTutor: {value(rng, 4)}\n" for _ in range(3 + i % 3)] for i in range(12)
    ]
    texts = [f"Sum up.\n\n{chr(10).join(some)}\n\nSummary:" for some in turns]
    assert not any("Tutor" in literal for literal in field_literals(texts))


def test_signs_that_any_sentence_holds_and_a_subject_in_common_are_the_values() -> None:
    rng = random.Random(2)
    sentences = [f"{value(rng, 4)}, {value(rng, 4)}" for _ in range(10)]
    assert field_literals([f"Translate: {s}\nGerman:" for s in sentences]) == ["Translate: ", "\nGerman:"]
    about = [f"{value(rng, 4)} insurance {value(rng, 4)}" for _ in range(10)]
    assert field_literals([f"Question: {a}\nAnswer:" for a in about]) == ["Question: ", "\nAnswer:"]


def test_words_of_a_sentence_that_values_say_alike_are_theirs() -> None:
    rng = random.Random(5)
    polite = ["Could", "Can", "Would", "Could"]
    tickets = [f"{value(rng, 6)}. {polite[i % 4]} you {value(rng, 6)}{'?!'[i % 2]}" for i in range(20)]
    assert field_literals([f"Ticket: {ticket}\nReply:" for ticket in tickets]) == ["Ticket: ", "\nReply:"]
    joined = [f"Choose: {value(rng, 6)} or {value(rng, 6)}\nChoice:" for _ in range(20)]
    assert field_literals(joined) == ["Choose: ", " or ", "\nChoice:"]


def test_a_separator_that_values_hold_too_is_left_to_them() -> None:
    prompt = "Look at both texts and compare them.\n\n{}\n{}\n\nWhich is it?"
    rng = random.Random(3)
    texts = [prompt.format("\n".join(value(rng, 3) for _ in range(1 + i % 3)), value(rng, 3)) for i in range(12)]
    assert field_literals(texts) == [prompt[: prompt.index("{}")], "\n\nWhich is it?"]


def test_signs_alone_make_no_prompt() -> None:
    assert field_literals(filled("{}\n\n{}", 20)) == ["", ""]
