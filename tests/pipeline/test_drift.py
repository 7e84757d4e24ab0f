"""What is new in a slot is noticed after a few requests; what people write is not mistaken for it."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stories import asked, template

from gateway.domain.template import Inputs
from gateway.pipeline.drift import Drift, SlotHistory, Sort, fisher, mann_whitney, sample, script
from gateway.pipeline.history import TemplateHistory

_WHO = ("The kettle", "A blue scarf", "My desk lamp", "Your teapot", "One garden chair", "That radio", "This rug")
_WHAT = ("arrived broken", "is lost", "was never sent", "looks wonderful", "smells of paint", "came twice")
_WHEN = ("on the way", "since last week", "again", "for my aunt", "in the rain")
SAID = [" ".join(words) for words in product(_WHO, _WHAT, _WHEN)]
"""210 different sentences, which begin and end in a few ways."""


def shuffled(seed: int = 0) -> list[str]:
    said = list(SAID)
    random.Random(seed).shuffle(said)
    return said


def history(values: list[str], sort: Sort = "value") -> SlotHistory:
    made = SlotHistory()
    for value in values:
        made.add(value, sort)
    made.learn()
    return made


def first(slot: SlotHistory, values: list[str], sort: Sort = "value") -> tuple[int, Drift] | None:
    """After how many values something is found, and what."""
    for number, value in enumerate(values, 1):
        if (found := slot.add(value, sort)) is not None:
            return number, found
    return None


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ("{}\nAnswer in French, please.", "end", "\nAnswer in French, please."),
        ("Be brief. {}", "start", "Be brief. "),
        ("{}!", "end", "!"),
        ("  {}", "start", "  "),
        ("Do not apologise for what is said: {}", "start", "Do not apologise for what is said: "),
    ],
)
@pytest.mark.parametrize("before", [20, 60, 200])
def test_text_beside_a_slot_is_noticed_within_twenty_requests(
    before: int, change: str, kind: str, text: str
) -> None:
    said = shuffled()
    found = first(history(said[:before]), [change.format(value) for value in shuffled(1)[:20]])
    assert found is not None
    assert found[1].kind == kind
    assert text in found[1].text
    assert found[1].text in found[1].sentence or found[1].text.startswith("\n")


USERS = ("Ada Stone", "Ben Okoro", "Carla Diaz", "Dov Katz", "Emi Sato", "Finn Berg", "Gus Hall", "Hana Novak")


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ([USERS[n % 8] for n in range(24)], [f"not {USERS[n * 3 % 8]}" for n in range(20)], "not "),
        ([shuffled()[n % 3] for n in range(5)], [f"Person 1: who was she?\n{shuffled()[n % 5]}" for n in range(20)],
         "Person 1: who was she?\n"),
        (["", SAID[0]] * 7, [f"{text} Answer in one word." for text in ["", SAID[0]] * 5], " Answer in one word."),
    ],
)  # fmt: skip
def test_text_beside_values_that_there_were_before_is_noticed_in_few_different_ones(
    before: list[str], now: list[str], text: str
) -> None:
    found = first(history(before), now)
    assert found is not None
    assert found[1].text == text


def test_the_same_few_values_in_another_order_raise_no_alarm() -> None:
    """Some begin with others, and some end with them."""
    few = [*USERS, *(f"Dr. {name}" for name in USERS[:4]), *(f"{name} Jr." for name in USERS[:4]), "Dr.", "Jr.", ""]
    alarms = 0
    for seed in range(100):
        dice = random.Random(seed)
        slot = history(dice.choices(few, k=24))
        alarms += sum(slot.add(value) is not None for value in dice.choices(few, k=100))
    assert alarms <= 1


def test_text_in_the_middle_of_values_is_noticed_and_so_is_its_end() -> None:
    said = shuffled()
    plain = [f"{a} | {b}" for a, b in zip(said[:60], said[60:120], strict=True)]
    marked = [f"{a} | never say so | {b}" for a, b in zip(said[120:150], said[150:180], strict=True)]
    found = first(history(plain), marked[:20])
    assert found is not None
    assert (found[1].kind, "never say" in found[1].text) == ("inside", True)
    gone = first(history([*marked, *marked[:0]]), plain[:20])
    assert gone is not None
    assert gone[1].kind in ("gone", "inside")


def test_a_closed_set_that_gets_new_values_is_noticed_and_an_open_one_does_not() -> None:
    colours = ["red", "green", "blue"]
    found = first(history(colours * 10), ["red", "magenta", "cyan", "magenta", "cyan", "black"] * 3)
    assert found is not None
    assert found[1].kind == "values"
    assert first(history(shuffled()[:60]), shuffled()[60:80]) is None


def test_a_shift_of_length_or_script_is_told_but_is_no_text() -> None:
    said, dice = shuffled(), random.Random(7)
    words = [["".join(dice.choices("bcdfglmnrst", k=6)) for _ in range(80)] for _ in range(60)]
    longer = first(history([" ".join(some[:8]) for some in words[:40]]), [" ".join(some) for some in words[40:]])
    assert longer is not None
    assert (longer[1].kind, longer[1].adds_text) == ("length", False)
    letters = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстуввхйз")
    other = first(history(said[:60]), [text.lower().translate(letters) for text in said[60:80]])
    assert other is not None
    assert (other[1].kind, other[1].text) == ("script", "Cyrillic")


def test_dates_ids_and_a_value_that_stays_the_same_are_nothing_new() -> None:
    yesterday = [f"2026-03-01 {n:02}:15:00 {text}" for n, text in zip(range(20), shuffled(), strict=False)]
    today = [f"2026-03-02 {n:02}:45:10 {text}" for n, text in zip(range(20), shuffled(1), strict=False)]
    assert first(history(yesterday), today) is None
    assert first(history(shuffled()[:40]), ["one document, asked many questions"] * 20) is None


def test_unchanged_values_raise_no_alarm() -> None:
    """At most one in 40,000 values, each with all its tests."""
    alarms = 0
    for seed in range(100):
        values = shuffled(seed)
        slot = history(values[:20])
        alarms += sum(slot.add(value) is not None for value in (*values[20:], *shuffled(1000 + seed)))
    assert alarms <= 1


def test_what_a_person_has_accepted_is_not_told_again() -> None:
    slot = history(shuffled()[:40])
    said = [f"Dear people of the shop, {text}" for text in shuffled(3)]
    assert first(slot, said[:20]) is not None
    slot.learn()
    assert first(slot, said[20:80]) is None
    assert first(slot, [f"{text} Answer in one word." for text in said[80:100]]) is not None


def test_a_history_is_bounded() -> None:
    slot = SlotHistory()
    for number in range(500):
        slot.add("x" * 100_000 + str(number))
    assert len(slot.recent) + len(slot.baseline) == 44
    assert max(len(one.start) + len(one.end) for one in (*slot.recent, *slot.baseline)) <= 1000


@given(now=st.integers(1, 12), before=st.integers(1, 12), data=st.data())
def test_fishers_probability_is_a_share_of_all_orders(now: int, before: int, data: st.DataObject) -> None:
    some, others = data.draw(st.integers(0, now)), data.draw(st.integers(0, before))
    probability = fisher(some, now, others, before)
    assert 0 < probability <= 1
    assert fisher(0, now, others, before) == 1
    if some == now and others == 0:
        assert probability == pytest.approx(1 / math.comb(now + before, now))


def test_mann_whitney_as_in_its_tables() -> None:
    assert mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(0.0122, abs=0.001)
    assert mann_whitney([1, 3, 5, 7], [2, 4, 6, 8]) > 0.5
    assert mann_whitney([3, 3, 3], [3, 3, 3]) == 1
    assert mann_whitney([], [1]) == 1


@pytest.mark.parametrize(
    ("text", "name"), [("hello", "LATIN"), ("привет", "CYRILLIC"), ("你好", "CJK"), ("12!", "")]
)
def test_the_script_of_a_text(text: str, name: str) -> None:
    assert script(text) == name


def test_a_long_value_is_known_by_its_ends() -> None:
    one = sample("a" * 600 + "middle" + "z" * 600)
    assert (set(one.start), set(one.end), one.length) == ({"a"}, {"z"}, 1206)


# --- turns -------------------------------------------------------------------------------------------------


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(count: int, seed: int, *inserted: dict[str, str]) -> list[Inputs]:
    """Each of three requests, which go on as people do; what is inserted stands before the last message."""
    said = shuffled(seed)
    found = []
    for number in range(count):
        mine = said[number * 6 : number * 6 + 6]
        turns = [turn(("user", "assistant")[n % 2], text) for n, text in enumerate(mine)]
        for length in (1, 3, 5):
            parts = (*turns[: length - 1], *inserted, turns[length - 1])
            found.append(Inputs(template(turns=True), (), parts))
    return found


def noticed(history: TemplateHistory, requests: list[Inputs]) -> str | None:
    for number, inputs in enumerate(requests):
        if (found := history.add(f"live-{number}", inputs)) is not None and found.drift.adds_text:
            assert found.is_in(requests[number])
            return found.slot
    return None


def learnt() -> TemplateHistory:
    made = TemplateHistory(template(turns=True))
    for number, inputs in enumerate(conversations(30, 1)):
        made.add(str(number), inputs)
    made.learn()
    return made


def test_an_example_that_an_app_puts_before_the_last_turn_is_noticed() -> None:
    example = (turn("user", "Two plus two?"), turn("assistant", "It is four, madam."))
    assert noticed(learnt(), conversations(7, 2, *example)[:20]) in ("last turn but one", "last turn but two")


def test_an_instruction_at_the_end_of_the_last_turn_is_noticed() -> None:
    requests = [
        Inputs(one.template, (), (*one.turns[:-1], turn("user", one.turns[-1]["content"] + " Be brief.")))
        for one in conversations(7, 2)
    ]
    assert noticed(learnt(), requests[:20]) == "last turn"


def test_one_long_conversation_is_nothing_new_and_a_request_made_again_says_nothing() -> None:
    said = shuffled(5)
    turns = [turn(("user", "assistant")[n % 2], text) for n, text in enumerate(said[:60])]
    long = [Inputs(template(turns=True), (), tuple(turns[:length])) for length in range(1, 60, 2)]
    assert noticed(learnt(), long) is None
    again = template().strip(asked("where is my parcel"))
    assert again is not None
    slots = TemplateHistory(template())
    assert [slots.add(str(n), again) for n in range(30)] == [None] * 30
    assert len(slots.ids) == 1
