"""Rows of the table `exchanges`: from the two halves of an exchange to what is bound, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from msgspec.structs import astuple

from gateway.domain.exchange import Exchange
from gateway.stores.blocks import Blocks, Content, Run
from gateway.stores.dictionaries import Dictionaries, dictionary_of
from gateway.stores.segments import BeginRecord, EndRecord

Row = tuple[Any, ...]

_FIRST = (
    "id", "started_at", "method", "endpoint", "provider", "route", "task", "task_hint", "model_requested", "key_id",
    "tags", "request_at", "truncated", "copy_of",
)  # fmt: skip
_PLAIN = _FIRST.index("tags")
"""So many columns are bound as a record has them, in its order."""
_LAST = (
    "model_served", "target", "stripped", "status", "streamed", "complete", "error_type", "finish_reason",
    "latency_ms", "ttft_ms", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "usage_source",
    "cost_usd", "attempts", "response_at",
)  # fmt: skip


def _insert(columns: tuple[str, ...]) -> str:
    return f"INSERT INTO exchanges ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


INSERT_BEGUN = _insert(_FIRST)
INSERT_ENDED = _insert((*_FIRST, *_LAST))
INSERT_WHOLE = _insert((*_FIRST, *_LAST, "task_version"))
UPDATE_ENDED = (
    f"UPDATE exchanges SET {', '.join(f'{name} = ?' for name in _LAST)}, truncated = MAX(truncated, ?) WHERE id = ?"
)
FILL_REQUEST = "UPDATE exchanges SET request_at = ?, truncated = MAX(truncated, ?) WHERE id = ?"
_PLACES = ("request_at", "response_at")
_COLUMNS = tuple(name for name in (*_FIRST, *_LAST) if name not in _PLACES)
_NAMES = (*_COLUMNS, "task_version", "request", "response", "request_headers", "response_headers")
SELECT = f"SELECT {', '.join(_NAMES)}, packed, {', '.join(_PLACES)} FROM exchanges"
_FLAGS = ("stripped", "streamed", "complete", "truncated")

_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_content = msgspec.msgpack.Decoder(tuple[dict[str, str], bytes]).decode


def content(headers: dict[str, str], body: bytes) -> Content:
    """What is kept of a request or a response: its headers and its body, each in MessagePack."""
    return (_pack(headers), _pack(body))


def split(content: bytes) -> tuple[dict[str, str], bytes]:
    """The headers and the body that `content` put together.

    Raises:
        ValueError: it is no such content.
    """
    return _content(b"\x92" + content)  # MessagePack: an array of two


def asked(begin: BeginRecord) -> Content:
    """What is kept of a request."""
    return (begin.request_headers, begin.request)


def answered(end: EndRecord) -> Content:
    """What is kept of a response."""
    return (end.response_headers, end.response)


def contents(exchange: Exchange) -> list[Content]:
    """What is kept of both."""
    return [
        content(exchange.request_headers, exchange.request), content(exchange.response_headers, exchange.response)
    ]  # fmt: skip


def _text(value: dict[str, str] | list[str]) -> str:
    """As JSON; most are empty."""
    return _json(value).decode() if value else "{}" if isinstance(value, dict) else "[]"


# Flags are bound as integers: the driver looks for an adapter for each value of another type, which costs a
# microsecond. `request_at` and `response_at` are the numbers of the bodies in the store's blocks.


def _last(end: EndRecord, response_at: int) -> Row:
    usage = end.usage
    return (
        end.model_served, end.target, int(end.stripped), end.status, int(end.streamed), int(end.complete),
        end.error_type, end.finish_reason, end.latency_ms, end.ttft_ms, usage.input, usage.cached, usage.output,
        usage.reasoning, usage.source, end.cost_usd, _text(end.attempts), response_at,
    )  # fmt: skip


def begun(begin: BeginRecord, request_at: int | None) -> Row:
    """What `INSERT_BEGUN` binds."""
    truncated = int(begin.request_truncated)
    return (*astuple(begin)[:_PLAIN], _text(begin.tags), request_at, truncated, begin.copy_of)


def ended(begin: BeginRecord, end: EndRecord, request_at: int, response_at: int) -> Row:
    """What `INSERT_ENDED` binds."""
    truncated = int(begin.request_truncated or end.response_truncated)
    first = astuple(begin)[:_PLAIN]
    return (*first, _text(begin.tags), request_at, truncated, begin.copy_of, *_last(end, response_at))


def late(end: EndRecord, response_at: int) -> Row:
    """What `UPDATE_ENDED` binds."""
    return (*_last(end, response_at), int(end.response_truncated), end.id)


def filled(begin: BeginRecord, request_at: int) -> Row:
    """What `FILL_REQUEST` binds."""
    return (request_at, int(begin.request_truncated), begin.id)


def whole(exchange: Exchange, request_at: int, response_at: int) -> Row:
    """What `INSERT_WHOLE` binds, for an exchange that does not come from the journal."""
    first = (getattr(exchange, name) for name in _FIRST[:_PLAIN])
    last = (getattr(exchange, name) for name in _LAST[:-2])
    return (
        *first, _text(exchange.tags), request_at, int(exchange.truncated), exchange.copy_of,
        *last, _text(exchange.attempts), response_at, exchange.task_version,
    )  # fmt: skip


def exchange(row: Iterable[Any], blocks: Blocks, dictionaries: Dictionaries) -> Exchange:
    """The exchange in a row of `SELECT`, with the bytes as they were recorded.

    Raises:
        ValueError: a body is damaged.
        StoreError: the dictionary of a body of an earlier release is not in the store.
    """
    *columns, packed, request_at, response_at = row
    values = dict(zip(_NAMES, columns, strict=True))
    for name in ("tags", "attempts", "request_headers", "response_headers"):
        values[name] = json.loads(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    for bit, name, at in ((1, "request", request_at), (2, "response", response_at)):
        values[name] = values[name] or b""
        if at is not None:
            values[f"{name}_headers"], values[name] = split(blocks.content(at))
        elif packed & bit:
            values[f"{name}_headers"], values[name] = dictionaries.unpack(values[name])
    return Exchange(**values)


def moved_to_blocks(
    run: Run, blocks: Blocks, dictionaries: Dictionaries, numbers: Collection[int], first: int, last: int
) -> int:
    """Move the bodies of these rows (by rowid) into a block that need one of these dictionaries; gives how many."""
    heads = run(
        "SELECT rowid, packed, substr(request, 1, 18), substr(response, 1, 18) FROM exchanges"
        " WHERE rowid BETWEEN ? AND ? AND packed > 0", [first, last],
    ).fetchall()  # fmt: skip
    concerned = [
        (rowid, bit, name)
        for rowid, packed, *frames in heads
        for bit, name, frame in zip((1, 2), ("request", "response"), frames, strict=True)
        if packed & bit and dictionary_of(frame) in numbers
    ]
    contents = []
    for rowid, _, name in concerned:
        (frame,) = run(f"SELECT {name} FROM exchanges WHERE rowid = ?", [rowid]).fetchone()
        contents.append(content(*dictionaries.unpack(frame)))
    for (rowid, bit, name), number in zip(concerned, blocks.add_all(contents), strict=True):
        run(f"UPDATE exchanges SET {name} = NULL, {name}_at = ?, packed = packed & ~? WHERE rowid = ?",
            [number, bit, rowid])  # fmt: skip
    return len(concerned)
