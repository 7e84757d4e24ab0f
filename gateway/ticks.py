"""Moments that all share who have to look at something now and then: the process wakes once for all of them.

A process that nobody asks anything should not burn a core's time. To wake costs it far more than what it then
does, with cold caches 50 to 250 microseconds each time.
"""

from __future__ import annotations

import asyncio

QUARTER_SECONDS = 0.25
_TOO_SOON = 0.02


def until_next(now: float, seconds: float = QUARTER_SECONDS) -> float:
    """How long it is to the next tick after `now`, the loop's own time; ticks are `seconds` apart."""
    left = seconds - now % seconds
    return left if left > min(_TOO_SOON, seconds / 2) else left + seconds  # a timer may ring a little early


async def tick(seconds: float = QUARTER_SECONDS) -> None:
    """Sleep until the next one."""
    await asyncio.sleep(until_next(asyncio.get_running_loop().time(), seconds))
