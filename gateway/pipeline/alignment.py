"""Which text do all samples share, in the same order? The step from requests to a template's literals.

Patience alignment over many texts at once: k-grams of tokens that occur exactly once in every sample are
anchors, longest first; a longest increasing chain of them is kept, and the gaps between are searched again.
After EXALG (Arasu and Garcia-Molina, SIGMOD 2003): only text that occurs in every sample can be template.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, count, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.domain.template import DATE, ID

TOKEN = re.compile(
    rf"(?<!\w)(?:{DATE}|{ID})(?!\w)|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+(?![^\W\d_](?<![A-Z]))|[^\W\d_]+|\d+"
    r"| (?:(?<=\n )|(?<=\n {5})|(?<=\n {9})) {3}|[\W_]"
)
"""A date, an id, a word, a number, four blanks of an indentation, or a sign. A capital before small letters begins
a new word: a prompt's word may stand right behind a value's last one."""
WORD = re.compile(r"[^\W\d_]+|\d+")
_VOLATILE = re.compile(rf"(?:{DATE}|{ID})")
_SIZES = (10, 5, 3, 2, 1)
_REPEATS = 8
"""Times that a prompt may say the same in a row of items for them to be told by their order."""
_ENOUGH = 8
"""Samples from which on it tells that all say something equally often: five functions may each have two loops."""
_TELLING = 2
"""Sizes of k-grams, the longest first, that are told by their order: some single words any text holds as often."""
_BLANK = 2
"""Tokens of white space at the end of all texts that may part values."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Spans = list[tuple[int, int]]

_NO_HASHES, _NO_PLACES = np.zeros(0, np.uint64), np.zeros(0, np.int64)

COMMON = frozenset(
    {
        *(
            "a",
            "an",
            "and",
            "are",
            "as",
            "at",
            "be",
            "by",
            "for",
            "from",
            "have",
            "i",
            "if",
            "in",
            "is",
            "it",
        ),
        *("not", "of", "on", "or", "so", "that", "the", "this", "to", "was", "we", "with", "you", "your"),
    }
)
"""Words that texts share by accident."""


class Run(NamedTuple):
    """Tokens shared by all samples: where they start in each sample, and how many they are."""

    starts: tuple[int, ...]
    length: int


def tokens(text: str) -> list[str]:
    """Dates, ids, words, numbers, indentations and single signs; joined they are the text again."""
    return TOKEN.findall(text)


class _Samples:
    """The samples as token numbers, with the k-gram hashes of each."""

    def __init__(self, texts: Sequence[list[str]]) -> None:
        numbers: defaultdict[str, int] = defaultdict(count().__next__)
        ends = list(accumulate(map(len, texts), initial=0))
        self._all = np.fromiter(map(numbers.__getitem__, chain.from_iterable(texts)), np.int64, ends[-1])
        self._spans = list(pairwise(ends))
        self.ids: list[Ints] = [self._all[start:end] for start, end in self._spans]
        self._tokens = list(numbers)
        self.newline = numbers["\n"]
        self._grams: dict[int, list[Hashes]] = {}

    def are_blank(self, low: int, high: int) -> bool:
        """Whether these tokens of the first sample are white space."""
        return all(self._tokens[token].isspace() for token in self.ids[0][low:high])

    def is_typed(self, sample: int, place: int) -> bool:
        """Whether this token is a number, a date or an id."""
        token = self._tokens[self.ids[sample][place]]
        return token[0].isdigit() or _VOLATILE.fullmatch(token) is not None

    def grams(self, size: int) -> list[Hashes]:
        """The hash of each k-gram, by its first token, for every sample."""
        if size not in self._grams:
            hashes = _rolling(self._all, size)  # of all at once; those that reach into the next sample are left out
            self._grams[size] = [hashes[start : max(start, end - size + 1)] for start, end in self._spans]
        return self._grams[size]


def _rolling(ids: Ints, size: int) -> Hashes:
    count = max(0, len(ids) - size + 1)
    total = np.zeros(count, np.uint64)
    values = ids.astype(np.uint64) + np.uint64(1)
    for i in range(size):
        total = (total ^ (total >> np.uint64(29))) * _MULTIPLIER + values[i : i + count]
    return total


def shared_runs(texts: Sequence[list[str]]) -> list[Run]:
    """Runs of tokens that all samples share, in order; the first may start and the last may end a text."""
    samples = _Samples(texts)
    return _join(_search(samples, [(0, len(ids)) for ids in samples.ids], 0))


def _search(samples: _Samples, spans: Spans, level: int) -> list[Run]:
    head = _same_length(samples, spans, 1)
    inner = [(low + head, high) for low, high in spans]
    tail = _same_length(samples, inner, -1)
    inner = [(low, high - tail) for low, high in inner]
    runs = [Run(tuple(low for low, _ in spans), head)] if head else []
    if behind := _behind_typed(samples, inner):
        runs.append(Run(tuple(low + 1 for low, _ in inner), behind))
        inner = [(low + 1 + behind, high) for low, high in inner]
    found = _search_inner(samples, inner, level)
    if 0 < tail <= _BLANK and samples.are_blank(spans[0][1] - tail, spans[0][1]):
        # What ends all texts may be what parts their values, where the last value is empty.
        other = _search_inner(samples, [(low, high + tail) for low, high in inner], level)
        if sum(run.length for run in other) > sum(run.length for run in found) + tail:
            return [*runs, *other]
    runs += found
    if tail:
        runs.append(Run(tuple(high for _, high in inner), tail))
    return runs


def _behind_typed(samples: _Samples, spans: Spans) -> int:
    """How many tokens all spans share behind their first one, where that is a number, date or id, which ends by
    itself; 0 where it is not."""
    if any(low == high or not samples.is_typed(n, low) for n, (low, high) in enumerate(spans)):
        return 0
    after = [(low + 1, high) for low, high in spans]
    length = _same_length(samples, after, 1)
    return 0 if _begins_items(samples, after, length) else length


def _begins_items(samples: _Samples, spans: Spans, length: int) -> bool:
    """Whether lines that begin like these spans follow in most of them: then they are items of one value.

    Any text has lines: where the spans share no more than a line's end, what that line began with must follow.
    """
    pivot, place = samples.ids[0], spans[0][0]
    first = pivot[place : place + length]
    if samples.newline not in first:
        return False
    if samples.are_blank(place, place + length):
        ends = np.flatnonzero(pivot[: place - 1] == samples.newline)
        lead = pivot[(ends[-1] + 1 if len(ends) else 0) : place - 1]
        first = lead if len(lead) else first
    rests = [ids[low + length : high] for ids, (low, high) in zip(samples.ids, spans, strict=True)]
    return sum(first.tobytes() in rest.tobytes() for rest in rests) > len(spans) / 2


def _search_inner(samples: _Samples, spans: Spans, level: int) -> list[Run]:
    shortest = min(high - low for low, high in spans)
    while level < len(_SIZES) and _SIZES[level] > shortest:
        level += 1
    for places in (_once, _several) if len(spans) >= _ENOUGH else (_once,):
        sizes = len(_SIZES) if places is _once else _TELLING
        for at in range(level, sizes):
            chain = _chain(_common(samples, spans, _SIZES[at], places))
            if len(chain):
                return _search_between(samples, spans, chain, at)
    return []


def _search_between(samples: _Samples, spans: Spans, chain: Ints, level: int) -> list[Run]:
    """The runs that these k-grams make, and those in the gaps between them."""
    runs: list[Run] = []
    lows = [low for low, _ in spans]
    for first, last in _stretches(chain):
        length = int(chain[last][0] - chain[first][0]) + _SIZES[level]
        starts = tuple(map(int, chain[first]))
        if any(start < low for start, low in zip(starts, lows, strict=True)):
            continue  # overlaps the run before it, by different amounts in different samples
        runs += _search(samples, list(zip(lows, starts, strict=True)), level)
        runs.append(Run(starts, length))
        lows = [start + length for start in starts]
    return runs + _search(samples, [(low, high) for low, (_, high) in zip(lows, spans, strict=True)], level)


def _same_length(samples: _Samples, spans: Spans, step: int) -> int:
    """How many tokens all spans share at their beginning (step 1) or end (step -1)."""
    limit = min(high - low for low, high in spans)
    pivot = _from_end(samples.ids[0], spans[0], step)
    for ids, span in zip(samples.ids[1:], spans[1:], strict=True):
        if not limit:
            return 0
        differs = np.flatnonzero(_from_end(ids, span, step)[:limit] != pivot[:limit])
        if len(differs):
            limit = int(differs[0])
    return limit


def _from_end(ids: Ints, span: tuple[int, int], step: int) -> Ints:
    return ids[span[0] : span[1]][::step]


def _common(samples: _Samples, spans: Spans, size: int, places: Callable[[Hashes], tuple[Hashes, Ints]]) -> Ints:
    """Positions (row: k-gram, column: sample) of the k-grams that `places` tells apart in every span."""
    common: Hashes | None = None
    where: list[tuple[Hashes, Ints]] = []
    for grams, (low, high) in zip(samples.grams(size), spans, strict=True):
        values, index = places(grams[low : high - size + 1])
        where.append((values, index + low))
        if common is None:
            common = values
        elif len(values):
            common = common[values.take(values.searchsorted(common), mode="clip") == common]
        if not len(values) or not len(common):
            return np.zeros((0, 0), np.int64)
    assert common is not None
    table = np.stack([index[values.searchsorted(common)] for values, index in where], axis=1)
    return table[table[:, 0].argsort()]


def _once(grams: Hashes) -> tuple[Hashes, Ints]:
    """The hashes that occur once, in their order, and where (what `np.unique` does takes three times as long)."""
    order = grams.argsort()
    ordered = grams[order]
    alone = np.ones(len(grams) + 1, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=alone[1:-1])
    once = alone[1:] & alone[:-1]
    return ordered[once], order[once]


def _several(grams: Hashes) -> tuple[Hashes, Ints]:
    """Where the hashes stand that occur a few times, each place by a hash of which one it is, of how often and of
    how many before; in the order of these.

    What is said in all texts equally often: the first belongs to the first, the second to the second. Items of a
    prompt that are written alike show in no other way.
    """
    order = grams.argsort(kind="stable")
    ordered = grams[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1])
    if len(changes) + 1 >= len(ordered):
        return _NO_HASHES, _NO_PLACES
    begins = np.concatenate(([0], changes + 1))
    sizes = np.concatenate((begins[1:], [len(ordered)])) - begins
    counts, before = np.repeat(sizes, sizes), np.arange(len(ordered)) - np.repeat(begins, sizes)
    few = np.flatnonzero((counts > 1) & (counts <= _REPEATS))
    names = (ordered[few] ^ (ordered[few] >> np.uint64(31))) * _MULTIPLIER
    names += (counts[few] * _REPEATS + before[few]).astype(np.uint64)
    again = names.argsort()
    return names[again], order[few][again]


def _chain(table: Ints) -> Ints:
    """The rows that stand in the same order in every sample: a longest chain, sample by sample."""
    if len(table) and (np.diff(table, axis=0) > 0).all():
        return table
    for column in range(1, table.shape[1] if len(table) else 0):
        if np.any(np.diff(table[:, column]) <= 0):
            table = table[_increasing(table[:, column].tolist())]
    return table


def _increasing(values: list[int]) -> list[int]:
    """Indices of a longest increasing subsequence."""
    tops: list[int] = []
    top_index: list[int] = []
    back: list[int] = []
    for i, value in enumerate(values):
        at = bisect_left(tops, value)
        back.append(top_index[at - 1] if at else -1)
        if at == len(tops):
            tops.append(value)
            top_index.append(i)
        else:
            tops[at], top_index[at] = value, i
    chain, i = [], top_index[-1] if top_index else -1
    while i >= 0:
        chain.append(i)
        i = back[i]
    return chain[::-1]


def _stretches(chain: Ints) -> list[tuple[int, int]]:
    """First and last row of each stretch of k-grams that follow token by token in every sample."""
    follows = (np.diff(chain, axis=0) == 1).all(axis=1)  # of a chain every step is one token at least
    firsts = [0, *(np.flatnonzero(~follows) + 1).tolist()]
    return [(first, after - 1) for first, after in pairwise([*firsts, len(chain)])]


def _join(runs: list[Run]) -> list[Run]:
    """Runs that touch in every sample become one."""
    joined: list[Run] = []
    for run in runs:
        if not run.length:
            continue
        if joined and all(s == p + joined[-1].length for s, p in zip(run.starts, joined[-1].starts, strict=True)):
            joined[-1] = Run(joined[-1].starts, joined[-1].length + run.length)
        else:
            joined.append(run)
    return joined


def surprise(run: Sequence[str]) -> float:
    """How many bits it takes to say this run: few for what every text holds, many for words and mark-up."""
    return sum(map(_bits, run))


def _bits(token: str) -> float:
    if token == "\n":
        return 4.5
    if token.isspace():
        return 0.7
    if token.isalpha():
        return 4.5 if token.lower() in COMMON or len(token) == 1 else 9.5
    if token.isdigit():
        return 6.0
    return 4.0 if token in ".,'-" else 7.0


def by_chance(
    occurrences: float, slot_tokens: float, bits: float, samples: int, *, once: int = 0, ways: int = 0
) -> bool:
    """Whether values could share a run just so: it is likely in one text, and there are few samples.

    `occurrences`: how often the run stands in a sample on average, and `once` in how many it is one time, which
    no Poisson process makes likelier than 1/e; `slot_tokens`: how long a slot beside is; `ways`: how many
    runs such a slot could share (the longest one's tokens).
    """
    likely = min(1 - math.exp(-occurrences), 1 - math.exp(-slot_tokens * 2**-bits))
    return min(likely ** (samples - 1), math.exp(1 - max(1, once))) * max(20, ways) >= 0.01
