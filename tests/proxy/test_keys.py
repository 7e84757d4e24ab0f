"""P7: a key goes to the vendor that the client called, and to no other vendor, file, log or page."""

from __future__ import annotations

import gzip
import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from relaying import CHAT, Upstream, Wire, answering, openai, relay, request, response, story, upstream

from gateway.providers.openai import OpenAI
from gateway.proxy import secrets, wire
from gateway.proxy.capture import kept_headers
from gateway.proxy.wire import RequestHead

KEY = b"sk-canary-Zq/7+x4Jw9=="
BEARER = b"Authorization: Bearer " + KEY
FORMS = (KEY, KEY.replace(b"/", b"\\/"), b"sk-canary", b"Zq/7")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def assert_nowhere(gateway: Any, log: pytest.LogCaptureFixture, keys: tuple[bytes, ...] = FORMS) -> None:
    places = {
        "files": gateway.everything_written(),
        "log": log.text.encode(),
        "metrics": (await gateway.metrics()).encode(),
    }
    assert {name for name, text in places.items() for key in keys if key in text} == set()
    assert b"chat/completions" in places["files"]  # and they are the right files


def echo(kind: str) -> list[bytes]:
    """Answers of an upstream that quotes the key, as pieces."""
    error = b'{"error":{"message":"Incorrect API key provided: ' + KEY + b'. Find yours at ..."}}'
    escaped = json.dumps({"error": {"message": KEY.decode()}}).replace("/", "\\/").encode()
    packed = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress}
    if kind in packed:
        return [response(packed[kind](error), b"Content-Encoding: " + kind.encode(), status=b"401 Unauthorized")]
    if kind == "stream":
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = b"data: " + error + b"\n\ndata: [DONE]\n\n"
        cut = data.index(KEY) + 9
        return [head + chunk(data[:cut]), chunk(data[cut:]) + b"0\r\n\r\n"]
    if kind == "cut short":
        whole = response(error, status=b"401 Unauthorized")
        return [whole[: whole.index(KEY) + 12]]
    if kind == "headers":
        return [response(b"{}", b"X-Request-Id: " + KEY, b"WWW-Authenticate: " + KEY)]
    if kind == "model":
        return [response(b'{"model":"' + KEY + b'","choices":[{"finish_reason":"' + KEY + b'"}],"usage":{}}')]
    return [response({"escaped": escaped}.get(kind, error), status=b"401 Unauthorized")]


@pytest.mark.parametrize(
    "kind", ["plain", "escaped", "gzip", "br", "zstd", "stream", "cut short", "headers", "model", "success"]
)
@story
async def test_an_upstream_that_quotes_the_key_puts_it_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    pieces = [response()] if kind == "success" else echo(kind)

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        for piece in pieces:
            await wire.send(piece)

    async with upstream(script) as up, relay(tmp_path, openai(up)) as gateway:
        body = CHAT[:-1] + b',"user":"' + KEY + b'"}'
        answer = await gateway.ask(request(
            body, BEARER, b"x-unprompt-tags: owner=" + KEY, b"x-unprompt-task: " + KEY, b"User-Agent: " + KEY,
        ))  # fmt: skip
        assert up.requests[0].header(b"authorization") == b"Bearer " + KEY  # its own vendor gets it
        assert up.requests[0].body == body
        if kind in ("plain", "stream"):
            assert KEY in answer.body  # what the upstream says to its client is relayed as it is
        row = await gateway.row()
        assert row.key_id is not None
        assert len(row.key_id) == 12
        if kind in ("plain", "gzip", "br", "zstd"):
            assert b"provided: " + b"*" * len(KEY) + b". Find yours" in row.response
            assert "content-encoding" not in row.response_headers
        await assert_nowhere(gateway, caplog)


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: %b ", b"Authorization: Bearer\t%b", b"Authorization:  Bearer  %b\t", b"x-api-key: %b ",
        b"api-key: %b\t", b"x-goog-api-key: other-key %b", b"x-api-key: %b and-more",
    ],
)  # fmt: skip
@story
async def test_blanks_around_a_key_hide_it_from_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    async with (
        upstream(answering(response(b'{"quoted":"' + KEY + b'"}'))) as up,
        relay(tmp_path, openai(up)) as gateway,
    ):
        await gateway.ask(request(CHAT[:-1] + b',"user":"' + KEY + b'"}', line % KEY))
        assert (await gateway.row()).key_id is not None
        await assert_nowhere(gateway, caplog)


@story
async def test_a_key_of_ours_comes_back_to_nobody_in_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "sk-our-own-key")
    for quoting in (response(b"{}", b"X-Said: sk-our-own-key"), response(b"{}", b"Location: /?key=sk-our-own-key")):
        async with upstream(answering(quoting)) as up:
            ours = {"ours": openai(up)["openai"] | {"api_key_env": "OUR_KEY"}}
            async with relay(tmp_path, ours) as gateway:
                answer = await gateway.ask(request(CHAT))
                assert up.requests[0].header(b"authorization") == b"Bearer sk-our-own-key"
                assert (answer.status, answer.body) == (200, b"{}")
                assert b"our-own-key" not in b"".join(value for _, value in answer.headers)
                assert answer.header(b"content-length") == b"2"


@story
async def test_a_compressed_request_hides_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packed = gzip.compress(CHAT[:-1] + b',"user":"' + KEY + b'"}')
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        await gateway.ask(request(packed, BEARER, b"Content-Encoding: gzip"))
        assert up.requests[0].body == packed
        row = await gateway.row()
        assert json.loads(row.request)["user"] == "*" * len(KEY)
        await assert_nowhere(gateway, caplog)
        damaged = b"\x1f\x8b" + KEY + packed
        await gateway.ask(request(damaged, BEARER, b"Content-Encoding: gzip"))
        assert gateway.rows()[1].request == b""  # what cannot be searched is not kept
        await assert_nowhere(gateway, caplog)


@pytest.mark.parametrize("path", [b"?key=", b"?alt=sse&KEY=", b"?%6bey=", b"?access_token="])
@story
async def test_a_key_in_the_query_goes_to_its_vendor_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OUR_KEY", "AIza-our-own-key")
    quoted = b"/v1beta/models/g:generateContent" + path + b"sk%2Dcanary-1234567"
    async with upstream(answering(response(b'{"quoted":"sk-canary-1234567"}'))) as up:
        vendor = {"protocol": "gemini", "base_url": up.url.removesuffix("/v1")}
        both = {"gemini": vendor, "ours": vendor | {"api_key_env": "OUR_KEY"}}
        async with relay(tmp_path, both) as gateway:
            await gateway.ask(request(b"{}", path=b"/gemini" + quoted))
            assert up.requests[0].start == b"POST " + quoted + b" HTTP/1.1"
            await gateway.ask(request(b"{}", path=b"/ours" + quoted))
            swapped = up.requests[1]
            kept = b"?alt=sse" if b"alt" in path else b""
            assert swapped.start == b"POST /v1beta/models/g:generateContent" + kept + b" HTTP/1.1"
            assert swapped.header(b"x-goog-api-key") == b"AIza-our-own-key"
            assert len(gateway.rows()) == 2
            written = gateway.everything_written() + caplog.text.encode()
            assert b"canary" not in written
            assert b"our-own-key" not in written


@story
async def test_a_key_of_our_own_takes_the_clients_place_and_is_shown_to_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    ours = b"sk-the-companys-own-key"
    monkeypatch.setenv("COMPANY_KEY", ours.decode())
    refusal = b'{"error":{"message":"no credit left on ' + ours + b'"}}'
    cut = refusal.index(ours) + 7

    async def script(told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        head = b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        await wire.send(head % len(refusal) + refusal[:cut])  # the key is split over two pieces
        await wire.send(refusal[cut:])

    async with upstream(script) as up:
        section = openai(up)["openai"] | {"api_key_env": "COMPANY_KEY"}
        async with relay(tmp_path, {"openai": section}) as gateway:
            answer = await gateway.ask(
                request(CHAT, BEARER, b"X-Api-Key: another-vendors-key", b"Cookie: session=1")
            )
            got = up.requests[0]
            assert got.header(b"authorization") == b"Bearer " + ours
            assert got.names == [b"host", b"content-type", b"authorization", b"content-length"]
            assert answer.body == refusal.replace(ours, b"*" * len(ours))
            assert answer.complete
            await gateway.row()
            await assert_nowhere(gateway, caplog, (*FORMS, ours, b"another-vendors-key", b"session=1"))


@story
async def test_a_route_to_another_vendor_takes_no_key_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "other-vendors-key")
    away = [{"name": "away", "targets": [{"upstream": "other"}]}]
    async with upstream(answering(response(status=b"503 Down"))) as other, upstream(answering(response())) as home:
        providers = openai(home) | {"other": openai(other)["openai"] | {"api_key_env": "OTHER_KEY"}}
        async with relay(tmp_path, providers, routes=away) as gateway:
            answer = await gateway.ask(request(
                CHAT, BEARER, b"X-Goog-Api-Key: AIza-third-vendor", b"OpenAI-Organization: org-1", b"Cookie: a=b",
                path=b"/v1/chat/completions?api_key=in-the-query-too",
            ))  # fmt: skip
            assert answer.status == 200
            got = other.requests[0]
            assert got.start == b"POST /v1/chat/completions HTTP/1.1"
            assert got.header(b"authorization") == b"Bearer other-vendors-key"
            assert got.names == [b"host", b"content-type", b"authorization", b"content-length"]
            assert home.requests[0].header(b"authorization") == b"Bearer " + KEY  # the fallback is home again
            await assert_nowhere(gateway, caplog, (*FORMS, b"other-vendors-key", b"AIza-third", b"in-the-query"))


@story
async def test_without_a_key_for_another_vendor_it_gets_none(tmp_path: Path) -> None:
    away = [{"name": "away", "targets": [{"upstream": "local-server"}]}]
    async with upstream(answering(response())) as other, upstream(answering(response())) as home:
        providers = openai(home) | {"local-server": openai(other)["openai"]}
        async with relay(tmp_path, providers, routes=away) as gateway:
            assert (await gateway.ask(request(CHAT, BEARER))).status == 200
            assert other.requests[0].header(b"authorization") is None


@pytest.mark.parametrize(
    ("wanted", "request_kept", "rows"), [(b"off", b"", 0), (b"metadata", b"", 1), (b" Metadata ", b"", 1)]
)
@story
async def test_a_client_may_keep_its_exchange_to_itself(
    tmp_path: Path, wanted: bytes, request_kept: bytes, rows: int
) -> None:
    async with upstream(answering(response(b'{"answer":"private"}'))) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT, b"x-unprompt-log: " + wanted))
        assert answer.status == 200
        found = gateway.rows()
        assert [(row.request, row.response) for row in found] == [(request_kept, b"")] * rows
        assert b"private" not in gateway.everything_written()
        counted = 'unprompt_requests_total{route="none",operation="chat",model_requested="gpt-6-luna"'
        assert counted in await gateway.metrics()


@story
async def test_a_privacy_wish_that_is_not_understood_is_refused_and_not_guessed(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, relay(tmp_path, openai(up)) as gateway:
        answer = await gateway.ask(request(CHAT, b"x-unprompt-log: none"))
        assert answer.status == 400
        assert "'metadata' or 'off'" in answer.json()["error"]["message"]
        assert up.requests == []
        assert gateway.rows() == []


# --- the pure parts ------------------------------------------------------------------------------------


def head(*headers: tuple[bytes, bytes], target: bytes = b"/v1/x") -> RequestHead:
    return RequestHead(b"POST", target, list(headers), keep_alive=True)


def test_keys_are_found_wherever_vendors_put_them() -> None:
    found = secrets.presented(head(
        (b"AUTHORIZATION", b"Bearer bearer-key-1"), (b"x-api-key", b"anthropic-key"), (b"Api-Key", b"short"),
        (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.socket-key, beta"),
        target=b"/v1/x?a=b&key=query%2Dkey-1",
    ))  # fmt: skip
    assert found == (b"bearer-key-1", b"anthropic-key", b"socket-key", b"query%2Dkey-1", b"query-key-1")
    assert secrets.presented(head((b"X-Other", b"not-a-credential"))) == ()


def test_a_key_id_is_stable_and_tells_keys_apart() -> None:
    first, second = secrets.key_id((b"sk-aaaaaaaa",)), secrets.key_id((b"sk-bbbbbbbb",))
    assert first == secrets.key_id((b"sk-aaaaaaaa", b"more"))
    assert len({first, second, secrets.key_id(())}) == 3


def _heads_made_up(n: int) -> None:
    kept_headers({b"x-%x-%x" % (n, header): b"" for header in range(5000)})


def _keys_made_up(n: int) -> None:
    key = b"sk-%d-" % n + b"x" * 60_000
    assert secrets.key_id((key,)) is not None
    assert secrets.blank_text("gpt-6", (key,)) == "gpt-6"
    assert key not in secrets.blank_out(b"Incorrect API key: " + key, [key])


def _models_made_up(n: int) -> None:
    model = f"gpt-{n}-" + "x" * 1_000_000
    assert secrets.blank_text(model, (KEY,)).startswith("gpt-")
    assert wire.target_line(model, stripped=False).endswith(b"xxx whole")


def _paths_made_up(n: int) -> None:
    path = f"/v1/x-{n}-" + "x" * 60_000
    assert OpenAI().operation(path) == "other"
    assert OpenAI().operation(path + "/chat/completions") == "chat"


@pytest.mark.parametrize("made_up", [_heads_made_up, _keys_made_up, _models_made_up, _paths_made_up])
def test_nothing_that_a_client_makes_up_stays_in_memory(made_up: Any) -> None:
    made_up(0)
    tracemalloc.start()
    for n in range(1, 20):
        made_up(n)
    stayed, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stayed < 100_000


@given(st.binary(max_size=200), st.lists(st.integers(0, 220), max_size=6))
def test_blanking_a_stream_is_blanking_the_whole(text: bytes, cuts: list[int]) -> None:
    """Wherever the pieces are cut, no secret leaves, nothing else changes and nothing is held at the end."""
    secret = b"abcabcabd"
    whole = text[:100] + secret + text[100:] + secret[:5]
    blanker, out, at = secrets.Blanker([secret]), b"", 0
    for cut in sorted({*cuts, len(whole)}):
        out += blanker.feed(whole[at : min(cut, len(whole))], last=False)
        at = min(cut, len(whole))
        assert len(whole[:at]) - len(out) < len(secret)  # it never holds back more than a beginning
    out += blanker.feed(b"", last=True)
    assert out == whole.replace(secret, b"*" * len(secret))


@given(st.integers(4, 20))
def test_a_key_cut_off_by_the_end_is_blanked_as_well(size: int) -> None:
    secret = b"sk-0123456789abcdefgh"
    assert secrets.blank_out(b"x" + secret[:size], [secret], cut=True) == b"x" + b"*" * size
    assert secrets.blank_out(b"x" + secret[:size], [secret]) == b"x" + secret[:size]
