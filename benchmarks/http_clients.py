"""HTTP and websocket clients that apps really use, directly and through the gateway: equal answers, equal requests.

    benchmarks/conformance.sh clients            sets everything up, then runs this

    python benchmarks/http_clients.py http://localhost:9100/v1 http://127.0.0.1:8080/v1 [--only curl,httpx]

The first URL is the conformance harness's mock upstream, the second one the gateway in front of it. Compared
are each step's status, headers and body, and what the upstream received: method, target, headers, body. A
client that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import http.client
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello, bitte: äöü 漢字"}]}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=bound"}
FILE = (
    b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' + bytes(range(256)) * 12_000
)
FILE += b"\r\n--bound--\r\n"
HOP = {
    "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings", "host",
    "content-length", "sec-websocket-key", "expect",
}  # fmt: skip
SCRIPTS = Path(__file__).parent / "clients"
OWN = "x-unprompt-"


@dataclass(frozen=True)
class Step:
    """One request. `pieces`: the body goes out chunked, its length not announced."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pieces: bool = False

    def parts(self) -> Iterator[bytes]:
        """The body in pieces of 64 KiB."""
        for start in range(0, len(self.body), 65_536):
            yield self.body[start : start + 65_536]


@dataclass(frozen=True)
class Answer:
    """What a client was given."""

    status: int
    headers: dict[str, str]
    body: bytes

    def seen(self) -> list[object]:
        """Everything that must be equal on both ways."""
        kept = {name.lower(): value for name, value in self.headers.items()}
        end_to_end = sorted(pair for pair in kept.items() if pair[0] not in HOP and not pair[0].startswith(OWN))
        return [self.status, end_to_end, len(self.body), hashlib.sha256(self.body).hexdigest()]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


STEPS = [
    Step("models", "GET", "/models"),
    Step("query", "GET", "/files?after=a%2Fb&limit=2&x="),
    Step("head", "HEAD", "/models"),
    Step("delete", "DELETE", "/models/ft-1"),
    Step("chat", "POST", "/chat/completions", _json(CHAT), JSON),
    Step("stream", "POST", "/chat/completions", _json({**CHAT, "stream": True}), JSON),
    Step("chat in pieces", "POST", "/chat/completions", _json(CHAT), JSON, pieces=True),
    Step("error", "POST", "/chat/completions", _json({**CHAT, "model": "mock-error-429"}), JSON),
    Step("invalid", "POST", "/chat/completions", b"{not json", JSON),
    Step("file of 3 MB", "POST", "/files", FILE, FORM),
    Step("file in pieces", "POST", "/files", FILE, FORM, pieces=True),
    Step("speech", "POST", "/audio/speech", _json({"input": "x"}), JSON),
]


# --- HTTP clients: each asks one step ----------------------------------------------------------------


def ask_http_client(base: str, step: Step) -> Answer:
    """Python's own."""
    where = urlsplit(base)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    body = step.parts() if step.pieces else step.body or None
    headers = {**step.headers, **({"Transfer-Encoding": "chunked"} if step.pieces else {})}
    connection.request(step.method, where.path + step.path, body, headers, encode_chunked=step.pieces)
    answer = connection.getresponse()
    given = Answer(answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    return given


def ask_httpx(base: str, step: Step) -> Answer:
    import httpx

    body = step.parts() if step.pieces else step.body or None
    with httpx.Client(timeout=30, trust_env=False) as client:
        answer = client.request(step.method, base + step.path, content=body, headers=step.headers)
    return Answer(answer.status_code, dict(answer.headers), answer.content)


def ask_requests(base: str, step: Step) -> Answer:
    import requests

    body = step.parts() if step.pieces else step.body or None
    with requests.Session() as session:
        session.trust_env = False
        answer = session.request(step.method, base + step.path, data=body, headers=step.headers, timeout=30)
    return Answer(answer.status_code, dict(answer.headers), answer.content)


def ask_aiohttp(base: str, step: Step) -> Answer:
    import aiohttp

    async def parts() -> Any:
        for part in step.parts():
            yield part

    async def ask() -> Answer:
        body = parts() if step.pieces else step.body or None
        async with (
            aiohttp.ClientSession() as session,
            session.request(step.method, base + step.path, data=body, headers=step.headers) as answer,
        ):
            return Answer(answer.status, dict(answer.headers), await answer.read())

    return asyncio.run(ask())


def ask_curl(base: str, step: Step) -> Answer:
    """With `Expect: 100-continue` for the larger bodies, as curl does by itself."""
    command = ["curl", "-sS", "-i", "--noproxy", "*", "--raw", "--max-time", "30", base + step.path]
    command += ["-I"] if step.method == "HEAD" else ["-X", step.method]
    command += [part for name, value in step.headers.items() for part in ("-H", f"{name}: {value}")]
    if step.pieces:
        command += ["-T", "-"]
    elif step.body:
        command += ["--data-binary", "@-"]
    out = subprocess.run(command, input=step.body, capture_output=True, check=True, timeout=60).stdout
    while out.startswith(b"HTTP/1.1 1"):
        out = out.partition(b"\r\n\r\n")[2]
    head, _, body = out.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    chunked = any(name.lower() == "transfer-encoding" for name in headers)
    return Answer(int(lines[0].split()[1]), headers, _unchunked(body) if chunked else body)


def _unchunked(raw: bytes) -> bytes:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
    return body


def _node(script: str) -> Callable[[str, Step], Answer]:
    def ask(base: str, step: Step) -> Answer:
        command = ["node", str(SCRIPTS / script), step.method, base + step.path, json.dumps(step.pieces)]
        command.append(json.dumps(step.headers))
        given = json.loads(
            subprocess.run(command, input=step.body, capture_output=True, check=True, timeout=60).stdout
        )
        return Answer(given["status"], dict(given["headers"]), base64.b64decode(given["body"]))

    return ask


def ask_java(base: str, step: Step) -> Answer:
    """Offers an upgrade to HTTP/2 with each request, as `java.net.http` does by itself."""
    with tempfile.NamedTemporaryFile() as body:
        Path(body.name).write_bytes(step.body)
        command = ["java", str(SCRIPTS / "Ask.java"), step.method, base + step.path, json.dumps(step.pieces)]
        command += [body.name, *(part for pair in step.headers.items() for part in pair)]
        lines = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout.splitlines()
    headers = dict(line.split(": ", 1) for line in lines[2:] if ": " in line)
    return Answer(int(lines[0]), headers, base64.b64decode(lines[1]))


HTTP_CLIENTS: dict[str, tuple[Callable[[], object], Callable[[str, Step], Answer]]] = {
    "http.client": (lambda: True, ask_http_client),
    "httpx": (lambda: importlib.util.find_spec("httpx"), ask_httpx),
    "requests": (lambda: importlib.util.find_spec("requests"), ask_requests),
    "aiohttp": (lambda: importlib.util.find_spec("aiohttp"), ask_aiohttp),
    "curl": (lambda: shutil.which("curl"), ask_curl),
    "node fetch": (lambda: shutil.which("node"), _node("fetch.mjs")),
    "node http": (lambda: shutil.which("node"), _node("http.mjs")),
    "java.net.http": (lambda: shutil.which("java"), ask_java),
}


# --- websocket clients: each tells the whole story -----------------------------------------------------

TALK = ["hello", "ünïcode 漢字 🙂", "push:50", "frag:5", "x" * 200_000]
BYE = "bye:4001:so long"


async def _talk_websockets(url: str) -> list[object]:
    import websockets

    heard: list[object] = []
    async with websockets.connect(url, max_size=None, proxy=None) as socket:
        heard.append(await socket.recv())
        for text in TALK:
            await socket.send(text)
            heard += [await socket.recv() for _ in range(50 if text.startswith("push:") else 1)]
        await socket.send(bytes(range(256)) * 4096)
        heard.append(hashlib.sha256(await socket.recv()).hexdigest())  # type: ignore[arg-type]
        await socket.send(BYE)
        try:
            await socket.recv()
        except websockets.ConnectionClosed:
            heard += [socket.close_code, socket.close_reason]
    return heard


async def _talk_aiohttp(url: str) -> list[object]:
    import aiohttp

    heard: list[object] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        heard.append((await socket.receive()).data)
        for text in TALK:
            await socket.send_str(text)
            heard += [(await socket.receive()).data for _ in range(50 if text.startswith("push:") else 1)]
        await socket.send_bytes(bytes(range(256)) * 4096)
        heard.append(hashlib.sha256((await socket.receive()).data).hexdigest())
        await socket.send_str(BYE)
        last = await socket.receive()
        heard += [last.data, last.extra]
    return heard


WS_CLIENTS = {"websockets": _talk_websockets, "aiohttp": _talk_aiohttp}


# --- the comparison --------------------------------------------------------------------------------------


class Mock:
    """The upstream, asked directly for what it received."""

    def __init__(self, base: str) -> None:
        where = urlsplit(base)
        self._root = f"{where.scheme}://{where.netloc}/__mock__/"
        self._since = 0

    def _ask(self, path: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self._root + path, data=b"{}"), timeout=20) as answer:
            return json.load(answer)

    def mark(self) -> None:
        self._since = self._ask("arm")["next"]

    def received(self) -> list[object]:
        """What came since the mark, as far as it must be equal."""
        return [
            [
                record["method"],
                record["target"],
                _end_to_end(record["headers"]),
                record["body_sha256"],
                record["ws"],
            ]
            for record in self._ask(f"records?since={self._since}")["records"]
        ]


def _end_to_end(headers: list[list[str]]) -> list[list[str]]:
    return sorted([name.lower(), value] for name, value in headers if name.lower() not in HOP)


def compare(mock: Mock, ask: Callable[[str], object], direct: str, proxied: str) -> list[str]:
    """What differs between the two ways, in words."""
    mock.mark()
    wanted, sent = _outcome(ask, direct), mock.received()
    mock.mark()
    given, passed = _outcome(ask, proxied), mock.received()
    differences = [] if wanted == given else [f"answer {given!r:.400} instead of {wanted!r:.400}"]
    return differences + (
        [] if sent == passed else [f"the upstream received {passed!r:.400} instead of {sent!r:.400}"]
    )


def _outcome(ask: Callable[[str], object], base: str) -> object:
    try:
        return ask(base)
    except Exception as error:  # noqa: BLE001  # whatever a client raises is what its app gets
        return f"{type(error).__name__}: {error}"


def _run_http(name: str, mock: Mock, direct: str, proxied: str) -> bool:
    ask_one, good = HTTP_CLIENTS[name][1], 0
    for step in STEPS:

        def ask(base: str, step: Step = step) -> object:
            return ask_one(base, step).seen()

        differences = compare(mock, ask, direct, proxied)
        good += not differences
        for difference in differences:
            _say(f"        {step.name}: {difference}")
    verdict = "pass" if good == len(STEPS) else "FAIL"
    _say(f"{verdict}  {name:16} {len(STEPS)} steps directly, {good} the same through us")
    return good == len(STEPS)


def _run_ws(name: str, mock: Mock, direct: str, proxied: str) -> bool:
    def talk(base: str) -> object:
        url = base.replace("http://", "ws://") + "/realtime?model=mock-model"
        return asyncio.run(WS_CLIENTS[name](url))

    differences = compare(mock, talk, direct, proxied)
    for difference in differences:
        _say(f"        {difference}")
    _say(f"{'FAIL' if differences else 'pass'}  {name + ' (ws)':16} one conversation")
    return not differences


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("direct")
    options.add_argument("proxied")
    options.add_argument("--only", default="", help="names, separated by commas")
    asked = options.parse_args()
    chosen = [name for name in asked.only.split(",") if name]
    mock, results = Mock(asked.direct), []
    for name, (is_there, _) in HTTP_CLIENTS.items():
        if chosen and name not in chosen:
            continue
        if is_there():
            results.append(_run_http(name, mock, asked.direct, asked.proxied))
        else:
            _say(f"skip  {name:16} not installed")
    for name in WS_CLIENTS:
        if importlib.util.find_spec(name) and (not chosen or name in chosen):
            results.append(_run_ws(name, mock, asked.direct, asked.proxied))
    _say(f"{sum(results)} clients equal, {len(results) - sum(results)} not")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
