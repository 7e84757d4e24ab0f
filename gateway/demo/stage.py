"""The demo's stage: teacher and gateway, each a process of its own, and what can be seen of them from outside."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from gateway.demo.messages import BUILT_IN
from gateway.errors import TaskError
from gateway.stores.journal import waiting

MODEL = "gpt-6-luna"
LIVE = 600
"""So many messages are different of those that are asked while the candidate takes over."""
Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose. `upstream` and `model`: a real LLM instead of the teacher."""

    data: Path | None = None
    rows: int = 2500
    home: Path | None = None
    seed: int = 0
    error_rate: float = 0.01
    upstream: str | None = None
    model: str = MODEL
    at_once: int = 64
    keep: bool = False


def write_config(home: Path, upstream: str, policy: dict[str, Any]) -> None:
    """An ordinary config in `home`, with this policy for all tasks. It names its store by a whole path, so that
    commands find it from any folder."""
    config = {
        "providers": {"openai": {"protocol": "openai", "base_url": upstream}},
        "store": {"url": f"sqlite:///{home.resolve() / 'data' / 'unprompt.db'}"},
        "jobs": {"poll_seconds": 0.5},
        "tasks": {"default": policy},
    }
    folder = home / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gateway.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")


@asynccontextmanager
async def teacher_at(options: Options, home: Path) -> AsyncIterator[str]:
    """The base URL of the teacher, or of the real LLM that was chosen instead."""
    if options.upstream is not None:
        yield options.upstream.rstrip("/")
        return
    command = [sys.executable, "-m", "gateway.demo.teacher", "--error-rate", str(options.error_rate)]
    command += ["--seed", str(options.seed), "--rows", str(BUILT_IN + LIVE), "--model", options.model]
    async with _process([*command, "--data", str(options.data or "builtin")], home / "teacher.log") as line:
        yield line.rpartition(" ")[2]


@asynccontextmanager
async def gateway_at(home: Path) -> AsyncIterator[str]:
    """Where `unprompt serve` with the config in this folder listens.

    Raises:
        TaskError: it did not start; says where its log is.
    """
    config = home / "config" / "gateway.yaml"
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", "0"]
    async with _process(command, home / "gateway.log") as line:
        yield line.split(" relays ")[1].split("/v1 ")[0]


async def stay(options: Options, url: str, say: Say) -> None:
    """With `--keep`, for ever: whoever has had enough presses Ctrl-C."""
    if options.keep:
        say(f"everything stays up until Ctrl-C: {url}/unprompt/ to look at, {url}/v1 for your own requests")
        await asyncio.Event().wait()


@asynccontextmanager
async def _process(command: Sequence[str], log: Path) -> AsyncIterator[str]:
    """A child that says on its first line where it is; gives that line."""
    with log.open("wb") as errors:
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=errors)
    try:
        line = (await child.stdout.readline()).decode().strip() if child.stdout else ""
        if not line:
            raise TaskError(f"{command[2]} did not start; {log} says why:\n{log.read_text()[-2000:]}")
        yield line
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), 30)
            except TimeoutError:
                child.kill()


async def route_in_force(url: str) -> None:
    """A flip is seen by the gateway within a fraction of a second; wait until its metrics say so."""
    async with aiohttp.ClientSession() as session:
        for _ in range(100):
            async with session.get(f"{url}/metrics") as answer:
                if "unprompt_route_weight{" in await answer.text():
                    return
            await asyncio.sleep(0.1)
    raise TaskError("the gateway did not take up the new route within 10 s")


async def recorded(home: Path, seconds: float = 10.0) -> None:
    """Wait until the worker has moved all that was recorded into the store.

    Raises:
        TaskError: it has not within so many seconds.
    """
    until = time.monotonic() + seconds
    while (left := waiting(home / "data" / "journal")[0]) > 0:
        if time.monotonic() > until:
            raise TaskError(
                f"{left} bytes are not in the store after {seconds:g} s; {home / 'gateway.log'} says why"
            )
        await asyncio.sleep(0.1)


async def stats_of(upstream: str) -> dict[str, Any]:
    """The teacher's own count of what it was asked; a real LLM has none."""
    url = upstream.removesuffix("/v1") + "/stats"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            found: dict[str, Any] = await answer.json() if answer.status == 200 else {}
            return found
    except (aiohttp.ClientError, ValueError):
        return {}
