"""Cases 49 and 50: no descriptor is left, too many come at once; and all faults together, for a while."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import fcntl
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from relaying import ANSWER, CHAT, Upstream, Wire, answering, openai, request, response, story, upstream

from faults.serving import DONE, EVENT, STREAM, Served, chunk, eventually, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses prlimit and /proc")
SOAK = float(os.environ.get("UNPROMPT_TEST_SOAK", "6"))


def few_descriptors() -> None:
    """In a new process: 100 open files, no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


@story
async def test_more_clients_than_descriptors_are_told_to_come_back_and_later_served(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up, before=few_descriptors) as served:
        assert (await served.ask(request(CHAT))).body == ANSWER
        wires = [await served.connect() for _ in range(150)]
        await asyncio.sleep(0.3)  # all that can be open are open
        fates = Counter(await asyncio.gather(*(fate(wire) for wire in wires)))
        assert fates["told to retry"] >= 8
        assert fates["served"] >= 1
        assert fates["failed"] == 0  # who finds no descriptor for the upstream is told to retry, too
        for wire in wires:
            wire.close()
        await recovers(served)
        for _ in range(20):
            assert (await served.ask(request(CHAT))).body == ANSWER
        assert await eventually(lambda: answered(served) == fates["served"] + 22)


async def fate(wire: Wire) -> str:
    """What becomes of a request on this connection."""
    try:
        await wire.send(request(CHAT))
        answer = await wire.message()
    except (ConnectionError, RuntimeError, asyncio.IncompleteReadError):  # RuntimeError: uvloop, of a closed one
        return "turned away"
    if answer.status == 503 and answer.header(b"retry-after") is not None:
        return "told to retry"
    return "served" if answer.body == ANSWER else "failed"


@story
async def test_when_the_last_descriptor_is_gone_who_is_connected_is_served_and_it_recovers(tmp_path: Path) -> None:
    """The limit falls below what is open: no file, no connection can be opened any more."""
    async with upstream(answering(response())) as up, serving(tmp_path, up) as served:
        inside = await served.connect()
        await inside.send(request(CHAT))
        assert (await inside.message()).body == ANSWER
        served.limit(resource.RLIMIT_NOFILE, 8)
        outside = [await served.connect() for _ in range(30)]
        for _ in range(20):
            await inside.send(request(CHAT))  # over the connection to the upstream that is there
            assert (await inside.message()).body == ANSWER
        served.limit(resource.RLIMIT_NOFILE, 1000)
        for wire in outside:
            wire.close()
        await recovers(served)
        await inside.send(request(CHAT))
        assert (await inside.message()).body == ANSWER
        assert await eventually(lambda: answered(served) == 23)
        inside.close()


@story
async def test_while_no_descriptor_is_left_clients_wait_at_no_cost_and_are_served_afterwards(
    tmp_path: Path,
) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as served:
        inside = await served.connect()
        await inside.send(request(CHAT))
        assert (await inside.message()).body == ANSWER
        served.limit(resource.RLIMIT_NOFILE, 8)
        await asyncio.sleep(0.6)  # it has noticed
        outside = [await served.connect() for _ in range(30)]
        before = cpu_seconds(served.process.pid)
        await asyncio.sleep(2)
        assert cpu_seconds(served.process.pid) - before < 0.5  # to try again and again would be 2
        await inside.send(request(CHAT))
        assert (await inside.message()).body == ANSWER
        served.limit(resource.RLIMIT_NOFILE, 1000)
        fates = Counter(await asyncio.gather(*(fate(wire) for wire in outside)))
        assert fates == {"served": 30}
        assert "no file can be opened any more" in served.log
        for wire in (inside, *outside):
            wire.close()


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- ports ---------------------------------------------------------------------------------------------------


def in_a_network_of_its_own(work: Callable[[], None]) -> None:
    """In a thread whose sockets, and whose children's, see nobody else, with ten ports to connect from in all."""

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x40000000):  # CLONE_NEWNET
            pytest.skip("no network namespace can be had")
        with socket.socket() as any_socket:  # SIOCSIFFLAGS: the loopback interface up
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1 | 64))
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40009")
        work()

    with concurrent.futures.ThreadPoolExecutor(1) as one:
        one.submit(run).result()


def test_a_machine_without_free_ports_tells_clients_to_come_back_and_recovers(tmp_path: Path) -> None:
    """Each client has an address, and so ports, of its own; the gateway has ten to reach the upstream from, less
    those on which somebody listens."""
    held = asyncio.Event()

    async def holding(told: Upstream, wire: Wire) -> None:
        while True:
            await told.asked(wire)
            await held.wait()
            await wire.send(response())

    @story
    async def told() -> None:
        async with upstream(holding) as up, serving(tmp_path, up) as served:
            wires = [await served.connect_from(f"127.0.0.{10 + number}") for number in range(12)]
            fates = [asyncio.create_task(fate(wire)) for wire in wires]
            await asyncio.wait(fates, timeout=1.0)
            assert {one.result() for one in fates if one.done()} == {"told to retry"}
            held.set()
            told_so = Counter(await asyncio.gather(*fates))
            assert set(told_so) == {"told to retry", "served"}
            assert told_so["served"] == len(up.requests) >= 7
            assert await fate(wires[-1]) == "turned away"  # who was told to come back comes back with a connection
            again = await served.connect_from("127.0.0.40")
            assert await fate(again) == "served"
            rows = await served.recorded(13)
            assert Counter(row.status for row in rows) == {
                200: told_so["served"] + 1,
                503: told_so["told to retry"],
            }
            for wire in (*wires, again):
                wire.close()

    if os.geteuid() != 0:
        pytest.skip("needs a network namespace")
    in_a_network_of_its_own(told)


def answered(served: Served) -> int:
    """How many exchanges are in the store with a whole answer."""
    return sum(row.complete and row.response == ANSWER for row in served.rows())


async def recovers(served: Served) -> None:
    """Returns after the first answer; those who still wait to be accepted are met, and closed, before that."""
    until = time.monotonic() + 5
    while await fate(await served.connect()) != "served":
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


# --- names ---------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_names(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """What makes a new process ask a name server that hears everything and says nothing (needs root)."""
    if os.geteuid() != 0:
        pytest.skip("needs a mount namespace and port 53")
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        server.bind(("127.0.0.1", 53))
    except OSError as error:
        server.close()
        pytest.skip(f"port 53: {error.strerror}")
    told = tmp_path / "resolv.conf"
    told.write_text("nameserver 127.0.0.1\noptions timeout:8 attempts:1\n")

    def before() -> None:
        new_mounts, recursive_private, bind = 0x00020000, 16384 | 1 << 18, 4096
        libc = ctypes.CDLL(None)
        if libc.unshare(new_mounts) or libc.mount(b"none", b"/", None, recursive_private, None):
            raise OSError("no mount namespace can be had")
        if libc.mount(bytes(told), b"/etc/resolv.conf", None, bind, None):
            raise OSError("nothing can be put in the place of resolv.conf")

    try:
        subprocess.run(["true"], preexec_fn=before, check=True)
    except subprocess.SubprocessError:
        server.close()
        pytest.skip("no mount namespace can be had, as in most containers")
    yield before
    server.close()


HUNG = {
    "name": "hung",
    "match": {"provider": "hung"},
    "targets": [{"upstream": "hung"}],
    "timeouts": {"connect": 0.5},
}


@story
async def test_a_name_server_that_is_silent_costs_only_those_who_need_it(
    tmp_path: Path, silent_names: Callable[[], None]
) -> None:
    async with upstream(answering(response())) as up:
        providers = {**openai(up), "hung": {"base_url": "http://silent.test/v1"}}
        async with serving(tmp_path, providers, routes=[HUNG], before=silent_names) as served:
            started = time.perf_counter()
            waiting = [asyncio.create_task(served.ask(request(CHAT, path=b"/hung/v1/x"))) for _ in range(8)]
            assert (await served.ask(request(CHAT))).body == ANSWER
            assert time.perf_counter() - started < 0.4
            answers = await asyncio.gather(*waiting)
            assert {(answer.status, answer.header(b"x-unprompt-error")) for answer in answers} == {
                (504, b"upstream_timeout")
            }
            assert time.perf_counter() - started < 3


@story
async def test_a_name_server_that_is_silent_for_one_provider_stops_no_other_and_holds_up_no_end(
    tmp_path: Path, silent_names: Callable[[], None]
) -> None:
    async with upstream(answering(response())) as up:
        named = {"base_url": f"http://localhost:{up.port}/v1"}  # from /etc/hosts, without any server
        providers = {"named": named, "hung": {"base_url": "http://silent.test/v1"}}
        async with serving(tmp_path, providers, routes=[HUNG], before=silent_names) as served:
            await asyncio.gather(*(served.ask(request(CHAT, path=b"/hung/v1/x")) for _ in range(8)))
            started = time.perf_counter()
            assert (await served.ask(request(CHAT, path=b"/named/v1/x"))).body == ANSWER
            assert time.perf_counter() - started < 1
            again = asyncio.create_task(served.ask(request(CHAT, path=b"/hung/v1/x")))
            assert (await again).status == 504  # its look-up goes on for seconds
            started = time.perf_counter()
            served.signal(signal.SIGTERM)
            assert await served.ended() == 0
            assert time.perf_counter() - started < 6  # the look-up would take 8


# --- all of it, for a while ----------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the clients of a soak saw: the ids of whole answers, and how many requests broke off."""

    whole: dict[bytes, bytes] = field(default_factory=dict)
    begun: int = 0
    broken: int = 0


async def sent(wire: Wire, data: bytes) -> bool:
    """Whether there was still somebody to send it to."""
    if wire.writer.is_closing():
        return False
    try:
        await wire.send(data)
    except (ConnectionError, RuntimeError):  # what uvloop says of a connection that was closed meanwhile
        return False
    return True


async def faulty(told: Upstream, wire: Wire) -> None:
    """One in twenty answers dies in the middle, one in twenty before it begins; half are streams."""
    dice = random.Random(told.connections)
    while True:
        try:
            asked = (await told.asked(wire)).body
        except TimeoutError:  # it has rested for ten seconds: closed, as upstreams do
            return
        told.requests.clear()
        luck = dice.random()
        body = b'{"answer":' + asked[-40:].strip(b"}") + b"}"
        pieces = [STREAM, chunk(EVENT), chunk(b"data: " + body + b"\n\n"), chunk(DONE) + b"0\r\n\r\n"]
        if luck < 0.05:
            return
        for piece in pieces if luck > 0.5 else [response(body)]:
            if not await sent(wire, piece) or luck > 0.95:
                return
            await asyncio.sleep(0.001)


async def bother(served: Served, seed: int, seen: Seen, until: float) -> None:
    """Asks on and on; leaves in the middle of one answer in twenty."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            wire = await served.connect()
            try:
                while time.monotonic() < until:
                    seen.begun += 1
                    body = CHAT[:-1] + b',"user":"%d"}' % dice.getrandbits(60)
                    if not await sent(wire, request(body)) or dice.random() < 0.05:
                        break
                    answer = await wire.message()
                    if not answer.complete:
                        break
                    if answer.status == 200:  # else it is our own 502: the upstream had died
                        seen.whole[answer.header(b"x-unprompt-exchange") or b""] = answer.body
            finally:
                seen.broken += 1
                wire.reset()


async def meddle(served: Served, until: float) -> None:
    """The worker is killed, the disk is full for a moment, the routes are read again."""
    dice = random.Random(1)
    killed = 0.0
    while time.monotonic() < until:
        served.limit(resource.RLIMIT_FSIZE, 0)
        await asyncio.sleep(0.2)
        served.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        served.signal(signal.SIGHUP)
        worker = served.worker()
        if (
            worker is not None and time.monotonic() - killed > 15
        ):  # a program that keeps dying is started less often
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
        await asyncio.sleep(dice.uniform(0.5, 1.5))  # its successor must not inherit the limit


@story
async def test_after_a_while_of_all_faults_nothing_is_open_nothing_has_grown_and_the_books_are_right(
    tmp_path: Path,
) -> None:
    """`UNPROMPT_TEST_SOAK=86400` makes it a day."""
    async with upstream(faulty) as up, serving(tmp_path, up) as served:
        seen, until = Seen(), time.monotonic() + SOAK
        await bother(served, 99, seen, time.monotonic() + min(1.0, SOAK / 4))
        descriptors, memory = served.descriptors(), served.memory()
        work = [bother(served, seed, seen, until) for seed in range(8)]
        await asyncio.gather(meddle(served, until), *work)
        assert len(seen.whole) > 20 * SOAK
        assert await eventually(lambda: served.descriptors() <= descriptors + 8)  # as many rest in the pool
        assert served.memory() - memory < 60 << 20
        assert await served.metric("unprompt_in_flight") == 0
        text = (await served.get(b"/metrics")).body.decode()
        counted = sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("unprompt_requests_total{")
        )
        assert await served.metric('unprompt_log_records_total{result="dropped"}') == 0
        rows = {row.id.encode(): row for row in await served.recorded(int(counted), 40)}
        assert len(rows) == counted  # accepted = recorded
        assert counted <= seen.begun
        lost = [each for each in seen.whole if each not in rows or not rows[each].complete]
        changed = [each for each, body in seen.whole.items() if each in rows and rows[each].response != body]
        assert (lost, changed) == ([], [])
