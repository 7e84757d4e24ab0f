"""Which task a new template belongs to: a changed version of a known one, or a task of its own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.domain.template import PromptTemplate
from gateway.pipeline.alignment import WORD
from gateway.pipeline.naming import slug

CHANGED = 0.5
"""Shared wording (Jaccard index of word trigrams) from which a later template is a new version."""
VARIANT = 0.8
"""The same for templates that are in use side by side."""


class Use(NamedTuple):
    """A template, the first and last time it was seen (seconds), and the apps' own names for the task."""

    template: PromptTemplate
    first: float
    last: float
    hints: tuple[str | None, ...] = ()


def place(new: Sequence[Use], known: Sequence[Use]) -> list[PromptTemplate]:
    """The new templates with task and version, in the order in which they came into use."""
    placed = list(known)
    for use in sorted(new, key=lambda use: (use.first, use.last, use.template.literals)):
        task = agreed(use.hints) or _origin(use, placed) or slug(use.template, {u.template.task for u in placed})
        version = 1 + max((u.template.version for u in placed if u.template.task == task), default=0)
        template = msgspec.structs.replace(use.template, task=task, version=version)
        placed.append(use._replace(template=template))
    return [use.template for use in placed[len(known) :]]


def agreed(hints: Sequence[str | None]) -> str | None:
    """The name that nine of ten requests carry, in characters that a task name may have."""
    if not hints:
        return None
    hint, count = Counter(hints).most_common(1)[0]
    if hint is None or count < 0.9 * len(hints):
        return None
    return re.sub(r"[^A-Za-z0-9._-]+", "-", hint).strip("-") or None


def _origin(use: Use, placed: Sequence[Use]) -> str | None:
    """The task whose wording this template shares most, if it shares enough."""
    best: tuple[float, str] | None = None
    for other in placed:
        share = likeness(use.template, other.template)
        if share >= (CHANGED if other.last < use.first else VARIANT) and (best is None or share > best[0]):
            best = (share, other.template.task)
    return best[1] if best else None


def likeness(left: PromptTemplate, right: PromptTemplate) -> float:
    """Shared wording, over all messages and over those that have slots: the lower of the two.

    A long system prompt that several tasks have in common says nothing about whether they are one task.
    """
    return min(_jaccard(_trigrams(left, local), _trigrams(right, local)) for local in (False, True))


def _trigrams(template: PromptTemplate, local: bool) -> frozenset[tuple[str, ...]]:
    fields = [field for pattern in template.patterns for field in pattern.fields if field.slots or not local]
    found: set[tuple[str, ...]] = set()
    for literal in (literal for field in fields for literal in field.literals):
        names = WORD.findall(literal)
        found.update(zip(names, names[1:], names[2:], strict=False) if len(names) > 2 else [tuple(names)])
    return frozenset(found - {()})


def _jaccard(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    return len(left & right) / len(left | right) if left | right else 1.0
