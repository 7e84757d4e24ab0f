"""Which task a new template belongs to: a changed version of a known one, or a task of its own."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from gateway.domain.template import MessagePattern, PromptTemplate
from gateway.pipeline.alignment import WORD, shared_runs
from gateway.pipeline.naming import slug
from gateway.pipeline.splitting import Trigrams, trigrams

CHANGED = 0.5
"""Shared wording (Jaccard index of word trigrams) from which a later template is a new version."""
FOLLOWED = 0.15
"""The same where the later template comes into use just as the earlier one goes out of use."""
VARIANT = 0.65
"""The same for templates that are in use side by side."""
CONTAINED = 0.9
"""Share of one template's wording that another holds too, from which they are variants of one task."""
REVISED = 0.28
"""Share of the words of revised messages that stay, from which templates in use side by side are one task's."""
REVISED_NEXT = 0.12
"""The same where the later template comes into use just as the earlier one goes out of use."""
_PASSAGES = 3
_PASSAGE = 5
_ENDS = 2
_SHARED_WORDS = 4
_SLOT = "\0"


class Use(NamedTuple):
    """A template, the first and last time it was seen (seconds), and the apps' own names for the task.

    `settings`: the parameters around the messages as canonical JSON, None for one that varies; empty: not known.
    `quotes`: the literals of the template that these requests hold, and more of its text in their values, if any.
    """

    template: PromptTemplate
    first: float
    last: float
    hints: tuple[str | None, ...] = ()
    settings: Mapping[str, str | None] = MappingProxyType({})
    quotes: tuple[str, ...] = ()


def place(new: Sequence[Use], known: Sequence[Use]) -> list[PromptTemplate]:
    """The new templates with task and version, in the order in which they came into use, those that quote last."""
    placed = [(use, wording(use.template)) for use in known]
    telling: dict[object, list[int]] = defaultdict(list)
    for at, (_, said) in enumerate(placed):
        _note(said, at, telling)
    for use in sorted(new, key=in_order):
        said = wording(use.template)
        near = sorted({at for sign in _signs(said) for at in telling.get(sign, ())})
        _note(said, len(placed), telling)
        task = agreed(use.hints) or _quoted(use, placed) or _origin(use, said, [placed[at] for at in near])
        task = task or slug(use.template, {earlier.template.task for earlier, _ in placed})
        versions = [u.template.version for u, _ in placed if u.template.task == task]
        template = msgspec.structs.replace(use.template, task=task, version=1 + max(versions, default=0))
        placed.append((use._replace(template=template), said))
    return [use.template for use, _ in placed[len(known) :]]


def _signs(said: Wording) -> Iterator[object]:
    """What two templates have at least one of in common where they may be of one task."""
    yield from said.all
    yield said.messages[-1:]


def _note(said: Wording, at: int, telling: dict[object, list[int]]) -> None:
    for sign in _signs(said):
        telling[sign].append(at)


def in_order(use: Use) -> tuple[bool, float, float, tuple[str, ...]]:
    """In the order in which they came into use; what quotes a template comes behind all that may be quoted."""
    return bool(use.quotes), use.first, use.last, use.template.literals


def _quoted(use: Use, placed: Sequence[tuple[Use, Wording]]) -> str | None:
    """The task of the template that these requests quote."""
    found = (other.template for other, _ in placed if use.quotes and other.template.literals == use.quotes)
    return next((t.task for t in found if t.bucket == use.template.bucket), None)


def agreed(hints: Sequence[str | None]) -> str | None:
    """The name that nine of ten requests carry, in characters that a task name may have."""
    if not hints:
        return None
    hint, count = Counter(hints).most_common(1)[0]
    if hint is None or count < 0.9 * len(hints):
        return None
    return re.sub(r"[^A-Za-z0-9._-]+", "-", hint).strip("-") or None


def _origin(use: Use, said: Wording, placed: Sequence[tuple[Use, Wording]]) -> str | None:
    """The task whose wording this template shares most, if it shares enough."""
    best: tuple[float, str] | None = None
    for other, others in placed:
        share = _kinship(other, others, use, said)
        if share > 0:
            best = max(best, (share, other.template.task)) if best else (share, other.template.task)
    return best[1] if best else None


def _kinship(earlier: Use, before: Wording, later: Use, after: Wording) -> float:
    """How much wording two templates share; 0 where it is not enough to be one task's."""
    share = likeness(before, after)
    if share >= _threshold(earlier, later) or (share > 0 and containment(before, after) >= CONTAINED):
        return share if later.first > earlier.last or _same_inputs(before, after) else 0.0
    if earlier.template.bucket != later.template.bucket or not _same_settings(earlier, later):
        return 0.0
    changes = revision(before, after)
    return changes.share if changes and changes.is_one_task(_follows(earlier, later)) else 0.0


def _same_inputs(before: Wording, after: Wording) -> bool:
    """Whether templates in use side by side have as many inputs, or differ in passages that bring their own."""
    first, second = (sum(words.count(_SLOT) for _, words in said.messages) for said in (before, after))
    changes = revision(before, after) if first != second else None
    return first == second or (changes is not None and all(max(map(len, p)) >= _PASSAGE for p in changes.passages))


def _same_settings(earlier: Use, later: Use) -> bool:
    """Whether both are called alike (model, temperature ...), as versions of one prompt are; true if not known."""
    if not (earlier.settings and later.settings):
        return True
    pairs = [(earlier.settings.get(k, ""), later.settings.get(k, "")) for k in {*earlier.settings, *later.settings}]
    return all(a == b or a is None or b is None for a, b in pairs)


def _follows(earlier: Use, later: Use) -> bool:
    """Whether the later template came into use just as the earlier one went out of use."""
    gap, used = later.first - earlier.last, earlier.last - earlier.first
    return -used / 20 <= gap <= used / 5


def _threshold(earlier: Use, later: Use) -> float:
    if _follows(earlier, later):
        return FOLLOWED
    return CHANGED if later.first > earlier.last else VARIANT


class Wording(NamedTuple):
    """A template's word trigrams: of all its messages, and of those that have slots; and its words in order.

    `messages`: header, then words and slots (a sign that is no word) of each message.
    """

    all: Trigrams
    local: Trigrams
    messages: tuple[tuple[str, tuple[str, ...]], ...] = ()


@lru_cache(maxsize=2048)
def wording(template: PromptTemplate) -> Wording:
    """The template's wording, to compare with others."""
    messages = tuple((pattern.header, _sequence(pattern)) for pattern in template.patterns)
    return Wording(_trigrams(template, local=False), _trigrams(template, local=True), messages)


def _sequence(pattern: MessagePattern) -> tuple[str, ...]:
    """Words and slots in order; slots without a word between them count as one."""
    found: list[str] = []
    for field in pattern.fields:
        for n, literal in enumerate(field.literals):
            if n and found[-1:] != [_SLOT]:
                found.append(_SLOT)
            found += WORD.findall(literal)
    return tuple(found)


class Revision(NamedTuple):
    """What a person changed to get from one template to the other.

    `passages`: each place that differs, as what was there and what is there now (words and slots); `shared`,
    `most`: words that stay in the messages concerned, and all words there are in the longer version of them.
    """

    passages: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    shared: int
    most: int

    @property
    def share(self) -> float:
        return self.shared / self.most if self.most else 0.0

    def is_one_task(self, follows: bool) -> bool:
        """Whether this is how one prompt is revised, not how two prompts of one style differ.

        A revision changes a few whole sentences and no input; prompts that only resemble each other swap words
        all over. What was only added is a section that may be there or not: it may bring an input of its own.
        """
        if self.shared < _SHARED_WORDS or len(self.passages) > _PASSAGES:
            return False
        sides = list(zip(*self.passages, strict=True)) or [(), ()]
        if any(not any(side) for side in sides) and all(max(map(len, p)) >= _PASSAGE for p in self.passages):
            return len(self.passages) < _PASSAGES
        whole = all(not min(map(len, p)) or max(map(len, p)) >= _PASSAGE for p in self.passages)
        same_inputs = all(old.count(_SLOT) == new.count(_SLOT) for old, new in self.passages)
        return whole and same_inputs and self.share >= (REVISED_NEXT if follows else REVISED)


def revision(left: Wording, right: Wording) -> Revision | None:
    """How the texts of two templates differ; None when their messages or nearly all words do."""
    if [header for header, _ in left.messages] != [header for header, _ in right.messages]:
        return None
    pairs = [(a, b) for (_, a), (_, b) in zip(left.messages, right.messages, strict=True) if a != b]
    if not pairs or max(sum(_common_ends(a, b)) for a, b in pairs) < _ENDS:
        return None
    passages: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    shared = 0
    for a, b in pairs:
        at, to = 0, 0
        for i, j, length in [*_blocks(a, b), (len(a), len(b), 0)]:
            if (i, j) != (at, to):
                passages.append((a[at:i], b[to:j]))
            shared += length - a[i : i + length].count(_SLOT)
            at, to = i + length, j + length
    lengths = [sum(len(side) - side.count(_SLOT) for side in sides) for sides in zip(*pairs, strict=True)]
    return Revision(tuple(passages), shared, max(lengths))


def _blocks(a: tuple[str, ...], b: tuple[str, ...]) -> list[tuple[int, int, int]]:
    """Runs that both hold, in order: those at both ends, and others of three words and more."""
    found = [(*run.starts, run.length) for run in shared_runs([list(a), list(b)])]
    return [(i, j, n) for i, j, n in found if n > 2 or (i, j) == (0, 0) or (i + n, j + n) == (len(a), len(b))]


def _common_ends(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[int, int]:
    """How many words and slots both begin with, and how many both end with."""
    least = min(len(a), len(b))
    start = next((i for i in range(least) if a[i] != b[i]), least)
    return start, next((i for i in range(least - start) if a[-1 - i] != b[-1 - i]), least - start)


def likeness(left: Wording, right: Wording) -> float:
    """Shared wording, over all messages and over those that have slots: the lower of the two.

    A long system prompt that several tasks have in common says nothing about whether they are one task.
    """
    pairs = ((left.all, right.all), (left.local, right.local))
    return min(_jaccard(a, b) for a, b in pairs if a or b or not (left.all or right.all))


def containment(left: Wording, right: Wording) -> float:
    """How much of the shorter wording the longer one holds; 0 when it is too short to say."""
    pairs = ((left.all, right.all), (left.local, right.local))
    shares = [len(a & b) / least for a, b in pairs if (least := min(len(a), len(b))) >= 5]
    return min(shares) if len(shares) == 2 else 0.0


def _trigrams(template: PromptTemplate, *, local: bool) -> Trigrams:
    return trigrams(f for pattern in template.patterns for f in pattern.fields if f.slots or not local)


def _jaccard(left: Trigrams, right: Trigrams) -> float:
    both = len(left & right)
    return both / (len(left) + len(right) - both) if left or right else 1.0
