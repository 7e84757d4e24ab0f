"""Inference on a file of recorded requests, without a store: what belongs together, and which parts are input."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from gateway.domain import layout
from gateway.domain.matching import Match, TemplateIndex
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate
from gateway.errors import RequestFileError
from gateway.pipeline.infer import Recorded, infer

_LIKE = """write it like {"rid": "r1", "ts": 1.5, "body": {"messages": [...]}}"""


class _Line(msgspec.Struct, frozen=True):
    rid: str
    ts: float
    body: dict[str, Any]


class Found(NamedTuple):
    """What `infer_files` found: its templates, how many of the requests to learn from fit each of them (by name),
    and the totals that begin the file of predictions."""

    templates: list[PromptTemplate]
    requests: Counter[str]
    totals: dict[str, Any]


def infer_files(train: Path, live: Path | None, out: Path) -> Found:
    """Infer from the requests in `train`; write one prediction a line for them and for those in `live`.

    Lines in are `{rid, ts, body}` (`ts` in seconds), plain or gzipped. The first line out holds the totals;
    `us` is the CPU time that matching took, in microseconds.

    Raises:
        RequestFileError: a file cannot be read or written, or a line of it is no request; names file and line.
    """
    recorded = [Recorded(line.rid, line.ts, line.body) for line in _lines(train)]
    if live is not None:
        for _ in _lines(live):  # before minutes of work, not after them
            pass
    started = time.perf_counter()
    templates = infer(recorded).templates
    totals = {
        "infer_seconds": time.perf_counter() - started,
        "n": len(recorded),
        "templates": len(templates),
    }
    try:
        with out.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"meta": totals}) + "\n")
            counts = _predict(templates, train, file)
            if live is not None:
                _predict(templates, live, file)
    except OSError as error:
        raise RequestFileError(f"{out}: cannot be written ({error.strerror}); name another file") from error
    return Found(templates, counts, totals)


def _predict(templates: Sequence[PromptTemplate], requests: Path, out: IO[str]) -> Counter[str]:
    index = TemplateIndex(templates)
    counts: Counter[str] = Counter()
    for line in _lines(requests):
        started = time.thread_time()  # of the CPU: a busy machine interrupts
        match = index.match(line.body)
        spent = (time.thread_time() - started) * 1e6
        out.write(json.dumps(_prediction(line, match) | {"us": spent}) + "\n")
        counts[match.template.name if match else ""] += 1
    return counts


def _lines(path: Path) -> Iterator[_Line]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, text in enumerate(file, 1):  # noqa: B007 - the message below needs it
                yield msgspec.convert(json.loads(text), _Line)
    except (ValueError, RecursionError) as error:  # a ValidationError and a JSONDecodeError are ValueErrors
        reason = str(error) or type(error).__name__
        raise RequestFileError(f"{path}: line {number} is no request: {reason}; {_LIKE}") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestFileError(f"{path}: cannot be read after line {number} ({reason})") from error


def _prediction(line: _Line, match: Match | None) -> dict[str, Any]:
    if match is None:
        return {"rid": line.rid, "task": None, "variant": None, "match": False, "segs": [], "recon": None}
    template, inputs = match
    text = json.dumps(template.render(inputs), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return {
        "rid": line.rid,
        "task": template.task,
        "variant": _variant(inputs),
        "match": True,
        "segs": _spans(match, line.body),
        "recon": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    }


def _variant(inputs: Inputs) -> str:
    """What tells which text was removed: the template, and of how many turns where the user's are wrapped."""
    said = sum(turn["role"] == "user" for turn in inputs.turns) if inputs.template.wraps else 0
    return f"{inputs.template.name}+{said}" if said else inputs.template.name


def _spans(match: Match, body: dict[str, Any]) -> list[list[int]]:
    """What was kept: [message, part (-1: plain text), start, end] in code points."""
    template, inputs = match
    count = len(layout.read(body).headers)
    outside, last = count - len(body["messages"]), count - len(template.tail)
    spans: list[list[int]] = []
    for i, turn in enumerate(inputs.turns, len(template.head) - outside):
        if template.wrapper and turn["role"] == "user":
            spans += _holes(template.tail[0], [turn["content"]], i)
        else:
            spans += _whole(turn, i)
    values = list(inputs.values)
    for pattern, place in zip(template.patterns, [*range(len(template.head)), *range(last, count)], strict=True):
        spans += _holes(pattern, values[: pattern.holes], place - outside)
        del values[: pattern.holes]
    return spans


def _holes(pattern: MessagePattern, values: Sequence[str], place: int) -> list[list[int]]:
    """The slots of a message with these values."""
    spans, rest = [], iter(values)
    plain = layout.parse_header(pattern.header)[1] == "s"
    for part, field in enumerate(pattern.fields):
        position = len(field.literals[0])
        for literal in field.literals[1:]:
            length = len(next(rest))
            spans.append([place, -1 if plain else part, position, position + length])
            position += length + len(literal)
    return spans


def _whole(message: dict[str, Any], place: int) -> list[list[int]]:
    """Every text of a message, whole."""
    content = message.get("content")
    parts = enumerate(content) if isinstance(content, list) else [(-1, {"text": content})]
    return [[place, n, 0, len(str(part["text"]))] for n, part in parts if _has_text(part)]


def _has_text(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)
