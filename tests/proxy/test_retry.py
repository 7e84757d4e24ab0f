"""When the same target is asked again, after how long, and how a budget keeps retries from feeding an outage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.route import CAUSES, Retry
from gateway.errors import Abstained, UpstreamBroken, UpstreamTimeout, UpstreamUnreachable
from gateway.proxy.retry import BUDGETS_AT_MOST, RESERVE, RetryBudget, RetryBudgets, asked_pause, cause_of, pause

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
THRICE = Retry(attempts=3, base_seconds=0.5, max_seconds=8.0)


def paused(retry: Retry, tries: int, cause: int | str, headers: dict[bytes, bytes] | None = None) -> float | None:
    """With the longest jitter there is, or nearly."""
    return pause(retry, tries, cause, headers or {}, now=NOW, point=0.999999)


def test_each_pause_is_up_to_twice_the_one_before() -> None:
    patient = Retry(attempts=10, base_seconds=0.5, max_seconds=8.0)
    longest = [paused(patient, tries, 503) for tries in range(1, 10)]
    assert longest == pytest.approx([0.5, 1, 2, 4, 8, 8, 8, 8, 8], rel=1e-4)
    assert pause(patient, 3, 503, {}, now=NOW, point=0.0) == 0.0  # full jitter: from nothing on


def test_what_is_not_asked_for_is_not_retried() -> None:
    assert paused(THRICE, 1, 503) is not None
    assert paused(THRICE, 3, 503) is None  # it was asked three times
    assert paused(THRICE, 1, 400) is None
    assert paused(THRICE, 1, "broken") is None  # it may have been answered, and paid for: only where told so
    assert paused(Retry(when=frozenset({"broken"})), 1, "broken") is not None
    assert paused(Retry(attempts=1), 1, 503) is None


def test_an_abstaining_model_is_no_reason_to_ask_it_again() -> None:
    assert cause_of(Abstained("not sure")) is None
    assert pause(THRICE, 1, cause_of(Abstained("not sure")), {}, now=NOW, point=0.5) is None


def test_failures_in_the_words_of_the_setting() -> None:
    late_connection = UpstreamTimeout("no connection", reached=False)
    errors = [UpstreamUnreachable("refused"), late_connection, UpstreamTimeout("silent"), UpstreamBroken("closed")]
    assert [cause_of(error) for error in errors] == ["connect", "connect", "first_byte", "broken"]
    assert {cause_of(error) for error in errors} <= set(CAUSES)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({b"retry-after": b"7"}, 7.0),
        ({b"retry-after": b"0.25"}, 0.25),
        ({b"retry-after": b"7", b"retry-after-ms": b"120"}, 0.12),
        ({b"retry-after": b"Tue, 14 Nov 2023 22:13:25 GMT"}, 5.0),
        ({b"retry-after": b"Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),  # it has passed
        ({b"retry-after": b"Tue, 14 Nov 2023 23:13:25 GMT", b"date": b"Tue, 14 Nov 2023 23:13:20 GMT"}, 5.0),
        ({b"retry-after": b"soon"}, None),
        ({b"retry-after": b"-3"}, None),
        ({b"retry-after": b"inf"}, None),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b"\xff\xfe"}, None),
        ({b"retry-after": b"Tue, 99 Nov 2023 99:13:25 GMT"}, None),
        ({}, None),
    ],
)
def test_what_an_upstream_asks_for(headers: dict[bytes, bytes], seconds: float | None) -> None:
    assert asked_pause(headers, NOW) == seconds


def test_an_upstreams_wish_is_honoured_and_a_long_one_is_not_waited_for() -> None:
    assert paused(THRICE, 1, 429, {b"retry-after": b"7"}) == pytest.approx(7.5, rel=1e-4)
    assert pause(THRICE, 1, 429, {b"retry-after": b"7"}, now=NOW, point=0.0) == 7.0  # never sooner
    assert paused(THRICE, 1, 429, {b"retry-after": b"60"}) is None
    assert paused(THRICE, 1, 429, {b"x-should-retry": b"false"}) is None


@given(
    st.builds(Retry, attempts=st.integers(1, 10), base_seconds=st.floats(0, 10), max_seconds=st.floats(10, 100)),
    st.integers(1, 12),
    st.sampled_from(CAUSES),
    st.dictionaries(
        st.sampled_from([b"retry-after", b"retry-after-ms", b"date"]),
        st.one_of(st.binary(max_size=40), st.floats().map(lambda number: str(number).encode())),
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_a_pause_is_never_negative_nor_longer_than_the_setting_and_its_jitter(
    retry: Retry, tries: int, cause: int | str, headers: dict[bytes, bytes], point: float
) -> None:
    seconds = pause(retry, tries, cause, headers, now=NOW, point=point)
    assert seconds is None or 0 <= seconds <= retry.max_seconds + retry.base_seconds
    assert seconds is None or (tries < retry.attempts and cause in retry.when)


# --- the budget ----------------------------------------------------------------------------------------


def test_in_an_outage_retries_are_a_share_of_the_requests() -> None:
    budget, granted = RetryBudget(0.2, now=0.0), 0
    for number in range(10_000):  # 1,000 a second for ten seconds; each fails, and would like two retries
        budget.deposit()
        granted += budget.withdraw(number / 1000) + budget.withdraw(number / 1000)
    assert 2_000 <= granted <= 2_000 + RESERVE + 10


def test_a_target_that_is_seldom_asked_has_a_few_retries_all_the_same() -> None:
    budget = RetryBudget(0.0, now=0.0)
    assert [budget.withdraw(0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not budget.withdraw(0.9)
    assert budget.withdraw(1.9)
    assert budget.withdraw(3600.0)


@given(st.floats(0, 1), st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200))
def test_no_history_gets_more_than_its_share(ratio: float, events: list[tuple[bool, float]]) -> None:
    budget, now, requests, granted = RetryBudget(ratio, now=0.0), 0.0, 0, 0
    for is_request, later in events:
        now += later
        if is_request:
            requests += 1
            budget.deposit()
        else:
            granted += budget.withdraw(now)
        assert granted <= RESERVE + ratio * requests + now + 1e-6


def test_each_target_has_its_own_budget_and_keeps_it() -> None:
    budgets = RetryBudgets()
    first = budgets.of("openai/gpt-6", THRICE, 0.0)
    while first.withdraw(0.0):
        pass
    assert budgets.of("openai/gpt-6", THRICE, 0.0) is first
    assert budgets.of("spare/gpt-6", THRICE, 0.0).withdraw(0.0)
    for number in range(2 * BUDGETS_AT_MOST):  # names that clients make up
        budgets.of(f"openai/{number}", THRICE, 0.0)
    assert len(budgets._budgets) <= BUDGETS_AT_MOST
