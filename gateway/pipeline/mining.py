"""From requests of one form to the templates among them.

The tree is cut from the top. A group of requests is fitted: which text do all share? If that is enough to
be a prompt, and no slot hides several prompts, the group is a template. Otherwise it is parted by how its
values begin or end, and each part is looked at again. Values are never compared for likeness: the same
document sent through two prompts is more alike than two documents sent through one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

from gateway.domain.template import Slot, TextPattern
from gateway.pipeline.alignment import COMMON, WORD, tokens
from gateway.pipeline.literals import field_cut, field_literals
from gateway.pipeline.splitting import (
    MIN_ROWS,
    PHRASE,
    STRONG,
    Trigrams,
    fixed_words,
    grouped,
    head,
    may_be_section,
    parts_of,
    spread,
    tail,
    trigrams,
    words,
)

Row = tuple[str, ...]
"""The texts of one request, message by message."""

SAME = 0.9
"""Share of fixed text in common from which two templates may be one."""
MOST = 0.8
"""Share of a template's fixed words that a more general one must have to take its place."""
_SAMPLE = 16
_FEW_STRAYS = 20
_FEW_PAIRS = 5
_SIDE = 5
Side = Callable[[str, int], str]
_BOILERPLATE = re.compile(r"(?i)\b(you )?are an? (very )?(helpful|useful)?( AI)?( assistant)?")
_ROUNDS = 4
_TELLING = 3
_SIGN = re.compile(r"[^\w\s.,?!'’-]|\n")
_DEPTHS = (1, 2, 3, 5, 8)


class Found(NamedTuple):
    """Patterns, one for each text of a row, and the rows (by index) that they were found in."""

    patterns: tuple[TextPattern, ...]
    members: list[int]


class Fit(NamedTuple):
    """Patterns, the slot values of each row that fits, and the rows that do not.

    `quoted`: nearly all misfits hold the patterns' text, and more of it in a value.
    """

    patterns: tuple[TextPattern, ...]
    values: dict[int, tuple[str, ...]]
    misfits: list[int]
    quoted: bool = False


class _Said(NamedTuple):
    """A template with what it is compared by: the trigrams of its fixed text, and how many words that has."""

    found: Found
    trigrams: Trigrams
    words: int


def _said(found: Found) -> _Said:
    return _Said(found, trigrams(found.patterns), sum(map(fixed_words, found.patterns)))


def cut_row(patterns: Sequence[TextPattern], row: Row) -> tuple[str, ...] | None:
    """The slot values of a row, or None where it does not fit."""
    values: tuple[str, ...] = ()
    for pattern, text in zip(patterns, row, strict=True):
        cut = pattern.cut(text)
        if cut is None:
            return None
        values += cut
    return values


class Miner:
    """Finds the templates of rows with equal headers.

    For each text of a row, `forms` has a letter (`j`: JSON, no text) and `system` whether it is a system message's.
    """

    def __init__(self, rows: Sequence[Row], forms: str, system: Sequence[bool]) -> None:
        self._rows = rows
        self._forms = forms
        self._system = system
        self._order = sorted(range(len(rows)), key=rows.__getitem__)
        self._sorted = [rows[i] for i in self._order]
        self._fitting: dict[tuple[TextPattern, ...], frozenset[int]] = {}

    def mine(self) -> list[Found]:
        """Every template among the rows, each with all rows that fit it."""
        first = list({row: i for i, row in reversed(list(enumerate(self._rows)))}.values())
        found = self._without_documents(self._merged(self._solve(sorted(first))))
        return [Found(one.patterns, sorted(self._rows_of(one.patterns))) for one in found]

    def _rows_of(self, patterns: tuple[TextPattern, ...]) -> frozenset[int]:
        """All rows that fit; only those that begin like the patterns are looked at."""
        if patterns not in self._fitting:
            constant = tuple(p.literals[0] for p in takewhile(lambda p: not p.slots, patterns))
            column = len(constant)
            opening = patterns[column].literals[0] if column < len(patterns) else ""
            fitting = []
            for n in range(bisect_left(self._sorted, (*constant, opening)), len(self._sorted)):
                row = self._sorted[n]
                if row[:column] != constant or not "".join(row[column : column + 1]).startswith(opening):
                    break
                if cut_row(patterns, row) is not None:
                    fitting.append(self._order[n])
            self._fitting[patterns] = frozenset(fitting)
        return self._fitting[patterns]

    def _without_documents(self, found: list[Found]) -> list[Found]:
        """Templates less those that only hold a recurring value, such as a document, in a slot of another."""
        return [one for one in found if not any(self._fills(one, other) for other in found if other is not one)]

    def _fills(self, one: Found, other: Found) -> bool:
        if not all(holds(other.patterns, self._rows[i]) for i in one.members):
            return False
        cuts = [cut_row(other.patterns, self._rows[i]) for i in one.members]
        values = [cut for cut in cuts if cut is not None]
        if 2 * len(values) < len(one.members):
            return False
        system = [is_system for p, is_system in zip(other.patterns, self._system, strict=True) for _ in p.slots]
        filled = 0
        for column, is_system in zip(zip(*values, strict=True), system, strict=True):
            usual, count = Counter(column).most_common(1)[0]
            if 2 * count >= len(column) and words(usual) >= STRONG and not is_system:
                filled += 1
            elif sum(map(words, field_literals(spread(sorted(set(column)), 8)))) >= STRONG / 2:
                return False
        return filled > 0

    def _merged(self, found: list[Found]) -> list[Found]:
        """Templates that differ in nothing but what one value happened to begin or end with become one."""
        kept: list[_Said] = []
        for one in map(_said, sorted(found, key=lambda f: (-len(f.members), f.members))):
            for i, other in enumerate(kept):
                if self._says_as_much(other, one):
                    members = sorted({*one.found.members, *other.found.members})
                    kept[i] = other._replace(found=Found(other.found.patterns, members))
                    break
                most = max(len(one.trigrams), len(other.trigrams))
                if len(one.trigrams & other.trigrams) >= min(SAME * most, most - 1):
                    both = self._fit(sorted({*one.found.members, *other.found.members}))
                    if self._is_one(both, one, other):
                        kept[i] = _said(Found(both.patterns, sorted(both.values)))
                        break
            else:
                kept.append(one)
        return [said.found for said in kept]

    def _says_as_much(self, other: _Said, one: _Said) -> bool:
        """Whether all rows of a template fit another one, which lacks but a few words of it, and no section."""
        if other.words < MOST * one.words or not self._rows_of(other.found.patterns).issuperset(one.found.members):
            return False
        slots = {sum(len(pattern.slots) for pattern in said.found.patterns) for said in (one, other)}
        rows = [len({self._rows[i] for i in self._rows_of(said.found.patterns)}) for said in (one, other)]
        return len(slots) > 1 or one.words - other.words < PHRASE or not may_be_section(*rows)

    def _is_one(self, both: Fit, *found: _Said) -> bool:
        least = min(said.words for said in found)
        enough = not both.misfits and sum(map(fixed_words, both.patterns)) >= SAME * least
        return enough and not parts_of(both.patterns, both.values, self._system)

    def _solve(self, members: list[int]) -> list[Found]:
        if len(members) < MIN_ROWS:
            return []
        fit = self._best_fit(members)
        accepted = is_prompt(fit.patterns, self._system) and len(fit.values) >= MIN_ROWS
        parts = parts_of(fit.patterns, fit.values, self._system) if accepted else []
        if accepted and not parts:
            rest = [i for i in fit.misfits if not (fit.quoted and holds(fit.patterns, self._rows[i]))]
            return [Found(fit.patterns, sorted(fit.values)), *self._solve_rest(members, rest)]
        found: list[Found] = []
        sides = (head, tail) if accepted else self._sides(members, fit)
        for part in parts or self._parts_by(members, fit, sides[0]):
            found += self._solve(part)
        rest = self._unclaimed(members, found)
        if not accepted and len(rest) >= MIN_ROWS:
            for part in self._parts_by(rest, self._fit(rest), sides[1]):
                found += self._solve(part) if len(part) < len(members) else []
            rest = self._unclaimed(rest, found)
        return found + self._solve_rest(members, rest)

    def _solve_rest(self, members: list[int], rest: list[int]) -> list[Found]:
        return self._solve(rest) if len(rest) < len(members) else []

    def _unclaimed(self, members: Iterable[int], found: Sequence[Found]) -> list[int]:
        claimed = frozenset().union(*(self._rows_of(f.patterns) for f in found))
        return [i for i in members if i not in claimed]

    def _best_fit(self, members: list[int]) -> Fit:
        """As `_fit`; where that gives no prompt, what the rows say that quote the prompt least.

        A value that holds the prompt's own words hides where the prompt's are.
        """
        fit = self._fit(members)
        if is_prompt(fit.patterns, self._system) or len(members) < 2 * MIN_ROWS:
            return fit
        samples = plainest(by_plainness(self._rows, members))
        if not samples:
            return fit
        again = self._fitted(members, self._patterns(samples))
        strays = sum(not holds(again.patterns, self._rows[i]) for i in again.misfits)
        enough = 2 * len(again.values) >= len(members) >= _FEW_STRAYS * strays
        return again._replace(quoted=True) if enough and is_prompt(again.patterns, self._system) else fit

    def _fitted(self, members: list[int], patterns: tuple[TextPattern, ...]) -> Fit:
        cuts = {i: cut_row(patterns, self._rows[i]) for i in members}
        return Fit(
            patterns,
            {i: cut for i, cut in cuts.items() if cut is not None},
            [i for i, cut in cuts.items() if cut is None],
        )

    def _fit(self, members: list[int]) -> Fit:
        """Patterns that (nearly) all members fit; rows that the first samples say nothing about are added."""
        samples = spread(members, _SAMPLE)
        best: Fit | None = None
        for _ in range(_ROUNDS):
            fit = self._fitted(members, self._patterns(samples))
            if best is None or len(fit.misfits) < len(best.misfits):
                best = fit
            if not fit.misfits or set(fit.misfits) <= set(samples):
                break
            samples = sorted({*samples, *spread([i for i in fit.misfits if i not in samples], 4)})
        assert best is not None
        return best

    def _patterns(self, samples: list[int]) -> tuple[TextPattern, ...]:
        return patterns_of(self._rows, samples, self._forms)

    def _sides(self, members: list[int], fit: Fit) -> tuple[Side, Side]:
        """By which side to part first: the one on which more values agree, as prompts may begin with their input.

        Values that go on alike are one value, such as a document, that recurs; they count once.
        """
        slotted = [column for column, pattern in enumerate(fit.patterns) if pattern.slots]
        if len(slotted) != 1:
            return head, tail
        literals = fit.patterns[slotted[0]].literals
        texts = {i: self._rows[i][slotted[0]] for i in members}
        values = {i: text[len(literals[0]) : len(text) - len(literals[-1])] for i, text in texts.items()}
        most = []
        for side in (head, tail):
            classes = grouped(values, side, _SIDE).values()
            most.append(max(len({side(values[i], 6 * _SIDE) for i in part}) for part in classes))
        return (tail, head) if most[1] > most[0] else (head, tail)

    def _parts_by(self, members: list[int], fit: Fit, key: Side) -> list[list[int]]:
        """Parts by the first (or last) token after the text that all members share."""
        columns = list(range(len(fit.patterns)))
        for column in columns if key is head else reversed(columns):
            literals = fit.patterns[column].literals
            if len(literals) == 1:
                continue
            start, end = len(literals[0]), len(literals[-1])
            texts = {i: self._rows[i][column] for i in members}
            values = {i: text[start : len(text) - end] for i, text in texts.items()}
            for size in _DEPTHS:
                parts = grouped(values, key, size)
                kept = [part for part in parts.values() if len(part) >= MIN_ROWS]
                if kept and len(parts) > 1:
                    return kept
        return []


def patterns_of(rows: Sequence[Row], samples: Sequence[int], forms: str) -> tuple[TextPattern, ...]:
    """What these rows (by index) have in common: a pattern for each of their texts; `forms` as in `Miner`."""
    columns = zip(*(rows[i] for i in samples), strict=True)
    return tuple(_pattern(column, form) for column, form in zip(columns, forms, strict=True))


def plainest(ordered: Sequence[int], count: int = _SAMPLE) -> list[int]:
    """The first `count` of rows as `by_plainness` orders them, half of them at most, in the order of time."""
    return sorted(ordered[: min(count, len(ordered) // 2)])


def by_plainness(rows: Sequence[Row], members: Sequence[int]) -> list[int]:
    """Some rows, those first in which least of what all of them hold occurs once more than need be.

    Only pairs of tokens count that many rows hold as seldom as any: these are the prompt's, not the language's.
    None where the rows share too little to be one prompt's.
    """
    samples = spread(members, 4 * _SAMPLE)
    counts: list[Counter[tuple[str, str]]] = []
    common: set[tuple[str, str]] = set()
    for i in samples:
        counts.append(_pairs(rows[i]))
        common = common.intersection(counts[-1]) if len(counts) > 1 else set(counts[-1])
        if len(common) < _FEW_PAIRS:
            return []
    extra = [0] * len(samples)
    for pair in common:
        column = [found[pair] for found in counts]
        least = min(column)
        if column.count(least) >= len(column) / 4:
            extra = [n + (count > least) for n, count in zip(extra, column, strict=True)]
    return [samples[n] for n in sorted(range(len(samples)), key=lambda n: (extra[n], n))]


def holds(patterns: Sequence[TextPattern], row: Row) -> bool:
    """Whether a row has all fixed text in order, even if it could be cut in several ways."""
    for pattern, text in zip(patterns, row, strict=True):
        first, *inner = pattern.literals
        last = inner.pop() if inner else ""
        at, end = len(first), len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last) or at > end:
            return False
        for literal in inner:
            place = text.find(literal, at, end)
            if place < 0:
                return False
            at = place + len(literal)
    return True


def _pairs(row: Row) -> Counter[tuple[str, str]]:
    """How often each pair of neighbouring tokens occurs; spaces are no tokens here."""
    found: Counter[tuple[str, str]] = Counter()
    for text in row:
        found.update(pairwise(token for token in tokens(text) if token != " "))
    return found


def is_prompt(patterns: Sequence[TextPattern], system: Sequence[bool]) -> bool:
    """Whether the fixed text is enough to be a prompt, and there is something to vary.

    `system` tells which texts are a system message's: those often are boilerplate, and must say more.
    """
    if not any(pattern.slots for pattern in patterns):
        return False
    literals = [_BOILERPLATE.sub("", literal) for pattern in patterns for literal in pattern.literals]
    total = sum(map(words, literals))
    own = [p for p, is_system in zip(patterns, system, strict=True) if p.slots and not is_system]
    longest = max((words(literal) for pattern in own for literal in pattern.literals), default=0)
    local = sum(map(fixed_words, own))
    if total < STRONG and not _is_written(own):
        return False
    return total >= STRONG or (local >= 3 and (longest >= 4 or total >= 5))


def _is_written(patterns: Sequence[TextPattern]) -> bool:
    """Whether a few fixed words are a prompt rather than how people begin to speak ("I'd like to").

    A prompt of that length sets its input apart with a sign or a new line, or has words that say what to do.
    """
    literals = [literal for pattern in patterns for literal in pattern.literals]
    if any(_SIGN.search(literal) for literal in literals):
        return True
    telling = [name for literal in literals for name in WORD.findall(literal.lower()) if len(name) > 1]
    return len(set(telling) - COMMON) >= _TELLING


def _pattern(column: Sequence[str], form: str) -> TextPattern:
    if form == "j":
        same = len(set(column)) == 1
        return TextPattern((column[0],)) if same else TextPattern(("", ""), (Slot("part", kind="part"),))
    literals, types = field_cut(column)
    return TextPattern(tuple(literals), tuple(Slot("input", kind) for kind in types))
