"""Content encodings, for reading recorded bodies. The relay itself never decodes: it passes bytes on."""

from __future__ import annotations

import zlib
from typing import Literal

import brotli
import msgspec
import zstandard

LIMIT_BYTES = 64 * 1024 * 1024
RATIO = 500
"""How many times its size a body may become: JSON reaches 50 times, gzip's zeros 1,030, brotli's 100,000."""

_FREE_BYTES = 1024 * 1024  # so much is decoded whatever the ratio: a small body may repeat one line
_CODINGS_AT_MOST = 4
_MEMBERS_AT_MOST = 4096
_SLICE = 16 * 1024
_WINDOW = 8 * 1024 * 1024  # of zstd, at most (RFC 9659); more is memory that a few bytes ask for

Problem = Literal["unknown coding", "damaged", "too large"]


class Plain(msgspec.Struct, frozen=True):
    """A body without its encodings, or why there is none. `too large` is what a decompression bomb is."""

    body: bytes | None
    problem: Problem | None = None


class _TooLarge(Exception):
    """It would be over its limit."""


def read(body: bytes, content_encoding: str | None, *, limit: int = LIMIT_BYTES, ratio: int = RATIO) -> Plain:
    """The plain body: at most `limit` bytes, and `ratio` times what arrived (1 MB is always allowed).

    A body that was cut short gives what can be read of it.
    """
    codings = [name for name in (content_encoding or "").lower().replace(" ", "").split(",") if name not in _NONE]
    if len(codings) > _CODINGS_AT_MOST:
        return Plain(None, "unknown coding")
    limit = min(limit, max(_FREE_BYTES, ratio * len(body)))
    for coding in reversed(codings):
        try:
            plain = _decode(body, coding, limit)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            return Plain(None, "damaged")
        except _TooLarge:
            return Plain(None, "too large")
        if plain is None:
            return Plain(None, "unknown coding")
        if len(plain) > limit:
            return Plain(None, "too large")
        body = plain
    return Plain(body)


def decoded(body: bytes, content_encoding: str | None, *, limit: int = LIMIT_BYTES) -> bytes | None:
    """The plain body, None where `read` has a problem with it."""
    return read(body, content_encoding, limit=limit).body if content_encoding else body


_NONE = ("", "identity")


def _decode(body: bytes, coding: str, limit: int) -> bytes | None:
    """What the body stands for, or a little more than `limit` of it; None: nobody knows this coding."""
    if coding in ("gzip", "x-gzip"):
        return _gzip(body, limit)
    if coding == "deflate":  # with or without its zlib header: both are in use
        has_header = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return zlib.decompressobj(wbits=15 if has_header else -15).decompress(body, limit + 1)
    if coding == "br":
        return _brotli(body, limit)
    if coding == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        return decompressor.stream_reader(body, read_across_frames=True).read(limit + 1)
    return None


def _gzip(body: bytes, limit: int) -> bytes:
    """All members of the file (RFC 1952, section 2.2): servers that flush may write several.

    Read in slices: a member that ends hands back the rest of what it was given, and thousands of tiny
    members would copy a large body thousands of times.
    """
    plain, size, at, members = [], 0, 0, 0
    member = zlib.decompressobj(wbits=31)
    while at < len(body) and size <= limit:
        piece = body[at : at + _SLICE]
        made = member.decompress(piece, limit + 1 - size)
        plain.append(made)
        size += len(made)
        at += len(piece) - len(member.unused_data)
        if member.eof:
            members += 1
            if members >= _MEMBERS_AT_MOST:
                raise _TooLarge
            member = zlib.decompressobj(wbits=31)
    return b"".join(plain)


def _brotli(body: bytes, limit: int) -> bytes:
    """Bounded on the way out: a few bytes can stand for gigabytes."""
    decompressor = brotli.Decompressor()
    plain = [decompressor.process(body, output_buffer_limit=limit + 1)]
    size = len(plain[0])
    while size <= limit and not decompressor.can_accept_more_data():
        plain.append(decompressor.process(b"", output_buffer_limit=limit + 1 - size))
        size += len(plain[-1])
    return b"".join(plain)
