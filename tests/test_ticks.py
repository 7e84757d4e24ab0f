"""Whoever waits for a tick waits for the same moment."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from relaying import story

from gateway.ticks import tick, until_next


@given(now=st.floats(0, 1e6), seconds=st.sampled_from([0.05, 0.25, 1.0]))
def test_the_next_tick_is_ahead_and_no_further_than_two_steps(now: float, seconds: float) -> None:
    left = until_next(now, seconds)
    assert 0.0 < left < 2 * seconds
    steps = (now + left) / seconds
    assert abs(steps - round(steps)) < 1e-6


def test_a_timer_that_rang_early_does_not_ring_twice_for_the_same_tick() -> None:
    assert round(until_next(9.9999), 4) == 0.2501
    assert round(until_next(10.0001), 4) == 0.2499


@story
async def test_all_who_wait_are_woken_together() -> None:
    loop, woken = asyncio.get_running_loop(), list[float]()

    async def wait(before: float) -> None:
        await asyncio.sleep(before)
        await tick()
        woken.append(loop.time())

    start = until_next(loop.time())  # from just behind a tick
    await asyncio.gather(*(wait(start + after) for after in (0.03, 0.08, 0.13)))
    assert max(woken) - min(woken) < 0.1
