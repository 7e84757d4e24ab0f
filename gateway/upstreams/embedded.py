"""Models that run inside this process, behind the same interface as any other upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from gateway import embeddings
from gateway.domain.exchange import Usage
from gateway.domain.route import LOCAL
from gateway.errors import Abstained, TaskError, UpstreamError
from gateway.extraction import MAGIC, Extractor
from gateway.providers import openai
from gateway.student import EmbeddingMissing, ModelFileError, TextClassifier
from gateway.upstreams import Head, Outgoing, Sink

SUPPORT_FLOOR = 0.03
"""A text less like the training texts than 97 % of them were is not answered, whatever the probability."""


MOST_WAITING = 64
"""So many requests at once may wait for models that take milliseconds; further ones go to the fallback."""


class EmbeddingUnavailable(TaskError):
    """A model is there and whole, and the embedding that it reads texts with is not installed."""


class EmbeddedModel(msgspec.Struct, frozen=True):
    """A trained student as something that answers: labels, or JSON made of pieces of the text."""

    student: TextClassifier | Extractor

    @property
    def heavy(self) -> bool:
        """Whether an answer takes milliseconds, which the event loop must not be held up for."""
        student = self.student
        own = [student] if isinstance(student, TextClassifier) else [one.classifier for one in student.choices]
        return any(one.encoder is not None and one.encoder.heavy for one in own)

    @classmethod
    def load(cls, folder: Path, model: str) -> EmbeddedModel:
        """The model that a trainer wrote to `folder/model/model.bin`.

        Raises:
            TaskError: there is none, or its file is damaged.
            EmbeddingUnavailable: the embedding that it needs is not installed.
        """
        file = folder / model / "model.bin"
        try:
            blob = file.read_bytes()
            if blob.startswith(MAGIC):
                return cls(Extractor.from_bytes(blob, embeddings.find))
            return cls(TextClassifier.from_bytes(blob, embeddings.find))
        except OSError as error:
            known = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
            raise TaskError(f"no trained model {model!r} in {folder}; there are: {known or 'none'}") from error
        except EmbeddingMissing as error:
            raise EmbeddingUnavailable(f"{file}: {error}; install it, or train again") from error
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


class _Waiting(_Nothing):
    """The call of a request that a thread is answering."""

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class EmbeddedUpstream:
    """Answers chat completions; `models` is replaced whole when the routes change.

    Light models answer at once. Heavy ones, with an embedding that takes milliseconds, answer one after the other
    in a thread of their own.
    """

    name = LOCAL

    def __init__(self) -> None:
        self.models: Mapping[str, EmbeddedModel] = {}
        self._count = 0
        self._waiting = 0
        self._thread: ThreadPoolExecutor | None = None

    def send(self, request: Outgoing, sink: Sink, *, connect_timeout: float) -> _Nothing:
        model = self.models.get(request.model or "")
        if model is None or request.text is None:
            sink.on_failure(UpstreamError(f"no model {request.model!r} is loaded here", reached=False))
        elif not model.heavy:
            self._tell(request, *model.answer(request.text), sink)
        elif self._waiting >= MOST_WAITING:
            sink.on_failure(UpstreamError(f"{self._waiting} requests wait for the models here", reached=False))
        else:
            return self._later(model, request, request.text, sink)
        return _Nothing()

    def _later(self, model: EmbeddedModel, request: Outgoing, text: str, sink: Sink) -> _Waiting:
        """Answer in the thread; the sink is told in the event loop, unless the call was aborted."""
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="embedded")
        call = _Waiting()
        self._waiting += 1

        def done(answer: asyncio.Future[tuple[str, float]]) -> None:
            self._waiting -= 1
            if call.aborted or answer.cancelled():
                return
            if (error := answer.exception()) is not None:
                sink.on_failure(UpstreamError(f"{request.model}: {error!r}", reached=False))
            else:
                self._tell(request, *answer.result(), sink)

        asyncio.get_running_loop().run_in_executor(self._thread, model.answer, text).add_done_callback(done)
        return call

    def _tell(self, request: Outgoing, label: str, sure: float, sink: Sink) -> None:
        try:
            head, body = self._reply(request, request.text or "", label, sure)
        except UpstreamError as error:
            sink.on_failure(error)
        else:
            sink.on_data(head, body, True)

    def _reply(self, request: Outgoing, text: str, label: str, sure: float) -> tuple[Head, bytes]:
        if sure < request.min_confidence:
            raise Abstained(f"{request.model} is {sure:.2f} sure, {request.min_confidence:.2f} is asked for")
        self._count += 1
        name, number = request.model or "", f"local{self._count}"
        usage = Usage(input=_tokens(text), output=_tokens(label), source="estimated")
        if request.streamed:
            events = openai.chat_stream(number, name, label, usage if request.wants_usage else None)
            return Head.of(200, b"OK", [(b"Content-Type", b"text/event-stream; charset=utf-8")], None), events
        body = openai.chat_completion(number, name, label, usage)
        framing = [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
        return Head.of(200, b"OK", framing, len(body)), body

    async def close(self) -> None:
        self.models = {}
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)
