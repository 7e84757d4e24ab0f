"""OpenAI's wire format: chat completions, responses, completions, embeddings, and everything shaped like them."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from typing import Any

import msgspec

from gateway import sse
from gateway.domain.exchange import Usage
from gateway.providers import Count, Provider, RequestFacts, ResponseFacts

_OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}


class _Request(msgspec.Struct):
    model: Any = None
    stream: Any = None


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None

    def noun(self) -> Usage:
        incoming = self.prompt_tokens_details or self.input_tokens_details or _Details()
        outgoing = self.completion_tokens_details or self.output_tokens_details or _Details()
        output = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        return Usage(
            input=self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens,
            cached=incoming.cached_tokens,
            output=output if output is not None else 0,  # embeddings have no output
            reasoning=outgoing.reasoning_tokens,
            source="upstream",
        )


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Response(msgspec.Struct):
    model: str | None = None
    status: Any = None
    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    error: Any = None
    response: _Response | None = None  # the last events of /responses streams wrap it

    def noun(self) -> ResponseFacts:
        if self.response is not None:
            return self.response.noun()
        status = self.status if isinstance(self.status, str) else None
        finish = self.choices[0].finish_reason if self.choices else status
        usage = self.usage.noun() if self.usage else Usage()
        return ResponseFacts(model=self.model, finish_reason=finish, usage=usage, failed=bool(self.error))


_END_MARK = re.compile(rb"[\r\n](?:data: ?\[DONE\]|event: ?response\.(?:completed|incomplete|failed))")


_request = msgspec.json.Decoder(_Request)
_response = msgspec.json.Decoder(_Response)


@functools.lru_cache(1024)
def _operation(path: str) -> str:
    return next((name for suffix, name in _OPERATIONS.items() if path.endswith(suffix)), "other")


class OpenAI:
    """The protocol `openai`."""

    name = "openai"

    def key_header(self, key: str) -> tuple[bytes, bytes]:
        return b"Authorization", b"Bearer " + key.encode()

    def operation(self, path: str) -> str:
        return _operation(path)

    def read_request(self, path: str, body: bytes) -> RequestFacts:
        try:
            read = _request.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return RequestFacts()
        return RequestFacts(read.model if isinstance(read.model, str) else None, read.stream is True)

    def read_response(self, body: bytes, *, streamed: bool) -> ResponseFacts:
        if not streamed:
            return _facts(body) or ResponseFacts()
        found = ResponseFacts()
        for data in sse.last_data(body, 4):  # usage, the finish reason and [DONE] are the last events
            facts = None if data == b"[DONE]" else _facts(data)
            if facts is not None:
                found = ResponseFacts(
                    model=found.model or facts.model,
                    finish_reason=found.finish_reason or facts.finish_reason,
                    usage=found.usage if found.usage.source == "upstream" else facts.usage,
                    failed=found.failed or facts.failed,
                )
        return found

    def ends_stream(self, window: bytes) -> bool:
        hint = b"[DONE]" in window or b"response." in window  # cheaper than the pattern
        return hint and _END_MARK.search(window) is not None

    def aim(self, path: bytes, model: str) -> bytes:
        return path

    def error_body(self, status: int, code: str, message: str) -> bytes:
        kind = "invalid_request_error" if status < 500 else "api_error"
        return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def build() -> Provider:
    return OpenAI()


def _facts(data: bytes) -> ResponseFacts | None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _response.decode(data).noun()
    return None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A chat completion's first choice, the same whether it was streamed or not."""

    text: str = ""
    refusal: str | None = None
    tool_calls: bool = False
    finish_reason: str | None = None
    choices: int = 0


def read_answer(body: bytes, *, streamed: bool) -> Answer | None:
    """The answer in a recorded chat completion, None where there is none."""
    try:
        chunks = [json.loads(body)] if not streamed else _chunks(body)
        return _assemble(chunks)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return None


def _chunks(body: bytes) -> list[Any]:
    return [json.loads(event.data) for event in sse.events(body) if event.data != b"[DONE]"]


def _assemble(chunks: list[Any]) -> Answer | None:
    text, refusal, finish, tools, seen = "", None, None, False, set()
    for chunk in chunks:
        for choice in chunk.get("choices") or []:
            seen.add(choice.get("index", 0))
            if choice.get("index", 0) != 0:
                continue
            part = choice.get("message") or choice.get("delta") or {}
            text += part.get("content") or ""
            if part.get("refusal"):
                refusal = (refusal or "") + part["refusal"]
            tools = tools or bool(part.get("tool_calls") or part.get("function_call"))
            finish = choice.get("finish_reason") or finish
    if not seen:
        return None
    return Answer(text=text, refusal=refusal, tool_calls=tools, finish_reason=finish, choices=len(seen))


def chat_completion(id: str, model: str, text: str, usage: Usage) -> bytes:
    """A whole answer of our own, as `POST /v1/chat/completions` gives it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None},
              "logprobs": None, "finish_reason": "stop"}  # fmt: skip
    return json.dumps(
        _envelope(id, model, "chat.completion") | {"choices": [choice], "usage": _counts(usage)}
    ).encode()


def chat_stream(id: str, model: str, text: str, usage: Usage | None) -> bytes:
    """The same answer as server-sent events; with a usage event where `usage` is given."""
    envelope = _envelope(id, model, "chat.completion.chunk")
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": ""}, None), ({"content": text}, None), ({}, "stop")]  # fmt: skip
    chunks = [
        envelope | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    if usage is not None:
        chunks = [chunk | {"usage": None} for chunk in chunks]
        chunks.append(envelope | {"choices": [], "usage": _counts(usage)})
    data = [json.dumps(chunk).encode() for chunk in chunks] + [b"[DONE]"]
    return b"".join(map(sse.encode, data))


def _envelope(id: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{id}", "object": kind, "created": int(time.time()), "model": model}


def _counts(usage: Usage) -> dict[str, int]:
    given, made = usage.input or 0, usage.output or 0
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")  # no encoder writes one, and it could spell a key differently
_GUARDED = (b'"messages"', b'"role"', b'"content"', b'"tools"', b'"response_format"')


def read_chat(body: bytes) -> dict[str, Any] | None:
    """The parsed chat request, or None where there is none or two readers of the same bytes could disagree.

    JSON lets a key stand twice, and parsers differ in which one they take. In JSON text a quote inside a
    string is always escaped, so `"content"` in quotes is a key or a whole value: when it occurs more often
    than the parsed value explains, a key was repeated (or hidden), and the request is left whole.
    """
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(parsed, dict) or _ESCAPED_LETTER.search(body):
        return None
    messages = parsed.get("messages")
    if not isinstance(messages, list):
        return None
    expected = {
        b'"messages"': 1,
        b'"role"': sum(1 for m in messages if isinstance(m, dict) and "role" in m),
        b'"content"': sum(1 for m in messages if isinstance(m, dict) and "content" in m),
        b'"tools"': int("tools" in parsed),
        b'"response_format"': int("response_format" in parsed),
    }
    if any(body.count(key) > expected[key] for key in _GUARDED):
        return None
    return parsed
