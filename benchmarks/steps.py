"""Where the time of a request goes inside the relay: microseconds of CPU per step, recording on.

    python benchmarks/steps.py [--times 15]

The real connection, exchange, journal and metrics are driven in this process, with transports that swallow what is
written: no sockets, no event loop turns (they cost about as much again, see benchmarks/relay.sh). The price of a
step is the difference that leaving it out makes, the two measured in turn; steps nest, so they do not add up.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.app import App, Files
from gateway.domain import layout
from gateway.domain.route import Match, Route, RouteTable, Target
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.metrics import Metrics
from gateway.providers.openai import OpenAI
from gateway.proxy import wire
from gateway.proxy.capture import Capture
from gateway.proxy.connection import Connection
from gateway.proxy.heads import Heads
from gateway.proxy.record import Recording
from gateway.proxy.router import Switchboard
from gateway.proxy.server import Limits, Server
from gateway.stores.journal import JournalWriter
from gateway.upstreams.connection import HttpConnection
from gateway.upstreams.http import HttpUpstream
from gateway.upstreams.selective import SelectiveUpstream
from gateway.upstreams.shapes import Shapes

WORDS = "the order came late and the box was open so please send a new one to the same place as before thank you "
SHOTS = [("user", WORDS * 2), ("assistant", '{"label": "shipping", "urgency": 2}')] * 6
REQUEST = json.dumps(
    {"model": "gpt-4o-mini", "messages": [{"role": r, "content": c} for r, c in [("system", WORDS * 3), *SHOTS]]}
).encode()
ANSWER = json.dumps(
    {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini-2024-07-18",
     "choices": [{"index": 0, "message": {"role": "assistant", "content": WORDS * 11}, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 612, "completion_tokens": 110, "total_tokens": 722}}
).encode()  # fmt: skip
ASKED_HEAD = b"".join(
    b"%b\r\n" % line
    for line in [b"POST /v1/chat/completions HTTP/1.1", b"Host: gateway", b"Accept: application/json",
                 b"Accept-Encoding: gzip, deflate", b"Connection: keep-alive", b"Content-Type: application/json",
                 b"User-Agent: app/1.0", *(b"X-App-Header-%d: some value" % n for n in range(8)),
                 b"Authorization: Bearer key-0123456789abcdefghijklmnopqrstuvwxyz"]
)  # fmt: skip
ANSWER_HEAD = b"".join(
    b"%b\r\n" % line
    for line in [b"HTTP/1.1 200 OK", b"Date: Fri, 20 Nov 2026 12:00:00 GMT", b"x-request-id: req_0123456789abcdef",
                 *(b"x-ratelimit-thing-%d: 10000" % n for n in range(16)), b"Content-Type: application/json",
                 b"Content-Length: %d" % len(ANSWER), b"Connection: keep-alive"]
)  # fmt: skip
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}' + b" " * 160 + b"\n\n"


LONG_PROMPT = "\n".join(f"Rule {number}: {WORDS}" for number in range(65))
LONG_REQUEST = json.dumps(
    {"model": "gpt-4o-mini", "temperature": 0,
     "messages": [{"role": "system", "content": LONG_PROMPT}, {"role": "user", "content": f"Message: {WORDS * 3}"}]}
).encode()  # fmt: skip


def stripping() -> Switchboard:
    """A route that takes a prompt of 7 KB away."""
    system, user = (layout.read_message({"role": role, "content": ""})[0] for role in ("system", "user"))
    slot = TextPattern(("Message: ", ""), (Slot("message"),))
    prompt = MessagePattern(system, (TextPattern((LONG_PROMPT,)),))
    template = PromptTemplate("mail", 1, (prompt, MessagePattern(user, (slot,))))
    target = Target(upstream="openai", model="tiny", strip="mail@1")
    route = Route(name="mail", match=Match(task="mail"), targets=(target,))
    return Switchboard.build(RouteTable(routes=(route,)), [template])


class Sink:
    """A transport to nowhere."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def get_extra_info(self, name: str) -> None: ...
    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Bench:
    """One client connection and one upstream connection, and between them the relay."""

    def __init__(self, home: Path) -> None:
        (home / "gateway.yaml").write_text(
            'providers: {openai: {protocol: openai, base_url: "http://127.0.0.1:9/v1"}}\n'
            f'store: {{url: "sqlite:///{home}/unprompt.db"}}\n'
        )
        self.app = App(Files.beside(home / "gateway.yaml"))
        limits = Limits(body_bytes=1 << 26, header_seconds=10, idle_seconds=75)
        server = Server(self.app.house, limits, lambda: asyncio.Protocol())
        outer = self.app.house.upstreams["openai"]
        assert isinstance(outer, SelectiveUpstream)
        upstream = outer.inner
        assert isinstance(upstream, HttpUpstream)
        self.upstream = HttpConnection("openai", b"upstream", upstream)
        self.upstream.connection_made(Sink())  # type: ignore[arg-type]
        self.upstream.rest()
        self.outbox = self.app.house.outbox
        self.outbox.flush_soon = lambda: None  # type: ignore[method-assign]  # we say when a turn ends
        self.client = Connection(server)
        self.client.connection_made(Sink())  # type: ignore[arg-type]
        self.asked = ASKED_HEAD + b"Content-Length: %d\r\n\r\n" % len(REQUEST) + REQUEST
        self.answer = ANSWER_HEAD + b"\r\n" + ANSWER

    def exchange(self) -> None:
        self.asks(self.asked)
        self.answers(self.answer)

    def asks(self, data: bytes) -> None:
        """A turn of the event loop in which the client's bytes come."""
        self.client.data_received(data)
        self.outbox.end_turn()

    def answers(self, data: bytes) -> None:
        """A turn in which the upstream's come."""
        self.upstream.data_received(data)
        self.outbox.end_turn()

    def long_exchange(self) -> None:
        """A request of 8 KB."""
        self.asks(ASKED_HEAD + b"Content-Length: %d\r\n\r\n" % len(LONG_REQUEST) + LONG_REQUEST)
        self.answers(self.answer)

    def stream(self) -> None:
        """Sixty events, each in a segment of its own."""
        self.asks(self.asked)
        self.answers(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(60):
            self.answers(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
        self.answers(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def cpu(work: Callable[[], None], rounds: int) -> float:
    """Microseconds of one call."""
    started = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - started) / rounds * 1e6


def without(bench: Bench, owner: Any, name: str, stand_in: Any, times: int) -> float:
    """How much less an exchange takes where `owner.name` does nothing."""
    whole, less, real = [], [], getattr(owner, name)
    for _ in range(times):
        whole.append(cpu(bench.exchange, 300))
        setattr(owner, name, stand_in)
        less.append(cpu(bench.exchange, 300))
        setattr(owner, name, real)
    return sorted(whole)[times // 4] - sorted(less)[times // 4]


def strip_costs(bench: Bench, times: int) -> float:
    """How much more a request of 8 KB takes on a route that strips it than on none."""
    house, switchboard = bench.app.house, stripping()
    plain, none = house.switchboard, []
    stripped = []
    for _ in range(times):
        none.append(cpu(bench.long_exchange, 300))
        house.switchboard = switchboard
        stripped.append(cpu(bench.long_exchange, 300))
        house.switchboard = plain
    return sorted(stripped)[times // 4] - sorted(none)[times // 4]


def steps(bench: Bench) -> list[tuple[str, Any, str, Any]]:
    """Each step: what it is, and how to leave it out with the rest still running."""
    seen: dict[str, Any] = {}

    def recall(owner: Any, name: str) -> Any:
        """A stand-in that gives what the real one gave last."""
        real = getattr(owner, name)

        def remember(*given: Any, **named: Any) -> Any:
            seen[name] = real(*given, **named)
            return seen[name]

        setattr(owner, name, remember)
        bench.exchange()
        setattr(owner, name, real)
        return lambda *given, **named: seen[name]

    return [
        ("the client's head, found again by its bytes", Heads, "find", recall(Heads, "find")),
        ("model and stream from the request's JSON", OpenAI, "read_request", recall(OpenAI, "read_request")),
        ("both records written to the journal's file", JournalWriter, "append_encoded", lambda *_: None),
        ("the same with encoding and checksum", Capture, "_append", lambda *_: None),
        ("the end made: usage, price, keys blanked out", Recording, "_make_end", recall(Recording, "_make_end")),
        ("usage from the answer's JSON", OpenAI, "read_response", recall(OpenAI, "read_response")),
        ("price", Recording, "_cost", lambda *_: None),
        ("the answer's head: what it says", Shapes, "read", recall(Shapes, "read")),
        ("the answer's head, made for the client", wire, "answer_head", lambda head, *_, **__: head.raw),
        ("metrics", bench.app.house, "observe", lambda *_: None),
        ("records counted", Metrics, "record", lambda *_: None),
    ]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15)
    times, say = parser.parse_args().times, sys.stdout.write
    home = Path(tempfile.mkdtemp(prefix="steps-"))
    try:
        bench = Bench(home)
        for _ in range(300):
            bench.exchange()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        exchange = min(cpu(bench.exchange, 500) for _ in range(times))
        stream = min(cpu(bench.stream, 30) for _ in range(times))
        say(f"{'an exchange of 2 KB and 1.5 KB':50}{exchange:7.1f} us\n")
        say(f"{'a stream of 60 events':50}{stream:7.1f} us, {(stream - exchange) / 60:.1f} an event\n")
        say(f"{'a request of 8 KB: stripping it adds':50}{strip_costs(bench, times):7.1f} us\n")
        for name, owner, attribute, stand_in in steps(bench):
            say(f"  {name:48}{without(bench, owner, attribute, stand_in, times):7.1f} us\n")
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
