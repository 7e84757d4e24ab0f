"""Marks the pieces of a text that are values: tokens, their features, and a linear-chain CRF over them.

The CRF (Lafferty et al. 2001, "Conditional Random Fields") is trained by `gateway.trainers.tagger` from features
that this same module makes. Inference needs numpy only: no foreign code reads a model file inside the relay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"
_SIGNS = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f"
# Scripts that are written without spaces: each character is a token.
_UNSPACED = r"\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"\d+|[{_SIGNS}]|[{_UNSPACED}]|[^\s\d{_SIGNS}{_UNSPACED}]+")
_HEADING = re.compile(r"^\[([^\[\]\n]+)\]$", re.MULTILINE)
_SHORT_SECTION = 6

Floats = NDArray[np.float64]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tokens:
    """A text cut into words, numbers and signs: where each begins and ends, and the section that it is in."""

    text: str
    spans: Spans
    sections: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> Tokens:
        """The tokens of a text; of a stripped input with several slots, those of the values."""
        headings = list(_HEADING.finditer(text)) if text.startswith("[") else []
        found = [
            (match.span(), heading[1])
            for heading, end in zip(headings, [*(later.start() for later in headings[1:]), len(text)], strict=False)
            for match in _TOKEN.finditer(text, heading.end(), end)
        ]
        if not found:  # what looks like a heading has no value: it is one
            found = [(match.span(), "") for match in _TOKEN.finditer(text)]
        return cls(text, tuple(span for span, _ in found), tuple(name for _, name in found))

    @property
    def words(self) -> list[str]:
        """Each token in small letters."""
        return [self.text[start:end].lower() for start, end in self.spans]

    def outside(self, found: Sequence[Segment]) -> tuple[str, ...]:
        """The words that are in none of these values, any number as `0`; without signs."""
        taken = {place for one in found for place, span in enumerate(self.spans) if _overlap(span, one)}
        left = (word for place, word in enumerate(self.words) if place not in taken and word[0].isalnum())
        return tuple("0" if word.isdigit() else word for word in left)


def pattern_of(word: str) -> str:
    """The kinds of characters in a word, repeats once: `Xx`, `d`, `x`."""
    kinds = "".join("d" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c for c in word)
    return re.sub(r"(.)\1+", r"\1+", kinds)


def phrase(text: str) -> str:
    """A value as the lexicon knows it: its tokens in small letters."""
    return " ".join(match.group().lower() for match in _TOKEN.finditer(text))


Lexicon = Callable[[str], Sequence[str] | None]
"""Tells of a phrase which fields it was a value of in training, if any."""
_LONGEST_PHRASE = 6


def known_phrases(words: Sequence[str], lexicon: Lexicon) -> Iterator[tuple[int, int, Sequence[str]]]:
    """The longest known phrase that begins at each token: (first, after the last, fields)."""
    for first in range(len(words)):
        for after in range(min(len(words), first + _LONGEST_PHRASE), first, -1):
            tags = lexicon(" ".join(words[first:after]))
            if tags:
                yield first, after, tags
                break


def features(tokens: Tokens, chosen: Sequence[str], lexicon: Lexicon) -> list[list[str]]:
    """What the CRF sees of each token: itself, its parts, its neighbours, what else the text holds.

    `chosen` are the values that the classifiers chose for the whole text. What stands before the first `=` of a
    feature is its family.
    """
    words = tokens.words
    marks = [pattern_of(tokens.text[start:end]) for start, end in tokens.spans]
    plain = ["0" * len(word) if word.isdigit() and len(word) > 2 else word for word in words]
    whole = [f"c{number}={value}" for number, value in enumerate(chosen)] + _other_sections(tokens, words)
    seen = [
        _of_one(plain, marks, place)
        + _joined(tokens, marks[place], place)
        + _of_whole(tokens, plain, marks[place], place, whole)
        for place in range(len(words))
    ]
    for first, after, tags in known_phrases(words, lexicon):
        for tag in tags:
            for place in range(first, after):
                part = "b" if place == first else "e" if place == after - 1 else "i"
                seen[place] += ["g=" + tag, f"g{part}={tag}"]
    return seen


def _of_one(words: Sequence[str], marks: Sequence[str], place: int) -> list[str]:
    word, mark, last = words[place], marks[place], len(words) - 1
    before = words[place - 1] if place else "<s>"
    before2 = words[place - 2] if place > 1 else "<s>"
    after = words[place + 1] if place < last else "</s>"
    after2 = words[place + 2] if place + 1 < last else "</s>"
    mark_before = marks[place - 1] if place else "<"
    mark_after = marks[place + 1] if place < last else ">"
    found = [
        "any", "w=" + word, "m=" + mark, "-1=" + before, "+1=" + after, "-2=" + before2, "+2=" + after2,
        f"-1,0={before} {word}", f"0,1={word} {after}", f"-2,-1={before2} {before}", f"1,2={after} {after2}",
        f"-1,1={before} {after}", "-1m=" + mark_before, "+1m=" + mark_after, f"mm={mark_before} {mark}",
        "-1e=" + before[-3:], "+1e=" + after[-3:], f"at={min(place, 5)}", f"left={min(last - place, 4)}",
        f"3={before2} {before} {word}", f"3m={before} {word} {after}", f"3r={word} {after} {after2}",
    ]  # fmt: skip
    for size in range(1, min(5, len(word))):
        found += ["p=" + word[:size], "e=" + word[-size:]]
    found += ["L=" + near for near in set(words[max(0, place - 6) : max(0, place - 2)])]
    found += ["R=" + near for near in set(words[place + 3 : place + 7])]
    return found


def _joined(tokens: Tokens, mark: str, place: int) -> list[str]:
    """Whether the token stands right against its neighbours: `7pm` is not `7 pm`."""
    start, end = tokens.spans[place]
    before = "-" if place and tokens.spans[place - 1][1] == start else " "
    after = "-" if place + 1 < len(tokens.spans) and tokens.spans[place + 1][0] == end else " "
    return [f"j={before}{after}", f"jm={before}{after}{mark}"]


def _other_sections(tokens: Tokens, words: Sequence[str]) -> list[str]:
    """The words of short sections, such as the name of what was asked for."""
    if not any(tokens.sections):
        return []
    parts: dict[str, list[str]] = {}
    for word, section in zip(words, tokens.sections, strict=True):
        parts.setdefault(section, []).append(word)
    return [f"@{name}={word}" for name, part in parts.items() if len(part) <= _SHORT_SECTION for word in part]


def _of_whole(tokens: Tokens, words: Sequence[str], mark: str, place: int, whole: Sequence[str]) -> list[str]:
    """What holds of the text, by itself and together with the token and its neighbours: a word means one thing
    in one kind of text and another in the next (Daume 2007, "Frustratingly Easy Domain Adaptation")."""
    word, section = words[place], tokens.sections[place]
    before = words[place - 1] if place else "<s>"
    after = words[place + 1] if place + 1 < len(words) else "</s>"
    near = "w=" + word, "m=" + mark, "-1=" + before, "+1=" + after, f"-1,0={before} {word}", f"0,1={word} {after}"
    together = [f"{one}&{other}" for one in whole for other in near]
    return [*whole, *together, *(["in=" + section] if section else [])]


@dataclass(frozen=True, eq=False)
class Chain:
    """A linear-chain CRF. `names` numbers the features; feature f has `weights[starts[f]:starts[f + 1]]` for the
    tags `cells[...]` of the same places; `steps` (tags, tags) are the weights of one tag after another."""

    tags: tuple[str, ...]
    names: Mapping[str, int]
    starts: NDArray[np.int64]
    cells: NDArray[np.int64]
    weights: Floats
    steps: Floats

    def scores(self, seen: Sequence[Sequence[str]]) -> tuple[Floats, float]:
        """The score (tokens, tags) of each tag by itself, and the share of the features that are known."""
        rows, places = [], []
        for place, found in enumerate(seen):
            known = [row for row in map(self.names.get, found) if row is not None]
            rows += known
            places += [place] * len(known)
        row = np.array(rows, dtype=np.int64)
        counts = self.starts[row + 1] - self.starts[row]
        ends = np.cumsum(counts)
        flat = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self.starts[row] - (ends - counts), counts)
        target = np.repeat(np.array(places, dtype=np.int64), counts) * len(self.tags) + self.cells[flat]
        size = len(seen) * len(self.tags)
        table: Floats = np.bincount(target, self.weights[flat], minlength=size).astype(np.float64)
        return table.reshape(len(seen), len(self.tags)), len(rows) / max(1, sum(map(len, seen)))


@dataclass(frozen=True, eq=False)
class Lattice:
    """All ways to tag one text, as one chain sees them.

    `table` (tokens, tags) are the tags' scores, `steps` (tags, tags) those of one after another, `path` the
    likeliest tags, `chances` (tokens, tags) each tag's own probability; `total` is the logarithm of the sum over
    all ways.
    """

    table: Floats
    steps: Floats
    path: tuple[int, ...]
    chances: Floats
    total: float

    @classmethod
    def of(cls, table: Floats, steps: Floats) -> Lattice:
        """Viterbi (1967) and forward-backward (Rabiner 1989), the latter scaled at each token."""
        return cls(table, steps, _viterbi(table, steps), *_forward_backward(table, steps))

    def chance(self, path: Sequence[int]) -> float:
        """The probability of all these tags together."""
        tags = np.array(path)
        score = self.table[np.arange(len(tags)), tags].sum() + self.steps[tags[:-1], tags[1:]].sum()
        return float(np.exp(min(0.0, float(score) - self.total)))


class Verdict(msgspec.Struct, frozen=True):
    """The tags that several lattices agree on, each one's own probability, and that of all together: the mean over
    the lattices, and the least."""

    path: tuple[int, ...]
    chances: tuple[float, ...]
    mean: float
    least: float


def agreed(lattices: Sequence[Lattice]) -> Verdict:
    """Of what each lattice holds likeliest, that which has the highest probability on the mean of all: chains that
    saw different features err differently (Breiman 1996, "Bagging Predictors")."""
    chances = {one.path: [other.chance(one.path) for other in lattices] for one in lattices}
    path = max(chances, key=lambda path: sum(chances[path]))
    places = np.arange(len(path))
    each = np.mean([one.chances[places, path] for one in lattices], axis=0)
    return Verdict(path, tuple(each.tolist()), float(np.mean(chances[path])), min(chances[path]))


def _viterbi(table: Floats, steps: Floats) -> tuple[int, ...]:
    back = np.zeros(table.shape, dtype=np.int64)
    score = table[0]
    for place in range(1, len(table)):
        ways = score[:, None] + steps
        back[place] = ways.argmax(axis=0)
        score = ways.max(axis=0) + table[place]
    path = [int(score.argmax())]
    for place in range(len(table) - 1, 0, -1):
        path.append(int(back[place, path[-1]]))
    return tuple(path[::-1])


def _forward_backward(table: Floats, steps: Floats) -> tuple[Floats, float]:
    top = table.max(axis=1, keepdims=True)
    powers, ways = np.exp(table - top), np.exp(steps - steps.max())
    forward, backward = np.empty_like(powers), np.ones_like(powers)
    total = float(top.sum()) + (len(table) - 1) * float(steps.max())
    for place in range(len(table)):
        now = powers[place] * (forward[place - 1] @ ways) if place else powers[0]
        scale = now.sum()
        forward[place] = now / scale
        total += float(np.log(scale))
    for place in range(len(table) - 2, -1, -1):
        now = ways @ (powers[place + 1] * backward[place + 1])
        backward[place] = now / now.sum()
    own = forward * backward
    own /= own.sum(axis=1, keepdims=True)
    return own, total


class Segment(msgspec.Struct, frozen=True):
    """A value found in a text: the number of its field, where it stands, and how probable its unsurest token is."""

    field: int
    start: int
    end: int
    chance: float


def _overlap(span: tuple[int, int], one: Segment) -> bool:
    return span[0] < one.end and one.start < span[1]


def segments(tokens: Tokens, tags: Sequence[str], chances: Sequence[float]) -> list[Segment]:
    """What the tags `B-3 I-3 O ...` mark, in the order of the text."""
    found: list[Segment] = []
    last: int | None = None
    for (start, end), tag, chance in zip(tokens.spans, tags, chances, strict=True):
        if tag == OUTSIDE:
            last = None
            continue
        field = int(tag[2:])
        if tag[0] == "I" and found and last == field:
            found[-1] = Segment(field, found[-1].start, end, min(found[-1].chance, chance))
        else:
            found.append(Segment(field, start, end, chance))
        last = field
    return found
