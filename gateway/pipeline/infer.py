"""Prompt templates from recorded requests alone: match what is known, mine the rest, name what is new."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from gateway.domain import layout
from gateway.domain.layout import Unreadable
from gateway.domain.matching import TemplateIndex
from gateway.domain.template import PromptTemplate
from gateway.pipeline.grouping import Seen, mine_bucket
from gateway.pipeline.records import Recorded
from gateway.pipeline.splitting import spread
from gateway.pipeline.versions import Use, place

__all__ = ["Inference", "Recorded", "infer"]


BATCH = 8000
"""Requests to mine at once; the others are matched with what these show, and only what is left is mined again."""


class Inference(NamedTuple):
    """New templates, and for each request the (task, version) it belongs to, or None."""

    templates: list[PromptTemplate]
    assignments: dict[str, tuple[str, int] | None]


def infer(
    requests: Sequence[Recorded], known: Sequence[PromptTemplate] = (), *, unexplained: bool = False
) -> Inference:
    """Find the prompt templates behind these requests. The order in which they are given changes nothing.

    `unexplained`: they match none of the known templates, which only say what is new and how it is called.
    """
    ordered = sorted(requests, key=lambda request: (request.ts, request.id))
    before = _assign(ordered, () if unexplained else known)
    new: list[Use] = []
    left = [request for request in ordered if before[request.id] is None]
    while left:
        batch = spread(left, BATCH)
        found = _mine(batch)
        new += found
        if not found or len(batch) == len(left):
            break
        index = TemplateIndex([use.template for use in found])
        left = [request for request in left if index.match(request.body) is None]
    templates = place(new, _uses(known, ordered, before))
    return Inference(templates, _assign(ordered, templates if unexplained else [*known, *templates]))


def _mine(requests: Sequence[Recorded]) -> list[Use]:
    buckets: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for request in requests:
        try:
            seen = Seen(request, layout.read(request.body))
        except Unreadable:
            continue
        buckets[request.key, seen.layout.bucket].append(seen)
    return [use for key in sorted(buckets) for use in mine_bucket(buckets[key])]


def _assign(requests: Sequence[Recorded], templates: Sequence[PromptTemplate]) -> dict[str, tuple[str, int] | None]:
    index = TemplateIndex(templates)
    matches = ((request.id, index.match(request.body)) for request in requests)
    return {id: (match.template.task, match.template.version) if match else None for id, match in matches}


def _uses(
    known: Sequence[PromptTemplate],
    requests: Sequence[Recorded],
    assignments: dict[str, tuple[str, int] | None],
) -> list[Use]:
    """Known templates with the last time that each was seen here; one that was not seen is of the past."""
    last = {assignments[request.id]: request.ts for request in requests}
    return [Use(t, -math.inf, last.get((t.task, t.version), -math.inf)) for t in known]
