"""From shared runs of tokens to the literals of a text pattern: prompt, or what values share by accident.

When in doubt a piece of text is input: that costs a few tokens, the other error would cost an instruction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from gateway.domain.template import DATE, ID
from gateway.pipeline.alignment import COMMON, WORD, Run, by_chance, shared_runs, surprise, tokens

_VOLATILE = re.compile(rf"(?<!\w)(?:{DATE}|{ID})(?!\w)")
_CUE = re.compile(r"(?i)\b(today|todays|date|time|now|current|currently|timestamp|id|trace|session|request)\b")
_FEW = 16
_SOME = 150
_SENTENCE = 12
_SENTENCE_ENDS = (".", "?", "!", '"', "'")
_QUOTES = ('"', "'")
_DELIMITERS = frozenset("\n:>\"'`([{=.?!;#*-|<)]},/")


def field_literals(texts: Sequence[str]) -> list[str]:
    """The literals that all these texts share, in order; the first and the last may be empty.

    Texts that are all equal give one literal, unless it holds a date of today.
    """
    if len(set(texts)) == 1:
        return _without_volatile(texts[0])
    before, after = _shared_lines(texts)
    split = [tokens(text[before : len(text) - after]) for text in texts]
    runs = shared_runs(split)
    first, inner, last = _edges(runs, split)
    inner = _likely(inner, split, first, last)
    edge, ends = Run((0,) * len(split), first), tuple(len(text) - last for text in split)
    runs = [edge, *inner, Run(ends, last)]
    pieces = [split[0][run.starts[0] : run.starts[0] + run.length] for run in runs]
    literals = [_trim_right(pieces[0], len(texts))]
    for i in range(1, len(runs)):
        values = _between(split, runs[i - 1], runs[i])
        piece = _trim_left(pieces[i], literals[-1], values)
        literals.append(piece if i == len(runs) - 1 else _trim_right(piece, len(texts)))
    joined = ["".join(piece) for piece in literals]
    joined[0] = texts[0][:before] + joined[0]
    joined[-1] += texts[0][len(texts[0]) - after :]
    joined = [joined[0], *filter(_is_separator, joined[1:-1]), joined[-1]]
    return [piece for literal in joined for piece in _without_volatile(literal)]


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


def _without_volatile(literal: str) -> list[str]:
    """The literal cut where it holds a date or an id that is only the same because all requests are of one day.

    A word must announce it (today, date, trace, ...), always another one: examples hold dates too.
    """
    found = [(v, literal[max(0, v.start() - 40) : v.start()]) for v in _VOLATILE.finditer(literal)]
    labels = Counter(_last_word(before) for _, before in found)
    pieces, start = [], 0
    for volatile, before in found:
        if labels[_last_word(before)] == 1 and _CUE.search(before) and volatile.start() >= start + 3:
            pieces.append(literal[start : volatile.start()])
            start = volatile.end()
    return [*pieces, literal[start:]]


def _last_word(text: str) -> str:
    names = WORD.findall(text)
    return names[-1] if names else ""


def _between(split: Sequence[list[str]], left: Run, right: Run) -> list[list[str]]:
    spans = zip(split, left.starts, right.starts, strict=True)
    return [text[start + left.length : end] for text, start, end in spans]


def _is_separator(literal: str) -> bool:
    """Whether a piece of text between two slots is telling enough: it has words, or empty or marked lines."""
    return bool(WORD.search(literal)) or literal.count("\n") > 1


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
    bits = surprise(piece)
    names = [token for token in piece if WORD.fullmatch(token)]
    if len(split) < 12 and not names:
        return bits
    if names and len(names) < 3 and all(name.lower() in COMMON for name in names) and "".join(piece).isalpha():
        return bits
    total, occurrences = 0, 0
    text = "".join(piece)
    for n, sample in enumerate(split):
        low = kept[i - 1].starts[n] + kept[i - 1].length if i else first
        high = kept[i + 1].starts[n] if i + 1 < len(kept) else len(sample) - last
        total += high - low - run.length
        occurrences += "".join(sample[low:high]).count(text)
    count = len(split)
    return bits if by_chance(occurrences / count, total / count / 2, bits, count) else -1.0


def _trim_right(piece: list[str], count: int) -> list[str]:
    """Give words at the right edge back to the value, unless a delimiter or function word ends the piece."""
    if count >= _FEW or not piece:
        return piece
    end = len(piece)
    for i in range(len(piece) - 1, max(-1, len(piece) - 9), -1):
        token = piece[i]
        if token in _DELIMITERS or (token.lower() in COMMON and token.islower()):
            return piece[:end]
        if not token.isspace():
            end = i
    return piece


def _trim_left(piece: list[str], before: list[str], values: Sequence[list[str]]) -> list[str]:
    """Give back to the values what ends them: a full stop or a quote of theirs; for few samples, words.

    `before`: the literal in front of the slot; `values`: what each sample has in it.
    """
    if not piece:
        return piece
    if piece[0] in _SENTENCE_ENDS and _ends_values(piece, before, values):
        piece = piece[1:]
    if len(values) >= _FEW:
        return piece
    for i, token in enumerate(piece[:8]):
        if token in _DELIMITERS or (token.lower() in COMMON and token.islower()):
            return piece[i:] if i and not piece[0].isspace() else piece
    return piece


def _ends_values(piece: list[str], before: list[str], values: Sequence[list[str]]) -> bool:
    """Whether the sign that begins the piece belongs to the values in front of it."""
    sign = piece[0]
    if len(values) >= _SOME or piece[1:2] == [sign]:
        return False
    if sign in _QUOTES:
        return before[-1:] != [sign]
    ended = any(value and value[-1] in _SENTENCE_ENDS for value in values)
    return not ended and sum(len(value) >= _SENTENCE for value in values) > len(values) / 2
