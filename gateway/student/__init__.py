"""The embedded student: a text classifier that answers inside the relay's own process.

Features are TF-IDF over word n-grams and over character n-grams within words, and beside them, where the model
was trained with one, a sentence embedding. A linear model reads them, and small neural networks may beside it. The
weights are learnt offline by `gateway.trainers.classifier`, from features that this same package extracts, so that
training and serving cannot drift apart. Only numpy is needed here: no scikit-learn, no files, no sockets.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.errors import UnpromptError
from gateway.student.network import Network, Scores, blended, size_of, softmax
from gateway.student.ngrams import (
    FeatureSpec,
    Floats,
    Indices,
    Vectoriser,
    char_ngrams,
    ngrams,
    normalise,
    numbered,
    word_ngrams,
    word_pairs,
)

__all__ = [
    "Calibration", "EmbeddingMissing", "EmbeddingSpec", "Encoder", "Encoders", "FeatureSpec", "Floats", "Indices",
    "ModelFileError", "Network", "Prediction", "Scores", "TextClassifier", "Vectoriser", "blended", "char_ngrams",
    "log_odds", "ngrams", "normalise", "softmax", "word_ngrams", "word_pairs",
]  # fmt: skip

_MAGIC = b"UNPRSTUD"
_VERSION = 3
_READABLE = (1, 2, 3)  # 1 had no embeddings, 2 no networks
_PREFIX = struct.Struct("<8sH32sI")  # magic, version, see `_digest`, length of the header


class ModelFileError(UnpromptError, ValueError):
    """These bytes are not a whole model file of a version that this release can read."""


class EmbeddingMissing(ModelFileError):
    """The model was trained with an embedding that is not installed here, or is there in another version."""


class EmbeddingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which embedding a model reads texts with: its name, the SHA-256 of its files, and how long its vectors are.

    `weight` is the length of a text's embedding beside its character vector's, which is 1.
    """

    name: str
    sha256: str
    dimensions: Annotated[int, msgspec.Meta(ge=1)]
    weight: float


class Encoder(Protocol):
    """A sentence embedding: texts to vectors (texts, dimensions) of length 1, or of 0 for an empty text.

    One that is `heavy` takes milliseconds a text, too long for a thread that has other things to do.
    """

    name: str
    sha256: str
    dimensions: int
    heavy: bool

    def __call__(self, texts: Sequence[str]) -> Floats: ...


Encoders = Callable[[str], Encoder | None]


class Prediction(msgspec.Struct, frozen=True):
    """An answer and how far it can be trusted.

    `probability` is the calibrated probability (0..1) that `label` is what the teacher would have answered.
    `support` (0..1) is the share of the training texts that were no closer to the rest of the training
    data than this text is: near 0 means a text unlike anything seen, where `probability` means little.
    """

    label: str
    probability: float
    support: float


class Calibration(msgspec.Struct, frozen=True):
    """From raw scores to the probability of being right.

    `sharpness` is the inverse temperature of the softmax. `intercept` and the slopes are of a logistic curve over
    the log-odds of the likeliest label and over its closeness to what was seen.
    """

    sharpness: float = 1.0
    intercept: float = 0.0
    odds_slope: float = 1.0
    closeness_slope: float = 0.0

    def __call__(self, top: Any, closeness: Any) -> Any:
        """The probability that the likeliest label is right, from its softmax `top`; numbers or arrays."""
        value = self.intercept + self.odds_slope * log_odds(top) + self.closeness_slope * closeness
        return 1 / (1 + np.exp(-value))


def log_odds(probability: Any) -> Any:
    """ln(p / (1 - p)), finite at 0 and 1 too."""
    safe = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(safe / (1 - safe))


_Size = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the model file says of itself; `words` and `chars` are how many n-grams in how many bytes, `networks`
    how many inputs and hidden units each has."""

    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    spec: FeatureSpec
    unseen_idf: float
    words: tuple[_Size, _Size]
    chars: tuple[_Size, _Size]
    closeness: Annotated[int, msgspec.Meta(ge=1)]
    calibration: Calibration
    embedding: EmbeddingSpec | None = None
    networks: tuple[tuple[_Positive, _Positive], ...] = ()
    sharpness: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A trained classifier, ready to answer.

    `weights` and `centroids` are (n-grams and then embedding dimensions, labels), `bias` (labels,). Closeness is
    the greatest cosine of a text to a label's centroid; `closeness` holds its ascending, evenly spaced quantiles
    over unseen texts of this task. `sharpness` is what `blended` makes one opinion with, of the linear scores and
    then of each network's; where there is no network, the linear scores are all there is.
    """

    labels: tuple[str, ...]
    vectoriser: Vectoriser
    weights: Floats
    bias: Floats
    centroids: Floats
    closeness: Floats
    calibration: Calibration
    embedding: EmbeddingSpec | None = None
    encoder: Encoder | None = None
    networks: tuple[Network, ...] = ()
    sharpness: tuple[float, ...] = ()

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """The softmax of the scores: one number per label, in the order of `labels`; they add up to 1."""
        return softmax(self._read(text)[0], self.calibration.sharpness)

    def _read(self, text: str) -> tuple[NDArray[Any], Floats]:
        """The scores of the labels, and the cosines to their centroids, unscaled."""
        indices, values = self.vectoriser(text)
        if self.encoder is not None and self.embedding is not None:
            first = len(self.vectoriser.idf)
            indices = np.append(indices, np.arange(first, first + self.embedding.dimensions))
            values = np.append(values, np.float32(self.embedding.weight) * self.encoder([text])[0])
        scores, cosines = values @ self.weights[indices] + self.bias, values @ self.centroids[indices]
        if not self.networks:
            return scores, cosines
        opinions = [scores, *(network(indices, values) for network in self.networks)]
        return blended(opinions, self.sharpness), cosines

    def predict(self, text: str) -> Prediction:
        """The likeliest label of any text at all, the empty one included. Never raises."""
        scores, cosines = self._read(text)
        odds = softmax(scores, self.calibration.sharpness)
        best = int(odds.argmax())
        closeness = float(cosines.max())
        support = float(self.closeness.searchsorted(closeness, side="right")) / len(self.closeness)
        return Prediction(self.labels[best], float(self.calibration(odds[best], closeness)), support)

    def to_bytes(self) -> bytes:
        """The model file: a versioned prefix with a SHA-256, a JSON header, the arrays; no code in it."""
        known = self.vectoriser
        arrays = [known.idf, self.weights, self.centroids, self.bias, self.closeness]
        arrays += [array for network in self.networks for array in network.arrays]
        names = ["\n".join(known.words).encode(), "\n".join(known.chars).encode()]
        header = _Header(
            labels=self.labels,
            spec=known.spec,
            unseen_idf=known.unseen_idf,
            words=(len(known.words), len(names[0])),
            chars=(len(known.chars), len(names[1])),
            closeness=len(self.closeness),
            calibration=self.calibration,
            embedding=self.embedding,
            networks=tuple(network.first.shape for network in self.networks),
            sharpness=self.sharpness,
        )
        # json, not msgspec: a label may hold half a surrogate pair, which only an escape can carry
        head = json.dumps(msgspec.to_builtins(header), sort_keys=True).encode()
        blob = b"".join([head, *names, *(array.astype("<f4").tobytes() for array in arrays)])
        return _PREFIX.pack(_MAGIC, _VERSION, _digest(_VERSION, blob), len(head)) + blob

    @classmethod
    def from_bytes(cls, blob: bytes, encoders: Encoders = lambda name: None) -> TextClassifier:
        """The classifier that `to_bytes` wrote; `encoders` gives the embedding of a name, None if there is none.

        Raises:
            ModelFileError: not such a file, of another version, cut short or altered.
            EmbeddingMissing: it needs an embedding that `encoders` does not have, or has with other files.
        """
        head_size = _checked_header_size(blob)
        try:
            header = msgspec.convert(json.loads(blob[_PREFIX.size : _PREFIX.size + head_size]), _Header)
            encoder = _encoder(header.embedding, encoders)
            return _assemble(header, memoryview(blob)[_PREFIX.size + head_size :], encoder)
        except EmbeddingMissing:
            raise
        except (msgspec.ValidationError, ValueError) as error:
            raise ModelFileError(f"the model file's header and its contents disagree: {error}") from error


def _checked_header_size(blob: bytes) -> int:
    if len(blob) < _PREFIX.size or not blob.startswith(_MAGIC):
        raise ModelFileError("not a text classifier's model file")
    _, version, digest, head_size = _PREFIX.unpack_from(blob)
    if version not in _READABLE:
        raise ModelFileError(
            f"model file of version {version}; this release reads version {_VERSION}: train it again"
        )
    if _digest(version, memoryview(blob)[_PREFIX.size :]) != digest:
        raise ModelFileError("the model file is damaged: its checksum does not match")
    return int(head_size)


def _digest(version: int, rest: bytes | memoryview) -> bytes:
    """SHA-256 of all that follows the prefix; from version 3 on of the version too, lest it be taken for older."""
    digest = hashlib.sha256(b"" if version < 3 else b"%d" % version)
    digest.update(rest)
    return digest.digest()


def _encoder(needed: EmbeddingSpec | None, encoders: Encoders) -> Encoder | None:
    if needed is None:
        return None
    encoder = encoders(needed.name)
    if encoder is None:
        raise EmbeddingMissing(f"it needs the embedding {needed.name!r}, which is not installed here")
    if (encoder.sha256, encoder.dimensions) != (needed.sha256, needed.dimensions):
        raise EmbeddingMissing(
            f"it needs the embedding {needed.name!r} with SHA-256 {needed.sha256[:12]}...; "
            f"the one that is installed has {encoder.sha256[:12]}..."
        )
    return encoder


def _assemble(header: _Header, body: memoryview, encoder: Encoder | None) -> TextClassifier:
    """Cut the body into its parts. Raises ValueError when they do not fit."""
    labels, (n_words, word_bytes), (n_chars, char_bytes) = header.labels, header.words, header.chars
    words = _names(body[:word_bytes], n_words)
    chars = _names(body[word_bytes : word_bytes + char_bytes], n_chars)
    known, columns = n_words + n_chars, len(labels)
    rows = known + (header.embedding.dimensions if header.embedding else 0)
    sizes = [known, rows * columns, rows * columns, columns, header.closeness]
    sizes += [size_of(*size, columns) for size in header.networks]
    floats = np.frombuffer(body[word_bytes + char_bytes :], dtype="<f4").astype(np.float32)
    if len(floats) != sum(sizes):
        raise ValueError(f"{sum(sizes)} numbers announced, {len(floats)} found")
    if header.networks and len(header.sharpness) != 1 + len(header.networks):
        raise ValueError(f"{len(header.networks)} networks, and {len(header.sharpness)} numbers to blend them with")
    idf, weights, centroids, bias, closeness, *networks = np.split(floats, np.cumsum(sizes)[:-1])
    return TextClassifier(
        labels=labels,
        vectoriser=Vectoriser(
            spec=header.spec,
            words=numbered(words, 0),
            chars=numbered(chars, n_words),
            idf=idf,
            unseen_idf=header.unseen_idf,
        ),
        weights=weights.reshape(rows, columns),
        centroids=centroids.reshape(rows, columns),
        bias=bias,
        closeness=closeness,
        calibration=header.calibration,
        embedding=header.embedding,
        encoder=encoder,
        networks=tuple(
            Network.of(one, *size, columns) for one, size in zip(networks, header.networks, strict=True)
        ),
        sharpness=header.sharpness,
    )


def _names(part: memoryview, count: int) -> list[str]:
    names = bytes(part).decode().split("\n") if count else []
    if len(names) != count:
        raise ValueError(f"{count} n-grams announced, {len(names)} found")
    return names
