"""Usage of streams: asked for without touching another byte, and gone again from what the client gets."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.providers.stream_usage import LARGEST_EDIT, UsageTaker, ask_for_usage, may_ask

# --- who is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "host", "path", "asked"),
    [
        ("auto", "api.openai.com", "/v1/chat/completions", True),
        ("auto", "eu.api.openai.com", "/v1/completions", True),
        ("auto", "api.openai.com", "/v1/responses", False),  # sends it unasked, and refuses the option
        ("auto", "api.mistral.ai", "/v1/chat/completions", False),  # answers 422 to it
        ("auto", "notapi.openai.com.example", "/v1/chat/completions", False),
        ("ask", "localhost", "/v1/chat/completions", True),
        ("ask", "localhost", "/v1/embeddings", False),
        ("leave", "api.openai.com", "/v1/chat/completions", False),
    ],
)
def test_only_hosts_known_to_understand_the_question_are_asked(
    setting: Any, host: str, path: str, asked: bool
) -> None:
    assert may_ask(setting, host, path) is asked


# --- the question ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "asking"),
    [
        (b'{"model":"m","stream":true}',
         b'{"stream_options":{"include_usage":true},"model":"m","stream":true}'),
        (b' \n{ "stream" : true , "messages":[]}',
         b' \n{"stream_options":{"include_usage":true}, "stream" : true , "messages":[]}'),
        (b'{"stream":true,"stream_options":{"include_obfuscation":false}}',
         b'{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}'),
        (b'{"stream":true,"stream_options" :\n{ }}',
         b'{"stream":true,"stream_options" :\n{"include_usage":true }}'),
        (b'{"stream":true,"x":"\\u007f\\u00e9"}',
         b'{"stream_options":{"include_usage":true},"stream":true,"x":"\\u007f\\u00e9"}'),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream":true,"messages":[{"content":"say \\"stream\\": \\"stream_options\\""}]}',
         b'{"stream_options":{"include_usage":true},"stream":true,'
         b'"messages":[{"content":"say \\"stream\\": \\"stream_options\\""}]}'),
    ],
)  # fmt: skip
def test_the_question_is_written_in_and_nothing_else_changes(body: bytes, asking: bytes) -> None:
    assert ask_for_usage(body) == asking


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m"}', b'{"stream":false}', b'{"stream":1}', b'{"stream":"true"}', b"", b"[]", b"{", b"\xff",
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":false}}',
        b'{"stream":true,"stream_options":{"include_usage":null}}',
        b'{"stream":true,"stream_options":7}',
        b'{"stream":false,"stream":true}',  # which one counts, the upstream decides
        b'{"stream":true,"\\u0073tream":false}',
        b'{"stream":true,"stream_options":null,"stream_options":{}}',
        b'{"stream":true,"stream_options":{},"metadata":{"stream_options":{}}}',
        b'{"stream":true,"pad":"' + b"x" * LARGEST_EDIT + b'"}',
        b'{"stream":true' + b',"a":[' * 5000,
    ],
)  # fmt: skip
def test_what_is_no_stream_asks_itself_or_can_be_read_in_two_ways_stays_as_it_is(body: bytes) -> None:
    assert ask_for_usage(body) is None


KEYS = st.sampled_from(["model", "stream", "stream_options", "include_usage", "messages", "é", "x\ny"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(
    st.dictionaries(KEYS, JSON, max_size=4), st.sampled_from([None, 1, "\t"]), st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]),
)  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_an_edited_request_says_what_it_said_and_asks(
    rest: dict[str, Any], indent: Any, ascii_only: bool, separators: tuple[str, str]
) -> None:
    said = rest | {"stream": True}
    body = json.dumps(said, ensure_ascii=ascii_only, indent=indent, separators=separators).encode()
    asking = ask_for_usage(body)
    if asking is not None:
        options = {**(said.get("stream_options") or {}), "include_usage": True}
        assert json.loads(asking) == said | {"stream_options": options}
    elif "stream_options" not in rest:
        assert '"stream"' in json.dumps(rest)  # somewhere else, too


# --- the answer -----------------------------------------------------------------------------------------

BASE = {"id": "c-1", "object": "chat.completion.chunk", "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
DELTAS = st.lists(
    st.sampled_from(
        ["usage", '"usage":null', ',"usage":null}', "é✓", "data: x\n\n", "", "[DONE]", '{"choices":[]}']
    ),
    max_size=5,
)
SHAPES = st.sampled_from([(",", ":"), (", ", ": ")])
EXTRAS = st.sampled_from(
    [{}, {"obfuscation": "aB3"}, {"usage_note": 1}, {"x": {"usage": None}}, {"x": [{"usage": None}, "}"]}]
)


def chunks(deltas: list[str], extra: dict[str, Any], *, asked: bool, nulls: bool, first: bool) -> list[Any]:
    """The chunks of one answer; with `asked`, as the upstream sends them when it was asked for usage."""
    null = {"usage": None} if asked and nulls else {}
    made = [{**BASE, "choices": [{"index": 0, "delta": {"content": delta}}]} for delta in deltas]
    made.append({**BASE, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    out: list[Any] = [{**null, **chunk, **extra} if first else {**chunk, **null, **extra} for chunk in made]
    return [*out, *([{**BASE, "choices": [], "usage": USAGE, **extra}] if asked else []), None]


def wire(items: list[Any], end: str, prefix: str, separators: tuple[str, str], comment: str) -> bytes:
    texts = ["[DONE]" if i is None else json.dumps(i, ensure_ascii=False, separators=separators) for i in items]
    return "".join(f"{prefix}{text}{end}{end}{comment}" for text in texts).encode()


def filtered(stream: bytes, cuts: list[int]) -> bytes:
    taker = UsageTaker()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return b"".join(taker.feed(stream[start:end]) for start, end in pairwise(places)) + taker.close()


@given(
    DELTAS, EXTRAS, SHAPES, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["data: ", "data:"]), st.sampled_from(["", ": ping\n\n"]), st.booleans(),
    st.lists(st.integers(0, 900), max_size=12),
)  # fmt: skip
@settings(max_examples=1000, deadline=None)
def test_the_client_gets_the_stream_that_it_would_have_got(
    deltas: list[str], extra: dict[str, Any], separators: tuple[str, str], nulls: bool, first: bool, end: str,
    prefix: str, comment: str, bom: bool, cuts: list[int],
) -> None:  # fmt: skip
    """Asked or not, whatever the cut: the same bytes (comments after the extra chunk are the upstream's own)."""
    asked, plain = (
        wire(chunks(deltas, extra, asked=a, nulls=nulls, first=first), end, prefix, separators, "")
        for a in (True, False)
    )
    if bom:
        asked, plain = b"\xef\xbb\xbf" + asked, b"\xef\xbb\xbf" + plain
    if comment:
        asked, plain = comment.encode() + asked, comment.encode() + plain
    assert filtered(asked, cuts) == plain
    assert filtered(asked, list(range(len(asked)))) == plain
    assert filtered(asked, []) == plain


@given(st.lists(st.sampled_from([
    b"data: {}", b'data: {"choices":[],"usage":null}', b'data: {"usage":7,"choices":[]}', b"event: usage", b"id: 1",
    b'data: {"choices":[],"usage":{}', b'{"choices":[],"usage":{}}', b": usage", b"", b"", b"data: [DONE]",
    b'data: {"choices":[{"usage":{"prompt_tokens":1}}]}', b'data: {"usage":{},"choices":null}', b"data: \xff usage",
]), max_size=8), st.sampled_from([b"\n", b"\r", b"\r\n"]), st.lists(st.integers(0, 200), max_size=9))  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_odd_streams_keep_their_meaning_whatever_the_cut(lines: list[bytes], end: bytes, cuts: list[int]) -> None:
    stream = end.join(lines)
    expected = end.join(
        line.replace(b'{"choices":[],"usage":null}', b'{"choices":[]}') if line.startswith(b"data") else line
        for line in lines
    )
    assert filtered(stream, cuts) == expected
    assert filtered(stream, list(range(len(stream)))) == expected


def test_a_named_extra_event_leaves_nothing_that_a_client_would_see() -> None:
    stream = b'event: chunk\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n'
    assert filtered(stream, []) == b"event: chunk\n\ndata: [DONE]\n\n"  # an event without data is none


def test_only_the_line_that_is_not_whole_waits() -> None:
    taker = UsageTaker()
    assert taker.feed(b'data: {"a":1}\n\ndata: {"b"') == b'data: {"a":1}\n\n'
    assert taker.feed(b":2}\r") == b'data: {"b":2}\r'
    assert taker.feed(b"\n\r") == b"\n\r"
    assert taker.feed(b"\n") == b"\n"


def test_a_line_longer_than_any_usage_chunk_is_not_collected() -> None:
    taker, left = UsageTaker(), 0
    piece = b"x" * 10_000
    taker.feed(b'data: {"choices":[],"content":"')
    for _ in range(1000):
        left += len(taker.feed(piece))
    assert left > 10_000_000 - 65_536
    assert taker.feed(b'","usage":null}\n\n') == b'","usage":null}\n\n'  # as it came: stated in the docstring
    assert taker.feed(b'data: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n') == b"data: [DONE]\n\n"


def test_a_stream_that_ends_within_the_extra_chunk_or_another() -> None:
    assert filtered(b'data: {"choices":[],"usage":{}}', []) == b""
    assert filtered(b'data: {"choices":[{}],"usage":null}', []) == b'data: {"choices":[{}]}'
    assert filtered(b'data: {"choices":[],"usa', []) == b'data: {"choices":[],"usa'
