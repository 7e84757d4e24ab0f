"""A relay that is not dead, but does nothing any more: everybody who is connected to it waits in vain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from relaying import ANSWER, CHAT, answering, request, response, story, upstream

from faults.serving import Served, children, commandline, eventually, serving
from gateway.pulse import Pulse, Watch

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds the relays in /proc")
LIMIT = 1.5

HANGS = """
import re, signal, time

def waits_for_ever(*_):
    time.sleep(3600)

def computes_for_ever(*_):
    re.match("(a+)+b", "a" * 64)  # holds the interpreter's lock

signal.signal(signal.SIGUSR1, waits_for_ever)
signal.signal(signal.SIGVTALRM, computes_for_ever)
"""
"""Python runs it at its start, before the program: then each signal is a fault in the code of the event loop."""


@pytest.fixture
def faults(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(HANGS)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "start"), os.environ.get("PYTHONPATH", "")])}


def relays(served: Served) -> list[int]:
    return [pid for pid in children(served.process.pid) if b"\0serve\0" in commandline(pid)]


async def answers(served: Served) -> bool:
    """Whether a request of a fresh client is answered within two seconds."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
        return (await asyncio.wait_for(served.ask(request(CHAT)), 2)).body == ANSWER
    return False


async def answers_soon(served: Served, times: int) -> bool:
    """Whether so many requests one after the other are answered, from some moment in the next 20 seconds on."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if all([await answers(served) for _ in range(times)]):
            return True
    return False


@linux
@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGUSR1, signal.SIGVTALRM])
@story
async def test_of_several_relays_one_that_hangs_is_replaced(
    tmp_path: Path, faults: dict[str, str], fault: signal.Signals
) -> None:
    limits = {"hang_seconds": LIMIT}
    async with (
        upstream(answering(response())) as up,
        serving(tmp_path, up, server=limits, workers=2, environment=faults, clean=False) as served,
    ):
        assert await eventually(lambda: len(relays(served)) == 2)
        assert await answers_soon(served, 10)
        before = relays(served)
        os.kill(before[0], fault)
        assert await eventually(lambda: before[0] not in relays(served) and len(relays(served)) == 2)
        assert await answers_soon(served, 20)  # nobody meets it any more
        assert before[1] in relays(served)
        assert await served.metric("unprompt_relay_restarts_total") == 1
        assert "has had no pulse" in served.log
        if fault != signal.SIGSTOP:  # who is stopped cannot say where
            assert "waits_for_ever" in served.log or "computes_for_ever" in served.log


@linux
@story
async def test_a_relay_that_is_alone_and_hangs_replaces_itself_and_keeps_its_port_and_process(
    tmp_path: Path, faults: dict[str, str]
) -> None:
    async with (
        upstream(answering(response())) as up,
        serving(tmp_path, up, server={"hang_seconds": LIMIT}, environment=faults, clean=False) as served,
    ):
        assert await answers(served)
        served.signal(signal.SIGUSR1)
        assert not await answers(served)
        assert await answers_soon(served, 20)
        assert served.process.poll() is None
        assert "waits_for_ever" in served.log
        await served.recorded(6)  # its worker is there again, too
        served.signal(signal.SIGTERM)
        assert await served.ended() == 0


@linux
@story
async def test_a_relay_that_is_alone_and_lets_no_thread_run_ends_and_says_where(
    tmp_path: Path, faults: dict[str, str]
) -> None:
    """Its own watchdog cannot run, either; whoever started it sees it end, and starts it again."""
    closing = response(ANSWER, b"Connection: close")  # an upstream gives up on a connection that rests too long
    async with (
        upstream(answering(closing)) as up,
        serving(tmp_path, up, server={"hang_seconds": 1.0}, environment=faults, clean=False) as served,
    ):
        assert await answers(served)
        await asyncio.sleep(1)  # the watchdog has begun to watch
        served.signal(signal.SIGVTALRM)
        patience = 20.0 * (os.cpu_count() or 1)
        assert await served.ended(patience) == -signal.SIGPROF
        assert "computes_for_ever" in served.log


@linux
@story
async def test_a_relay_that_is_asked_where_it_stands_says_so_and_goes_on(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up, clean=False) as served:
        assert await answers(served)
        served.signal(signal.SIGUSR2)
        assert await eventually(lambda: "most recent call first" in served.log)
        assert await answers(served)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_counted_until_the_next_beat() -> None:
    clock, pulse = Clock(), Pulse()
    watch = Watch(pulse, clock)
    for _ in range(10):
        clock.now += 0.2
        watch.seconds()
    assert watch.seconds() == pytest.approx(2.0)
    pulse.beat()
    assert watch.seconds() == 0.0
    clock.now += 0.2
    assert watch.seconds() == pytest.approx(0.2)


def test_a_machine_that_slept_for_an_hour_takes_nobody_for_dead() -> None:
    clock = Clock()
    watch = Watch(Pulse(), clock)
    clock.now += 3600.0
    assert watch.seconds() <= 1.0


def test_a_successor_starts_without_the_silence_of_the_one_before() -> None:
    clock = Clock()
    watch = Watch(Pulse(), clock)
    for _ in range(100):
        clock.now += 0.2
        watch.seconds()
    watch.reset()
    assert watch.seconds() == 0.0
