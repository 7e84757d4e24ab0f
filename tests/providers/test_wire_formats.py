"""What is read of requests and answers: models, finish reasons, tokens, and where a stream ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import providers
from gateway.domain.exchange import Usage
from gateway.domain.price import Billed
from gateway.providers import Provider, RequestFacts, ResponseFacts
from gateway.providers.answers import Answer, Choice
from gateway.providers.openai import chat_completion, chat_stream, read_chat

OPENAI, ANTHROPIC, GEMINI = (providers.load(name) for name in ("openai", "anthropic", "gemini"))
ALL = [OPENAI, ANTHROPIC, GEMINI]


def sse(*data: object, names: bool = False) -> bytes:
    out = b""
    for item in data:
        text = item if isinstance(item, str) else json.dumps(item)
        name = f"event: {item['type']}\n" if names and isinstance(item, dict) else ""
        out += f"{name}data: {text}\n\n".encode()
    return out


def upstream(given: int, made: int, **more: Any) -> Usage:
    return Usage(input=given, output=made, source="upstream", **more)


def written(given: int, made: int) -> Usage:
    return Billed(input=given, cached=10, output=made, source="upstream", cache_written=5)


# --- requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "path", "body", "facts"),
    [
        (OPENAI, "/v1/chat/completions", b'{"stream":true,"model":"m","x":[1]}', RequestFacts("m", True)),
        (OPENAI, "/v1/chat/completions", b'{"model":7,"stream":1}', RequestFacts(None, False)),
        (OPENAI, "/v1/chat/completions", b'{"model":"\\ud800"}', RequestFacts()),
        (OPENAI, "/v1/chat/completions", b"[" * 5000, RequestFacts()),
        (OPENAI, "/v1/chat/completions", b"\xff", RequestFacts()),
        (ANTHROPIC, "/v1/messages", b'{"model":"claude","stream":false}', RequestFacts("claude", False)),
        (GEMINI, "/v1beta/models/g-2:streamGenerateContent", b"{}", RequestFacts("g-2", True)),
        (GEMINI, "/v1beta/models", b"", RequestFacts()),
    ],
)
def test_a_request_says_what_it_wants(provider: Provider, path: str, body: bytes, facts: RequestFacts) -> None:
    assert provider.read_request(path, body) == facts


@pytest.mark.parametrize(
    ("provider", "path", "operation"),
    [
        (OPENAI, "/v1/chat/completions", "chat"), (OPENAI, "/v1/responses", "chat"),
        (OPENAI, "/v1/completions", "text_completion"), (OPENAI, "/v1/embeddings", "embeddings"),
        (OPENAI, "/v1/files", "other"), (ANTHROPIC, "/v1/messages", "chat"),
        (ANTHROPIC, "/v1/messages/count_tokens", "other"),
        (GEMINI, "/v1beta/models/g:generateContent", "generate_content"),
    ],
)  # fmt: skip
def test_operations_have_opentelemetrys_names(provider: Provider, path: str, operation: str) -> None:
    assert provider.operation(path) == operation


# --- answers --------------------------------------------------------------------------------------------

CHAT_USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4},
              "completion_tokens_details": {"reasoning_tokens": 3}}  # fmt: skip
CHUNKS = [
    {"model": "m-1", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "usage": None},
    {"model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
ANTHROPIC_STREAM = [
    {"type": "message_start", "message": {"model": "claude-1", "usage": {"input_tokens": 3, "output_tokens": 1,
     "cache_read_input_tokens": 10, "cache_creation_input_tokens": 5}}},
    {"type": "content_block_delta", "delta": {"text": "hi"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}},
    {"type": "message_stop"},
]  # fmt: skip
GEMINI_ANSWER = {
    "modelVersion": "g-2.1", "candidates": [{"finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 4, "thoughtsTokenCount": 2,
                      "cachedContentTokenCount": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "body", "streamed", "facts"),
    [
        (OPENAI, json.dumps({"model": "m-1", "choices": [{"finish_reason": "stop"}], "usage": CHAT_USAGE}), False,
         ResponseFacts(model="m-1", finish_reason="stop", usage=upstream(9, 5, cached=4, reasoning=3))),
        (OPENAI, sse(*CHUNKS, {"model": "m-1", "choices": [], "usage": CHAT_USAGE}, "[DONE]"), True,
         ResponseFacts(model="m-1", finish_reason="stop", usage=upstream(9, 5, cached=4, reasoning=3))),
        (OPENAI, sse(*CHUNKS, "[DONE]"), True, ResponseFacts(model="m-1", finish_reason="stop")),
        (OPENAI, sse(*CHUNKS), True, ResponseFacts(model="m-1", finish_reason="stop")),
        (OPENAI, sse({"type": "response.completed", "response": {"model": "m-2", "status": "completed",
                      "usage": {"input_tokens": 7, "output_tokens": 2}}}, names=True), True,
         ResponseFacts(model="m-2", finish_reason="completed", usage=upstream(7, 2))),
        (OPENAI, json.dumps({"model": "e", "usage": {"prompt_tokens": 6, "total_tokens": 6}}), False,
         ResponseFacts(model="e", usage=upstream(6, 0))),
        (OPENAI, json.dumps({"error": {"message": "down"}}), False, ResponseFacts(failed=True)),
        (OPENAI, sse(CHUNKS[0], {"error": {"message": "down"}}), True, ResponseFacts(model="m-1", failed=True)),
        (OPENAI, json.dumps({"model": "m", "choices": None, "status": 3, "error": None}), False,
         ResponseFacts(model="m")),
        (OPENAI, json.dumps({"model": "m", "usage": {"prompt_tokens": 10**30}}), False, ResponseFacts()),
        (OPENAI, json.dumps({"model": "m", "usage": {"prompt_tokens": -1}}), False, ResponseFacts()),
        (ANTHROPIC, sse(*ANTHROPIC_STREAM, names=True), True,
         ResponseFacts(model="claude-1", finish_reason="end_turn", usage=written(18, 12))),
        (ANTHROPIC, json.dumps({"model": "claude-1", "stop_reason": "max_tokens",
                                "usage": {"input_tokens": 2, "output_tokens": 9}}), False,
         ResponseFacts(model="claude-1", finish_reason="max_tokens", usage=upstream(2, 9))),
        (ANTHROPIC, sse(ANTHROPIC_STREAM[0], {"type": "error", "error": {"type": "overloaded"}}, names=True), True,
         ResponseFacts(model="claude-1", usage=written(18, 1), failed=True)),
        (GEMINI, json.dumps(GEMINI_ANSWER), False,
         ResponseFacts(model="g-2.1", finish_reason="STOP", usage=upstream(8, 6, cached=1, reasoning=2))),
        (GEMINI, sse({"candidates": []}, GEMINI_ANSWER), True,
         ResponseFacts(model="g-2.1", finish_reason="STOP", usage=upstream(8, 6, cached=1, reasoning=2))),
        (GEMINI, json.dumps([{"candidates": [{}]}, GEMINI_ANSWER]), False,
         ResponseFacts(model="g-2.1", finish_reason="STOP", usage=upstream(8, 6, cached=1, reasoning=2))),
        (GEMINI, json.dumps({"error": {"code": 503}}), False, ResponseFacts(failed=True)),
    ],
)  # fmt: skip
def test_an_answer_is_read_for_the_books(
    provider: Provider, body: bytes | str, streamed: bool, facts: ResponseFacts
) -> None:
    data = body if isinstance(body, bytes) else body.encode()
    assert provider.read_response(data, streamed=streamed) == facts


@given(st.sampled_from(ALL), st.binary(max_size=200) | st.text().map(str.encode), st.booleans())
def test_reading_never_raises(provider: Provider, body: bytes, streamed: bool) -> None:
    for data in (body, b'{"usage":' + body + b"}", b"data: " + body + b"\n\n"):
        assert provider.read_response(data, streamed=streamed).usage.source in ("upstream", "none")
        provider.read_request("/v1/chat/completions", data)
        provider.ends_stream(data)


@pytest.mark.parametrize(
    ("provider", "window", "ends"),
    [
        (OPENAI, b"\ndata: [DONE]\n\n", True),
        (OPENAI, b"\rdata:[DONE]", True),
        (OPENAI, b'\ndata: {"content":"data: [DONE]"}\n\n', False),
        (OPENAI, b"\nevent: response.completed\ndata: {", True),
        (OPENAI, b"\nevent: response.output_text.delta\n", False),
        (ANTHROPIC, b"\nevent: message_stop\n", True),
        (ANTHROPIC, b'\ndata: {"text":"event: message_stop"}\n', False),
        (GEMINI, b'{"candidates":[{"finishReason":"STOP"}]}', True),
        (GEMINI, rb'{"text":"\"finishReason\""}', False),
    ],
)
def test_the_end_of_a_stream_is_known_from_inside(provider: Provider, window: bytes, ends: bool) -> None:
    assert provider.ends_stream(window) is ends


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize("status", [400, 418, 503, 599])
def test_an_error_of_any_status_quotes_its_message_and_its_code(provider: Provider, status: int) -> None:
    error = json.loads(provider.error_body(status, "upstream_timeout", 'it took "too" long'))["error"]
    assert 'it took "too" long' in error["message"]
    assert "upstream_timeout" in json.dumps(error).lower()


def test_paths_are_aimed_at_another_model_only_where_they_name_one() -> None:
    assert (
        GEMINI.aim(b"/v1beta/models/pro:generateContent?x=1", "flash")
        == b"/v1beta/models/flash:generateContent?x=1"
    )
    assert GEMINI.aim(b"/v1beta/models?pageSize=3", "flash") == b"/v1beta/models?pageSize=3"
    assert OPENAI.aim(b"/v1/models/pro", "flash") == b"/v1/models/pro"


# --- our own answers, and what training reads ------------------------------------------------------------


@given(st.text(max_size=60), st.booleans())
def test_an_answer_of_our_own_reads_like_any_other(text: str, streamed: bool) -> None:
    usage = Usage(input=3, output=2, source="estimated")
    body = chat_stream("1", "mail-1", text, usage) if streamed else chat_completion("1", "mail-1", text, usage)
    said = Choice(role="assistant", text=text, finish_reason="stop")
    assert OPENAI.read_answer(body, streamed=streamed) == Answer(choices=(said,), id="chatcmpl-1", model="mail-1")
    facts = OPENAI.read_response(body, streamed=streamed)
    assert (facts.model, facts.finish_reason, facts.usage.input, facts.usage.output) == ("mail-1", "stop", 3, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": st.text(max_size=20)})
BODY = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGE, max_size=3)}, optional={"seed": JSON, "temperature": JSON}
)
GUARDED = ("messages", "role", "content", "tools", "response_format")


@given(BODY, st.sampled_from(["messages", "role", "content", "tools"]), st.data())
def test_a_key_that_stands_twice_makes_a_request_unreadable(
    body: dict[str, Any], key: str, data: st.DataObject
) -> None:
    """Two readers may each take the other one, so what is left away here could be obeyed there."""
    between = data.draw(st.sampled_from([", ", ","]))
    text = json.dumps(body, separators=(between, between.replace(",", ":")))
    places = [at for at, letter in enumerate(text) if letter == "{"]
    at = data.draw(st.sampled_from(places)) + 1
    comma = "" if text[at] == "}" else between
    doubled = f'{text[:at]}"{key}"{between.replace(",", ":")}"twice"{comma}{text[at:]}'
    found = read_chat(doubled.encode())
    if found is not None:  # it was no second one: then every reader sees the same
        assert json.loads(doubled, object_pairs_hook=_once) == found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    guarded = [name for name, _ in pairs if name in GUARDED]
    assert len(guarded) == len(set(guarded)), "a guarded key stands twice and was not noticed"
    return dict(pairs)


@given(st.lists(MESSAGE.filter(lambda m: m["content"] not in GUARDED), max_size=3), st.floats(0, 2))
def test_an_ordinary_request_is_read(messages: list[dict[str, Any]], temperature: float) -> None:
    body = {"model": "m", "messages": messages, "temperature": temperature}
    assert read_chat(json.dumps(body, ensure_ascii=False).encode()) == body


@given(st.lists(MESSAGE, max_size=3))
def test_a_request_as_openais_client_writes_it_is_read_whatever_its_texts_say(
    messages: list[dict[str, Any]],
) -> None:
    """Without spaces, what was read and written again tells that nothing stands there twice."""
    body = {"model": "m", "messages": [{"role": "system", "content": "content"}, *messages]}
    assert read_chat(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()) == body
    assert read_chat(json.dumps(body, ensure_ascii=False).encode()) is None  # with spaces it could be a second key


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages":1}', b'{"m\\u0065ssages":[]}', b"[" * 5000])
def test_what_is_no_chat_request_is_none(body: bytes) -> None:
    assert read_chat(body) is None
