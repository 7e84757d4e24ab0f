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
