"""HTTP heads: which headers pass, where a path leads, how an answer is framed."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from gateway.errors import BadRequest, UnknownPath
from gateway.upstreams import Head, Headers, by_name

HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection",
    b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""RFC 9110 section 7.6.1, and the old `Keep-Alive` and `Proxy-Connection`."""

_NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_NEVER_BY_CONNECTION = frozenset({b"keep-alive", b"close", b"content-type", b"authorization"})
_OWN = b"x-unprompt-"
_DOTS = re.compile(rb"(?i)(?:^|[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\?;]|%2f|%5c|%3b|$)")
_CONTROL = re.compile(rb"[\x00-\x20\x7f]")


class RequestHead:
    """A client's request line and headers as they came, and each header's first value by lower-case name."""

    __slots__ = ("first", "headers", "http_1_0", "keep_alive", "method", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, *, keep_alive: bool, http_1_0: bool = False
    ) -> None:
        self.method, self.target, self.headers = method, target, headers
        self.keep_alive, self.http_1_0 = keep_alive, http_1_0
        self.first = by_name(headers)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return self.first.get(name)

    def text(self, name: bytes) -> str | None:
        """The same as text; None where it is absent or empty."""
        value = self.first.get(name)
        return value.decode("utf-8", "replace") if value else None

    @property
    def offers_websocket(self) -> bool:
        """Whether the client asks for the connection to become a tunnel (RFC 6455)."""
        first = self.first
        if first.get(b"upgrade", b"").lower() != b"websocket" or self.method != b"GET" or self.http_1_0:
            return False
        has_body = b"transfer-encoding" in first or first.get(b"content-length", b"0") != b"0"
        tokens = [token.strip().lower() for token in first.get(b"connection", b"").split(b",")]
        return b"upgrade" in tokens and not has_body


class Place(msgspec.Struct, frozen=True):
    """Where a request target leads: `path` is what follows the provider's host, query included; `rest` is the
    target without the provider's name; `endpoint` is `rest` without its query."""

    provider: str
    path: bytes
    rest: bytes
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
    if _DOTS.search(path) or b"\\" in path or b"%00" in path or _CONTROL.search(path):
        raise BadRequest("the path has dot segments, back slashes or control characters; send it normalised")
    segment = path[1:].partition(b"/")[0]
    name = segment.decode("latin-1")
    if name == "v1":
        return _place(default, providers[default], target)
    if name in providers:
        rest = target[1 + len(segment) :]
        return _place(name, providers[name], rest if rest.startswith(b"/") else b"/" + rest)
    known = ", ".join(["/v1/...", *(f"/{provider}/..." for provider in providers)])
    raise UnknownPath(f"nothing answers for this path; known: {known}")


def _place(provider: str, prefix: bytes, rest: bytes) -> Place:
    return Place(provider, join(prefix, rest), rest, rest.partition(b"?")[0].decode("latin-1"))


def join(prefix: bytes, path: bytes) -> bytes:
    """An SDK's base URL ends in `/v1`, and a client that talks to us says `/v1` too: it stands once."""
    if prefix and (path == b"/v1" or path.startswith((b"/v1/", b"/v1?"))):
        return prefix + path[3:]
    return prefix + path


def forwarded(head: RequestHead) -> Headers:
    """The headers that go on to the upstream, in their order and spelling."""
    dropped = _NOT_FORWARDED | _named_in_connection(head.headers) if b"connection" in head.first else _NOT_FORWARDED
    return [
        pair for pair in head.headers if (lower := pair[0].lower()) not in dropped and not lower.startswith(_OWN)
    ]


def _named_in_connection(headers: Headers) -> set[bytes]:
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")} - _NEVER_BY_CONNECTION


def tags(value: bytes | None) -> dict[str, str]:
    """`x-unprompt-tags: k=v,k=v`; what is not of that form is left out."""
    pairs = (pair.partition("=") for pair in (value or b"").decode("utf-8", "replace").split(","))
    return {name.strip()[:64]: text.strip()[:256] for name, equals, text in pairs if equals and name.strip()}


def answer_head(head: Head, extra: Headers, *, chunked: bool = False, close: bool = False) -> bytes:
    """Status line and headers for the client, up to the empty line."""
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    if HOP_BY_HOP.isdisjoint(head.first):
        lines += [b"%b: %b" % pair for pair in head.headers]
    else:
        dropped = HOP_BY_HOP | _named_in_connection(head.headers) if b"connection" in head.first else HOP_BY_HOP
        lines += [b"%b: %b" % pair for pair in head.headers if pair[0].lower() not in dropped]
    lines += [b"%b: %b" % pair for pair in extra]
    if chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if head.status == 101:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + head.first.get(b"upgrade", b"websocket"))
    elif close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def own_answer(status: int, reason: bytes, headers: Headers, body: bytes) -> Head:
    """The head of an answer of our own."""
    framing = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    return Head(status, reason, [*framing, *headers], len(body))


_NOT_IN_A_HEADER = re.compile(r"[^\x21-\x7e]")


def header_value(text: str) -> bytes:
    """Text of a client or a file as a header value: whatever could end the header or the line is replaced."""
    return _NOT_IN_A_HEADER.sub("?", text[:256]).encode("ascii")
