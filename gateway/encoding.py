"""Content encodings, for reading recorded bodies. The relay itself never decodes: it passes bytes on."""

from __future__ import annotations

import zlib

import brotli
import zstandard

LIMIT_BYTES = 64 * 1024 * 1024


def decoded(body: bytes, content_encoding: str | None, *, limit: int = LIMIT_BYTES) -> bytes | None:
    """The plain body; None when the encoding is unknown, the bytes are damaged, or it is over `limit`.

    A body that was cut short gives what can be read of it.
    """
    for coding in reversed((content_encoding or "").lower().replace(" ", "").split(",")):
        if coding in ("", "identity"):
            continue
        try:
            plain = _decode(body, coding, limit)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            return None
        if plain is None or len(plain) > limit:
            return None
        body = plain
    return body


def _decode(body: bytes, coding: str, limit: int) -> bytes | None:
    if coding in ("gzip", "x-gzip"):
        return _gzip(body, limit)
    if coding == "deflate":  # with or without its zlib header: both are in use
        has_header = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
        return zlib.decompressobj(wbits=15 if has_header else -15).decompress(body, limit + 1)
    if coding == "br":
        return _brotli(body, limit)
    if coding == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read(limit + 1)
    return None


def _gzip(body: bytes, limit: int) -> bytes:
    """All members of the file (RFC 1952, section 2.2): servers that flush may write several."""
    plain = b""
    while body and len(plain) <= limit:
        member = zlib.decompressobj(wbits=31)
        plain += member.decompress(body, limit + 1 - len(plain))
        body = member.unused_data
    return plain


def _brotli(body: bytes, limit: int) -> bytes:
    """Bounded on the way out: a few bytes can stand for gigabytes."""
    decompressor = brotli.Decompressor()
    plain = decompressor.process(body, output_buffer_limit=limit + 1)
    while len(plain) <= limit and not decompressor.can_accept_more_data():
        plain += decompressor.process(b"", output_buffer_limit=limit + 1 - len(plain))
    return bytes(plain)
