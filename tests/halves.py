"""The two halves of small exchanges, for tests of the journal and the store."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.domain.exchange import Begin, End, Usage


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
