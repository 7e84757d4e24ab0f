"""Both sides of the relay with the bytes on show: an upstream and a client on raw sockets, and the real `App`
between them, all in one event loop, so that a story can say exactly what happens when."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import yaml

from gateway.app import App, Files
from gateway.domain.exchange import Exchange
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

P = ParamSpec("P")
PATIENCE = 30.0
CHAT = b'{"model":"gpt-6-luna","messages":[{"role":"user","content":"hi"}]}'
ANSWER = (
    b'{"id":"c1","object":"chat.completion","model":"gpt-6-luna-1","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}'
)


def story(told: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """An asynchronous test, in an event loop of its own, the one that the product uses."""

    @functools.wraps(told)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        if sys.platform == "win32":
            asyncio.run(told(*args, **kwargs))
            return
        import uvloop

        uvloop.run(told(*args, **kwargs))

    return test


@dataclass
class Message:
    """A request or an answer as it came: `head` without its empty line, `body` without chunk marks."""

    head: bytes
    body: bytes = b""
    chunked: bool = False
    complete: bool = False

    @property
    def start(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        pairs = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [(name, value.strip()) for name, _, value in pairs]

    @property
    def names(self) -> list[bytes]:
        return [name.lower() for name, _ in self.headers]

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        return await asyncio.wait_for(self.reader.readexactly(count), PATIENCE)

    async def some(self) -> bytes:
        """What is there next; empty at the end."""
        return await asyncio.wait_for(self.reader.read(65_536), PATIENCE)

    async def until(self, mark: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), PATIENCE)

    async def rest(self) -> bytes:
        """Everything until the other side closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    async def ends(self, seconds: float = PATIENCE) -> bool:
        """Whether the other side ends the connection within so many seconds."""
        try:
            return await asyncio.wait_for(self.reader.read(), seconds) is not None
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    async def message(self, *, bodiless: bool = False) -> Message:
        """The next whole message; `complete` says whether it came to its marked end."""
        message = Message((await self.until(b"\r\n\r\n"))[:-4])
        message.chunked = b"chunked" in (message.header(b"transfer-encoding") or b"")
        length = message.header(b"content-length")
        if bodiless:
            message.complete = True
        elif message.chunked:
            await self._chunks(message)
        elif length is not None:
            await self._exactly(message, int(length))
        elif message.start.startswith(b"HTTP/"):
            message.body, message.complete = await self.rest(), True
        else:
            message.complete = True
        return message

    async def _exactly(self, message: Message, length: int) -> None:
        while len(message.body) < length:
            piece = await asyncio.wait_for(self.reader.read(length - len(message.body)), PATIENCE)
            if not piece:
                return
            message.body += piece
        message.complete = True

    async def _chunks(self, message: Message) -> None:
        while True:
            try:
                size = int((await self.until(b"\r\n")).split(b";")[0], 16)
                message.body += await self.read(size)
                await self.until(b"\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if size == 0:
                message.complete = True
                return

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Wire], Awaitable[None]]


@dataclass
class Upstream:
    """Plays `script` on each connection. Every request that it read with `asked` is in `requests`."""

    script: Script
    requests: list[Message] = field(default_factory=list)
    connections: int = 0
    failures: list[Exception] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def asked(self, wire: Wire) -> Message:
        message = await wire.message()
        self.requests.append(message)
        return message


@contextlib.asynccontextmanager
async def upstream(script: Callable[[Upstream, Wire], Awaitable[None]]) -> AsyncIterator[Upstream]:
    """A server on loopback that plays the script; a script that fails fails the test."""
    told = Upstream(script=lambda wire: script(told, wire))

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the other side may leave
                await told.script(Wire(reader, writer))
        except Exception as error:
            told.failures.append(error)
            raise
        finally:
            writer.close()

    server = await asyncio.start_server(play, "127.0.0.1", 0, limit=1 << 20)
    told.port = server.sockets[0].getsockname()[1]
    try:
        yield told
    finally:
        server.close()
    assert told.failures == []


def answering(*answers: bytes) -> Callable[[Upstream, Wire], Awaitable[None]]:
    """A script that gives these bytes to the requests of a connection in turn, the last one again and again."""

    async def script(told: Upstream, wire: Wire) -> None:
        for number in range(1_000_000):
            await told.asked(wire)
            await wire.send(answers[min(number, len(answers) - 1)])

    return script


def response(body: bytes = ANSWER, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer with its length, and JSON unless the headers say otherwise."""
    named = [header.split(b":")[0].lower() for header in headers]
    kind = () if b"content-type" in named else (b"Content-Type: application/json",)
    lines = [b"HTTP/1.1 " + status, *kind, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def request(
    body: bytes = CHAT, *headers: bytes, method: bytes = b"POST", path: bytes = b"/v1/chat/completions"
) -> bytes:
    """A whole request; JSON with its length unless the headers say otherwise."""
    named = [header.split(b":")[0].lower() for header in headers]
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: gateway", *headers]
    if body and b"content-type" not in named:
        lines.append(b"Content-Type: application/json")
    if body and b"transfer-encoding" not in named and b"content-length" not in named:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class Relay:
    """The running gateway."""

    app: App
    port: int
    home: Path

    @property
    def routes(self) -> Path:
        return self.app.files.routes

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))

    async def ask(self, data: bytes, *, bodiless: bool = False) -> Message:
        """One request on a connection of its own."""
        wire = await self.connect()
        await wire.send(data)
        answer = await wire.message(bodiless=bodiless)
        wire.close()
        return answer

    async def get(self, path: bytes) -> Message:
        return await self.ask(request(b"", method=b"GET", path=path))

    def rows(self) -> list[Exchange]:
        """All that is recorded so far."""
        opened = SqliteStore(self.app.places.store)
        try:
            Recorder(self.app.places.journal, opened).drain()
            return opened.exchanges()
        finally:
            opened.close()

    async def row(self, *, ended: bool = True) -> Exchange:
        """The only exchange, as soon as its end is recorded."""
        until = time.monotonic() + PATIENCE
        while True:
            rows = self.rows()
            if len(rows) == 1 and (not ended or rows[0].status is not None):
                return rows[0]
            assert time.monotonic() < until, rows
            await asyncio.sleep(0.02)

    async def metrics(self) -> str:
        return (await self.get(b"/metrics")).body.decode()

    def everything_written(self) -> bytes:
        """The bytes of every file: store, journal, write-ahead log."""
        self.rows()
        with sqlite3.connect(self.app.places.store) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return b"".join(file.read_bytes() for file in sorted(self.home.rglob("*")) if file.is_file())


@contextlib.asynccontextmanager
async def relay(
    home: Path,
    providers: dict[str, Any],
    *,
    routes: list[dict[str, Any]] | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Relay]:
    """The gateway on a free port; stopped at the end, when nothing may be under way any more."""
    home.mkdir(parents=True, exist_ok=True)
    config = {"providers": providers, "store": {"url": f"sqlite:///{home}/data/unprompt.db"}, **sections}
    (home / "gateway.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if routes is not None:
        (home / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    app = App(Files.beside(home / "gateway.yaml"), port=0)
    url = await app.start()
    try:
        yield Relay(app, int(url.rpartition(":")[2]), home)
    finally:
        app.config.server.__dict__["drain_seconds"] = 0.5  # a story that left something hanging should not wait
        await app.stop()
        assert app.house.active == set()


def openai(told: Upstream) -> dict[str, Any]:
    """The provider section for one OpenAI-shaped upstream."""
    return {"openai": {"protocol": "openai", "base_url": told.url}}


async def soon(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether it holds within so many seconds."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.005)
    return True
