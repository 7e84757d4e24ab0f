"""Wire formats: bytes in, nouns out. No sockets here. One file per protocol; its name is the `protocol:`."""

from __future__ import annotations

import importlib
from typing import Annotated, Protocol

import msgspec

from gateway.domain.exchange import Usage
from gateway.providers.answers import Answer


class RequestFacts(msgspec.Struct, frozen=True):
    """What a route and a metric need of a request."""

    model: str | None = None
    streamed: bool = False


class ResponseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the books need of a response. `failed`: it says that it is an error, whatever its status was."""

    model: str | None = None
    finish_reason: str | None = None
    usage: Usage = Usage()
    failed: bool = False


class Provider(Protocol):
    """One wire format."""

    name: str

    def key_header(self, key: str) -> tuple[bytes, bytes]:
        """The header that presents our own key."""
        ...

    def operation(self, path: str) -> str:
        """OpenTelemetry's `gen_ai.operation.name` for this path, or `other`."""
        ...

    def read_request(self, path: str, body: bytes) -> RequestFacts:
        """Never raises: what cannot be read is None."""
        ...

    def read_response(self, body: bytes, *, streamed: bool) -> ResponseFacts:
        """From the whole body, or the tail of a stream. Never raises."""
        ...

    def read_answer(self, body: bytes, *, streamed: bool) -> Answer | None:
        """What the model said, from the whole recorded body; None where there is no answer in it. Offline."""
        ...

    def ends_stream(self, window: bytes) -> bool:
        """Whether a client may take its answer for whole with the event that begins in this part of a stream.

        `window` is a piece with the `WINDOW` bytes before it (at the very start: a line feed). Asked of each piece:
        `partition` finds bytes for half of what `in` takes, which tries them as a number first (CPython 3.11).
        """
        ...

    def aim(self, path: bytes, model: str) -> bytes:
        """The same path for another model, where the path names one."""
        ...

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """An error of our own in this provider's shape (JSON)."""
        ...


WINDOW = 64
"""How many bytes before a piece `ends_stream` must see: the longest mark may be split over two pieces."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
"""A number of tokens; an upstream that claims more has sent nonsense that no store can hold."""


def load(protocol: str) -> Provider:
    """The wire format of this name (checked by the config)."""
    provider: Provider = importlib.import_module(f"{__name__}.{protocol}").build()
    return provider
