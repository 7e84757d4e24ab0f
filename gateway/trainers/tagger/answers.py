"""From recorded texts and answers to what can be learnt: the form of the answers, and where each value stands."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, get_args

import msgspec

from gateway.domain.dataset import Row
from gateway.errors import DatasetError
from gateway.extraction import written
from gateway.json_answers import AnswerForm, Field, Keys, Shape, Spelling, shaped, values_of
from gateway.tagging import OUTSIDE, Tokens, segments

MAX_FIELDS = 64
MAX_CHOICES = 8
"""So many classifiers are asked for one text at most."""
MOST_LABELS = 200
LEAST_SHARE = 0.5
"""Fewer rows than this share, whose answers the form can write, are refused."""
_SHAPES: tuple[Shape, ...] = get_args(Shape)
_SPELLINGS = tuple(
    Spelling(indent=indent, comma="," if indent is not None else comma, colon=colon, ascii=plain)
    for plain, indent, (comma, colon) in product(
        (False, True), (None, 2, 4, "\t", 1, 3), ((", ", ": "), (",", ":"), (",", ": "))
    )
)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it is learnt: a tag for each token, and the JSON of each chosen field ("": left out).

    `whole` False: the row's answer cannot be made of its text in this way; it is not learnt, but it counts.
    """

    tokens: Tokens
    output: str
    tags: tuple[str, ...]
    chosen: Mapping[int, str]
    whole: bool


def learn(rows: Sequence[Row]) -> tuple[AnswerForm, list[Example]]:
    """The form of the answers, and each row laid into it.

    Raises:
        DatasetError: most answers are no JSON objects, or their values are not in the texts; says the share.
    """
    answers = [answer_of(row.output) for row in rows]
    texts = [Tokens.of(row.text) for row in rows]
    pairs = [(text, answer) for text, answer in zip(texts, answers, strict=True) if answer is not None]
    if len(pairs) < LEAST_SHARE * len(rows) or not pairs:
        raise DatasetError(f"the answers are no JSON objects: {len(pairs)} of {len(rows)} are")
    form = form_of(pairs, [row.output for row in rows])
    both = [
        [_example(each, *row) for row in zip(texts, answers, (row.output for row in rows), strict=True)]
        for each in (form, msgspec.structs.replace(form, by_text=True))
    ]
    fixed, by_text = (sum(example.whole for example in examples) for examples in both)
    if by_text > fixed:
        form = msgspec.structs.replace(form, by_text=True)
    examples = both[by_text > fixed]
    _check(form, examples, pairs)
    return form, examples


def _check(form: AnswerForm, examples: Sequence[Example], pairs: Sequence[tuple[Tokens, dict[str, Any]]]) -> None:
    whole = sum(example.whole for example in examples)
    if not any(field.shape for field in form.fields):
        raise DatasetError(f"no field of the answers has most of its values in the text: {_shares(pairs)}")
    if whole < LEAST_SHARE * len(examples):
        raise DatasetError(
            f"only {whole} of {len(examples)} answers ({whole / len(examples):.0%}) can be made of values that are "
            f"in the text or from a closed set; in the text are: {_shares(pairs)}"
        )


def _shares(pairs: Sequence[tuple[Tokens, dict[str, Any]]]) -> str:
    """How many of each field's values are in their text, the fewest first."""
    found: dict[str, list[bool]] = defaultdict(list)
    for tokens, answer in pairs:
        for keys, value in values_of(answer).items():
            found[".".join(keys)].append(any(_places(tokens, value, shape) is not None for shape in _SHAPES))
    shares = sorted((sum(hits) / len(hits), name) for name, hits in found.items())
    return ", ".join(f"{name} {share:.0%}" for share, name in shares[:8]) or "nothing"


def answer_of(output: str) -> dict[str, Any] | None:
    """The JSON object in an answer, code fences around it or not; None where there is none."""
    first, last = output.find("{"), output.rfind("}")
    try:
        found = json.loads(output[first : last + 1]) if first >= 0 else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# --- the form ---------------------------------------------------------------------------------------------


def form_of(pairs: Sequence[tuple[Tokens, dict[str, Any]]], outputs: Sequence[str]) -> AnswerForm:
    """The fields that these answers have, and how they are written.

    Raises:
        DatasetError: too many fields, or too many that are chosen.
    """
    answers = [answer for _, answer in pairs]
    values = [values_of(answer) for answer in answers]
    objects = {keys[:size] for found in values for keys in found for size in range(1, len(keys))}
    objects |= {keys for answer in answers for keys in _empty(answer)}
    leaves = {keys for found in values for keys in found} - objects
    if len(leaves) > MAX_FIELDS:
        raise DatasetError(f"the answers have {len(leaves)} different fields, over {MAX_FIELDS}")
    fields = [_object(keys, values, answers) for keys in objects]
    fields += [_field(keys, [text for text, _ in pairs], values) for keys in leaves]
    kept = [field for field in fields if field.shape or field.chosen or field.absent is not None]
    if sum(field.chosen for field in kept) > MAX_CHOICES:
        raise DatasetError(f"{sum(f.chosen for f in kept)} fields are not in the text, over {MAX_CHOICES}")
    ranks = _ranks(answers)
    kept.sort(key=lambda field: [ranks[field.keys[: size + 1]] for size in range(len(field.keys))])
    return AnswerForm(fields=tuple(kept), spelling=_spelling(outputs))


def _field(keys: Keys, texts: Sequence[Tokens], values: Sequence[Mapping[Keys, Any]]) -> Field:
    """Copied where the values are in the texts, chosen where they are a closed set, else mostly absent."""
    given = [(text, found[keys]) for text, found in zip(texts, values, strict=True) if keys in found]
    sample = given[:: max(1, len(given) // 500)]
    shape = max(_SHAPES, key=lambda s: sum(_places(text, value, s) is not None for text, value in sample))
    elsewhere = Counter(_json(value) for text, value in given if _places(text, value, shape) is None)
    usual, count = elsewhere.most_common(1)[0] if elsewhere else ("", 0)
    missing = len(values) - len(given)
    # What stands for "no value" is frequent, and never a piece of the text as other values are.
    same_in_text = sum(_json(value) == usual for _, value in given) - count
    absent = usual if count > max(2, missing, len(given) / 50) and not same_in_text else None
    placed = len(given) - elsewhere.total()
    stray = elsewhere.total() - (count if absent is not None else 0)
    labels = Counter(_json(value) for _, value in given)
    labels[""] += missing
    closed = len(+labels) <= MOST_LABELS and sum(n == 1 for n in labels.values()) <= len(given) / 10
    if placed and (placed >= 0.95 * (placed + stray) or (placed >= stray and not closed)):
        return Field(keys=keys, shape=shape, absent=absent, many=any(isinstance(v, list) for _, v in given))
    if closed and len(+labels) > 1:
        return Field(keys=keys, chosen=True)
    return Field(keys=keys, absent=absent)


def _object(keys: Keys, values: Sequence[Mapping[Keys, Any]], answers: Sequence[dict[str, Any]]) -> Field:
    """What stands for an object that has nothing inside: `{}`, null, or nothing."""
    votes: Counter[str] = Counter()
    for found, answer in zip(values, answers, strict=True):
        if keys in found:
            votes[_json(found[keys])] += 1
        elif not any(other[: len(keys)] == keys for other in found):
            votes["{}" if keys in _empty(answer) else ""] += 1
    usual = max(sorted(votes), key=lambda literal: votes[literal], default="")
    return Field(keys=keys, absent=usual or None)


def _empty(answer: Mapping[str, Any], keys: Keys = ()) -> list[Keys]:
    """The keys of the empty objects inside."""
    inside = [((*keys, key), value) for key, value in answer.items() if isinstance(value, dict)]
    return [place for place, value in inside if not value] + [
        deeper for place, value in inside for deeper in _empty(value, place)
    ]


def _ranks(answers: Sequence[dict[str, Any]]) -> dict[Keys, int]:
    """The place of each key among those beside it: what most often stands before the others comes first."""
    before: Counter[tuple[Keys, str, str]] = Counter()
    beside: dict[Keys, dict[str, None]] = defaultdict(dict)

    def look(answer: Mapping[str, Any], keys: Keys) -> None:
        names = list(answer)
        beside[keys] |= dict.fromkeys(names)
        before.update((keys, one, two) for place, one in enumerate(names) for two in names[place + 1 :])
        for name, value in answer.items():
            if isinstance(value, dict):
                look(value, (*keys, name))

    for answer in answers:
        look(answer, ())
    return {
        (*keys, name): rank
        for keys, names in beside.items()
        for rank, name in enumerate(_sorted_by_pairs(list(names), keys, before))
    }


def _sorted_by_pairs(names: list[str], keys: Keys, before: Counter[tuple[Keys, str, str]]) -> list[str]:
    """An order in which few pairs stand the wrong way round: next is the name that fewest others should precede."""

    def precedes(one: str, other: str) -> bool:
        return before[keys, one, other] > before[keys, other, one]

    order: list[str] = []
    while names:
        first = min(names, key=lambda name: sum(precedes(other, name) for other in names))
        names = [name for name in names if name != first]
        order.append(first)
    return order


def _spelling(outputs: Sequence[str]) -> Spelling:
    """The spelling that writes most of the answers as they are."""
    votes: Counter[Spelling] = Counter()
    for output in outputs[:: max(1, len(outputs) // 300)]:
        answer = answer_of(output)
        if answer is None:
            continue
        first, last = output.find("{"), output.rfind("}") + 1
        for spelling in _SPELLINGS:
            if spelling.write(answer) == output[first:last]:
                votes[msgspec.structs.replace(spelling, before=output[:first], after=output[last:])] += 1
    return max(votes, key=lambda spelling: votes[spelling], default=Spelling())


# --- one row ----------------------------------------------------------------------------------------------


def _example(form: AnswerForm, tokens: Tokens, answer: dict[str, Any] | None, output: str) -> Example:
    values = values_of(answer or {})
    tags = [OUTSIDE] * len(tokens.spans)
    chosen: dict[int, str] = {}
    copied: list[tuple[int, Any]] = []
    for number, field in enumerate(form.fields):
        if field.chosen:
            chosen[number] = _json(values[field.keys]) if field.keys in values else ""
        elif field.shape and field.keys in values and _json(values[field.keys]) != field.absent:
            copied.append((number, values[field.keys]))
    for number, value in sorted(copied, key=lambda pair: -len(str(pair[1]))):  # the longest find their place first
        for first, last in _places(tokens, value, form.fields[number].shape or "copy", tags) or []:
            tags[first : last + 1] = [f"B-{number}"] + [f"I-{number}"] * (last - first)
    found = segments(tokens, tags, [1.0] * len(tags))
    made, left_out = written(form, tokens, found, {n: json.loads(text) for n, text in chosen.items() if text})
    return Example(
        tokens=tokens, output=output, tags=tuple(tags), chosen=chosen, whole=made == output and not left_out
    )


def _places(
    tokens: Tokens, value: Any, shape: Shape, tags: Sequence[str] | None = None
) -> list[tuple[int, int]] | None:
    """The (first, last) tokens of a value, of each one in a list; None where one is not there. Tokens that have a
    tag are taken."""
    if isinstance(value, list):
        places: list[tuple[int, int]] = []
        for item in value:
            after = places[-1][1] + 1 if places else 0
            place = next((p for p in _places_of_one(tokens, item, shape, tags) if p[0] >= after), None)
            if place is None:
                return None
            places.append(place)
        return places or None
    first = next(_places_of_one(tokens, value, shape, tags), None)
    return None if first is None else [first]


def _places_of_one(
    tokens: Tokens, value: Any, shape: Shape, tags: Sequence[str] | None
) -> Iterator[tuple[int, int]]:
    """Where the text has a value in this shape, from token to token."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = _json(value) if number else value
    small = tokens.text.lower()
    if not isinstance(wanted, str) or not wanted or number != (shape == "number") or len(small) != len(tokens.text):
        return
    starts = {start: place for place, (start, _) in enumerate(tokens.spans)}
    ends = {end: place for place, (_, end) in enumerate(tokens.spans)}
    at = small.find(wanted.lower())
    while at >= 0:
        end = at + len(wanted)
        if at in starts and end in ends and shaped(tokens.text[at:end], shape) == value:
            first, last = starts[at], ends[end]
            if tags is None or all(tag == OUTSIDE for tag in tags[first : last + 1]):
                yield first, last
        at = small.find(wanted.lower(), at + 1)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
