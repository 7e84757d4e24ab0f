"""What was recorded finds its task: by a template that is known, by one that is found, or not at all."""

from __future__ import annotations

import gzip
import json
from typing import Any

import msgspec
import pytest
import stories
from stories import asked, exchange, template

from gateway.demo.messages import messages as customers_words
from gateway.domain.exchange import Exchange
from gateway.domain.template import PromptTemplate, TextPattern
from gateway.pipeline import discover
from gateway.pipeline.discover import Discovery
from gateway.pipeline.infer import Inference
from gateway.pipeline.records import Recorded, recorded
from gateway.stores.edited import pin
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import Standing, alarms, confirm, results, standings, untrusted
from gateway.withheld import withheld


def new(number: int, text: str, **columns: object) -> Exchange:
    """As the recorder moves it in: nobody has looked at it."""
    return exchange(number, asked(text), "other", version=None, **columns)


def record(store: SqliteStore, exchanges: list[Exchange]) -> None:
    with store.transaction():
        store.absorb("segment", 0, exchanges)


WORDS = [row.text for row in customers_words(seed=0)]


def messages(count: int, start: int = 0) -> list[Exchange]:
    return [new(start + n, text) for n, text in enumerate(WORDS[start : start + count])]


def test_requests_of_a_known_template_are_assigned_at_once(store: SqliteStore) -> None:
    store.add_template(template())
    record(store, messages(3))
    assert Discovery(store).step() == []
    assert {(one.task, one.task_version) for one in store.exchanges()} == {("mail", 1)}
    assert store.unseen(10) == []


def test_a_template_is_found_in_what_requests_have_in_common(store: SqliteStore) -> None:
    record(store, messages(40))
    (name,) = Discovery(store).step()
    (found,) = store.templates()
    assert found.name == name
    assert found.strip(asked("anything")) is not None
    assert {one.task for one in store.exchanges()} == {found.task}


def test_the_apps_own_name_for_a_task_is_kept_as_far_as_it_can_be_a_name(store: SqliteStore) -> None:
    record(store, [new(n, text, task_hint="Team A/mail@v2") for n, text in enumerate(WORDS[:40])])
    assert Discovery(store).step() == ["Team-A-mail-v2@1"]


@pytest.mark.parametrize("hint", ["..", "почта", "客服", "@"])
def test_a_name_that_is_none_becomes_one(store: SqliteStore, hint: str) -> None:
    record(store, [new(n, text, task_hint=hint) for n, text in enumerate(WORDS[:40])])
    (name,) = Discovery(store).step()
    assert name.startswith("task-")


def test_five_requests_of_a_new_prompt_are_enough_to_propose_it(store: SqliteStore) -> None:
    discovery = Discovery(store)
    record(store, messages(4))
    assert discovery.step() == []
    record(store, messages(1, start=4))
    (name,) = discovery.step()
    assert standings(store)[name] == Standing("proposed")
    assert store.count("task IS NULL") == 0


def test_twenty_requests_are_enough_to_trust_it_and_then_it_does_not_change(store: SqliteStore) -> None:
    discovery = Discovery(store)
    found: list[str] = []
    states: list[str] = []
    for number in range(60):
        record(store, messages(1, start=number))
        found += discovery.step()
        states.append(next(iter(standings(store).values()), Standing("proposed")).state)
    assert states.index("trusted") in range(19, 25)
    (name,) = set(found)
    (last,) = store.templates()
    assert last.name == name
    assert store.version_counts(last.task, 100) == {1: 60}


def test_a_proposal_that_is_too_narrow_is_widened_and_keeps_its_name(store: SqliteStore) -> None:
    """The first five customers happen to begin alike."""
    discovery = Discovery(store)
    alike = [f"Hello, dear people of the shop, {text}" for text in WORDS[:6]]
    record(store, [new(n, text) for n, text in enumerate(alike)])
    (name,) = discovery.step()
    record(store, messages(30, start=50))
    discovery.step()
    (template,) = store.templates()
    assert template.name == name
    assert template.strip(asked("something else")) is not None
    assert store.count("task IS NULL") == 0


def test_a_search_that_finds_nothing_is_repeated_when_twice_as_many_have_come(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []

    def nothing(requests: list[Recorded], *_: object, **__: object) -> Inference:
        searches.append(len(requests))
        return Inference([], {})

    monkeypatch.setattr(discover, "infer", nothing)
    found = Discovery(store)
    for number in range(100):
        record(store, [new(number, f"{WORDS[number]} number {number}")])
        found.step()
    assert sum(searches) < 1000
    assert max(searches) <= 100
    before = len(searches)
    found.step(search=False)
    assert len(searches) == before
    found.step(search=True)
    assert searches[-1] == 100


def test_what_was_not_explained_before_a_restart_is_remembered(store: SqliteStore) -> None:
    record(store, messages(4))
    Discovery(store).step()
    record(store, messages(1, start=4))
    assert len(Discovery(store).step()) == 1
    assert store.count("task IS NULL") == 0


def test_a_request_without_messages_that_waits_stops_no_search_after_a_restart(store: SqliteStore) -> None:
    empty = exchange(0, {"model": stories.MODEL, "messages": []}, "other", version=None)
    record(store, [empty, *messages(3, start=1)])
    assert Discovery(store).step() == []
    record(store, messages(20, start=10))
    (name,) = Discovery(store).step()
    assert name in {one.name for one in store.templates()}
    assert sum(one.task is not None for one in store.exchanges()) == 23  # those that waited, too


def test_what_is_no_chat_is_set_aside_and_never_searched(store: SqliteStore) -> None:
    """Thousands of embeddings must not hide a new task of a few dozen requests."""
    embeddings = [
        exchange(1000 + n, {"model": "embed", "input": f"text {n}"}, {"data": []}, version=None,
                 endpoint="/v1/embeddings")
        for n in range(200)
    ]  # fmt: skip
    unread = [new(2000, "x", request=b""), new(2001, "x", request=b"{broken"), new(2002, "x", truncated=True)]
    record(store, [*messages(40), *embeddings, *unread])
    Discovery(store).step(search=False)
    assert store.count("looked_at = 2") == 202
    assert len(store.unassigned(1000)) == 40


def test_what_the_relay_has_found_of_bodies_that_were_not_recorded_stays_in_the_books(store: SqliteStore) -> None:
    """An app that has nothing but figures recorded: only the relay has ever seen whose task a request is."""
    store.add_template(template())
    said: dict[str, Any] = {"request": b"", "response": b"", "cost_usd": 0.002, "latency_ms": 10.0}
    whole = [new(n, "x", task="mail", **said) for n in range(3)]
    bare = [new(10 + n, "x", task="mail", stripped=True, target="local/mail-1", **said) for n in range(4)]
    claimed = [new(20, "x", task="mail", task_hint="mail", **said), new(21, "x", task="unheard", **said)]
    record(store, [*whole, *bare, *claimed])
    Discovery(store).step(search=False)
    assert store.count("looked_at = 2") == 9
    (row,) = store.tasks()
    assert (row["exchanges"], row["stripped"], row["cost_usd"]) == (7, 4, pytest.approx(0.014))
    assert store.answered_count("mail") == 0  # nobody can learn from them
    assert {(one.served, one.exchanges) for one in entries(store, "mail")} == {("whole", 3), ("stripped", 4)}


def test_what_was_cut_off_is_not_looked_at_before_it_is_whole(store: SqliteStore) -> None:
    store.add_template(template())
    record(store, [new(1, "where is my parcel", complete=False)])
    Discovery(store).step()
    assert store.count("looked_at = 0") == 1


def test_a_compressed_request_is_read(store: SqliteStore) -> None:
    body = gzip.compress(json.dumps(asked("hello")).encode())
    packed = new(1, "x", request=body, request_headers={"content-encoding": "gzip"}, key_id="k1")
    found = recorded(packed)
    assert found is not None
    assert found.body == asked("hello")
    assert found.key == "openai /v1/chat/completions k1"


def test_stripped_requests_are_of_their_task_as_well(store: SqliteStore) -> None:
    store.add_template(template())
    record(store, [new(1, "hello", stripped=True, target="local/mail-1")])
    Discovery(store).step()
    assert store.exchanges()[0].task == "mail"


def changed(number: int, text: str, system: str = stories.NEW_SYSTEM) -> Exchange:
    return exchange(number, asked(text, system=system), "other", version=None)


def learned(store: SqliteStore) -> tuple[Discovery, PromptTemplate]:
    """Forty requests of a prompt, which is trusted now."""
    record(store, messages(40))
    discovery = Discovery(store)
    discovery.step()
    (template,) = store.templates()
    assert untrusted(store) == {}
    return discovery, template


def test_a_changed_prompt_is_a_new_version_of_the_same_task_within_ten_requests(store: SqliteStore) -> None:
    discovery, first = learned(store)
    after = 0
    while len(store.templates()) == 1 and after < 20:
        record(store, [changed(500 + after, WORDS[after])])
        discovery.step()
        after += 1
    assert after <= 10
    assert [one.name for one in store.templates()] == [first.name, f"{first.task}@2"]
    record(store, [new(900, "an old app still asks like this"), changed(901, "and a new one like that")])
    discovery.step()
    assert store.version_counts(first.task, 2) == {1: 1, 2: 1}


def test_while_a_changed_prompt_has_no_version_the_task_has_an_alarm(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovery, template = learned(store)
    monkeypatch.setattr(discover, "infer", lambda *_, **__: Inference([], {}))
    for number in range(8):
        record(store, [changed(500 + number, WORDS[number])])
        discovery.step()
    assert "nearly match" in alarms(store)[template.task]
    assert results(store)[template.task, 1] == {"matched": 40, "literal": 8}
    record(store, messages(40, start=100))
    discovery.step()
    assert alarms(store) == {}


INSTRUCTION = "\nAnswer in French, please, and be brief."


def test_an_instruction_behind_a_slot_withholds_the_template_until_it_has_a_version(store: SqliteStore) -> None:
    discovery, first = learned(store)
    home = store.path.parent
    for number in range(10):
        record(store, [new(500 + number, WORDS[number] + INSTRUCTION)])
        discovery.step()
    assert standings(store)[first.name].state == "drifting"
    assert "be brief" in withheld(home)[first.name]
    second = store.templates()[-1]
    assert (second.task, second.version) == (first.task, 2)
    assert INSTRUCTION in second.literals
    record(store, [new(600 + number, WORDS[number + 20] + INSTRUCTION) for number in range(20)])
    discovery.step()
    assert {name: one.state for name, one in standings(store).items()} == dict.fromkeys(
        (first.name, second.name), "trusted"
    )
    assert withheld(home) == {}
    record(store, [new(700, "as before"), new(701, "as it is now" + INSTRUCTION)])
    discovery.step()
    assert store.version_counts(first.task, 2) == {1: 1, 2: 1}


def test_a_person_may_say_that_what_is_new_in_a_slot_is_input(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovery, template = learned(store)
    monkeypatch.setattr(discover, "infer", lambda *_, **__: Inference([], {}))
    said = [f"Dear people of the shop, {text}" for text in WORDS]
    for number in range(10):
        record(store, [new(500 + number, said[number])])
        discovery.step()
    assert standings(store)[template.name].state == "drifting"
    assert confirm(store, template.name)
    for number in range(20):
        record(store, [new(600 + number, said[20 + number])])
        discovery.step()
    assert untrusted(store) == {}
    assert withheld(store.path.parent) == {}
    assert not confirm(store, template.name)


def sorting(literals: tuple[str, ...], version: int) -> PromptTemplate:
    """The shop's prompt with more behind the message."""
    first, (second,) = template().head[0], template().head[1].fields
    slots = tuple(msgspec.structs.replace(second.slots[0], name=f"slot-{n}") for n in range(len(literals) - 1))
    asked_for = msgspec.structs.replace(template().head[1], fields=(TextPattern(literals, slots),))
    return PromptTemplate("mail", version, (first, asked_for))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_version_that_takes_anothers_requests_is_withheld_until_they_have_one(
    store: SqliteStore, restarts: bool
) -> None:
    """Three customers quote the prompt, and their requests have a version of their own, with one slot. Then the app
    has another line where the other version has two."""
    store.add_template(sorting(("Message: ", "\nThe shop sells hats.\nCustomer: ", ""), 1))
    store.add_template(sorting(("Message: ", ""), 2))
    discovery = Discovery(store)
    quotes = (5, 15, 25)
    for number in range(40):
        line = "The shop sells hats. Customer:" if number in quotes else "\nThe shop sells hats.\nCustomer:"
        record(store, [new(number, f"{WORDS[number]}{line} {number * 37 % 41}")])
    discovery.step()
    assert store.version_counts("mail", 40) == {1: 37, 2: 3}
    if restarts:
        discovery = Discovery(store)
    for number in range(8):
        record(
            store, [new(100 + number, f"{WORDS[50 + number]}\nThe shop sells rugs.\nCustomer: {number * 37 % 41}")]
        )
        discovery.step()
    wide = standings(store)["mail@2"]
    assert wide.state == "drifting"
    assert wide.remark is not None
    assert "fixed text of mail@1" in wide.remark
    third = store.templates()[-1]
    assert (third.name, any("rugs" in text for text in third.literals)) == ("mail@3", True)
    again = [f"{WORDS[70 + n]}\nThe shop sells rugs.\nCustomer: {n * 37 % 41}" for n in range(20)]
    record(store, [new(200 + n, text) for n, text in enumerate(again)])
    discovery.step()
    assert untrusted(store) == {}


def test_a_few_changed_requests_and_one_off_requests_are_nothing(store: SqliteStore) -> None:
    discovery, template = learned(store)
    one_offs = [
        exchange(500 + n, {"model": "m", "messages": [{"role": "user", "content": text}]}, "x", version=None)
        for n, text in enumerate(WORDS[100:140])
    ]
    record(store, [*one_offs, changed(600, "hello"), *messages(40, start=50)])
    assert discovery.step() == []
    assert untrusted(store) == alarms(store) == {}
    assert [one.name for one in store.templates()] == [template.name]


def test_inference_adds_no_version_to_a_pinned_task(store: SqliteStore) -> None:
    record(store, messages(40))
    (name,) = Discovery(store).step()
    task = name.partition("@")[0]
    record(store, [changed(100 + n, text) for n, text in enumerate(WORDS[:40])])
    pin(store, task, True)
    assert Discovery(store).step() == []
    assert [template.name for template in store.templates()] == [name]
    assert store.unexplained_count() == 40
    pin(store, task, False)
    assert len(Discovery(store).step(search=True)) == 1
    assert store.unexplained_count() == 0
