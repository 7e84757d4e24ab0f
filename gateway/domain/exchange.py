"""An exchange: one recorded request and its response.

It is recorded in two halves. `Begin` is on disk before the upstream is called, `End` before the last
byte leaves for the client; `Exchange` is the row that the two make. A begin without an end is an
exchange that was under way when something died: a row with `complete` false.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import Literal

import msgspec

UsageSource = Literal["upstream", "estimated", "none"]


class Outcome(StrEnum):
    """How an exchange ended. The list is closed; every value but `ok` is also its `error_type`.

    `policy_limit`: the gateway turned it away, since a limit that was set for it is reached.
    """

    OK = "ok"
    CALLER_ERROR = "caller_error"
    POLICY_LIMIT = "policy_limit"
    CALLER_CANCELLED = "caller_cancelled"
    UPSTREAM_HTTP_4XX = "upstream_http_4xx"
    UPSTREAM_HTTP_5XX = "upstream_http_5xx"
    UPSTREAM_CONNECT = "upstream_connect"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    INTERNAL = "internal"
    OTHER = "other"


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Billable tokens. `cached` is a part of `input`, `reasoning` a part of `output`."""

    input: int | None = None
    cached: int | None = None
    output: int | None = None
    reasoning: int | None = None
    source: UsageSource = "none"


class Begin(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What is known before the upstream is called. `started_at` is in seconds since the epoch.

    `copy_of`: the client's own exchange whose request the gateway repeats here, for an audit or a shadow.
    """

    id: str
    started_at: float
    method: str
    endpoint: str
    provider: str
    route: str | None
    task: str | None
    task_hint: str | None
    model_requested: str | None
    key_id: str | None
    tags: dict[str, str]
    request_headers: dict[str, str]
    request: bytes
    request_truncated: bool = False
    copy_of: str | None = None


class End(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What is known when the response is over. Times are in milliseconds, from a monotonic clock."""

    id: str
    target: str | None
    stripped: bool
    status: int
    streamed: bool
    complete: bool
    error_type: str | None
    latency_ms: float
    ttft_ms: float | None
    model_served: str | None
    finish_reason: str | None
    usage: Usage
    cost_usd: float | None
    attempts: list[str]
    response_headers: dict[str, str]
    response: bytes
    response_truncated: bool = False


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table `exchanges`; the names are the columns."""

    id: str
    started_at: float
    route: str | None = None
    task: str | None = None
    task_version: int | None = None
    task_hint: str | None = None
    provider: str = ""
    method: str = "POST"
    endpoint: str = ""
    model_requested: str | None = None
    model_served: str | None = None
    target: str | None = None
    stripped: bool = False
    status: int | None = None
    streamed: bool = False
    complete: bool = False
    error_type: str | None = None
    finish_reason: str | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_source: str = "none"
    cost_usd: float | None = None
    tags: dict[str, str] = {}
    key_id: str | None = None
    attempts: list[str] = []
    request_headers: dict[str, str] = {}
    response_headers: dict[str, str] = {}
    request: bytes = b""
    response: bytes = b""
    truncated: bool = False
    copy_of: str | None = None

    @classmethod
    def of(cls, begin: Begin, end: End | None) -> Exchange:
        """The row that the two halves make."""
        first = cls(
            id=begin.id,
            started_at=begin.started_at,
            route=begin.route,
            task=begin.task,
            task_hint=begin.task_hint,
            provider=begin.provider,
            method=begin.method,
            endpoint=begin.endpoint,
            model_requested=begin.model_requested,
            tags=begin.tags,
            key_id=begin.key_id,
            request_headers=begin.request_headers,
            request=begin.request,
            truncated=begin.request_truncated,
            copy_of=begin.copy_of,
        )
        return first if end is None else first.ended(end)

    def ended(self, end: End) -> Exchange:
        """This exchange with its second half."""
        return msgspec.structs.replace(
            self,
            model_served=end.model_served,
            target=end.target,
            stripped=end.stripped,
            status=end.status,
            streamed=end.streamed,
            complete=end.complete,
            error_type=end.error_type,
            finish_reason=end.finish_reason,
            latency_ms=end.latency_ms,
            ttft_ms=end.ttft_ms,
            input_tokens=end.usage.input,
            cached_tokens=end.usage.cached,
            output_tokens=end.usage.output,
            reasoning_tokens=end.usage.reasoning,
            usage_source=end.usage.source,
            cost_usd=end.cost_usd,
            attempts=end.attempts,
            response_headers=end.response_headers,
            response=end.response,
            truncated=self.truncated or end.response_truncated,
        )


def id_maker(clock: Callable[[], float] = time.time) -> Callable[[], str]:
    """A function that gives time-ordered unique ids, in the form of UUID version 7 (RFC 9562).

    The 12 bits after the version count the ids of one millisecond, so ids of one process keep their order
    whatever the clock does.
    """
    last, sequence, opening = 0, 0, ""
    bits = random.Random(os.urandom(32)).getrandbits  # unique among processes; nothing relies on its secrecy

    def new_id() -> str:
        nonlocal last, sequence, opening
        now = int(clock() * 1000)
        if now > last:
            last, sequence, opening = now, 0, _opening(now)
        elif sequence < 0xFFF:
            sequence += 1
        else:  # 4,096 ids in this millisecond: borrow from the next one
            last, sequence, opening = last + 1, 0, _opening(last + 1)
        tail = f"{_VARIANT | bits(62):016x}"
        return f"{opening}{sequence:03x}-{tail[:4]}-{tail[4:]}"

    return new_id


_VARIANT = 0b10 << 62


def _opening(milliseconds: int) -> str:
    """What the ids of one millisecond begin with: the time and the version."""
    stamp = f"{milliseconds:012x}"
    return f"{stamp[:8]}-{stamp[8:]}-7"


_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_LENGTH = 64


def task_name(hint: str | None) -> str | None:
    """The app's own name for a task (`x-unprompt-task`) as a task may be called, None where there is none.

    What comes out is safe in a file name, in `strip: TASK@VERSION` and in a metric; a name is its own name.
    One of which nothing readable is left (`..`, or a script other than Latin) gets a name made of its hash.
    """
    if hint is None or not hint.strip():
        return None
    name = _NO_NAME.sub("-", hint)[:_NAME_LENGTH].strip("-.")
    if any(letter.isalnum() for letter in name):
        return name
    plain = unicodedata.normalize("NFC", hint).encode("utf-8", "surrogatepass")
    return f"task-{hashlib.sha256(plain).hexdigest()[:8]}"
