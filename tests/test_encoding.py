"""Compressed bodies are read for the record: whole, cut short, damaged, or made to explode."""

from __future__ import annotations

import gzip
import resource
import time
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.encoding import decoded, read


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress,
    "zstd": zstandard.compress,
}  # fmt: skip
TEXT = b"Nothing is lost. " * 500


@given(st.sampled_from(sorted(PACKERS)), st.binary(max_size=3000))
def test_what_was_packed_comes_out(coding: str, data: bytes) -> None:
    assert decoded(PACKERS[coding](data), coding) == data
    assert decoded(PACKERS[coding](data), coding.upper()) == data


def test_deflate_is_read_with_and_without_its_header() -> None:
    assert decoded(raw_deflate(TEXT), "deflate") == decoded(zlib.compress(TEXT), "deflate") == TEXT


def test_several_codings_are_undone_in_reverse_order() -> None:
    assert decoded(brotli.compress(gzip.compress(TEXT)), "gzip, br") == TEXT
    assert decoded(TEXT, None) == decoded(TEXT, "identity") == TEXT


def test_a_gzip_file_may_have_several_members() -> None:
    assert (
        decoded(gzip.compress(b"data: 1\n\n") + gzip.compress(b"data: 2\n\n"), "gzip") == b"data: 1\n\ndata: 2\n\n"
    )


@pytest.mark.parametrize("coding", sorted(PACKERS))
def test_a_body_cut_short_gives_its_beginning(coding: str) -> None:
    packed = PACKERS[coding](bytes(range(256)) * 40)
    found = decoded(packed[: len(packed) * 2 // 3], coding)
    assert found is not None
    assert (bytes(range(256)) * 40).startswith(found)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "compress", "made-up"])
def test_what_cannot_be_read_is_none(coding: str) -> None:
    assert decoded(b"\x01\x02 this is no archive", coding) is None


@pytest.mark.parametrize("coding", sorted(PACKERS))
def test_a_bomb_is_neither_kept_nor_unpacked(coding: str) -> None:
    bomb = brotli.compress(bytes(200_000_000), quality=1) if coding == "br" else PACKERS[coding](bytes(200_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decoded(bomb, coding, limit=1 << 20) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
    assert decoded(PACKERS[coding](bytes(1 << 20)), coding, limit=1 << 20) == bytes(1 << 20)


# --- why there is none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "coding", "problem"),
    [
        (TEXT, "made-up", "unknown coding"),
        (TEXT, "gzip, gzip, gzip, gzip, gzip", "unknown coding"),  # nobody encodes five times
        (b"\x01\x02 this is no archive", "gzip", "damaged"),
        (gzip.compress(bytes(2_000_000)), "gzip", "too large"),  # 1,000 times its size
        (brotli.compress(bytes(2_000_000)), "br", "too large"),
        (zstandard.compress(bytes(2_000_000)), "zstd", "too large"),
        (gzip.compress(b"") * 5000, "gzip", "too large"),
        (gzip.compress(TEXT), "gzip", None),
        (gzip.compress(bytes(1_000_000)), "gzip", None),  # small enough, whatever the ratio
    ],
    ids=["unknown", "five times", "no archive", "gzip bomb", "br bomb", "zstd bomb", "members", "text", "zeros"],
)
def test_a_body_that_is_not_read_says_why(body: bytes, coding: str, problem: str | None) -> None:
    plain = read(body, coding)
    assert plain.problem == problem
    assert (plain.body is None) == (problem is not None)


def test_the_ratio_counts_beside_the_limit() -> None:
    text = b"".join(b"%d " % (number % 5000) for number in range(1_000_000))
    packed = gzip.compress(text)
    assert read(packed, "gzip", ratio=2).problem == "too large"
    assert read(packed, "gzip").body == text


def test_many_small_members_are_refused_before_they_cost_anything() -> None:
    body = gzip.compress(b"") * 200_000  # 4 MB that would be copied 200,000 times
    started = time.process_time()
    assert read(body, "gzip").problem == "too large"
    assert time.process_time() - started < 1


def test_a_zstd_frame_cannot_ask_for_more_memory_than_its_window_may_have() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    body = zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(bytes(1 << 24))
    assert read(body, "zstd").body is None


@given(st.lists(st.binary(max_size=40_000), min_size=1, max_size=4), st.integers(0, 90_000))
def test_members_that_lie_across_the_slices_are_joined(members: list[bytes], cut: int) -> None:
    body, whole = b"".join(map(gzip.compress, members)), b"".join(members)
    assert read(body, "gzip").body == whole
    short = read(body[:cut], "gzip").body
    assert short is not None
    assert whole.startswith(short)
