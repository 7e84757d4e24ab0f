"""Requests that nearly belong to a task: most of its prompt is in them, and still they do not match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gateway.domain import layout
from gateway.domain.layout import Unreadable
from gateway.domain.matching import reason
from gateway.domain.template import PromptTemplate

NEAR = 0.5
"""Share of a prompt's wording from which a request that does not match is one of its near misses."""
_PROBES = 64
_PROBE_WORDS = 4


class NearMiss(NamedTuple):
    """A request that nearly matches `template`, and why it does not: a code to count, a sentence to read."""

    exchange_id: str
    template: PromptTemplate
    code: str
    sentence: str


def near_misses(
    task: Sequence[PromptTemplate], others: Sequence[PromptTemplate], bodies: Mapping[str, dict[str, Any]]
) -> list[NearMiss]:
    """Those of the bodies (parsed JSON, by exchange id) that share more wording with one of the task's templates
    than with any of the `others`, in their order."""
    own = [(template, probes(template)) for template in task]
    rest = [probes(template) for template in others]
    found: list[NearMiss] = []
    for exchange_id, body in bodies.items():
        text = text_of(body)
        share, template = max(
            ((nearness(p, text), t) for t, p in own), key=lambda pair: pair[0], default=(0.0, None)
        )
        if template is None or share < NEAR or any(nearness(p, text) > share for p in rest):
            continue
        why = reason(template, body)
        if why is not None:
            found.append(NearMiss(exchange_id, template, why.code, why.sentence))
    return found


def probes(template: PromptTemplate) -> tuple[str, ...]:
    """Up to 64 stretches of four words, evenly spread over the fixed text: whether a request holds them costs as
    many searches, however long the prompt is."""
    stretches: list[str] = []
    for literal in template.literals:
        words = [found.span() for found in re.finditer(r"\S+", literal)]
        for i in range(0, len(words) - 1, _PROBE_WORDS):
            stretches.append(literal[words[i][0] : words[min(i + _PROBE_WORDS, len(words)) - 1][1]])
    step = max(1.0, len(stretches) / _PROBES)
    return tuple(stretches[int(i * step)] for i in range(min(len(stretches), _PROBES)))


def nearness(wording: Sequence[str], text: str) -> float:
    """The share of the stretches that the text holds, in their order, 0 to 1."""
    found, position = 0, 0
    for stretch in wording:
        at = text.find(stretch, position)
        if at >= 0:
            found, position = found + 1, at + len(stretch)
    return found / len(wording) if wording else 0.0


def text_of(body: dict[str, Any]) -> str:
    """All texts of a request's messages, one after the other; "" where it cannot be taken apart."""
    try:
        seen = layout.read(body)
    except Unreadable:
        return ""
    return "\n".join(text for texts in seen.fields for text in texts)
