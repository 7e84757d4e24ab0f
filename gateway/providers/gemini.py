"""Gemini's wire format: generateContent and streamGenerateContent. The model's name is in the path."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec

from gateway import sse
from gateway.domain.exchange import Usage
from gateway.domain.price import Billed
from gateway.providers import Count, Provider, RequestFacts, ResponseFacts
from gateway.providers.answers import UNREADABLE, Answer, gemini

_MODEL = re.compile(rb"/models/[^/:?]+(:)")
_ERROR_STATUSES = {
    401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""`error.status` by the HTTP mapping of google.rpc.Code, which has no 502."""

_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_CALL = re.compile(r"/models/([^/:]+):([A-Za-z]+)")


class _Part(msgspec.Struct, rename="camel", gc=False):
    modality: str | None = None
    token_count: Count | None = None


class _Counts(msgspec.Struct, rename="camel", gc=False):
    prompt_token_count: Count | None = None
    candidates_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    thoughts_token_count: Count | None = None
    tool_use_prompt_token_count: Count | None = None
    prompt_tokens_details: list[_Part] | None = None
    candidates_tokens_details: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel", gc=False):
    finish_reason: str | None = None


class _Feedback(msgspec.Struct, rename="camel", gc=False):
    block_reason: str | None = None


class _Response(msgspec.Struct, rename="camel", gc=False):
    model_version: str | None = None
    usage_metadata: _Counts | None = None
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
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
        if streamed:
            return _noun(map(_decode, sse.last_data(body, 3)))
        if body[:1] in (b"[", b" ", b"\n", b"\r") and body.lstrip()[:1] == b"[":
            return _noun(_list(body)[:-4:-1])  # a stream that was asked for without `alt=sse`
        return _noun([_decode(body)])

    def read_answer(self, body: bytes, *, streamed: bool) -> Answer | None:
        with contextlib.suppress(*UNREADABLE):
            return gemini.assemble(gemini.read_documents(body, streamed=streamed))
        return None

    def ends_stream(self, window: bytes) -> bool:
        return bool(window.partition(b'"finishReason"')[1])

    def aim(self, path: bytes, model: str) -> bytes:
        return _MODEL.sub(lambda found: b"/models/" + quote(model).encode() + found[1], path, count=1)

    def error_body(self, status: int, code: str, message: str) -> bytes:
        kind = _ERROR_STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
        info = {"@type": _ERROR_INFO, "reason": code.upper(), "domain": "unprompt"}
        return json.dumps(
            {"error": {"code": status, "message": message, "status": kind, "details": [info]}}
        ).encode()


def build() -> Provider:
    return Gemini()


def _list(body: bytes) -> list[_Response]:
    try:
        return _responses.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _decode(data: bytes) -> _Response:
    try:
        return _response.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Response()


def _noun(last: Iterable[_Response]) -> ResponseFacts:
    """From the last parts of an answer, last first: the counts are running totals."""
    model = finish = None
    usage, failed = Usage(), False
    for read in last:
        model = model or read.model_version
        finish = finish or (read.candidates[0].finish_reason if read.candidates else None)
        finish = finish or (read.prompt_feedback.block_reason if read.prompt_feedback else None)
        failed = failed or bool(read.error)
        if usage.source == "none" and read.usage_metadata is not None:
            usage = _usage(read.usage_metadata)
        if finish and usage.source == "upstream":
            break
    return ResponseFacts(model=model, finish_reason=finish, usage=usage, failed=failed)


def _usage(counts: _Counts) -> Usage:
    if counts.prompt_token_count is None:
        return Usage()
    given = counts.prompt_token_count + (counts.tool_use_prompt_token_count or 0)
    made = (counts.candidates_token_count or 0) + (counts.thoughts_token_count or 0)
    cached, thoughts = counts.cached_content_token_count, counts.thoughts_token_count
    heard, said = _audio(counts.prompt_tokens_details), _audio(counts.candidates_tokens_details)
    if not (heard or said):
        return Usage(input=given, cached=cached, output=made, reasoning=thoughts, source="upstream")
    return Billed(
        input=given, cached=cached, output=made, reasoning=thoughts, source="upstream",
        audio_input=heard, audio_output=said,
    )  # fmt: skip


def _audio(parts: list[_Part] | None) -> int:
    return sum(part.token_count or 0 for part in parts or () if part.modality == "AUDIO")
