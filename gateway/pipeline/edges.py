"""Where values begin and end: which signs at a slot's edges are prompt, and which are every value's own.

All samples share the text on both sides of a slot, and some of it may be of the values: the full stop of
sentences, a quote that a value opened, the first marker of a list. A rule moves such text over; what a literal
and its neighbours say together never changes, so a mistake costs quality and never a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from gateway.domain.pattern import is_json
from gateway.pipeline.alignment import COMMON, WORD, tokens

_FEW = 16
"""Samples below which words at an edge may be there by chance."""
_CHANCE = 12
"""So many words may be, counted in all samples but one: three of five samples, one of ten."""
_SOME = 150
"""Samples from which on a sign that ends all values is prompt: some value would lack it."""
_SENTENCE = 6
_ENDED = 0.15
"""Share of values that may have an end of their own in front of a sign that is theirs: an ellipsis."""
_LONG = 8
"""Words in front of a slot from which on they are more than how people happen to begin."""
_REACH = 8
_MARKER = 80
_SEVERAL = 0.2
"""Share of values that must hold another item before the text in front is taken for an item's marker."""
_MANY = 0.5
"""The same where the marker has words and no number: a label that values quote."""
_COUNTED = 8
"""Values from which on it tells that all have as many items."""
_ENDS = ".?!。？！"
_QUOTES = "\"'"
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ("（", "）"))
_WORDS = re.compile(r"[A-Za-z ]+")
_PARAGRAPH = re.compile(r"(?<=[^\n])\n+(?=[^\n])")
_LINE_END = re.compile(r"(?<=\w)\W*?\n")
_NUMBER = re.compile(r"[0-9]{1,9}")
_ROOT = re.compile(r"(?<![^\s\"'`(\[<=])/\Z")
_TITLE = re.compile(r"(?<![^\n])#{1,6} \Z")
_SPEAKER = re.compile(r"(?<!\w)[^\W\d_]+: \Z")
_UNDER_WAY = re.compile(r"(?<![^ ])[a-z]+ \Z")
_FENCE = re.compile(r"\s*(```|~~~|\"\"\"|''')\w*\s*")
_OPENED = re.compile(r"(?<!\w)'")
_CODE = re.compile(r"\n[ \t]{2,}(?![-*•] )\S|[{};=<>\\]")


class Gap(NamedTuple):
    """A slot as the samples show it: the literal before, the value in each sample, the literal after."""

    left: str
    values: tuple[str, ...]
    right: str


def settled(gap: Gap) -> Gap:
    """The gap with its edges where they most likely are in the prompt that was filled in."""
    for rule in _RULES:
        gap = rule(gap)
    return gap


def _give_left(gap: Gap, count: int) -> Gap:
    """The last `count` characters of the literal before become the values'."""
    if not count:
        return gap
    given = gap.left[-count:]
    return Gap(gap.left[:-count], tuple(given + value for value in gap.values), gap.right)


def _give_right(gap: Gap, count: int) -> Gap:
    """The first `count` characters of the literal after become the values'."""
    given = gap.right[:count]
    return Gap(gap.left, tuple(value + given for value in gap.values), gap.right[count:])


def _bracketed(gap: Gap) -> Gap:
    """Give brackets back to the values: one, whose other half most values hold and the prompt does not; and both,
    where they make JSON of the values."""
    for opening, closing in _BRACKETS:
        before, after = gap.left.endswith(opening), gap.right.startswith(closing)
        inside = [value.count(opening) - value.count(closing) for value in gap.values] if before != after else []
        if after and 2 * sum(n > 0 for n in inside) > len(gap.values):
            return _bracketed(_give_right(gap, 1))
        if before and 2 * sum(n < 0 for n in inside) > len(gap.values):
            return _bracketed(_give_left(gap, 1))
        if before and after and all(is_json(opening + value + closing) for value in gap.values):
            return _give_right(_give_left(gap, 1), 1)
    return gap


def _begun(gap: Gap) -> Gap:
    """Give the values what begins them: a path its slash, a document the mark of its title."""
    for beginning, sign in ((_ROOT, "/"), (_TITLE, "\n")):
        begun = beginning.search(gap.left)
        if begun and 2 * sum(sign in value for value in gap.values) > len(gap.values):
            return _give_left(gap, len(begun[0]))
    return gap


def _sign_after(gap: Gap) -> Gap:
    """Give a sign back to the values when it ends their sentences, or a quote that they opened."""
    sign, few = gap.right[:1], len(gap.values) < _SOME
    if not sign or not few or gap.right.startswith(sign * (2 if sign in _QUOTES else 3)):
        return gap  # an empty quote, an ellipsis; of two full stops the first ends a value
    if gap.right in _ENDS and not gap.left:
        return _give_right(gap, 1)  # all the fixed text that there would be
    if sign in _QUOTES:
        return _give_right(gap, 1) if _opened(sign, gap.left, gap.values) else gap
    return _give_right(gap, 1) if sign in _ENDS and _are_sentences(gap.values, sign) else gap


def _opened(quote: str, left: str, values: Sequence[str]) -> bool:
    """Whether most values open a quote of this kind that they do not close."""
    if left.endswith(quote):
        return False
    pattern = _OPENED if quote == "'" else re.compile(re.escape(quote))
    open_ones = sum(len(pattern.findall(value)) % 2 for value in values)
    return open_ones > len(values) / 2


def _are_sentences(values: Sequence[str], sign: str) -> bool:
    """Whether most values are sentences of the sign's script that lack nothing but the sign behind them."""
    if sum(value.rstrip("\"')]").endswith(tuple(_ENDS)) for value in values) > _ENDED * len(values):
        return False
    own = [value for value in values if (value[-1:] >= "\u2e80") == (sign >= "\u2e80")]
    return sum(map(_is_sentence, own)) > len(values) / 2


def _is_sentence(value: str) -> bool:
    names = WORD.findall(value[:400])
    if not names or names[0].islower() or _CODE.search(value):
        return False
    # A title has more capitals; a script without capitals or spaces tells neither.
    plain = sum(not name[0].isupper() for name in names[1:])
    return not value.isascii() or (len(names) >= _SENTENCE and plain > len(names) / 2)


def _words_before(gap: Gap) -> Gap:
    """With few samples: give words in front back to the values, up to a sign or into a sentence under way."""
    if len(gap.values) >= _FEW or not gap.left or all(map(str.isdigit, gap.values)):
        return gap
    if _UNDER_WAY.search(gap.left) and all(value[:1].isupper() for value in gap.values):
        return gap  # a small letter, and then all values begin with a capital: `You are playing {{game}}`
    piece = tokens(gap.left[-200:])
    end, long = len(piece), len(WORD.findall(gap.left[-200:])) >= _LONG
    for i in range(len(piece) - 1, max(-1, len(piece) - 1 - _REACH), -1):
        token = piece[i]
        if token.isspace() and token != "\n":
            continue
        if not token.isalnum() or (token.islower() and (token in COMMON or (long and _goes_on(piece, i)))):
            given = "".join(piece[end:])
            return _give_left(gap, len(given)) if _may_be_chance(given, gap.values) else gap
        end = i
    return gap


def _may_be_chance(shared: str, values: Sequence[str]) -> bool:
    return len(WORD.findall(shared)) * (len(values) - 1) <= _CHANCE


def _goes_on(piece: Sequence[str], i: int) -> bool:
    """Whether a word follows another word: then the sentence is the prompt's, and so is the word."""
    return i >= 2 and piece[i - 1] == " " and piece[i - 2].isalpha()


def _words_after(gap: Gap) -> Gap:
    """With few samples: give words behind back to the values that they follow without a space."""
    if len(gap.values) >= _FEW or gap.right[:1].isspace():
        return gap
    piece = tokens(gap.right[:200])
    for i, token in enumerate(piece[:_REACH]):
        if token == ":":
            return gap  # a label
        if token == "\n" or not (token.isalnum() or token.isspace()) or token in COMMON:
            given = "".join(piece[:i])
            return _give_right(gap, len(given)) if _may_be_chance(given, gap.values) else gap
    return gap


def _rotated(gap: Gap) -> Gap:
    """Choose among the cuts that differ only in whose text comes first: after `A`, of `x\\n` or `\\nx`.

    There is such a choice where some samples have no value. A line is kept whole, and items of a list have as
    many new lines before as after them, or one more after.
    """
    if all(gap.values) or not any(gap.values):
        return gap
    best = current = _first_turn(gap)
    while turned := _turn(current):
        current = turned
        best = max(best, current, key=_orderliness)
    return best


def _first_turn(gap: Gap) -> Gap:
    """The cut of these that has the least text before."""
    while gap.left and all(not value or value[-1] == gap.left[-1] for value in gap.values):
        sign = gap.left[-1]
        gap = Gap(gap.left[:-1], tuple(sign + v[:-1] if v else v for v in gap.values), sign + gap.right)
    return gap


def _turn(gap: Gap) -> Gap | None:
    """One character from behind the values to the front of them, where that changes no sample."""
    sign = gap.right[:1]
    if not sign or any(value and value[0] != sign for value in gap.values):
        return None
    return Gap(gap.left + sign, tuple(v[1:] + sign if v else v for v in gap.values), gap.right[1:])


def _orderliness(gap: Gap) -> tuple[bool, int, int]:
    value = next(value for value in gap.values if value)
    before, after = len(value) - len(value.lstrip("\n")), len(value) - len(value.rstrip("\n"))
    return gap.left.endswith("\n"), -abs(after - before), len(gap.left)


def _listed(gap: Gap) -> Gap:
    """Give the values the marker of a list's first item and what ends its last, where further items have both."""
    for start in (*_line_starts(gap.left), *_numbered_starts(gap.left), *_speaker_starts(gap.left)):
        marker = gap.left[start:]
        if not marker.strip() or marker.startswith("\n") or _FENCE.fullmatch(marker):
            continue
        ends = _ends_of_items(marker, gap.values, _before(gap.left[:start]))
        if ends:
            lines = sum(value.count("\n") for value in gap.values) <= len(ends)
            return _with_items(gap, start, ends, lines=lines)
    return gap


def _ended(gap: Gap) -> Gap:
    """Give the values the lines that end a list's last item, where they also end the items before it."""
    for end in reversed([found.end() for found in _LINE_END.finditer(gap.right[:_MARKER])]):
        ending = gap.right[:end]
        behind = [rest for value in gap.values for rest in value.split(ending)[1:]]
        if sum(ending in value for value in gap.values) >= max(3, _MANY * len(gap.values)):
            own = min(len(rest) - len(rest.lstrip("\n")) for rest in behind)
            blank = len(gap.left) - len(gap.left.rstrip("\n"))
            return _give_right(_give_left(gap, max(0, min(own, blank - 1))), end)
    return gap


def _framed(gap: Gap) -> Gap:
    """Give the values the line end before and behind them, where they are blocks that each bring these themselves.

    Blocks with a line end on both sides stand two line ends apart; three at an edge are a blank line's and theirs.
    """
    before, after = len(gap.left) - len(gap.left.rstrip("\n")), len(gap.right) - len(gap.right.lstrip("\n"))
    if max(before, after) != 3 or min(before, after) < (1 if gap.right == "\n" else 2):
        return gap
    apart = [run for value in gap.values for run in _PARAGRAPH.findall(value)]
    several = sum("\n\n" in value for value in gap.values)
    if several < _SEVERAL * len(gap.values) or any(len(run) == 3 or len(run) > 4 for run in apart):
        return gap
    if gap.right != "\n" and any(len(run) == 1 for run in apart):
        return gap  # a document, whose paragraphs have lines
    return _give_right(_give_left(gap, 1), 1)


def _spaced(gap: Gap) -> Gap:
    """Give the values the first of two blanks in front of an empty line: they are items that end with one each."""
    return _give_right(gap, 1) if gap.right.startswith("  \n\n") else gap


def _line_starts(left: str) -> list[int]:
    """Where the last lines of this text begin, the longest stretch of them first."""
    starts: list[int] = []
    at = len(left)
    while len(starts) < 4 and at >= 0 and len(left) - at <= _MARKER:
        at = left.rfind("\n", 0, at)
        if at >= 0 and len(left) - at <= _MARKER:
            starts.append(at + 1)
    return starts[::-1]


def _numbered_starts(left: str) -> list[int]:
    """Where a numbered marker may begin within the last line that holds a number, the longest first."""
    found = list(_NUMBER.finditer(left, max(0, len(left) - _MARKER)))
    if not found or found[-1][0] not in ("0", "1"):
        return []
    start = left.rfind("\n", 0, found[-1].start()) + 1
    at = list(accumulate(map(len, tokens(left[start : found[-1].start()])), initial=start))
    return [place for place in at[1:] if len(left) - place <= _MARKER and not left[place].isspace()]


def _speaker_starts(left: str) -> list[int]:
    """Where the speaker of a dialogue's first turn is named, where that may be within a line: `<chat>User: `."""
    named = _SPEAKER.search(left)
    return [named.start()] if named else []


def _like(marker: str) -> re.Pattern[str]:
    """The marker at the beginning of a line, with any number where it has one."""
    return re.compile(r"(?<=\n)" + re.sub(r"\d+", r"\\d+", re.escape(marker)))


def _before(text: str) -> str:
    """The last words' end and the new lines with which this text ends."""
    return text[max(0, len(text.rstrip("\n")) - 2) :]


def _ends_of_items(marker: str, values: Sequence[str], before: str) -> list[str]:
    """What stands before each further item, when enough of the values have further ones; else nothing.

    Behind what also stands `before` the first one there is no item, but somebody quotes the prompt.
    """
    item = _like(marker)
    matches = [list(item.finditer(value)) for value in values]
    if _are_counted_out([[m[0] for m in some] for some in matches]):
        return []
    found = [
        [value[max(0, m.start() - _MARKER) : m.start()] for m in some]
        for value, some in zip(values, matches, strict=True)
    ]
    found = [[end for end in ends if not end.endswith(before)] for ends in found]
    share = _MANY if _is_label(marker) else _SEVERAL
    enough = sum(map(bool, found)) >= max(min(3, len(values) // 2), share * len(values))
    return [end for ends in found for end in ends] if enough else []


def _are_counted_out(items: Sequence[Sequence[str]]) -> bool:
    """Whether all values have items up to the same number: then the prompt counts its inputs. A list varies."""
    numbers = [[int(n) for marker in some for n in _NUMBER.findall(marker)] for some in items]
    return len(items) >= _COUNTED and all(numbers) and len(set(map(max, numbers))) == 1


def _is_label(marker: str) -> bool:
    """Whether a marker has words and no number: values can hold such lines by themselves."""
    return any(map(str.isalpha, marker)) and not any(map(str.isdigit, marker))


def _with_items(gap: Gap, start: int, ends: Sequence[str], *, lines: bool) -> Gap:
    """The list begins at `start` or at new lines before it, and ends with what ends its other items.

    `lines`: each item is one line.
    """
    blank = start - len(gap.left[:start].rstrip("\n"))
    least = min(len(end) - len(end.rstrip("\n")) for end in ends)
    choices = []
    for own in range(min(blank, least) + 1):
        bodies = [end[: len(end) - own] for end in ends]
        shared = next(
            n for n in range(min(len(gap.right), _MARKER), -1, -1) if all(b.endswith(gap.right[:n]) for b in bodies)
        )
        after = shared - len(gap.right[:shared].rstrip("\n"))
        signs = len(gap.right[:shared].replace("\n", ""))
        choices.append((own + after == least, own < blank, signs, -abs(after - own), -own, shared))
    *_, own, shared = max(choices)
    own = -own
    if _WORDS.fullmatch(gap.left[start:]) and gap.right[:shared].strip("\n"):  # paragraphs that begin alike
        own, shared = 0, len(gap.right[:shared].rstrip("\n"))
    if (
        not gap.right[:shared].strip("\n")
        and not own
        and (_is_label(gap.left[start:]) or (not lines and shared == 1))
    ):
        shared = 0  # turns of a dialogue, or paragraphs that begin alike: joined by new lines
    return _give_right(_give_left(gap, len(gap.left) - start + own), shared)


_RULES = (
    *(_bracketed, _begun, _sign_after, _words_before, _words_after),
    *(_rotated, _listed, _ended, _framed, _spaced),
)
"""The rules in the order in which they are applied."""
