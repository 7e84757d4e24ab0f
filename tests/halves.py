"""The two halves of small exchanges, for tests of the journal and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gateway.domain.exchange import Begin, End, Usage
from gateway.stores.journal import Poison
from gateway.stores.segments import BeginRecord, EndRecord, HalfRecord, SegmentReader


def begin(number: int = 1, **changes: Any) -> Begin:
    first = Begin(
        id=f"e{number:06}", started_at=1000.0 + number, method="POST", endpoint="/v1/chat/completions",
        provider="openai", route=None, task=None, task_hint=None, model_requested="gpt-6", key_id=None, tags={},
        request_headers={}, request=b'{"n":%d}' % number,
    )  # fmt: skip
    return msgspec.structs.replace(first, **changes)


def end(number: int = 1, **changes: Any) -> End:
    last = End(
        id=f"e{number:06}", target="openai/gpt-6", stripped=False, status=200, streamed=False, complete=True,
        error_type=None, latency_ms=12.5, ttft_ms=None, model_served="gpt-6-1", finish_reason="stop",
        usage=Usage(input=3, output=1, source="upstream"), cost_usd=None, attempts=[], response_headers={},
        response=b'{"answer":%d}' % number,
    )  # fmt: skip
    return msgspec.structs.replace(last, **changes)


def stored(*halves: Begin | End) -> list[HalfRecord]:
    """The same as the recorder reads them from a segment."""
    return [_stored(half) for half in halves]


def _stored(half: Begin | End) -> HalfRecord:
    data = msgspec.msgpack.encode(half)
    if isinstance(half, Begin):
        return msgspec.msgpack.decode(data, type=BeginRecord)
    return msgspec.msgpack.decode(data, type=EndRecord)


class Reader:
    """Reads segments as what was appended to them."""

    def __init__(self, *size: int) -> None:
        self._reader = SegmentReader(*size)

    def read(self, segment: Path, offset: int) -> tuple[list[Begin | End | Poison], int]:
        records, behind = self._reader.read(segment, offset)
        return [one if isinstance(one, Poison) else _whole(one) for one in records], behind


def _whole(record: HalfRecord) -> Begin | End:
    data = msgspec.msgpack.encode(record)
    if isinstance(record, BeginRecord):
        return msgspec.msgpack.decode(data, type=Begin)
    return msgspec.msgpack.decode(data, type=End)
