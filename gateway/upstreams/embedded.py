"""Models that run inside this process, behind the same interface as any other upstream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.domain.exchange import Usage
from gateway.domain.route import LOCAL
from gateway.errors import Abstained, TaskError, UpstreamError
from gateway.extraction import MAGIC, Extractor
from gateway.providers import openai
from gateway.student import ModelFileError, TextClassifier
from gateway.upstreams import Head, Outgoing, Sink

SUPPORT_FLOOR = 0.01
"""A text less like the training texts than 99 % of them were is not answered, whatever the probability."""


class EmbeddedModel(msgspec.Struct, frozen=True):
    """A trained student as something that answers: labels, or JSON made of pieces of the text."""

    student: TextClassifier | Extractor

    @classmethod
    def load(cls, folder: Path, model: str) -> EmbeddedModel:
        """The model that a trainer wrote to `folder/model/model.bin`.

        Raises:
            TaskError: there is none, or its file is damaged.
        """
        file = folder / model / "model.bin"
        try:
            blob = file.read_bytes()
            return cls((Extractor if blob.startswith(MAGIC) else TextClassifier).from_bytes(blob))
        except OSError as error:
            known = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
            raise TaskError(f"no trained model {model!r} in {folder}; there are: {known or 'none'}") from error
        except ModelFileError as error:
            raise TaskError(f"{file}: {error}; train it again with 'unprompt finetune'") from error

    def answer(self, text: str) -> tuple[str, float]:
        """The answer and how sure it is (0 to 1); 0 for a text unlike all that it was trained on."""
        prediction = self.student.predict(text)
        sure = prediction.probability if prediction.support >= SUPPORT_FLOOR else 0.0
        return prediction.label, sure


class _Nothing:
    """The call of a request that is answered before `send` returns."""

    def write(self, piece: bytes) -> None: ...
    def write_end(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def abort(self) -> None: ...


class EmbeddedUpstream:
    """Answers chat completions; `models` is replaced whole when the routes change."""

    name = LOCAL

    def __init__(self) -> None:
        self.models: Mapping[str, EmbeddedModel] = {}
        self._count = 0

    def send(self, request: Outgoing, sink: Sink, *, connect_timeout: float) -> _Nothing:
        try:
            head, body = self._answer(request)
        except UpstreamError as error:
            sink.on_failure(error)
        else:
            sink.on_data(head, body, True)
        return _Nothing()

    def _answer(self, request: Outgoing) -> tuple[Head, bytes]:
        model = self.models.get(request.model or "")
        if model is None or request.text is None:
            raise UpstreamError(f"no model {request.model!r} is loaded here", reached=False)
        label, sure = model.answer(request.text)
        if sure < request.min_confidence:
            raise Abstained(f"{request.model} is {sure:.2f} sure, {request.min_confidence:.2f} is asked for")
        self._count += 1
        name, number = request.model or "", f"local{self._count}"
        usage = Usage(input=_tokens(request.text), output=_tokens(label), source="estimated")
        if request.streamed:
            events = openai.chat_stream(number, name, label, usage if request.wants_usage else None)
            return Head.of(200, b"OK", [(b"Content-Type", b"text/event-stream; charset=utf-8")], None), events
        body = openai.chat_completion(number, name, label, usage)
        framing = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
        return Head.of(200, b"OK", framing, len(body)), body

    async def close(self) -> None:
        self.models = {}


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)
