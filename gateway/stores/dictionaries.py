"""Bodies as an earlier release kept them: a zstd frame in the row, made with a dictionary of recent traffic.

Nothing is compressed like this any more; such rows stay readable, and what was made with a dictionary of deleted
text moves into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import zstandard

from gateway.errors import StoreError
from gateway.stores.blocks import Run

NO_DICTIONARY = 0
_headers = msgspec.json.Decoder(dict[str, str])


def dictionary_of(frame: bytes) -> int:
    """The number of the dictionary that a frame needs (0: none); its first 18 bytes are enough.

    Raises:
        ValueError: it is no frame.
    """
    try:
        return int(zstandard.get_frame_parameters(frame).dict_id)
    except zstandard.ZstdError as error:
        raise ValueError(f"no zstd frame: {error}") from error


class Dictionaries:
    """The dictionaries of one store. Belongs to the store's connection, and to its thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known = {NO_DICTIONARY: zstandard.ZstdDecompressor()}

    def unpack(self, frame: bytes) -> tuple[dict[str, str], bytes]:
        """The headers and the body in a frame, which holds a line of JSON and the bytes.

        Raises:
            ValueError: the frame is damaged.
            StoreError: its dictionary is not in the store.
        """
        known = self._dictionary(dictionary_of(frame))
        try:
            line, _, body = known.decompress(frame).partition(b"\n")
        except zstandard.ZstdError as error:
            raise ValueError(f"damaged: {error}") from error
        return _headers.decode(line), body

    def _dictionary(self, number: int) -> zstandard.ZstdDecompressor:
        known = self._known.get(number)
        if known is None:
            row = self._run("SELECT body FROM dictionaries WHERE id = ?", (number,)).fetchone()
            if row is None or row[0] is None:
                raise StoreError(f"dictionary {number} is not in the store")
            given = zstandard.ZstdCompressionDict(row[0], zstandard.DICT_TYPE_FULLDICT)
            known = self._known[number] = zstandard.ZstdDecompressor(dict_data=given)
        return known

    def retire(self) -> set[int]:
        """Note which were made from a deleted exchange; gives all that must be dropped."""
        self._run(
            "UPDATE dictionaries SET retired = 1 WHERE retired = 0 AND EXISTS (SELECT 1 FROM json_each(sources)"
            " JOIN deletions ON exchange_id = value)", (),
        )  # fmt: skip
        rows = self._run("SELECT id FROM dictionaries WHERE retired = 1 AND body IS NOT NULL", ())
        return {number for (number,) in rows.fetchall()}

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget the text of dictionaries that nothing needs any more."""
        for number in numbers:
            self._run("UPDATE dictionaries SET body = NULL, sources = '[]' WHERE id = ?", (number,))
            self._known.pop(number, None)
