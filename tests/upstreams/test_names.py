"""The addresses of an upstream's host: asked for once, kept for a while, and nobody waits for a silent name server
who need not."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from relaying import ANSWER, Upstream, Wire, answering, relay, request, response, soon, story, upstream

from gateway.upstreams.http import HttpUpstream
from gateway.upstreams.names import KEPT_SECONDS, Addresses, Host
from gateway.upstreams.selective import SelectiveUpstream


class Resolver:
    """A name server whose answers are given out one by one: addresses, an error, or `held` until `release`."""

    def __init__(self, *answers: Addresses | Exception | str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.release = threading.Event()
        self.clock = 0.0

    def __call__(self, name: str) -> Addresses:
        self.asked.append(name)
        answer = self.answers.pop(0)
        if answer == "held":
            assert self.release.wait(10)
            answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, tuple)
        return answer

    def now(self) -> float:
        return self.clock

    def host(self, name: str = "models.test") -> Host:
        return Host(name, self, self.now)


UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
ONE, TWO = ("192.0.2.1",), ("192.0.2.2", "2001:db8::2")


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "fe80::1%lo"])
@story
async def test_an_address_is_its_own(name: str) -> None:
    resolver = Resolver()
    assert await resolver.host(name).addresses() == (name,)
    assert resolver.asked == []


@story
async def test_who_asks_at_the_same_time_shares_one_look_up_and_who_comes_later_has_its_answer() -> None:
    resolver = Resolver("held", TWO)
    host = resolver.host()
    waiting = [asyncio.create_task(host.addresses()) for _ in range(20)]
    assert await soon(lambda: resolver.asked == ["models.test"])
    waiting[0].cancel()  # who leaves takes nothing from the others
    resolver.release.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [TWO] * 19
    resolver.clock += KEPT_SECONDS - 1
    assert await host.addresses() == TWO
    assert resolver.asked == ["models.test"]


@story
async def test_after_half_a_minute_it_is_asked_again() -> None:
    resolver = Resolver(ONE, TWO)
    host = resolver.host()
    assert await host.addresses() == ONE
    resolver.clock += KEPT_SECONDS
    assert await host.addresses() == TWO
    assert len(resolver.asked) == 2


@story
async def test_what_was_good_is_used_when_the_name_server_fails_and_forgotten_when_it_knows_better() -> None:
    resolver = Resolver(ONE, UNKNOWN, TWO)
    host = resolver.host()
    assert await host.addresses() == ONE
    resolver.clock += KEPT_SECONDS
    assert await host.addresses() == ONE
    assert await host.addresses() == TWO
    assert len(resolver.asked) == 3


@story
async def test_what_was_good_is_used_when_the_name_server_says_nothing() -> None:
    resolver = Resolver(ONE, "held", TWO)
    host = resolver.host()
    await host.addresses()
    resolver.clock += KEPT_SECONDS
    started = time.perf_counter()
    assert await host.addresses() == ONE
    assert 0.3 < time.perf_counter() - started < 2  # a moment's patience
    resolver.clock += 1
    started = time.perf_counter()
    assert [await host.addresses() for _ in range(5)] == [ONE] * 5
    assert time.perf_counter() - started < 0.3  # and none for those who come after that
    assert len(resolver.asked) == 2
    resolver.release.set()
    assert await soon(lambda: host._known == TWO)


@story
async def test_a_name_that_nobody_ever_knew_is_asked_for_each_time() -> None:
    resolver = Resolver(UNKNOWN, UnicodeError("label too long"), ONE)
    host = resolver.host()
    with pytest.raises(socket.gaierror):
        await host.addresses()
    with pytest.raises(UnicodeError):
        await host.addresses()
    assert await host.addresses() == ONE


@story
async def test_the_systems_own_look_up_knows_this_machine() -> None:
    assert {"127.0.0.1", "::1"} & set(await Host("localhost").addresses())
    with pytest.raises(UnicodeError):
        await Host("a" * 64 + ".test").addresses()


def test_a_look_up_that_hangs_holds_up_no_end() -> None:
    program = textwrap.dedent("""
        import asyncio, time, uvloop
        from gateway.upstreams.names import Host

        async def main():
            host = Host("models.test", lambda name: time.sleep(60))
            try:
                async with asyncio.timeout(0.2):
                    await host.addresses()
            except TimeoutError:
                print("given up")

        uvloop.run(main())
    """)
    started = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert (told.stdout, told.stderr) == ("given up\n", "")
    assert time.perf_counter() - started < 20


# --- and connections to them ------------------------------------------------------------------------------


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """What the system asks, in this process."""
    resolver = Resolver()

    def getaddrinfo(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, socket.SOCK_STREAM, 6, "", (address, 0)) for address in resolver(name)]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    return resolver


def at(url: str) -> dict[str, Any]:
    return {"openai": {"protocol": "openai", "base_url": url}}


def within(seconds: float) -> list[dict[str, Any]]:
    return [{"name": "all", "match": {}, "targets": [{"upstream": "openai"}], "timeouts": {"connect": seconds}}]


@story
async def test_the_addresses_are_tried_in_turn_and_the_one_that_answered_first_the_next_time(
    tmp_path: Path, resolver: Resolver
) -> None:
    resolver.answers = [("127.0.0.2", "127.0.0.1")]  # nobody listens on the first
    async with (
        upstream(answering(response(ANSWER, b"Connection: close"))) as up,
        relay(tmp_path, at(f"http://models.test:{up.port}/v1")) as gateway,
    ):
        for _ in range(3):
            assert (await gateway.ask(request())).body == ANSWER
        assert {message.header(b"host") for message in up.requests} == {b"models.test:%d" % up.port}
        assert (len(up.requests), resolver.asked) == (3, ["models.test"])
        outer = gateway.app.house.upstreams["openai"]
        assert isinstance(outer, SelectiveUpstream)
        to = outer.inner
        assert isinstance(to, HttpUpstream)
        assert await to._host.addresses() == ("127.0.0.1", "127.0.0.2")


@story
async def test_an_address_that_never_answers_has_only_its_share_of_the_time(
    tmp_path: Path, resolver: Resolver
) -> None:
    resolver.answers = [("127.0.0.2", "127.0.0.1")]
    async with (
        upstream(answering(response())) as up,
        relay(tmp_path, at(f"http://models.test:{up.port}/v1"), routes=within(1.0)) as gateway,
    ):
        with ExitStack() as sockets:
            door = sockets.enter_context(socket.create_server(("127.0.0.2", up.port), backlog=0))
            for _ in range(4):  # it takes no more connections, and refuses none
                knock = sockets.enter_context(socket.socket())
                knock.setblocking(False)
                knock.connect_ex(door.getsockname())
            started = time.perf_counter()
            assert (await gateway.ask(request())).body == ANSWER
            assert 0.3 < time.perf_counter() - started < 1.0


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([("127.0.0.2", "127.0.0.3")], (502, b"upstream_unreachable")),
        ([UNKNOWN], (502, b"upstream_unreachable")),
        ([UnicodeError("label too long")], (502, b"upstream_unreachable")),
        (["held", ONE], (504, b"upstream_timeout")),
    ],
    ids=["all refuse", "no such name", "no name at all", "silence"],
)
@story
async def test_no_connection_is_told_as_that(
    tmp_path: Path, resolver: Resolver, answers: list[Any], told: tuple[int, bytes]
) -> None:
    resolver.answers = answers
    async with upstream(answering(response())) as up:
        url = f"http://models.test:{up.port}/v1"
        async with relay(tmp_path, at(url), routes=within(0.3)) as gateway:
            answer = await gateway.ask(request())
            assert (answer.status, answer.header(b"x-unprompt-error")) == told
            assert b"127." not in answer.body
    resolver.release.set()


@story
async def test_tls_is_asked_for_by_name(tmp_path: Path, resolver: Resolver) -> None:
    hello = b""

    async def script(_told: Upstream, wire: Wire) -> None:
        nonlocal hello
        hello += await wire.some()
        wire.reset()

    resolver.answers = [("127.0.0.1",)]
    async with upstream(script) as up, relay(tmp_path, at(f"https://models.test:{up.port}")) as gateway:
        assert (await gateway.ask(request())).status == 502
        assert b"models.test" in hello  # the extension server_name is not encrypted
