"""Cases 44 to 48: routes that are flipped, broken or taken away under load, signals, workers that are killed, and
pages that answer all the while."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from relaying import (
    CHAT,
    Relay,
    Upstream,
    Wire,
    answering,
    openai,
    relay,
    request,
    response,
    soon,
    story,
    upstream,
)  # fmt: skip

from faults.serving import DONE, EVENT, STREAM, Served, children, chunk, commandline, eventually, serving

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
FLIPS = int(os.environ.get("UNPROMPT_TEST_FLIPS", "1000"))
TO_BLUE = "routes: [{name: r, targets: [{upstream: blue}]}]\n"
TO_GREEN = "routes: [{name: r, targets: [{upstream: green}]}]\n"
RELOADED = 'unprompt_config_reload_total{result="ok"}'
FAILED = 'unprompt_config_reload_total{result="failed"}'


@dataclass
class Load:
    """Clients that ask on and on, and what they got: a body, or the status of what was no whole answer."""

    served: Served
    answers: Counter[bytes] = field(default_factory=Counter)
    last: bytes = b""

    async def ask_on(self, stop: asyncio.Event) -> None:
        wire = await self.served.connect()
        while not stop.is_set():
            await wire.send(request(CHAT))
            answer = await wire.message()
            self.last = answer.body if answer.status == 200 and answer.complete else b"%d" % answer.status
            self.answers[self.last] += 1
            await asyncio.sleep(0.004)
        wire.close()


@contextlib.asynccontextmanager
async def under_load(served: Served, clients: int = 4) -> AsyncIterator[Load]:
    load, stop = Load(served), asyncio.Event()
    running = [asyncio.create_task(load.ask_on(stop)) for _ in range(clients)]
    try:
        yield load
    finally:
        stop.set()
        await asyncio.gather(*running)


@contextlib.asynccontextmanager
async def blue_and_green(home: Path) -> AsyncIterator[Served]:
    async with upstream(answering(response(b'"b"'))) as blue, upstream(answering(response(b'"g"'))) as green:
        providers = {"blue": openai(blue)["openai"], "green": openai(green)["openai"]}
        routes = [{"name": "r", "targets": [{"upstream": "blue"}]}]
        async with serving(home, providers, routes=routes) as served:
            yield served


def write_whole(file: Path, text: str) -> None:
    fresh = file.with_name("routes.fresh")
    fresh.write_text(text)
    fresh.replace(file)


async def within(seconds: float, holds: Callable[[], bool]) -> None:
    assert await eventually(holds, seconds)


# --- flips ----------------------------------------------------------------------------------------------


@story
async def test_a_thousand_flips_under_load_fail_no_request(tmp_path: Path) -> None:
    """Every seventh is a file with a mistake; each good one that is looked at takes effect."""
    async with blue_and_green(tmp_path) as served:
        async with under_load(served) as load:
            for number in range(FLIPS):
                write_whole(served.routes, "routes: [" if number % 7 == 6 else (TO_GREEN, TO_BLUE)[number % 2])
                await asyncio.sleep(0.004)
            write_whole(served.routes, "routes: [")
            await asyncio.sleep(0.6)  # long enough to be looked at: those before may all have been gone by then
            write_whole(served.routes, TO_GREEN)
            await within(3, lambda: load.last == b'"g"')
        assert set(load.answers) == {b'"b"', b'"g"'}
        assert min(load.answers.values()) > 20
        assert await served.metric(RELOADED) > FLIPS // 100
        assert await served.metric(FAILED) > 0
        rows = await served.recorded(load.answers.total())
        assert len(rows) == load.answers.total()
        assert all(row.complete for row in rows)


WRONG_TEXTS = {
    "half written": b"routes: [{name: r, targets",
    "no YAML": b"\x00\xff\xfe",
    "no routes file": b"providers: {}\n",
    "an upstream that is not there": TO_GREEN.replace("green", "red").encode(),
}
LINKS = {"a link to nowhere": "nowhere", "a link to itself": "routes.yaml"}


def spoil(file: Path, how: str) -> None:
    """Make the file wrong in this way."""
    if how in WRONG_TEXTS:
        file.write_bytes(WRONG_TEXTS[how])
        return
    file.unlink()
    if how in LINKS:
        file.symlink_to(LINKS[how])
    elif how == "a folder":
        file.mkdir()


@pytest.mark.parametrize("how", [*WRONG_TEXTS, *LINKS, "a folder", "taken away"])
@story
async def test_what_is_wrong_with_the_file_changes_nothing_until_it_is_right(tmp_path: Path, how: str) -> None:
    async with upstream(answering(response(b'"b"'))) as blue, upstream(answering(response(b'"g"'))) as green:
        providers = {"blue": openai(blue)["openai"], "green": openai(green)["openai"]}
        routes = [{"name": "r", "targets": [{"upstream": "green"}]}]
        async with relay(tmp_path, providers, routes=routes) as gateway:
            spoil(gateway.routes, how)
            await asyncio.sleep(0.5)
            assert (await gateway.ask(request(CHAT))).body == b'"g"'
            assert f"{FAILED} 1.0" in await gateway.metrics()
            remove(gateway.routes)
            write_whole(gateway.routes, TO_BLUE)
            assert await turned(gateway, b'"b"')


def without_roots_rights() -> None:
    """In a new process: root, too, may read only what its mode allows (drops two capabilities for good)."""
    drop_from_bounding_set, override, search = 24, 1, 2
    for capability in (override, search):
        ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)


@linux
@story
async def test_a_file_that_may_not_be_read_changes_nothing(tmp_path: Path) -> None:
    async with upstream(answering(response(b'"b"'))) as blue, upstream(answering(response(b'"g"'))) as green:
        providers = {"blue": openai(blue)["openai"], "green": openai(green)["openai"]}
        routes = [{"name": "r", "targets": [{"upstream": "green"}]}]
        async with serving(tmp_path, providers, routes=routes, before=without_roots_rights) as served:
            write_whole(served.routes, TO_BLUE)
            served.routes.chmod(0)
            await within(3, lambda: "Permission denied" in served.log)
            first = (await served.ask(request(CHAT))).body  # the file was good for a moment, perhaps
            await asyncio.sleep(0.5)
            assert (await served.ask(request(CHAT))).body == first
            assert await served.metric(FAILED) == 1
            served.routes.chmod(0o600)
            served.routes.touch()
            assert await turned(served, b'"b"')


def remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


async def turned(gateway: Relay | Served, body: bytes) -> bool:
    until = time.monotonic() + 3
    while (await gateway.ask(request(CHAT))).body != body:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.05)
    return True


@story
async def test_a_file_that_is_swapped_by_its_folders_link_is_followed(tmp_path: Path) -> None:
    """As Kubernetes changes a ConfigMap: `routes.yaml` -> `..data/routes.yaml`, and `..data` is swapped."""
    for number, text in enumerate([TO_BLUE, TO_GREEN, "routes: [", TO_BLUE]):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "routes.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "routes.yaml").symlink_to("..data/routes.yaml")
    async with upstream(answering(response(b'"b"'))) as blue, upstream(answering(response(b'"g"'))) as green:
        providers = {"blue": openai(blue)["openai"], "green": openai(green)["openai"]}
        async with relay(tmp_path, providers) as gateway:
            for number, body in [(0, b'"b"'), (1, b'"g"'), (2, b'"g"'), (3, b'"b"')]:
                (tmp_path / "..fresh").symlink_to(f"..{number}")
                (tmp_path / "..fresh").replace(tmp_path / "..data")
                assert await turned(gateway, body)
                await asyncio.sleep(0.3)
                assert (await gateway.ask(request(CHAT))).body == body


# --- signals -----------------------------------------------------------------------------------------------


class Paced:
    """An upstream whose streams go on until they are released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, told: Upstream, wire: Wire) -> None:
        await told.asked(wire)
        await wire.send(STREAM + chunk(EVENT))
        await self.released.wait()
        await wire.send(chunk(DONE) + b"0\r\n\r\n")


async def is_shut(served: Served) -> bool:
    """Whether new connections are refused before two seconds are over."""
    for _ in range(40):
        try:
            (await served.connect()).close()
        except ConnectionError:
            return True
        await asyncio.sleep(0.05)
    return False


@story
async def test_sigterm_takes_no_more_finishes_what_is_under_way_and_records_it(tmp_path: Path) -> None:
    paced = Paced()
    async with upstream(paced) as up, serving(tmp_path, up) as served:
        wire, idle = await served.connect(), await served.connect()
        await wire.send(request(CHAT))
        await wire.until(b"hi")
        served.signal(signal.SIGTERM)
        assert await idle.ends(2)
        assert await is_shut(served)
        assert served.process.poll() is None
        paced.released.set()
        assert (await wire.until(b"0\r\n\r\n")).endswith(chunk(DONE) + b"0\r\n\r\n")
        assert await served.ended() == 0
        rows = served.rows()  # the worker, too, has finished
        assert [(row.complete, row.response) for row in rows] == [(True, EVENT + DONE)]
        wire.close()


@story
async def test_what_is_still_under_way_when_the_time_to_drain_is_over_is_cut_and_marked(tmp_path: Path) -> None:
    async with upstream(Paced()) as up, serving(tmp_path, up, server={"drain_seconds": 0.5}) as served:
        wire = await served.connect()
        await wire.send(request(CHAT))
        await wire.until(b"hi")
        served.signal(signal.SIGINT)
        started = time.monotonic()
        answer = await wire.rest()
        assert b"[DONE]" not in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert time.monotonic() - started < 3
        assert await served.ended() == 0
        assert [(row.complete, row.error_type) for row in served.rows()] == [(False, "internal")]


@story
async def test_a_second_sigterm_ends_at_once_and_the_row_stays_incomplete(tmp_path: Path) -> None:
    async with upstream(Paced()) as up, serving(tmp_path, up) as served:
        wire = await served.connect()
        await wire.send(request(CHAT))
        await wire.until(b"hi")
        served.signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert served.process.poll() is None
        served.signal(signal.SIGTERM)
        assert await served.ended(2) == 130
        await within(5, lambda: len(served.rows()) == 1)  # its worker moves what there is
        assert served.rows()[0].complete is False
        assert served.rows()[0].request == CHAT
        wire.close()


@story
async def test_sighup_reads_the_routes_again(tmp_path: Path) -> None:
    async with blue_and_green(tmp_path) as served:
        before = await served.metric(RELOADED)
        served.signal(signal.SIGHUP)  # although the file is as it was
        until = time.monotonic() + 3
        while await served.metric(RELOADED) == before:
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        assert (await served.ask(request(CHAT))).body == b'"b"'
        assert served.process.poll() is None


async def counted(served: Served) -> float:
    """All requests that the metrics know of."""
    text = (await served.get(b"/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("unprompt_requests_total{")]
    return sum(float(line.split()[-1]) for line in lines)


@linux
@story
async def test_of_several_relays_one_may_be_killed(tmp_path: Path) -> None:
    """`--workers 2`: the other serves, it is replaced, what it had recorded is there, and no count goes back."""
    async with upstream(answering(response())) as up, serving(tmp_path, up, workers=2) as served:

        def relays() -> list[int]:
            return [pid for pid in children(served.process.pid) if b"serve" in commandline(pid)]

        await within(5, lambda: len(relays()) == 2)
        told = 0
        for killed in range(3):
            for _ in range(20):
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    told += (await served.ask(request(CHAT))).status == 200
            while await counted(served) < told:  # an answer is counted when it has left
                await asyncio.sleep(0.02)
            victim = relays()[killed % 2]
            os.kill(victim, signal.SIGKILL)
            await within(10, lambda gone=victim: len(relays()) == 2 and gone not in relays())  # type: ignore[misc]
        assert told >= 57
        rows = await served.recorded(told)
        assert sum(row.complete for row in rows) == len({row.id for row in rows if row.complete}) >= told
        assert await counted(served) >= told


# --- pages ------------------------------------------------------------------------------------------------------

HOSTILE = [
    'gpt"} 1\nfake_metric 2',
    "a\\",
    "b\nc",
    "d" * 3_000,
    "{}",
    'x",le="0',
    "é漢🎈",
    "\x00\x7f",
    "sk-canary-4711",
]


@story
async def test_pages_answer_quickly_under_load_whatever_names_clients_make_up(tmp_path: Path) -> None:
    """300 made-up models, tasks and tags; the answers call themselves as they were called."""

    async def script(told: Upstream, wire: Wire) -> None:
        while True:
            asked = (await told.asked(wire)).body
            model = asked.partition(b'"model":')[2].partition(b',"messages"')[0]
            await wire.send(response(b'{"model":' + (model or b"null") + b',"choices":[],"usage":{}}'))

    async with upstream(script) as up, serving(tmp_path, up) as served:
        names = [*HOSTILE, *(f"model-{number}" for number in range(300))]
        key = b"Authorization: Bearer sk-canary-4711"

        async def bother() -> None:
            wire = await served.connect()
            for name in names:
                body = json.dumps({"model": name, "messages": []}, separators=(",", ":")).encode()
                tag = name.encode().translate(None, b"\n\x00\r\x7f")[:1000]
                await wire.send(request(body, key, b"x-unprompt-task: " + tag, b"x-unprompt-tags: k=" + tag))
                assert (await wire.message()).status == 200
            wire.close()

        bothering = [asyncio.create_task(bother()) for _ in range(4)]
        times = []
        while not all(task.done() for task in bothering):
            for page in (b"/metrics", b"/healthz", b"/readyz"):
                started = time.perf_counter()
                assert (await served.get(page)).status == 200
                times.append(time.perf_counter() - started)
            await asyncio.sleep(0.02)
        await asyncio.gather(*bothering)
        assert len(times) >= 9
        assert sorted(times)[len(times) // 2] < 0.1
        text = (await served.get(b"/metrics")).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert "fake_metric" not in families
        series = Counter(sample.name for family in families.values() for sample in family.samples)
        assert series["unprompt_requests_total"] <= 2 * 201
        assert series.total() < 20_000
        assert "sk-canary-4711" not in text
        assert await soon(lambda: served.process.poll() is None, 1)
