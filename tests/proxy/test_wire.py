"""Heads, pure: where a target leads, which headers pass."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.errors import BadRequest, GatewayError, UnknownPath
from gateway.proxy import wire
from gateway.proxy.wire import RequestHead
from gateway.upstreams import NOTED, Head

PREFIXES = {"openai": b"/v1", "deep": b"/api/openai/v1", "bare": b"", "a.b": b"/x"}
SEGMENTS = st.sampled_from(
    [b"..", b".", b"%2e%2E", b"%2e", b"a", b"v1", b"%2f", b"%5C", b"\\", b";", b"..;", b"", b"?", b"#",
     b"@evil.test", b"http://evil.test", b"%00", b"%", b"\xff", b"chat", b":"]
)  # fmt: skip
TARGETS = st.lists(SEGMENTS | st.binary(min_size=1, max_size=3), max_size=8).map(b"/".join) | st.binary(max_size=30)


def resolved(path: bytes) -> list[bytes]:
    """A path as the most obliging upstream could read it: decoded, back slashes turned, dots resolved."""
    done: list[bytes] = []
    for segment in re.split(rb"[/\\]", unquote_to_bytes(path)):
        bare = segment.split(b";")[0]
        if bare == b"..":
            done = done[:-1]
        elif bare != b".":
            done.append(segment)
    return done


@given(st.sampled_from(["", *PREFIXES, "v1"]), TARGETS)
@settings(max_examples=1500)
def test_no_target_leaves_its_providers_prefix(name: str, rest: bytes) -> None:
    target = b"/" + name.encode() + b"/" + rest if name else rest
    try:
        place = wire.locate(target, PREFIXES, "openai")
    except GatewayError:
        return
    prefix = PREFIXES[place.provider]
    path = place.path.partition(b"?")[0]
    assert path.startswith(prefix)
    assert resolved(path)[: len(prefix.split(b"/"))] == prefix.split(b"/")
    assert not re.search(rb"[\x00-\x20\x7f]", path)  # one request line stays one request line
    assert wire.join(prefix, place.rest) == place.path


@given(st.from_regex(rb"[A-Za-z0-9_~-]{1,9}(/[A-Za-z0-9_~%-]{1,9}){0,3}(\?[a-z=&%./]{0,9})?", fullmatch=True))
def test_an_ordinary_path_is_the_same_whichever_way_it_is_named(path: bytes) -> None:
    assume(b"%" not in path.partition(b"?")[0])
    bare = wire.locate(b"/v1/" + path, PREFIXES, "openai")
    assert bare.path == b"/v1/" + path
    assert wire.locate(b"/openai/v1/" + path, PREFIXES, "bare").path == bare.path
    assert wire.locate(b"/openai/" + path, PREFIXES, "bare").path == bare.path
    assert wire.locate(b"https://some.host/v1/" + path, PREFIXES, "openai") == bare
    assert wire.locate(b"/deep/v1/" + path, PREFIXES, "openai").path == b"/api/openai/v1/" + path
    assert bare.endpoint == "/v1/" + path.partition(b"?")[0].decode()


@pytest.mark.parametrize("target", [b"", b"*", b"/", b"/v2/x", b"example.test:443", b"ftp://x/v1/y", b"//v1/x"])
def test_what_leads_nowhere_is_told_so(target: bytes) -> None:
    with pytest.raises(UnknownPath, match="/v1"):
        wire.locate(target, PREFIXES, "openai")


def test_who_comes_with_a_browser_is_told_where_the_pages_are() -> None:
    with pytest.raises(UnknownPath, match="for people: /unprompt/"):
        wire.locate(b"/", PREFIXES, "openai")


@pytest.mark.parametrize(
    "target", [b"/v1/../x", b"/v1/x/..", b"/v1/%2E./x", b"/v1/a b", b"/v1/a\\x", b"/v1/%2f%2e%2e"]
)
def test_what_could_lead_elsewhere_is_refused(target: bytes) -> None:
    with pytest.raises(BadRequest, match="normalised"):
        wire.locate(target, PREFIXES, "openai")


def test_headers_pass_in_their_order_and_spelling_but_for_those_of_the_connection() -> None:
    head = RequestHead(b"GET", b"/", [
        (b"hOsT", b"a"), (b"X-A", b"1"), (b"Connection", b"x-b, Authorization"), (b"x-B", b"2"), (b"x-a", b"3"),
        (b"Authorization", b"k"), (b"X-Unprompt-Log", b"off"), (b"Transfer-Encoding", b"chunked"),
        (b"Expect", b"x"),
    ], keep_alive=True)  # fmt: skip
    assert wire.forwarded(head) == [(b"X-A", b"1"), (b"x-a", b"3"), (b"Authorization", b"k")]
    assert (head.header(b"x-a"), head.header(b"none")) == (b"1", None)


HEADERS_OF_ANSWERS = [
    b"Connection: keep-alive", b"connection: close", b"Connection: X-Left", b"Transfer-Encoding: chunked",
    b"transfer-encoding: chunked", b"Transfer-Encoding:chunked", b"Keep-Alive: timeout=5", b"Upgrade: h2c",
    b"TE: trailers", b"Content-Type: text/plain", b"X-Left: Connection: keep-alive",
    b"X-Transfer-Encoding: chunked", b"X-Empty: ",
]  # fmt: skip


@given(st.lists(st.sampled_from(HEADERS_OF_ANSWERS), unique_by=lambda line: line.split(b":")[0].lower()))
@settings(max_examples=1000)
def test_headers_of_the_connection_go_from_a_plain_answer_as_from_any(lines: list[bytes]) -> None:
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    first = {name: value for name, value in pairs if name in NOTED}
    raw = b"\r\n".join([b"HTTP/1.1 200 OK", *lines])
    plain, other = Head(200, raw, first, None, plain=True), Head(200, raw, first, None)
    assert wire.answer_head(plain, b"", chunked=True) == wire.answer_head(other, b"", chunked=True)


def test_an_answer_leaves_without_the_headers_of_its_connection() -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nConnection: keep-alive"
    head = Head(200, raw, {b"transfer-encoding": b"chunked", b"connection": b"keep-alive"}, None, plain=True)
    assert wire.answer_head(head, b"") == b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n"


@given(st.text(max_size=400))
def test_no_text_can_end_a_header(text: str) -> None:
    head = Head.of(200, b"OK", [], 0)
    made = wire.answer_head(head, b"\r\nx-unprompt-target: " + wire.header_value(text))
    assert re.fullmatch(rb"HTTP/1.1 200 OK\r\nx-unprompt-target: [\x21-\x7e]*\r\n\r\n", made)


@given(st.binary(max_size=80))
def test_tags_are_read_or_left_out(value: bytes) -> None:
    assert all(name and len(name) <= 64 for name in wire.tags(value))
    assert wire.tags(b"a=1, b = x=y ,c,=d") == {"a": "1", "b": "x=y"}
