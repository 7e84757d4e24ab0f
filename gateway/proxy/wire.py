"""HTTP heads: which headers pass, where a path leads, how an answer is framed."""

from __future__ import annotations

import functools
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
_DOTS = re.compile(rb"(?i)(?:^|[/\\]|%2f|%5c)(?:\.|%2e){2}(?:[/\\?;]|%2f|%5c|%3b|$)")
_CONTROL = re.compile(rb"[\x00-\x20\x7f]")


class RequestHead:
    """A client's request line and headers as they came, and each header's first value by lower-case name.

    One value may stand for many requests that differ in their `Content-Length` alone: see `heads`.
    """

    __slots__ = ("chunked", "expects", "first", "has_body", "headers", "http_1_0", "keep_alive", "method",
                 "offers_websocket", "streams", "target")  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, *, keep_alive: bool, http_1_0: bool = False
    ) -> None:
        self.method, self.target, self.headers = method, target, headers
        self.keep_alive, self.http_1_0 = keep_alive, http_1_0
        first = self.first = by_name(headers)
        self.chunked = b"transfer-encoding" in first
        self.has_body = self.chunked or b"content-length" in first
        self.streams = self.has_body and b"json" not in first.get(b"content-type", b"json").lower()
        """Whether the body is passed on as it comes: nothing but JSON is ever looked into."""
        self.expects = first.get(b"expect", b"").lower() == b"100-continue" and not http_1_0
        self.offers_websocket = self._offers_websocket()

    @property
    def length(self) -> int | None:
        """The body's length in bytes, None where it comes chunked."""
        return None if self.chunked else int(self.first.get(b"content-length", 0))

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return self.first.get(name)

    def text(self, name: bytes) -> str | None:
        """The same as text; None where it is absent or empty."""
        value = self.first.get(name)
        return value.decode("utf-8", "replace") if value else None

    def _offers_websocket(self) -> bool:
        """Whether the client asks for the connection to become a tunnel (RFC 6455)."""
        first = self.first
        if first.get(b"upgrade", b"").lower() != b"websocket" or self.method != b"GET" or self.http_1_0:
            return False
        has_body = b"transfer-encoding" in first or first.get(b"content-length", b"0") != b"0"
        tokens = [token.strip().lower() for token in first.get(b"connection", b"").split(b",")]
        return b"upgrade" in tokens and not has_body


def objection(head: RequestHead, version: str) -> str | None:
    """Why a head that could be parsed is no request that may be relayed: each is a way to smuggle another one
    past us, or has no meaning for a relay (RFC 9112, sections 3.2 and 6.1; RFC 9110, section 9.3)."""
    if version not in ("1.0", "1.1"):
        return f"HTTP/{version} is not spoken here; use HTTP/1.1"
    if head.method in (b"CONNECT", b"TRACE", b"PRI"):
        return f"{head.method.decode()} is not relayed"
    codings = [value.strip().lower() for name, value in head.headers if name.lower() == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or head.http_1_0):
        return "Transfer-Encoding may only be 'chunked', once, and not with HTTP/1.0"
    hosts = sum(name.lower() == b"host" for name, _ in head.headers)
    if hosts > 1 or (hosts == 0 and not head.http_1_0):
        return "a request has one Host header"
    return None


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
    if b"#" in target:
        raise BadRequest("a request target has no fragment (RFC 9112, section 3.2); send the path without its '#'")
    segment = path[1:].partition(b"/")[0]
    name = segment.decode("latin-1")
    if name == "v1":
        return _place(default, providers[default], target)
    if name in providers:
        rest = target[1 + len(segment) :]
        return _place(name, providers[name], rest if rest.startswith(b"/") else b"/" + rest)
    known = ", ".join(["/v1/...", *(f"/{provider}/..." for provider in providers)])
    raise UnknownPath(f"nothing answers for this path; known: {known}; for people: /unprompt/")


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


def answer_head(head: Head, extra: bytes, *, chunked: bool = False, close: bool = False) -> bytes:
    """Status line and headers for the client, up to the empty line. `extra`: header lines of our own."""
    hops = HOP_BY_HOP.intersection(head.first)
    raw = _end_to_end(head, hops) if hops else head.raw
    framing = b"\r\nTransfer-Encoding: chunked" if chunked else b""
    if head.status == 101:
        framing += b"\r\nConnection: Upgrade\r\nUpgrade: " + head.first.get(b"upgrade", b"websocket")
    elif close:
        framing += b"\r\nConnection: close"
    return b"".join((raw, extra, framing, b"\r\n\r\n"))


def _end_to_end(head: Head, hops: frozenset[bytes]) -> bytes:
    """An answer's head without its hop-by-hop headers, of which it has `hops`."""
    raw = head.raw
    if head.plain and head.first.get(b"connection", b"close") in _NAMES_NO_HEADER:
        for hop in hops:
            at = raw.find(_SPELLED.get(hop, b"\r\n\r\n"))  # the default stands in no head
            if at < 0:
                break
            behind = raw.find(b"\r\n", at + 2)
            raw = raw[:at] + (raw[behind:] if behind > 0 else b"")
        else:
            return raw
    lines = head.raw.split(b"\r\n")
    pairs = [(line.partition(b":")[0].strip().lower(), line) for line in lines[1:]]
    named = _named_in_connection([(name, line.partition(b":")[2]) for name, line in pairs])
    dropped = HOP_BY_HOP | named if named else HOP_BY_HOP
    return b"\r\n".join([lines[0], *(line for name, line in pairs if name not in dropped)])


_NAMES_NO_HEADER = (b"keep-alive", b"close")
_SPELLED = {
    b"connection": b"\r\nConnection: ", b"transfer-encoding": b"\r\nTransfer-Encoding: ",
    b"keep-alive": b"\r\nKeep-Alive: ",
}  # fmt: skip
"""The hop-by-hop headers that nearly all answers have none but, as nearly all write them."""


def own_answer(status: int, reason: bytes, headers: Headers, body: bytes) -> Head:
    """The head of an answer of our own."""
    framing = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    return Head.of(status, reason, [*framing, *headers], len(body))


_NOT_IN_A_HEADER = re.compile(r"[^\x21-\x7e]")
_LONGEST_VALUE = 256


def header_value(text: str) -> bytes:
    """Text of a client or a file as a header value: whatever could end the header or the line is replaced."""
    return _NOT_IN_A_HEADER.sub("?", text[:_LONGEST_VALUE]).encode("ascii")


def target_line(label: str, stripped: bool) -> bytes:
    """The header line that says who answered, and whether the prompt was stripped."""
    return _target_line(label[:_LONGEST_VALUE], stripped)  # a label has the model's name as the client wrote it


@functools.lru_cache(1024)
def _target_line(label: str, stripped: bool) -> bytes:
    return b"\r\nx-unprompt-target: " + header_value(label) + (b" stripped" if stripped else b" whole")
