"""Large bodies from one end to another, checked byte for byte, for `large_bodies.py`: what is sent, both ends of a
connection, and a gateway between them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httptools

MB = 1024 * 1024
SIZE = 256 * 1024
PIECE = bytes(range(256)) * 1024
STANDSTILL_SECONDS = 3.0


@dataclass(frozen=True)
class Body:
    """One transfer. `slow`: its receiver reads nothing for three seconds, then goes on."""

    name: str
    upload: bool
    kind: str = "application/octet-stream"
    chunked: bool = False
    slow: bool = False
    mb: int | None = None
    piece: bytes = PIECE
    last: bytes = b""

    def pieces(self, size: int) -> Iterator[bytes]:
        """So many bytes: the piece again and again, `last` over the end of the last one."""
        for _ in range(size // SIZE - 1):
            yield self.piece
        yield self.piece[: SIZE - len(self.last)] + self.last

    def checksum(self, size: int) -> int:
        """CRC-32 of them."""
        checksum = 0
        for piece in self.pieces(size):
            checksum = zlib.crc32(piece, checksum)
        return checksum


class End(asyncio.Protocol):
    """One end of a connection: sends a head and a body of so many pieces, and counts what it receives."""

    def __init__(self) -> None:
        self.received = self.checksum = 0
        self.whole = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser
        self._may_write = asyncio.Event()
        self._stands_still_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a TCP Transport
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.whole.done():
            self.whole.set_exception(exc or ConnectionError("the other side left too early"))
            self.whole.exception()  # retrieved here, for nobody may be waiting

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        self.checksum = zlib.crc32(body, self.checksum)
        if self._stands_still_at and self.received >= self._stands_still_at:
            self._stands_still_at = 0
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(STANDSTILL_SECONDS, self.transport.resume_reading)

    def stand_still_at(self, received: int) -> None:
        """Read nothing for a while after so many bytes."""
        self._stands_still_at = received

    async def send(self, head: bytes, body: Body, size: int) -> None:
        """The head, then `size` bytes, no faster than they are taken."""
        framing = b"Transfer-Encoding: chunked" if body.chunked else b"Content-Length: %d" % size
        self.transport.write(head + framing + b"\r\n\r\n")
        for piece in body.pieces(size):
            await self._may_write.wait()
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if body.chunked else piece)
            await asyncio.sleep(0)
        if body.chunked:
            self.transport.write(b"0\r\n\r\n")


class UpstreamEnd(End):
    """Answers an upload with its size and checksum, and a download with what its path asks for."""

    def __init__(self, told: list[tuple[Body, int]]) -> None:
        super().__init__()
        self.parser = httptools.HttpRequestParser(self)
        self._told = told
        self._sending: asyncio.Task[None] | None = None

    def on_message_begin(self) -> None:
        self.received = self.checksum = 0
        self._body, self._size = self._told[-1]
        if self._body.slow and self._body.upload:
            self.stand_still_at(self._size // 2)

    def on_message_complete(self) -> None:
        if self._body.upload:
            said = b"%d %d" % (self.received, self.checksum)
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        else:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % self._body.kind.encode()
            self._sending = asyncio.ensure_future(self.send(head, self._body, self._size))
        if not self.whole.done():
            self.whole.set_result(None)


class ClientEnd(End):
    """Asks, and keeps a short answer."""

    def __init__(self) -> None:
        super().__init__()
        self.parser = httptools.HttpResponseParser(self)
        self.said = b""

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.received < 100:
            self.said += body

    def on_message_complete(self) -> None:
        if not self.whole.done():
            self.whole.set_result(None)


async def transfer(port: int, body: Body, size: int) -> float:
    """Seconds for one body; a difference in any byte raises."""
    client: ClientEnd
    _, client = await asyncio.get_running_loop().create_connection(ClientEnd, "127.0.0.1", port)
    started = time.perf_counter()
    if body.upload:
        head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\n" % body.kind.encode()
        await client.send(head, body, size)
    else:
        if body.slow:
            client.stand_still_at(size // 2)
        client.transport.write(b"GET /v1/files/1/content HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(client.whole, 300)
    seconds = time.perf_counter() - started
    client.transport.close()
    given = tuple(map(int, client.said.split())) if body.upload else (client.received, client.checksum)
    if given != (size, body.checksum(size)):
        raise AssertionError(f"{body.name}: {given} arrived instead of {(size, body.checksum(size))}")
    return seconds


@contextlib.asynccontextmanager
async def gateway_before(home: Path, upstream: int):
    """`unprompt serve` with its recording worker: its port and its process id."""
    port = free_port()
    (home / "gateway.yaml").write_text(
        f'providers: {{openai: {{protocol: openai, base_url: "http://127.0.0.1:{upstream}/v1"}}}}\n'
        f'store: {{url: "sqlite:///{home}/data/unprompt.db"}}\nserver: {{drain_seconds: 1}}\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--no-jobs", "--port", str(port), "--config",
        str(home / "gateway.yaml"), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await reachable(port)
        await asyncio.sleep(1.0)  # its worker starts after it
        yield port, process.pid
    finally:
        process.terminate()
        await process.wait()


async def reachable(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"nobody listens on port {port}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
