"""Microseconds of CPU for what the relay reads of a call: `python benchmarks/wire_formats.py`.

The best of nine rounds of one call each, on this process's own CPU time; nothing is sent anywhere.
"""

from __future__ import annotations

import json
import sys
import time
import timeit
from collections.abc import Callable
from typing import Any

from gateway import providers, sse
from gateway.domain.exchange import Usage
from gateway.domain.price import PriceBook
from gateway.providers.huge import RequestScanner
from gateway.providers.stream_usage import UsageTaker, ask_for_usage

OPENAI, ANTHROPIC, GEMINI = (providers.load(name) for name in ("openai", "anthropic", "gemini"))
COUNTS = {"prompt_tokens": 500, "completion_tokens": 60, "prompt_tokens_details": {"cached_tokens": 400}}
BASE = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
}


def packed(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def event(value: Any) -> bytes:
    return sse.encode(packed(value))


def microseconds(call: Callable[[], object], number: int = 5_000) -> float:
    return min(timeit.repeat(call, timer=time.process_time, number=number, repeat=9)) / number * 1e6


def chunk(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    return event(BASE | {"choices": [choice]} | more)


REQUEST = packed({"model": "m", "messages": [{"role": "system", "content": "few words " * 190}], "stream": True})
MESSAGE = {"index": 0, "message": {"role": "assistant", "content": "word " * 330}, "finish_reason": "stop"}
ANSWER = packed(BASE | {"choices": [MESSAGE], "usage": COUNTS})
PLAIN = chunk("some words")
ASKED = chunk("some words", usage=None, obfuscation="aB3")
EXTRA = event(BASE | {"choices": [], "usage": COUNTS})
DONE = b"data: [DONE]\n\n"
STREAM = chunk("some words") * 60 + chunk("", "stop")
CLAUDE = event({"type": "message_start", "message": {"model": "c", "usage": {"input_tokens": 9}}})
CLAUDE += event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}) * 60
CLAUDE += event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 60}})
CLAUDE += event({"type": "message_stop"})
COUNTED = {"promptTokenCount": 9, "candidatesTokenCount": 60}
GOOGLE = event({"candidates": [{"finishReason": "STOP"}], "usageMetadata": COUNTED, "modelVersion": "g"}) * 60


def main() -> None:
    taker, book = UsageTaker(), PriceBook({}, {"openai": "openai"})
    usage = Usage(input=500, cached=400, output=60)
    calls: dict[str, Callable[[], object]] = {
        "request of 2 KB: model, stream": lambda: OPENAI.read_request("/v1/chat/completions", REQUEST),
        "request of 2 KB: asked for usage": lambda: ask_for_usage(REQUEST),
        "chat answer of 2 KB": lambda: OPENAI.read_response(ANSWER, streamed=False),
        "chat stream with usage": lambda: OPENAI.read_response(STREAM + EXTRA + DONE, streamed=True),
        "chat stream without": lambda: OPENAI.read_response(STREAM + DONE, streamed=True),
        "Anthropic stream": lambda: ANTHROPIC.read_response(CLAUDE, streamed=True),
        "Gemini stream": lambda: GEMINI.read_response(GOOGLE, streamed=True),
        "chunk past the usage filter": lambda: taker.feed(PLAIN),
        "chunk with a null usage": lambda: taker.feed(ASKED),
        "the extra chunk": lambda: taker.feed(EXTRA),
        "price, one for all sizes": lambda: book.cost("openai", "gpt-4o-mini", usage),
        "price by the request's size": lambda: book.cost("openai", "gpt-6-luna", usage),
    }
    for name, call in calls.items():
        sys.stdout.write(f"{microseconds(call):8.2f} us  {name}\n")
    huge()


def huge() -> None:
    """The longest pause that a request of 16 MB makes, parsed whole and scanned in pieces of 256 KB."""
    turns = [{"role": "user", "content": f"Please look at line {number}"} for number in range(250_000)]
    body = packed({"model": "m", "messages": turns, "stream": True})
    whole = microseconds(lambda: OPENAI.read_request("/v1/chat/completions", body), 1)
    scanner, pauses = RequestScanner(), []
    for start in range(0, len(body), 1 << 18):
        piece, before = body[start : start + (1 << 18)], time.process_time()
        scanner.feed(piece)
        pauses.append(time.process_time() - before)
    total, longest = sum(pauses) * 1e3, max(pauses) * 1e3
    sys.stdout.write(
        f"{len(body) / 1e6:.0f} MB: whole {whole / 1e3:.1f} ms; pieces {total:.1f} ms, longest {longest:.2f} ms\n"
    )


if __name__ == "__main__":
    main()
