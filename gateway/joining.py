"""Joins the pieces of a large body without holding up other threads, or oneself for long.

`b"".join` of 16 MB keeps Python's lock for 2 to 9 ms, most of it for memory that is touched for the first time.
Here the bytes object is there before its pieces, as in C (`PyBytes_FromStringAndSize` with NULL), and each piece is
copied to its place when it comes, the lock being free meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

_fresh = ctypes.pythonapi.PyBytes_FromStringAndSize
_fresh.restype, _fresh.argtypes = ctypes.py_object, (ctypes.c_char_p, ctypes.c_ssize_t)
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.restype, _address_of.argtypes = ctypes.c_void_p, (ctypes.py_object,)

_BLOCK = 64 * 1024
_AT_ONCE = 512


class Joined:
    """So many bytes, which nobody may see before all of them were put."""

    def __init__(self, size: int) -> None:
        self._bytes: bytes = _fresh(None, size)  # nobody else has it, but for the empty one
        self._start = _address_of(self._bytes)
        self._size, self._filled = size, 0

    def put(self, piece: bytes) -> None:
        """The next ones.

        Raises:
            ValueError: there are more of them than there is room.
        """
        end = self._filled + len(piece)
        if end > self._size:
            raise ValueError(f"{end} bytes do not fit into {self._size}")
        ctypes.memmove(self._start + self._filled, piece, len(piece))
        self._filled = end

    def take(self) -> bytes:
        """The whole.

        Raises:
            ValueError: it is not whole yet.
        """
        if self._filled != self._size:
            raise ValueError(f"{self._filled} of {self._size} bytes were put")
        return self._bytes


def join(pieces: Sequence[bytes]) -> bytes:
    """The same as `b"".join`, for large bodies."""
    joined = Joined(sum(map(len, pieces)))
    for first in range(0, len(pieces), _AT_ONCE):
        some = pieces[first : first + _AT_ONCE]
        small = sum(map(len, some)) < _BLOCK * len(some) // 16
        for piece in [b"".join(some)] if small else some:
            joined.put(piece)
    return joined.take()
