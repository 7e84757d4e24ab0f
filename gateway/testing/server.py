"""What every fake server shares: life in a thread, a record of what arrived, and faults on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from aiohttp import MultipartReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.multipart import BodyPartReader
from aiohttp.streams import StreamReader
from multidict import CIMultiDict

Moment = Literal["arrived", "processed"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY = 512 * 1024 * 1024


@dataclass(frozen=True)
class Received:
    """One request as it arrived: header names are looked up in any case, `body` is the raw bytes."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed; `ValueError` when it is not JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next `times` requests whose method and path (a shell pattern) it fits.

    With `drop` the request is carried out and the connection is then cut, so that the answer is lost;
    otherwise nothing is carried out and the answer is an error of this status and code, or this `body`, as
    it is, HTML when it starts with `<` (a load balancer's page, say).
    """

    status: int = 500
    times: int = 1
    method: str = "*"
    path: str = "*"
    drop: bool = False
    body: str | None = None
    retry_after: float | None = None
    code: str | None = None
    message: str = "The server had an error while processing your request. Sorry about that!"

    def fits(self, request: Received) -> bool:
        """Whether this request is one of those that go wrong."""
        return fnmatchcase(request.method, self.method) and fnmatchcase(request.path, self.path)

    def response(self) -> web.Response:
        """What is answered instead."""
        wait = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        if self.body is None:
            return Refusal(self.status, self.message, code=self.code).response(wait)
        kind = "text/html" if self.body.startswith("<") else "application/json"
        return web.Response(text=self.body, status=self.status, content_type=kind, headers=wait)


class Refusal(Exception):
    """Raise it in a handler or in an `Answer` to reply with an error in the shape of the OpenAI API."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def response(self, headers: Mapping[str, str] | None = None) -> web.Response:
        """The refusal in the shape that the OpenAI API gives its errors."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return web.json_response({"error": error}, status=self.status, headers=headers)


class FakeServer:
    """A real HTTP server on loopback, in a thread of its own; a subclass gives it routes and knowledge.

    Everything received is in `received`; `observe` is called in the server's thread when a request has
    arrived and again when it has been carried out but not yet answered. A stopped server can be started
    again, with the same port and all that it knew. With `api_key`, requests with another get 401.
    """

    def __init__(self, *, api_key: str | None = None) -> None:
        self.api_key = api_key
        self.observe: Callable[[Moment, Received], None] = lambda moment, received: None
        self.received: list[Received] = []
        self._faults: list[Fault] = []
        self._port = 0

    def routes(self) -> list[web.RouteDef]:
        """What the server answers; every other path gets a 404."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def root(self) -> str:
        """Scheme, host and port, without a path."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve in a thread of its own; returns when connections are accepted."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    async def _listen(self) -> None:
        app = web.Application(middlewares=[self._around], client_max_size=_MAX_BODY)
        app.add_routes([*self.routes(), web.route("*", "/{path:.*}", self._nowhere)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    def stop(self) -> None:
        """Cut every connection and stop listening: from now on connections are refused."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(self, fault: Fault) -> None:
        """Let the next requests that this fits go wrong; faults are used up in the order they were given."""
        self._faults.append(fault)

    @web.middleware
    async def _around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record, then go wrong as told, then answer."""
        body = await request.read()
        received = Received(request.method, request.path, request.query, CIMultiDict(request.headers), body)
        self.received.append(received)
        self.observe("arrived", received)
        fault = self._next_fault(received)
        if fault is not None and not fault.drop:
            return fault.response()
        try:
            self._authorize(request)
            response = await handler(request)
        except Refusal as refusal:
            response = refusal.response()
        self.observe("processed", received)
        if fault is not None and request.transport is not None:
            request.transport.abort()
        return response

    def _next_fault(self, received: Received) -> Fault | None:
        for at, fault in enumerate(self._faults):
            if fault.fits(received):
                left = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                self._faults[at : at + 1] = left
                return fault
        return None

    def _authorize(self, request: web.Request) -> None:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    async def _nowhere(self, request: web.Request) -> web.Response:
        raise Refusal(404, f"Invalid URL ({request.method} {request.path})")


def object_in(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; `Refusal` when it is none."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    return parsed


async def form_in(request: web.Request, body: bytes) -> dict[str, tuple[str, bytes]]:
    """The parts of a multipart body by name: (file name, content)."""
    if not request.content_type.startswith("multipart/"):
        raise Refusal(400, "Expected a multipart form.")
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), max(2**16, len(body)), loop=loop)  # it is all there already
    stream.feed_data(body)
    stream.feed_eof()
    form = {}
    async for part in MultipartReader(request.headers, stream):
        if isinstance(part, BodyPartReader) and part.name:
            form[part.name] = (part.filename or "", bytes(await part.read(decode=True)))
    return form
