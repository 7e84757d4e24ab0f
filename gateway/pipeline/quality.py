"""How good answers are, as pure functions of texts: labels, JSON and prose each have measures of their own.

`expected` is what the answer is compared with: a person's word where there is one, else what the incumbent
answered. `given` is a candidate's answer; None stands for one that is wrong whatever it says. Either may be calls
of tools, as `tool_calls.spelled` writes them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.pipeline.intervals import Figure, bootstrap
from gateway.pipeline.tool_calls import calls_in

Pair = tuple[str, str | None]
"""(expected, given)."""
CHRF_ORDER = 6
CHRF_BETA = 2


class FieldCount(msgspec.Struct, frozen=True):
    """Of one field of JSON answers: values that are right, that were expected and not given, and the reverse."""

    right: int
    missed: int
    added: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where nothing was expected and nothing given."""
        wrong = self.missed + self.added
        return 2 * self.right / (2 * self.right + wrong) if self.right or wrong else 1.0


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same: equal but for blanks around them, or equal as JSON; or the same calls of
    tools with equal arguments, whichever comes first."""
    if one.strip() == other.strip():
        return True
    calls, others = calls_in(one), calls_in(other)
    if calls is not None or others is not None:
        return calls == others
    first, second = _parsed(one), _parsed(other)
    return isinstance(first, dict | list) and bool(first == second)


def exact(expected: str, given: str | None) -> float:
    """1 for the same answer, else 0."""
    return float(given is not None and same_answer(expected, given))


# --- labels ----------------------------------------------------------------------------------------------


def confusion(pairs: Iterable[Pair]) -> Counter[tuple[str, str]]:
    """How often each label was answered where each was expected; blanks around a label do not count."""
    return Counter((expected.strip(), (given or "").strip()) for expected, given in pairs)


def macro_f1(pairs: Sequence[Pair]) -> Figure:
    """Mean F1 over the labels that are expected somewhere (each counts alike, however rare), with its interval.

    An answer that is no such label is a miss of the expected one and makes no class of its own.
    """
    labels = {label: place for place, label in enumerate(sorted({expected.strip() for expected, _ in pairs}))}
    counts = np.zeros((len(pairs), 3 * len(labels)))
    for row, (expected, given) in enumerate(pairs):
        truth, said = labels[expected.strip()], labels.get((given or "").strip())
        counts[row, truth + len(labels)] += 1
        if said is not None:
            counts[row, said + 2 * len(labels)] += 1
            counts[row, truth] += said == truth
    return bootstrap(counts, _macro)


def _macro(sums: NDArray[Any]) -> NDArray[Any]:
    """(resamples, 3 * labels) of right, expected and given answers -> (resamples,)."""
    right, expected, given = np.split(sums, 3, axis=-1)
    total = expected + given
    f1 = np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0)
    there = (expected > 0).sum(axis=-1)
    return np.asarray((f1 * (expected > 0)).sum(axis=-1) / np.maximum(there, 1))


# --- JSON ------------------------------------------------------------------------------------------------


def fields_of(text: str | None) -> Counter[tuple[str, str]]:
    """The leaves of a JSON text as (path, value), values as JSON; empty for a text that is no object or list.

    Elements of a list share one path (`items[].name`), so their order does not count. Those of a tool call begin
    with the tool: `look_up[].order`.
    """
    found: Counter[tuple[str, str]] = Counter()
    value = _structure(text or "")
    waiting: list[tuple[str, Any]] = [("", value)] if isinstance(value, dict | list) else []
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, dict) and node:
            waiting += [(f"{path}.{key}" if path else str(key), child) for key, child in node.items()]
        elif isinstance(node, list) and node:
            waiting += [(f"{path}[]", child) for child in node]
        elif path:
            found[path, json.dumps(node, ensure_ascii=False, sort_keys=True)] += 1
    return found


def field_f1(expected: str, given: str | None) -> float:
    """F1 of one answer's fields: 1 for equal JSON, 0 for an answer that is no JSON, or calls tools where the other
    does not."""
    if given is None or not isinstance(_structure(given), dict | list) or has_calls(expected) != has_calls(given):
        return 0.0
    wanted, said = fields_of(expected), fields_of(given)
    total = wanted.total() + said.total()
    return 2 * (wanted & said).total() / total if total else 1.0


def fields_f1(pairs: Sequence[Pair]) -> Figure:
    """F1 over the fields of all answers together (micro average), with its interval over answers."""
    counts = np.zeros((len(pairs), 2))
    for row, (expected, given) in enumerate(pairs):
        wanted, said = fields_of(expected), fields_of(given)
        counts[row] = 2 * (wanted & said).total(), wanted.total() + said.total()
    return bootstrap(counts, lambda sums: np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), 1.0))


def field_counts(pairs: Iterable[Pair]) -> dict[str, FieldCount]:
    """The breakdown by field (path), those with the most mistakes first."""
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for expected, given in pairs:
        wanted, said = fields_of(expected), fields_of(given)
        for place, part in enumerate((wanted & said, wanted - said, said - wanted)):
            for (path, _), count in part.items():
                tally[path][place] += count
    ranked = sorted(tally.items(), key=lambda item: (-item[1][1] - item[1][2], item[0]))
    return {path: FieldCount(*counts) for path, counts in ranked}


def is_json_object(text: str | None) -> bool:
    """Whether it parses as a JSON object."""
    return isinstance(_parsed(text or ""), dict)


def has_calls(answer: str | None) -> bool:
    """Whether an answer is calls of tools."""
    return answer is not None and calls_in(answer) is not None


def _structure(text: str) -> Any:
    """The calls of tools that an answer is, or its JSON."""
    calls = calls_in(text)
    return _parsed(text) if calls is None else calls


def _parsed(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- prose -----------------------------------------------------------------------------------------------


def chrf(expected: str, given: str | None) -> float:
    """chrF2 of one answer, 0 to 1: F-score with beta 2 of character n-grams of 1 to 6, blanks left out (Popović
    2015; as sacreBLEU computes it for a sentence: orders that one of the texts is too short for do not count).

    Own code, since the libraries that have it bring an XML parser or a language toolkit along.
    """
    if given is None:
        return 0.0
    wanted, said = _ngrams("".join(expected.split())), _ngrams("".join(given.split()))
    if not wanted and not said:
        return 1.0
    shares = []
    for one, other in zip(wanted, said, strict=False):  # as many orders as the shorter text has
        both = (one & other).total()
        shares.append((both / other.total(), both / one.total()))
    if not shares:
        return 0.0
    precision, recall = (sum(column) / len(shares) for column in zip(*shares, strict=True))
    weight = CHRF_BETA**2
    below = weight * precision + recall
    return (1 + weight) * precision * recall / below if below else 0.0


@lru_cache(maxsize=4096)
def _ngrams(text: str) -> tuple[Counter[str], ...]:
    """The counts of the text's n-grams, for each order that it is long enough for."""
    orders = range(1, min(CHRF_ORDER, len(text)) + 1)
    return tuple(Counter(text[at : at + n] for at in range(len(text) - n + 1)) for n in orders)


class Likeness:
    """How near the meanings of two answers are, by an embedding: the cosine of their vectors, 0 where negative.

    Each text is read once. It says little of a number or a "not" that is wrong, so it is shown and decides nothing.
    """

    def __init__(self, encode: Callable[[Sequence[str]], NDArray[Any]]) -> None:
        """`encode` gives a vector for each text, of any length."""
        self._encode = encode
        self._known: dict[str, NDArray[Any]] = {}

    def of(self, pairs: Sequence[Pair]) -> list[float]:
        """One value a pair; 1 for the same text, 0 where there is no answer."""
        wanted = {text for pair in pairs if pair[0] != pair[1] and pair[1] is not None for text in pair if text}
        new = sorted(wanted - self._known.keys())
        if new:
            vectors = np.asarray(self._encode(new), dtype=float)
            lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            self._known.update(zip(new, vectors / lengths, strict=True))
        return [self._one(*pair) for pair in pairs]

    def _one(self, expected: str, given: str | None) -> float:
        if expected == given:
            return 1.0
        one, other = self._known.get(expected), self._known.get(given or "")
        return 0.0 if one is None or other is None else min(1.0, max(0.0, float(one @ other)))
