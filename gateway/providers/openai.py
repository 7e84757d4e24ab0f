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
from gateway.domain.price import Billed
from gateway.providers import Count, Provider, RequestFacts, ResponseFacts
from gateway.providers.answers import UNREADABLE, Answer, chat, documents, responses
from gateway.providers.huge import HUGE

_OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}


class _Request(msgspec.Struct, gc=False):
    model: Any = None
    stream: Any = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    audio_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    input_token_details: _Details | None = None  # transcriptions spell it so

    def noun(self, tier: str | None) -> Usage:
        given = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        made = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        if given is None:  # counted in seconds, or not at all
            return _NONE
        incoming = self.prompt_tokens_details or self.input_tokens_details or self.input_token_details or _NOTHING
        outgoing = self.completion_tokens_details or self.output_tokens_details or _NOTHING
        if made is None:
            made = 0  # embeddings have no output
        cached, reasoning = incoming.cached_tokens, outgoing.reasoning_tokens
        written, heard, said = incoming.cache_write_tokens, incoming.audio_tokens, outgoing.audio_tokens
        if not (written or heard or said or tier):
            return Usage(input=given, cached=cached, output=made, reasoning=reasoning, source="upstream")
        return Billed(
            input=given, cached=cached, output=made, reasoning=reasoning, source="upstream", tier=tier,
            cache_written=written or 0, audio_input=heard or 0, audio_output=said or 0,
        )  # fmt: skip


_NOTHING = _Details()
_NONE = Usage()


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    usage: _Usage | None = None  # Moonshot's streams have it here


class _Groq(msgspec.Struct, gc=False):
    usage: _Usage | None = None


class _Response(msgspec.Struct, gc=False):
    model: str | None = None
    status: Any = None
    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    error: Any = None
    type: Any = None
    service_tier: Any = None
    x_groq: _Groq | None = None
    response: _Response | None = None  # the last events of /responses streams wrap it

    def noun(self) -> ResponseFacts:
        if self.response is not None:
            return self.response.noun()
        choice = self.choices[0] if self.choices else None
        finish = choice.finish_reason if choice else self.status if isinstance(self.status, str) else None
        counts = self.usage or (choice and choice.usage) or (self.x_groq and self.x_groq.usage)
        failed = bool(self.error) or self.type == "error"
        if not counts:
            return ResponseFacts(model=self.model, finish_reason=finish, failed=failed)
        tier = (
            self.service_tier if self.service_tier not in _ORDINARY and isinstance(self.service_tier, str) else None
        )
        return ResponseFacts(model=self.model, finish_reason=finish, usage=counts.noun(tier), failed=failed)


_ORDINARY = (None, "default", "auto", "standard")


_ERROR_TYPES = {429: "rate_limit_error", 503: "service_unavailable_error"}
"""`error.type` after OpenAI's guide to its error codes, where it is not that of all other 4xx or 5xx."""

_END_MARK = re.compile(rb"[\r\n](?:data: ?\[DONE\]|event: ?response\.(?:completed|incomplete|failed))")


_request = msgspec.json.Decoder(_Request)
_response = msgspec.json.Decoder(_Response)
_write = msgspec.json.Encoder().encode


_LONGEST_SUFFIX = max(map(len, _OPERATIONS))


@functools.lru_cache(1024)
def _operation(end: str) -> str:
    """By a path's last `_LONGEST_SUFFIX` characters: whole paths, which clients make up, are not kept."""
    return next((name for suffix, name in _OPERATIONS.items() if end.endswith(suffix)), "other")


class OpenAI:
    """The protocol `openai`."""

    name = "openai"

    def key_header(self, key: str) -> tuple[bytes, bytes]:
        return b"Authorization", b"Bearer " + key.encode()

    def operation(self, path: str) -> str:
        return _operation(path[-_LONGEST_SUFFIX:])

    def read_request(self, path: str, body: bytes) -> RequestFacts:
        try:
            read = _request.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return RequestFacts()
        return RequestFacts(read.model if isinstance(read.model, str) else None, read.stream is True)

    def read_response(self, body: bytes, *, streamed: bool) -> ResponseFacts:
        if streamed:
            return _last_facts(body)
        return (_facts(body) if len(body) < HUGE else _ends_facts(body)) or ResponseFacts()

    def read_answer(self, body: bytes, *, streamed: bool) -> Answer | None:
        with contextlib.suppress(*UNREADABLE):
            items = documents(body, streamed=streamed)
            if any(map(responses.is_response, items)):
                return responses.assemble(items)
            return chat.assemble(items)
        return None

    def ends_stream(self, window: bytes) -> bool:
        hint = window.partition(b"[DONE]")[1] or window.partition(b"response.")[1]  # cheaper than the pattern
        return bool(hint) and _END_MARK.search(window) is not None

    def aim(self, path: bytes, model: str) -> bytes:
        return path

    def error_body(self, status: int, code: str, message: str) -> bytes:
        kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def build() -> Provider:
    return OpenAI()


def _facts(data: bytes) -> ResponseFacts | None:
    try:  # cheaper than `contextlib.suppress`, here and in the other formats: once for each answer
        return _response.decode(data).noun()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _last_facts(stream: bytes) -> ResponseFacts:
    """Usage, the finish reason and [DONE] are the last events; of two that say something, the later one counts."""
    model = finish = None
    usage, failed = _NONE, False
    tells_usage = b'"usage"' in stream[-4096:]  # else nothing is left to find once it has finished
    for data in sse.last_data(stream, 8):
        facts = None if data == b"[DONE]" else _facts(data)
        if facts is None:
            continue
        model, finish = model or facts.model, finish or facts.finish_reason
        failed = failed or facts.failed
        if usage.source == "none":
            usage = facts.usage
        if finish and (usage.source == "upstream" or not tells_usage):
            break
    return ResponseFacts(model=model, finish_reason=finish, usage=usage, failed=failed)


def _ends_facts(body: bytes) -> ResponseFacts | None:
    """Of a huge answer (embeddings, pictures): what its first and last keys say, the middle unread.

    From an outermost key on, the rest of the body is an object without its opening brace; from an inner key
    on it is none.
    """
    for key in (b'"model"', b'"usage"'):
        at = body.rfind(key, len(body) - 8192)
        facts = _facts(b"{" + body[at:]) if at > 0 else None
        if facts is not None and facts.usage.source == "upstream":
            break
    else:
        return None
    head = body[: body.find(b"{", 1, 4096)].rpartition(b",")[0]
    first = _facts(head + b"}") if facts.model is None and head else None
    return msgspec.structs.replace(facts, model=first.model) if first else facts


def chat_completion(id: str, model: str, text: str, usage: Usage) -> bytes:
    """A whole answer of our own, as `POST /v1/chat/completions` gives it."""
    return json.dumps(_completion(id, model, text, usage)).encode()


def chat_stream(id: str, model: str, text: str, usage: Usage | None) -> bytes:
    """The same answer as server-sent events; with a usage event where `usage` is given."""
    return as_stream(_completion(id, model, text, usage or _NONE), with_usage=usage is not None)


def as_stream(said: dict[str, Any], *, with_usage: bool) -> bytes:
    """A chat completion with one choice as server-sent events: who speaks, all that is said, the end, and the usage
    where it is wanted.

    Raises:
        KeyError, ValueError, AttributeError: it is none.
    """
    (choice,) = said["choices"]
    envelope = {name: value for name, value in said.items() if name not in ("choices", "usage")}
    envelope["object"] = "chat.completion.chunk"
    nothing: dict[str, Any] = {"usage": None} if with_usage else {}
    message = {name: value for name, value in choice["message"].items() if value is not None}
    rest = {name: value for name, value in choice.items() if name not in ("message", "logprobs", "finish_reason")}
    role = {"role": message.pop("role", "assistant"), "content": ""}
    parts: list[tuple[dict[str, Any], Any, Any]] = [
        (role, None, None), (message, choice["logprobs"], None), ({}, None, choice["finish_reason"])]  # fmt: skip
    chunks = [
        envelope | {"choices": [{**rest, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]} | nothing
        for delta, logprobs, finish in parts
    ]
    if with_usage:
        chunks.append(envelope | {"choices": [], "usage": said.get("usage")})
    data = [json.dumps(chunk).encode() for chunk in chunks] + [b"[DONE]"]
    return b"".join(map(sse.encode, data))


def _completion(id: str, model: str, text: str, usage: Usage) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None},
              "logprobs": None, "finish_reason": "stop"}  # fmt: skip
    return _envelope(id, model, "chat.completion") | {"choices": [choice], "usage": _counts(usage)}


def _envelope(id: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{id}", "object": kind, "created": int(time.time()), "model": model}


def _counts(usage: Usage) -> dict[str, int]:
    given, made = usage.input or 0, usage.output or 0
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


_ESCAPED_LETTER = re.compile(
    rb"\\u00(?:[4-6]|7[0-9a-eA-E])"
)  # no encoder writes one, and it could spell a key differently
_GUARDED = re.compile(rb'"(messages|role|content|tools|response_format)"')
_LONGEST_KEY = len('"response_format"') - 1
_LONGEST_ESCAPE = len(rb"\u0061") - 1


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
    if not isinstance(parsed, dict):
        return None
    messages = parsed.get("messages")
    if not isinstance(messages, list):
        return None
    return parsed if _is_plain(body, parsed) or _is_unambiguous(body, parsed, messages) else None


def _is_plain(body: bytes, parsed: dict[str, Any]) -> bool:
    """Whether the body is what `parsed` is written as without spaces, as OpenAI's own client writes it: then no key
    stands in it twice, and none is hidden. That is cheaper than to look for them."""
    colon = body.find(b":")
    if body[colon + 1 : colon + 2] == b" ":
        return False
    try:
        return _write(parsed) == body
    except (UnicodeEncodeError, RecursionError):
        return False


def _is_unambiguous(body: bytes, parsed: dict[str, Any], messages: list[Any]) -> bool:
    """Whether no key stands twice, as far as that matters, nor could be spelled in another way."""
    if b"\\" in body and _ESCAPED_LETTER.search(body):
        return False
    objects = [message for message in messages if isinstance(message, dict)]
    expected = {
        b"messages": 1,
        b"role": sum(["role" in message for message in objects]),
        b"content": sum(["content" in message for message in objects]),
        b"tools": int("tools" in parsed),
        b"response_format": int("response_format" in parsed),
    }
    for key in _GUARDED.findall(body):
        expected[key] -= 1
    return min(expected.values()) >= 0


def could_hide_keys(body: bytes, start: int, end: int) -> bool:
    """Whether `read_chat` could take something in this stretch of a body, which is the inside of one string, for a
    key, or for one that is spelled otherwise."""
    first, behind = max(0, start - _LONGEST_ESCAPE), end + _LONGEST_ESCAPE
    if body.find(b"\\", first, behind) >= 0 and _ESCAPED_LETTER.search(body, first, behind):
        return True
    behind = end + _LONGEST_KEY
    found = _GUARDED.search(body, max(0, start - _LONGEST_KEY), behind)
    while found is not None and found.end() <= start:
        found = _GUARDED.search(body, found.end(), behind)
    return found is not None and found.start() < end
