"""HTTP heads: which headers pass, where a path leads, how an answer is framed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from gateway.errors import BadRequest, UnknownPath
from gateway.upstreams import Head, Headers

HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
    b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""RFC 9110 section 7.6.1, and the old `Keep-Alive` and `Proxy-Connection`."""

_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_OWN = b"x-unprompt-"
_DOTS = re.compile(rb"(?i)(?:^|[/\\])(?:\.|%2e){1,2}(?:[/\\?]|%2f|%5c|$)")


class RequestHead(msgspec.Struct, eq=False):
    """A client's request line and headers as they came."""

    method: bytes
    target: bytes
    headers: Headers
    keep_alive: bool
    http_1_0: bool = False

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class Place(msgspec.Struct, frozen=True):
    """Where a request target leads: `path` is what follows the provider's base URL, query included."""

    provider: str
    path: bytes
    endpoint: str


def locate(target: bytes, providers: Mapping[str, bytes], default: str) -> Place:
    """Which provider a request target means. `providers` maps names to their base URL's path.

    Raises:
        BadRequest: dot segments, back slashes or control bytes, which could leave the provider's prefix.
        UnknownPath: neither `/v1/...` nor `/{provider}/...`.
    """
    if not target.startswith(b"/"):  # absolute form: only its path counts, never its host
        scheme, _, rest = target.partition(b"://")
        if scheme.lower() not in (b"http", b"https") or b"/" not in rest:
            raise UnknownPath("the request target must be a path, like /v1/chat/completions")
        target = rest[rest.index(b"/") :]
    path = target.partition(b"?")[0]
    if _DOTS.search(path) or b"\\" in path or b"%00" in path or any(byte <= 0x20 or byte == 0x7F for byte in path):
        raise BadRequest("the path has dot segments, back slashes or control characters; send it normalised")
    segment = path[1:].partition(b"/")[0]
    name = segment.decode("latin-1")
    if name == "v1":
        return Place(default, _join(providers[default], target), path.decode("latin-1"))
    if name in providers:
        rest = target[1 + len(segment) :]
        rest = rest if rest.startswith(b"/") else b"/" + rest
        return Place(name, _join(providers[name], rest), path[1 + len(segment) :].decode("latin-1") or "/")
    known = ", ".join(["/v1/...", *(f"/{provider}/..." for provider in providers)])
    raise UnknownPath(f"nothing answers for /{name[:40]}; known: {known}")


def _join(prefix: bytes, path: bytes) -> bytes:
    """An SDK's base URL ends in `/v1`, and a client that talks to us says `/v1` too: it stands once."""
    if prefix and (path == b"/v1" or path.startswith((b"/v1/", b"/v1?"))):
        return prefix + path[3:]
    return prefix + path


def forwarded(headers: Headers, *, without: frozenset[bytes] = frozenset()) -> Headers:
    """The headers that go on to the upstream, in their order and spelling."""
    named = _named_in_connection(headers)
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in _NOT_FORWARDED
        and lower not in named
        and lower not in without
        and not lower.startswith(_OWN)
    ]


def _named_in_connection(headers: Headers) -> frozenset[bytes]:
    values = [value for name, value in headers if name.lower() == b"connection"]
    tokens = {token.strip().lower() for value in values for token in value.split(b",")}
    return frozenset(tokens - {b"keep-alive", b"close", b"content-type", b"authorization"})


def secrets(headers: Headers, target: bytes, credentials: frozenset[bytes]) -> list[bytes]:
    """Every key that the client presents, as bare values, so that they can be kept out of what we write."""
    found = []
    for name, value in headers:
        if name.lower() in credentials or name.lower() == b"proxy-authorization":
            found.append(value.rpartition(b" ")[2])
    for pair in target.partition(b"?")[2].split(b"&"):
        name, _, value = pair.partition(b"=")
        if name.lower() in (b"key", b"api_key", b"api-key", b"access_token"):
            found.append(value)
    return [secret for secret in found if len(secret) >= 8]


def tags(value: bytes | None) -> dict[str, str]:
    """`x-unprompt-tags: k=v,k=v`; what is not of that form is left out."""
    pairs = (pair.partition("=") for pair in (value or b"").decode("utf-8", "replace").split(","))
    return {name.strip()[:64]: text.strip()[:256] for name, equals, text in pairs if equals and name.strip()}


def answer_head(head: Head, extra: Headers, *, chunked: bool, close: bool, date: bytes | None = None) -> bytes:
    """Status line and headers for the client, up to the empty line."""
    named = _named_in_connection(head.headers)
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += [
        name + b": " + value
        for name, value in head.headers
        if (lower := name.lower()) not in HOP_BY_HOP and lower not in named
    ]
    lines += [name + b": " + value for name, value in extra]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def own_answer(status: int, reason: bytes, headers: Headers, body: bytes) -> Head:
    """The head of an answer of our own."""
    framing = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    return Head(status, reason, [*framing, *headers], len(body))
