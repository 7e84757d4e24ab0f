"""Answers in a known shape are read without the parser, and nobody can tell."""

from __future__ import annotations

import asyncio
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

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


class Heard:
    """A sink: all that it was told, the pieces of a body joined."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.body = b""

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        if head is not None:
            self.told.append((head.status, head.raw, head.first, head.length, head.plain))
        self.body += piece
        if done:
            self.told.append("done")

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        self.body += piece

    def on_interim(self, head: Head) -> None:
        self.told.append(head.raw)

    def on_failure(self, error: UpstreamError) -> None:
        self.told.append(type(error))

    def on_upload(self, ready: bool) -> None: ...


def heard(upstream: HttpUpstream, answer: bytes, method: bytes = b"POST") -> tuple[list[Any], bytes, bool]:
    """What the sink of a call hears, its body, and whether the connection stays open."""
    upstream.outbox.flush_soon = lambda: None  # type: ignore[method-assign]  # there is no event loop
    connection, transport, sink = HttpConnection("openai", b"upstream", upstream), Transport(), Heard()
    connection.connection_made(transport)
    request = Outgoing(method=method, path=b"/", lines=b"")
    connection.start(HttpCall(upstream, request, sink, 1.0), reused=True)
    connection.data_received(answer)
    upstream.outbox.flush()
    return sink.told, sink.body, not transport.is_closed


ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: 11\r\nConnection: keep-alive\r\nx-ratelimit-left: 99\r\nX-Request-Id: req-1\r\n"
    b'Set-Cookie: a=1; path=/\r\nX-Empty: \r\n\r\n{"ok":true}'
)


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


def test_an_answer_to_head_has_no_body_whatever_its_length_says() -> None:
    answer = ANSWER.replace(b"Content-Length: 11", b"Content-Length: 0")[:-11]
    assert heard(taught(ANSWER), answer, b"HEAD") == heard(taught(), answer, b"HEAD")


@pytest.mark.parametrize(
    "head",
    [b"Transfer-Encoding: chunked", b"Connection: close\r\nContent-Length: 1", b"Content-Length: 1\r\nUpgrade: h2c",
     b"X-No-Length: 1", b"Content-Length: 1\r\nA: 1\r\nA: 2", b"Content-Length: 1\r\nB: 1\r\nb: 2"],
)  # fmt: skip
def test_no_pattern_is_made_of_what_needs_the_parser(head: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n1"
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
    text = "".join((house / f"{reader}.py").read_text() for reader in readers)
    asked = re.findall(r'(?:first|headers)\.get\(b"([a-z-]+)"|b"([a-z-]+)" in \w*\.?first', text)
    names = {(got or found).encode() for got, found in asked}
    assert {b"retry-after-ms", b"x-should-retry", b"transfer-encoding", b"content-type"} <= names <= NOTED
