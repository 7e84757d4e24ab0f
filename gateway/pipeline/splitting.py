"""Is it one prompt? Evidence that the slots of a fitted group hide several prompts, or versions of one.

Three signs count. The values of a slot fall into classes that each have fixed text of their own and vary inside.
Or slots take few values, always the same ones together, and these are more than an enumeration. Or a text is
there from some moment on and was not before. Recurring values alone are no sign: documents recur too.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from typing import TypeVar

from gateway.domain.pattern import is_kind
from gateway.domain.template import TextPattern, kind_of
from gateway.pipeline.alignment import TOKEN, WORD
from gateway.pipeline.literals import field_literals

T = TypeVar("T")
Values = dict[int, tuple[str, ...]]
"""Slot values by row; rows are numbered in the order of time."""
Column = tuple[str, ...]
Trigrams = frozenset[tuple[str, ...]]

MIN_ROWS = 4
"""A template needs this many different requests."""
MIN_DISTINCT = 0.34
"""Share of different values from which on a group of values counts as varying inside."""
SHARED = 0.62
"""Fixed text as a share of fixed and further text below which a group is parted."""
TOGETHER = 0.9
"""The same where several passages change together: an enumeration changes alone."""
STRONG = 8
"""Words of fixed text from which on a group is a prompt beyond doubt."""
STRAYS = 0.75
"""Share of rows that hold the same long value from which on the others are strays."""
_SENTENCE = 6
_ENDED = re.compile(r"[.!?](?:\s|$)|[。？！]|\n")
PHRASE = 4
"""Words from which on many values do not begin or end alike by chance."""
_SECTION = 0.25
"""Share of rows that must have a section, and that must lack it, for it to be the prompt's and not the values'."""
_CLOSED = 12
_HEAD_SIZES = (8, 5, 3, 2)
SAME_ROWS = 0.9
"""Overlap (Jaccard index) from which two sets of rows are taken for one."""
_GLANCE = 3
_KEPT = 1 << 12
"""Beginnings and endings of values whose tokens are remembered: the same ones are looked at for several signs."""
_SETS = 40


def words(text: str) -> int:
    """How many words the text has."""
    return len(WORD.findall(text))


def fixed_words(pattern: TextPattern) -> int:
    """How many words are fixed text."""
    return sum(map(words, pattern.literals))


def trigrams(patterns: Iterable[TextPattern]) -> Trigrams:
    """The word trigrams of the fixed text; a shorter literal counts as one."""
    found: set[tuple[str, ...]] = set()
    for literal in (literal for pattern in patterns for literal in pattern.literals):
        names = WORD.findall(literal)
        found.update(zip(names, names[1:], names[2:], strict=False) if len(names) > 2 else [tuple(names)])
    return frozenset(found - {()})


def parts_of(patterns: Sequence[TextPattern], values: Values, system: Sequence[bool]) -> list[list[int]]:
    """The rows parted by the prompts among them; empty when they are requests of one prompt."""
    if usual := _without_strays(values):
        return [usual]
    strong = sum(map(fixed_words, patterns)) >= STRONG
    fields = _slots_by_field(patterns, values)
    prompts = {id(pattern) for pattern, is_system in zip(patterns, system, strict=True) if is_system}
    for pattern, slots in fields:
        for slot in slots:
            column = {i: row[slot] for i, row in values.items()}
            parts = _by_own_text(column, fixed_words(pattern), strong, id(pattern) in prompts)
            if parts:
                return parts
    for pattern, slots in fields:
        if not fixed_words(pattern) and id(pattern) not in prompts:
            continue  # a message of the user without fixed text: documents and openings of conversations recur
        parts = _by_closed_slots({i: tuple(row[s] for s in slots) for i, row in values.items()}, pattern)
        if parts:
            return parts
    return _by_time(fields, values) or _by_several_slots(fields, values) or _by_section(fields, values)


def _without_strays(values: Values) -> list[int]:
    """The rows left without the few for whose sake a long text seems to vary; empty if there are none."""
    usual = list(values)
    for column in zip(*values.values(), strict=True):
        text, count = Counter(column).most_common(1)[0]
        if STRAYS * len(column) <= count < len(column) and words(text) >= _SENTENCE:
            usual = [i for i in usual if text in values[i]]
    return usual if MIN_ROWS <= len(usual) < len(values) else []


def _slots_by_field(patterns: Sequence[TextPattern], values: Values) -> list[tuple[TextPattern, list[int]]]:
    """Each pattern that has slots, with the numbers of those that hold more than dates and ids."""
    found, first = [], 0
    for pattern in patterns:
        slots = [first + i for i in range(len(pattern.slots))]
        texts = [s for s in slots if any(kind_of(row[s]) == "text" for row in values.values())]
        if texts:
            found.append((pattern, texts))
        first += len(pattern.slots)
    return found


def _by_own_text(values: dict[int, str], local: int, strong: bool, system: bool) -> list[list[int]]:
    """Classes of values, by how they begin or end, that each look like a prompt with slots of its own."""
    if len(set(values.values())) < (2 if system else 2 * MIN_ROWS):
        return []
    # The more the text around the slot is a prompt already, the fewer values may stand outside all classes.
    enough = (0.9 if local >= STRONG else 0.6 if local else 0.5) * len(values)
    for size in _HEAD_SIZES:
        kept: list[list[int]] = []
        added, rest = 0, values
        for key in (head, tail):
            for text, part in grouped(rest, key, size).items():
                own = _own_words([values[i] for i in part], strong, system) if text else 0
                if own:
                    kept.append(part)
                    added += own * len(part)
            claimed = {i for part in kept for i in part}
            rest = {i: value for i, value in values.items() if i not in claimed}
        covered = len(values) - len(rest)
        if len(kept) > 1 and covered >= enough and local / (local + added / covered) < SHARED:
            return kept
    return []


def _own_words(values: Sequence[str], strong: bool, system: bool) -> int:
    """Words of fixed text that these values share, when they look like one prompt's requests; else 0.

    One and the same text again and again is a document, but in a system message it is a prompt.
    """
    distinct = sorted(set(values))
    if system and len(distinct) == 1 and len(values) >= MIN_ROWS:
        return words(distinct[0]) if words(distinct[0]) >= _SENTENCE else 0
    if len(values) < MIN_ROWS or len(distinct) < max(3, MIN_DISTINCT * len(values)):
        return 0
    if strong and all(is_kind("json", value) for value in distinct):
        return 0  # objects of one kind share their keys
    literals = field_literals(spread(distinct, 8))
    longest = max(map(words, literals))
    return sum(map(words, literals)) if longest >= (6 if strong else 3) else 0


def _by_closed_slots(values: Values, pattern: TextPattern) -> list[list[int]]:
    """Parts by the slots of one text that take few values, the same ones together."""
    columns = list(zip(*values.values(), strict=True))
    together = _together([column for column in columns if _is_closed(column)])
    if not together:
        return []
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, texts in zip(values, zip(*together, strict=True), strict=True):
        groups[texts].append(i)
    kept = [part for part in groups.values() if len(part) >= MIN_ROWS]
    if len(kept) < 2:
        return []
    if sum(map(len, kept)) >= 0.9 * len(values) and _apart(kept):
        return kept
    local = fixed_words(pattern)
    longest = [max(map(words, texts)) for texts in groups]
    added = sum(sum(map(words, texts)) * len(part) for texts, part in groups.items()) / len(values)
    if local < STRONG:
        return kept if added >= 2 and max(longest) >= 3 else []
    several = len(together) > 1 and len(kept) <= 4 and added >= 4
    share = local / (local + added)
    return kept if share < (TOGETHER if several else SHARED) and (len(together) > 1 or min(longest) >= 10) else []


def _together(columns: list[Column]) -> list[Column]:
    """The columns that change together, of all such sets the one with the most."""
    best: list[Column] = []
    for one in columns:
        most = len(set(one))
        found = [other for other in columns if len(set(zip(one, other, strict=True))) <= max(most, len(set(other)))]
        if len(found) > len(best):
            best = found
    return best


def _is_closed(column: Sequence[str]) -> bool:
    counts = Counter(column)
    recurring = [count for count in counts.values() if count >= MIN_ROWS]
    return 2 <= len(recurring) <= _CLOSED and sum(recurring) >= 0.9 * len(column)


def _by_time(fields: Sequence[tuple[TextPattern, list[int]]], values: Values) -> list[list[int]]:
    """Two parts, before and after, when a text at the edge of a slot is there from (or until) one moment."""
    for _, slots in fields:
        for slot in slots:
            column = {i: row[slot] for i, row in values.items()}
            for key in (head, tail):
                for text, part in grouped(column, key, 8).items():
                    rest = sorted(set(column) - set(part))
                    if min(len(part), len(rest)) >= 2 * MIN_ROWS and words(text) >= 3 and _apart([part, rest]):
                        return [part, rest]
    return []


def may_be_section(rows: int, of: int) -> bool:
    """Whether a text that so many of these different rows have, and the others lack, may be a prompt's section."""
    return max(2 * MIN_ROWS, _SECTION * of) <= rows <= of - max(2 * MIN_ROWS, _SECTION * of)


def _by_section(fields: Sequence[tuple[TextPattern, list[int]]], values: Values) -> list[list[int]]:
    """Two parts, where many of a slot's values begin (or end) with one text, many do not, and those that do go on
    in many ways: there the prompt has a section that may be left out.

    In a message that has hardly any other text, the values must be framed: that is another prompt.
    """
    for pattern, slots in fields:
        for slot in slots:
            part = _with_section({i: row[slot] for i, row in values.items()}, strong=fixed_words(pattern) >= STRONG)
            if part:
                return [part, sorted(set(values) - set(part))]
    return []


def _with_section(column: dict[int, str], *, strong: bool) -> list[int]:
    """The rows of a slot whose values begin or end with a section of the prompt; empty if there is none."""
    for key in (head, tail):
        text, part = max(grouped(column, key, 8).items(), key=lambda item: len(item[1]))
        distinct = sorted({column[i] for i in part})
        many = len(distinct) >= max(2 * MIN_ROWS, MIN_DISTINCT * len(part))
        if words(text) < PHRASE or not many or not may_be_section(len(part), len(column)):
            continue
        if _is_section(field_literals(spread(distinct, 8)), strong=strong):
            return part
    return []


def _is_section(literals: Sequence[str], *, strong: bool) -> bool:
    """Whether what values share is a sentence or a line, and not how people begin to speak.

    Where the message has hardly any other text, it must be a frame around them.
    """
    if strong:
        return any(words(literal) >= PHRASE and _ENDED.search(literal) for literal in literals)
    return sum(words(literal) > 0 for literal in literals) > 1


def _by_several_slots(fields: Sequence[tuple[TextPattern, list[int]]], values: Values) -> list[list[int]]:
    """Rows whose values go together in several slots, apart from the others: two prompts of one style.

    The values of one document, or of one closed set, agree in their own slot alone.
    """
    slots = [slot for _, numbers in fields for slot in numbers]
    seen: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for i, row in values.items():
        for slot in slots:
            seen[slot, "head", head(row[slot], _GLANCE)].append(i)
            seen[slot, "tail", tail(row[slot], _GLANCE)].append(i)
    shared = {key: frozenset(rows) for key, rows in seen.items() if MIN_ROWS <= len(rows) < len(values)}
    largest = sorted(shared.items(), key=lambda item: -len(item[1]))[:_SETS]
    local = sum(fixed_words(pattern) for pattern, _ in fields)
    tried: set[frozenset[int]] = set()
    for _, rows in largest:
        if rows in tried:
            continue
        tried.add(rows)
        alike = {key[0] for key, others in largest if len(rows & others) >= SAME_ROWS * len(rows | others)}
        if len(alike) > 1 and _is_prompt_of_its_own([[values[i][slot] for i in rows] for slot in alike], local):
            rest = [i for i in values if i not in rows]
            return [part for part in (sorted(rows), rest) if len(part) >= MIN_ROWS]
    return []


def _is_prompt_of_its_own(columns: Sequence[Sequence[str]], local: int) -> bool:
    """Whether the values of several slots share text of their own, at least one of them around a varying value."""
    own, varying = [], False
    for column in columns:
        distinct = sorted(set(column))
        literals = field_literals(spread(distinct, 8))
        own.append(sum(map(words, literals)))
        varying = varying or (len(distinct) >= max(3, MIN_DISTINCT * len(column)) and own[-1] > 0)
    return varying and sum(count > 0 for count in own) > 1 and sum(own) >= max(4, local / 4)


def _apart(parts: Sequence[Sequence[int]]) -> bool:
    """Whether the parts follow one another in time (one row in twenty may stray)."""
    ranges = sorted((part[len(part) // 20], part[-1 - len(part) // 20]) for part in map(sorted, parts))
    return all(before[1] < after[0] for before, after in pairwise(ranges))


def grouped(values: dict[int, str], key: Callable[[str, int], str], size: int) -> dict[str, list[int]]:
    """Rows by the first or last tokens of their value."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, value in values.items():
        groups[key(value, size)].append(i)
    return groups


def head(value: str, size: int) -> str:
    """The first `size` tokens."""
    return _first(value[: 40 * size], size)


@lru_cache(_KEPT)
def _first(beginning: str, size: int) -> str:
    found = next(islice(TOKEN.finditer(beginning), size - 1, None), None)
    return beginning[: found.end()] if found else beginning


def tail(value: str, size: int) -> str:
    """The last `size` tokens."""
    return _last(value[-8 * size :], size) or "".join(TOKEN.findall(value[-40 * size :])[-size:])


@lru_cache(_KEPT)
def _last(ending: str, size: int) -> str:
    """The last `size` tokens; nothing where this may be too short to tell."""
    found = TOKEN.findall(ending)
    return "".join(found[-size:]) if len(found) > size else ""


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / (count - 1)
    return [items[round(i * step)] for i in range(count)]
