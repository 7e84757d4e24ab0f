"""How an exchange ended, by the error that ended it; and what a record that cannot be made does to it: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from relaying import ANSWER, CHAT, answering, openai, relay, request, response, story, upstream

from gateway import errors
from gateway.domain.exchange import Outcome
from gateway.errors import GatewayError
from gateway.proxy.record import Recording, outcome_of

ENDED: tuple[tuple[GatewayError, Outcome], ...] = (
    (errors.BadRequest(), Outcome.CALLER_ERROR),
    (errors.Forbidden(), Outcome.CALLER_ERROR),
    (errors.UnknownPath(), Outcome.CALLER_ERROR),
    (errors.Refused(), Outcome.CALLER_ERROR),
    (errors.UnknownPage(), Outcome.CALLER_ERROR),
    (errors.UnknownExchange(), Outcome.CALLER_ERROR),
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


def broken(*_given: object) -> NoReturn:
    """A fault of ours."""
    raise RuntimeError("no record of this")


@story
async def test_a_request_whose_record_can_never_be_made_is_answered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Recording, "_note_request", broken)
    async with upstream(answering(response(ANSWER))) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, len(up.requests)) == (500, 0)  # nobody was asked without a record
    assert "a request that is turned down cannot be recorded" in caplog.text


@story
async def test_an_answer_whose_record_cannot_be_made_is_not_held_hostage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Recording, "_make_end", broken)
    async with upstream(answering(response(ANSWER))) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT))
        assert (answer.status, answer.body) == (200, ANSWER)
    assert "its end cannot be recorded" in caplog.text
