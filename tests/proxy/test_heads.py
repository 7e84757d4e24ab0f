"""Heads that are kept, and how much room those take that a client makes up."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from gateway import providers
from gateway.proxy import asked
from gateway.proxy.asked import Asked
from gateway.proxy.heads import BYTES_AT_MOST, HEADS_AT_MOST, LINES_AT_MOST, LONGEST, Heads
from gateway.proxy.wire import RequestHead

PROVIDERS = {"openai": providers.load("openai")}


def read(data: bytes) -> Asked:
    """What the head in `data` says."""
    start, *lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    method, target, _ = start.split(b" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    head = RequestHead(method, target, headers, keep_alive=True)
    return asked.read(head, {"openai": b"/v1"}, PROVIDERS, "openai")


def request(*lines: bytes, n: int = 0) -> bytes:
    """A request with these header lines, and one of its own."""
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nX-N: %d" % n
    return b"\r\n".join([start, *lines, b"Content-Length: 2", b"", b"{}"])


def is_kept(heads: Heads, data: bytes) -> bool:
    heads.keep(data, read(data))
    return heads.find(data) is not None


def test_a_head_is_found_again_whatever_its_length() -> None:
    heads, met = Heads(), request(b"Authorization: Bearer sk-client-1")
    heads.keep(met, read(met))
    later = met.replace(b"Length: 2", b"Length: 2000")
    found = heads.find(later)
    assert found is not None
    assert (found[0].secrets, found[1:]) == ((b"sk-client-1",), (2000, len(later) - 2))
    assert heads.find(met.replace(b"client-1", b"client-2")) is None


def test_long_heads_and_those_of_many_lines_are_not_kept() -> None:
    lines = [b"X-%d: 1" % n for n in range(LINES_AT_MOST - 3)]  # beside Host, X-N and Content-Length
    assert is_kept(Heads(), request(*lines))
    assert not is_kept(Heads(), request(*lines, b"X-More: 1"))
    room = LONGEST - len(request(b"X-Long: ").partition(b"\r\n\r\n")[0])
    assert is_kept(Heads(), request(b"X-Long: " + b"x" * room))
    assert not is_kept(Heads(), request(b"X-Long: " + b"x" * (room + 1)))


def test_a_head_that_comes_again_takes_no_more_room() -> None:
    heads, first = Heads(), request(b"X-App: one")
    heads.keep(first, read(first))
    again = request(b"X-App: " + b"x" * 7000)
    for _ in range(2 * BYTES_AT_MOST // len(again)):
        heads.keep(again, read(again))
    assert heads.find(first) is not None


def _short(n: int) -> bytes:
    return request(n=n)


def _long(n: int) -> bytes:
    return request(b"X-Long: " + b"x" * 7900, n=n)


def _lines(n: int) -> bytes:
    return request(*[b"%x:" % line for line in range(LINES_AT_MOST - 3)], n=n)


def _keys(n: int) -> bytes:
    return request(b"Authorization: " + b" ".join(b"%08x" % key for key in range(850)), n=n)


@pytest.mark.parametrize("made_up", [_short, _long, _lines, _keys])
def test_heads_that_a_client_makes_up_take_little_room(made_up: Callable[[int], bytes]) -> None:
    heads = Heads()
    assert is_kept(heads, made_up(0))
    tracemalloc.start()
    for n in range(1, HEADS_AT_MOST + 200):
        data = made_up(n)
        heads.keep(data, read(data))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 25_000_000
    assert heads.find(data) is not None  # and the latest is known all the same
