"""What the stripped requests saved, beside what the same requests would have cost with the whole prompt.

What they would have cost is measured, not assumed: the mean of the incumbent's own answers to the task's whole
prompts, those of the same day where there are enough audits (a random sample of the stripped requests), else all
that were recorded. What the audits, the shadows and the judges of audits cost is taken off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from gateway.stores.ledger import Entry

LEAST_AUDITS = 20
"""So many audits of a day say what that day's requests would have cost."""
_DAY = 86400


class DaySaved(msgspec.Struct, frozen=True, kw_only=True):
    """One day (`day`: its beginning in seconds since the epoch, UTC). USD and seconds are what was saved, net of
    `overhead_usd`, the cost of audits, shadows and judges; None where no price or no whole answer is known."""

    day: int
    stripped: int
    usd: float | None
    seconds: float | None
    overhead_usd: float


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """All days of a task together, and each with something to tell."""

    task: str
    stripped: int = 0
    usd: float | None = None
    seconds: float | None = None
    overhead_usd: float = 0.0
    days: tuple[DaySaved, ...] = ()


def savings(entries: Iterable[Entry]) -> dict[str, Saved]:
    """By task, of those with a stripped request, an audit or a shadow."""
    books: dict[str, list[Entry]] = {}
    for entry in entries:
        books.setdefault(entry.task, []).append(entry)
    found = {task: _saved(task, book) for task, book in books.items()}
    return {task: saved for task, saved in found.items() if saved.days}


def _saved(task: str, book: Sequence[Entry]) -> Saved:
    whole = _of_incumbent([entry for entry in book if entry.served in ("whole", "audit")])
    days = [
        _day(day, [entry for entry in book if entry.day == day], whole)
        for day in sorted({entry.day for entry in book if entry.served != "whole"})
    ]
    return Saved(
        task=task,
        stripped=sum(day.stripped for day in days),
        usd=_sum([day.usd for day in days]),
        seconds=_sum([day.seconds for day in days]),
        overhead_usd=sum(day.overhead_usd for day in days),
        days=tuple(days),
    )


def _of_incumbent(whole: Sequence[Entry]) -> list[Entry]:
    """Only who answered most of the whole requests: others were asked for other reasons."""
    answered: Counter[str] = Counter()
    for entry in whole:
        answered[entry.target] += entry.exchanges
    first = max(answered, key=lambda target: (answered[target], target), default=None)
    return [entry for entry in whole if entry.target == first]


def _day(day: int, book: Sequence[Entry], whole: Sequence[Entry]) -> DaySaved:
    stripped = [entry for entry in book if entry.served == "stripped"]
    overhead = sum(entry.cost_usd for entry in book if entry.served in ("audit", "shadow", "judge"))
    number = sum(entry.exchanges for entry in stripped)
    base = _base(day, whole)
    priced, timed = sum(entry.priced for entry in stripped), sum(entry.timed for entry in stripped)
    whole_cost, whole_ms = _mean_cost(base), _mean_latency(base)
    usd, seconds = None, None
    if whole_cost is not None and (priced or not number):
        usd = priced * whole_cost - sum(entry.cost_usd for entry in stripped) - overhead
    if whole_ms is not None:
        seconds = (timed * whole_ms - sum(entry.latency_ms for entry in stripped)) / 1000
    return DaySaved(day=day * _DAY, stripped=number, usd=usd, seconds=seconds, overhead_usd=overhead)


def _base(day: int, whole: Sequence[Entry]) -> Sequence[Entry]:
    audits = [entry for entry in whole if entry.served == "audit" and entry.day == day]
    return audits if sum(entry.exchanges for entry in audits) >= LEAST_AUDITS else whole


def _mean_cost(book: Sequence[Entry]) -> float | None:
    priced = sum(entry.priced for entry in book)
    return sum(entry.cost_usd for entry in book) / priced if priced else None


def _mean_latency(book: Sequence[Entry]) -> float | None:
    timed = sum(entry.timed for entry in book)
    return sum(entry.latency_ms for entry in book) / timed if timed else None


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
