"""A pause that grows before something that keeps ending is started again."""

from __future__ import annotations

from gateway.backoff import Backoff


def test_what_ran_for_long_is_started_again_at_once() -> None:
    backoff = Backoff(sound=10.0)
    assert [backoff.pause(3600.0) for _ in range(50)] == [0.0] * 50


def test_what_keeps_ending_waits_longer_each_time_but_not_for_ever() -> None:
    backoff = Backoff(longest=30.0, sound=10.0)
    assert [backoff.pause(0.1) for _ in range(5)] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert [backoff.pause(0.1) for _ in range(200)][-1] == 30.0
    assert backoff.pause(10.0) == 0.0  # it was sound again
    assert backoff.pause(0.1) == 0.0
