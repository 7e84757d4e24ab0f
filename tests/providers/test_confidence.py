"""How sure a model was stands in its answer's log-probabilities, and an answer that was asked whole to read them
reaches a client as it would have come."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import providers
from gateway.providers.answers import Choice, ToolCall
from gateway.providers.answers.confidence import confidence_of
from gateway.providers.asked_whole import Form, ask_whole, give_back, sure_of

OPENAI = providers.load("openai")
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def token(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(probability), "bytes": list(text.encode()), "top_logprobs": []}


def said(text: str, *tokens: dict[str, Any], **more: Any) -> Choice:
    return Choice(text=text, finish_reason="stop", logprobs={"content": list(tokens), "refusal": None}, **more)


def test_an_answer_is_as_probable_as_all_its_tokens_together() -> None:
    assert confidence_of(said("re fund", token("re", 0.5), token(" fund", 0.9))) == pytest.approx(0.45)
    assert confidence_of(said("oui", token("oui", 1.0), token("</s>", 0.5))) == pytest.approx(0.5)
    # half of a letter in each token, as tokenizers cut what they seldom see; without bytes their text counts
    halves = [token("ü", 0.9) | {"bytes": [0xC3]}, token("ü", 0.9) | {"bytes": [0xBC]}]
    assert confidence_of(said("ü", *halves)) == pytest.approx(0.81)
    assert confidence_of(said("no", {"token": "no", "logprob": -0.1})) == pytest.approx(math.exp(-0.1))
    assert confidence_of(said("no", {"token": "no", "logprob": -9999.0})) == 0.0
    assert confidence_of(said("no", {"token": "no", "logprob": 1e-7})) == 1.0  # rounded by its server
    for never in (-math.inf, -1.7e308, -(10**400)):
        assert confidence_of(said("no", *[{"token": "no", "logprob": never}] * 2)) == 0.0


@pytest.mark.parametrize(
    "choice",
    [
        Choice(text="refund", finish_reason="stop"),
        Choice(text="refund", finish_reason="stop", logprobs={"content": None}),
        Choice(text="refund", finish_reason="stop", logprobs={"content": []}),
        Choice(text="refund", finish_reason="stop", logprobs=[-0.1]),
        said("refund", {"token": "refund"}),
        said("refund", {"token": "refund", "logprob": None}),
        said("refund", {"token": "refund", "logprob": float("nan")}),
        said("refund", {"token": "refund", "logprob": True}),
        said("refund", {"token": "refund", "logprob": 5.0}),
        said("refund", {"token": "refund", "logprob": math.inf}, {"token": "", "logprob": -math.inf}),
        said("refund", {"token": "refund", "logprob": 10**400}),
        said("refund", token("re", 0.9)),
        said("refund", "refund"),  # type: ignore[arg-type]
        said("refund", token("refund", 0.9), refusal="No."),
        said("refund", token("refund", 0.9), tool_calls=(ToolCall(name="pay"),)),
        said(""),
        Choice(text="refund", finish_reason="length", logprobs={"content": [token("refund", 0.9)]}),
    ],
    ids=["none", "null", "empty", "of another format", "without", "null for one", "no number", "a boolean",
         "of no probability", "without an end", "a huge one",
         "of a part", "no objects", "a refusal", "a call", "no text", "cut off"],
)  # fmt: skip
def test_what_cannot_be_told_is_not_made_up(choice: Choice) -> None:
    assert confidence_of(choice) is None


def body(text: str, probability: float, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop",
              "logprobs": {"content": [token(text, probability)], "refusal": None}}  # fmt: skip
    whole = {"id": "c-1", "object": "chat.completion", "created": 5, "model": "tiny-1", "choices": [choice]}
    return json.dumps(whole | {"usage": USAGE} | more).encode()


def test_a_request_is_asked_whole_and_how_sure_and_all_else_keeps_its_bytes() -> None:
    asked = (
        b'{"model":"tiny","messages":[{"role":"user","content":"caf\\u00e9"}],"stream":true,'
        b'"stream_options":{"include_usage":true},"seed":12345678901234567890123,"temperature":0.10}'
    )
    sent, form = ask_whole(asked)
    assert sent == (
        b'{"model":"tiny","messages":[{"role":"user","content":"caf\\u00e9"}],'
        b'"seed":12345678901234567890123,"temperature":0.10,"logprobs":true,"top_logprobs":1}'
    )
    assert form == Form(streamed=True, wants_usage=True, wants_logprobs=False)
    plain, form = ask_whole(b'{"model":"tiny","messages":[],"logprobs":true,"top_logprobs":3}')
    assert json.loads(plain) == {"model": "tiny", "messages": [], "logprobs": True, "top_logprobs": 3}
    assert form == Form(streamed=False, wants_usage=False, wants_logprobs=True)
    assert json.loads(ask_whole(b'{"model":"tiny","logprobs":false,"top_logprobs":3}')[0]) == {
        "model": "tiny", "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip


def test_only_an_answer_of_one_text_is_sure() -> None:
    assert sure_of(body("refund", 0.75)) == pytest.approx(0.75)
    two = json.loads(body("refund", 0.75))
    two["choices"].append(two["choices"][0] | {"index": 1})
    assert sure_of(json.dumps(two).encode()) is None
    for other in (b"", b"<html>", b"[]", b'{"choices":[]}', body("refund", 0.75, error={"message": "no"})):
        assert sure_of(other) is None


@pytest.mark.parametrize("wants_logprobs", [False, True])
def test_the_answer_comes_back_in_the_form_that_was_asked_for(wants_logprobs: bool) -> None:
    given_back = give_back(body("refund", 0.75), Form(False, False, wants_logprobs))
    wanted = json.loads(body("refund", 0.75))
    if not wants_logprobs:
        wanted["choices"][0]["logprobs"] = None
    assert json.loads(given_back) == wanted


@given(st.text(min_size=1), st.booleans(), st.booleans())
def test_a_stream_of_it_says_the_same(text: str, wants_usage: bool, wants_logprobs: bool) -> None:
    whole = body(text, 0.5)
    stream = give_back(whole, Form(True, wants_usage, wants_logprobs))
    assert stream.endswith(b"data: [DONE]\n\n")
    as_json = give_back(whole, Form(False, False, wants_logprobs))
    assert OPENAI.read_answer(stream, streamed=True) == OPENAI.read_answer(as_json, streamed=False)
    facts = OPENAI.read_response(stream, streamed=True)
    assert (facts.model, facts.finish_reason) == ("tiny-1", "stop")
    assert (facts.usage.output == 2) is wants_usage
    assert OPENAI.ends_stream(b"\n" + stream[-64:])
