"""A chat request asked in another form than the client's: whole, not streamed, and with log-probabilities, so that
somebody can look at the answer before it leaves; and the answer in the client's form again."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.providers.answers import UNREADABLE
from gateway.providers.answers.confidence import confidence_of
from gateway.providers.openai import OpenAI, as_stream

_FORM = ("stream", "stream_options", "logprobs", "top_logprobs")
_openai = OpenAI()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TRUE = msgspec.Raw(b"true")
HOW_SURE: dict[str, Any] = {"logprobs": True, "top_logprobs": 1}
"""The question. Of the tokens that might have come instead llama.cpp tells twenty, unless it is asked for fewer."""


class Form(msgspec.Struct, frozen=True):
    """In which form the client wants its answer."""

    streamed: bool
    wants_usage: bool
    wants_logprobs: bool


def ask_whole(body: bytes) -> tuple[bytes, Form]:
    """The request to send, and the form that was asked for.

    Raises:
        ValueError: the body is not a JSON object.
    """
    asked = _fields.decode(body)
    options = msgspec.json.decode(asked.get("stream_options", b"null"))
    form = Form(
        streamed=asked.get("stream") == _TRUE,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        wants_logprobs=asked.get("logprobs") == _TRUE,
    )
    sent: dict[str, Any] = {name: value for name, value in asked.items() if name not in _FORM}
    if not form.wants_logprobs:
        sent |= HOW_SURE
    else:  # as the client asks for them
        sent |= {name: asked[name] for name in HOW_SURE if name in asked}
    return msgspec.json.encode(sent), form


def sure_of(body: bytes) -> float | None:
    """How sure the model was of the answer in this body; None: it cannot be told."""
    answer = _openai.read_answer(body, streamed=False)
    if answer is None or answer.error or len(answer.choices) != 1:
        return None
    return confidence_of(answer.choices[0])


def give_back(body: bytes, form: Form) -> bytes:
    """The answer in the form that the client asked for: a JSON object, or server-sent events.

    Raises:
        ValueError: the body is no answer of one text, for which `sure_of` knows no confidence.
    """
    try:
        said: dict[str, Any] = msgspec.json.decode(body)
        (choice,) = said["choices"]
        if not form.wants_logprobs:
            choice["logprobs"] = None
        return as_stream(said, with_usage=form.wants_usage) if form.streamed else msgspec.json.encode(said)
    except UNREADABLE as error:
        raise ValueError("no answer of one text") from error
