"""Whether the same target is asked once more, and after how long. Clock and dice are arguments.

The default is not to: a relay that is invisible leaves retries to the client, whose SDK makes its own.
"""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping

from gateway.domain.route import Retry
from gateway.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable

RESERVE = 10.0
"""Retries that a target may get before its requests have earned any."""

REGAINED_PER_SECOND = 1.0
"""So quickly an unused reserve fills up again, for targets that are seldom asked."""

BUDGETS_AT_MOST = 512


def cause_of(error: UpstreamError) -> str | None:
    """The error as a word of `Retry.when`; None for one that says nothing about a next try (`Abstained`)."""
    if isinstance(error, UpstreamUnreachable):
        return "connect"
    if isinstance(error, UpstreamTimeout):
        return "first_byte" if error.reached else "connect"
    return "broken" if isinstance(error, UpstreamBroken) else None


def pause(
    retry: Retry, tries: int, cause: int | str | None, headers: Mapping[bytes, bytes], *, now: float, point: float
) -> float | None:
    """Seconds until the target is asked again; None: it is not.

    `tries`: how often it was asked so far. `cause`: its status, or what `cause_of` says. `headers`: the first
    values by lower-case name. `now`: seconds since the epoch; `point` (0 <= point < 1) decides the jitter.
    What the upstream asks for (`Retry-After`, `retry-after-ms`, `x-should-retry: false`) is honoured, and more
    than `max_seconds` is not waited for. Else: exponential backoff with full jitter, as in "Exponential Backoff
    And Jitter" (AWS Architecture Blog, 2015).
    """
    if tries >= retry.attempts or cause not in retry.when or headers.get(b"x-should-retry") == b"false":
        return None
    asked = asked_pause(headers, now)
    if asked is None:
        return point * min(retry.max_seconds, retry.base_seconds * 2.0 ** (tries - 1))
    if asked > retry.max_seconds:
        return None
    return asked + point * min(retry.base_seconds, asked)  # all who were told the same moment come one by one


def asked_pause(headers: Mapping[bytes, bytes], now: float) -> float | None:
    """The seconds that an answer asks to wait (RFC 9110, 10.2.3), 0 for a moment that has passed; None: it does
    not say, or makes no sense. A date counts from the answer's own `Date`, whose clock it was read from."""
    milliseconds = _number(headers.get(b"retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get(b"retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    moment = _moment(value)
    if moment is None:
        return None
    here = _moment(headers.get(b"date", b""))
    return max(0.0, moment - (now if here is None else here))


def _number(value: bytes | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _moment(value: bytes) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


class RetryBudget:
    """Of one target: every request earns it a part of a retry, every retry costs a whole one.

    So retries are at most `ratio` of the requests, and a few, however long an outage lasts (as in Finagle's
    `RetryBudget` and gRPC's retry throttling, proposal A6).
    """

    __slots__ = ("_since", "_tokens", "ratio")

    def __init__(self, ratio: float, now: float) -> None:
        self.ratio, self._tokens, self._since = ratio, RESERVE, now

    def deposit(self) -> None:
        """A request goes out for the first time."""
        self._tokens = min(RESERVE, self._tokens + self.ratio)

    def withdraw(self, now: float) -> bool:
        """Whether a retry may go out; `now` in seconds of any clock that never goes back."""
        self._tokens = min(RESERVE, self._tokens + max(0.0, now - self._since) * REGAINED_PER_SECOND)
        self._since = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RetryBudgets:
    """The budget of each target, by its label."""

    def __init__(self) -> None:
        self._budgets: dict[tuple[str, float], RetryBudget] = {}

    def of(self, label: str, retry: Retry, now: float) -> RetryBudget:
        """The target's budget, full where there was none."""
        found = self._budgets.get((label, retry.budget))
        if found is None:
            if len(self._budgets) >= BUDGETS_AT_MOST:  # labels can hold the client's model name: it is bounded
                self._budgets.clear()
            found = self._budgets[label, retry.budget] = RetryBudget(retry.budget, now)
        return found
