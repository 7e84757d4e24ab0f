"""Answers in a known shape are read without the parser, and nobody can tell."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gateway
from gateway.errors import UpstreamError
from gateway.proxy.capture import KEPT_HEADERS
from gateway.proxy.wire import HOP_BY_HOP
from gateway.upstreams import NOTED, Head, Outgoing
from gateway.upstreams.connection import HttpConnection
from gateway.upstreams.http import HttpCall, HttpUpstream
from gateway.upstreams.shapes import HEADS_TO_LEARN, SHAPES_AT_MOST, Shapes


class Transport(asyncio.Transport):
    is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


class Heard:
    """A sink: all that it was told, and the body that came so."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.body = b""

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        known = head and (head.status, head.raw, head.first, head.length, head.plain)
        self.told.append((known, piece, done))
        self.body += piece

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        self.told.append((framed, piece))
        self.body += piece

    def on_interim(self, head: Head) -> None:
        self.told.append(head.raw)

    def on_failure(self, error: UpstreamError) -> None:
        self.told.append(type(error))

    def on_upload(self, ready: bool) -> None: ...


def connected(upstream: HttpUpstream, transport: Transport | None = None) -> HttpConnection:
    upstream.outbox.flush_soon = lambda: None  # type: ignore[method-assign]  # there is no event loop
    connection = HttpConnection("openai", b"upstream", upstream)
    connection.connection_made(transport or Transport())
    return connection


def asked(upstream: HttpUpstream, connection: HttpConnection, *pieces: bytes, method: bytes = b"POST") -> Heard:
    """What the sink of a call hears when its answer comes in these pieces."""
    sink = Heard()
    request = Outgoing(method=method, path=b"/", lines=b"")
    connection.start(HttpCall(upstream, request, sink, 1.0), reused=True)
    for piece in pieces:
        connection.data_received(piece)
    upstream.outbox.flush()
    return sink


def heard(upstream: HttpUpstream, *pieces: bytes, method: bytes = b"POST") -> tuple[list[Any], bytes, bool]:
    """What the sink of a call hears, its body, and whether the connection stays open."""
    transport = Transport()
    sink = asked(upstream, connected(upstream, transport), *pieces, method=method)
    return sink.told, sink.body, not transport.is_closed


ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 11\r\nConnection: keep-alive\r\nx-ratelimit-left: 99\r\nX-Request-Id: req-1\r\n"
    b'Set-Cookie: a=1; path=/\r\nX-Empty: \r\n\r\n{"ok":true}'
)


CHUNKED_HEAD = ANSWER.partition(b"\r\n\r\n")[0].replace(b"Content-Length: 11", b"Transfer-Encoding: chunked")
CHUNKED = CHUNKED_HEAD + b'\r\n\r\n5\r\n{"ok"\r\nA\r\n: "1234"}\n\r\n0\r\n\r\n'
EVENTS = (b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n', b"data: [DONE]\n\n")


def in_chunks(*pieces: bytes, head: bytes = CHUNKED_HEAD) -> bytes:
    return head + b"\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def taught(*answers: bytes) -> HttpUpstream:
    """An upstream of whose answers so many were seen that their shape is known."""
    upstream = HttpUpstream("openai", "http://upstream/v1")
    for answer in answers:
        for _ in range(HEADS_TO_LEARN):
            heard(upstream, answer)
    return upstream


def test_the_fourth_answer_of_one_shape_is_read_by_its_pattern() -> None:
    shapes = taught(ANSWER).shapes
    later = ANSWER.replace(b"12:00:00", b"12:34:56").replace(b"req-1", b"req-2-longer").replace(b"true", b"null")
    found = shapes.read(later)
    assert found is not None
    head, body = found
    assert body == b'{"ok":null}'
    assert head.raw == later[: -len(body) - 4]
    assert head.first[b"x-request-id"] == b"req-2-longer"
    assert b"x-ratelimit-left" not in head.first  # nobody asks for it


def test_two_answers_are_too_few_to_know_a_shape() -> None:
    upstream = HttpUpstream("openai", "http://upstream/v1")
    for _ in range(HEADS_TO_LEARN - 1):
        heard(upstream, ANSWER)
    assert upstream.shapes.read(ANSWER) is None


NOT_OF_THIS_SHAPE = {
    "another status": ANSWER.replace(b"200 OK", b"201 OK"),
    "a longer status": ANSWER.replace(b"200 OK", b"2000 OK"),
    "an older version": ANSWER.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "it closes the connection": ANSWER.replace(b"keep-alive", b"close"),
    "another order": ANSWER.replace(
        b"Set-Cookie: a=1; path=/\r\nX-Empty: \r\n", b"X-Empty: \r\nSet-Cookie: a=1\r\n"
    ),
    "another spelling": ANSWER.replace(b"Set-Cookie", b"set-cookie"),
    "one header more": ANSWER.replace(b"X-Empty", b"X-New: 1\r\nX-Empty"),
    "one header fewer": ANSWER.replace(b"X-Empty: \r\n", b""),
    "a second cookie": ANSWER.replace(b"X-Empty", b"Set-Cookie: b=2\r\nX-Empty"),
    "a header hidden behind a bare LF": ANSWER.replace(b"path=/", b"path=/\nTransfer-Encoding: chunked"),
    "a bare CR in a value": ANSWER.replace(b"path=/", b"path=\r/"),
    "a folded line": ANSWER.replace(b"path=/", b"\r\n path=/"),
    "chunked, too": ANSWER.replace(b"X-Empty: ", b"Transfer-Encoding: chunked"),
    "a control character in a value": ANSWER.replace(b"path=/", b"path=\x00/"),
    "a tab before a value": ANSWER.replace(b"req-1", b"\treq-1"),
    "spaces around a value": ANSWER.replace(b"req-1", b"  req-1  "),
    "a length that is no number": ANSWER.replace(b": 11", b": +11"),
    "half of it": ANSWER[:-5],
    "half of the head": ANSWER[:90],
    "more than it": ANSWER + b"x",
}


@pytest.mark.parametrize("difference", NOT_OF_THIS_SHAPE)
def test_whatever_differs_is_left_to_the_parser(difference: str) -> None:
    answer = NOT_OF_THIS_SHAPE[difference]
    upstream = taught(ANSWER)
    assert upstream.shapes.read(answer) is None
    assert heard(upstream, answer) == heard(HttpUpstream("openai", "http://upstream/v1"), answer)


@given(
    at=st.integers(0, len(ANSWER)),
    gone=st.integers(0, 12),
    put=st.text(alphabet="\r\n\t :0129aX-\x80é", max_size=4).map(lambda text: text.encode("latin-1")),
)
@settings(max_examples=1500, deadline=None)
def test_no_change_of_an_answer_is_heard_otherwise_than_the_parser_tells_it(at: int, gone: int, put: bytes) -> None:
    answer = ANSWER[:at] + put + ANSWER[at + gone :]
    assert heard(taught(ANSWER), answer) == heard(HttpUpstream("openai", "http://upstream/v1"), answer)


@pytest.mark.parametrize(
    "where",
    [b"OK", b"Date: ", b"20 Nov", b"application", b"Length: ", b"11", b"-left: ", b"99", b"path=/", b"Empty: "],
)
def test_every_byte_that_is_put_into_a_head_is_taken_or_refused_as_by_the_parser(where: bytes) -> None:
    by_the_pattern = set()
    upstream = taught(ANSWER)
    for byte in range(256):
        answer = ANSWER.replace(where, where + bytes([byte]))
        by_the_pattern.add(upstream.shapes.read(answer) is not None)
        assert heard(upstream, answer) == heard(HttpUpstream("openai", "http://upstream/v1"), answer), byte
    assert by_the_pattern == ({False} if where == b"11" else {False, True})


def test_a_chunked_answer_of_a_known_shape_is_read_by_its_pattern() -> None:
    shapes = taught(CHUNKED).shapes
    found = shapes.read(CHUNKED.replace(b"req-1", b"req-2"))
    assert found is not None
    head, body = found
    assert body == b'{"ok": "1234"}\n'
    assert head.raw == CHUNKED_HEAD.replace(b"req-1", b"req-2")
    assert (head.length, head.first[b"transfer-encoding"]) == (None, b"chunked")


NOT_WHOLE_IN_PLAIN_CHUNKS = {
    "no body": CHUNKED_HEAD + b"\r\n\r\n0\r\n\r\n",
    "a size with a zero before it": CHUNKED.replace(b"\r\n5\r\n", b"\r\n05\r\n"),
    "a size of many digits": CHUNKED.replace(b"\r\n5\r\n", b"\r\n0000000000000005\r\n"),
    "a size with a sign": CHUNKED.replace(b"\r\n5\r\n", b"\r\n+5\r\n"),
    "a size with a space": CHUNKED.replace(b"\r\n5\r\n", b"\r\n5 \r\n"),
    "a size as Python writes it": CHUNKED.replace(b"\r\nA\r\n", b"\r\n0xA\r\n"),
    "no size": CHUNKED.replace(b"\r\n5\r\n", b"\r\n\r\n"),
    "an extension": CHUNKED.replace(b"\r\n5\r\n", b"\r\n5;name=value\r\n"),
    "an extension of the last chunk": CHUNKED.replace(b"\r\n0\r\n", b"\r\n0;name=value\r\n"),
    "a last chunk of two zeros": CHUNKED.replace(b"\r\n0\r\n", b"\r\n00\r\n"),
    "trailers": CHUNKED[:-2] + b"X-Sum: 1\r\n\r\n",
    "trailers that end like a last chunk": CHUNKED[:-2] + b"X-Sum: 1\r\n0\r\n\r\n",
    "a size too small": CHUNKED.replace(b"\r\nA\r\n", b"\r\n9\r\n"),
    "a size too large": CHUNKED.replace(b"\r\nA\r\n", b"\r\nB\r\n"),
    "a size far beyond the end": CHUNKED.replace(b"\r\nA\r\n", b"\r\nFFFFFFFF\r\n"),
    "a line end that is a bare LF": CHUNKED.replace(b"\r\nA\r\n", b"\nA\r\n"),
    "a size's line end that is a bare LF": CHUNKED.replace(b"\r\nA\r\n", b"\r\nA\n"),
    "a last chunk in the middle": CHUNKED.replace(b"\r\nA\r\n", b"\r\n0\r\n\r\nA\r\n"),
    "another answer behind": CHUNKED + CHUNKED,
    "no last chunk": CHUNKED[:-5],
    "half a last chunk": CHUNKED[:-2],
    "more than it": CHUNKED + b"\r\n0\r\n\r\n",
    "a length, too": CHUNKED.replace(b"Transfer-Encoding", b"Content-Length: 15\r\nTransfer-Encoding"),
    "another spelling of the coding": CHUNKED.replace(b": chunked", b": Chunked"),
    "another coding before it": CHUNKED.replace(b": chunked", b": gzip, chunked"),
    "two codings": CHUNKED.replace(b": chunked", b": chunked\r\nTransfer-Encoding: chunked"),
    "it closes the connection": CHUNKED.replace(b"keep-alive", b"close"),
    "another status": CHUNKED.replace(b"200 OK", b"429 Too Many Requests"),
    "a status without a body": CHUNKED.replace(b"200 OK", b"204 No Content"),
}


@pytest.mark.parametrize("difference", NOT_WHOLE_IN_PLAIN_CHUNKS)
def test_whatever_is_unusual_about_chunks_is_left_to_the_parser(difference: str) -> None:
    answer = NOT_WHOLE_IN_PLAIN_CHUNKS[difference]
    upstream = taught(CHUNKED)
    assert upstream.shapes.read(answer) is None
    assert heard(upstream, answer) == heard(HttpUpstream("openai", "http://upstream/v1"), answer)


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=600), st.sampled_from(EVENTS)), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_body_in_any_chunks_is_heard_as_the_parser_tells_it(pieces: list[bytes]) -> None:
    answer, upstream = in_chunks(*pieces), taught(CHUNKED)
    assert upstream.shapes.read(answer) is not None
    told, body, stays_open = heard(upstream, answer)
    assert (told, body, stays_open) == heard(HttpUpstream("openai", "http://upstream/v1"), answer)
    assert (len(told), body, stays_open) == (1, b"".join(pieces), True)


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    from_end=st.integers(0, 120),
    gone=st.integers(0, 6),
    put=st.text(alphabet="\r\n\t ;=:0159aAfFgx+-\x80", max_size=6).map(lambda text: text.encode("latin-1")),
)
@settings(max_examples=1500, deadline=None)
def test_no_change_of_chunks_is_heard_otherwise_than_the_parser_tells_it(
    pieces: list[bytes], from_end: int, gone: int, put: bytes
) -> None:
    whole = in_chunks(*pieces)
    at = len(whole) - from_end
    answer = whole[:at] + put + whole[at + gone :]
    assert heard(taught(CHUNKED), answer) == heard(HttpUpstream("openai", "http://upstream/v1"), answer)


@pytest.mark.parametrize("where", [b"\r\n5", b"5\r\n", b'"ok"', b'"ok"\r', b"\r\nA", b"A\r", b"\r\n0", b"0\r\n\r"])
def test_every_byte_that_is_put_between_chunks_is_taken_or_refused_as_by_the_parser(where: bytes) -> None:
    upstream = taught(CHUNKED)
    for byte in range(256):
        head, empty, chunks = CHUNKED.partition(b"\r\n\r\n")
        answer = head + empty[:2] + (empty[2:] + chunks).replace(where, where + bytes([byte]), 1)
        assert heard(upstream, answer) == heard(HttpUpstream("openai", "http://upstream/v1"), answer), byte


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=5))
@settings(max_examples=300, deadline=None)
def test_a_chunked_answer_in_pieces_is_heard_as_the_parser_tells_it(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(CHUNKED)]
    pieces = [CHUNKED[a:b] for a, b in itertools.pairwise(ends) if a < b]
    new = HttpUpstream("openai", "http://upstream/v1")
    assert heard(taught(CHUNKED), *pieces) == heard(new, *pieces)


def test_a_connection_serves_answers_of_both_ways_in_turn() -> None:
    """By the pattern, by the parser (a trailer), and by the pattern again."""
    upstream, by_parser = taught(CHUNKED), CHUNKED[:-2] + b"X-Sum: 1\r\n\r\n"
    connection = connected(upstream)
    bodies = [asked(upstream, connection, answer).body for answer in (CHUNKED, by_parser, CHUNKED, CHUNKED)]
    assert bodies == [b'{"ok": "1234"}\n'] * 4


def test_an_answer_to_head_has_no_body_whatever_its_length_says() -> None:
    answer = ANSWER.replace(b"Content-Length: 11", b"Content-Length: 0")[:-11]
    assert heard(taught(ANSWER), answer, method=b"HEAD") == heard(taught(), answer, method=b"HEAD")
    assert heard(taught(CHUNKED), CHUNKED, method=b"HEAD") == heard(taught(), CHUNKED, method=b"HEAD")


@pytest.mark.parametrize(
    "head",
    [b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: Chunked", b"X-No-Length: 1",
     b"Connection: close\r\nContent-Length: 1", b"Content-Length: 1\r\nUpgrade: h2c",
     b"Content-Length: 1\r\nA: 1\r\nA: 2", b"Content-Length: 1\r\nB: 1\r\nb: 2"],
)  # fmt: skip
def test_no_pattern_is_made_of_what_needs_the_parser(head: bytes) -> None:
    body = b"1\r\n1\r\n0\r\n\r\n" if b"Transfer" in head else b"1"
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body
    assert taught(answer).shapes.read(answer) is None


def test_an_upstream_that_always_answers_in_another_shape_makes_no_one_remember_them_all() -> None:
    answers = [ANSWER.replace(b"X-Empty", b"X-Node-%d" % node) for node in range(100)]
    upstream = taught(*answers)
    known = [answer for answer in answers if upstream.shapes.read(answer) is not None]
    assert known == answers[-SHAPES_AT_MOST:]


def test_more_names_than_are_counted_are_forgotten_and_learnt_again() -> None:
    shapes, first = Shapes(), {b"content-length": b"11"}
    for number in range(1000):
        shapes.met((b"Content-Length", b"X-%d" % number), first)
    for _ in range(HEADS_TO_LEARN):
        shapes.met((b"Content-Length", b"X-Once"), first)
    assert shapes.read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Once: 1\r\n\r\nhi") is not None


def test_whatever_is_asked_of_a_head_is_noted() -> None:
    assert KEPT_HEADERS <= NOTED
    assert HOP_BY_HOP <= NOTED
    house = Path(gateway.__file__).parent
    readers = ["proxy/answering", "proxy/attempts", "proxy/record", "proxy/retry", "upstreams/connection"]
    readers.append("upstreams/answer_lines")
    text = "".join((house / f"{reader}.py").read_text() for reader in readers)
    asked = re.findall(r'(?:first|headers)\.get\(b"([a-z-]+)"|b"([a-z-]+)" in \w*\.?first', text)
    names = {(got or found).encode() for got, found in asked}
    assert {b"retry-after-ms", b"x-should-retry", b"transfer-encoding", b"content-type"} <= names <= NOTED
