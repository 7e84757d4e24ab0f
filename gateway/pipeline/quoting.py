"""Values that quote the prompt: which fixed text the requests show that do not, and what is left for the others.

A literal that a value repeats can be cut in more than one way, and for the sake of one such request the literal
would be input in all. So a task gets two templates side by side: one with all the fixed text that its plain
requests show, and the one that every request fits, for those that the first leaves ambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.domain.template import TextPattern
from gateway.pipeline.mining import Found, Row, by_plainness, cut_row, holds, patterns_of, plainest
from gateway.pipeline.splitting import MIN_ROWS, spread

PLAIN = 0.6
"""Share of a template's requests that a fuller one must fit to be its main one."""
_SAMPLES = (16, 8, 5)
_ROUNDS = 4


class ToldApart(NamedTuple):
    """The template of the requests that can be cut in one way, and of those that quote it."""

    main: Found
    quoting: Found | None


def told_apart(rows: Sequence[Row], forms: str, found: Found) -> ToldApart:
    """A template, with a fuller one in front of it where the requests that quote the prompt least show one.

    All requests hold the text of the fuller one, in order, and most of them can be cut by it in one way only.
    """
    plain = by_plainness(rows, found.members)
    samples = {tuple(plainest(plain, count)) for count in _SAMPLES}
    shown = {_shown(rows, forms, found.members, sample) for sample in samples}
    fuller = sorted((p for p in shown if _adds_to(found.patterns, p)), key=_literals)
    if not fuller:
        return ToldApart(found, None)
    mains = [Found(p, [i for i in found.members if cut_row(p, rows[i]) is not None]) for p in fuller]
    main = max(mains, key=lambda f: (_slots(f.patterns), len(f.members)))
    if len(main.members) < max(MIN_ROWS, PLAIN * len(found.members)):
        return ToldApart(found, None)
    return ToldApart(main, found if len(main.members) < len(found.members) else None)


def _shown(
    rows: Sequence[Row], forms: str, members: Sequence[int], plain: Sequence[int]
) -> tuple[TextPattern, ...]:
    """What a few of the rows that quote least have in common and all rows hold; nothing if there is no such text.

    Rows that lack something of it are looked at too: what only a few values share by chance goes out.
    """
    samples = list(plain)
    for _ in range(_ROUNDS if samples else 0):
        patterns = patterns_of(rows, samples, forms)
        strays = [i for i in members if not holds(patterns, rows[i])]
        if not strays:
            return patterns
        samples = sorted({*samples, *spread(strays, 2)})
    return ()


def _adds_to(patterns: Sequence[TextPattern], fuller: Sequence[TextPattern]) -> bool:
    """Whether a pattern of the fuller ones has a slot more, and none has less than before."""
    pairs = zip(patterns, fuller, strict=bool(fuller))
    return _slots(fuller) > _slots(patterns) and all(_keeps(p.literals, f.literals) for p, f in pairs)


def _literals(patterns: Sequence[TextPattern]) -> tuple[tuple[str, ...], ...]:
    return tuple(pattern.literals for pattern in patterns)


def _slots(patterns: Sequence[TextPattern]) -> int:
    return sum(len(pattern.slots) for pattern in patterns)


def _keeps(literals: Sequence[str], fuller: Sequence[str]) -> bool:
    return len(literals) <= len(fuller) and sum(map(len, literals)) <= sum(map(len, fuller))
