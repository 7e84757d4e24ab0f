"""The embedded extraction student: reads values out of a text and writes them as the teacher's JSON would.

A CRF marks the values that are in the text, classifiers choose those that are not, and an answer form writes both.
Learnt offline by `gateway.trainers.tagger`. Only numpy is needed here: no files, no sockets.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np

from gateway.json_answers import AnswerForm, shaped
from gateway.student import Encoders, ModelFileError, Prediction, TextClassifier, log_odds
from gateway.student.wording import Wording
from gateway.tagging import OUTSIDE, Chain, Lattice, Segment, Tokens, Verdict, agreed, features, phrase, segments

MAGIC = b"UNPRTAGG"
MAX_TOKENS = 200
"""Longer texts are not answered: reading one would hold up the relay for milliseconds."""
NOTHING = 0.15
"""The most support of an answer without any value, that of the most usual text: nothing has to be found for it, so
that any text at all could get it."""
_VERSION = 3
_PREFIX = struct.Struct("<8sH32sI")  # magic, version, SHA-256 of all that follows it, length of the header


def written(
    form: AnswerForm, tokens: Tokens, found: Sequence[Segment], chosen: Mapping[int, Any]
) -> tuple[str, int]:
    """The answer with the values found in the text and those chosen (by field), and how many found ones it leaves
    out: the less probable of two for one field, and what cannot be written in the field's shape."""
    values, places, taken = dict(chosen), {}, 0
    for number in {segment.field for segment in found}:
        field, own = form.fields[number], [segment for segment in found if segment.field == number]
        kept = own if field.many else [max(own, key=lambda segment: segment.chance)]
        made = [shaped(tokens.text[segment.start : segment.end], field.shape or "copy") for segment in kept]
        if None not in made:
            values[number], places[number] = made if field.many else made[0], kept[0].start
            taken += len(kept)
    return form.write(values, places), len(found) - taken


class Choice(msgspec.Struct, frozen=True):
    """A classifier for a value that is not in the text, or (`field` None) for which values a text has at all."""

    field: int | None
    classifier: TextClassifier


class Reading(msgspec.Struct, frozen=True):
    """What was read out of a text: the answer, signs of how sure it is (see `SIGNS`), and `support` as far as
    the classifiers tell it. `strange` is the wording outside of the values, `empty` says that there is no value at
    all, none that was chosen either."""

    answer: str
    signs: tuple[float, ...]
    known: float
    support: float
    strange: float = 0.0
    empty: bool = False


class Usual(msgspec.Struct, frozen=True):
    """What training rows are like: the wording of their texts outside of the values, and in how many of them just
    these fields have a value (see `pattern`)."""

    wording: Wording = Wording()
    patterns: dict[str, int] = {}


class Own(msgspec.Struct, frozen=True):
    """What a training row is like itself, for it to count as unseen: its words outside of values, its pattern."""

    outside: tuple[str, ...] = ()
    pattern: str | None = None


NOBODYS = Own()


def pattern(fields: Collection[int], chosen: Mapping[int, str]) -> str:
    """Which fields of an answer have a value that is in the text, and what was chosen for the others (as JSON)."""
    named = [str(field) for field in sorted(fields)]
    return " ".join([*named, *(f"{field}={value}" for field, value in sorted(chosen.items()) if value)])


SIGNS = (
    "any", "chains", "least", "choice", "unsurest", "dropped", "known", "length", "strange", "values", "met", "new",
    "pattern",
)  # fmt: skip
"""1; the log-odds of all tags together on the mean of the chains and by the one that doubts most, of the unsurest
choice and of the unsurest token of a value; values found beyond the one that a field can hold; the share of known
features; the logarithm of the number of tokens; the wording's strangeness; the logarithm of the number of values,
the share of them that training rows had for the same field, and how many they had not; the logarithm of the number
of training rows in which just these fields have a value."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """A trained extraction student, ready to answer.

    The `chains` have the same tags and were trained on different features. `lexicon` holds the phrases that were
    values, each with its fields. `sureness` are the coefficients of a logistic curve over `SIGNS`; `known` the
    ascending, evenly spaced quantiles of the share of known features in unseen texts, `strange` those of how
    strange unseen texts without a value were; where there were none, an answer without a value has no support.
    """

    form: AnswerForm
    chains: tuple[Chain, ...]
    choices: tuple[Choice, ...]
    lexicon: Mapping[str, tuple[str, ...]]
    sureness: tuple[float, ...]
    known: tuple[float, ...]
    usual: Usual = field(default_factory=Usual)
    strange: tuple[float, ...] = ()

    def predict(self, text: str) -> Prediction:
        """The answer for any text at all, the empty one included; without support where it is too long."""
        reading = self.read(text)
        chance = 1 / (1 + float(np.exp(-np.clip(np.dot(self.sureness, reading.signs), -50, 50))))
        return Prediction(reading.answer, chance, self.support(reading))

    def support(self, reading: Reading) -> float:
        """How much speaks for a text being of the kind that was learnt (0..1, see `Prediction`)."""
        rank = float(np.searchsorted(self.known, reading.known, side="right")) / len(self.known)
        found = min(rank, reading.support)
        if not reading.empty:
            return found
        if not self.strange:
            return 0.0
        stranger = np.searchsorted(self.strange, reading.strange)
        return min(found, NOTHING * (1 - float(stranger) / len(self.strange)))

    def read(self, text: str, own: Own = NOBODYS) -> Reading:
        """The likeliest answer, and what tells how sure it is. `own`: of a training row that counts as unseen."""
        tokens = Tokens.of(text)
        chosen = [choice.classifier.predict(text) for choice in self.choices]
        odds = min((float(log_odds(one.probability)) for one in chosen), default=log_odds(1.0))
        support = min((one.support for one in chosen), default=1.0)
        if not 0 < len(tokens.spans) <= MAX_TOKENS:
            support = 0.0 if tokens.spans else support
            tokens = Tokens(text, (), ())
        verdict, known = self._verdict(tokens, [one.label for one in chosen])
        tags = [self.chains[0].tags[tag] for tag in verdict.path]
        found = segments(tokens, tags, verdict.chances)
        values = {
            choice.field: json.loads(one.label)
            for choice, one in zip(self.choices, chosen, strict=True)
            if choice.field is not None and one.label
        }
        answer, dropped = written(self.form, tokens, found, values)
        unsurest = log_odds(min((segment.chance for segment in found), default=1.0))
        chances = log_odds(verdict.mean), log_odds(verdict.least)
        strange = self.usual.wording.strangeness(tokens.outside(found), own.outside)
        signs = (
            1.0, *chances, odds, unsurest, dropped, known, np.log1p(len(tokens.spans)), strange,
            *self._met(tokens, found), self._pattern(found, chosen, own),
        )  # fmt: skip
        return Reading(answer, tuple(map(float, signs)), known, support, strange, not found and not values)

    def _met(self, tokens: Tokens, found: Sequence[Segment]) -> tuple[float, float, int]:
        """The signs `values`, `met` and `new`."""
        met = [str(one.field) in self.lexicon.get(phrase(tokens.text[one.start : one.end]), ()) for one in found]
        return float(np.log1p(len(met))), sum(met) / len(met) if met else 1.0, len(met) - sum(met)

    def _pattern(self, found: Sequence[Segment], chosen: Sequence[Prediction], own: Own) -> float:
        """The sign `pattern`."""
        picked = {
            choice.field: one.label
            for choice, one in zip(self.choices, chosen, strict=True)
            if choice.field is not None
        }
        made = pattern({one.field for one in found}, picked)
        return float(np.log1p(self.usual.patterns.get(made, 0) - (made == own.pattern)))

    def _verdict(self, tokens: Tokens, chosen: Sequence[str]) -> tuple[Verdict, float]:
        """What the chains agree on, and the share of features that they know."""
        if not tokens.spans:
            return Verdict((), (), 1.0, 1.0), 1.0
        seen = features(tokens, chosen, self.lexicon.get)
        scores = [chain.scores(seen) for chain in self.chains]
        lattices = [Lattice.of(table, chain.steps) for (table, _), chain in zip(scores, self.chains, strict=True)]
        return agreed(lattices), float(np.mean([known for _, known in scores]))

    def to_bytes(self) -> bytes:
        """The model file: a versioned prefix with a SHA-256, a JSON header, arrays, the classifiers' own files."""
        parts = [_packed(chain) for chain in self.chains]
        files = [choice.classifier.to_bytes() for choice in self.choices]
        header = _Header(
            form=self.form,
            tags=self.chains[0].tags,
            chains=tuple(
                (len(chain.names), len(chain.cells), len(part))
                for chain, part in zip(self.chains, parts, strict=True)
            ),
            choices=tuple((choice.field, len(file)) for choice, file in zip(self.choices, files, strict=True)),
            lexicon=dict(self.lexicon),
            sureness=self.sureness,
            known=self.known,
            usual=self.usual,
            strange=self.strange,
        )
        head = json.dumps(msgspec.to_builtins(header), sort_keys=True).encode()
        blob = b"".join([head, *parts, *files])
        return _PREFIX.pack(MAGIC, _VERSION, hashlib.sha256(blob).digest(), len(head)) + blob

    @classmethod
    def from_bytes(cls, blob: bytes, encoders: Encoders = lambda name: None) -> Extractor:
        """The student that `to_bytes` wrote; `encoders` gives its classifiers the embedding of a name.

        Raises:
            ModelFileError: not such a file, of another version, cut short or altered.
            EmbeddingMissing: a classifier of it needs an embedding that `encoders` does not have.
        """
        head_size = _checked_header_size(blob)
        try:
            header = msgspec.convert(json.loads(blob[_PREFIX.size : _PREFIX.size + head_size]), _Header)
            return _assemble(header, blob[_PREFIX.size + head_size :], encoders)
        except ModelFileError:
            raise
        except (msgspec.ValidationError, ValueError) as error:
            raise ModelFileError(f"the model file's header and its contents disagree: {error}") from error


_Size = Annotated[int, msgspec.Meta(ge=0)]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the model file says of itself; of each chain, features, weights and bytes."""

    form: AnswerForm
    tags: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    chains: Annotated[tuple[tuple[_Size, _Size, _Size], ...], msgspec.Meta(min_length=1)]
    choices: tuple[tuple[int | None, _Size], ...]
    lexicon: dict[str, tuple[str, ...]]
    sureness: tuple[float, ...]
    known: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
    usual: Usual
    strange: tuple[float, ...]


def _checked_header_size(blob: bytes) -> int:
    if len(blob) < _PREFIX.size or not blob.startswith(MAGIC):
        raise ModelFileError("not an extraction student's model file")
    _, version, digest, head_size = _PREFIX.unpack_from(blob)
    if version != _VERSION:
        raise ModelFileError(
            f"model file of version {version}; this release reads version {_VERSION}: train it again"
        )
    if hashlib.sha256(memoryview(blob)[_PREFIX.size :]).digest() != digest:
        raise ModelFileError("the model file is damaged: its checksum does not match")
    return int(head_size)


def _assemble(header: _Header, body: bytes, encoders: Encoders) -> Extractor:
    """Cut the body into its parts. Raises ValueError when they do not fit."""
    ends = np.cumsum([*(size for _, _, size in header.chains), *(size for _, size in header.choices)])
    if len(body) != ends[-1]:
        raise ValueError(f"{ends[-1]} bytes announced, {len(body)} found")
    parts = [body[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    count = len(header.chains)
    chains = [
        _unpacked(part, header.tags, names, cells)
        for part, (names, cells, _) in zip(parts[:count], header.chains, strict=True)
    ]
    _check(header)
    choices = [
        Choice(field, TextClassifier.from_bytes(part, encoders))
        for (field, _), part in zip(header.choices, parts[count:], strict=True)
    ]
    return Extractor(
        header.form, tuple(chains), tuple(choices), header.lexicon, header.sureness, header.known, header.usual,
        header.strange,
    )  # fmt: skip


def _packed(chain: Chain) -> bytes:
    arrays = chain.starts.astype("<u4"), chain.cells.astype("<u4"), chain.weights.astype("<f4")
    names = "\n".join(chain.names).encode("utf-8", "surrogatepass")
    return b"".join([*(array.tobytes() for array in arrays), chain.steps.astype("<f4").tobytes(), names])


def _unpacked(part: bytes, tags: tuple[str, ...], names: int, cells: int) -> Chain:
    """The chain that `_packed` wrote. Raises ValueError where the numbers do not fit what is there."""
    ends = np.cumsum([4 * (names + 1), 4 * cells, 4 * cells, 4 * len(tags) ** 2])
    if len(part) < ends[-1]:
        raise ValueError(f"{ends[-1]} bytes of numbers announced, {len(part)} found")
    starts, numbers, weights, steps = (part[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True))
    known = part[ends[-1] :].decode("utf-8", "surrogatepass").split("\n") if names else []
    chain = Chain(
        tags=tags,
        names={name: number for number, name in enumerate(known)},
        starts=np.frombuffer(starts, "<u4").astype(np.int64),
        cells=np.frombuffer(numbers, "<u4").astype(np.int64),
        weights=np.frombuffer(weights, "<f4").astype(np.float64),
        steps=np.frombuffer(steps, "<f4").astype(np.float64).reshape(len(tags), len(tags)),
    )
    if len(chain.names) != names:
        raise ValueError("features are missing")
    if chain.starts[-1] != cells or (np.diff(chain.starts) < 0).any() or (chain.cells >= len(tags)).any():
        raise ValueError("weights are missing")
    return chain


def _check(header: _Header) -> None:
    """What a text would otherwise stumble over. Raises ValueError."""
    fields = range(len(header.form.fields))
    named = [int(tag[2:]) for tag in header.tags if tag != OUTSIDE]
    named += [number for number, _ in header.choices if number is not None]
    if any(number not in fields for number in named):
        raise ValueError("fields are missing")
    if len(header.sureness) != len(SIGNS):
        raise ValueError(f"{len(SIGNS)} coefficients expected, {len(header.sureness)} found")
