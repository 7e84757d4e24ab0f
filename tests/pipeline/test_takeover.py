"""A version with a slot over fixed text of another takes the requests of a prompt that was changed there."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.domain import layout
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline.takeover import Takeover, covered


def version(number: int, *literals: str) -> PromptTemplate:
    slots = tuple(Slot(f"slot-{n}") for n in range(len(literals) - 1))
    header = layout.read_message({"role": "user", "content": ""})[0]
    return PromptTemplate("mail", number, (MessagePattern(header, (TextPattern(literals, slots),)),))


NARROW = version(1, "Sort this mail: ", "\nIt is about this product: ", "\nAnswer in one word.")
WIDE = version(2, "Sort this mail: ", "\nAnswer in one word.")
"""Found in mails that quote the prompt: what is about the product is part of the slot."""


def narrow(number: int) -> Inputs:
    return Inputs(NARROW, (f"where is parcel {number}?", "a kettle"))


def wide(number: int) -> Inputs:
    return Inputs(WIDE, (f"{number} times I read 'It is about this product: ' in your mails. A kettle!",))


def changed(number: int) -> Inputs:
    return Inputs(WIDE, (f"where is parcel {number}?\nIt is about these products: a kettle",))


USUAL = [wide(n) if n % 10 == 4 else narrow(n) for n in range(30)]
"""One request in ten quotes the prompt."""


def after(requests: Sequence[Inputs], usual: Sequence[Inputs] = USUAL) -> int | None:
    """After how many requests it is told that one version takes another's; None: it is not."""
    takeover = Takeover([NARROW, WIDE])
    assert [takeover.add(one) for one in usual] == [None] * len(usual)
    found = [takeover.add(one) for one in requests]
    first = next((n for n, taken in enumerate(found, 1) if taken is not None), None)
    if first is not None:
        taken = found[first - 1]
        assert taken is not None
        assert 5 <= taken.requests <= first + 1
        drift = taken.drift
        assert (drift.kind, drift.text, drift.adds_text) == ("version", "mail@1", True)
        assert "fixed text of mail@1" in drift.sentence
    return first


def test_a_prompt_that_was_changed_where_another_version_has_a_slot_is_noticed() -> None:
    assert after([changed(n) for n in range(20)]) == 8


def test_requests_as_before_are_none_of_that() -> None:
    assert after([*USUAL[::-1], *(narrow(n) for n in range(100, 150))]) is None
    dice = random.Random(0)
    alarms = 0
    for _ in range(200):
        mixed = [wide(n) if dice.random() < 0.15 else narrow(n) for n in range(100)]
        takeover = Takeover([NARROW, WIDE])
        alarms += sum(takeover.add(one) is not None for one in mixed)
    assert alarms == 0


def test_one_mail_that_is_sent_again_and_again_counts_once() -> None:
    assert after([wide(7)] * 40) is None
    assert after([Inputs(WIDE, wide(7).values, envelope={"seed": n}) for n in range(40)]) is None


def test_a_version_that_has_just_come_takes_the_place_of_another() -> None:
    before = [narrow(n) for n in range(30)]
    now = [wide(n) for n in range(40)]
    assert after(now, before) is None
    long_ago = Takeover([NARROW, WIDE], [narrow(0)], ["mail@1"] * 30, ["mail@2"])
    assert any(long_ago.add(one) for one in now[:10])


def test_a_version_that_has_been_all_there_was_is_one_of_the_apps_own() -> None:
    apps = [*(narrow(n) for n in range(9)), *(wide(n) for n in range(30)), *(narrow(n) for n in range(60, 160))]
    assert after([wide(n) for n in range(200, 220)], apps) is None


def test_what_the_prompt_was_before_takes_its_requests_back() -> None:
    """The later version has more fixed text; the app does not send that any more."""
    first, second = (version(n, *one.head[0].fields[0].literals) for n, one in ((1, WIDE), (2, NARROW)))
    takeover = Takeover([first, second])
    for n in range(30):
        takeover.add(Inputs(first if n % 10 == 4 else second, narrow(n).values[: 1 if n % 10 == 4 else 2]))
    assert not any(takeover.add(Inputs(first, wide(n).values)) for n in range(20))


def test_what_was_accepted_is_not_told_again() -> None:
    takeover = Takeover([NARROW, WIDE])
    for one in USUAL:
        takeover.add(one)
    takeover.accept("mail@2")  # nothing was told of it: nothing is accepted
    assert any(takeover.add(changed(n)) for n in range(10))
    takeover.accept("mail@2")
    assert not any(takeover.add(changed(n)) for n in range(10, 20))


def test_a_request_that_another_version_would_hold() -> None:
    assert covered(WIDE, narrow(1)) == {0}
    assert not covered(NARROW, wide(1))
    assert not covered(NARROW, changed(1))
    assert not covered(version(3, "Sort this letter: ", "\nAnswer in one word."), narrow(1))
    assert not covered(version(3, "Sort this mail: ", "\nIt is about shoes.\nAnswer in one word."), narrow(1))
