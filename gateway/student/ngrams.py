"""Texts as sparse vectors: n-grams of words and of characters, weighed by how rare they are."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

# Punctuation of ASCII, Latin-1, General Punctuation and CJK. Everything else that is not blank belongs to a
# word: `\w` would cut words at the vowel signs of Indic scripts.
_PUNCTUATION = re.compile(r"[!-/:-@\[-^`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f]")
_TOKEN = re.compile(rf"{_PUNCTUATION.pattern}|[^\s{_PUNCTUATION.pattern[1:-1]}]+")


class FeatureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which n-grams are read from a text: the shortest and longest of each kind.

    `word_weight` is the length of a text's word vector beside its character vector's, which is 1. `word_letters`
    cuts each word to so many letters, which does a stemmer's work in many languages (McNamee and Mayfield 2004), 0
    leaves it whole. `pairs` adds pairs of words, in whichever order, that are at most so many words apart.
    A maximum of 0 leaves that kind out. Texts beyond `max_chars` are read at their head and tail only, so
    that the time of a prediction is bounded.
    """

    word_min: int = 1
    word_max: int = 2
    char_min: int = 2
    char_max: int = 5
    word_weight: float = 0.7
    word_letters: int = 0
    pairs: int = 0
    max_chars: int = 8000


def normalise(text: str, max_chars: int) -> str:
    """The text as features see it: bounded, compatibility forms folded, case folded."""
    if len(text) > max_chars:
        half = max_chars // 2
        text = f"{text[:half]} {text[len(text) - half :]}"
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).casefold()


def word_ngrams(tokens: Sequence[str], shortest: int, longest: int, letters: int = 0) -> list[str]:
    """The n-grams of words, cut to `letters` each, joined by one space; punctuation is left out."""
    words = _words(tokens, letters)
    grams = words if shortest <= 1 <= longest else []
    for n in range(max(2, shortest), longest + 1):
        grams = grams + [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    return grams


def word_pairs(tokens: Sequence[str], apart: int, letters: int = 0) -> list[str]:
    """Two different words each, in alphabetical order, that stand at most `apart` words from each other."""
    words = _words(tokens, letters)
    near = ((a, b) for step in range(1, apart + 1) for a, b in zip(words, words[step:], strict=False) if a != b)
    return [f"{a} {b}" if a < b else f"{b} {a}" for a, b in near]


def _words(tokens: Sequence[str], letters: int) -> list[str]:
    return [token[: letters or None] for token in tokens if not _PUNCTUATION.match(token)]


def char_ngrams(tokens: Sequence[str], shortest: int, longest: int) -> list[str]:
    """The n-grams of characters within each token, which is padded by a space on both sides."""
    grams: list[str] = []
    for token in tokens:
        padded = f" {token} "
        size = len(padded)
        for n in range(shortest, longest + 1):
            if n >= size:
                grams.append(padded)
                break
            grams += [padded[i : i + n] for i in range(size - n + 1)]
    return grams


def ngrams(text: str, spec: FeatureSpec) -> tuple[list[str], list[str]]:
    """The word n-grams and the character n-grams of a text, repeats included."""
    tokens = _TOKEN.findall(normalise(text, spec.max_chars))
    words = word_ngrams(tokens, spec.word_min, spec.word_max, spec.word_letters) if spec.word_max else []
    words += word_pairs(tokens, spec.pairs, spec.word_letters) if spec.pairs else []
    chars = char_ngrams(tokens, spec.char_min, spec.char_max) if spec.char_max else []
    return words, chars


@dataclass(frozen=True, eq=False)
class Vectoriser:
    """Text to a sparse vector: sublinear TF times IDF, each kind of n-gram scaled to its own length.

    `words` and `chars` number the known n-grams, words first; `idf` has one value for each. Unknown n-grams count
    in the length, with the IDF `unseen_idf`: the stranger a text, the shorter its vector and the weaker its scores.
    """

    spec: FeatureSpec
    words: Mapping[str, int]
    chars: Mapping[str, int]
    idf: Floats
    unseen_idf: float

    @classmethod
    def fit(cls, texts: Iterable[str], spec: FeatureSpec, max_features: int = 1_000_000) -> Vectoriser:
        """The n-grams of these texts, in sorted order, with smoothed IDF: ln((1 + texts) / (1 + df)) + 1.

        Beyond half of `max_features` of a kind, those in the fewest texts are left out.
        """
        word_counts: dict[str, int] = {}
        char_counts: dict[str, int] = {}
        total = 0
        for text in texts:
            total += 1
            for counts, grams in zip((word_counts, char_counts), ngrams(text, spec), strict=True):
                for gram in set(grams):
                    counts[gram] = counts.get(gram, 0) + 1
        words, chars = (_most_frequent(counts, max_features // 2) for counts in (word_counts, char_counts))
        df = np.array([*(word_counts[w] for w in words), *(char_counts[c] for c in chars)], dtype=np.float64)
        idf = (np.log((1 + total) / (1 + df)) + 1).astype(np.float32)
        return cls(spec, numbered(words, 0), numbered(chars, len(words)), idf, math.log(1 + total) + 1)

    def __call__(self, text: str) -> tuple[Indices, Floats]:
        """Ascending indices of this text's known n-grams, and their weights; empty when none is known."""
        indices, counts, strangers = self.counts(text)
        values = (1 + np.log(counts)).astype(np.float32) * self.idf[indices]
        first_char = int(indices.searchsorted(len(self.words)))
        blocks = values[:first_char], values[first_char:]
        for block, unknown, length in zip(blocks, strangers, (self.spec.word_weight, 1.0), strict=True):
            if len(block):
                block *= length / np.sqrt(block @ block + unknown * self.unseen_idf**2)
        return indices, values

    def counts(self, text: str) -> tuple[Indices, Indices, tuple[int, int]]:
        """Ascending indices of the known n-grams of this text, how often each occurs, and how many are unknown.

        The last are two numbers: of words, of characters.
        """
        words, chars = ngrams(text, self.spec)
        known_words = [index for index in map(self.words.get, words) if index is not None]
        known_chars = [index for index in map(self.chars.get, chars) if index is not None]
        indices, counts = np.unique(np.array(known_words + known_chars, np.int64), return_counts=True)
        return indices, counts, (len(words) - len(known_words), len(chars) - len(known_chars))


def _most_frequent(counts: Mapping[str, int], limit: int) -> list[str]:
    return sorted(sorted(counts, key=lambda gram: (-counts[gram], gram))[:limit])


def numbered(names: Iterable[str], start: int) -> dict[str, int]:
    """Names in their order to numbers from `start` on."""
    return {name: index for index, name in enumerate(names, start)}
