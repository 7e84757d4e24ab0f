"""Anthropic's wire format: messages."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec

from gateway import sse
from gateway.domain.exchange import Usage
from gateway.domain.price import Billed
from gateway.providers import Count, Provider, RequestFacts, ResponseFacts, openai
from gateway.providers.answers import UNREADABLE, Answer, anthropic, documents


class _Written(msgspec.Struct, gc=False):
    ephemeral_1h_input_tokens: Count | None = None


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: _Written | None = None
    service_tier: Any = None


class _Delta(msgspec.Struct, gc=False):
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    model: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    delta: _Delta | None = None
    message: _Message | None = None
    error: Any = None


_ERROR_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""`error.type` after the errors page of Anthropic's API reference, which has its overload at 529."""

_END_MARK = re.compile(rb"[\r\n]event: ?message_stop")
_message = msgspec.json.Decoder(_Message)


class Anthropic:
    """The protocol `anthropic`. Its input tokens do not count cached ones; ours do."""

    name = "anthropic"

    def key_header(self, key: str) -> tuple[bytes, bytes]:
        return b"x-api-key", key.encode()

    def operation(self, path: str) -> str:
        return "chat" if path.endswith("/messages") else "other"

    def read_request(self, path: str, body: bytes) -> RequestFacts:
        return openai.build().read_request(path, body)

    def read_response(self, body: bytes, *, streamed: bool) -> ResponseFacts:
        if not streamed:
            return _noun([_decode(body)])
        start = body.find(b"data:")  # of message_start, with the model and the input tokens
        first = body[start + 5 : body.find(b"\n", start)].rstrip(b"\r")
        parts = [_decode(first)]
        for data in sse.last_data(body, 3):
            parts.append(_decode(data))
            if parts[-1].delta is not None and parts[-1].usage is not None:
                break  # message_delta, behind which only message_stop comes
        return _noun(parts)

    def read_answer(self, body: bytes, *, streamed: bool) -> Answer | None:
        with contextlib.suppress(*UNREADABLE):
            return anthropic.assemble(documents(body, streamed=streamed))
        return None

    def ends_stream(self, window: bytes) -> bool:
        return bool(window.partition(b"message_stop")[1]) and _END_MARK.search(window) is not None

    def aim(self, path: bytes, model: str) -> bytes:
        return path

    def error_body(self, status: int, code: str, message: str) -> bytes:
        kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        text = f"{message} [{code}]"
        return json.dumps({"type": "error", "error": {"type": kind, "message": text}}).encode()


def build() -> Provider:
    return Anthropic()


def _decode(data: bytes) -> _Message:
    try:
        return _message.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Message()


def _noun(parts: list[_Message]) -> ResponseFacts:
    """Later events repeat, complete or raise what the first one said: their counts are running totals."""
    model = finish = None
    failed = any(part.error for part in parts)
    counts = []
    for part in parts:
        whole = part.message or part
        model = model or whole.model
        finish = finish or whole.stop_reason or (part.delta.stop_reason if part.delta else None)
        if whole.usage is not None:
            counts.append(whole.usage)
    return ResponseFacts(model=model, finish_reason=finish, usage=_total(counts), failed=failed)


def _total(counts: list[_Usage]) -> Usage:
    given = made = cached = written = tier = None
    hour = 0
    for count in counts:
        given, made = _more(given, count.input_tokens), _more(made, count.output_tokens)
        cached = _more(cached, count.cache_read_input_tokens)
        written = _more(written, count.cache_creation_input_tokens)
        if count.cache_creation is not None:
            hour = _more(hour, count.cache_creation.ephemeral_1h_input_tokens) or 0
        if isinstance(count.service_tier, str) and count.service_tier != "standard":
            tier = count.service_tier
    if given is None:
        return Usage()
    whole = given + (cached or 0) + (written or 0)
    if not (written or tier):
        return Usage(input=whole, cached=cached, output=made, source="upstream")
    return Billed(
        input=whole, cached=cached, output=made, source="upstream", tier=tier,
        cache_written=written or 0, cache_written_1h=hour,
    )  # fmt: skip


def _more(known: int | None, said: int | None) -> int | None:
    return known if said is None or (known is not None and known > said) else said
