"""When a search for a new prompt is worth while, what is searched, and that memory and work stay bounded."""

from __future__ import annotations

import random

from stories import NEW_SYSTEM, SYSTEM, asked, mail, template

from gateway.domain import layout
from gateway.pipeline.near import NearMisses
from gateway.pipeline.residue import CUES_AT_MOST, Group, Residue


def note(residue: Residue, number: int, text: str, system: str = SYSTEM, near: str | None = None) -> list[Group]:
    residue.add(f"e{number}", "key", layout.read(asked(text, system=system)), near)
    return list(residue.due())


def test_five_requests_that_begin_alike_are_searched_and_then_twice_as_many() -> None:
    residue = Residue()
    sizes = [
        max((len(group.ids) for group in note(residue, n, text)), default=0)
        for n, (text, _) in enumerate(mail()[:50])
    ]
    assert sizes[:4] == [0, 0, 0, 0]
    assert [sizes[n] for n in (4, 9, 19)] == [5, 10, 20]
    assert sum(sizes) < 5 * 50


def test_what_was_found_is_not_searched_again() -> None:
    residue = Residue()
    for number, (text, _) in enumerate(mail()[:4]):
        assert note(residue, number, text) == []
    (group, *_) = note(residue, 4, mail()[4][0])
    assert group.ids == ("e0", "e1", "e2", "e3", "e4")
    residue.found(group.ids)
    for number, (text, _) in enumerate(mail()[5:9], 5):
        assert note(residue, number, text) == []
    (again, *_) = note(residue, 9, mail()[9][0])
    assert again.ids == ("e5", "e6", "e7", "e8", "e9")


def test_near_misses_of_a_template_come_first_and_are_named() -> None:
    residue = Residue()
    for number in range(5):
        residue.add(f"e{number}", "key", layout.read(asked(f"text {number}")), "mail@1")
    (group,) = residue.due()
    assert group == Group(("e0", "e1", "e2", "e3", "e4"), "mail@1")


def test_one_off_requests_cost_bounded_memory_and_few_searches() -> None:
    residue = Residue()
    dice = random.Random(1)
    searched = 0
    for number in range(20_000):
        words = " ".join("".join(dice.choices("abcdefghij", k=6)) for _ in range(8))
        body = {"model": "m", "messages": [{"role": "user", "content": words}]}
        residue.add(f"e{number}", "key", layout.read(body))
        searched += sum(len(group.ids) for group in residue.due())
    assert len(residue) <= CUES_AT_MOST
    assert searched < 20_000


def test_a_changed_prompt_nearly_matches_and_a_sibling_under_the_same_system_prompt_does_not() -> None:
    near = NearMisses([template()])
    changed = layout.read(asked("hello", system=NEW_SYSTEM))
    found = near.nearest(changed)
    assert found is not None
    assert found.name == "mail@1"
    sibling = {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Sum up: hello"}]}
    assert near.nearest(layout.read(sibling)) is None
    assert near.nearest(layout.read({"messages": [{"role": "user", "content": "what is up"}]})) is None


def test_a_replaced_template_is_compared_as_it_is_now() -> None:
    near = NearMisses([template("Something else that nobody says any more.")])
    near.put(template(SYSTEM))
    found = near.nearest(layout.read(asked("hello", system=NEW_SYSTEM)))
    assert found == template(SYSTEM)
