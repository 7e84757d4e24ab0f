"""`unprompt serve --workers N`: one port, one store, one page of metrics, and relays that may die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from relaying import ANSWER, CHAT, Upstream, Wire, answering, openai, request, response, story, upstream

from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the relays in /proc")

WORKERS = 3
PATIENCE = 20.0


def children(pid: int) -> dict[int, bytes]:
    """The command lines of a process's children."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes()
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def soon(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.02)
    return True


class Together:
    """The running program, seen from outside."""

    def __init__(self, process: subprocess.Popen[str], home: Path, port: int) -> None:
        self.process, self.home, self.port = process, home, port

    @property
    def relays(self) -> list[int]:
        return sorted(pid for pid, line in children(self.process.pid).items() if b"\0serve\0" in line)

    @property
    def offline(self) -> list[int]:
        return [pid for pid, line in children(self.process.pid).items() if b"\0worker\0" in line]

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))

    async def ask(self, data: bytes) -> bytes:
        """One request on a connection of its own; the body of its answer."""
        wire = await self.connect()
        await wire.send(data)
        body = (await wire.message()).body
        wire.close()
        return body

    async def page(self, path: bytes) -> str:
        return (await self.ask(request(b"", method=b"GET", path=path))).decode()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        families = text_string_to_metric_families(await self.page(b"/metrics"))
        samples = [s for family in families for s in family.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    async def versions(self) -> dict[str, str]:
        families = text_string_to_metric_families(await self.page(b"/metrics"))
        found = [s.labels for f in families for s in f.samples if s.name == "unprompt_config_version_info"]
        return {labels["worker"]: labels["version"] for labels in found}

    def flip(self, *targets: dict[str, Any]) -> None:
        route = {"name": "flip", "match": {"provider": "openai"}, "targets": list(targets)}
        partial = self.home / "routes.partial"
        partial.write_text(yaml.safe_dump({"routes": [route]}))
        partial.replace(self.home / "routes.yaml")

    def rows(self) -> list[tuple[str, bool]]:
        """All that is recorded, by id."""
        store = SqliteStore(self.home / "data" / "unprompt.db")
        Recorder(self.home / "data" / "journal", store).drain()
        rows = [(row.id, row.complete) for row in store.exchanges()]
        store.close()
        return rows

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextlib.asynccontextmanager
async def serving(home: Path, told: Upstream, *more: str) -> AsyncIterator[Together]:
    """`unprompt serve --workers 3`; whatever is left of it at the end is killed."""
    config = {"providers": openai(told), "store": {"url": f"sqlite:///{home}/data/unprompt.db"}}
    (home / "gateway.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", "0", "--workers", str(WORKERS)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--config", str(home / "gateway.yaml"), *more],
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    assert process.stdout is not None
    url = (await asyncio.to_thread(process.stdout.readline)).split(" relays ")[1].split("/v1 ")[0]
    together = Together(process, home, int(url.rpartition(":")[2]))
    try:
        yield together
    finally:
        for pid in (*children(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


class Load:
    """Clients that ask on and on, and note the id of every exchange that was answered whole."""

    def __init__(self, together: Together, clients: int) -> None:
        self.together, self.clients = together, clients
        self.answered: set[str] = set()
        self.failed = 0
        self.over = asyncio.Event()

    async def __aenter__(self) -> Load:
        self.tasks = [asyncio.create_task(self._client()) for _ in range(self.clients)]
        assert await soon(lambda: len(self.answered) > 20)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.over.set()
        await asyncio.gather(*self.tasks)

    async def _client(self) -> None:
        while not self.over.is_set():
            try:
                wire = await self.together.connect()
                while not self.over.is_set():
                    await wire.send(request(CHAT))
                    answer = await wire.message()
                    assert (answer.status, answer.body, answer.complete) == (200, ANSWER, True)
                    self.answered.add((answer.header(b"x-unprompt-exchange") or b"").decode())
                wire.close()
            except (asyncio.IncompleteReadError, ConnectionError):
                self.failed += 1


@story
async def test_they_share_the_port_the_store_and_the_page_of_metrics(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        assert len(together.relays) == WORKERS
        wires = [await together.connect() for _ in range(30)]
        for wire in wires:
            await wire.send(request(CHAT))
            assert (await wire.message()).status == 200
        until = time.monotonic() + PATIENCE  # an answer is counted when it has left
        while await together.metric("unprompt_requests_total", outcome="ok") < 30 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for _ in range(5):  # whoever answers
            assert await together.metric("unprompt_requests_total", outcome="ok") == 30
        assert await together.metric("unprompt_log_records_total", result="written") == 60
        for wire in wires:
            wire.close()
        assert set(await together.versions()) == {"0", "1", "2"}
        assert json.loads(await together.page(b"/readyz")) == {"status": "ready", "reasons": []}
        writers = {file.stem.rpartition("-")[2] for file in (tmp_path / "data" / "journal").glob("*.journal")}
        assert len(writers) >= 2  # the kernel did spread them
        assert together.end() == 0
        assert [complete for _, complete in together.rows()] == [True] * 30
        assert not list((tmp_path / "data" / "journal").glob("*.journal"))


@story
async def test_relays_that_are_killed_are_replaced_and_nothing_is_lost_or_counted_twice(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        async with Load(together, clients=12) as load:
            for _ in range(6):
                before = together.relays
                answered = len(load.answered)
                os.kill(before[0], signal.SIGKILL)
                assert await soon(lambda known=set(before): len(set(together.relays) - known) == 1)  # type: ignore[misc]
                assert await soon(lambda sofar=answered: len(load.answered) > sofar + 20)  # type: ignore[misc]
        assert await together.metric("unprompt_relay_restarts_total") == 6
        until = time.monotonic() + PATIENCE
        while await together.metric("unprompt_in_flight") > 0:
            assert time.monotonic() < until
        counted = await together.metric("unprompt_requests_total", outcome="ok")
        assert together.end() == 0
        rows = dict(together.rows())
        assert load.answered <= {key for key, complete in rows.items() if complete}
        # One may die between an answer's leaving and its being counted, or the other way round.
        assert abs(counted - len(load.answered)) <= load.failed
        assert load.failed <= 6 * 12
        assert not list((tmp_path / "data" / "journal").glob("*.torn"))


@story
async def test_a_flip_reaches_every_worker_within_a_second_and_fails_no_request(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        async with Load(together, clients=6) as load:
            for number in range(5):
                before = set((await together.versions()).values())
                together.flip({"upstream": "openai", "model": f"gpt-{number}"})
                await asyncio.sleep(1.0)
                now = await together.versions()
                assert len(now) == WORKERS
                assert len(set(now.values())) == 1
                assert set(now.values()) != before
        assert load.failed == 0
        assert await together.metric("unprompt_config_reload_total", result="ok") == 6 * WORKERS


@story
async def test_sighup_reads_the_routes_again_in_all(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        await together.ask(request(CHAT))
        assert await together.metric("unprompt_config_reload_total", result="ok") == WORKERS
        together.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + PATIENCE
        while await together.metric("unprompt_config_reload_total", result="ok") < 2 * WORKERS:
            assert time.monotonic() < until
        assert len(together.relays) == WORKERS


@story
async def test_a_successor_starts_with_the_last_good_routes(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        together.flip({"upstream": "openai", "model": "gpt-good"})
        await asyncio.sleep(1.0)
        good = await together.versions()
        (tmp_path / "routes.yaml").write_text("routes: [{oops")
        (tmp_path / "gateway.yaml").write_text("nonsense: true")  # nobody asks for it while it runs
        await asyncio.sleep(1.0)
        before = together.relays
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert await soon(lambda: len(together.relays) == WORKERS and set(before).isdisjoint(together.relays))
        assert await together.ask(request(CHAT)) == ANSWER
        until = time.monotonic() + PATIENCE
        while await together.versions() != good:
            assert time.monotonic() < until


async def slow(told: Upstream, wire: Wire) -> None:
    """Answers after a second."""
    while True:
        await told.asked(wire)
        await asyncio.sleep(1.0)
        await wire.send(response())


@story
async def test_sigterm_lets_every_request_under_way_finish(tmp_path: Path) -> None:
    async with upstream(slow) as up, serving(tmp_path, up) as together:
        wires = [await together.connect() for _ in range(9)]
        for wire in wires:
            await wire.send(request(CHAT))
        assert await soon(lambda: len(up.requests) == 9)
        together.process.send_signal(signal.SIGTERM)
        answers = [await wire.message() for wire in wires]
        assert [(answer.status, answer.body) for answer in answers] == [(200, ANSWER)] * 9
        assert together.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionError):
            await together.connect()
        assert [complete for _, complete in together.rows()] == [True] * 9


async def silent(told: Upstream, wire: Wire) -> None:
    """Takes the request, and that is all."""
    await told.asked(wire)
    await asyncio.sleep(PATIENCE)


@story
async def test_a_second_sigterm_ends_all_at_once(tmp_path: Path) -> None:
    async with upstream(silent) as up, serving(tmp_path, up) as together:
        wire = await together.connect()
        await wire.send(request(CHAT))
        assert await soon(lambda: len(up.requests) == 1)
        relays = together.relays
        together.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert together.process.poll() is None
        together.process.send_signal(signal.SIGTERM)
        assert together.process.wait(5) == 130
        assert await soon(lambda: not any(map(alive, relays)), 5)
        wire.close()


@story
async def test_the_supervisor_leaves_no_orphans(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        assert await together.ask(request(CHAT)) == ANSWER
        os.kill(together.relays[0], signal.SIGKILL)  # its successor was forked later: it holds other descriptors
        assert await soon(lambda: len(together.relays) == WORKERS and len(together.offline) == 1)
        await asyncio.sleep(1.0)
        everybody = [*together.relays, *together.offline]
        assert len(everybody) == WORKERS + 1
        os.kill(together.process.pid, signal.SIGKILL)
        assert await soon(lambda: not any(map(alive, everybody)))
        assert [complete for _, complete in together.rows()] == [True]


@story
async def test_the_worker_killed_under_load_loses_nothing(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        assert await soon(lambda: len(together.offline) == 1)
        async with Load(together, clients=6) as load:
            for _ in range(3):
                before = together.offline
                os.kill(before[0], signal.SIGKILL)
                assert await soon(
                    lambda before=before: together.offline != before and len(together.offline) == 1  # type: ignore[misc]
                )
                await asyncio.sleep(0.5)
        assert load.failed == 0
        assert await together.metric("unprompt_log_writer_restarts_total", part="process") == 3
        assert await together.metric("unprompt_log_writer_up") == 1
        assert together.end() == 0
        rows = together.rows()
        assert load.answered == {key for key, complete in rows if complete}
        assert len(rows) == len({key for key, _ in rows})


@story
async def test_a_taken_port_is_said_and_nothing_starts(tmp_path: Path) -> None:
    async with upstream(answering(response())) as up, serving(tmp_path, up) as together:
        command = [sys.executable, "-m", "gateway", "serve", "--workers", "2", "--port", str(together.port)]
        second = await asyncio.to_thread(
            subprocess.run, [*command, "--config", str(tmp_path / "gateway.yaml")], capture_output=True, text=True
        )
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{together.port}: Address already in use" in second.stderr
        assert await together.ask(request(CHAT)) == ANSWER
