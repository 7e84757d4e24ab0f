"""A stand-in for llama.cpp's server: it answers with what it was asked, in the shapes of the real one.

A message `wait FILE` is answered when that file is there; `die` ends the process.
"""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class CommonAdapterLoraInfo:
    path, scale = "", 1.0


class CommonParams:
    def __init__(self) -> None:
        self.model = SimpleNamespace(path="")
        self.cpuparams, self.cpuparams_batch = SimpleNamespace(n_threads=0), SimpleNamespace(n_threads=0)
        self.model_alias: set[str] = set()
        self.api_keys: list[str] = []
        self.lora_adapters: list[CommonAdapterLoraInfo] = []


class Server:
    def __init__(self, params: CommonParams) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                allowed = self.headers["Authorization"] == f"Bearer {params.api_keys[0]}"
                self.reply(200 if allowed else 401, said(params, body), stream=body.get("stream", False))

            def reply(self, status: int, answer: dict[str, Any], *, stream: bool) -> None:
                data = json.dumps(answer, separators=(",", ":")).encode()
                data = b"data: " + data + b"\n\ndata: [DONE]\n\n" if stream else data
                self.send_response(status)
                self.send_header("Content-Type", "text/event-stream" if stream else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.listening_address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()


def said(params: CommonParams, body: dict[str, Any]) -> dict[str, Any]:
    text = body["messages"][-1]["content"]
    if text == "die":
        os._exit(1)
    while text.startswith("wait ") and not Path(text[5:]).exists():
        time.sleep(0.02)
    used = [params.lora_adapters[one["id"]].path for one in body["lora"] if one["scale"] == 1.0]
    content = {"adapters": [Path(path).stem for path in used], "engine": os.getpid()}
    (alias,) = params.model_alias
    return {"model": alias, "choices": [{"message": {"role": "assistant", "content": json.dumps(content)}}]}
