"""The demo's upstream: an OpenAI-compatible server on loopback whose model answers with gold labels.

    python -m gateway.demo.teacher --data builtin --port 0

It prints one line with its URL once it listens. `GET /stats` tells what arrived: how many requests brought a
whole prompt, and which; how many came bare.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO

import click
import msgspec
from aiohttp import web

from gateway.demo.answers import (
    ALTERED,
    BARE,
    CHAT,
    WHOLE,
    Answer,
    Answers,
    Delays,
    Prefixes,
    delays,
    pieces,
    prompt_tokens,
)
from gateway.demo.messages import BUILT_IN, Labelled, load, messages
from gateway.errors import ConfigError


class TeacherOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the teacher behaves.

    `latency` scales its waits (0: none). With an `api_key`, requests must bring it. `audit_file` gets one
    JSON line for each chat request: SHA-256 of its body and of its messages, see `digest`.
    """

    models: tuple[str, ...] = ("gpt-6-luna",)
    error_rate: float = 0.03
    seed: int = 0
    latency: float = 1.0
    api_key: str | None = None
    audit_file: Path | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One answer on its way: what is said, token by token, when, and what it costs."""

    id: str
    created: int
    model: str
    said: list[str]
    finish: str
    usage: dict[str, Any]
    delays: Delays


class Refused(Exception):
    """A request that gets an error in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code or None, param or None


class Teacher:
    """The server's state and its handlers."""

    def __init__(self, rows: list[Labelled], options: TeacherOptions, audit: TextIO | None = None) -> None:
        self.options, self.audit = options, audit
        self.answers = Answers(rows, error_rate=options.error_rate, seed=options.seed)
        self.prefixes = Prefixes()
        self.numbers = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.by_prompt: Counter[str] = Counter()

    def application(self) -> web.Application:
        """The routes, with every error in OpenAI's shape."""
        app = web.Application(client_max_size=32 * 2**20, middlewares=[_openai_errors])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/stats", self.stats)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        self._authorise(request)
        body = await request.read()
        asked = _chat_request(body, self.options.models)
        answer = self.answers.to(asked["messages"])
        self._record(body, asked["messages"], answer)
        completion = self._completion(asked, answer)
        if asked.get("stream"):
            return await self._stream(request, completion, asked.get("stream_options") or {})
        await self._sleep(completion.delays.first + completion.delays.between * len(completion.said))
        return web.json_response(_whole(completion))

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`."""
        self._authorise(request)
        about = {"object": "model", "created": 0, "owned_by": "demo"}
        data = [{"id": name, **about} for name in self.options.models]
        return web.json_response({"object": "list", "data": data})

    async def stats(self, _request: web.Request) -> web.Response:
        """`GET /stats`: chat requests answered, by what they brought; `by_prompt` names the whole prompts."""
        kinds = {kind: self.counts[kind] for kind in (WHOLE, ALTERED, BARE, CHAT)}
        tokens = {name: self.counts[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
        by_prompt = dict(sorted(self.by_prompt.items()))
        return web.json_response({"requests": sum(kinds.values()), **kinds, **tokens, "by_prompt": by_prompt})

    def _authorise(self, request: web.Request) -> None:
        expected = self.options.api_key
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if expected is not None and given != expected:
            problem = "The API key is not the right one." if given else "An API key is missing."
            raise Refused(401, problem, code="invalid_api_key")

    def _record(self, body: bytes, asked: list[dict[str, Any]], answer: Answer) -> None:
        self.counts[answer.kind] += 1
        if answer.prompt is not None:
            self.by_prompt[answer.prompt] += 1
        if self.audit is not None:
            seen = {"body_sha256": hashlib.sha256(body).hexdigest(), "messages_sha256": digest(asked)}
            self.audit.write(json.dumps({**seen, "kind": answer.kind, "prompt": answer.prompt}) + "\n")
            self.audit.flush()

    def _completion(self, asked: dict[str, Any], answer: Answer) -> Completion:
        said = pieces(answer.text)
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or len(said)
        tokens = {
            "prompt_tokens": prompt_tokens(asked["messages"]),
            "cached_tokens": self.prefixes.cached_tokens(asked["messages"]),
            "completion_tokens": min(limit, len(said)),
        }
        self.counts.update(tokens)
        return Completion(
            id=f"chatcmpl-{next(self.numbers):08x}{digest(asked['messages'])[:16]}",
            created=int(time.time()),
            model=asked["model"],
            said=said[:limit],
            finish="stop" if limit >= len(said) else "length",
            usage=_usage(**tokens),
            delays=delays(self.options.seed, asked["messages"]),
        )

    async def _stream(
        self, request: web.Request, completion: Completion, options: dict[str, Any]
    ) -> web.StreamResponse:
        """Server-sent events, one a token, each when it is due."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        counted = bool(options.get("include_usage"))
        await self._sleep(completion.delays.first)
        with contextlib.suppress(ConnectionResetError):  # a client that has left need not be told
            await response.prepare(request)
            await response.write(_event(completion, {"role": "assistant", "content": ""}, counted=counted))
            for piece in completion.said:
                await self._sleep(completion.delays.between)
                await response.write(_event(completion, {"content": piece}, counted=counted))
            await response.write(_event(completion, {}, finish=completion.finish, counted=counted))
            if counted:
                await response.write(_usage_event(completion))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        return response

    async def _sleep(self, seconds: float) -> None:
        if self.options.latency > 0:
            await asyncio.sleep(seconds * self.options.latency)


def digest(messages: list[dict[str, Any]]) -> str:
    """SHA-256 of a message array as compact JSON with its keys in order, in hex."""
    text = json.dumps(messages, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.asynccontextmanager
async def running(
    rows: list[Labelled], options: TeacherOptions, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """A teacher that serves while the block runs; gives its base URL, which ends in /v1.

    Raises:
        ConfigError: the port is taken or the audit file cannot be written.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            file = options.audit_file
            audit = stack.enter_context(file.open("a", encoding="utf-8")) if file else None
            runner = web.AppRunner(
                Teacher(rows, options, audit).application(), access_log=None, shutdown_timeout=1.0
            )
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"teacher: {error}") from error
        yield f"http://{host}:{runner.addresses[0][1]}/v1"


def _chat_request(body: bytes, models: tuple[str, ...]) -> dict[str, Any]:
    """The request as a dict with the parts that an answer needs checked."""
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"The body is not JSON: {error}") from error
    if not isinstance(asked, dict):
        raise Refused(400, "The body must be a JSON object.")
    model, messages = asked.get("model"), asked.get("messages")
    if not isinstance(model, str):
        raise Refused(400, "A model name is required.", param="model")
    if model not in models:
        raise Refused(404, f"There is no model {model!r} here.", code="model_not_found", param="model")
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise Refused(400, "A list of messages, each with role and content, is required.", param="messages")
    if asked.get("n") not in (None, 1):
        raise Refused(400, "Only one choice is served.", param="n")
    for param in ("max_tokens", "max_completion_tokens"):
        limit = asked.get(param)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise Refused(400, f"{param} must be a whole number of at least 1.", param=param)
    if not isinstance(asked.get("stream_options") or {}, dict):
        raise Refused(400, "stream_options must be an object.", param="stream_options")
    return asked


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _usage(*, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _head(completion: Completion, kind: str) -> dict[str, Any]:
    return {"id": completion.id, "object": kind, "created": completion.created, "model": completion.model}


def _whole(completion: Completion) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    message = {"role": "assistant", "content": "".join(completion.said), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish}
    return {**_head(completion, "chat.completion"), "choices": [choice], "usage": completion.usage}


def _event(
    completion: Completion, delta: dict[str, str], *, finish: str | None = None, counted: bool = False
) -> bytes:
    """One chunk of a stream; where usage was asked for, all chunks but the last say that it is null."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {**_head(completion, "chat.completion.chunk"), "choices": [choice]}
    return _sse({**chunk, "usage": None} if counted else chunk)


def _usage_event(completion: Completion) -> bytes:
    return _sse({**_head(completion, "chat.completion.chunk"), "choices": [], "usage": completion.usage})


def _sse(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


@web.middleware
async def _openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as problem:
        return _error(problem)
    except web.HTTPException as problem:
        return _error(Refused(problem.status, f"{request.method} {request.path}: {problem.reason}"))


def _error(problem: Refused) -> web.Response:
    error = {"message": str(problem), "type": "invalid_request_error"}
    body = {"error": {**error, "param": problem.param, "code": problem.code}}
    return web.json_response(body, status=problem.status)


@click.command()
@click.option("--data", default="builtin", help="Labelled JSON lines (text, label), or 'builtin'.")
@click.option("--rows", default=BUILT_IN, help="How many built-in messages it knows.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, help="0: any free port.")
@click.option("--model", "models", multiple=True, default=("gpt-6-luna",), help="What it serves; repeatable.")
@click.option("--error-rate", default=0.03, show_default=True, help="Share of texts that it gets wrong.")
@click.option("--seed", default=0, help="Of the errors and the waits.")
@click.option("--latency", default=1.0, show_default=True, help="Scales the waits; 0: none.")
@click.option("--api-key", envvar="TEACHER_API_KEY", help="Refuse requests without this key.")
@click.option("--audit-file", type=click.Path(path_type=Path), help="Log digests of what arrives.")
def main(data: str, rows: int, host: str, port: int, **options: Any) -> None:
    """Serve an OpenAI-compatible model that knows the answers."""
    try:
        known = messages(count=rows) if data == "builtin" else load(data)
        asyncio.run(_serve(known, TeacherOptions(**options), host, port))
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


async def _serve(rows: list[Labelled], options: TeacherOptions, host: str, port: int) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with running(rows, options, host=host, port=port) as url:
        click.echo(f"teacher listens on {url}")
        await stop.wait()


if __name__ == "__main__":
    main()
