"""How an exchange ended, by the error that ended it."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.domain.exchange import Outcome
from gateway.errors import GatewayError
from gateway.proxy.record import outcome_of

ENDED: tuple[tuple[GatewayError, Outcome], ...] = (
    (errors.BadRequest(), Outcome.CALLER_ERROR),
    (errors.Forbidden(), Outcome.CALLER_ERROR),
    (errors.UnknownPath(), Outcome.CALLER_ERROR),
    (errors.BodyTooLarge(), Outcome.POLICY_LIMIT),
    (errors.TooManyRequests(), Outcome.POLICY_LIMIT),
    (errors.Overloaded(), Outcome.POLICY_LIMIT),
    (errors.CircuitOpen("every target failed", 30), Outcome.POLICY_LIMIT),
    (errors.OutOfSockets("no file left"), Outcome.INTERNAL),  # nobody has set that limit for the gateway's sake
    (errors.StoreUnavailable(), Outcome.INTERNAL),
    (errors.GatewayError(), Outcome.INTERNAL),
    (errors.UpstreamUnreachable("refused"), Outcome.UPSTREAM_CONNECT),
    (errors.UpstreamTimeout("silent"), Outcome.UPSTREAM_TIMEOUT),
    (errors.UpstreamBroken("closed"), Outcome.UPSTREAM_TRUNCATED),
    (errors.UpstreamError("nonsense"), Outcome.UPSTREAM_TRUNCATED),
    (errors.Abstained("not sure"), Outcome.UPSTREAM_TRUNCATED),
)


@pytest.mark.parametrize(("error", "outcome"), ENDED, ids=[type(error).__name__ for error, _ in ENDED])
def test_an_error_of_our_own_says_how_the_exchange_ended(error: GatewayError, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_no_error_is_missing_here() -> None:
    assert {error.code for error, _ in ENDED} == errors.CODES
