"""A recorded request, as template inference reads it."""

from __future__ import annotations

from typing import Any

import msgspec


class Recorded(msgspec.Struct, frozen=True):
    """One request as it was recorded.

    `ts` seconds; `body` the parsed JSON; `key` tells tenants or endpoints apart, which never share a new
    template; `hint` is the app's own name for the task, where it sent one.
    """

    id: str
    ts: float
    body: dict[str, Any]
    key: str = ""
    hint: str | None = None
