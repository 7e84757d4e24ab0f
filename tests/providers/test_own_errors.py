"""Errors of our own, in the words that each provider's clients know."""

from __future__ import annotations

import http
import json
from typing import Any

import openai
import pytest
from relaying import answering, response, story, upstream

from gateway import errors, providers
from gateway.errors import GatewayError

BUSY = "route 'all' has 2 requests under way"
EVERY: tuple[tuple[GatewayError, str, str, str, type[openai.APIStatusError]], ...] = (
    (errors.BadRequest(BUSY), "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT",
     openai.BadRequestError),
    (errors.Forbidden(BUSY), "invalid_request_error", "permission_error", "PERMISSION_DENIED",
     openai.PermissionDeniedError),
    (errors.UnknownPath(BUSY), "invalid_request_error", "not_found_error", "NOT_FOUND", openai.NotFoundError),
    (errors.Refused(BUSY), "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT",
     openai.ConflictError),
    (errors.UnknownPage(BUSY), "invalid_request_error", "not_found_error", "NOT_FOUND", openai.NotFoundError),
    (errors.UnknownExchange(BUSY), "invalid_request_error", "not_found_error", "NOT_FOUND", openai.NotFoundError),
    (errors.BodyTooLarge(BUSY), "invalid_request_error", "request_too_large", "INVALID_ARGUMENT",
     openai.APIStatusError),
    (errors.TooManyRequests(BUSY), "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED",
     openai.RateLimitError),
    (errors.GatewayError(BUSY), "server_error", "api_error", "INTERNAL", openai.InternalServerError),
    (errors.UpstreamError(BUSY), "server_error", "api_error", "UNAVAILABLE", openai.InternalServerError),
    (errors.UpstreamUnreachable(BUSY), "server_error", "api_error", "UNAVAILABLE", openai.InternalServerError),
    (errors.UpstreamBroken(BUSY), "server_error", "api_error", "UNAVAILABLE", openai.InternalServerError),
    (errors.Abstained(BUSY), "server_error", "api_error", "UNAVAILABLE", openai.InternalServerError),
    (errors.Overloaded(BUSY), "service_unavailable_error", "overloaded_error", "UNAVAILABLE",
     openai.InternalServerError),
    (errors.OutOfSockets(BUSY), "service_unavailable_error", "overloaded_error", "UNAVAILABLE",
     openai.InternalServerError),
    (errors.StoreUnavailable(BUSY), "service_unavailable_error", "overloaded_error", "UNAVAILABLE",
     openai.InternalServerError),
    (errors.CircuitOpen(BUSY, 30), "service_unavailable_error", "overloaded_error", "UNAVAILABLE",
     openai.InternalServerError),
    (errors.UpstreamTimeout(BUSY), "server_error", "timeout_error", "DEADLINE_EXCEEDED",
     openai.InternalServerError),
)  # fmt: skip
NAMES = [type(row[0]).__name__ for row in EVERY]


def said(provider: str, error: GatewayError) -> dict[str, Any]:
    body = providers.load(provider).error_body(error.status, error.code, str(error))
    whole: dict[str, Any] = json.loads(body)
    return whole


def test_no_error_of_ours_is_missing_here() -> None:
    assert {row[0].code for row in EVERY} == errors.CODES


@pytest.mark.parametrize(("error", "word"), [(row[0], row[1]) for row in EVERY], ids=NAMES)
def test_openai_clients_are_told_in_openais_words(error: GatewayError, word: str) -> None:
    assert said("openai", error) == {"error": {"message": BUSY, "type": word, "param": None, "code": error.code}}


@pytest.mark.parametrize(("error", "word"), [(row[0], row[2]) for row in EVERY], ids=NAMES)
def test_anthropic_clients_are_told_in_anthropics_words(error: GatewayError, word: str) -> None:
    """There is no place for a code but the text."""
    assert said("anthropic", error) == {
        "type": "error",
        "error": {"type": word, "message": f"{BUSY} [{error.code}]"},
    }


@pytest.mark.parametrize(("error", "word"), [(row[0], row[3]) for row in EVERY], ids=NAMES)
def test_gemini_clients_are_told_in_googles_words(error: GatewayError, word: str) -> None:
    told = said("gemini", error)["error"]
    (detail,) = told.pop("details")
    assert told == {"code": error.status, "message": BUSY, "status": word}
    assert detail == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": error.code.upper(),
        "domain": "unprompt",
    }


@story
async def test_the_openai_library_raises_what_its_users_catch() -> None:
    for error, word, _, _, raised in EVERY:
        body = providers.load("openai").error_body(error.status, error.code, str(error))
        status = f"{error.status} {http.HTTPStatus(error.status).phrase}".encode()
        async with upstream(answering(response(body, status=status))) as ours:
            client = openai.AsyncOpenAI(base_url=ours.url, api_key="sk-nobodys-key", max_retries=0)
            with pytest.raises(raised, match="2 requests under way") as caught:
                await client.models.list()
            await client.close()
        assert (caught.type, caught.value.status_code) == (raised, error.status)
        assert (caught.value.type, caught.value.code) == (word, error.code)
