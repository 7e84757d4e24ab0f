"""Large bodies, put together piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.joining import Joined, join


@given(st.lists(st.binary(max_size=60), max_size=60))
def test_any_pieces_make_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert join(pieces) == whole
    joined = Joined(len(whole))
    for piece in pieces:
        joined.put(piece)
    assert joined.take() == whole
    assert hash(joined.take()) == hash(whole)


def test_many_small_pieces_and_few_large_ones() -> None:
    pieces = [bytes([number % 256]) * (number % 300) for number in range(5000)] + [b"x" * 1_000_000] * 3
    assert join(pieces) == b"".join(pieces)


@pytest.mark.parametrize("byte", [b"", b"a"])
def test_what_all_bytes_objects_share_is_not_written_to(byte: bytes) -> None:
    assert join([byte]) == byte
    assert (bytes([97]), bytes([0])) == (b"a", b"\0")


def test_nothing_is_written_beyond_the_end_and_nothing_unfinished_is_given_out() -> None:
    joined = Joined(10)
    joined.put(b"12345678")
    with pytest.raises(ValueError, match="8 of 10"):
        joined.take()
    with pytest.raises(ValueError, match="11 bytes do not fit"):
        joined.put(b"901")
    joined.put(b"90")
    assert joined.take() == b"1234567890"
