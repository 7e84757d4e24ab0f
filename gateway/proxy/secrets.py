"""Keys: which ones a client presents, who may see them, and how they are kept out of everything we write."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from gateway.proxy.wire import RequestHead
from gateway.upstreams import Head, Headers

CREDENTIAL_HEADERS = frozenset({
    b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key", b"ocp-apim-subscription-key",
    b"proxy-authorization",
})  # fmt: skip
"""Headers that carry keys, of every vendor: a client may send one vendor's header along with another's."""

_MAY_CARRY_KEYS = CREDENTIAL_HEADERS | {b"sec-websocket-protocol"}
_STAYS_HOME = CREDENTIAL_HEADERS | {b"cookie", b"openai-organization", b"openai-project"}
_KEY_PARAMETERS = frozenset({b"key", b"api_key", b"api-key", b"apikey", b"access_token", b"subscription-key"})
_SUBPROTOCOL = b"openai-insecure-api-key."
_SHORTEST = 8
"""Shorter ones are placeholders, like `none`: blanking them out would only damage the record."""
_STEP = 1024 * 1024
_LONGEST = 2048
"""Longer keys and names are not remembered: whoever makes them up could fill the memory with them."""

T = TypeVar("T")


def _remembered(make: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """What `make` makes of a key, made once for each but the longest."""
    kept = functools.lru_cache(4096)(make)

    def found(secret: bytes) -> T:
        return kept(secret) if len(secret) <= _LONGEST else make(secret)

    return found


def presented(head: RequestHead) -> tuple[bytes, ...]:
    """Every key in a request's headers and query, as bare values, without what is too short to be one."""
    found: list[bytes] = []
    if not _MAY_CARRY_KEYS.isdisjoint(head.first):
        for name, value in head.headers:
            lower = name.lower()
            if lower in CREDENTIAL_HEADERS:
                parts = value.split()  # also at a tab, and without the blanks that the parser leaves at the end
                found += parts[1:] or parts if lower.endswith(b"authorization") else parts
            elif lower == b"sec-websocket-protocol":
                tokens = _tokens(value)
                found += [token[len(_SUBPROTOCOL) :] for token in tokens if token.startswith(_SUBPROTOCOL)]
    if b"?" in head.target:
        for pair in head.target.partition(b"?")[2].split(b"&"):
            name, _, value = pair.partition(b"=")
            if unquote_to_bytes(name).lower() in _KEY_PARAMETERS:
                found += [value, unquote_to_bytes(value)]
    return tuple(dict.fromkeys(secret for secret in found if len(secret) >= _SHORTEST))


def key_id(secrets: tuple[bytes, ...]) -> str | None:
    """A short name for a client's first key that cannot be turned back into it."""
    return _id_of(secrets[0]) if secrets else None


@_remembered
def _id_of(secret: bytes) -> str:
    return hashlib.blake2b(secret, digest_size=6, person=b"unprompt-key").hexdigest()


def without_keys(headers: Headers) -> Headers:
    """The headers that another vendor may see, or the same vendor that is asked with a key of our own."""
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower in _STAYS_HOME:
            continue
        if lower == b"sec-websocket-protocol" and _SUBPROTOCOL in value:
            value = b", ".join(token for token in _tokens(value) if not token.startswith(_SUBPROTOCOL))
        kept.append((name, value))
    return kept


def path_without_keys(path: bytes) -> bytes:
    """The same path and query, but for parameters that carry keys."""
    bare, mark, query = path.partition(b"?")
    if not mark:
        return path
    pairs = query.split(b"&")
    kept = [p for p in pairs if unquote_to_bytes(p.partition(b"=")[0]).lower() not in _KEY_PARAMETERS]
    return path if len(kept) == len(pairs) else bare + (mark + b"&".join(kept) if kept else b"")


def blank_out(data: bytes, secrets: Iterable[bytes], *, cut: bool = False) -> bytes:
    """The same bytes with every secret overwritten by asterisks (same length).

    `cut`: the data ends where it was cut, and a secret that begins in it may end beyond it.
    """
    if len(data) > _STEP and not cut and not _any_stands_in(data, secrets):
        return data
    for form in chain.from_iterable(map(_forms, secrets)):
        data = data.replace(form, b"*" * len(form))  # the same object where there is none
        if cut:
            data = _blank_tail(data, form)
    return data


def _any_stands_in(data: bytes, secrets: Iterable[bytes]) -> bool:
    """Looked for in steps: a search through all of a large body would let no other thread run."""
    forms = [form for secret in secrets for form in _forms(secret)]
    return any(
        data.find(form, start, start + _STEP + len(form) - 1) >= 0
        for form in forms
        for start in range(0, len(data), _STEP)
    )


def blank_text(text: str, secrets: tuple[bytes, ...]) -> str:
    """The same for text that came as Latin-1 or UTF-8; remembered, since names come again and again."""
    if len(text) > _LONGEST or sum(map(len, secrets)) > _LONGEST:
        return _blanked(text, secrets)
    return _blanked_once(text, secrets)


def _blanked(text: str, secrets: tuple[bytes, ...]) -> str:
    for secret in secrets:
        readable = _readable(secret)
        if readable in text:
            text = text.replace(readable, "*" * len(readable))
    return text


_blanked_once = functools.lru_cache(16_384)(_blanked)


def any_stands_in(text: str, secrets: tuple[bytes, ...]) -> bool:
    """Whether `blank_text` would change it."""
    return any(_readable(secret) in text for secret in secrets)


@_remembered
def _readable(secret: bytes) -> str:
    return secret.decode("latin-1")


@_remembered
def _forms(secret: bytes) -> tuple[bytes, ...]:
    """A secret as it stands in plain text, and as JSON encoders write it."""
    readable = secret.decode("latin-1")
    escaped = json.dumps(readable)[1:-1]
    return tuple(dict.fromkeys([secret, escaped.encode(), escaped.replace("/", "\\/").encode()]))


def _blank_tail(data: bytes, secret: bytes) -> bytes:
    for length in range(min(len(secret) - 1, len(data)), 3, -1):
        if data.endswith(secret[:length]):
            return data[:-length] + b"*" * length
    return data


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.split(b",")]


class Blanker:
    """Blanks secrets out of a stream of pieces, also where one is split over two of them.

    Holds back at most what may be the beginning of a secret, so that a stream goes on flowing.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._forms = [form for secret in secrets for form in _forms(secret)]
        self._held = b""

    def head(self, head: Head) -> Head:
        """An answer's head as the client may see it."""
        raw = head.raw
        for form in self._forms:
            raw = raw.replace(form, b"*" * len(form))
        return head if raw is head.raw else Head(head.status, raw, head.first, head.length, head.plain)

    def feed(self, piece: bytes, *, last: bool) -> bytes:
        """What may leave now."""
        data = self._held + piece
        for form in self._forms:
            data = data.replace(form, b"*" * len(form))
        held = 0 if last else max((_overlap(data, form) for form in self._forms), default=0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]


def _overlap(data: bytes, secret: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `secret`."""
    longest = min(len(secret) - 1, len(data))
    return next((size for size in range(longest, 0, -1) if data.endswith(secret[:size])), 0)
