"""Gemini's wire format: generateContent and streamGenerateContent. The model's name is in the path."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any
from urllib.parse import quote

import msgspec

from gateway import sse
from gateway.domain.exchange import Usage
from gateway.providers import Count, Provider, RequestFacts, ResponseFacts

_MODEL = re.compile(rb"/models/[^/:?]+(:)")
_CALL = re.compile(r"/models/([^/:]+):([A-Za-z]+)")


class _Counts(msgspec.Struct, rename="camel"):
    prompt_token_count: Count | None = None
    candidates_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    thoughts_token_count: Count | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    finish_reason: str | None = None


class _Response(msgspec.Struct, rename="camel"):
    model_version: str | None = None
    usage_metadata: _Counts | None = None
    candidates: list[_Candidate] | None = None
    error: Any = None


_response = msgspec.json.Decoder(_Response)
_responses = msgspec.json.Decoder(list[_Response])


class Gemini:
    """The protocol `gemini`. Its candidates' tokens do not count thoughts; our output tokens do."""

    name = "gemini"

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
            if data[:1] == b"[":  # a stream that was asked for without `alt=sse`: a list of answers
                return _noun((_responses.decode(data) or [_Response()])[-1])
            return _noun(_response.decode(data))
        return ResponseFacts()

    def ends_stream(self, window: bytes) -> bool:
        return b'"finishReason"' in window

    def aim(self, path: bytes, model: str) -> bytes:
        return _MODEL.sub(lambda found: b"/models/" + quote(model).encode() + found[1], path, count=1)

    def error_body(self, status: int, code: str, message: str) -> bytes:
        return json.dumps({"error": {"code": status, "message": message, "status": code.upper()}}).encode()


def build() -> Provider:
    return Gemini()


def _noun(read: _Response) -> ResponseFacts:
    finish = read.candidates[0].finish_reason if read.candidates else None
    counts, failed = read.usage_metadata, bool(read.error)
    if counts is None or counts.prompt_token_count is None:
        return ResponseFacts(model=read.model_version, finish_reason=finish, failed=failed)
    thoughts = counts.thoughts_token_count or 0
    usage = Usage(
        input=counts.prompt_token_count,
        cached=counts.cached_content_token_count,
        output=(counts.candidates_token_count or 0) + thoughts,
        reasoning=counts.thoughts_token_count,
        source="upstream",
    )
    return ResponseFacts(model=read.model_version, finish_reason=finish, usage=usage, failed=failed)
