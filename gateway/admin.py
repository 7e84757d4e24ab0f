"""Our own pages: `/metrics`, `/healthz`, `/readyz`, `/unprompt/...`. An ordinary aiohttp application, off
the request path."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from aiohttp import http_exceptions, web
from aiohttp.typedefs import Middleware

from gateway.dashboard.desk import Wish
from gateway.domain.feedback import Feedback, read_feedback
from gateway.errors import BadRequest, Forbidden, GatewayError

_FEEDBACK = "/unprompt/api/feedback"
WORK_SECONDS = 0.003
"""So long a page is worked at before requests have their turn, which under full load takes twice as long."""


class Dashboard(Protocol):
    """Makes the pages below `/unprompt/`."""

    async def board(self) -> str: ...
    async def task(self, name: str) -> str: ...
    async def report(self, evaluation: str) -> bytes: ...
    async def tasks_json(self) -> object: ...
    async def task_json(self, name: str) -> object: ...
    async def flips_json(self) -> object: ...
    async def promote(self, name: str, wish: Wish) -> object: ...
    async def roll_back(self, name: str) -> object: ...


Ready = Callable[[], list[str]]
Note = Callable[[Feedback], Awaitable[bool]]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def quote_nobody(record: logging.LogRecord) -> bool:
    """A filter of aiohttp's log: of a request that is no HTTP it quotes the bytes, perhaps a token."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, http_exceptions.HttpProcessingError):
        record.msg, record.args = "a request for a page of ours is no HTTP (%s)", (type(error).__name__,)
        record.exc_info = record.exc_text = None
    return True


logging.getLogger("aiohttp.server").addFilter(quote_nobody)


def application(
    metrics: Callable[[], Iterable[bytes]],
    not_ready: Ready,
    token: str | None,
    note: Note | None = None,
    dashboard: Dashboard | None = None,
) -> web.Application:
    """`metrics` gives its page in pieces, between which requests are served; `not_ready` the reasons why traffic
    should not come here; `token` opens the pages beyond loopback; `note` keeps feedback and tells whether it was
    new; `dashboard` makes the pages for people."""

    async def scrape(_request: web.Request) -> web.Response:
        text: list[bytes] = []
        since = time.perf_counter()
        for piece in metrics():
            text.append(piece)
            if time.perf_counter() - since > WORK_SECONDS:
                await asyncio.sleep(0)
                since = time.perf_counter()
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=b"".join(text), headers=headers)

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_request: web.Request) -> web.Response:
        reasons = not_ready()
        body = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        return web.json_response(body, status=503 if reasons else 200)

    app = web.Application(middlewares=[_one_answer, _guard(token)])
    app.add_routes([web.get("/metrics", scrape), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    if note is not None:
        app.add_routes([web.post(_FEEDBACK, _feedback(note, token))])
    if dashboard is not None:
        app.add_routes([*_dashboard(dashboard), *_flips(dashboard, token)])
    return app


_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def _dashboard(made: Dashboard) -> list[web.RouteDef]:
    async def board(_request: web.Request) -> web.Response:
        return _page(await made.board())

    async def task(request: web.Request) -> web.Response:
        return _page(await made.task(request.match_info["name"]))

    async def report(request: web.Request) -> web.Response:
        return _page((await made.report(request.match_info["id"])).decode("utf-8", "replace"))

    async def tasks_json(_request: web.Request) -> web.Response:
        return _json(await made.tasks_json())

    async def task_json(request: web.Request) -> web.Response:
        return _json(await made.task_json(request.match_info["name"]))

    async def flips_json(_request: web.Request) -> web.Response:
        return _json(await made.flips_json())

    async def root(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/unprompt/"})

    return [
        web.get("/unprompt", root),
        web.get("/unprompt/", board),
        web.get("/unprompt/tasks/{name}", task),
        web.get("/unprompt/reports/{id}", report),
        web.get("/unprompt/api/tasks", tasks_json),
        web.get("/unprompt/api/tasks/{name}", task_json),
        web.get("/unprompt/api/promotions", flips_json),
    ]


def _flips(made: Dashboard, token: str | None) -> list[web.RouteDef]:
    async def wished(request: web.Request) -> bytes:
        """What was posted, once it is sure that no page of another site did."""
        _refuse_other_sites(request, token)
        body = await request.read()
        if body and request.content_type != "application/json":
            raise BadRequest(f"send JSON (content type application/json, not {request.content_type})")
        return body

    async def promote(request: web.Request) -> web.Response:
        try:
            wish = msgspec.json.decode(await wished(request) or b"{}", type=Wish)
        except msgspec.DecodeError as error:
            raise BadRequest(f"{error}; known keys: {', '.join(Wish.__struct_fields__)}") from None
        return _json(await made.promote(request.match_info["name"], wish))

    async def roll_back(request: web.Request) -> web.Response:
        await wished(request)
        return _json(await made.roll_back(request.match_info["name"]))

    return [
        web.post("/unprompt/api/tasks/{name}/promote", promote),
        web.post("/unprompt/api/tasks/{name}/rollback", roll_back),
    ]


def _page(text: str) -> web.Response:
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return web.Response(text=text, content_type="text/html", headers=headers)


def _json(value: object) -> web.Response:
    body = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    return web.Response(text=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def _feedback(note: Note, token: str | None) -> _Handler:
    async def feedback(request: web.Request) -> web.Response:
        _refuse_other_sites(request, token)
        if request.content_type != "application/json":
            raise BadRequest(f"feedback is JSON (content type application/json, not {request.content_type})")
        try:
            remark = read_feedback(await request.read())
        except ValueError as error:
            raise BadRequest(str(error)) from None
        is_new = await note(remark)
        return web.json_response(
            {"exchange_id": remark.exchange_id, "noted": is_new}, status=201 if is_new else 200
        )

    return feedback


def _refuse_other_sites(request: web.Request, token: str | None) -> None:
    """Any web page may have the browser of somebody on this machine post something here, and must not: a page's
    origin is named by the browser, and only one of this machine's own may, or who has the token."""
    origin = request.headers.get("Origin")
    if origin is None or _has_token(request, token):
        return
    try:
        host = urlsplit(origin).hostname or ""
        own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = False
    if not own:
        raise Forbidden("a page of another site may not write here")


_CODES = {405: "bad_request", 413: "body_too_large"}


@web.middleware
async def _one_answer(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """One answer a connection: the next request on it may be one to relay, which is not done here."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = _error(error.status, _CODES.get(error.status, "unknown_path"), error.reason)
    except GatewayError as error:
        response = _error(error.status, error.code, str(error))
    response.force_close()
    return response


def _guard(token: str | None) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        open_to_all = request.path in ("/healthz", "/readyz")
        if open_to_all or (_is_loopback(request) and _is_named_so(request)) or _has_token(request, token):
            return await handler(request)
        return _error(403, "forbidden", "from beyond loopback this page needs 'Authorization: Bearer TOKEN', "
                      "with the token in the variable that auth.admin_token_env names")  # fmt: skip

    return guard


def _is_loopback(request: web.Request) -> bool:
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _is_named_so(request: web.Request) -> bool:
    """Whether a page of texts was asked for under a name of this machine. A web site can have its own name lead to
    this machine, and its pages would then read ours (DNS rebinding)."""
    if not request.path.startswith("/unprompt/") or request.path == _FEEDBACK:
        return True  # nothing to read there
    try:
        host = urlsplit(f"//{request.host}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_token(request: web.Request, token: str | None) -> bool:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), (token or "").encode())


def _error(status: int, code: str, message: str) -> web.Response:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    headers = {"x-unprompt-error": code}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json", headers=headers)
