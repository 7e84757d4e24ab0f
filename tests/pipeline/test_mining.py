"""What texts share, and what of it is prompt: the pieces under `infer`."""

from __future__ import annotations

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.template import Slot, TextPattern
from gateway.pipeline.alignment import shared_runs, tokens
from gateway.pipeline.literals import field_literals
from gateway.pipeline.mining import Miner, cut_row

CITIES = ["Rome", "New York", "Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Bern", "Perth", "Accra"]
ASKED = ["food", "museums", "a quiet walk", "jazz, any kind", "books", "the sea", "trains", "tea", "chess", "art"]


def test_the_text_around_the_values_is_found() -> None:
    texts = [
        f"Plan a day in {city}.\nWishes: {asked}\n\nAnswer:" for city, asked in zip(CITIES, ASKED, strict=True)
    ]
    assert field_literals(texts) == ["Plan a day in ", ".\nWishes: ", "\n\nAnswer:"]


def test_a_word_that_few_values_happen_to_share_is_given_back_to_them() -> None:
    texts = [f"Message: Yes {rest}\nAnswer:" for rest in ("please", "I do, twice", "tomorrow", "or no")]
    assert field_literals(texts) == ["Message: ", "\nAnswer:"]


def test_quotes_around_a_value_are_template() -> None:
    texts = [f'Is "{asked}" a noun? Say yes or no.' for asked in ASKED]
    assert field_literals(texts) == ['Is "', '" a noun? Say yes or no.']


def test_the_full_stop_of_sentences_is_theirs() -> None:
    sentences = (
        "While we were in Rome nobody of our group ever looked at a single map",
        "Trains to Oslo leave from the other side, and only before noon",
        "A friend told me once how he lost both shoes on a beach near Lima",
        "The tea is cold again because you forgot it, as always, on the stairs",
        "Nothing helps against rain, but people in Bern keep on buying umbrellas",
    )
    literals = field_literals([f"Translate into German: {sentence}.\n\nGerman:" for sentence in sentences])
    assert literals == ["Translate into German: ", "\n\nGerman:"]


def test_a_date_of_today_is_a_slot_though_all_requests_are_of_one_day() -> None:
    assert field_literals(["Today's date is 2026-03-01. Be brief."] * 9) == ["Today's date is ", ". Be brief."]
    examples = "Date: 2020-01-01\nDate: 2020-01-02\nNow go."
    assert field_literals([examples] * 9) == [examples]


def test_two_prompts_over_the_same_documents_are_two() -> None:
    documents = [f"{a} in {c}: where to go for {a}, and how often." for a in ASKED for c in CITIES[:3]]
    rows = [(f"Summarize the following text in one line.\n\n{d}",) for d in documents]
    rows += [(f"List all places that are named below, one a line.\n\n{d}",) for d in documents]
    found = Miner(rows, "s", [False]).mine()
    assert sorted(len(f.members) for f in found) == [30, 30]


def test_a_closed_set_of_short_values_is_a_slot_and_no_reason_to_part() -> None:
    rows = [
        (f"Translate the text below to {language} and keep the tone of the author.\n\n{asked} {city}",)
        for asked in ASKED
        for city in CITIES[:2]
        for language in ("German", "Greek")
    ]
    (found,) = Miner(rows, "s", [False]).mine()
    assert found.patterns[0].literals[0] == "Translate the text below to "


def test_objects_of_two_kinds_in_one_slot_are_one_prompt() -> None:
    flights = [
        {"flight_number": f"HAT{n}", "status_of_the_flight": asked, "leaves_from_the_town": city}
        for n, (asked, city) in enumerate(zip(ASKED * 2, CITIES * 2, strict=True))
    ]
    guests = [
        {"name_of_the_guest": asked, "town_the_guest_lives_in": city, "nights": n}
        for n, (asked, city) in enumerate(zip(ASKED * 2, reversed(CITIES * 2), strict=True))
    ]
    prompt = "Goal of all that we are asked to do, in JSON: {}. What is to be done first of all?"
    rows = [(prompt.format(json.dumps(one)),) for pair in zip(flights, guests, strict=True) for one in pair]
    (found,) = Miner(rows, "s", [False]).mine()
    assert found.patterns[0].literals == tuple(prompt.split("{}"))
    assert len(found.members) == 40


def test_strays_do_not_blur_a_prompt() -> None:
    prompt = "# Order\n{}\n\nSay in one word whether the customer above is satisfied with the order or not."
    rows = [(prompt.format(f"{a} {c}"),) for a in ASKED for c in CITIES[:4]]
    rows += [("# Order\nbread and the usual words above in one go",)]
    found = Miner(rows, "s", [False]).mine()
    assert any(cut_row(f.patterns, rows[0]) == ("food Rome",) for f in found)


word = st.sampled_from(
    [
        "red",
        "green",
        "blue",
        "one",
        "two",
        "The",
        "a\n",
        ":",
        ".",
        ",",
        '"',
        "-",
        "Answer",
        "Question",
        "7",
        "2026-03-01",
        "\n",
        " ",
    ]
)
text = st.lists(word, max_size=12).map(" ".join)


@given(st.lists(text, min_size=2, max_size=6))
def test_shared_runs_stand_in_every_text_in_order(texts: list[str]) -> None:
    split = [tokens(t) for t in texts]
    assert ["".join(s) for s in split] == texts
    ends = [0] * len(texts)
    for run in shared_runs(split):
        pieces = {"".join(s[start : start + run.length]) for s, start in zip(split, run.starts, strict=True)}
        assert len(pieces) == 1
        assert all(start >= end for start, end in zip(run.starts, ends, strict=True))
        ends = [start + run.length for start in run.starts]


@given(st.lists(text, min_size=2, max_size=6), text, text)
def test_every_sample_holds_the_literals_it_was_found_with(values: list[str], before: str, after: str) -> None:
    texts = [before + value + after for value in values]
    literals = field_literals(texts)
    for sample in texts:
        assert sample.startswith(literals[0])
        position = len(literals[0])
        for literal in literals[1:-1]:
            assert literal
            position = sample.index(literal, position) + len(literal)
        assert len(literals) == 1 or sample.endswith(literals[-1])
        assert position + len(literals[-1]) <= len(sample) or len(literals) == 1


@given(st.lists(text, min_size=4, max_size=9, unique=True))
def test_members_of_a_found_template_fit_it(values: list[str]) -> None:
    rows = [(f"Say what is meant by the following words.\n\n{value}\n\nMeaning:",) for value in values]
    for found in Miner(rows, "s", [False]).mine():
        for i in found.members:
            cut = cut_row(found.patterns, rows[i])
            assert cut is not None
            assert TextPattern(found.patterns[0].literals, tuple(Slot("x") for _ in cut)).fill(cut) == rows[i][0]


def test_two_prompts_of_one_style_that_share_no_long_text_are_two() -> None:
    rows = [
        (f"Given the problem:\n{a}\n\nand the options:\n{c}\n\nthe correct answer is",)
        for a in ASKED
        for c in CITIES[:2]
    ]
    rows += [
        (f"Given the following options, what is the correct answer to this?\n{a}, {c}\n\nOptions:\n{c}",)
        for a in ASKED
        for c in CITIES[2:4]
    ]
    found = Miner(rows, "s", [False]).mine()
    assert sorted(tuple(f.members) for f in found) == [tuple(range(20)), tuple(range(20, 40))]


def texts(seed: int, count: int) -> list[str]:
    """Made-up text, of which no two begin, go on or end alike."""
    rng = random.Random(seed)
    said = [*ASKED, *CITIES, "why", "the other one", "never", "in winter", "they", "and then", "who", "slowly"]
    return [" ".join(rng.choices(said, k=rng.randint(4, 12))) for _ in range(count)]


def test_a_section_that_may_be_left_out_is_no_input() -> None:
    ask = "Read the whole report below and give its main topic in one word, or two where one is not enough; if none"
    ask += " of the topics that the paper's readers know fits, then say 'other', and nothing else.\n\nReport: {}"
    section = " Take only what the report itself says.\nTopic:"
    whole = [ask.format(text) + (section if i % 3 else "\nTopic:") for i, text in enumerate(texts(11, 60))]
    found = Miner([(text,) for text in whole], "s", [False]).mine()
    assert sorted((len(one.members), one.patterns[0].literals[-1]) for one in found) == [
        (40, section),
        (60, "\nTopic:"),  # fits all; of two that fit, a request belongs to the one that says more
    ]
    seldom = [ask.format(text) + (section if i < 3 else "\nTopic:") for i, text in enumerate(texts(11, 60))]
    (one,) = Miner([(text,) for text in seldom], "s", [False]).mine()  # three of sixty say so: that is their input
    assert one.patterns[0].literals[-1] == "\nTopic:"


def test_documents_that_go_with_several_questions_are_no_prompts() -> None:
    asked = iter(texts(1, 100))
    rows = [
        (f"{text}\n\nA question about this text: {next(asked)}\n\nShort answer:",)
        for text in texts(2, 20)
        for _ in range(5)
    ]
    (found,) = Miner(rows, "s", [False]).mine()
    assert len(found.members) == len(rows)
    assert found.patterns[0].literals == ("", "\n\nA question about this text: ", "\n\nShort answer:")


def test_values_that_quote_the_prompt_do_not_hide_it() -> None:
    ask = "{}\n\nQuestion: Who or what is it about?\nHint: {}\nAnswer:"
    quotes = ("\n\nQuestion: Who or what is it about?\nHint: ", "\nHint: ", "\nAnswer:")
    plain = [ask.format(text, hint) for text, hint in zip(texts(3, 30), texts(4, 30), strict=True)]
    quoting = [ask.format(f"{text}{quote}{text}", "none") for text in texts(5, 4) for quote in quotes]
    (found,) = Miner([(text,) for text in plain + quoting], "s", [False]).mine()
    assert found.patterns[0].literals == ("", "\n\nQuestion: Who or what is it about?\nHint: ", "\nAnswer:")
    assert set(found.members) >= set(range(30))


def test_a_few_requests_of_another_prompt_with_the_same_words_are_found_too() -> None:
    ask = "Name the colour.\n{}\nThen the town.\n{}\nThen the year.\n{}"
    other = "Then the year.\nThen the town.\nName the colour.\n{}"
    many = [ask.format(*three) for three in zip(texts(3, 110), texts(4, 110), texts(5, 110), strict=True)]
    few = [other.format(text) for text in texts(6, 5)]
    found = Miner([(text,) for text in many + few], "s", [False]).mine()
    assert sorted(one.members for one in found) == [[*range(110)], [*range(110, 115)]]


def test_how_people_begin_to_speak_is_no_prompt_but_a_short_order_is() -> None:
    wishes = [
        "a table for two",
        "one ticket",
        "my money back",
        "a bus to Rome",
        "a flight",
        "the train times",
        "a taxi",
    ]
    assert not Miner([(f"I'd like to have {wish} please.",) for wish in wishes], "s", [False]).mine()
    labelled = Miner([(f"Text to be shortened: {wish}",) for wish in wishes], "s", [False]).mine()
    ordered = Miner([(f"Translate into formal German {wish}",) for wish in wishes], "s", [False]).mine()
    assert [len(f.members) for f in (*labelled, *ordered)] == [7, 7]
