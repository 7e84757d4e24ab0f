"""Answers made of items, blocks or parts: responses, Anthropic's messages, Gemini's candidates."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from wires import ANTHROPIC, ARGUMENTS, GEMINI, OPENAI, TEXT, WORD, Cuts, same, ways_to_write

from gateway.providers.answers import ToolCall

# --- responses ------------------------------------------------------------------------------------------

ITEMS = st.lists(
    st.one_of(
        st.builds(lambda texts: {"type": "message", "role": "assistant", "content": [
            {"type": kind, "text" if kind == "output_text" else "refusal": text} for kind, text in texts]},
            st.lists(st.tuples(st.sampled_from(["output_text", "refusal"]), TEXT), min_size=1, max_size=2)),
        st.builds(lambda name, given: {"type": "function_call", "call_id": f"call_{name}", "name": name,
                                       "arguments": json.dumps(given)}, WORD, ARGUMENTS),
        st.builds(lambda name, text: {"type": "custom_tool_call", "call_id": f"call_{name}", "name": name,
                                      "input": text}, WORD, TEXT),
        st.builds(lambda short, long: {"type": "reasoning", "summary": [
            {"type": "summary_text", "text": text} for text in short], "content": [
            {"type": "reasoning_text", "text": text} for text in long]},
            st.lists(TEXT, max_size=2), st.lists(TEXT, max_size=2)),
        st.just({"type": "web_search_call", "action": {"query": "x"}}),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def response_events(response: dict[str, Any], cut: Cuts, *, done: bool, completed: bool) -> list[Any]:
    unfinished = response | {"output": []}
    lanes = [_item_events(at, item, cut, done=done) for at, item in enumerate(response["output"])]
    end = {"type": "response.completed", "response": response if completed else unfinished}
    begin = {"type": "response.created", "response": unfinished | {"status": "in_progress"}}
    return [begin, *cut.shuffled(lanes), end]


def _item_events(at: int, item: dict[str, Any], cut: Cuts, *, done: bool) -> list[Any]:
    where, out = {"output_index": at}, []
    empty = {"arguments": "", "input": ""}
    added = {k: [] if k in ("content", "summary") else empty.get(k, v) for k, v in item.items()}
    out.append({"type": "response.output_item.added", "item": added, **where})
    for name, event in (("arguments", "function_call_arguments"), ("input", "custom_tool_call_input")):
        pieces = cut(item[name]) if name in item else []
        out += [{"type": f"response.{event}.delta", "delta": piece, **where} for piece in pieces]
    for name, place, event in (("content", "content_index", "content_part"),
                               ("summary", "summary_index", "reasoning_summary_part")):  # fmt: skip
        for number, part in enumerate(item.get(name) or ()):
            here, kind = {**where, place: number}, part["type"].replace("summary_text", "reasoning_summary_text")
            field = "refusal" if kind == "refusal" else "text"
            out.append({"type": f"response.{event}.added", "part": {**part, field: ""}, **here})
            out += [{"type": f"response.{kind}.delta", "delta": piece, **here} for piece in cut(part[field])]
            if done:
                out.append({"type": f"response.{kind}.done", field: part[field], **here})
                out.append({"type": f"response.{event}.done", "part": part, **here})
    return [*out, {"type": "response.output_item.done", "item": item, **where}] if done else out


@given(ITEMS, st.booleans(), st.booleans(), ways_to_write(), st.data())
@settings(max_examples=400, deadline=None)
def test_a_streamed_response_is_the_whole_one(
    items: list[Any], done: bool, completed: bool, write: Any, data: Any
) -> None:
    """With all its events, without those that repeat what the deltas said, and without the items at its end."""
    response = {"id": "r-1", "object": "response", "model": "m", "status": "completed", "output": items,
                "reasoning": {"effort": "low"}}  # fmt: skip
    events = response_events(response, Cuts(data), done=done, completed=completed)
    answer = same(OPENAI, response, write(events, named=True))
    assert answer.choices[0].parts == tuple(items)
    assert answer.choices[0].finish_reason == "completed"
    assert answer.more == {"reasoning": {"effort": "low"}}


def test_a_responses_calls_and_texts_have_their_places() -> None:
    answer = OPENAI.read_answer(json.dumps({"object": "response", "status": "completed", "output": [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"},
                                                             {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}"},
    ]}).encode(), streamed=False)  # fmt: skip
    assert answer is not None
    [choice] = answer.choices
    assert (choice.text, choice.refusal, choice.reasoning) == ("a", "no", "hm")
    assert choice.tool_calls == (ToolCall(id="c1", name="f", arguments="{}"),)


# --- Anthropic ------------------------------------------------------------------------------------------

BLOCKS = st.lists(
    st.one_of(
        st.builds(lambda text: {"type": "text", "text": text}, TEXT),
        st.builds(lambda text: {"type": "text", "text": text, "citations": [{"cited": "x"}, {"cited": "y"}]}, TEXT),
        st.builds(lambda text, mark: {"type": "thinking", "thinking": text, "signature": mark}, TEXT, WORD),
        st.builds(lambda mark: {"type": "redacted_thinking", "data": mark}, WORD),
        st.builds(lambda name, given: {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": given},
                  WORD, ARGUMENTS),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
EMPTY = {"text": "", "thinking": "", "signature": "", "input": {}}
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "signature": "signature_delta"}


def anthropic_events(message: dict[str, Any], cut: Cuts) -> list[Any]:
    out: list[Any] = [{"type": "message_start", "message": message | {"content": [], "stop_reason": None}}]
    for at, block in enumerate(message["content"]):
        start = {name: EMPTY.get(name, value) for name, value in block.items() if name != "citations"}
        out.append({"type": "content_block_start", "index": at, "content_block": start})
        named = [name for name in DELTAS if name in block]
        found: list[Any] = [{"type": DELTAS[name], name: piece} for name in named for piece in cut(block[name])]
        found += [{"type": "citations_delta", "citation": citation} for citation in block.get("citations", ())]
        if "input" in block:
            text = json.dumps(block["input"]) if block["input"] else ""
            found += [{"type": "input_json_delta", "partial_json": piece} for piece in cut(text)]
        out += [{"type": "content_block_delta", "index": at, "delta": delta} for delta in found]
        out += [{"type": "content_block_stop", "index": at}, {"type": "ping"}]
    end = {"stop_reason": message["stop_reason"], "stop_sequence": message.get("stop_sequence")}
    return [*out, {"type": "message_delta", "delta": end, "usage": {}}, {"type": "message_stop"}]


@given(BLOCKS, st.sampled_from(["end_turn", "tool_use", "stop_sequence"]), ways_to_write(), st.data())
@settings(max_examples=400, deadline=None)
def test_a_streamed_anthropic_message_is_the_whole_one(blocks: list[Any], stop: str, write: Any, data: Any) -> None:
    message = {"id": "m-1", "type": "message", "role": "assistant", "model": "c", "content": blocks,
               "stop_reason": stop, "stop_sequence": "END" if stop == "stop_sequence" else None}  # fmt: skip
    answer = same(ANTHROPIC, message, write(anthropic_events(message, Cuts(data)), named=True))
    assert answer.choices[0].parts == tuple(blocks)
    assert answer.choices[0].text == "".join(block.get("text", "") for block in blocks)
    assert [json.loads(call.arguments) for call in answer.choices[0].tool_calls] == [
        block["input"] for block in blocks if block["type"] == "tool_use"
    ]


# --- Gemini ---------------------------------------------------------------------------------------------

PARTS = st.lists(
    st.one_of(
        st.builds(lambda text: {"text": text}, TEXT.filter(bool)),
        st.builds(lambda text: {"text": text, "thought": True}, TEXT.filter(bool)),
        st.builds(lambda name, given: {"functionCall": {"name": name, "args": given}, "thoughtSignature": "s"},
                  WORD, ARGUMENTS),
        st.just({"inlineData": {"mimeType": "image/png", "data": "aGk="}}),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@given(
    st.lists(PARTS, min_size=1, max_size=2),
    st.sampled_from(["events", "list", "pretty list"]),
    ways_to_write(),
    st.data(),
)
@settings(max_examples=400, deadline=None)
def test_a_streamed_gemini_answer_is_the_whole_one(candidates: list[Any], form: str, write: Any, data: Any) -> None:
    cut = Cuts(data)
    whole = {"responseId": "r", "modelVersion": "g", "candidates": [
        {"index": n, "content": {"role": "model", "parts": parts}, "finishReason": "STOP", "safetyRatings": ["x"]}
        for n, parts in enumerate(candidates)]}  # fmt: skip
    lanes = []
    for number, parts in enumerate(candidates):
        cuts = [
            [part | {"text": text} for text in cut(part["text"])] if "text" in part else [part] for part in parts
        ]
        pieces = [piece for several in cuts for piece in several]
        lane: list[Any] = [{"index": number, "content": {"role": "model", "parts": [piece]}} for piece in pieces]
        lanes.append([*lane, {"index": number, "finishReason": "STOP", "safetyRatings": ["x"]}])
    chunks = [{"responseId": "r", "modelVersion": "g", "candidates": [item]} for item in cut.shuffled(lanes)]
    if form == "events":
        same(GEMINI, whole, write(chunks))
        return
    body = json.dumps(chunks, indent=2 if form == "pretty list" else None).encode()
    answer = GEMINI.read_answer(body, streamed=False)
    assert answer is not None
    assert answer == GEMINI.read_answer(json.dumps(whole).encode(), streamed=False)
    cut_short = GEMINI.read_answer(body[:-3], streamed=False)  # within its last chunk
    assert cut_short is None or len(cut_short.choices) <= len(answer.choices)
