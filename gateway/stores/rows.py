"""Rows of the table `exchanges`: from the two halves of an exchange to what is bound, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from gateway.domain.exchange import Begin, End, Exchange
from gateway.stores.dictionaries import Dictionaries, Kind, Run
from gateway.stores.frames import content, dictionary_of, split

Row = tuple[Any, ...]

_FIRST = (
    "id", "started_at", "route", "task", "task_hint", "provider", "method", "endpoint", "model_requested", "tags",
    "key_id", "request", "truncated",
)  # fmt: skip
_LAST = (
    "model_served", "target", "stripped", "status", "streamed", "complete", "error_type", "finish_reason",
    "latency_ms", "ttft_ms", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "usage_source",
    "cost_usd", "attempts", "response",
)  # fmt: skip


def _insert(columns: tuple[str, ...]) -> str:
    places = ", ".join("?" * len(columns))
    return f"INSERT INTO exchanges ({', '.join(columns)}) VALUES ({places}) ON CONFLICT (id) DO NOTHING"


INSERT_BEGUN = _insert((*_FIRST, "packed"))
INSERT_ENDED = (  # the row of a large request may be there already, with its body
    _insert((*_FIRST, *_LAST, "packed")).removesuffix("NOTHING")
    + f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _LAST)}, response_headers = '{{}}',"
    " packed = packed | 2, truncated = MAX(truncated, excluded.truncated)"
)
INSERT_WHOLE = _insert((*_FIRST, *_LAST, "packed", "task_version"))
UPDATE_ENDED = (
    f"UPDATE exchanges SET {', '.join(f'{name} = ?' for name in _LAST)}, response_headers = '{{}}',"
    " packed = packed | 2, truncated = MAX(truncated, ?) WHERE id = ?"
)
FILL_REQUEST = (
    "UPDATE exchanges SET request = ?, request_headers = '{}', packed = packed | 1, truncated = MAX(truncated, ?)"
    " WHERE id = ?"
)
SELECT = (
    f"SELECT id, {', '.join((*_FIRST[1:], *_LAST))}, task_version, request_headers, response_headers, packed"
    " FROM exchanges"
)
_NAMES = ("id", *_FIRST[1:], *_LAST, "task_version", "request_headers", "response_headers")
_FLAGS = ("stripped", "streamed", "complete", "truncated")

_json = msgspec.json.Encoder().encode


def _text(value: dict[str, str] | list[str]) -> str:
    """As JSON; most are empty."""
    return _json(value).decode() if value else "{}" if isinstance(value, dict) else "[]"


# Flags are bound as integers: the driver looks for an adapter for each value of another type, which costs a
# microsecond.


def _first(begin: Begin | Exchange, dictionaries: Dictionaries, truncated: bool) -> Row:
    kind = _asked(begin.endpoint, begin.model_requested, begin.task_hint)
    request = dictionaries.pack(kind, begin.id, content(begin.request_headers, begin.request))
    return (
        begin.id, begin.started_at, begin.route, begin.task, begin.task_hint, begin.provider, begin.method,
        begin.endpoint, begin.model_requested, _text(begin.tags), begin.key_id, request, int(truncated),
    )  # fmt: skip


def _last(end: End, dictionaries: Dictionaries) -> Row:
    usage = end.usage
    kind = _answered(end.target, end.streamed)
    response = dictionaries.pack(kind, end.id, content(end.response_headers, end.response))
    return (
        end.model_served, end.target, int(end.stripped), end.status, int(end.streamed), int(end.complete),
        end.error_type, end.finish_reason, end.latency_ms, end.ttft_ms, usage.input, usage.cached, usage.output,
        usage.reasoning, usage.source, end.cost_usd, _text(end.attempts), response,
    )  # fmt: skip


def begun(begin: Begin, dictionaries: Dictionaries) -> Row:
    """What `INSERT_BEGUN` binds."""
    return (*_first(begin, dictionaries, begin.request_truncated), 1)


def body(begin: Begin, dictionaries: Dictionaries) -> Row:
    """What `FILL_REQUEST` binds."""
    kind = _asked(begin.endpoint, begin.model_requested, begin.task_hint)
    request = dictionaries.pack(kind, begin.id, content(begin.request_headers, begin.request))
    return (request, int(begin.request_truncated), begin.id)


def ended(begin: Begin, end: End, dictionaries: Dictionaries) -> Row:
    """What `INSERT_ENDED` binds."""
    truncated = begin.request_truncated or end.response_truncated
    return (*_first(begin, dictionaries, truncated), *_last(end, dictionaries), 3)


def late(end: End, dictionaries: Dictionaries) -> Row:
    """What `UPDATE_ENDED` binds."""
    return (*_last(end, dictionaries), int(end.response_truncated), end.id)


def whole(exchange: Exchange, dictionaries: Dictionaries) -> Row:
    """What `INSERT_WHOLE` binds, for an exchange that does not come from the journal."""
    kind = _answered(exchange.target, exchange.streamed)
    response = dictionaries.pack(kind, exchange.id, content(exchange.response_headers, exchange.response))
    last = (getattr(exchange, name) for name in _LAST[:-2])
    first = _first(exchange, dictionaries, exchange.truncated)
    return (*first, *last, _text(exchange.attempts), response, 3, exchange.task_version)


def exchange(row: Iterable[Any], dictionaries: Dictionaries) -> Exchange:
    """The exchange in a row of `SELECT`, with the bytes as they were recorded.

    Raises:
        ValueError: a body is damaged.
        StoreError: the dictionary of a body is not in the store.
    """
    *columns, packed = row
    values = dict(zip(_NAMES, columns, strict=True))
    for name in ("tags", "attempts", "request_headers", "response_headers"):
        values[name] = json.loads(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    for bit, body, headers in ((1, "request", "request_headers"), (2, "response", "response_headers")):
        values[body] = values[body] or b""
        if packed & bit:
            values[headers], values[body] = split(dictionaries.unpack(values[body]))
    return Exchange(**values)


def repacked(run: Run, dictionaries: Dictionaries, numbers: Collection[int], first: int, last: int) -> int:
    """Pack the bodies of these rows (by rowid) again that need one of these dictionaries; gives how many rows."""
    heads = run(
        "SELECT rowid, packed, substr(request, 1, 18), substr(response, 1, 18) FROM exchanges"
        " WHERE rowid BETWEEN ? AND ? AND packed > 0", [first, last],
    ).fetchall()  # fmt: skip
    dictionaries.refresh()
    changed = 0
    for rowid, packed, *bodies in heads:
        bits = [
            bit for bit, body in zip((1, 2), bodies, strict=True) if packed & bit and dictionary_of(body) in numbers
        ]
        if bits:
            _repack(run, dictionaries, rowid, bits)
            changed += 1
    dictionaries.improve()
    return changed


def _repack(run: Run, dictionaries: Dictionaries, rowid: int, bits: list[int]) -> None:
    query = "SELECT id, endpoint, model_requested, task_hint, target, streamed, request, response FROM exchanges"
    row = run(f"{query} WHERE rowid = ?", [rowid]).fetchone()
    key, endpoint, model, hint, target, streamed, request, response = row
    kinds = {1: _asked(endpoint, model, hint), 2: _answered(target, streamed)}
    frames = {1: request, 2: response}
    for bit in bits:
        frames[bit] = dictionaries.pack(kinds[bit], key, dictionaries.unpack(frames[bit]))
    run("UPDATE exchanges SET request = ?, response = ? WHERE rowid = ?", [frames[1], frames[2], rowid])


def _asked(endpoint: str, model: str | None, hint: str | None) -> Kind:
    return (">", endpoint, model, hint)


def _answered(target: str | None, streamed: bool) -> Kind:
    return ("<", target, "stream" if streamed else "")
