"""How far the incumbent agrees with itself, and what that allows a candidate."""

from __future__ import annotations

import pytest

from gateway.pipeline.intervals import unpaired_low
from gateway.pipeline.itself import Judged, asked_twice, beside_itself
from gateway.pipeline.scores import Itself

TWICE = Itself(rows=300, value=0.97, source="asked twice by the app")


def judged(rows: int, wrong: int, *, own: int | None = None, again: int = 0, changed: int = 0) -> list[Judged]:
    """So many rows: the first `own` answered by the candidate, its mistakes first; the last `again` asked again,
    changes of mind last."""
    count = rows if own is None else own
    return [
        (0.0 if n < wrong else 1.0, n < count,
         None if n < rows - again else float(n < rows - changed))
        for n in range(rows)
    ]  # fmt: skip


def test_four_of_a_hundred_wrong_on_both_sides_is_no_difference_worth_five_points() -> None:
    """Whether all rows were asked again, or three of five."""
    paired = beside_itself(judged(200, 8, again=200, changed=8), None, 0.95)
    partly = beside_itself(judged(200, 8, again=120, changed=5), None, 0.95)
    assert paired is not None
    assert partly is not None
    assert -0.05 < paired < 0
    assert -0.05 < partly < 0


@pytest.mark.parametrize(("rows", "again"), [(200, 0), (200, 49), (200, 99), (2000, 150)])
def test_too_few_second_answers_say_nothing(rows: int, again: int) -> None:
    assert beside_itself(judged(rows, 8, again=again), None, 0.95) is None


def test_what_the_app_asked_twice_counts_only_for_who_answers_everything() -> None:
    assert beside_itself(judged(200, 8), TWICE, 0.95) == unpaired_low(192, 200, 291, 300, 0.95)
    assert beside_itself(judged(200, 8, own=197), TWICE, 0.95) is None


def test_who_answers_half_of_the_requests_can_do_half_the_harm() -> None:
    """The other half is the incumbent's: as good as itself."""
    all_of_them = beside_itself(judged(300, 9, again=120, changed=3), None, 0.95)
    half = beside_itself(judged(600, 9, own=300, again=450, changed=300), None, 0.95)
    assert all_of_them is not None
    assert half is not None
    assert half > all_of_them


def test_likeness_is_compared_on_the_rows_that_have_both() -> None:
    rows: list[Judged] = [(0.6, True, 0.62 if n % 2 else None) for n in range(200)]
    low = beside_itself(rows, TWICE, 0.95)
    assert low is not None
    assert -0.2 < low < -0.02


@pytest.mark.parametrize(
    ("pairs", "kind", "known"),
    [(100, "classification", True), (99, "classification", False), (300, "extraction", False), (0, "", False)],
)
def test_pairs_of_labels_count_from_a_hundred_on(pairs: int, kind: str, known: bool) -> None:
    assert (asked_twice({"asked_twice": pairs, "asked_twice_alike": pairs // 2}, kind) is not None) == known
    assert asked_twice({}, kind) is None  # a card of an earlier release


def test_two_shares_without_a_difference_differ_by_little_and_the_bound_is_below() -> None:
    assert -0.03 < unpaired_low(200, 200, 300, 300, 0.95) < 0
    assert unpaired_low(150, 200, 300, 300, 0.95) < -0.25
    assert unpaired_low(0, 0, 1, 1, 0.95) == -1.0
    assert unpaired_low(0, 50, 50, 50, 0.95) < -0.9
