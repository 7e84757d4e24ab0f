"""Places to send a request to. Answers come back piece by piece, as they arrive, into a `Sink`."""

from __future__ import annotations

from typing import Protocol

import msgspec

from gateway.errors import UpstreamError

Headers = list[tuple[bytes, bytes]]

NOTED = frozenset({
    b"accept", b"anthropic-version", b"connection", b"content-encoding", b"content-length", b"content-type",
    b"date", b"keep-alive", b"openai-processing-ms", b"openai-version", b"proxy-authenticate",
    b"proxy-authorization", b"proxy-connection", b"request-id", b"retry-after", b"retry-after-ms", b"te",
    b"trailer", b"transfer-encoding", b"upgrade", b"user-agent", b"x-request-id", b"x-should-retry",
})  # fmt: skip
"""The headers of answers that anybody here asks for; all others are passed on unseen."""


def by_name(headers: Headers) -> dict[bytes, bytes]:
    """Each header's first value by lower-case name."""
    return {name.lower(): value for name, value in reversed(headers)}


def header_lines(headers: Headers) -> bytes:
    """Headers as they stand on the wire, each behind a line end."""
    return b"".join([b"\r\n%b: %b" % pair for pair in headers])


class Outgoing(msgspec.Struct, kw_only=True, eq=False):
    """A request for an upstream. `lines` are its end-to-end headers as `header_lines` gives them; `Host` and
    framing are the upstream's to add.

    `body` None means that the body follows through `Call.write`. `length` None frames it as chunked, also
    where the body is given. With `websocket` the connection becomes a tunnel when the upstream answers 101:
    what follows in both directions is raw. `text` is the stripped input for a model in this process. Below
    `min_confidence` a model abstains: one in this process (`embedded`), or one that says how sure it was of each
    token (`selective`).
    """

    method: bytes
    path: bytes
    lines: bytes
    body: bytes | None = b""
    length: int | None = 0
    has_body: bool = False
    websocket: bool = False
    model: str | None = None
    text: str | None = None
    streamed: bool = False
    wants_usage: bool = False
    min_confidence: float = 0.0

    @property
    def uploads(self) -> bool:
        """Whether bytes follow after the head: a streamed body, or a tunnel's."""
        return self.body is None or self.websocket


class Head:
    """Status line and headers of an answer. `length` None: not known before the end.

    `raw` is how they came, without the last line end; `first` has the first value of each header in `NOTED`, by its
    lower-case name, and of an answer of our own each header's.
    `plain`: it is known that each header stands once, on one line of its own.
    """

    __slots__ = ("first", "length", "plain", "raw", "status")

    def __init__(
        self, status: int, raw: bytes, first: dict[bytes, bytes], length: int | None, plain: bool = False
    ) -> None:
        self.status, self.raw, self.first, self.length, self.plain = status, raw, first, length, plain

    @classmethod
    def of(cls, status: int, reason: bytes, headers: Headers, length: int | None) -> Head:
        """From its parts."""
        raw = b"HTTP/1.1 %d %b" % (status, reason) + header_lines(headers)
        return cls(status, raw, by_name(headers), length)


class Sink(Protocol):
    """Who receives an answer. After `done` or a failure nothing more is called."""

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        """The head once, with the first call; then the body's pieces as they arrive."""
        ...

    def on_chunk(self, framed: bytes, piece: bytes) -> None:
        """`on_data` for a further piece that came in whole chunks: `framed` is those chunks as they came."""
        ...

    def on_interim(self, head: Head) -> None:
        """An interim answer (1xx, but `100 Continue` and `101`), before the answer itself."""
        ...

    def on_failure(self, error: UpstreamError) -> None:
        """There will be no (further) answer."""
        ...

    def on_upload(self, ready: bool) -> None:
        """Whether more of a streamed request body can be taken now."""
        ...


class Call(Protocol):
    """A request under way. Its sink may hear of it before `Upstream.send` has returned it."""

    def write(self, piece: bytes) -> None: ...
    def write_end(self) -> None:
        """The request body is whole; a tunnel is closed when all that was written has left."""
        ...

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None:
        """Stop; the sink hears nothing more."""
        ...


class Upstream(Protocol):
    """A place to send requests to."""

    name: str

    def send(self, request: Outgoing, sink: Sink, *, connect_timeout: float) -> Call:
        """Start a request. Never raises for what the upstream does; see `Sink.on_failure`."""
        ...

    async def close(self) -> None: ...
