"""How strange the wording of a text is beside the training texts: by its words, and by which stand together.

That a text holds nothing is easily right of texts like those, and as easily said of any other. Texts of another
domain give themselves away by words that were never seen, however sure a model is of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec
import numpy as np


class Wording(msgspec.Struct, frozen=True):
    """In how many training texts each word stands, and each two neighbours (with one blank between them)."""

    words: dict[str, int] = {}
    pairs: dict[str, int] = {}

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> Wording:
        """That of these texts, each as its words."""
        words, pairs = Counter[str](), Counter[str]()
        for text in texts:
            words.update(set(text))
            pairs.update(set(_neighbours(text)))
        return cls(dict(sorted(words.items())), dict(sorted(pairs.items())))

    def strangeness(self, text: Sequence[str], without: Sequence[str] = ()) -> float:
        """0 and more: the sum over the words of 1 / (1 + texts that have it), by the square root of their number,
        and the mean of the same over neighbours. `without`: the words of a training text that counts as unseen.
        """
        own, own_pairs = set(without), set(_neighbours(without)) if without else set()
        rare = [1 / (1 + self.words.get(word, 0) - (word in own)) for word in text]
        rare_pairs = [1 / (1 + self.pairs.get(pair, 0) - (pair in own_pairs)) for pair in _neighbours(text)]
        return float(sum(rare) / np.sqrt(1 + len(rare)) + np.mean(rare_pairs))


def _neighbours(text: Sequence[str]) -> list[str]:
    """Two words that stand beside each other, the first and the last one beside the end of the text."""
    return [f"{one} {other}" for one, other in pairwise(("<", *text, ">"))]
