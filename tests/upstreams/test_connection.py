"""What an upstream's answer becomes, in whatever pieces and spellings it comes."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamError
from gateway.upstreams import Head, Outgoing
from gateway.upstreams.connection import HttpConnection
from gateway.upstreams.http import HttpCall, HttpUpstream


class Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None: ...
    def abort(self) -> None: ...


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.interim: list[Head] = []
        self.body = b""
        self.done = False

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        if head is not None:
            self.heads.append(head)
        self.body += piece
        self.done = done

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        self.body += piece
        while framed:  # whole chunks
            length = int(framed.partition(b"\r\n")[0], 16)
            chunk = b"%x\r\n%b\r\n" % (length, piece[:length])
            assert length
            assert framed.startswith(chunk)
            framed, piece = framed[len(chunk) :], piece[length:]
        assert not piece

    def on_interim(self, head: Head) -> None:
        self.interim.append(head)

    def on_failure(self, error: UpstreamError) -> None:
        raise error

    def on_upload(self, ready: bool) -> None: ...


async def received(*pieces: bytes, calls: int = 1) -> list[Sink]:
    """What the sinks of so many calls in a row hear when the same answer comes to each."""
    upstream = HttpUpstream("openai", "http://upstream/v1")
    connection = HttpConnection("openai", b"upstream", upstream)
    connection.connection_made(Transport())
    sinks = [Sink() for _ in range(calls)]
    for sink in sinks:
        request = Outgoing(method=b"GET", path=b"/", lines=b"")
        connection.start(HttpCall(upstream, request, sink, 1.0), reused=True)
        for piece in pieces:
            connection.data_received(piece)
    return sinks


def at_every_place(answer: bytes) -> list[list[bytes]]:
    return [[answer], *([answer[:cut], answer[cut:]] for cut in range(1, len(answer)))]


REPEATS = (
    b"HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nX-Request-Id: 7\r\nSet-Cookie: b=2\r\nx-request-id: 8\r\n"
    b"Retry-After:\r\nContent-Length: 5\r\n\r\nhello"
)


@pytest.mark.parametrize("pieces", at_every_place(REPEATS))
def test_a_head_passes_as_it_came_and_the_first_of_a_name_counts_however_it_is_cut(pieces: list[bytes]) -> None:
    for sink in asyncio.run(received(*pieces, calls=2)):
        (head,) = sink.heads
        assert head.raw == REPEATS[: REPEATS.find(b"\r\n\r\n")]
        assert head.first == {b"x-request-id": b"7", b"retry-after": b"", b"content-length": b"5"}
        assert (head.status, head.length, sink.body, sink.done) == (200, 5, b"hello", True)


def test_an_older_version_is_not_passed_on_as_it_came() -> None:
    (sink,) = asyncio.run(received(b"HTTP/1.0 200 OK\r\nA: 1\r\nB: 2\r\nA: 3\r\nContent-Length: 0\r\n\r\n"))
    assert sink.heads[0].raw == b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nA: 3\r\nContent-Length: 0"


HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n"


@pytest.mark.parametrize("pieces", at_every_place(HINTS + REPEATS))
def test_an_answer_before_the_answer_keeps_its_headers_and_leaves_none_behind(pieces: list[bytes]) -> None:
    (sink,) = asyncio.run(received(*pieces))
    assert [head.raw for head in sink.interim] == [HINTS[:-4]]
    assert b"link" not in sink.heads[0].first
    assert sink.heads[0].raw == REPEATS[: REPEATS.find(b"\r\n\r\n")]
    assert sink.body == b"hello"


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0A\r\n, dear you\r\n1\r\n!\r\n0\r\nA: trailer\r\n\r\n"
)


@pytest.mark.parametrize("pieces", at_every_place(CHUNKED))
def test_chunks_are_put_together_however_they_are_cut_and_trailers_stay_here(pieces: list[bytes]) -> None:
    for sink in asyncio.run(received(*pieces, calls=2)):
        assert (sink.body, sink.done) == (b"hello, dear you!", True)
        assert sink.heads[0].first == {b"transfer-encoding": b"chunked"}


EVENTS = st.text("ab\r\n012{}", min_size=1, max_size=40).map(str.encode) | st.just(b"x" * 9000)


@given(st.lists(st.tuples(EVENTS, st.sampled_from([0, 0, 0, None, None, -1, 3])), max_size=8))
def test_events_that_come_one_by_one_or_several_are_the_same_as_all_at_once(
    events: list[tuple[bytes, int | None]],
) -> None:
    """Cut where a chunk ends, as servers flush them, some bytes before or behind, or (None) not at all."""
    stream, cuts = CHUNKED[: CHUNKED.find(b"\r\n\r\n") + 4], []
    for text, shift in events:
        if shift is not None:
            cuts.append(len(stream) + shift)
        stream += b"%x\r\n%b\r\n" % (len(text), text)
    stream += b"0\r\n\r\n"
    pieces = [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]
    for sink in asyncio.run(received(*filter(None, pieces), calls=2)):
        assert (sink.body, sink.done) == (b"".join(text for text, _ in events), True)


@pytest.mark.parametrize("after", [b"0\r\n\r\n", b"5\r\nhell", b"5\r\nhello", b"\r\n", b"\r\n\r\n"])
def test_what_is_no_whole_chunk_is_the_parsers(after: bytes) -> None:
    """A last chunk is no event, a part of one waits for its rest, and what is malformed ends the answer."""
    answer = CHUNKED[: CHUNKED.find(b"0A")]
    if after.startswith(b"\r"):
        with pytest.raises(UpstreamError, match="not valid HTTP"):
            asyncio.run(received(answer, after))
        return
    (sink,) = asyncio.run(received(answer, after))
    assert sink.done is after.startswith(b"0")
    assert sink.body == b"hello" + (b"" if sink.done else after[3:])


class Judge(Sink):
    """Takes a failure for an answer, too."""

    failure: UpstreamError | None = None

    def on_failure(self, error: UpstreamError) -> None:
        self.failure = error


def judged(*pieces: bytes) -> Judge:
    """What the sink of one call hears."""

    async def run() -> Judge:
        upstream = HttpUpstream("openai", "http://upstream/v1")
        connection = HttpConnection("openai", b"upstream", upstream)
        connection.connection_made(Transport())
        sink = Judge()
        call = HttpCall(upstream, Outgoing(method=b"GET", path=b"/", lines=b""), sink, 1.0)
        connection.start(call, reused=False)
        for piece in pieces:
            connection.data_received(piece)
        return sink

    return asyncio.run(run())


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("cut", range(len(STREAM_HEAD), len(STREAM_HEAD) + 28))
def test_what_was_valid_before_an_error_is_passed_on_however_it_is_cut(cut: int) -> None:
    answer = STREAM_HEAD + b"9\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\nzz\r\n"
    for pieces in ((answer,), (answer[:cut], answer[cut:])):
        heard = judged(*pieces)
        assert (heard.body, heard.done) == (b"data: a\n\ndata: b\n\n", False)
        assert heard.failure is not None


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"chunked\r\nTransfer-Encoding: chunked"])
def test_an_answer_in_another_transfer_coding_is_none(coding: bytes) -> None:
    heard = judged(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + coding + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert heard.failure is not None
    assert not heard.heads


@pytest.mark.parametrize("pieces", at_every_place(b"\r\n\r\n" + REPEATS))
def test_line_ends_before_an_answer_are_none_of_its_head(pieces: list[bytes]) -> None:
    (sink,) = asyncio.run(received(*pieces))
    assert (sink.heads[0].raw, sink.body) == (REPEATS[: REPEATS.find(b"\r\n\r\n")], b"hello")


def test_an_interim_answer_by_itself_is_no_piece_of_a_body() -> None:
    """A piece without a head before the head would be taken for the beginning of the answer."""

    class Strict(Sink):
        def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
            assert head is not None or self.heads
            super().on_data(head, piece, done)

    async def run() -> Strict:
        upstream = HttpUpstream("openai", "http://upstream/v1")
        connection = HttpConnection("openai", b"upstream", upstream)
        connection.connection_made(Transport())
        sink = Strict()
        call = HttpCall(upstream, Outgoing(method=b"GET", path=b"/", lines=b""), sink, 1.0)
        connection.start(call, reused=False)
        for piece in (HINTS, b"HTTP/1.1 100 Continue\r\n\r\n", REPEATS):
            connection.data_received(piece)
        return sink

    assert asyncio.run(run()).body == b"hello"


def test_a_connection_whose_request_has_not_left_is_not_used_again() -> None:
    """The upstream answered early: what is still to be written would stand before the next client's request."""

    class Full(Transport):
        closed = False

        def get_write_buffer_size(self) -> int:
            return 5_000_000

        def close(self) -> None:
            self.closed = True

    async def run() -> bool:
        upstream = HttpUpstream("openai", "http://upstream/v1")
        connection, transport = HttpConnection("openai", b"upstream", upstream), Full()
        connection.connection_made(transport)
        call = HttpCall(upstream, Outgoing(method=b"GET", path=b"/", lines=b""), Sink(), 1.0)
        connection.start(call, reused=False)
        connection.data_received(REPEATS)
        return transport.closed

    assert asyncio.run(run())
