"""Prompt templates from recorded requests alone: match what is known, mine the rest, name what is new."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.domain import layout
from gateway.domain.layout import Unreadable
from gateway.domain.matching import TemplateIndex, fixed_size
from gateway.domain.template import PromptTemplate
from gateway.pipeline.grouping import Seen, mine_bucket
from gateway.pipeline.records import Recorded
from gateway.pipeline.splitting import spread
from gateway.pipeline.versions import Use, in_order, place

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
    rounds = list(_rounds([request for request in ordered if before[request.id] is None]))
    new = sorted((use for one in rounds for use in one.uses), key=in_order)
    templates = place(new, _uses(known, ordered, before))
    named = {id(use.template): template for use, template in zip(new, templates, strict=True)}
    assignments: dict[str, tuple[str, int] | None] = {}
    for n, one in enumerate(rounds):
        later = TemplateIndex([use.template for other in rounds[n + 1 :] for use in other.uses])
        assignments.update(_named(one.explained, named, later))
    rest = [request for request in ordered if request.id not in assignments]
    assignments.update(_assign(rest, templates if unexplained else [*known, *templates]))
    return Inference(templates, {request.id: assignments[request.id] for request in ordered})


class _Round(NamedTuple):
    """Templates found in some of the requests, and those of all the others that one of them explains."""

    uses: list[Use]
    explained: list[tuple[Recorded, PromptTemplate]]


def _rounds(left: list[Recorded]) -> Iterator[_Round]:
    """Some of the requests are mined, then some of those that this does not explain, until there is nothing new."""
    while left:
        batch = spread(left, BATCH)
        found = _mine(batch)
        if not found or len(batch) == len(left):
            yield _Round(found, [])
            return
        index = TemplateIndex([use.template for use in found])
        matches = [(request, index.match(request.body)) for request in left]
        yield _Round(found, [(request, match.template) for request, match in matches if match is not None])
        left = [request for request, match in matches if match is None]


def _named(
    explained: Sequence[tuple[Recorded, PromptTemplate]], named: dict[int, PromptTemplate], later: TemplateIndex
) -> Iterator[tuple[str, tuple[str, int]]]:
    """The assignments of those requests that no other template could claim: none of a later round, and none with as
    much fixed text, of which the task's name or version decides. The others have to be matched once more."""
    sizes = Counter(map(fixed_size, named.values()))
    alone = {key: (t.task, t.version) for key, t in named.items() if sizes[fixed_size(t)] == 1}
    for request, template in explained:
        if id(template) in alone and later.match(request.body) is None:
            yield request.id, alone[id(template)]


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
