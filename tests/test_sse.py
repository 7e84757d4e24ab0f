"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import sse
from gateway.sse import Event, EventParser

LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"data: \xc3\xa9", b": comment", b"event: x", b"id: 1", b"id: a\0b",
     b"retry: 3", b"", b"", b"datax: no", b"data: [DONE]", b"\xef\xbb\xbfdata: bom inside"]
)  # fmt: skip
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def in_pieces(stream: bytes, cuts: list[int]) -> list[Event]:
    parser, found, at = EventParser(), [], 0
    for cut in sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)}):
        found += parser.feed(stream[at:cut])
        at = cut
    return found + parser.close()


@given(STREAMS | st.binary(max_size=80), st.lists(st.integers(0, 200), max_size=8))
@settings(max_examples=500, deadline=None)
def test_any_cut_gives_the_events_of_the_whole(stream: bytes, cuts: list[int]) -> None:
    whole = sse.events(stream)
    assert in_pieces(stream, cuts) == whole
    assert in_pieces(stream, list(range(len(stream)))) == whole  # one byte at a time
    assert in_pieces(b"\xef\xbb\xbf" + stream, cuts) == whole if not stream.startswith(b"\xef") else True


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [Event(b"a")]),
        (b"data:  a \n\n", [Event(b" a ")]),  # one space goes
        (b"data: a\r\rdata: b\r\n\r\n", [Event(b"a"), Event(b"b")]),
        (b"data: 1\ndata: 2\n\n", [Event(b"1\n2")]),
        (b"event: done\n\n", []),  # without data it is none
        (b"event: e\nid: 7\ndata: a\n\ndata: b\n\n", [Event(b"a", b"e", b"7"), Event(b"b", id=b"7")]),
        (b": ping\n\nretry: 10\n\ndata\n\n", [Event(b"")]),
        (b"data: unfinished", [Event(b"unfinished")]),  # for the record: the standard would drop it
    ],
)
def test_the_standards_cases(stream: bytes, events: list[Event]) -> None:
    assert sse.events(stream) == events


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda data: b"\r" not in data), min_size=1, max_size=8))
def test_encoding_is_undone_by_parsing(data: list[bytes]) -> None:
    assert [event.data for event in sse.events(b"".join(map(sse.encode, data)))] == data


@given(
    st.lists(
        st.binary(min_size=1, max_size=20).filter(lambda d: not set(d) & set(b"\r\n")), min_size=1, max_size=9
    ),
    st.integers(1, 5),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_the_last_events_are_found_without_reading_the_first(data: list[bytes], count: int, end: bytes) -> None:
    stream = b"".join(map(sse.encode, data)).replace(b"\n", end)
    assert list(sse.last_data(stream, count)) == data[::-1][:count]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_long_stream_is_read_in_one_pass(end: bytes) -> None:
    """A search for the other line end in what is left, at every line, once took 2 seconds here."""
    stream = (b"data: " + b"x" * 90 + end + end) * 40_000
    started = time.process_time()
    assert len(sse.events(stream)) == 40_000
    assert time.process_time() - started < 1
