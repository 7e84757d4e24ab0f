"""Fixed text that values hold too: a label that somebody quotes, a slash, "or".

Mining finds the text by which every request can be cut in one way only. What stands between two inputs and inside
some of them is not among it. Here such text is found in the requests that hold it least often, and is taken where
all requests hold it, chance is excluded, and enough of them can be cut in one way; those show how long the values
usually are, which tells how the others are meant (see `gateway.domain.pattern`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from gateway.domain.pattern import is_kind
from gateway.domain.template import TextPattern
from gateway.pipeline.alignment import COMMON, by_chance, surprise, tokens
from gateway.pipeline.literals import field_literals
from gateway.pipeline.mining import Found, Row, cut_row
from gateway.pipeline.splitting import MIN_ROWS, spread

PLAIN = 0.3
"""Share of requests that must be cut in one way only."""
_SAMPLES = (16, 8, 5)
_ROUNDS = 4
_MOST = 64
_FEW = 8
_SIGNS = 3
_DIGITS = frozenset("0123456789")
_PAIRS = (("[", "]"), ("(", ")"), ("{", "}"), ("'", "'"), ('"', '"'), ("`", "`"))
_PARTED = 4
"""Pieces of text that may part slots for each of them to be left out in turn: as many templates."""


class Refined(NamedTuple):
    """The template of the requests that are clear, and those that are left for the others: each leaves out one
    piece of text that they quote, and the last one all that values hold. None where all are clear."""

    main: Found
    quoting: list[Found]


def refined(rows: Sequence[Row], forms: str, found: Found) -> Refined:
    """A template with the fixed text added that values hold too; for those that are not clear, also less one piece
    of it, and as it was."""
    texts = [[rows[i][n] for i in found.members] for n in range(len(found.patterns))]
    patterns = tuple(
        _parted(pattern, column) if pattern.slots and form != "j" else pattern
        for pattern, column, form in zip(found.patterns, texts, forms, strict=True)
    )
    main = _fitting(patterns, rows, found.members)
    if len(main.members) == len(found.members):
        return Refined(main, [])
    clear = set(main.members)
    unclear = [i for i in found.members if i not in clear]
    partly = [_fitting(less, rows, found.members) for less in _less_one(patterns, found.patterns, texts)]
    return Refined(main, [*(one for one in partly if not set(one.members).isdisjoint(unclear)), found])


def _fitting(patterns: tuple[TextPattern, ...], rows: Sequence[Row], members: Sequence[int]) -> Found:
    return Found(patterns, [i for i in members if cut_row(patterns, rows[i]) is not None])


def _less_one(
    patterns: Sequence[TextPattern], least: Sequence[TextPattern], texts: Sequence[Sequence[str]]
) -> Iterator[tuple[TextPattern, ...]]:
    """The patterns without one piece of text each time, of those that parted the slots of `least`; where there are
    several."""
    more = sum(len(pattern.slots) for pattern in patterns) - sum(len(pattern.slots) for pattern in least)
    if not 1 < more <= _PARTED:
        return
    for n, (pattern, bare) in enumerate(zip(patterns, least, strict=True)):
        for i in range(1, len(pattern.slots) if len(pattern.slots) > len(bare.slots) else 0):
            if pattern.literals[i] not in bare.literals:
                yield (*patterns[:n], weighed(_joined(pattern, i), texts[n]), *patterns[n + 1 :])


def _bare(pattern: TextPattern) -> TextPattern:
    """The pattern without what is known of its values: it cuts what can be cut in one way only."""
    return TextPattern(pattern.literals, tuple(type(slot)(slot.name, slot.kind) for slot in pattern.slots))


def _joined(pattern: TextPattern, i: int) -> TextPattern:
    """The pattern without its literal `i`, whose two slots become one."""
    slots = list(_bare(pattern).slots)
    slots[i - 1 : i + 1] = [type(slots[i])(slots[i - 1].name)]
    return TextPattern((*pattern.literals[:i], *pattern.literals[i + 1 :]), tuple(slots))


def weighed(pattern: TextPattern, texts: Sequence[str]) -> TextPattern:
    """The pattern with the usual lengths of its values, where some of the texts can be cut in several ways."""
    cuts = [pattern.cut(text) for text in texts]
    plain = [cut for cut in cuts if cut is not None]
    if len(plain) == len(cuts) or len(pattern.slots) < 2 or len(plain) < MIN_ROWS:
        return pattern
    slots = zip(pattern.slots, zip(*plain, strict=True), strict=True)
    return TextPattern(
        pattern.literals, tuple(msgspec.structs.replace(slot, usual=_usual(column)) for slot, column in slots)
    )


def _usual(values: Sequence[str]) -> tuple[float, float]:
    logs = [math.log(len(value) + 3) for value in values]
    mean, spread_ = statistics.fmean(logs), max(0.3, statistics.pstdev(logs))
    return round(math.exp(mean) - 3, 1), round(math.exp(spread_), 2)


def _enough(plain: int, count: int) -> bool:
    return plain >= max(MIN_ROWS, PLAIN * count)


def _parted(pattern: TextPattern, texts: Sequence[str]) -> TextPattern:
    """The pattern with slots parted by text that all their values hold, slot by slot as long as there is any."""
    n = 0
    while n < len(pattern.slots):
        cuts = [cut for text in texts if (cut := pattern.cut(text)) is not None]
        inner = separators([cut[n] for cut in cuts])
        more = _with(pattern, n, inner, texts) if inner else None
        if more is None and n + 1 == len(pattern.slots) and pattern.literals[-1].isspace():
            # What ends all texts may be what parts their values, where the last value is empty.
            ended = TextPattern((*pattern.literals[:-1], ""), pattern.slots)
            inner = separators([cut[n] + pattern.literals[-1] for cut in cuts])
            more = _with(ended, n, inner, texts) if inner else None
        if more is None:
            more = _without_doubt(pattern, n, texts)
        if more is None:
            n += 1
        else:
            pattern = more
    return pattern


def _without_doubt(pattern: TextPattern, n: int, texts: Sequence[str]) -> TextPattern | None:
    """The pattern with slot n parted by what its values hold in the texts that are cut in one way only: in others a
    label may have come to lie in another slot. All texts must hold it in its place."""
    if not any(slot.usual for slot in pattern.slots):
        return None
    bare = _bare(pattern)
    inner = separators([cut[n] for text in texts if (cut := bare.cut(text)) is not None])
    literals = (*pattern.literals[: n + 1], *inner, *pattern.literals[n + 1 :])
    return _with(pattern, n, inner, texts) if inner and all(_has(literals, text) for text in texts) else None


def _with(pattern: TextPattern, n: int, inner: Sequence[str], texts: Sequence[str]) -> TextPattern | None:
    """The pattern with slot n parted by these pieces, where that cuts all texts, enough of them in one way."""
    literals = (*pattern.literals[: n + 1], *inner, *pattern.literals[n + 1 :])
    bare = _bare(pattern).slots
    fuller = TextPattern(literals, (*bare[: n + 1], *([bare[n]] * len(inner)), *bare[n + 1 :]))
    plain = [cut for text in texts if (cut := fuller.cut(text)) is not None]
    if not _enough(len(plain), len(texts)):
        return None
    literals = _closed(literals, n, n + len(inner), plain)
    if literals != fuller.literals and all(_has(literals, text) for text in texts):
        fuller = TextPattern(literals, fuller.slots)
    return weighed(fuller, texts)


def _closed(literals: Sequence[str], n: int, last: int, cuts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The literals around slots n to `last` with the signs that pair with those of the text between: `[` and `'`
    were the one slot's that these were, since only one half of each stood beside it."""
    closed = list(literals)
    for opening, closing in _PAIRS:
        if literals[last].endswith(opening) and all(cut[last].endswith(closing) for cut in cuts):
            closed[last + 1] = closing + closed[last + 1]
        if literals[n + 1].startswith(closing) and all(cut[n].startswith(opening) for cut in cuts):
            closed[n] += opening
    return tuple(closed)


def separators(values: Sequence[str]) -> list[str]:
    """The pieces of text that part all these values, which are of several inputs; empty if there are none."""
    distinct = sorted(set(values))
    if len(distinct) < _FEW or sum(is_kind("json", value) for value in distinct) > len(distinct) / 2:
        return []  # objects of one kind share their keys
    ordered = _plain_first(spread(distinct, _MOST))
    for sample in _samples(ordered):
        for _ in range(_ROUNDS):
            inner = _held(field_literals(sorted(sample), inside=True)[1:-1], distinct)
            strays = [value for value in distinct if not _has(inner, value)]
            if not inner or not strays:
                break
            sample = sorted({*sample, *spread(strays, 2)})
        else:
            continue
        if inner and not _is_chance(inner, spread(distinct, _MOST)):
            return inner
    return []


def _held(pieces: Sequence[str], values: Sequence[str]) -> list[str]:
    """The pieces less the signs at their ends that some value lacks: what only the first values ended with."""
    held = list(pieces)
    for n, piece in enumerate(pieces):
        said = tokens(piece)
        cuts = sorted((i + k, i, k) for i in range(_SIGNS + 1) for k in range(_SIGNS + 1) if i + k < len(said))
        for _, i, k in cuts:
            shorter = "".join(said[i : len(said) - k])
            if shorter.strip() and all(shorter in value for value in values):
                held[n] = shorter
                break
    return held


def _samples(ordered: Sequence[str]) -> list[list[str]]:
    """The first values, many first."""
    counts = [len(ordered) * 3 // 4, *(min(count, len(ordered) // 2) for count in _SAMPLES)]
    return [list(ordered[:count]) for count in dict.fromkeys(counts) if count >= min(_SAMPLES)]


def _plain_first(values: Sequence[str]) -> list[str]:
    """Values, those first in which least of what all hold occurs once more than need be; none if all hold nothing
    that most hold as seldom as any."""
    counts: list[Counter[object]] = []
    common: set[object] = set()
    for value in values:
        counts.append(_signs(value))
        common = common.intersection(counts[-1]) if len(counts) > 1 else set(counts[-1])
        if not common:
            return []
    extra = [0] * len(values)
    telling = False
    for sign in common:
        column = [found[sign] for found in counts]
        least = min(column)
        if column.count(least) >= PLAIN * len(column):
            telling = True
            extra = [n + (count > least) for n, count in zip(extra, column, strict=True)]
    return [values[n] for n in sorted(range(len(values)), key=lambda n: (extra[n], n))] if telling else []


def _signs(value: str) -> Counter[object]:
    """How often each token occurs, and each pair of neighbours; a blank is no token here, but at a line's end."""
    said = tokens(value)
    found = [token for token, after in pairwise([*said, ""]) if token != " " or after == "\n"]
    return Counter([*found, *pairwise(found)])


def _has(pieces: Sequence[str], value: str) -> bool:
    at = 0
    for piece in pieces:
        at = value.find(piece, at) + len(piece)
        if at < len(piece):
            return False
    return True


def _is_telling(token: str) -> bool:
    """Whether this is more than what any sentence holds ("in the", a comma)."""
    if token.isalpha():
        return len(token) > 1 and token.lower() not in COMMON
    return token == "\n" or not (token.isspace() or token.isdigit() or token in ".,;?!'-")


def _is_chance(pieces: Sequence[str], values: Sequence[str]) -> bool:
    """Whether values of one input could hold one of these pieces just so."""
    length = statistics.fmean(len(tokens(value)) for value in values)
    for n, piece in enumerate(pieces):
        if n == 0 and all(set(value.partition(piece)[0]) <= _DIGITS for value in values):
            continue  # a number ends by itself
        found = [value.count(piece) for value in values]
        if not any(map(_is_telling, tokens(piece))):
            return True
        bits, once = surprise(tokens(piece)), found.count(1)
        if by_chance(statistics.fmean(found), length / 2, bits, len(values), once=once, ways=int(length)):
            return True
    return False
