"""From shared runs of tokens to the literals of a text pattern: prompt, or what values share by accident.

When in doubt a piece of text is input: that costs a few tokens, the other error would cost an instruction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import NamedTuple

from gateway.domain.pattern import kind_of, type_of
from gateway.domain.template import DATE, ID, Slot, TextPattern
from gateway.pipeline.alignment import WORD, Run, by_chance, shared_runs, surprise, tokens
from gateway.pipeline.edges import Gap, settled
from gateway.pipeline.objects import join_objects

_VOLATILE = re.compile(rf"(?<!\w)(?:{DATE}|{ID})(?!\w)")
_CUE = re.compile(r"(?i)\b(today|todays|date|time|now|current|currently|timestamp|id|trace|session|request)\b")
Values = tuple[str, ...]
"""What stands in one slot, sample by sample."""
_PUNCTUATION = frozenset(".,;?!'")
_ADDRESS = re.compile(r"[\w.+%~:/?#&=-]*(?:@|://)[\w.+%~:/?#&=-]*")
_PROMPT = 3
"""Words of fixed text from which on signs between two slots may be fixed text too."""
_SOME = 16
"""Samples from which on a bare word between two slots may be prompt."""
_PHRASE = 4
"""Words from which on a piece of a sentence is no turn of phrase that values share."""


class Cut(NamedTuple):
    """The literals that texts share, in order; and of what type each slot between them must be (`date`, `id`,
    `number`; else `text`), where no text could be cut in one way only if it might hold anything."""

    literals: list[str]
    types: list[str]


def field_literals(texts: Sequence[str], *, inside: bool = False) -> list[str]:
    """The literals that all these texts share, in order; the first and the last may be empty.

    Texts that are all equal give one literal, unless it holds a date of today. `inside`: they stand in a prompt.
    """
    return field_cut(texts, inside=inside).literals


def field_cut(texts: Sequence[str], *, inside: bool = False) -> Cut:
    """As `field_literals`, with the types of the slots."""
    literals, columns = [texts[0]], list[Values]()
    types: list[str] = []
    if len(set(texts)) > 1:
        literals, columns = _cut_by_runs(texts)
        join_objects(literals, columns)
        types = _settle(literals, columns, texts, inside=inside)
    whole = Cut([], [])
    for literal, after in zip_longest(literals, types):
        pieces, volatile = _without_volatile(literal)
        whole.literals.extend(pieces)
        whole.types.extend([*volatile, *([after] if after else [])])
    return whole


def _cut_by_runs(texts: Sequence[str]) -> tuple[list[str], list[Values]]:
    """The runs that texts do not share by chance, as literals, and the values that stand between them."""
    before, after = _shared_lines(texts)
    split = [tokens(text[before : len(text) - after]) for text in texts]
    first, inner, last = _edges(shared_runs(split), split)
    inner = _likely(inner, split, first, last)
    runs = [Run((0,) * len(split), first), *inner, Run(tuple(len(text) - last for text in split), last)]
    literals = ["".join(split[0][run.starts[0] : run.starts[0] + run.length]) for run in runs]
    literals[0] = texts[0][:before] + literals[0]
    literals[-1] += texts[0][len(texts[0]) - after :]
    columns = [tuple(map("".join, _between(split, left, right))) for left, right in pairwise(runs)]
    return literals, columns


def _settle(literals: list[str], columns: list[Values], texts: Sequence[str], *, inside: bool) -> list[str]:
    """Settle the edges and drop separators until each text can be cut in one way only, which is the columns' way.

    Where a separator has to go for that, the edges are settled again: the values around it begin and end elsewhere.
    Gives the types that slots must have.
    """
    while True:
        for i, values in enumerate(columns):
            literals[i], columns[i], literals[i + 1] = settled(Gap(literals[i], values, literals[i + 1]))
        count = len(columns)
        types = _keep_separators(literals, columns, texts, inside=inside)
        if len(columns) == count:
            return types


def _keep_separators(
    literals: list[str], columns: list[Values], texts: Sequence[str], *, inside: bool
) -> list[str]:
    """Drop inner literals, weakest first, until each text can be cut in one way only, which is the columns' way.

    Gives the types that slots must have for that.
    """
    prompt = inside or len(WORD.findall(" ".join(literals))) >= _PROMPT
    for i in range(len(literals) - 2, 0, -1):
        telling = "\n" in literals[i] or literals[i].strip() if prompt else WORD.search(literals[i])
        if not telling:
            _drop(i, literals, columns)
    while True:
        for types in (["text"] * len(columns), list(map(type_of, columns))):
            if len(literals) < 3 or _cuts_to(literals, columns, types, texts):
                return types
        _drop(min(range(1, len(literals) - 1), key=lambda i: surprise(tokens(literals[i]))), literals, columns)


def _drop(i: int, literals: list[str], columns: list[Values]) -> None:
    given = literals.pop(i)
    right = columns.pop(i)
    columns[i - 1] = tuple(a + given + b for a, b in zip(columns[i - 1], right, strict=True))


def _cuts_to(
    literals: Sequence[str], columns: Sequence[Values], types: Sequence[str], texts: Sequence[str]
) -> bool:
    pattern = TextPattern(tuple(literals), tuple(Slot("", kind) for kind in types))
    return all(pattern.cut(text) == values for text, values in zip(texts, zip(*columns, strict=True), strict=True))


def _shared_lines(texts: Sequence[str]) -> tuple[int, int]:
    """How many characters of whole lines all texts begin and end with, so that these need no alignment."""
    least = min(map(len, texts))
    before = _longest(least, lambda n: all(text.startswith(texts[0][:n]) for text in texts))
    before = max(0, texts[0].rfind("\n", 0, before))
    ends = texts[0][len(texts[0]) - least :]
    after = _longest(least - before, lambda n: all(text.endswith(ends[least - n :]) for text in texts))
    newline = ends.find("\n", least - after)
    return before, least - newline - 1 if newline >= 0 else 0


def _longest(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest length up to `limit` for which this holds, given that it holds for all shorter ones."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _without_volatile(literal: str) -> tuple[list[str], list[str]]:
    """The literal cut where it holds a date or an id that is only the same because all requests are of one day; and
    which of the two.

    A word must announce it (today, date, trace, ...), always another one: examples hold other dates too.
    """
    found = [(v, literal[max(0, v.start() - 40) : v.start()]) for v in _VOLATILE.finditer(literal)]
    labels = Counter(label for label, _ in {(_last_word(before), v[0]) for v, before in found})
    pieces, types, start = list[str](), list[str](), 0
    for volatile, before in found:
        if labels[_last_word(before)] == 1 and _CUE.search(before) and volatile.start() >= start + 3:
            pieces.append(literal[start : volatile.start()])
            types.append(kind_of(volatile[0]))
            start = volatile.end()
    return [*pieces, literal[start:]], types


def _last_word(text: str) -> str:
    names = WORD.findall(text)
    return names[-1] if names else ""


def _between(split: Sequence[list[str]], left: Run, right: Run) -> list[list[str]]:
    spans = zip(split, left.starts, right.starts, strict=True)
    return [text[start + left.length : end] for text, start, end in spans]


def _edges(runs: list[Run], split: Sequence[list[str]]) -> tuple[int, list[Run], int]:
    """Length of the run that begins every text, the runs inside, length of the run that ends every text."""
    inner, first, last = list(runs), 0, 0
    if inner and not any(inner[0].starts):
        first = inner.pop(0).length
    if inner and all(s + inner[-1].length == len(text) for s, text in zip(inner[-1].starts, split, strict=True)):
        last = inner.pop().length
    return first, inner, last


def _likely(inner: list[Run], split: Sequence[list[str]], first: int, last: int) -> list[Run]:
    """The inner runs that values cannot share by chance; weak ones are dropped one by one, weakest first."""
    kept = list(inner)
    while kept:
        weak = [
            (bits, i) for i, run in enumerate(kept) if (bits := _weakness(i, run, kept, split, first, last)) >= 0
        ]
        if not weak:
            break
        del kept[min(weak)[1]]
    return kept


def _weakness(i: int, run: Run, kept: list[Run], split: Sequence[list[str]], first: int, last: int) -> float:
    """The run's bits when it may be there by chance; negative when it is not."""
    piece = split[0][run.starts[0] : run.starts[0] + run.length]
    bits, count = surprise(piece), len(split)
    lows = [kept[i - 1].starts[n] + kept[i - 1].length if i else first for n in range(count)]
    highs = [kept[i + 1].starts[n] if i + 1 < len(kept) else len(split[n]) - last for n in range(count)]
    if all(_is_typed(s[low:at]) for s, low, at in zip(split, lows, run.starts, strict=True)):
        return -1.0  # a number or a date ends by itself
    if _is_plain(piece, count) or _is_under_way(piece, run, split, lows):
        return bits
    text = "".join(piece)
    found = ["".join(sample[low:high]).count(text) for sample, low, high in zip(split, lows, highs, strict=True)]
    lengths = [high - low - run.length for low, high in zip(lows, highs, strict=True)]
    chance = by_chance(
        sum(found) / count, sum(lengths) / count / 2, bits, count, once=found.count(1), ways=max(lengths)
    )
    return bits if chance else -1.0


def _is_typed(value: Sequence[str]) -> bool:
    return len(value) == 1 and (value[0].isdigit() or _VOLATILE.fullmatch(value[0]) is not None)


def _is_under_way(piece: Sequence[str], run: Run, split: Sequence[list[str]], lows: Sequence[int]) -> bool:
    """Whether a few words go on with a sentence of the values, which all say them behind one of few words: "could
    you", "can you". Values that are few themselves tell nothing."""
    names = sum(WORD.fullmatch(token) is not None for token in piece)
    if piece[0] != " " or not 0 < names < _PHRASE or names + piece.count(" ") < len(piece):
        return False
    values = [tuple(text[low:start]) for text, low, start in zip(split, lows, run.starts, strict=True)]
    said, different = {value[-1:] for value in values}, len(set(values))
    return min(map(len, values)) > 1 and len(said) <= max(2, different // 3) < different - 1


def _is_plain(piece: Sequence[str], count: int) -> bool:
    """Whether these are only the signs of any sentence, or a bare word that texts on one subject may share.

    So is what stands within an address: `@example.`, `://`.
    """
    names = [token for token in piece if WORD.fullmatch(token)]
    marks = [token for token in piece if token == "\n" or not (token.isspace() or token in names)]
    if _ADDRESS.fullmatch("".join(piece)):
        return True
    if not names:
        return all(mark in _PUNCTUATION for mark in marks)
    return not marks and len(names) == 1 and (count < _SOME or len(piece) == 1)
