"""Which task a new template belongs to: a changed version of a known one, or a task of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.domain.template import PromptTemplate
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


class Use(NamedTuple):
    """A template, the first and last time it was seen (seconds), and the apps' own names for the task."""

    template: PromptTemplate
    first: float
    last: float
    hints: tuple[str | None, ...] = ()


def place(new: Sequence[Use], known: Sequence[Use]) -> list[PromptTemplate]:
    """The new templates with task and version, in the order in which they came into use."""
    placed = [(use, wording(use.template)) for use in known]
    for use in sorted(new, key=lambda use: (use.first, use.last, use.template.literals)):
        said = wording(use.template)
        task = agreed(use.hints) or _origin(use, said, placed)
        task = task or slug(use.template, {earlier.template.task for earlier, _ in placed})
        versions = [u.template.version for u, _ in placed if u.template.task == task]
        template = msgspec.structs.replace(use.template, task=task, version=1 + max(versions, default=0))
        placed.append((use._replace(template=template), said))
    return [use.template for use, _ in placed[len(known) :]]


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
        share = likeness(said, others)
        if share >= _threshold(other, use) or (share > 0 and containment(said, others) >= CONTAINED):
            best = max(best, (share, other.template.task)) if best else (share, other.template.task)
    return best[1] if best else None


def _threshold(earlier: Use, later: Use) -> float:
    gap, used = later.first - earlier.last, earlier.last - earlier.first
    if -used / 20 <= gap <= used / 5:
        return FOLLOWED
    return CHANGED if gap > 0 else VARIANT


class Wording(NamedTuple):
    """A template's word trigrams: of all its messages, and of those that have slots."""

    all: Trigrams
    local: Trigrams


def wording(template: PromptTemplate) -> Wording:
    """The template's wording, to compare with others."""
    return Wording(_trigrams(template, local=False), _trigrams(template, local=True))


def likeness(left: Wording, right: Wording) -> float:
    """Shared wording, over all messages and over those that have slots: the lower of the two.

    A long system prompt that several tasks have in common says nothing about whether they are one task.
    """
    return min(_jaccard(a, b) for a, b in zip(left, right, strict=True) if a or b or not (left.all or right.all))


def containment(left: Wording, right: Wording) -> float:
    """How much of the shorter wording the longer one holds; 0 when it is too short to say."""
    shares = [len(a & b) / least for a, b in zip(left, right, strict=True) if (least := min(len(a), len(b))) >= 5]
    return min(shares) if len(shares) == 2 else 0.0


def _trigrams(template: PromptTemplate, *, local: bool) -> Trigrams:
    return trigrams(f for pattern in template.patterns for f in pattern.fields if f.slots or not local)


def _jaccard(left: Trigrams, right: Trigrams) -> float:
    return len(left & right) / len(left | right) if left | right else 1.0
