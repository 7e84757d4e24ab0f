"""A small server for a laptop: llama.cpp behind the API by which vLLM loads LoRA adapters while it runs.

`python serve.py --base BASE.gguf --port 8091 --work FOLDER` answers `/v1/models`, `/v1/chat/completions`,
`/v1/completions`, `/v1/load_lora_adapter`, `/v1/unload_lora_adapter` and `/health`. Adapters are PEFT folders,
converted for llama.cpp when they are loaded; a quantised base is served in half precision, as adapters were trained
on top of it. `FOLDER` keeps what was converted. llama.cpp reads adapters when it starts, so a new adapter means a
new engine (a process of its own, a second or two), while the old one answers on; which adapter a request gets is
said in the request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

HERE = Path(__file__).parent
MAX_BODY = 64 * 1024 * 1024
DRAIN_SECONDS = 60.0
KEY = "UNPROMPT_ENGINE_KEY"
"""The environment variable by which an engine is told the key that its front has."""
ALIAS = "unprompt-engine"
"""What the engine calls its model; clients see the name that they asked for."""


class Refusal(Exception):
    """What is answered in vLLM's words, with a status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Engine:
    """One llama.cpp process, the adapters that it has read (name -> folder), and the requests that it works on."""

    process: asyncio.subprocess.Process
    url: str
    adapters: dict[str, str]
    busy: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def retire(self) -> None:
        """End it when its requests are answered."""
        if self.busy:
            self.idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.idle.wait(), DRAIN_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        await self.process.wait()


class Front:
    """The server that clients see. `adapters` are those that can be asked for, name -> folder."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.base = given, Path(given.base)
        self.name = given.name or self.base.stem
        self.adapters: dict[str, str] = {}
        self.engine: Engine | None = None
        self.key = secrets.token_urlsafe()  # nobody else asks the engine
        self.changing = asyncio.Lock()
        self.retiring: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[refusals])
        app.add_routes([
            web.get("/health", self.health), web.get("/v1/models", self.models),
            web.post("/v1/load_lora_adapter", self.load), web.post("/v1/unload_lora_adapter", self.unload),
            web.post("/v1/chat/completions", self.complete), web.post("/v1/completions", self.complete),
        ])  # fmt: skip
        app.cleanup_ctx.append(self.life)
        return app

    async def life(self, app: web.Application) -> Any:
        self.session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20,
            headers={"Authorization": f"Bearer {self.key}"},
        )  # fmt: skip
        await self.ready()
        yield
        if self.engine is not None and self.engine.alive:
            self.engine.process.kill()
        await self.session.close()

    # Engines

    async def ready(self) -> Engine:
        """The engine, with all adapters; a new one where there is none, it has died or knows too few."""
        async with self.changing:
            old = self.engine
            if old is not None and old.alive and self.adapters.items() <= old.adapters.items():
                return old
            self.engine = await self.started(dict(self.adapters))
            if old is not None and old.alive:
                task = asyncio.create_task(old.retire())
                self.retiring.add(task)
                task.add_done_callback(self.retiring.discard)
            return self.engine

    async def started(self, adapters: dict[str, str]) -> Engine:
        base = await self.plain_base()
        files = [str(await self.converted(name, Path(folder), base)) for name, folder in adapters.items()]
        params = {"base": str(base), "adapters": files, "threads": self.given.threads,
                  "parallel": self.given.parallel, "context": self.given.context}  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--engine", json.dumps(params), env=os.environ | {KEY: self.key},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**20,
        )  # fmt: skip
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"listening "):
                return Engine(process, line.split()[1].decode(), adapters)
        raise Refusal(500, f"llama.cpp does not start (exit code {await process.wait()}); its log says why")

    async def plain_base(self) -> Path:
        """The base model with weights that are plain numbers, converted once."""
        out = Path(self.given.work) / f"{self.base.stem}.f16.gguf"
        if not out.is_file():
            out.parent.mkdir(parents=True, exist_ok=True)
            await converting("base", str(self.base), str(out))
        return out if out.is_file() else self.base

    async def converted(self, name: str, folder: Path, base: Path) -> Path:
        """The adapter as llama.cpp reads it, converted once."""
        out = Path(self.given.work) / f"{name}.gguf"
        weights = folder / "adapter_model.safetensors"
        if not out.is_file() or out.stat().st_mtime < weights.stat().st_mtime:
            await converting("adapter", str(folder), str(base), str(out))
        return out

    # What clients ask

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, status=200 if self.engine and self.engine.alive else 503)

    async def models(self, request: web.Request) -> web.Response:
        cards = [{"id": self.name, "root": str(self.base), "parent": None}]
        cards += [{"id": name, "root": folder, "parent": self.name} for name, folder in self.adapters.items()]
        shared = {"object": "model", "created": 0, "owned_by": "unprompt"}
        return web.json_response({"object": "list", "data": [card | shared for card in cards]})

    async def load(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name, folder = asked.get("lora_name"), asked.get("lora_path")
        if not name or not folder or Path(name).name != name:
            raise Refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(folder) / "adapter_model.safetensors").is_file():
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for {folder}")
        self.adapters[name] = folder
        try:
            await self.ready()
        except Refusal:
            del self.adapters[name]
            raise
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        """The engine forgets it when it is replaced next; nobody can ask for it from now on."""
        name = (await request.json()).get("lora_name")
        if name not in self.adapters:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Pass the request on with the adapter that its model names, and the answer back as it comes."""
        body = await request.json()
        model = body.get("model")
        if model != self.name and model not in self.adapters:
            raise Refusal(404, f"The model `{model}` does not exist.")
        engine = await self.ready()
        number = {name: number for number, name in enumerate(engine.adapters)}.get(model)
        body["lora"] = [] if number is None else [{"id": number, "scale": 1.0}]
        engine.busy += 1
        try:
            return await self.passed(request, f"{engine.url}{request.path}", body)
        except aiohttp.ClientError as error:
            with contextlib.suppress(TimeoutError):  # if it died, the next request must know it
                await asyncio.wait_for(engine.process.wait(), 1.0)
            raise Refusal(502, f"llama.cpp gave no answer: {error}") from error
        finally:
            engine.busy -= 1
            if not engine.busy:
                engine.idle.set()

    async def passed(self, request: web.Request, url: str, body: dict[str, Any]) -> web.StreamResponse:
        names = f'"model":"{ALIAS}"'.encode(), f'"model":{json.dumps(body["model"])}'.encode()
        async with self.session.post(url, json=body) as answer:
            kind = {"Content-Type": answer.headers.get("Content-Type", "application/json")}
            if not body.get("stream"):
                whole = (await answer.read()).replace(*names, 1)
                return web.Response(status=answer.status, body=whole, headers=kind)
            response = web.StreamResponse(status=answer.status, headers=kind)
            await response.prepare(request)
            async for line in answer.content:
                await response.write(line.replace(*names, 1))
            await response.write_eof()
            return response


@web.middleware
async def refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    """Refusals and bodies that are no JSON, in the shape of the API's errors."""
    try:
        if request.method == "POST" and request.content_type != "application/json":
            raise Refusal(415, "Content-Type must be application/json.")  # a web page could send any other unasked
        return await handler(request)  # type: ignore[no-any-return]
    except Refusal as refusal:
        status, message = refusal.status, str(refusal)
    except (ValueError, AttributeError):
        status, message = 400, "The body is not a JSON object."
    kind = "NotFoundError" if status == 404 else "BadRequestError" if status < 500 else "InternalServerError"
    return web.json_response({"error": {"message": message, "type": kind, "code": status}}, status=status)


async def converting(*what: str) -> None:
    """Convert in a process of its own, which takes its memory along."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "to_gguf.py"), *what, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise Refusal(400, f"Loading lora failed: {last}")


def run_engine(asked: dict[str, Any]) -> None:
    """llama.cpp's own HTTP server on a free port, until standard input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias, params.verbosity = asked["base"], {ALIAS}, 2
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx = asked["parallel"], asked["context"] * asked["parallel"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    adapters = []
    for file in asked["adapters"]:
        one = xllamacpp.CommonAdapterLoraInfo()
        one.path, one.scale = file, 0.0
        adapters.append(one)
    params.api_keys = [os.environ.pop(KEY)]
    params.lora_adapters, params.lora_init_without_apply = adapters, True
    server = xllamacpp.Server(params)
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    until_input_ends()


def until_input_ends() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--base", help="the base model, a GGUF file")
    asked.add_argument("--name", help="its name as a model; default: the file's")
    asked.add_argument("--host", default="127.0.0.1")
    asked.add_argument("--port", type=int, default=8091)
    asked.add_argument("--work", help="folder for converted files")
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--parallel", type=int, default=2, help="requests that are answered at once")
    asked.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer, for each of them")
    asked.add_argument("--with-parent", action="store_true", help="end when standard input does")
    asked.add_argument("--engine", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.engine:
        return run_engine(json.loads(given.engine))
    if not given.base or not given.work:
        asked.error("--base and --work are needed")
    if given.with_parent:
        import threading

        threading.Thread(target=until_input_ends, daemon=True).start()
    web.run_app(Front(given).app(), host=given.host, port=given.port, print=None)
    return None


if __name__ == "__main__":
    main()
