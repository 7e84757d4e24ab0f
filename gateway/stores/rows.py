"""Rows of the table `exchange_rows`: from the two halves of an exchange to what is bound; and back from the view
`exchanges`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter
from typing import Any

import msgspec

from gateway.domain.exchange import Exchange
from gateway.stores.blocks import Blocks, Content, Run
from gateway.stores.dictionaries import Dictionaries, dictionary_of
from gateway.stores.kinds import OF_REQUESTS, OF_RESPONSES, Kind
from gateway.stores.segments import BeginRecord, EndRecord

Row = tuple[Any, ...]

_FIRST = ("id", "started_at", "asked_as", "task", "request_at", "tags", "truncated", "copy_of")
_LAST = (
    "answered_as", "complete", "latency_ms", "ttft_ms", "input_tokens", "cached_tokens", "output_tokens",
    "reasoning_tokens", "cost_usd", "response_at", "attempts",
)  # fmt: skip


# The driver looks for an adapter for what is no text and no number, which takes a microsecond: flags are bound as
# integers, and what is null as a value that stands for it.
_NO_TEXT, _NO_NUMBER = "", -1
_BOUND = dict.fromkeys(("task", "tags", "copy_of", "attempts"), f"NULLIF(?, '{_NO_TEXT}')") | dict.fromkeys(
    ("ttft_ms", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost_usd"),
    f"NULLIF(?, {_NO_NUMBER})",
)


def _insert(columns: tuple[str, ...]) -> str:
    bound = ", ".join(_BOUND.get(name, "?") for name in columns)
    return f"INSERT INTO exchange_rows ({', '.join(columns)}) VALUES ({bound})"


INSERT_BEGUN = _insert(_FIRST)
INSERT_ENDED = _insert((*_FIRST, *_LAST))
INSERT_WHOLE = _insert((*_FIRST, *_LAST, "task_version"))
_SET_LAST = ", ".join(f"{name} = {_BOUND.get(name, '?')}" for name in _LAST)
UPDATE_ENDED = f"UPDATE exchange_rows SET {_SET_LAST}, truncated = MAX(truncated, ?) WHERE id = ?"
FILL_REQUEST = "UPDATE exchange_rows SET request_at = ?, truncated = MAX(truncated, ?) WHERE id = ?"
_PLACES = ("request_at", "response_at")
_NAMES = Exchange.__struct_fields__
SELECT = f"SELECT {', '.join(_NAMES)}, packed, {', '.join(_PLACES)} FROM exchanges"
_FLAGS = ("stripped", "streamed", "complete", "truncated")

_json = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(dict[str, str] | list[str]).decode
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


asked: Callable[[BeginRecord], Content] = attrgetter("request_headers", "request")
"""What is kept of a request."""

answered: Callable[[EndRecord], Content] = attrgetter("response_headers", "response")
"""What is kept of a response."""


def contents(exchange: Exchange) -> list[Content]:
    """What is kept of both."""
    return [
        content(exchange.request_headers, exchange.request), content(exchange.response_headers, exchange.response)
    ]  # fmt: skip


asked_as: Callable[[BeginRecord | Exchange], Kind] = attrgetter(*OF_REQUESTS)
"""What a request has in common with others."""

answered_as: Callable[[EndRecord], Kind] = attrgetter(*OF_RESPONSES[:-1], "usage.source")
"""What an answer has in common with others."""

answer_of: Callable[[Exchange], Kind] = attrgetter(*OF_RESPONSES)
"""The same of an exchange that does not come from the journal."""


# `request_at` and `response_at` are the numbers of bodies in the blocks, `asked` and `answered` those of the
# kinds.


def _text(value: dict[str, str] | list[str]) -> str:
    """As JSON; most are empty."""
    return _json(value).decode() if value else _NO_TEXT


def _json_of(packed: msgspec.Raw) -> str:
    """Tags or attempts, as JSON.

    Raises:
        ValueError: they are neither.
    """
    if len(packed) == 1:  # none
        return _NO_TEXT
    try:
        return _text(_unpack(packed))
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error


def _last(end: EndRecord, answered: int, response_at: int) -> Row:
    usage = end.usage
    first, cost, given, cached = end.ttft_ms, end.cost_usd, usage.input, usage.cached
    made, reasoning = usage.output, usage.reasoning
    return (
        answered,
        1 if end.complete else 0,
        end.latency_ms,
        _NO_NUMBER if first is None else first,
        _NO_NUMBER if given is None else given,
        _NO_NUMBER if cached is None else cached,
        _NO_NUMBER if made is None else made,
        _NO_NUMBER if reasoning is None else reasoning,
        _NO_NUMBER if cost is None else cost,
        response_at,
        _json_of(end.attempts),
    )


def begun(begin: BeginRecord, asked: int, request_at: int | None) -> Row:
    """What `INSERT_BEGUN` binds."""
    return (
        begin.id, begin.started_at, asked, begin.task or _NO_TEXT, request_at, _json_of(begin.tags),
        int(begin.request_truncated), begin.copy_of or _NO_TEXT,
    )  # fmt: skip


def ended(begin: BeginRecord, end: EndRecord, asked: int, answered: int, request_at: int, response_at: int) -> Row:
    """What `INSERT_ENDED` binds."""
    truncated = 1 if begin.request_truncated or end.response_truncated else 0
    return (
        begin.id, begin.started_at, asked, begin.task or _NO_TEXT, request_at, _json_of(begin.tags), truncated,
        begin.copy_of or _NO_TEXT, *_last(end, answered, response_at),
    )  # fmt: skip


def late(end: EndRecord, answered: int, response_at: int) -> Row:
    """What `UPDATE_ENDED` binds."""
    return (*_last(end, answered, response_at), int(end.response_truncated), end.id)


def filled(begin: BeginRecord, request_at: int) -> Row:
    """What `FILL_REQUEST` binds."""
    return (request_at, int(begin.request_truncated), begin.id)


def whole(one: Exchange, asked: int, answered: int, request_at: int, response_at: int) -> Row:
    """What `INSERT_WHOLE` binds, for an exchange that does not come from the journal."""
    return (
        one.id, one.started_at, asked, one.task, request_at, _text(one.tags), int(one.truncated), one.copy_of,
        answered, int(one.complete), one.latency_ms, one.ttft_ms, one.input_tokens, one.cached_tokens,
        one.output_tokens, one.reasoning_tokens, one.cost_usd, response_at, _text(one.attempts), one.task_version,
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
        "SELECT number, packed, substr(request, 1, 18), substr(response, 1, 18) FROM old_bodies"
        " WHERE number BETWEEN ? AND ? AND packed > 0", [first, last],
    ).fetchall()  # fmt: skip
    concerned = [
        (rowid, bit, name)
        for rowid, packed, *frames in heads
        for bit, name, frame in zip((1, 2), ("request", "response"), frames, strict=True)
        if packed & bit and dictionary_of(frame) in numbers
    ]
    contents = []
    for rowid, _, name in concerned:
        (frame,) = run(f"SELECT {name} FROM old_bodies WHERE number = ?", [rowid]).fetchone()
        contents.append(content(*dictionaries.unpack(frame)))
    for (rowid, bit, name), number in zip(concerned, blocks.add_all(contents), strict=True):
        run(f"UPDATE exchange_rows SET {name}_at = ? WHERE number = ?", [number, rowid])
        run(f"UPDATE old_bodies SET {name} = NULL, packed = packed & ~? WHERE number = ?", [bit, rowid])
    return len(concerned)
