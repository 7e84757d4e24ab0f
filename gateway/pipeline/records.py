"""A recorded request, as template inference reads it."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.domain.exchange import Exchange, task_name
from gateway.encoding import decoded
from gateway.providers.openai import read_chat


class Recorded(msgspec.Struct, frozen=True):
    """One request as it was recorded.

    `ts` seconds; `body` the parsed JSON; `key` tells tenants or endpoints apart, which never share a new
    template; `hint` is the app's own name for the task, where it sent one. `is_copy`: no client asked it, the
    gateway repeated a client's request.
    """

    id: str
    ts: float
    body: dict[str, Any]
    key: str = ""
    hint: str | None = None
    is_copy: bool = False


def recorded(exchange: Exchange) -> Recorded | None:
    """The exchange as inference sees it; None when it is no readable chat request."""
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    parsed = read_chat(body) if body else None
    if parsed is None:
        return None
    key = f"{exchange.provider} {exchange.endpoint} {exchange.key_id}"
    return Recorded(
        id=exchange.id,
        ts=exchange.started_at,
        body=parsed,
        key=key,
        hint=task_name(exchange.task_hint),
        is_copy=exchange.copy_of is not None,
    )
