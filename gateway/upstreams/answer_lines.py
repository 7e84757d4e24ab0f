"""The head of an answer line by line: which headers count, and whether it can pass as it came."""

from __future__ import annotations

import contextlib
import functools

import httptools

from gateway.upstreams import NOTED, Headers


class _Listed:
    """What llhttp tells of one head, every line of it."""

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


def headers_of(opening: bytes) -> Headers:
    """All headers of the head that an answer begins with, which llhttp has read before."""
    listed = _Listed()
    head, mark, _ = opening.partition(b"\r\n\r\n")
    with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
        httptools.HttpResponseParser(listed).feed_data(head + mark)
    return listed.headers


def is_chunked(first: dict[bytes, bytes], opening: bytes) -> bool:
    """Whether the answer comes in chunks, and is nothing but that (RFC 9112, 6.1).

    Raises:
        ValueError: it is in a transfer coding that we did not ask for, and could not take off.
    """
    coding = first.get(b"transfer-encoding")
    if coding is None:
        return False
    if coding == b"chunked" and opening.lower().count(b"\ntransfer-encoding:") == 1:
        return True
    codings = [value.lower() for name, value in headers_of(opening) if name.lower() == b"transfer-encoding"]
    if codings not in ([b"chunked"], [b"identity"]):
        raise ValueError("it has a transfer coding that was not asked for")
    return codings == [b"chunked"]


def noted(lines: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The first of each header that matters to us, by its name in small letters."""
    first: dict[bytes, bytes] = {}
    for name, value in zip(lower(tuple(lines)), lines.values(), strict=True):
        if name in NOTED and name not in first:  # one name can come in two spellings
            first[name] = value
    return first


@functools.lru_cache(256)
def lower(names: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Names of headers in small letters."""
    return tuple(name.lower() for name in names)


@functools.lru_cache(1024)
def status_line(status: int) -> bytes:
    """What an answer begins with that may pass as it came."""
    return b"HTTP/1.1 %d" % status


def has_plain_lines(raw: bytes) -> bool:
    """Whether each header stands on one line that ends as it should."""
    return raw.count(b"\n") == raw.count(b"\r\n") and b"\n " not in raw and b"\n\t" not in raw
