"""The books: what a task's stripped requests saved, beside what their whole prompts would have cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.exchange import Exchange
from gateway.pipeline.savings import savings
from gateway.stores.ledger import Entry, ServedAs, entries
from gateway.stores.sqlite import SqliteStore

DAY = 86400.0


def entry(
    served: ServedAs, n: int, usd: float | None, ms: float, *, day: int = 20000, target: str = "o/big"
) -> Entry:
    """So many exchanges of one day, each of this cost (None: unpriced) and duration."""
    priced = 0 if usd is None else n
    return Entry("mail", day, served, target, n, priced, (usd or 0.0) * n, n, ms * n)


def test_a_thousand_stripped_requests_beside_what_the_incumbent_takes() -> None:
    book = [
        entry("whole", 100, 0.004, 1200, day=19999),
        entry("stripped", 1000, 0.0001, 200, target="local/mail-1"),
    ]
    saved = savings(book)["mail"]
    assert saved.usd == pytest.approx(1000 * (0.004 - 0.0001))
    assert saved.seconds == pytest.approx(1000.0)
    assert [(day.day, day.stripped) for day in saved.days] == [(20000 * DAY, 1000)]


def test_audits_of_the_same_day_say_it_better_and_their_cost_is_taken_off() -> None:
    book = [
        entry("whole", 100, 0.004, 1000, day=19999),
        entry("stripped", 1000, 0.0, 0, target="local/mail-1"),
        entry("audit", 50, 0.006, 1500),  # the requests have grown longer since
    ]
    saved = savings(book)["mail"]
    assert saved.overhead_usd == pytest.approx(0.3)
    assert saved.usd == pytest.approx(1000 * 0.006 - 0.3)
    assert saved.seconds == pytest.approx(1500.0)


def test_what_has_no_price_is_unknown_and_not_nothing() -> None:
    book = [entry("whole", 100, None, 900), entry("stripped", 10, 0.0, 100, target="local/mail-1")]
    saved = savings(book)["mail"]
    assert saved.usd is None
    assert saved.seconds == pytest.approx(8.0)


def test_another_model_that_some_asked_for_is_no_incumbent() -> None:
    book = [
        entry("whole", 90, 0.004, 1000),
        entry("whole", 10, 0.4, 9000, target="o/huge"),
        entry("stripped", 100, 0.0, 0, target="local/mail-1"),
    ]
    assert savings(book)["mail"].usd == pytest.approx(0.4)


def test_a_shadow_costs_before_it_saves() -> None:
    saved = savings([entry("whole", 100, 0.004, 1000), entry("shadow", 100, 0.001, 300, target="t/x")])["mail"]
    assert saved.stripped == 0
    assert saved.usd == pytest.approx(-0.1)


def test_a_task_without_stripped_requests_is_not_told_of() -> None:
    assert savings([entry("whole", 100, 0.004, 1000)]) == {}


ENTRIES = st.builds(
    entry, st.sampled_from(["stripped", "whole", "audit", "shadow"]), st.integers(1, 1000),
    st.none() | st.floats(0, 1), st.floats(0, 1e5), day=st.integers(20000, 20005),
)  # fmt: skip


@given(st.lists(ENTRIES, max_size=20))
def test_the_days_add_up(book: list[Entry]) -> None:
    for saved in savings(book).values():
        assert saved.stripped == sum(day.stripped for day in saved.days)
        known = [day.usd for day in saved.days if day.usd is not None]
        assert saved.usd == (pytest.approx(sum(known)) if known else None)


# --- entered -------------------------------------------------------------------------------------------


def asked(number: int, **values: Any) -> Exchange:
    usual: dict[str, Any] = {
        "complete": True,
        "status": 200,
        "target": "o/big",
        "cost_usd": 0.004,
        "latency_ms": 1000.0,
    }
    return Exchange(id=f"e{number:04}", started_at=20000 * DAY + number, **(usual | values))


def test_an_exchange_is_entered_once_when_its_task_is_known(store: SqliteStore) -> None:
    store.absorb(
        "segment", 0, [asked(1), asked(2, target="local/m", stripped=True, cost_usd=0.0), asked(3, copy_of="e0002")]
    )
    assert entries(store) == []
    found: dict[str, tuple[str, int] | None] = {f"e{n:04}": ("mail", 1) for n in (1, 2, 3)}
    store.assign(found)
    store.assign(found)  # looked at again
    book = {one.served: (one.exchanges, one.cost_usd, one.latency_ms) for one in entries(store)}
    assert book == {"whole": (1, 0.004, 1000.0), "stripped": (1, 0.0, 1000.0), "audit": (1, 0.004, 1000.0)}


def test_what_belongs_to_no_task_is_entered_when_it_does(store: SqliteStore) -> None:
    store.absorb("segment", 0, [asked(1)])
    store.assign({"e0001": None})
    assert entries(store) == []
    store.assign({"e0001": ("mail", 1)})
    assert [one.exchanges for one in entries(store)] == [1]


def test_a_task_that_the_relay_knew_at_once_is_entered_too(store: SqliteStore) -> None:
    store.absorb("segment", 0, [asked(1, task="mail")])
    store.assign({"e0001": ("mail", 1)})
    assert [(one.task, one.exchanges) for one in entries(store, "mail")] == [("mail", 1)]


@pytest.mark.parametrize("failed", [{"status": 503}, {"status": None}, {"target": None}])
def test_what_was_not_answered_is_in_no_book(store: SqliteStore, failed: dict[str, Any]) -> None:
    store.absorb("segment", 0, [asked(1, **failed)])
    store.assign({"e0001": ("mail", 1)})
    assert entries(store) == []
