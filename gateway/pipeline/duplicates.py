"""Which of many examples become rows: one for each input, few that are nearly the same, and none of those on two
sides. Pure: columns of numbers in, places out.

Examples are in the order of their ids, which is that of time. Whether an input is kept depends on earlier ones
only, so data that grows changes nothing that was decided:

- The side of an input is a hash of its own words (or of its conversation's) and never changes.
- An input that is nearly the same as an earlier kept one of the other side is dropped, so also one that would join
  two sides.
- An input that is nearly the same as enough earlier kept ones of its own side is dropped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.pipeline.signatures import NUMBERS, Signature, similarity

NEAR = 0.8
"""Inputs that have so many of their shingles in common are nearly the same."""
KEPT_NEAR = 4
"""So many kept inputs of one side may be nearly the same as one of them."""
BANDS = 21
"""Signatures are cut into so many bands; two inputs are compared when a band of theirs is equal (locality-sensitive
hashing, Indyk and Motwani 1998). Of pairs whose signatures agree in just 80 % that misses 1 in 20,000."""
_MOST_COMPARED = 500
"""Of the kept inputs that share a band: a text that most inputs hold makes crowds that are not nearly the same."""

PLAIN = 1
"""The rank of the incumbent's own answer to the prompt in use, of which nobody has said anything."""
KEPT, ENOUGH, NEAR_OTHER_SIDE, OTHER_SIDE = range(4)
_REASONS = {
    ENOUGH: "near duplicate", NEAR_OTHER_SIDE: "near duplicate on the other side",
    OTHER_SIDE: "same words on the other side",
}  # fmt: skip

Places = NDArray[np.int64]


class Columns(msgspec.Struct, frozen=True):
    """What is known of examples, each array (examples,) but `inputs` (examples, 2): hashes of the input's text.
    `words` are hashes of its words alone.

    `held_out`: on the side of validation. `beyond`: the answer cannot be learnt; `calls`: it calls a tool.
    `answers` are hashes of answers. `signed` are the places of those with a signature, `signatures` (signed, 126)
    in the same order.
    """

    inputs: NDArray[np.uint64]
    words: NDArray[np.uint64]
    held_out: NDArray[np.bool_]
    beyond: NDArray[np.bool_]
    calls: NDArray[np.bool_]
    ranks: NDArray[np.uint8]
    answers: NDArray[np.uint64]
    signed: Places
    signatures: NDArray[np.uint16]


class Noise(msgspec.Struct, frozen=True):
    """Repeated inputs, those of them whose answers differ, their answers, and those that the majority outvotes.
    `twice` are the inputs that the prompt in use was asked at least twice, `alike` those whose last two answers are
    the same."""

    repeated: int
    differing: int
    answers: int
    outvoted: int
    twice: int
    alike: int


class Settled(msgspec.Struct, frozen=True):
    """Places of the examples that become rows, and of held-out ones beyond learning, with how often each input was
    seen. `uncompared` pairs share a band and were not compared, since too many do."""

    kept: Places
    seen: Places
    beyond: Places
    beyond_seen: Places
    dropped: Counter[str]
    noise: Noise
    uncompared: int


def settle(columns: Columns) -> Settled:
    """One example for each input, then near duplicates dropped; everything dropped is counted by its reason."""
    dropped: Counter[str] = Counter()
    noise = np.zeros(6, np.int64)
    chosen, first, seen, beyond = [], [], [], []
    for group in _groups(columns.inputs):
        learnable = [place for place in group if not columns.beyond[place]] if len(group) > 1 else group
        if not learnable or columns.beyond[learnable[0]]:
            beyond += [(group[-1], len(group))] if columns.held_out[group[-1]] else []
            continue
        side = columns.held_out[learnable[0]]
        ours = [place for place in learnable if columns.held_out[place] == side] if len(group) > 1 else learnable
        dropped["same input on the other side"] += len(learnable) - len(ours)
        dropped["duplicate input"] += len(ours) - 1
        chosen.append(_winner(ours, columns, noise))
        first.append(ours[0])
        seen.append(len(ours))
    order = np.argsort(np.array(first, np.int64), kind="stable")
    places, firsts, often = (np.array(values, np.int64)[order] for values in (chosen, first, seen))
    fates = _two_sides(columns.words[firsts], columns.held_out[firsts])
    left = np.flatnonzero(fates == KEPT)
    found, uncompared = _near(firsts[left], columns)
    fates[left] = found
    dropped.update({reason: int((fates == code).sum()) for code, reason in _REASONS.items()})
    kept = np.flatnonzero(fates == KEPT)
    kept = kept[np.argsort(places[kept], kind="stable")]
    beyond.sort()
    return Settled(
        places[kept], often[kept], np.array([place for place, _ in beyond], np.int64),
        np.array([count for _, count in beyond], np.int64), dropped, Noise(*map(int, noise)), uncompared,
    )  # fmt: skip


def _two_sides(words: NDArray[np.uint64], held_out: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What becomes of inputs of which an earlier one with the same words is on the other side. There are few: texts
    that differ before personal data is masked, or in where their turns begin."""
    _, first, which = np.unique(words, return_index=True, return_inverse=True)
    return np.where(held_out != held_out[first[which]], OTHER_SIDE, KEPT).astype(np.uint8)


def _groups(inputs: NDArray[np.uint64]) -> Iterator[list[int]]:
    """The places of equal inputs, in their order."""
    order = np.lexsort((inputs[:, 1], inputs[:, 0]))
    places = order.tolist()
    for start, end in zip(*(bounds.tolist() for bounds in runs(inputs[order])), strict=True):
        yield places[start:end]


def runs(ordered: NDArray[Any]) -> tuple[Places, Places]:
    """Where each run of equal values (or rows) begins, and the place behind it."""
    changes = ordered[1:] != ordered[:-1]
    changes = changes.any(axis=1) if changes.ndim > 1 else changes
    starts = np.flatnonzero(np.append(True, changes)[: len(ordered)])
    return starts, np.append(starts[1:], len(ordered))[: len(starts)]


def _winner(places: Sequence[int], columns: Columns, noise: NDArray[np.int64]) -> int:
    """The best rank, then the majority's answer, then the newest. `noise` goes on counting as `Noise`."""
    if len(places) == 1:
        return places[0]
    ranks, answers = columns.ranks[places], columns.answers[places]
    best = [place for place, rank in zip(places, ranks, strict=True) if rank == ranks.max()]
    votes = Counter(columns.answers[best].tolist())
    all_votes = Counter(answers.tolist())
    plain = answers[ranks == PLAIN][-2:]
    both = len(plain) == 2
    outvoted = len(places) - max(all_votes.values())
    noise += (1, len(all_votes) > 1, len(places), outvoted, both, both and plain[0] == plain[1])
    return max(best, key=lambda place: (votes[int(columns.answers[place])], place))


# --- near duplicates -----------------------------------------------------------------------------------------


def _near(first: Places, columns: Columns) -> tuple[NDArray[np.uint8], int]:
    """What becomes of inputs that were first seen at these places (ascending), and how many comparisons were left
    out."""
    fates = np.zeros(len(first), np.uint8)
    _, rows, long = np.intersect1d(columns.signed, first, assume_unique=True, return_indices=True)
    fates[long], uncompared = _fates(columns.signatures[rows], columns.held_out[first[long]])
    return fates, uncompared


def _fates(signatures: NDArray[np.uint16], held_out: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], int]:
    """The same for inputs that all have a signature, in the order of time."""
    fates = np.zeros(len(signatures), np.uint8)
    homes: dict[int, list[int]] = defaultdict(list)
    uncompared = 0
    for place, bands in _shared_bands(signatures):
        others = {other for band in bands for other in homes[band]}
        if len(others) > _MOST_COMPARED:
            uncompared += len(others) - _MOST_COMPARED
            others = set(sorted(others)[-_MOST_COMPARED:])
        alike = _alike(signatures[place], signatures, sorted(others))
        if (held_out[alike] != held_out[place]).any():
            fates[place] = NEAR_OTHER_SIDE
        elif len(alike) >= KEPT_NEAR:
            fates[place] = ENOUGH
        else:
            for band in bands:
                homes[band].append(place)
    return fates, uncompared


def _alike(one: Signature, signatures: NDArray[np.uint16], places: list[int]) -> Places:
    others = np.array(places, np.int64)
    return others[similarity(one, signatures[others]) >= NEAR] if places else others


def _shared_bands(signatures: NDArray[np.uint16]) -> Iterator[tuple[int, list[int]]]:
    """Each input that has a band in common with another one, and the numbers of these bands."""
    places, numbers, count = [], [], 0
    for keys in _bands(signatures):
        order = np.argsort(keys, kind="stable")
        starts, ends = runs(keys[order])
        lengths = ends - starts
        shared = np.repeat(lengths > 1, lengths)
        places.append(order[shared].astype(np.int32))
        numbers.append(np.repeat(np.arange(count, count + len(starts), dtype=np.int32), lengths)[shared])
        count += len(starts)
    all_places, all_numbers = np.concatenate(places), np.concatenate(numbers)
    order = np.argsort(all_places, kind="stable")
    all_places, all_numbers = all_places[order], all_numbers[order]
    for start, end in zip(*(bounds.tolist() for bounds in runs(all_places)), strict=True):
        yield int(all_places[start]), all_numbers[start:end].tolist()


def _bands(signatures: NDArray[np.uint16]) -> Iterator[NDArray[np.uint64]]:
    """A hash (inputs,) of each band: equal where all numbers of the band are."""
    factors = np.random.PCG64(1).random_raw(NUMBERS).astype(np.uint64) | np.uint64(1)
    for start in range(0, NUMBERS, NUMBERS // BANDS):
        keys = np.zeros(len(signatures), np.uint64)
        for column in range(start, start + NUMBERS // BANDS):
            keys = (keys ^ signatures[:, column]) * factors[column]
            keys ^= keys >> np.uint64(29)
        yield keys


def pairs_on_two_sides(signatures: NDArray[np.uint16], held_out: NDArray[np.bool_]) -> int:
    """How many pairs of nearly equal inputs, among those that share a band, are on two sides: the leak check, which
    is made anew on what was kept."""
    found: set[tuple[int, int]] = set()
    for keys in _bands(signatures):
        order = np.argsort(keys, kind="stable")
        starts, ends = runs(keys[order])
        totals = np.append(0, np.cumsum(held_out[order]))
        inside = totals[ends] - totals[starts]
        for n in np.flatnonzero((inside > 0) & (inside < ends - starts)):
            found.update(_across(order[starts[n] : ends[n]], signatures, held_out))
    return len(found)


def _across(places: Places, signatures: NDArray[np.uint16], held_out: NDArray[Any]) -> Iterator[tuple[int, int]]:
    ours, theirs = places[~held_out[places]][-_MOST_COMPARED:], places[held_out[places]][-_MOST_COMPARED:]
    for place in theirs.tolist():
        near = ours[similarity(signatures[place], signatures[ours]) >= NEAR]
        yield from ((place, other) for other in near.tolist())
