"""A model in this process answers at once, or, where it takes milliseconds, from a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gateway.domain.dataset import Row
from gateway.errors import Abstained, TaskError, UpstreamError
from gateway.student import Floats, TextClassifier
from gateway.trainers.classifier import Options, train
from gateway.upstreams import Head, Outgoing
from gateway.upstreams.embedded import MOST_WAITING, EmbeddedModel, EmbeddedUpstream, EmbeddingUnavailable

ROWS = [
    Row(exchange_id=f"{word}{n}", text=f"{word} number {n}", messages=[], output=label, split="train")
    for word, label in (
        ("refund", "money"),
        ("pay me back", "money"),
        ("parcel", "delivery"),
        ("courier", "delivery"),
    )
    for n in range(12)
]


class Vowels:
    """An encoder of five dimensions, which can be made to wait."""

    name, sha256, dimensions, heavy = "vowels", "ab" * 32, 5, True

    def __init__(self) -> None:
        self.go, self.threads = threading.Event(), set[str]()
        self.go.set()

    def __call__(self, texts: Sequence[str]) -> Floats:
        self.threads.add(threading.current_thread().name)
        self.go.wait(10)
        counts = np.array([[text.count(vowel) for vowel in "aeiou"] for text in texts], dtype=np.float32)
        counts /= np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
        return counts


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.body, self.error = b"", asyncio.get_running_loop().create_future()

    def on_data(self, head: Head | None, piece: bytes, done: bool) -> None:
        self.body = piece
        self.error.set_result(None)

    def on_failure(self, error: UpstreamError) -> None:
        self.error.set_result(error)

    def on_chunk(self, framed: bytes, piece: bytes) -> None: ...
    def on_interim(self, head: Head) -> None: ...
    def on_upload(self, ready: bool) -> None: ...


def asked(text: str, model: str = "mail-1", min_confidence: float = 0.0) -> Outgoing:
    return Outgoing(
        method=b"POST",
        path=b"/v1/chat/completions",
        lines=b"",
        model=model,
        text=text,
        min_confidence=min_confidence,
    )


def serving(encoder: Vowels | None) -> EmbeddedUpstream:
    upstream = EmbeddedUpstream()
    upstream.models = {"mail-1": EmbeddedModel(train(ROWS, Options(), encoder).student)}
    return upstream


def answered(heard: Heard) -> str:
    content: str = json.loads(heard.body)["choices"][0]["message"]["content"]
    return content


def test_a_light_model_has_answered_when_send_returns() -> None:
    async def story() -> None:
        heard = Heard()
        serving(None).send(asked("refund number 99"), heard, connect_timeout=1)
        assert heard.error.done()
        assert answered(heard) == "money"

    asyncio.run(story())


def test_a_heavy_model_leaves_the_event_loop_alone() -> None:
    async def story() -> None:
        vowels = Vowels()
        upstream, heard = serving(vowels), Heard()
        vowels.go.clear()
        vowels.threads.clear()
        upstream.send(asked("courier number 99"), heard, connect_timeout=1)
        await asyncio.sleep(0.02)  # the loop turns while the model waits
        assert not heard.error.done()
        vowels.go.set()
        assert await heard.error is None
        assert answered(heard) == "delivery"
        assert vowels.threads == {"embedded_0"}
        await upstream.close()

    asyncio.run(story())


def test_who_left_hears_nothing_and_who_is_one_too_many_goes_to_the_fallback() -> None:
    async def story() -> None:
        vowels = Vowels()
        upstream, left, too_many = serving(vowels), Heard(), Heard()
        vowels.go.clear()
        upstream.send(asked("refund"), left, connect_timeout=1).abort()
        others = [Heard() for _ in range(MOST_WAITING - 1)]
        for heard in others:
            upstream.send(asked("refund"), heard, connect_timeout=1)
        upstream.send(asked("refund"), too_many, connect_timeout=1)
        assert isinstance(too_many.error.result(), UpstreamError)
        assert too_many.error.result().reached is False
        vowels.go.set()
        await asyncio.gather(*(heard.error for heard in others))
        assert not left.error.done()
        again = Heard()
        upstream.send(asked("refund"), again, connect_timeout=1)
        assert await again.error is None
        await upstream.close()

    asyncio.run(story())


def test_a_heavy_model_that_is_not_sure_enough_abstains_and_one_that_breaks_fails() -> None:
    async def story() -> None:
        upstream, unsure, broken = serving(Vowels()), Heard(), Heard()
        upstream.send(asked("refund", min_confidence=1.0), unsure, connect_timeout=1)
        assert isinstance(await unsure.error, Abstained)
        upstream.models["mail-1"].student.encoder.dimensions = 0  # type: ignore[union-attr]
        upstream.models["mail-1"].student.encoder.go = None  # type: ignore[union-attr]
        upstream.send(asked("refund"), broken, connect_timeout=1)
        assert isinstance(await broken.error, UpstreamError)
        await upstream.close()

    asyncio.run(story())


def written(folder: Path, student: TextClassifier) -> Path:
    (folder / "mail-1").mkdir(parents=True)
    (folder / "mail-1" / "model.bin").write_bytes(student.to_bytes())
    return folder


def test_without_its_embedding_a_model_is_not_loaded(tmp_path: Path) -> None:
    folder = written(tmp_path, train(ROWS, Options(), Vowels()).student)
    with pytest.raises(EmbeddingUnavailable, match="it needs the embedding 'vowels', which is not installed here"):
        EmbeddedModel.load(folder, "mail-1")


def test_a_model_without_an_embedding_needs_none(tmp_path: Path) -> None:
    model = EmbeddedModel.load(written(tmp_path, train(ROWS, Options()).student), "mail-1")
    assert model.heavy is False
    assert model.answer("refund number 99")[0] == "money"
    with pytest.raises(TaskError, match="no trained model 'other'"):
        EmbeddedModel.load(tmp_path, "other")
