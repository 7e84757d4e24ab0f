"""From requests of one form to the templates among them.

The tree is cut from the top. A group of requests is fitted: which text do all share? If that is enough to
be a prompt, and no slot hides several prompts, the group is a template. Otherwise it is parted by how its
values begin or end, and each part is looked at again. Values are never compared for likeness: the same
document sent through two prompts is more alike than two documents sent through one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from gateway.domain.template import Slot, TextPattern
from gateway.pipeline.alignment import TOKEN, WORD
from gateway.pipeline.literals import field_literals

T = TypeVar("T")
Row = tuple[str, ...]
"""The texts of one request, message by message."""

MIN_ROWS = 4
"""A template needs this many different requests."""
MIN_DISTINCT = 0.34
"""Share of different values from which on a group of values counts as varying inside."""
_SAMPLE = 16
_ROUNDS = 4
_PARTS = (8, 5, 3, 2)


class Found(NamedTuple):
    """Patterns, one for each text of a row, and the rows (by index) that they were found in."""

    patterns: tuple[TextPattern, ...]
    members: list[int]


class Fit(NamedTuple):
    """Patterns, the slot values of each row that fits, and the rows that do not."""

    patterns: tuple[TextPattern, ...]
    values: dict[int, tuple[str, ...]]
    misfits: list[int]


def words(text: str) -> int:
    """How many words the text has."""
    return len(WORD.findall(text))


def fixed_words(pattern: TextPattern) -> int:
    """How many words are fixed text."""
    return sum(map(words, pattern.literals))


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
    """Finds the templates of rows with equal headers; `forms` has one letter a text (`j`: JSON, no text)."""

    def __init__(self, rows: Sequence[Row], forms: str) -> None:
        self._rows = rows
        self._forms = forms

    def mine(self) -> list[Found]:
        """Every template among the rows, each with the rows it was found in."""
        first = list({row: i for i, row in reversed(list(enumerate(self._rows)))}.values())
        return self._solve(sorted(first))

    def _solve(self, members: list[int]) -> list[Found]:
        if len(members) < MIN_ROWS:
            return []
        fit = self._fit(members)
        accepted = is_prompt(fit.patterns) and len(fit.values) >= MIN_ROWS
        parts = self._prompts_in_slots(fit) if accepted else []
        if accepted and not parts:
            return [Found(fit.patterns, sorted(fit.values)), *self._solve_rest(members, fit.misfits)]
        found: list[Found] = []
        for part in parts or self._parts_by(members, fit, _heads):
            found += self._solve(part)
        rest = self._unclaimed(members, found)
        if not accepted and len(rest) >= MIN_ROWS:
            for part in self._parts_by(rest, self._fit(rest), _tails):
                found += self._solve(part) if len(part) < len(members) else []
            rest = self._unclaimed(rest, found)
        return found + self._solve_rest(members, rest)

    def _solve_rest(self, members: list[int], rest: list[int]) -> list[Found]:
        return self._solve(rest) if len(rest) < len(members) else []

    def _unclaimed(self, members: Iterable[int], found: Sequence[Found]) -> list[int]:
        return [i for i in members if not any(cut_row(f.patterns, self._rows[i]) is not None for f in found)]

    def _fit(self, members: list[int]) -> Fit:
        """Patterns that (nearly) all members fit; rows that the first samples say nothing about are added."""
        samples = _spread(members, _SAMPLE)
        best: Fit | None = None
        for _ in range(_ROUNDS):
            patterns = self._patterns(samples)
            cuts = {i: cut_row(patterns, self._rows[i]) for i in members}
            fit = Fit(
                patterns,
                {i: cut for i, cut in cuts.items() if cut is not None},
                [i for i, cut in cuts.items() if cut is None],
            )
            if best is None or len(fit.misfits) < len(best.misfits):
                best = fit
            if not fit.misfits or set(fit.misfits) <= set(samples):
                break
            samples = sorted({*samples, *_spread([i for i in fit.misfits if i not in samples], 4)})
        assert best is not None
        return best

    def _patterns(self, samples: list[int]) -> tuple[TextPattern, ...]:
        columns = zip(*(self._rows[i] for i in samples), strict=True)
        return tuple(_pattern(column, form) for column, form in zip(columns, self._forms, strict=True))

    def _parts_by(self, members: list[int], fit: Fit, key: Callable[[str, int], str]) -> list[list[int]]:
        """Parts by the first (or last) token after the text that all members share."""
        columns = list(range(len(fit.patterns)))
        for column in columns if key is _heads else reversed(columns):
            literals = fit.patterns[column].literals
            if len(literals) == 1:
                continue
            start, end = len(literals[0]), len(literals[-1])
            parts: dict[str, list[int]] = defaultdict(list)
            for i in members:
                text = self._rows[i][column]
                parts[key(text[start : len(text) - end], 1)].append(i)
            kept = [part for part in parts.values() if len(part) >= MIN_ROWS]
            if kept and len(parts) > 1:
                return kept
        return []

    def _prompts_in_slots(self, fit: Fit) -> list[list[int]]:
        """Parts of the rows by the prompts that a slot's values turn out to hold; none: empty."""
        strong = sum(map(fixed_words, fit.patterns)) >= 8
        slot = 0
        for pattern in fit.patterns:
            local = fixed_words(pattern)
            for _ in pattern.slots:
                parts = _best_parts({i: values[slot] for i, values in fit.values.items()}, local, strong)
                if parts:
                    return parts
                slot += 1
        return []


def is_prompt(patterns: Sequence[TextPattern]) -> bool:
    """Whether the fixed text is enough to be a prompt, and there is something to vary."""
    if not any(pattern.slots for pattern in patterns):
        return False
    longest = max(words(literal) for pattern in patterns for literal in pattern.literals)
    total = sum(map(fixed_words, patterns))
    local = sum(fixed_words(pattern) for pattern in patterns if pattern.slots)
    return total >= 8 or (local >= 3 and (longest >= 4 or total >= 5))


def _best_parts(values: dict[int, str], local: int, strong: bool) -> list[list[int]]:
    if len(set(values.values())) < 2 * MIN_ROWS:
        return []
    for key in (_heads, _tails):
        for size in _PARTS:
            groups: dict[str, list[int]] = defaultdict(list)
            for i, value in values.items():
                groups[key(value, size)].append(i)
            kept, added = [], 0
            for head, part in groups.items():
                own = _own_words([values[i] for i in part], strong) if head else 0
                if own:
                    kept.append(part)
                    added += own * len(part)
            covered = sum(map(len, kept))
            if len(kept) > 1 and covered >= 0.7 * len(values) and local / (local + added / covered) < 0.62:
                return kept
    return []


def _own_words(values: Sequence[str], strong: bool) -> int:
    """Words of fixed text that these values share, when they look like one prompt's requests; else 0."""
    distinct = sorted(set(values))
    if len(values) < MIN_ROWS or len(distinct) < max(3, MIN_DISTINCT * len(values)):
        return 0
    literals = field_literals(_spread(distinct, 8))
    longest = max(map(words, literals))
    total = sum(map(words, literals))
    return total if longest >= (6 if strong else 3) else 0


def _heads(value: str, size: int) -> str:
    return "".join(TOKEN.findall(value[: 40 * size])[:size])


def _tails(value: str, size: int) -> str:
    return "".join(TOKEN.findall(value[-40 * size :])[-size:])


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / (count - 1)
    return [items[round(i * step)] for i in range(count)]


def _pattern(column: Sequence[str], form: str) -> TextPattern:
    if len(set(column)) == 1:
        return TextPattern((column[0],))
    if form == "j":
        return TextPattern(("", ""), (Slot("part", kind="part"),))
    literals = field_literals(column)
    return TextPattern(tuple(literals), tuple(Slot("input") for _ in literals[1:]))
