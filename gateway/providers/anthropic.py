"""Anthropic's wire format: messages."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec

from gateway import sse
from gateway.domain.exchange import Usage
from gateway.providers import Count, Provider, RequestFacts, ResponseFacts, openai


class _Usage(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    model: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None
    delta: _Delta | None = None
    message: _Message | None = None
    error: Any = None


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
        first = sse.events(body[:16_384])[:1]  # message_start has the model and the input tokens
        return _noun([*(_decode(event.data) for event in first), *map(_decode, sse.last_data(body, 3))])

    def ends_stream(self, window: bytes) -> bool:
        return b"message_stop" in window and _END_MARK.search(window) is not None

    def aim(self, path: bytes, model: str) -> bytes:
        return path

    def error_body(self, status: int, code: str, message: str) -> bytes:
        kind = "invalid_request_error" if status < 500 else "api_error"
        text = f"{message} [{code}]"
        return json.dumps({"type": "error", "error": {"type": kind, "message": text}}).encode()


def build() -> Provider:
    return Anthropic()


def _decode(data: bytes) -> _Message:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _message.decode(data)
    return _Message()


def _noun(parts: list[_Message]) -> ResponseFacts:
    """Later events repeat or complete what the first one said."""
    model = finish = given = cached = written = made = None
    failed = any(part.error for part in parts)
    for part in parts:
        whole = part.message or part
        model = model or whole.model
        finish = finish or whole.stop_reason or (part.delta.stop_reason if part.delta else None)
        usage = part.usage or whole.usage or _Usage()
        given = usage.input_tokens if given is None else given
        cached = usage.cache_read_input_tokens if cached is None else cached
        written = usage.cache_creation_input_tokens if written is None else written
        made = max(made or 0, usage.output_tokens) if usage.output_tokens is not None else made
    if given is None:
        return ResponseFacts(model=model, finish_reason=finish, failed=failed)
    whole_input = given + (cached or 0) + (written or 0)
    counted = Usage(input=whole_input, cached=cached, output=made, source="upstream")
    return ResponseFacts(model=model, finish_reason=finish, usage=counted, failed=failed)
