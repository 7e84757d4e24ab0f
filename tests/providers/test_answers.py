"""What a model said is the same whether its answer was streamed or not, and however the stream was cut."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from wires import ANTHROPIC, ARGUMENTS, GEMINI, OPENAI, TEXT, WORD, Cuts, in_pieces, same, ways_to_write

from gateway import sse
from gateway.providers import Provider
from gateway.providers.answers import Answer, Choice, ToolCall

LOGPROBS = st.lists(
    st.fixed_dictionaries({"token": WORD, "logprob": st.floats(-9, 0), "top_logprobs": st.just([])}),
    min_size=1, max_size=4,
)  # fmt: skip


# --- chat completions -----------------------------------------------------------------------------------


@st.composite
def chat_messages(draw: st.DrawFn) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": draw(TEXT | st.none()),
        "refusal": draw(TEXT | st.none()),
    }
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXT)
    calls = draw(st.lists(st.tuples(WORD, ARGUMENTS), max_size=3))
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for n, (name, given) in enumerate(calls)
        ]
    if draw(st.booleans()):
        message["x_unknown"] = draw(WORD)
    return message


CHAT = st.lists(
    st.tuples(chat_messages(), st.none() | LOGPROBS, st.sampled_from(["stop", "length", "tool_calls"])),
    min_size=1, max_size=3,
)  # fmt: skip


BASE = {"id": "c-1", "created": 1, "model": "m", "system_fingerprint": "fp"}


def chat_whole(choices: list[Any]) -> dict[str, Any]:
    made = [
        {"index": number, "message": message, "finish_reason": finish,
         "logprobs": {"content": logs, "refusal": None} if logs else None}
        for number, (message, logs, finish) in enumerate(choices)
    ]  # fmt: skip
    return BASE | {"object": "chat.completion", "choices": made, "usage": {"prompt_tokens": 1}}


def chat_chunks(choices: list[Any], cut: Cuts, *, indexed: bool) -> list[Any]:
    base = BASE | {"object": "chat.completion.chunk"}
    lanes = []
    for number, (message, logs, finish) in enumerate(choices):
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": None if message["content"] is None else ""}
        ]
        for name in ("reasoning_content", "content", "refusal", "x_unknown"):
            deltas += [{name: piece} for piece in cut(message.get(name) or "")]
        for at, call in enumerate(message.get("tool_calls") or ()):
            first = {"index": at} if indexed else {}
            head, *tail = cut(call["function"]["arguments"])
            deltas.append({"tool_calls": [{**first, **call, "function": {**call["function"], "arguments": head}}]})
            deltas += [{"tool_calls": [{**first, "function": {"arguments": piece}}]} for piece in tail]
        index = {"index": number} if indexed or number else {}
        lane: list[Any] = [{**index, "delta": delta, "finish_reason": None, "logprobs": None} for delta in deltas]
        lane += [
            {**index, "delta": {}, "logprobs": {"content": logs, "refusal": None}}
            for logs in cut(logs or [])
            if logs
        ]
        lanes.append([*lane, {**index, "delta": {}, "finish_reason": finish}])
    return [
        *({**base, "choices": [choice]} for choice in cut.shuffled(lanes)),
        {**base, "choices": [], "usage": {}},
    ]


@given(CHAT, st.booleans(), ways_to_write(), st.data())
@settings(max_examples=600, deadline=None)
def test_a_streamed_chat_completion_is_the_whole_one(
    choices: list[Any], indexed: bool, write: Any, data: Any
) -> None:
    """Several choices mixed, parallel calls, reasoning, refusals, logprobs, unknown fields, indexes missing."""
    chunks = chat_chunks(choices, Cuts(data), indexed=indexed)
    answer = same(OPENAI, chat_whole(choices), write(chunks))
    for choice, (message, _, finish) in zip(answer.choices, choices, strict=True):
        assert (choice.text, choice.finish_reason) == (message["content"] or "", finish)
        assert choice.reasoning == (message.get("reasoning_content") or None)
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        assert [(call.name, call.arguments) for call in choice.tool_calls] == [
            (call["name"], call["arguments"]) for call in calls
        ]


@given(CHAT, ways_to_write(), st.data(), st.lists(st.integers(0, 3000), max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_cut_of_the_bytes_changes_nothing(choices: list[Any], write: Any, data: Any, cuts: list[int]) -> None:
    stream = write(chat_chunks(choices, Cuts(data), indexed=True))
    whole = [event.data for event in sse.events(stream)]
    assert in_pieces(stream, cuts) == whole
    assert in_pieces(stream, list(range(len(stream)))) == whole


@given(chat_messages(), st.data())
@settings(max_examples=200, deadline=None)
def test_openais_own_client_puts_the_same_together(message: dict[str, Any], data: Any) -> None:
    chunks = chat_chunks([(message, None, "stop")], Cuts(data), indexed=True)
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in chunks:
        choices = [{"finish_reason": None} | choice for choice in chunk["choices"]]
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk | {"choices": choices, "usage": None}))
    theirs = state.current_completion_snapshot.choices[0].message
    answer = OPENAI.read_answer(b"".join(sse.encode(json.dumps(chunk).encode()) for chunk in chunks), streamed=True)
    assert answer is not None
    [ours] = answer.choices
    assert (ours.text, ours.refusal) == (theirs.content or "", theirs.refusal or None)
    calls = [(call.id, call.name, call.arguments) for call in ours.tool_calls]
    assert calls == [(call.id, call.function.name, call.function.arguments) for call in theirs.tool_calls or ()]


def deltas(*items: dict[str, Any]) -> bytes:
    chunks = [{"choices": [{"index": 0, "delta": item}]} for item in items]
    return b"".join(sse.encode(json.dumps(chunk).encode()) for chunk in chunks)


def call(name: str | None, arguments: str, **more: Any) -> dict[str, Any]:
    return {"function": {**({"name": name} if name else {}), "arguments": arguments}, **more}


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        # every call has the index 0, and only ids tell them apart
        ([call("f", "{}", index=0, id="a"), call("g", "{}", index=0, id="b")],
         [("a", "f", "{}"), ("b", "g", "{}")]),
        # no index: an id begins a call, its pieces follow
        ([call("f", "{", id="a"), call(None, "}"), call("g", "[]", id="b")], [("a", "f", "{}"), ("b", "g", "[]")]),
        # neither index nor id: a second name begins a call
        ([call("f", "{}"), call("g", "{"), call(None, "}")], [(None, "f", "{}"), (None, "g", "{}")]),
        # id and name are repeated with every piece
        ([call("f", "{", index=0, id="a"), call("f", "}", index=0, id="a")], [("a", "f", "{}")]),
        # mixed, and the second one first
        ([call("g", "[", index=1, id="b"), call("f", "{", index=0, id="a"), call(None, "]", index=1),
          call(None, "}", index=0)], [("a", "f", "{}"), ("b", "g", "[]")]),
        # a server that sends objects instead of text
        ([{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}], [("a", "f", '{"x":1}')]),
    ],
)  # fmt: skip
def test_pieces_of_tool_calls_find_their_call(pieces: list[Any], calls: list[Any]) -> None:
    answer = OPENAI.read_answer(deltas(*({"tool_calls": [piece]} for piece in pieces)), streamed=True)
    assert answer is not None
    assert [(c.id, c.name, c.arguments) for c in answer.choices[0].tool_calls] == calls


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


@pytest.mark.parametrize(
    ("message", "choice"),
    [
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
         Choice(role="assistant", tool_calls=(ToolCall(name="f", arguments="{}", kind="function_call"),))),
        ({"tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}]},
         Choice(tool_calls=(ToolCall(id="a", name="sql", arguments="SELECT 1", kind="custom"),))),
        ({"audio": {"id": "a-1", "data": "UklGRg==", "transcript": "hello"}, "content": None},
         Choice(transcript="hello", more={"audio": {"id": "a-1", "data": "UklGRg=="}})),
        ({"content": [THOUGHT, {"type": "text", "text": "ok"}]},
         Choice(text="ok", reasoning="hm", parts=(THOUGHT, {"type": "text", "text": "ok"}))),
        ({"content": "ok", "reasoning": "hm", "annotations": [], "x": {"y": 1}},
         Choice(text="ok", reasoning="hm", more={"x": {"y": 1}})),
        ({"content": "\ud83d\ude42"}, Choice(text="🙂")),
        ({"content": "half \ud83d"}, Choice(text="half \ud83d")),
    ],
)  # fmt: skip
def test_every_kind_of_message_has_its_place(message: dict[str, Any], choice: Choice) -> None:
    body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
    assert OPENAI.read_answer(body, streamed=False) == Answer(choices=(choice,))
    assert OPENAI.read_answer(deltas(message), streamed=True) == Answer(choices=(choice,))


def test_a_character_that_a_stream_was_cut_within_is_whole_again() -> None:
    assert OPENAI.read_answer(deltas({"content": "a\ud83d"}, {"content": "\ude42b"}), streamed=True) == Answer(
        choices=(Choice(text="a🙂b"),)
    )


@given(TEXT, st.data(), ways_to_write())
@settings(deadline=None)
def test_a_streamed_completion_is_the_whole_one(text: str, data: Any, write: Any) -> None:
    logprobs: dict[str, list[Any]] = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}
    whole = {"id": "x", "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "stop"}]}
    chunks = [
        {"id": "x", "choices": [{"index": 0, "text": piece, "finish_reason": None}]} for piece in Cuts(data)(text)
    ]
    pieces = [{name: [values[at]] for name, values in logprobs.items()} for at in (0, 1)]
    chunks += [{"id": "x", "choices": [{"index": 0, "text": "", "logprobs": piece}]} for piece in pieces]
    chunks.append({"id": "x", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    assert same(OPENAI, whole, write(chunks)).choices[0].text == text


# --- what is no answer, or only a part of one ------------------------------------------------------------


@given(
    st.sampled_from([OPENAI, ANTHROPIC, GEMINI]), st.binary(max_size=99) | st.text().map(str.encode), st.booleans()
)
@settings(max_examples=300, deadline=None)
def test_what_is_no_answer_is_none(provider: Provider, body: bytes, streamed: bool) -> None:
    assert provider.read_answer(body, streamed=streamed) is None


NAMES = ["choices", "delta", "message", "tool_calls", "index", "content", "parts", "type", "output", "item"]
NAMES += ["candidates", "function", "response", "content_block", "functionCall"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
)
KINDS = ["response.content_part.added", "message_start", "content_block_delta", "response.output_item.added", None]


@given(st.sampled_from([OPENAI, ANTHROPIC, GEMINI]), st.lists(JSON, max_size=4), st.sampled_from(KINDS))
@settings(max_examples=500, deadline=None)
def test_odd_shapes_never_raise(provider: Provider, items: list[Any], kind: str | None) -> None:
    typed = [item | {"type": kind} if isinstance(item, dict) and kind else item for item in items]
    stream = b"".join(sse.encode(json.dumps(item).encode()) for item in typed)
    for body, streamed in ((stream, True), (json.dumps(items).encode(), False)):
        found = provider.read_answer(body, streamed=streamed)
        assert found is None or found.choices


def test_a_stream_that_was_cut_gives_what_there_was_and_damage_gives_nothing() -> None:
    stream = deltas({"content": "Hel"}, {"content": "lo"})
    cut = OPENAI.read_answer(stream[:-20], streamed=True)
    assert cut is not None
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("Hel", None)
    assert OPENAI.read_answer(stream.replace(b"Hel", b'H"l'), streamed=True) is None


def test_an_error_in_the_midst_is_kept() -> None:
    stream = deltas({"content": "Hel"}) + sse.encode(b'{"error": {"message": "overloaded"}}')
    answer = OPENAI.read_answer(stream, streamed=True)
    assert answer is not None
    assert answer.error == {"message": "overloaded"}


# --- the payloads of the conformance harness, where it is there -------------------------------------------

HARNESS = Path(__file__).parents[3] / "shared" / "conformance" / "payloads.py"
TOOL = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}


@pytest.mark.skipif(not HARNESS.is_file(), reason="the conformance harness is not here")
def test_the_harnesss_streams_and_whole_answers_say_the_same() -> None:
    spec = importlib.util.spec_from_file_location("payloads", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    payloads = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(payloads)
    tool = {"type": "function", "name": "f", "function": {"name": "f", "parameters": TOOL}, "parameters": TOOL}
    asked: list[dict[str, Any]] = [{}, {"n": 3}, {"logprobs": True}, {"model": "mock-refusal"}]
    for body in [*asked, {"tools": [tool], "messages": [{}]}]:
        whole, stream = payloads.chat(body), b"".join(payloads.chat_stream(body))
        assert same(OPENAI, whole, stream).choices[0].logprobs == whole["choices"][0]["logprobs"]
        same(OPENAI, payloads.response(body), b"".join(payloads.response_stream(body)))
    same(OPENAI, payloads.completion({}), b"".join(payloads.completion_stream({})))
    for tools in ([], [{"name": "f", "input_schema": TOOL}]):
        asked_claude = {"tools": tools}
        same(ANTHROPIC, payloads.anthropic(asked_claude), b"".join(payloads.anthropic_stream(asked_claude)))
    for declared in ([], [{"name": "f", "parameters": TOOL}]):
        asked_gemini = {"tools": [{"functionDeclarations": declared}]}
        items = payloads.gemini_stream(asked_gemini)
        answer = same(GEMINI, payloads.gemini(asked_gemini), b"".join(map(payloads.sse, items)))
        assert GEMINI.read_answer(b"".join(payloads.gemini_json_array(items)), streamed=False) == answer
