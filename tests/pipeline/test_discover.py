"""What was recorded finds its task: by a template that is known, by one that is found, or not at all."""

from __future__ import annotations

import gzip
import json

import pytest
import stories
from stories import asked, exchange, template

from gateway.demo.messages import messages as customers_words
from gateway.domain.exchange import Exchange
from gateway.pipeline import discover
from gateway.pipeline.discover import Discovery, recorded
from gateway.pipeline.infer import Inference, Recorded
from gateway.stores.edited import pin
from gateway.stores.sqlite import SqliteStore


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


def test_a_few_requests_are_not_searched_and_a_search_is_not_repeated_for_nothing(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []

    def nothing(requests: list[Recorded], known: object) -> Inference:
        searches.append(len(requests))
        return Inference([], {})

    monkeypatch.setattr(discover, "infer", nothing)
    found = Discovery(store)
    for start, count in ((0, 10), (10, 10), (20, 10), (30, 10), (40, 60)):
        record(store, messages(count, start))
        found.step()
    assert searches == [20, 40, 100]
    found.step(search=True)
    assert searches[-1] == 100
    found.step(search=False)
    assert len(searches) == 4


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


def test_a_changed_prompt_is_a_new_version_of_the_same_task(store: SqliteStore) -> None:
    record(store, messages(60))
    found = Discovery(store)
    found.step()
    (first,) = store.templates()
    changed = [
        exchange(500 + n, asked(text, system=stories.NEW_SYSTEM), "other", version=None)
        for n, text in enumerate(WORDS[:60])
    ]
    record(store, changed)
    found.step()
    assert [one.task for one in store.templates()] == [first.task, first.task]
    assert store.version_counts(first.task, 1000) == {1: 60, 2: 60}


def test_inference_adds_no_version_to_a_pinned_task(store: SqliteStore) -> None:
    record(store, messages(40))
    (name,) = Discovery(store).step()
    task = name.partition("@")[0]
    changed = [exchange(100 + n, asked(text, system=stories.NEW_SYSTEM), "other", version=None)
               for n, text in enumerate(WORDS[:40])]  # fmt: skip
    record(store, changed)
    pin(store, task, True)
    assert Discovery(store).step() == []
    assert [template.name for template in store.templates()] == [name]
    assert store.unexplained_count() == 40
    pin(store, task, False)
    assert len(Discovery(store).step()) == 1
    assert store.unexplained_count() == 0
