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
        return zlib.decompressobj(wbits=31).decompress(body, limit + 1)
    if coding == "deflate":  # with or without its zlib header: both are in use
        bits = 15 if body[:1] and body[0] & 0x0F == 8 else -15
        return zlib.decompressobj(wbits=bits).decompress(body, limit + 1)
    if coding == "br":
        return _brotli(body, limit)
    if coding == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read(limit + 1)
    return None


def _brotli(body: bytes, limit: int) -> bytes:
    decompressor, plain = brotli.Decompressor(), b""
    for start in range(0, len(body), 65_536):  # in steps, so that a bomb is noticed before it is whole
        plain += decompressor.process(body[start : start + 65_536])
        if len(plain) > limit:
            break
    return plain
