"""A template that a person wrote: what it would change is told, then it is stored as a version of its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import stories
from stories import asked, exchange, keep, mail, template, traffic

from gateway.config import InvalidConfig
from gateway.domain.matching import TemplateIndex
from gateway.pipeline import revise
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.dataset import scope_of
from gateway.pipeline.differences import plain
from gateway.pipeline.revise import Effect, Revision, plan, store_all
from gateway.pipeline.template_text import Draft, read_draft, write_template
from gateway.stores.edited import pinned_tasks
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore

MAIL = write_template(template())
WIDE = MAIL.replace("of a small shop", "of {{whose}}").replace("message: {}", "message: {}\n  whose: {}")
"""The shop's prompt with less that is fixed."""


def draft(text: str, name: str = "mail.yaml") -> Draft:
    return read_draft(name, text.encode())


def revised(store: SqliteStore, *texts: str) -> list[Revision]:
    revisions = plan(store, [draft(text, f"{n}.yaml") for n, text in enumerate(texts)])
    store_all(store, revisions)
    return revisions


def refused(store: SqliteStore, *texts: str) -> Sequence[str]:
    with pytest.raises(InvalidConfig) as problems:
        plan(store, [draft(text, f"{n}.yaml") for n, text in enumerate(texts)])
    return [str(problem) for problem in problems.value.problems]


@pytest.fixture
def store(shop: Workshop) -> SqliteStore:
    """30 letters to the shop, and 5 to the bank that no template explains."""
    system = stories.SYSTEM.replace("a small shop", "a bank")
    bank = [exchange(100 + n, asked(text, system=system), "other", version=None)
            for n, (text, _) in enumerate(mail()[:5])]  # fmt: skip
    keep(shop.store, [*traffic(30), *bank])
    return shop.store


def test_less_that_is_fixed_takes_the_place_of_what_it_was_made_from(store: SqliteStore) -> None:
    (revision,) = plan(store, [draft(WIDE)])
    assert (revision.template.name, revision.template.replaces) == ("mail@2", "mail@1")
    assert revision.effect == Effect(own=30, still=30, unexplained=5, found=5)
    assert "{+{{whose}}+}" in plain(revision.changes)
    assert store.templates() == [template()]  # so far it is a plan

    assert store_all(store, [revision]) == 35
    assert store.version_counts("mail", 100) == {2: 35}
    assert store.unexplained_count() == 0
    assert store.templates()[0] == template()
    assert scope_of(store, "mail").templates[0].name == "mail@2"


def test_what_no_longer_matches_stays_with_the_old_version(store: SqliteStore) -> None:
    narrow = MAIL.replace("message: {}", "message: {limit: 30}")
    (revision,) = revised(store, narrow)
    short = sum(len(text) <= 30 for text, _ in mail()[:30])
    assert 0 < short < 30
    assert revision.effect.still == short
    assert store.version_counts("mail", 100) == {1: 30 - short, 2: short}


def test_a_new_name_for_a_slot_is_a_new_version_and_an_old_one_never_changes(store: SqliteStore) -> None:
    revised(store, MAIL.replace("{{message}}", "{{letter}}").replace("message: {}", "letter: {}"))
    old, new = store.templates()
    assert ([slot.name for slot in old.slots], [slot.name for slot in new.slots]) == (["message"], ["letter"])
    assert revised(store, write_template(new).replace("{{letter}}", "{{post}}").replace("letter: {}", "post: {}"))
    assert [t.replaces for t in store.templates()] == ["", "mail@1", "mail@2"]


def test_what_was_not_changed_is_not_stored_again(store: SqliteStore) -> None:
    (revision,) = revised(store, MAIL)
    assert (revision.is_new, revision.changes, revision.pin_changes) == (False, [], False)
    assert store.templates() == [template()]


def test_a_pin_alone_makes_no_version(store: SqliteStore) -> None:
    (revision,) = revised(store, MAIL.replace("pin: false", "pin: true"))
    assert (revision.is_new, plain(revision.changes)[:34]) == (False, "task: mail\npin: [-false-]{+true+}\n")
    assert pinned_tasks(store) == {"mail"}
    revised(store, MAIL)
    assert pinned_tasks(store) == frozenset()


def test_a_task_of_a_wrong_name_goes_into_another_with_its_requests(store: SqliteStore) -> None:
    bank = template(stories.SYSTEM.replace("a small shop", "a bank"), task="post")
    store.add_template(bank)
    store.assign({f"e{n:05}": ("post", 1) for n in range(100, 105)})
    (revision,) = revised(store, write_template(bank).replace("task: post", "task: mail"))
    assert (revision.template.name, revision.template.replaces) == ("mail@2", "post@1")
    assert store.version_counts("mail", 100) == {1: 30, 2: 5}
    assert store.version_counts("post", 100) == {}
    assert {(one.task, one.exchanges) for one in entries(store)} == {("mail", 35)}  # so do its books


def test_the_books_of_a_task_that_keeps_some_requests_stay(store: SqliteStore) -> None:
    bank = template(stories.SYSTEM.replace("a small shop", "a bank"), task="post")
    store.add_template(bank)
    store.assign({f"e{n:05}": ("post", 1) for n in (*range(100, 105), 3)})
    revised(store, write_template(bank).replace("task: post", "task: mail"))
    assert store.version_counts("post", 100) == {1: 1}
    assert {(one.task, one.exchanges) for one in entries(store)} == {("mail", 30), ("post", 5)}


def test_a_template_for_a_task_that_was_never_seen(store: SqliteStore) -> None:
    own = "task: letters\nmessages:\n- role: user\n  text: 'Answer this letter: {{letter}}'\n"
    (revision,) = revised(store, own)
    assert (revision.template.name, revision.effect) == ("letters@1", Effect(unexplained=5))
    match = TemplateIndex(store.templates()).match(
        {"messages": [{"role": "user", "content": "Answer this letter: Hi"}]}
    )
    assert match is not None
    assert match.inputs.messages == [{"role": "user", "content": "Hi"}]


def test_what_would_take_requests_from_another_task_says_so(store: SqliteStore) -> None:
    longer = WIDE.replace("task: mail", "task: post").replace("based_on: mail@1\n", "")
    (revision,) = plan(store, [draft(longer)])
    assert revision.effect.claimed == {}  # the shop's template has more fixed text, and stays
    stronger = WIDE.replace("Message: ", "Mess{{x}}e: ").replace("whose: {}", "whose: {}\n  x: {}")
    revised(store, stronger)
    (again,) = plan(store, [draft(longer)])
    assert again.effect.claimed == {"mail": 35}


def test_what_cannot_be_stored_is_refused_with_all_problems_at_once(store: SqliteStore) -> None:
    unknown = MAIL.replace("mail@1", "mail@9")
    same = MAIL.replace("based_on: mail@1\n", "").replace("task: mail", "task: post")
    said = refused(store, unknown, same, WIDE, WIDE)
    assert said[0].startswith("0.yaml:8: based_on: no template mail@9")
    assert said[1].startswith("1.yaml:9: messages: has the same fixed text as mail@1")
    assert "write 'based_on: mail@1'" in said[1]
    assert said[2].startswith("3.yaml:8: based_on: another file takes the place of mail@1")


def test_slots_that_could_be_cut_in_many_ways_are_refused(store: SqliteStore) -> None:
    split = MAIL.replace("{{message}}", "{{first}} {{rest}}").replace("message: {}", "first: {}\n  rest: {}")
    (said,) = refused(store, split)
    assert "recorded requests could be cut in more than one way" in said


def test_thousands_of_requests_move_some_at_a_time(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revise, "_AT_ONCE", 7)
    assert store_all(store, plan(store, [draft(WIDE)])) == 35
    assert store.version_counts("mail", 100) == {2: 35}


def test_an_edited_template_is_the_task_s_one_for_new_requests_too(store: SqliteStore) -> None:
    revised(store, WIDE)
    match = TemplateIndex(store.templates()).match(asked("hello"))
    assert match is not None
    assert (match.template.name, match.inputs.slots[0]) == ("mail@2", ("whose", "a small shop"))
