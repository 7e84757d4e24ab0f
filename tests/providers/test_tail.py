"""What the books need of an answer is found at its end, in the odd forms too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway import providers
from gateway.domain.exchange import Usage
from gateway.domain.price import Billed
from gateway.providers import ResponseFacts, huge

OPENAI, ANTHROPIC, GEMINI = (providers.load(name) for name in ("openai", "anthropic", "gemini"))
COUNTS = {"prompt_tokens": 9, "completion_tokens": 5}
USAGE = Usage(input=9, output=5, source="upstream")


def stream(*items: Any, end: str = "\n", gap: str = "") -> bytes:
    texts = [item if isinstance(item, str) else json.dumps(item) for item in items]
    return "".join(f"data: {text}{end}{end}{gap}" for text in texts).encode()


def chunk(finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}], **more}


LAST = chunk("stop")
EXTRA = {"model": "m", "choices": [], "usage": COUNTS}
OLDER = {"prompt_tokens": 1, "completion_tokens": 1}
FOUND = ResponseFacts(model="m", finish_reason="stop", usage=USAGE)


@pytest.mark.parametrize(
    "body",
    [
        stream(chunk(), LAST, EXTRA, "[DONE]"),
        stream(chunk(), LAST, EXTRA, "[DONE]", "[DONE]"),
        stream(chunk(), LAST, EXTRA),
        stream(chunk(), LAST, EXTRA, "[DONE]").rstrip(),
        stream(chunk(), LAST, EXTRA, "[DONE]", end="\r\n"),
        stream(chunk(), LAST, EXTRA, "[DONE]", end="\r"),
        stream(chunk(), LAST, EXTRA, "[DONE]", gap=": still here\n\n" * 9),
        stream(chunk(), LAST, EXTRA, "[DONE]") + b"\n" * 500,
        stream(chunk(), chunk("stop", usage=COUNTS), "[DONE]"),  # beside choices
        stream(chunk(usage=OLDER), chunk("stop", usage=COUNTS), "[DONE]"),  # twice: the last one counts
        stream(chunk("stop", usage=COUNTS), chunk(usage=None), {"choices": [], "usage": None}, "[DONE]"),
        stream(
            chunk(), {"model": "m", "choices": [{"finish_reason": "stop", "usage": COUNTS}]}, "[DONE]"
        ),  # Moonshot
        stream(chunk(), LAST | {"x_groq": {"usage": COUNTS}}, "[DONE]"),
        stream(*[chunk()] * 400, LAST, EXTRA, "[DONE]"),
        json.dumps(chunk("stop", usage=COUNTS)).encode(),
    ],
)
def test_usage_is_found_wherever_an_openai_shaped_answer_has_it(body: bytes) -> None:
    assert OPENAI.read_response(body, streamed=body.startswith(b"data")) == FOUND


@pytest.mark.parametrize(
    ("usage", "noun"),
    [
        (COUNTS | {"prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
                   "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0}},
         Usage(input=9, cached=4, output=5, reasoning=3, source="upstream")),
        (COUNTS | {"prompt_tokens_details": {"audio_tokens": 6}, "completion_tokens_details": {"audio_tokens": 2}},
         Billed(input=9, output=5, audio_input=6, audio_output=2, source="upstream")),
        ({"input_tokens": 9, "output_tokens": 5,
          "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 7}},
         Billed(input=9, cached=1, output=5, cache_written=7, source="upstream")),
        ({"type": "tokens", "input_tokens": 9, "output_tokens": 5, "input_token_details": {"audio_tokens": 8}},
         Billed(input=9, output=5, audio_input=8, source="upstream")),  # a transcription
        ({"type": "duration", "seconds": 12}, Usage()),  # one that is paid by the second
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(input=9, output=0, source="upstream")),  # embeddings
        ({}, Usage()),
    ],
)  # fmt: skip
def test_the_parts_that_have_their_own_price_are_kept_apart(usage: dict[str, Any], noun: Usage) -> None:
    assert OPENAI.read_response(json.dumps({"usage": usage}).encode(), streamed=False).usage == noun


@pytest.mark.parametrize(("tier", "noun"), [("flex", Billed(input=9, output=5, tier="flex", source="upstream")),
                                            ("default", USAGE), (None, USAGE)])  # fmt: skip
def test_a_service_tier_is_kept_where_it_is_no_ordinary_one(tier: str | None, noun: Usage) -> None:
    body = json.dumps({"usage": COUNTS, "service_tier": tier}).encode()
    assert OPENAI.read_response(body, streamed=False).usage == noun


def test_a_response_stream_that_failed_says_so() -> None:
    failed = {"type": "response.failed", "response": {"model": "m", "status": "failed", "error": {"code": "x"}}}
    assert OPENAI.read_response(stream(failed), streamed=True) == ResponseFacts(
        model="m", finish_reason="failed", failed=True
    )
    assert OPENAI.read_response(stream({"type": "error", "code": "x", "message": "y"}), streamed=True).failed


STARTED = {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 10}


@pytest.mark.parametrize(
    ("start", "delta", "noun"),
    [
        ({}, {"output_tokens": 12}, Usage(input=13, cached=10, output=12, source="upstream")),
        # a search tool read more in the meantime: the totals go on
        ({}, {"input_tokens": 30, "cache_read_input_tokens": 10, "output_tokens": 12},
         Usage(input=40, cached=10, output=12, source="upstream")),
        ({"input_tokens": 0, "cache_read_input_tokens": None}, {"input_tokens": 7, "output_tokens": 2},
         Usage(input=7, output=2, source="upstream")),
        ({"cache_creation_input_tokens": 50, "cache_creation": {"ephemeral_1h_input_tokens": 20}},
         {"output_tokens": 2},
         Billed(input=63, cached=10, output=2, cache_written=50, cache_written_1h=20, source="upstream")),
        ({"service_tier": "standard"}, {"output_tokens": 2},
         Usage(input=13, cached=10, output=2, source="upstream")),
    ],
)  # fmt: skip
def test_anthropics_two_counts_make_one(start: dict[str, Any], delta: dict[str, Any], noun: Usage) -> None:
    first = {"type": "message_start", "message": {"model": "c", "usage": STARTED | start}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta}
    body = stream(first, *[{"type": "content_block_delta"}] * 50, end, {"type": "message_stop"})
    facts = ANTHROPIC.read_response(b"event: message_start\n" + body, streamed=True)
    assert facts == ResponseFacts(model="c", finish_reason="end_turn", usage=noun)


def gemini(made: int, **more: Any) -> dict[str, Any]:
    return {"modelVersion": "g", "candidates": [{}], "usageMetadata": {
        "promptTokenCount": 8, "candidatesTokenCount": made}} | more  # fmt: skip


@pytest.mark.parametrize("form", ["events", "list", "pretty list"])
def test_geminis_counts_grow_with_each_chunk_and_the_last_one_counts(form: str) -> None:
    items = [gemini(1), gemini(4), gemini(6, candidates=[{"finishReason": "STOP"}]), {"candidates": [{}]}]
    body = (
        stream(*items) if form == "events" else json.dumps(items, indent=2 if "pretty" in form else None).encode()
    )
    assert GEMINI.read_response(body, streamed=form == "events") == ResponseFacts(
        model="g", finish_reason="STOP", usage=Usage(input=8, output=6, source="upstream")
    )


def test_gemini_counts_tools_and_audio_and_says_why_it_blocked() -> None:
    kinds = [{"modality": "TEXT", "tokenCount": 3}, {"modality": "AUDIO", "tokenCount": 5}]
    counts: dict[str, Any] = {"promptTokenCount": 8, "toolUsePromptTokenCount": 3, "candidatesTokenCount": 2}
    counts |= {"promptTokensDetails": kinds}
    body = json.dumps({"usageMetadata": counts, "promptFeedback": {"blockReason": "SAFETY"}}).encode()
    assert GEMINI.read_response(body, streamed=False) == ResponseFacts(
        finish_reason="SAFETY", usage=Billed(input=11, output=2, audio_input=5, source="upstream")
    )


@pytest.mark.parametrize(
    "body",
    [
        {"object": "list", "data": [{"embedding": [0.5] * 9000}], "model": "m", "usage": COUNTS},
        {"model": "m", "object": "list", "data": [{"usage": 1, "b64": "x" * 9000}], "usage": COUNTS, "size": "1x1"},
        {"model": "m", "usage": COUNTS, "data": [{"b64": "x" * 9000}]},  # nothing of it at the end
        {"data": [{"b64": "x" * 9000, "usage": COUNTS, "model": "inner"}]},
        ["x" * 9000],
    ],
)
def test_of_a_huge_answer_only_the_ends_are_read(body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{type(OPENAI).__module__}.HUGE", 8192)
    assert huge.HUGE == 4 << 20
    facts = OPENAI.read_response(json.dumps(body).encode(), streamed=False)
    ends = isinstance(body, dict) and list(body)[-1] != "data"
    assert facts == (ResponseFacts(model="m", usage=USAGE) if ends else ResponseFacts())
