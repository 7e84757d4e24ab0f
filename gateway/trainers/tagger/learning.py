"""Trains the extraction student: CRFs for values in the text, classifiers for the others, and how sure it is."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.domain.dataset import Row
from gateway.extraction import MAX_TOKENS, SIGNS, Choice, Extractor, Own, Reading, Usual, pattern
from gateway.json_answers import AnswerForm
from gateway.student.wording import Wording
from gateway.tagging import OUTSIDE, Chain, Lexicon, Segment, Tokens, features, phrase, segments
from gateway.trainers import classifier
from gateway.trainers.classifier import fit_curve
from gateway.trainers.tagger.answers import Example, learn

MAX_ROWS = 5000
"""More rows are sampled: training time grows with rows times the square of the fields."""
MOST_COPIES, MOST_FIELDS = 1000, 20_000
"""So many copies of rows at most, or more where they have few fields (copies times fields), or one of each."""
VIEWS = (frozenset({"3", "3m", "3r"}), frozenset({"L", "R", "p"}))
"""The families of features that each chain does not see: the first no three words in a row, the second nothing
farther than two words away and no beginnings of words."""
FIVE_FOLDS = 30_000  # rows times fields; beyond it three folds have to do, for time
_GIST_LABELS, _GIST_ROWS = 20, 5
_QUANTILES = 201

Learnt = tuple[Example, Sequence[str]]
"""A row, and what the classifiers chose for it."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate of the sweep may set.

    `l1`, `l2` and `iterations` are L-BFGS's. `swaps` is how many copies of each row, with other rows' values in
    the place of its own, are learnt besides (Dai and Adel 2020, "An Analysis of Simple Data Augmentation for Named
    Entity Recognition"), fewer where there are many rows. `chains` is how many CRFs there are, each with copies and
    features of its own (see `VIEWS`).
    `gist`: where no field is chosen, a classifier tells the CRF which fields a text seems to have.
    """

    l1: Annotated[float, msgspec.Meta(ge=0)] = 0.1
    l2: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    iterations: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 60
    swaps: Annotated[int, msgspec.Meta(ge=0, le=5)] = 4
    chains: Annotated[int, msgspec.Meta(ge=1, le=len(VIEWS))] = len(VIEWS)
    gist: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0


@dataclass(frozen=True)
class Trained:
    """A student and what was measured on the training rows by cross-fitting: see `classifier.Trained`."""

    student: Extractor
    metrics: dict[str, float]
    cross_fit: dict[str, list[Any]]


def train(rows: Sequence[Row], options: Options) -> Trained:
    """A calibrated student of these rows. Deterministic: same rows and options, same bytes.

    Raises:
        DatasetError: the answers' values are not in the texts; says in how many.
    """
    if len(rows) > MAX_ROWS:
        rows = random.Random(options.seed).sample(rows, MAX_ROWS)
    form, examples = learn(rows)
    labels = _labels(form, examples, options)
    chosen = [["" for _ in labels] for _ in rows]
    held_out = _folds(len(rows), len(form.fields), options)
    choosers: list[tuple[Choice, ...]] = []
    for held in held_out:
        choosers.append(_choices([row for row, out in zip(rows, held, strict=True) if not out], labels, ~held))
        for place in np.flatnonzero(held).tolist():
            chosen[place] = [choice.classifier.predict(rows[place].text).label for choice in choosers[-1]]
    own = [_own(example) for example in examples]
    usual = Usual(Wording.of(one.outside for one in own), dict(Counter(str(one.pattern) for one in own)))
    readings: list[Reading | None] = [None] * len(rows)
    for held, choices in zip(held_out, choosers, strict=True):
        student = replace(_student(form, examples, chosen, ~held, choices, options), usual=usual)
        for place in np.flatnonzero(held).tolist():
            readings[place] = student.read(rows[place].text, own[place])
    read = [reading for reading in readings if reading is not None]
    everything = np.ones(len(rows), dtype=np.bool_)
    student = _student(form, examples, chosen, everything, _choices(rows, labels, everything), options)
    return _measured(replace(student, usual=usual), read, [row.output for row in rows])


def _folds(size: int, fields: int, options: Options) -> list[NDArray[np.bool_]]:
    """Masks of the held-out rows."""
    count = min(size, 5 if size * fields <= FIVE_FOLDS else 3)
    fold = np.arange(size) % count
    np.random.default_rng(options.seed).shuffle(fold)
    return [fold == number for number in range(count)]


# --- what is not in the text ------------------------------------------------------------------------------


def _labels(form: AnswerForm, examples: Sequence[Example], options: Options) -> dict[int | None, list[str]]:
    """What the classifiers learn: each chosen field's value; where there is none, which values a text has."""
    found: dict[int | None, list[str]] = {
        number: [example.chosen[number] for example in examples]
        for number, field in enumerate(form.fields)
        if field.chosen
    }
    if found or not options.gist:
        return found
    gist = [" ".join(sorted({tag[2:] for tag in example.tags if tag != OUTSIDE})) for example in examples]
    usual = {label for label, count in Counter(gist).most_common(_GIST_LABELS) if count >= _GIST_ROWS}
    return {None: [label if label in usual else "other" for label in gist]}


def _choices(
    rows: Sequence[Row], labels: Mapping[int | None, Sequence[str]], kept: NDArray[np.bool_]
) -> tuple[Choice, ...]:
    """`rows` are those of the kept ones among `labels`."""
    made = []
    for field, answers in labels.items():
        own = [answer for answer, keep in zip(answers, kept, strict=True) if keep]
        pairs = zip(rows, own, strict=True)
        data = [msgspec.structs.replace(row, output=answer) for row, answer in pairs]
        made.append(Choice(field, classifier.train(data, classifier.Options(label_names=0.0)).student))
    return tuple(made)


# --- what is in the text ----------------------------------------------------------------------------------


def _student(
    form: AnswerForm, examples: Sequence[Example], chosen: Sequence[Sequence[str]], kept: NDArray[np.bool_],
    choices: tuple[Choice, ...], options: Options,
) -> Extractor:  # fmt: skip
    """A student of the kept rows that is not calibrated yet."""
    own = [(examples[n], chosen[n]) for n in np.flatnonzero(kept).tolist() if _is_learnt(examples[n])]
    phrases = Counter(pair for example, _ in own for pair in values_in(example))
    lexicon: dict[str, tuple[str, ...]] = {}
    for text, field in sorted(phrases):
        lexicon[text] = (*lexicon.get(text, ()), field)
    chains = _chains(form, own, lambda example: _without(lexicon, phrases, example), options)
    coefficients = (0.0, 1.0, *[0.0] * (len(SIGNS) - 2))
    return Extractor(form, chains, choices, lexicon, coefficients, (0.0,))


def _chains(
    form: AnswerForm, own: Sequence[Learnt], lexicon_of: Callable[[Example], Lexicon], options: Options
) -> tuple[Chain, ...]:
    """A CRF for each view, of these rows and of other copies of them."""

    def look(rows: Sequence[Learnt]) -> list[list[list[str]]]:
        return [features(example.tokens, picked, lexicon_of(example)) for example, picked in rows]

    most = max(MOST_COPIES, MOST_FIELDS // len(form.fields))
    copies = min(options.swaps, max(1, most // max(1, len(own))))
    seen, made = look(own), []
    for number, left_out in enumerate(VIEWS[: options.chains]):
        swapped = _swapped(own, copies, random.Random(f"{options.seed} {number}"))
        tags = [_chain_tags(form, example) for example, _ in (*own, *swapped)]
        made.append(fit_chain([*seen, *look(swapped)], tags, options, left_out))
    return tuple(made)


def _chain_tags(form: AnswerForm, example: Example) -> list[str]:
    """Only lists need a tag for where a value begins; half as many tags train in a fraction of the time."""
    tags = example.tags
    return [tag if tag == OUTSIDE or form.fields[int(tag[2:])].many else "I" + tag[1:] for tag in tags]


def _is_learnt(example: Example) -> bool:
    return example.whole and 0 < len(example.tokens.spans) <= MAX_TOKENS


def _marked(example: Example) -> list[Segment]:
    return segments(example.tokens, example.tags, [1.0] * len(example.tags))


def values_in(example: Example) -> list[tuple[str, str]]:
    """The values of a row as phrases, each with its field's number as text."""
    text = example.tokens.text
    return [(phrase(text[segment.start : segment.end]), str(segment.field)) for segment in _marked(example)]


def _without(lexicon: Mapping[str, Sequence[str]], phrases: Counter[tuple[str, str]], example: Example) -> Lexicon:
    """The lexicon of all other rows: what only this row has would be known in training and never live."""
    own = Counter(values_in(example))
    return lambda text: [field for field in lexicon.get(text, ()) if phrases[text, field] > own[text, field]]


def _swapped(own: Sequence[Learnt], count: int, chance: random.Random) -> list[Learnt]:
    """`count` copies of each row, with values of other rows in the place of most of its own."""
    pool: dict[int, list[str]] = {}
    for example, _ in own:
        for segment in _marked(example):
            pool.setdefault(segment.field, []).append(example.tokens.text[segment.start : segment.end])
    copies = [(swap(example, pool, chance), picked) for example, picked in own for _ in range(count)]
    return [(copy, picked) for copy, picked in copies if copy is not None]


def swap(example: Example, pool: Mapping[int, Sequence[str]], chance: random.Random) -> Example | None:
    """The row with other values of the same fields; None where that gives no row of another text."""
    old, new, at = example.tokens.text, "", 0
    marks: list[tuple[int, int, int]] = []
    for segment in _marked(example):
        value = chance.choice(pool[segment.field]) if chance.random() < 0.7 else old[segment.start : segment.end]
        new += old[at : segment.start]
        marks.append((len(new), len(new) + len(value), segment.field))
        new, at = new + value, segment.end
    new += old[at:]
    tokens = Tokens.of(new)
    tags = [OUTSIDE] * len(tokens.spans)
    for start, end, field in marks:
        inside = [n for n, (first, last) in enumerate(tokens.spans) if start <= first and last <= end]
        if not inside or tokens.spans[inside[0]][0] != start or tokens.spans[inside[-1]][1] != end:
            return None  # the new value ran together with its neighbours
        tags[inside[0] : inside[-1] + 1] = [f"B-{field}"] + [f"I-{field}"] * (len(inside) - 1)
    if new == old or len(tokens.spans) > MAX_TOKENS:
        return None
    return Example(tokens=tokens, output="", tags=tuple(tags), chosen=example.chosen, whole=True)


def fit_chain(
    seen: Sequence[Sequence[Sequence[str]]], tags: Sequence[Sequence[str]], options: Options,
    left_out: Collection[str] = (),
) -> Chain:  # fmt: skip
    """A CRF of these texts by L-BFGS with L1 and L2 (Okazaki 2007, CRFsuite), which does not see the families of
    features in `left_out`."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(algorithm="lbfgs", verbose=False)
    trainer.set_params({"c1": options.l1, "c2": options.l2, "max_iterations": options.iterations})
    numbers = {
        name: str(number)
        for number, name in enumerate(dict.fromkeys(name for text in seen for token in text for name in token))
        if name.partition("=")[0] not in left_out
    }
    for text, answer in zip(seen, tags, strict=True):
        trainer.append([[numbers[name] for name in token if name in numbers] for token in text], list(answer))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chain"
        trainer.train(str(file))
        tagger = pycrfsuite.Tagger()
        with tagger.open(str(file)):
            dump = tagger.info()
    names = {number: name for name, number in numbers.items()}
    known = sorted({OUTSIDE, *(tag for answer in tags for tag in answer)})
    return _chain(dump.state_features, dump.transitions, names, known)


def _chain(
    states: Mapping[tuple[str, str], float], transitions: Mapping[tuple[str, str], float],
    names: Mapping[str, str], tags: Sequence[str],
) -> Chain:  # fmt: skip
    """Only features with a weight are kept, in the order of their names."""
    column = {tag: number for number, tag in enumerate(tags)}
    cells = sorted((names[number], column[tag], weight) for (number, tag), weight in states.items() if weight)
    counts = Counter(name for name, _, _ in cells)
    steps = np.zeros((len(tags), len(tags)))
    for (one, other), weight in transitions.items():
        steps[column[one], column[other]] = weight
    return Chain(
        tags=tuple(tags),
        names={name: number for number, name in enumerate(sorted(counts))},
        starts=np.cumsum([0, *(counts[name] for name in sorted(counts))]).astype(np.int64),
        cells=np.array([cell for _, cell, _ in cells], dtype=np.int64),
        weights=np.array([weight for _, _, weight in cells], dtype=np.float32).astype(np.float64),  # as in the file
        steps=steps.astype(np.float32).astype(np.float64),
    )


# --- how sure it is ---------------------------------------------------------------------------------------


def _own(example: Example) -> Own:
    """What a row is like itself."""
    marked = _marked(example)
    return Own(example.tokens.outside(marked), pattern({one.field for one in marked}, example.chosen))


def _measured(student: Extractor, read: Sequence[Reading], outputs: Sequence[str]) -> Trained:
    right = np.array([same(reading.answer, output) for reading, output in zip(read, outputs, strict=True)])
    signs = np.array([reading.signs for reading in read])
    prior = np.array(student.sureness)
    curve = fit_curve(signs, right.astype(np.float64), prior)
    known = np.array([reading.known for reading in read])
    strange = [reading.strange for reading in read if reading.empty]
    student = replace(
        student, sureness=tuple(map(float, curve)), known=_quantiles(known), strange=_quantiles(strange)
    )
    sure = 1 / (1 + np.exp(-np.clip(signs @ curve, -50, 50)))
    support = [student.support(reading) for reading in read]
    usual = Counter(outputs).most_common(1)[0][1]
    metrics = {
        "rows": len(read),
        "fields": len(student.form.fields),
        "cv_accuracy": round(float(right.mean()), 4),
        "cv_confidence": round(float(sure.mean()), 4),
        "cv_identical": round(float(np.mean([a.answer == b for a, b in zip(read, outputs, strict=True)])), 4),
        "most_frequent_answer": round(usual / len(read), 4),
    }
    cross_fit = {
        "confidence": np.round(sure, 6).tolist(),
        "support": np.round(support, 6).tolist(),
        "right": right.astype(int).tolist(),
    }
    return Trained(student, metrics, cross_fit)


def _quantiles(values: Any) -> tuple[float, ...]:
    return tuple(np.quantile(values, np.linspace(0, 1, _QUANTILES)).tolist()) if len(values) else ()


def same(one: str, other: str) -> bool:
    """Whether two answers are equal, as they stand or as JSON."""
    if one == other:
        return True
    try:
        return bool(json.loads(one) == json.loads(other))
    except (ValueError, RecursionError):
        return False
