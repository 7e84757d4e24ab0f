"""Does a slot hold text that it never held before? An instruction that an app adds beside a slot ends up in it.

One value says nothing: people write anything. Several in a row do, by an exact test. If the newest values are
like those before, any order of them is as likely as any other; so how probable is it that a text occurs in the
newest k of them, and (nearly) nowhere among the n before? That is Fisher's exact test (R. A. Fisher, "The Logic of
Inductive Inference", JRSS 98, 1935): 1 / C(n + k, k) where none before has it. Nothing is estimated, and nothing is
assumed but that order says nothing. Where it does (similar documents in a row), the alarm costs money, not quality.
So equal values count once; but where what is left without the text is a value that there was before, each counts.

Everything here is a pure function of two samples of values; `SlotHistory` keeps them, in bounded memory.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

from gateway.domain.template import DATE, ID

RECENT = 20
"""So many of the newest values are compared with those before."""
BASELINE = 24
"""So many of the values before are kept: a sample of all that there were."""
ALPHA = 1e-5
"""How improbable it must be, if order says nothing, that the newest values have in common what they have."""
SHORT_ALPHA = ALPHA / 100
"""The same for a text of less than two words: many things begin with the same letter."""
LONG_ALPHA = 1e-3
"""The same for four words or more, which different people seldom say alike: five values in a row are enough."""
_LONG = 4
_KEPT = 500
WINDOWS = (5, 6, 7, 8, 10, 12, 16, RECENT)
"""So many of the newest are looked at, each time in all of these."""
_FEW_WINDOWS = (5, 10, RECENT)
_DEEP_EVERY = 10
_CANDIDATES = 24
_TOKEN = re.compile(r"\w+|[^\w\s]")
_DIGITS = re.compile(r"\d{2}")
_SAME = re.compile(rf"{DATE}|{ID}|\d{{4,}}")


Sort = Literal["value", "of_session", "turn"]
"""What is watched: a slot's values; those of a slot that stays the same through a conversation; or turns, which
differ with every request."""


class Sample(NamedTuple):
    """What is kept of a value: its two ends (the same text where it is short), its length, and a hash that tells
    values apart whose dates and numbers look alike."""

    start: str
    end: str
    length: int
    identity: int


class Drift(NamedTuple):
    """What is new in a slot. `kind`: `start`, `end` or `inside` (the newest values hold `text`), `gone` (they do
    not any more), `constant` (they are all `text`), `values` (a closed set has new ones), `length` or `script`; or
    in no slot: `version` (requests like those of the version `text` are of this one now: see `takeover`)."""

    kind: str
    text: str
    probability: float

    @property
    def adds_text(self) -> bool:
        """Whether it may be an instruction; a shift of length or script is the app's input that changes."""
        return self.kind not in ("length", "script")

    def is_in(self, value: str) -> bool:
        """Whether the value is one of the new ones, as far as one value can tell."""
        one = sample(value)
        if self.kind == "start":
            return one.start.startswith(self.text)
        if self.kind == "end":
            return one.end.endswith(self.text)
        if self.kind == "gone":
            return self.text not in one.start and self.text not in one.end
        return self.kind != "inside" or self.text in one.start or self.text in one.end

    def is_more_of(self, other: Drift) -> bool:
        """Whether it says what the other one has said."""
        if self.kind in ("values", "length"):
            return self.kind == other.kind
        return self.text in other.text or other.text in self.text

    @property
    def sentence(self) -> str:
        """For a person."""
        text = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return {
            "start": f"the newest values all begin with {text!r}, which earlier ones did not",
            "end": f"the newest values all end with {text!r}, which earlier ones did not",
            "inside": f"the newest values hold {text!r}, which earlier ones did not",
            "gone": f"the newest values lack {text!r}, which earlier ones held",
            "constant": f"the newest values are all {text!r}",
            "values": f"the newest values, like {text!r}, are not among the few that there were",
            "length": f"the newest values are {text}",
            "script": f"the newest values are written in {text}",
            "version": f"the newest requests match it, which has a slot over fixed text of {text}; few did before",
        }[self.kind]


def sample(value: str) -> Sample:
    """What is compared of a value: dates, ids and long numbers all look alike."""
    if len(value) <= 2 * _KEPT:
        start = end = _alike(value)
    else:
        start, end = _alike(value[:_KEPT]), _alike(value[-_KEPT:])
    return Sample(start, end, len(value), hash(value))


def _alike(text: str) -> str:
    return _SAME.sub("0", text) if _DIGITS.search(text) else text


class SlotHistory:
    """The newest values of a slot, and a sample of those before, with the same chance for each (algorithm R of
    J. S. Vitter, "Random Sampling with a Reservoir", ACM TOMS 11, 1985)."""

    def __init__(self, seed: int = 0) -> None:
        self.baseline: list[Sample] = []
        self.recent: deque[Sample] = deque(maxlen=RECENT)
        self._left = self._added = 0
        self._last: Drift | None = None
        self._accepted: deque[Drift] = deque(maxlen=8)
        self._dice = random.Random(seed)

    def add(self, value: str, sort: Sort = "value") -> Drift | None:
        """Note one more value; what is new about the newest ones, if anything."""
        if len(self.recent) == RECENT:
            self._retire(self.recent[0])
        self.recent.append(sample(value))
        self._added += 1
        found = drift(self.baseline, list(self.recent), sort, deep=self._added % _DEEP_EVERY == 0)
        if found is None or any(found.is_more_of(one) for one in self._accepted):
            return None
        self._last = found
        return found

    def learn(self) -> None:
        """The values so far, the newest too, are as they should be: what the next ones are compared with. What was
        found new last is told no more."""
        if self._last is not None:
            self._accepted.append(self._last)
            self._last = None
        while self.recent:
            self._retire(self.recent.popleft())

    def forget_recent(self) -> None:
        """The newest values were not the slot's own."""
        self.recent.clear()

    def _retire(self, one: Sample) -> None:
        self._left += 1
        if len(self.baseline) < BASELINE:
            self.baseline.append(one)
        elif (place := self._dice.randrange(self._left)) < BASELINE:
            self.baseline[place] = one


def drift(
    baseline: Sequence[Sample], recent: Sequence[Sample], sort: Sort = "value", *, deep: bool = True
) -> Drift | None:
    """What is new about the newest values (`recent`, oldest first) beside earlier ones. Without `deep` only their
    ends are compared, which is cheap."""
    if len(recent) < WINDOWS[0] - 1 or len(baseline) < WINDOWS[0] - 1:
        return None
    if sort == "turn" and (found := _constant(baseline, recent)):
        return found
    before, now = list(dict.fromkeys(baseline)), list(dict.fromkeys(reversed(recent)))[::-1]
    found = _edge(before, now, "start") or _edge(before, now, "end")
    found = found or _beside(baseline, recent, "start") or _beside(baseline, recent, "end")
    if found or not deep:
        return found
    return (_values(baseline, recent) if sort == "value" else None) or _inside(before, now) or _shift(before, now)


@lru_cache(maxsize=65_536)
def fisher(now_with: int, now: int, before_with: int, before: int) -> float:
    """The probability that at least `now_with` of the newest `now` values are among those with some property, if
    order says nothing (one-sided, the tail of the hypergeometric distribution)."""
    having, everything = now_with + before_with, now + before
    ways = sum(math.comb(having, i) * math.comb(everything - having, now - i)
               for i in range(now_with, min(having, now) + 1))  # fmt: skip
    return ways / math.comb(everything, now)


def _alpha(before: int, text: str = "two words") -> float:
    """The level of a test; where few values came before, what fifteen new ones can show at all."""
    count = len(text.split())
    usual = LONG_ALPHA if count >= _LONG else ALPHA if count >= 2 or len(text) >= 12 else SHORT_ALPHA
    return max(usual, 1.001 / math.comb(before + 15, 15))


# --- the tests -------------------------------------------------------------------------------------------


def _edge(before: Sequence[Sample], now: Sequence[Sample], side: str) -> Drift | None:
    """Do the newest values begin (or end) with a text that the earlier ones do not?"""
    for size, text in _common(now, side):
        probability, others = _chance(before, now, side, size, text)
        if probability < _alpha(others, text):
            return Drift(side, text, probability)
    return None


def _beside(baseline: Sequence[Sample], recent: Sequence[Sample], side: str) -> Drift | None:
    """Are the newest values a text and values that there were before? Then it is no value's own beginning or end,
    and every request tells, not only every different value."""
    earlier = {one.start if side == "start" else one.end for one in baseline}
    for size, text in _common(recent, side, _FEW_WINDOWS):
        newest = {one.start if side == "start" else one.end for one in recent[-size:]}
        rests = {one[len(text) :] if side == "start" else one[: -len(text)] for one in newest} - {""}
        if len(rests & earlier) >= (1 if len(text.split()) >= _LONG else 2):
            probability, others = _chance(baseline, recent, side, size, text)
            if probability < max(ALPHA, _alpha(others, text)):
                return Drift(side, text, probability)
    return None


def _common(now: Sequence[Sample], side: str, sizes: Sequence[int] = WINDOWS) -> Iterator[tuple[int, str]]:
    """What so many of the newest values begin (or end) with."""
    texts = [one.start for one in now] if side == "start" else [one.end[::-1] for one in now]
    for size in sizes:
        text = _common_start(texts[-size:]) if size <= len(texts) else ""
        if not text:  # nor have more of them anything in common
            return
        yield size, text if side == "start" else text[::-1]


def _chance(before: Sequence[Sample], now: Sequence[Sample], side: str, size: int, text: str) -> tuple[float, int]:
    """How probable it is that so many of the newest have this text, if order says nothing; and beside how many."""
    others = [*before, *now[:-size]]
    if side == "start":
        having = sum(one.start.startswith(text) for one in others)
    else:
        having = sum(one.end.endswith(text) for one in others)
    return fisher(size, size, having, len(others)), len(others)


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return first[:i]
    return first


def _constant(baseline: Sequence[Sample], recent: Sequence[Sample]) -> Drift | None:
    newest = recent[-1]
    size = 0
    while size < len(recent) and recent[-1 - size] == newest:
        size += 1
    if size < WINDOWS[0] - 1:
        return None
    others = [*baseline, *list(recent)[: len(recent) - size]]
    probability = fisher(size, size, others.count(newest), len(others))
    level = _alpha(len(others), newest.start)
    return Drift("constant", newest.start, probability) if probability < level else None


def _values(baseline: Sequence[Sample], recent: Sequence[Sample]) -> Drift | None:
    """Are the newest values new ones, where there were few? How often a value was new before is told by how many
    occurred once (I. J. Good, "The Population Frequencies of Species", Biometrika 40, 1953)."""
    counts = Counter(baseline)
    if len(counts) > max(4, len(baseline) / 6):
        return None
    once = sum(count == 1 for count in counts.values())
    new = [one not in counts for one in recent]
    for size in (size for size in WINDOWS if size <= len(recent)):
        probability = fisher(sum(new[-size:]), size, once, len(baseline))
        if new[-1] and probability < _alpha(len(baseline)):
            return Drift("values", recent[-1].start, probability)
    return None


def _inside(before: Sequence[Sample], now: Sequence[Sample]) -> Drift | None:
    """Are there words in the newest values that are not in those before, or the other way round?"""
    least: tuple[float, str, str] = (1.0, "", "")
    tests = 0
    for kind, words in (("inside", _shared(now)), ("gone", _shared(before))):
        wanted = kind == "inside"
        for text in words:
            holding = [text in one.start or text in one.end for one in (*before, *now)]
            for size in (size for size in WINDOWS if size <= len(now)):
                newest, others = holding[-size:], holding[:-size]
                probability = fisher(newest.count(wanted), size, others.count(wanted), len(others))
                least = min(least, (probability, kind, text))
                tests += 1
    probability, kind, text = least
    return Drift(kind, text, probability) if kind and probability * tests < _alpha(len(before)) else None


def _shared(samples: Sequence[Sample]) -> list[str]:
    """Three words in a row that most of the last few samples hold."""
    few = samples[-8:]
    texts = [one.start if one.start is one.end else f"{one.start}\n{one.end}" for one in few]
    counts = Counter(words for text in texts for words in set(_threes(text)))
    return [words for words, count in counts.most_common(_CANDIDATES) if count >= max(WINDOWS[0], len(few) - 2)]


def _threes(text: str) -> Iterator[str]:
    spans = [found.span() for found in _TOKEN.finditer(text)]
    return (text[first[0] : last[1]] for first, last in zip(spans, spans[2:], strict=False))


def _shift(before: Sequence[Sample], now: Sequence[Sample]) -> Drift | None:
    """Are the newest values of another length, or in another script?"""
    probability = mann_whitney([one.length for one in before], [one.length for one in now])
    if probability < ALPHA:
        middle = [sorted(one.length for one in some)[len(some) // 2] for some in (now, before)]
        return Drift("length", f"{middle[0]} characters long instead of {middle[1]} (medians)", probability)
    scripts, earlier = (Counter(script(one.start) for one in some) for some in (now, before))
    for name, count in scripts.items():
        probability = fisher(count, len(now), earlier[name], len(before))
        if name and probability < ALPHA:
            return Drift("script", name.capitalize(), probability)
    return None


def mann_whitney(before: Sequence[float], now: Sequence[float]) -> float:
    """The probability that two samples of one distribution differ so much in size, two-sided: H. B. Mann and D. R.
    Whitney's U with the normal approximation and its correction for ties (Ann. Math. Stat. 18, 1947)."""
    n, m = len(before), len(now)
    if not n or not m:
        return 1.0
    counts, ranks, below, ties = Counter([*before, *now]), {}, 0, 0
    for value in sorted(counts):
        ranks[value] = below + (counts[value] + 1) / 2
        below += counts[value]
        ties += counts[value] ** 3 - counts[value]
    total = n + m
    u = sum(ranks[value] for value in now) - m * (m + 1) / 2
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return math.erfc((abs(u - n * m / 2) - 0.5) / math.sqrt(2 * variance))


def script(text: str) -> str:
    """The script that most letters of the text are of (`LATIN`, `CYRILLIC`, `CJK`, ...); "" without letters."""
    letters = islice((c for c in text[:_KEPT] if c.isalpha()), 50)
    counts = Counter(map(_script_of, letters))
    return counts.most_common(1)[0][0] if counts else ""


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    return "LATIN" if letter.isascii() else unicodedata.name(letter, "UNKNOWN").split()[0]
