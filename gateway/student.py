"""The embedded student: a sparse linear text classifier that answers inside the relay's own process.

Features are TF-IDF over word n-grams and over character n-grams within words, and beside them, where the model
was trained with one, a sentence embedding. The weights are learnt offline by `gateway.trainers.classifier`, from
features that this same module extracts, so that training and serving cannot drift apart. Only numpy is needed
here: no scikit-learn, no files, no sockets.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.errors import UnpromptError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

# Punctuation of ASCII, Latin-1, General Punctuation and CJK. Everything else that is not blank belongs to a
# word: `\w` would cut words at the vowel signs of Indic scripts.
_PUNCTUATION = re.compile(r"[!-/:-@\[-^`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f]")
_TOKEN = re.compile(rf"{_PUNCTUATION.pattern}|[^\s{_PUNCTUATION.pattern[1:-1]}]+")
_MAGIC = b"UNPRSTUD"
_VERSION = 2
_READABLE = (1, 2)  # 1 had no embeddings
_PREFIX = struct.Struct("<8sH32sI")  # magic, version, SHA-256 of all that follows it, length of the header


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


class FeatureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which n-grams are read from a text: the shortest and longest of each kind.

    `word_weight` is the length of a text's word vector beside its character vector's, which is 1.
    A maximum of 0 leaves that kind out. Texts beyond `max_chars` are read at their head and tail only, so
    that the time of a prediction is bounded.
    """

    word_min: int = 1
    word_max: int = 2
    char_min: int = 2
    char_max: int = 5
    word_weight: float = 0.7
    max_chars: int = 8000


class Prediction(msgspec.Struct, frozen=True):
    """An answer and how far it can be trusted.

    `probability` is the calibrated probability (0..1) that `label` is what the teacher would have answered.
    `support` (0..1) is the share of the training texts that were no closer to the rest of the training
    data than this text is: near 0 means a text unlike anything seen, where `probability` means little.
    """

    label: str
    probability: float
    support: float


def normalise(text: str, max_chars: int) -> str:
    """The text as features see it: bounded, compatibility forms folded, case folded."""
    if len(text) > max_chars:
        half = max_chars // 2
        text = f"{text[:half]} {text[len(text) - half :]}"
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).casefold()


def word_ngrams(tokens: Sequence[str], shortest: int, longest: int) -> list[str]:
    """The n-grams of words, joined by one space; punctuation is left out."""
    words = [token for token in tokens if not _PUNCTUATION.match(token)]
    grams = words if shortest <= 1 <= longest else []
    for n in range(max(2, shortest), longest + 1):
        grams = grams + [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    return grams


def char_ngrams(tokens: Sequence[str], shortest: int, longest: int) -> list[str]:
    """The n-grams of characters within each token, which is padded by a space on both sides."""
    grams: list[str] = []
    for token in tokens:
        padded = f" {token} "
        size = len(padded)
        for n in range(shortest, longest + 1):
            if n >= size:
                grams.append(padded)
                break
            grams += [padded[i : i + n] for i in range(size - n + 1)]
    return grams


def ngrams(text: str, spec: FeatureSpec) -> tuple[list[str], list[str]]:
    """The word n-grams and the character n-grams of a text, repeats included."""
    tokens = _TOKEN.findall(normalise(text, spec.max_chars))
    words = word_ngrams(tokens, spec.word_min, spec.word_max) if spec.word_max else []
    chars = char_ngrams(tokens, spec.char_min, spec.char_max) if spec.char_max else []
    return words, chars


@dataclass(frozen=True, eq=False)
class Vectoriser:
    """Text to a sparse vector: sublinear TF times IDF, each kind of n-gram scaled to its own length.

    `words` and `chars` number the known n-grams, words first; `idf` has one value for each. Unknown n-grams count
    in the length, with the IDF `unseen_idf`: the stranger a text, the shorter its vector and the weaker its scores.
    """

    spec: FeatureSpec
    words: Mapping[str, int]
    chars: Mapping[str, int]
    idf: Floats
    unseen_idf: float

    @classmethod
    def fit(cls, texts: Iterable[str], spec: FeatureSpec, max_features: int = 1_000_000) -> Vectoriser:
        """The n-grams of these texts, in sorted order, with smoothed IDF: ln((1 + texts) / (1 + df)) + 1.

        Beyond half of `max_features` of a kind, those in the fewest texts are left out.
        """
        word_counts: dict[str, int] = {}
        char_counts: dict[str, int] = {}
        total = 0
        for text in texts:
            total += 1
            for counts, grams in zip((word_counts, char_counts), ngrams(text, spec), strict=True):
                for gram in set(grams):
                    counts[gram] = counts.get(gram, 0) + 1
        words, chars = (_most_frequent(counts, max_features // 2) for counts in (word_counts, char_counts))
        df = np.array([*(word_counts[w] for w in words), *(char_counts[c] for c in chars)], dtype=np.float64)
        idf = (np.log((1 + total) / (1 + df)) + 1).astype(np.float32)
        return cls(spec, _numbered(words, 0), _numbered(chars, len(words)), idf, math.log(1 + total) + 1)

    def __call__(self, text: str) -> tuple[Indices, Floats]:
        """Ascending indices of this text's known n-grams, and their weights; empty when none is known."""
        indices, counts, strangers = self.counts(text)
        values = (1 + np.log(counts)).astype(np.float32) * self.idf[indices]
        first_char = int(indices.searchsorted(len(self.words)))
        blocks = values[:first_char], values[first_char:]
        for block, unknown, length in zip(blocks, strangers, (self.spec.word_weight, 1.0), strict=True):
            if len(block):
                block *= length / np.sqrt(block @ block + unknown * self.unseen_idf**2)
        return indices, values

    def counts(self, text: str) -> tuple[Indices, Indices, tuple[int, int]]:
        """Ascending indices of the known n-grams of this text, how often each occurs, and how many are unknown.

        The last are two numbers: of words, of characters.
        """
        words, chars = ngrams(text, self.spec)
        known_words = [index for index in map(self.words.get, words) if index is not None]
        known_chars = [index for index in map(self.chars.get, chars) if index is not None]
        indices, counts = np.unique(np.array(known_words + known_chars, np.int64), return_counts=True)
        return indices, counts, (len(words) - len(known_words), len(chars) - len(known_chars))


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


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the model file says of itself; `words` and `chars` are how many n-grams in how many bytes."""

    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    spec: FeatureSpec
    unseen_idf: float
    words: tuple[_Size, _Size]
    chars: tuple[_Size, _Size]
    closeness: Annotated[int, msgspec.Meta(ge=1)]
    calibration: Calibration
    embedding: EmbeddingSpec | None = None


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A trained classifier, ready to answer.

    `weights` and `centroids` are (n-grams and then embedding dimensions, labels), `bias` (labels,). Closeness is
    the greatest cosine of a text to a label's centroid; `closeness` holds its ascending, evenly spaced quantiles
    over unseen texts of this task.
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

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """The softmax of the scores: one number per label, in the order of `labels`; they add up to 1."""
        return softmax(self._read(text)[0], self.calibration.sharpness)

    def _read(self, text: str) -> tuple[Floats, Floats]:
        """The scores of the labels, and the cosines to their centroids, unscaled."""
        indices, values = self.vectoriser(text)
        scores, cosines = values @ self.weights[indices] + self.bias, values @ self.centroids[indices]
        if self.encoder is None or self.embedding is None:
            return scores, cosines
        vector = np.float32(self.embedding.weight) * self.encoder([text])[0]
        first = len(self.vectoriser.idf)
        return scores + vector @ self.weights[first:], cosines + vector @ self.centroids[first:]

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
        arrays = known.idf, self.weights, self.centroids, self.bias, self.closeness
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
        )
        # json, not msgspec: a label may hold half a surrogate pair, which only an escape can carry
        head = json.dumps(msgspec.to_builtins(header), sort_keys=True).encode()
        blob = b"".join([head, *names, *(array.astype("<f4").tobytes() for array in arrays)])
        return _PREFIX.pack(_MAGIC, _VERSION, hashlib.sha256(blob).digest(), len(head)) + blob

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


def softmax(scores: NDArray[Any], sharpness: float) -> NDArray[np.float64]:
    """Scores (..., labels) to probabilities over the last axis, without overflow."""
    scaled = sharpness * np.asarray(scores, dtype=np.float64)
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    odds: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return odds


def _most_frequent(counts: Mapping[str, int], limit: int) -> list[str]:
    return sorted(sorted(counts, key=lambda gram: (-counts[gram], gram))[:limit])


def _numbered(names: Iterable[str], start: int) -> dict[str, int]:
    return {name: index for index, name in enumerate(names, start)}


def _checked_header_size(blob: bytes) -> int:
    if len(blob) < _PREFIX.size or not blob.startswith(_MAGIC):
        raise ModelFileError("not a text classifier's model file")
    _, version, digest, head_size = _PREFIX.unpack_from(blob)
    if version not in _READABLE:
        raise ModelFileError(
            f"model file of version {version}; this release reads version {_VERSION}: train it again"
        )
    if hashlib.sha256(memoryview(blob)[_PREFIX.size :]).digest() != digest:
        raise ModelFileError("the model file is damaged: its checksum does not match")
    return int(head_size)


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
    floats = np.frombuffer(body[word_bytes + char_bytes :], dtype="<f4").astype(np.float32)
    if len(floats) != sum(sizes):
        raise ValueError(f"{sum(sizes)} numbers announced, {len(floats)} found")
    idf, weights, centroids, bias, closeness = np.split(floats, np.cumsum(sizes)[:-1])
    return TextClassifier(
        labels=labels,
        vectoriser=Vectoriser(
            spec=header.spec,
            words=_numbered(words, 0),
            chars=_numbered(chars, n_words),
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
    )


def _names(part: memoryview, count: int) -> list[str]:
    names = bytes(part).decode().split("\n") if count else []
    if len(names) != count:
        raise ValueError(f"{count} n-grams announced, {len(names)} found")
    return names
