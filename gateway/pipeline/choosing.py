"""From what is left without duplicates to the rows of each part: label caps, the split, and the leak check."""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.config import TaskPolicy
from gateway.domain.dataset import Split
from gateway.pipeline.duplicates import Columns, Places, Settled, pairs_on_two_sides, runs
from gateway.pipeline.parts import Found

CONFIRMATION_SHARE = 0.1
"""Of the held-out rows, the newest: whoever was chosen by the others is confirmed by them."""
LEAST_CONFIRMATION = 50
"""Fewer rows confirm little and are missed more where they judge: then all held-out rows are for validation."""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The rows: their places among the examples, in order, the part and how often the input of each was seen; and
    the same of held-out inputs beyond learning.

    `dropped` and the rows are together all `recorded` exchanges. `leaks` are counts of what is on both sides of the
    split, which must all be 0: inputs, inputs with the same words, conversations, near duplicates.
    """

    places: Places
    parts: list[Split]
    seen: Places
    beyond: Places
    beyond_parts: list[Split]
    beyond_seen: Places
    dropped: Counter[str]
    recorded: int
    leaks: dict[str, int]
    settled: Settled

    @property
    def counts(self) -> Counter[str]:
        """Rows of each part."""
        return Counter(self.parts)


def choose(found: Found, settled: Settled, policy: TaskPolicy) -> Chosen:
    """The rows of each part."""
    columns = found.columns
    held_out = columns.held_out[settled.kept]
    allowed = np.ones(len(settled.kept), bool)
    if policy.max_label_rows is not None:
        allowed = held_out | _under_cap(columns, settled.kept, ~held_out, policy.max_label_rows)
    dropped = found.dropped + settled.dropped
    dropped["more of its label than allowed"] = int((~allowed).sum())
    places, held_out = settled.kept[allowed], held_out[allowed]
    parts = split(held_out)
    newest = places[parts.index("confirmation")] if "confirmation" in parts else len(columns.held_out)
    return Chosen(
        places=places, parts=parts, seen=settled.seen[allowed], beyond=settled.beyond,
        beyond_parts=[
            "confirmation" if place > newest else "validation" for place in settled.beyond.tolist()
        ],
        beyond_seen=settled.beyond_seen, dropped=+dropped, recorded=dropped.total() + len(places),
        leaks=leaks(found, places), settled=settled,
    )  # fmt: skip


def _under_cap(columns: Columns, kept: Places, train: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Of each answer so many training rows (True), those whose input has the lowest hash: mostly the same ones as
    data grows."""
    allowed = np.zeros(len(kept), bool)
    mine = np.flatnonzero(train)
    answers, lottery = columns.answers[kept[mine]], columns.inputs[kept[mine], 0]
    order = np.lexsort((lottery, answers))
    starts, ends = runs(answers[order])
    ranks = np.arange(len(order)) - np.repeat(starts, ends - starts)
    allowed[mine[order[ranks < most]]] = True
    return allowed


def split(held_out: NDArray[np.bool_]) -> list[Split]:
    """The part of each row, in the order of time: training rows stay training rows and held-out rows held out; of
    these the newest tenth is for confirmation, until newer ones come."""
    count = int(held_out.sum())
    newest = int(count * CONFIRMATION_SHARE)
    first = count - newest if newest >= LEAST_CONFIRMATION else count
    number = np.cumsum(held_out) - 1
    late = held_out & (number >= first)
    return [
        "confirmation" if is_late else "validation" if out else "train"
        for out, is_late in zip(held_out.tolist(), late.tolist(), strict=True)
    ]


def leaks(found: Found, places: Places) -> dict[str, int]:
    """What training rows and held-out rows have in common."""
    columns, held_out = found.columns, found.columns.held_out[places]
    ours, theirs = places[~held_out], places[held_out]
    both = {
        "inputs": len(np.intersect1d(columns.inputs[ours, 0], columns.inputs[theirs, 0])),
        "words": len(np.intersect1d(columns.words[ours], columns.words[theirs])),
        "conversations": len(np.intersect1d(found.sessions[ours], found.sessions[theirs])),
    }
    _, rows, which = np.intersect1d(columns.signed, places, assume_unique=True, return_indices=True)
    return both | {"near_duplicates": pairs_on_two_sides(columns.signatures[rows], held_out[which])}
