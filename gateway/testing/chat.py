"""Chat completions as the OpenAI API words them, whole and in chunks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

Answer = Callable[[dict[str, Any]], "str | dict[str, Any]"]
"""From the body of a chat request to the text of the answer, or to the whole assistant message."""


def echo(request: dict[str, Any]) -> str:
    """The text of the last user message: what the fake says when it was not told what to say."""
    texts = [text_of(message) for message in request["messages"] if message.get("role") == "user"]
    return texts[-1] if texts else ""


def count_tokens(text: str) -> int:
    """The fake's tokens: each word and each punctuation mark counts as one."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _usage(body: dict[str, Any], message: dict[str, Any]) -> dict[str, int]:
    # Three tokens frame each message and three open the answer, as the public cookbook counts them.
    asked = sum(3 + count_tokens(text_of(item)) for item in body["messages"]) + 3
    calls = json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
    said = count_tokens(text_of(message) + calls)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _finish(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _logprobs(text: str, sure: float) -> dict[str, Any]:
    """Of a text whose words are all equally sure, and the whole text is `sure` (0 to 1)."""
    words = re.findall(r"\S+\s*|\s+", text)
    each = math.log(sure) / len(words) if sure > 0 and words else -9999.0
    tokens = [{"token": word, "logprob": each, "bytes": list(word.encode()), "top_logprobs": []} for word in words]
    return {"content": tokens, "refusal": None}


def completion(
    base: dict[str, Any], body: dict[str, Any], message: dict[str, Any], *, sure: float | None = None
) -> dict[str, Any]:
    """A whole answer; with log-probabilities where it is known how `sure` it is."""
    whole = {"content": None, "refusal": None} | message
    told = None if sure is None or not text_of(message) else _logprobs(text_of(message), sure)
    choice = {"index": 0, "message": whole, "logprobs": told, "finish_reason": _finish(message)}
    return {**base, "object": "chat.completion", "choices": [choice], "usage": _usage(body, message)}


def chunks(
    base: dict[str, Any], body: dict[str, Any], message: dict[str, Any], *, usage: bool
) -> Iterable[dict[str, Any]]:
    """The chunks of a streamed answer: the role, each word, tool calls, the end, then usage."""
    base = {**base, "object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
    words = re.findall(r"\S+\s*|\s+", text_of(message))
    calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls") or [])]
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    deltas += [{"tool_calls": [call]} for call in calls]
    for delta in deltas:
        yield {**base, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
    yield {
        **base,
        "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": _finish(message)}],
    }
    if usage:
        yield {**base, "choices": [], "usage": _usage(body, message)}
