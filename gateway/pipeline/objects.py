"""JSON among the values: objects of one kind share their keys, and each is one value all the same.

A prompt may write an object, too, around strings and numbers that are filled in. What is filled in elsewhere (keys
with their values, the half of a string) shows that the whole object was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from json import JSONDecoder

from gateway.domain.pattern import is_json

_OPENING = re.compile(r"[{\[]")
_NEAR = 80
"""Characters in front of a slot in which the object that it is part of may begin."""
_BEFORE_SCALAR = re.compile(r"[:\[,]\s*\"?\Z|\{\s*\"\Z")
_BEHIND_SCALAR = re.compile(r"\"?\s*[,:}\]]")
_QUOTE = re.compile(r"(?<!\\)\"")
_DECODER = JSONDecoder()


def join_objects(literals: list[str], columns: list[tuple[str, ...]]) -> None:
    """Make one slot of what is one JSON value in each sample, but for objects that the prompt itself writes.

    `columns`: the values of each slot, sample by sample; the samples are `literals[0] columns[0] literals[1] ...`.
    """
    for i in reversed(range(len(columns))):
        for opening in _OPENING.finditer(literals[i], max(0, len(literals[i]) - _NEAR)):
            start = opening.start()
            end = _end(literals, columns, i, start)
            if end is None:
                continue
            last, after = end
            if (start or not i) and (after < len(literals[last]) or last == len(columns)):
                columns[i:last] = [_between(literals, columns, (i, start), end)]
                literals[i : last + 1] = [literals[i][:start], literals[last][after:]]
                break


def _end(literals: list[str], columns: list[tuple[str, ...]], i: int, start: int) -> tuple[int, int] | None:
    """Where the JSON value ends that begins in literal `i` at `start`, as a literal and a place in it.

    None if there is none in some sample, or only strings and numbers are filled in.
    """
    pieces = [literals[i][start:]]
    for column, literal in zip(columns[i:], literals[i + 1 :], strict=True):
        pieces += (column[0], literal)
    try:
        length = _DECODER.raw_decode("".join(pieces))[1]
    except (ValueError, RecursionError):
        return None
    ends = list(accumulate(map(len, pieces)))
    n = next(n for n, end in enumerate(ends) if length <= end)
    if n == 0 or (n % 2 and length < ends[n]):
        return None
    last, after = i + (n + 1) // 2, 0 if n % 2 else length - ends[n - 1]
    filled = [(pieces[2 * m], columns[i + m], pieces[2 * m + 2]) for m in range(last - i)]
    if all(_is_scalar(*one) for one in filled):
        return None
    return (last, after) if all(map(is_json, _between(literals, columns, (i, start), (last, after)))) else None


def _is_scalar(before: str, values: Sequence[str], behind: str) -> bool:
    """Whether a slot of an object holds strings, numbers or names of keys, each whole."""
    if not _BEFORE_SCALAR.search(before) or not _BEHIND_SCALAR.match(behind):
        return False
    return not any(_QUOTE.search(value.strip('"')) for value in values)


def _between(
    literals: list[str], columns: list[tuple[str, ...]], start: tuple[int, int], end: tuple[int, int]
) -> tuple[str, ...]:
    """What stands in each sample from one place in a literal to another."""
    first, last = start[0], end[0]
    fixed = [literals[first][start[1] :], *literals[first + 1 : last], literals[last][: end[1]]]
    return tuple(
        "".join([fixed[0], *(text for pair in zip(values, fixed[1:], strict=True) for text in pair)])
        for values in zip(*columns[first:last], strict=True)
    )
