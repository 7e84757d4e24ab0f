"""Splits texts into the word pieces of BERT's uncased vocabulary (Devlin et al. 2019; Wu et al. 2016)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_LONGEST_WORD = 100
_IDEOGRAPHS = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f])")


class WordPieces:
    """From a text to numbers of pieces, bounded in length, with `[CLS]` before and `[SEP]` behind."""

    def __init__(self, numbers: Mapping[str, int], most: int) -> None:
        self._numbers, self._most = numbers, most
        self._first, self._last, self._unknown = (numbers[name] for name in ("[CLS]", "[SEP]", "[UNK]"))
        self._pieces = lru_cache(maxsize=20_000)(self._split)

    @classmethod
    def read(cls, vocabulary: Path, most: int) -> WordPieces:
        """From a file with one piece a line.

        Raises:
            OSError: it cannot be read.
            KeyError: it lacks `[CLS]`, `[SEP]` or `[UNK]`.
        """
        lines = vocabulary.read_text("utf-8").split("\n")
        return cls({piece: number for number, piece in enumerate(lines)}, most)

    def __call__(self, text: str) -> list[int]:
        """At most `most` numbers; a longer text keeps its beginning."""
        found: list[int] = []
        for word in words(text[: 20 * self._most]):
            found += self._pieces(word)
            if len(found) >= self._most - 2:
                break
        return [self._first, *found[: self._most - 2], self._last]

    def _split(self, word: str) -> tuple[int, ...]:
        """Greedily the longest piece first; a word with a part that is no piece is unknown as a whole."""
        found: list[int] = []
        start = 0 if len(word) <= _LONGEST_WORD else -1
        while 0 <= start < len(word):
            start = self._piece(word, start, found)
        return (self._unknown,) if start < 0 else tuple(found)

    def _piece(self, word: str, start: int, found: list[int]) -> int:
        for end in range(len(word), start, -1):
            number = self._numbers.get(word[start:end] if start == 0 else "##" + word[start:end])
            if number is not None:
                found.append(number)
                return end
        return -1


def words(text: str) -> list[str]:
    """Lower-cased words without accents; each punctuation mark and each ideograph is a word of its own."""
    if not text.isascii():
        text = _IDEOGRAPHS.sub(r" \1 ", text)
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    spaced = "".join(_spaced(c) for c in text.lower())
    return spaced.split()


@lru_cache(maxsize=4096)
def _spaced(char: str) -> str:
    if char.isspace():
        return " "
    if 33 <= ord(char) <= 126:
        return char if char.isalnum() else f" {char} "
    category = unicodedata.category(char)
    if category.startswith("C") or char == "\ufffd":
        return ""
    return f" {char} " if category.startswith("P") else char
