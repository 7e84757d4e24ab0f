"""Who may start, and who has to come back later."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.route import Match, Route, RouteLimits, Target
from gateway.errors import BodyTooLarge, TooManyRequests
from gateway.proxy.concurrency import (
    FILES_KEPT_FREE,
    Seats,
    check_size,
    clients_at_most,
    is_short_of_files,
    take_seats,
)


def route(limits: RouteLimits | None) -> Route:
    return Route(name="mail", match=Match(), targets=(Target(upstream="openai"),), limits=limits)


def test_two_at_once_and_the_third_when_one_has_left() -> None:
    seats, narrow = Seats(), route(RouteLimits(concurrency=2))
    first, _ = take_seats(seats, narrow, "k1"), take_seats(seats, narrow, "k2")
    with pytest.raises(TooManyRequests, match="route 'mail' has 2 requests under way") as refused:
        take_seats(seats, narrow, "k3")
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "too_many_requests", 1)
    for name in first:
        seats.leave(name)
    assert take_seats(seats, narrow, "k3") == ("mail",)


def test_one_busy_key_does_not_shut_out_the_others() -> None:
    seats, fair = Seats(), route(RouteLimits(concurrency=3, concurrency_per_key=1))
    take_seats(seats, fair, "k1")
    with pytest.raises(TooManyRequests, match="this key has 1 requests under way"):
        take_seats(seats, fair, "k1")
    assert seats.taken("mail") == 1  # the seat that the refused one had for a moment is free again
    assert len(take_seats(seats, fair, "k2")) == 2
    assert len(take_seats(seats, fair, None)) == 1  # who shows no key counts for the route alone


def test_a_route_without_limits_keeps_no_count() -> None:
    seats = Seats()
    assert take_seats(seats, route(None), "k1") == ()
    assert take_seats(seats, route(RouteLimits(body_bytes=1 << 20)), "k1") == ()
    assert seats.taken("mail") == 0


@given(st.lists(st.tuples(st.sampled_from(["k1", "k2", None]), st.booleans()), max_size=100))
def test_no_order_of_coming_and_going_passes_a_limit_or_leaves_a_seat_taken(
    events: list[tuple[str | None, bool]],
) -> None:
    seats, fair, inside = Seats(), route(RouteLimits(concurrency=3, concurrency_per_key=2)), []
    for key, comes in events:
        if comes:
            try:
                inside.append((key, take_seats(seats, fair, key)))
            except TooManyRequests:
                assert len(inside) == 3 or [k for k, _ in inside].count(key) == 2
        elif inside:
            for name in inside.pop(0)[1]:
                seats.leave(name)
        assert seats.taken("mail") == len(inside) <= 3
        assert all([k for k, _ in inside].count(key) <= 2 for key in ("k1", "k2"))
    for _, names in inside:
        for name in names:
            seats.leave(name)
    assert seats._taken == {}


def test_a_route_may_take_smaller_bodies_than_the_server() -> None:
    small = route(RouteLimits(body_bytes=2 << 20))
    check_size(small, 2 << 20)
    check_size(route(None), 1 << 40)
    with pytest.raises(BodyTooLarge, match=r"larger than the 2 MB of route 'mail'; raise its limits\.max_body_mb"):
        check_size(small, (2 << 20) + 1)


@pytest.mark.parametrize(("files", "clients"), [(100, 16), (256, 96), (20_000, 14_904), (65_536, 49_056)])
def test_most_files_are_for_clients_and_some_are_left_for_upstreams(files: int, clients: int) -> None:
    assert clients_at_most(files) == clients
    assert not is_short_of_files(clients + 100, files) or files < 256  # before it comes to that, they are told why


def test_the_number_of_a_file_tells_how_many_there_are() -> None:
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    try:
        assert is_short_of_files(max(opened), max(opened) + FILES_KEPT_FREE)
        assert not is_short_of_files(max(opened), max(opened) + FILES_KEPT_FREE + 1)
    finally:
        for number in opened:
            os.close(number)
