"""Gemini's wire format: generateContent and streamGenerateContent. The model's name is in the path."""

from __future__ import annotations

import contextlib
import json
import re

import msgspec

from gateway import sse
from gateway.domain.exchange import Usage
from gateway.providers import Provider, RequestFacts, ResponseFacts

_CALL = re.compile(r"/models/([^/:]+):([A-Za-z]+)")


class _Counts(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    cached_content_token_count: int | None = None
    thoughts_token_count: int | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    finish_reason: str | None = None


class _Response(msgspec.Struct, rename="camel"):
    model_version: str | None = None
    usage_metadata: _Counts | None = None
    candidates: list[_Candidate] = []


_response = msgspec.json.Decoder(_Response)


class Gemini:
    """The protocol `gemini`. Its candidates' tokens do not count thoughts; our output tokens do."""

    name = "gemini"
    credentials = frozenset({b"x-goog-api-key", b"authorization"})

    def key_header(self, key: str) -> tuple[bytes, bytes]:
        return b"x-goog-api-key", key.encode()

    def operation(self, path: str) -> str:
        return "generate_content" if "enerateContent" in path else "other"

    def read_request(self, path: str, body: bytes) -> RequestFacts:
        call = _CALL.search(path)
        return RequestFacts(call[1], call[2].startswith("stream")) if call else RequestFacts()

    def read_response(self, body: bytes, *, streamed: bool) -> ResponseFacts:
        data = next(sse.last_data(body, 1), b"") if streamed else body
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _noun(_response.decode(data))
        return ResponseFacts()

    def ends_stream(self, piece: bytes) -> bool:
        return b'"finishReason"' in piece

    def error_body(self, status: int, code: str, message: str) -> bytes:
        return json.dumps({"error": {"code": status, "message": message, "status": code.upper()}}).encode()


def build() -> Provider:
    return Gemini()


def _noun(read: _Response) -> ResponseFacts:
    finish = read.candidates[0].finish_reason if read.candidates else None
    counts = read.usage_metadata
    if counts is None or counts.prompt_token_count is None:
        return ResponseFacts(model=read.model_version, finish_reason=finish)
    thoughts = counts.thoughts_token_count or 0
    usage = Usage(
        input=counts.prompt_token_count,
        cached=counts.cached_content_token_count,
        output=(counts.candidates_token_count or 0) + thoughts,
        reasoning=counts.thoughts_token_count,
        source="upstream",
    )
    return ResponseFacts(model=read.model_version, finish_reason=finish, usage=usage)
