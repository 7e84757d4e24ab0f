"""What all exchanges of a process share, and whom an exchange serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from gateway.domain.price import PriceBook
from gateway.providers import Provider
from gateway.providers.stream_usage import StreamUsage, may_ask
from gateway.proxy import asked
from gateway.proxy.asked import Asked
from gateway.proxy.attempts import Guard
from gateway.proxy.capture import Capture
from gateway.proxy.record import Seen
from gateway.proxy.router import Plan, Switchboard
from gateway.proxy.wire import RequestHead
from gateway.upstreams import Upstream
from gateway.upstreams.outbox import Outbox


class Client(Protocol):
    """The client's connection, as far as an exchange needs it."""

    def write(self, data: bytes) -> None: ...
    def finish(self, *, keep_alive: bool) -> None: ...
    def cut(self, *, flush: bool) -> None: ...
    def upload(self, ready: bool) -> None: ...


class UnderWay(Protocol):
    """An exchange that has not ended yet."""

    @property
    def is_tunnel(self) -> bool: ...
    def tick(self, now: float) -> None: ...
    def stop(self) -> None: ...


class Served(msgspec.Struct, frozen=True):
    """A client's exchange that has ended well. `number`: which of the plan's attempts answered it."""

    id: str
    asked: Asked
    plan: Plan
    number: int
    streamed: bool


class House(msgspec.Struct, kw_only=True, eq=False):
    """`switchboard` is replaced whole on a flip. `copied` is told of what ended well and is to be asked once more.
    `stream_usage`: by upstream, whether streams are asked for their usage, and the upstream's host."""

    default_provider: str
    prefixes: Mapping[str, bytes]
    providers: Mapping[str, Provider]
    keys: Mapping[str, str]
    upstreams: Mapping[str, Upstream]
    prices: PriceBook
    capture: Capture
    switchboard: Switchboard
    new_id: Callable[[], str]
    dice: Callable[[], float]
    observe: Callable[[Seen], None]
    stream_usage: Mapping[str, tuple[StreamUsage, str]] = {}
    guard: Guard = msgspec.field(default_factory=Guard)
    outbox: Outbox = msgspec.field(default_factory=Outbox)
    record_bodies: bool = True
    record_bytes: int = 16 * 1024 * 1024
    copied: Callable[[Served], None] = lambda served: None
    active: set[UnderWay] = msgspec.field(default_factory=set)

    def read(self, head: RequestHead) -> Asked:
        """What a request's head says, or why it is refused."""
        return asked.read(head, self.prefixes, self.providers, self.default_provider)

    def may_ask_usage(self, upstream: str, path: str) -> bool:
        """Whether a stream from there may be asked for its usage."""
        setting, host = self.stream_usage.get(upstream, ("leave", ""))
        return may_ask(setting, host, path)
