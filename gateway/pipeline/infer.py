"""Prompt templates from recorded requests alone: match what is known, mine the rest, name what is new."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gateway.domain import layout
from gateway.domain.layout import Unreadable
from gateway.domain.matching import Match, TemplateIndex
from gateway.domain.template import PromptTemplate
from gateway.pipeline.grouping import Seen, mine_bucket
from gateway.pipeline.records import Recorded
from gateway.pipeline.splitting import spread
from gateway.pipeline.versions import Use, place

__all__ = ["Inference", "Recorded", "infer", "infer_files"]


BATCH = 8000
"""Requests to mine at once; the others are matched with what these show, and only what is left is mined again."""


class Inference(NamedTuple):
    """New templates, and for each request the (task, version) it belongs to, or None."""

    templates: list[PromptTemplate]
    assignments: dict[str, tuple[str, int] | None]


def infer(requests: Sequence[Recorded], known: Sequence[PromptTemplate] = ()) -> Inference:
    """Find the prompt templates behind these requests. The order in which they are given changes nothing."""
    ordered = sorted(requests, key=lambda request: (request.ts, request.id))
    before = _assign(ordered, known)
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
    return Inference(templates, _assign(ordered, [*known, *templates]))


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


def infer_files(train: Path, live: Path | None, out: Path) -> dict[str, Any]:
    """Infer from the requests in `train`; write one prediction a line for them and for those in `live`.

    Lines in are `{rid, ts, body}`, plain or gzipped; gives back the line of totals that begins the output.
    """
    recorded = [Recorded(line["rid"], line["ts"], line["body"]) for line in _lines(train)]
    started = time.perf_counter()
    inference = infer(recorded)
    meta = {
        "infer_seconds": time.perf_counter() - started,
        "n": len(recorded),
        "templates": len(inference.templates),
    }
    index = TemplateIndex(inference.templates)
    with out.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"meta": meta}) + "\n")
        for path in (train, live) if live else (train,):
            for line in _lines(path):
                file.write(json.dumps(_prediction(index, line)) + "\n")
    return meta


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _prediction(index: TemplateIndex, line: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    match = index.match(line["body"])
    spent = (time.perf_counter() - started) * 1e6
    if match is None:
        return {
            "rid": line["rid"],
            "task": None,
            "variant": None,
            "match": False,
            "segs": [],
            "recon": None,
            "us": spent,
        }
    template, inputs = match
    text = json.dumps(template.render(inputs), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return {
        "rid": line["rid"],
        "task": template.task,
        "variant": template.name,
        "match": True,
        "segs": _spans(match, line["body"]),
        "recon": hashlib.sha256(text.encode()).hexdigest(),
        "us": spent,
    }


def _spans(match: Match, body: dict[str, Any]) -> list[list[int]]:
    """What was kept: [message, part (-1: plain text), start, end] in code points."""
    template, inputs = match
    count, outside = len(layout.read(body).headers), len(layout.read(body).headers) - len(body["messages"])
    last = count - len(template.tail)
    spans = []
    for i in range(len(template.head), last):
        content = body["messages"][i - outside].get("content")
        parts = enumerate(content) if isinstance(content, list) else [(-1, {"text": content})]
        spans += [[i - outside, n, 0, len(part["text"])] for n, part in parts if isinstance(part.get("text"), str)]
    values = iter(inputs.values)
    for pattern, i in zip(template.patterns, [*range(len(template.head)), *range(last, count)], strict=True):
        plain = layout.parse_header(pattern.header)[1] == "s"
        for part_index, field in enumerate(pattern.fields):
            position = len(field.literals[0])
            for literal in field.literals[1:]:
                length = len(next(values))
                spans.append([i - outside, -1 if plain else part_index, position, position + length])
                position += length + len(literal)
    return spans
