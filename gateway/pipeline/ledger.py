"""The books of one sweep: what it has cost, how long it was worked on, and what must not start or not go on."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Budget, cost, hopeless, overrun, refusal
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import Stopped

KIND = "sweep"
NOTE_SECONDS = 5.0
SLICE_SECONDS = 0.5
CANCELLED = "cancelled by hand"


class Ledger:
    """What all threads and processes that train candidates of one sweep go by. Everything is in the store: money
    with each candidate, and in the sweep's row of `jobs` the hours during which somebody was at it."""

    def __init__(self, store: SqliteStore, planned: Sequence[FineTune], budget: Budget) -> None:
        self.budget = budget
        self.ids = frozenset(finetune.id for finetune in planned)
        self.task, self.dataset = (planned[0].task, planned[0].dataset) if planned else ("", "")
        joined = "\n".join([self.dataset, *sorted(self.ids)])
        self.id = f"sweep-{hashlib.sha256(joined.encode()).hexdigest()[:16]}"
        self._lock = threading.Lock()
        self._seen = self._noted = time.monotonic()
        self._seconds, self._created = _so_far(store, self.id)

    def sweep(self, store: SqliteStore) -> list[FineTune]:
        """Its candidates as they stand."""
        return [one for one in store.finetunes("dataset = ?", [self.dataset]) if one.id in self.ids]

    def hours(self) -> float:
        """How long this sweep has been worked on, in this process and in earlier ones."""
        with self._lock:
            now = time.monotonic()
            self._seconds, self._seen = self._seconds + now - self._seen, now
            return self._seconds / 3600

    def note(self, store: SqliteStore, *, at_least: float = 0.0) -> None:
        """Keep in the store how far it is, unless that was done less than `at_least` seconds ago."""
        hours, now = self.hours(), time.monotonic()
        with self._lock:
            if not self.ids or now - self._noted < at_least:
                return
            self._noted = now
        sweep = self.sweep(store)
        over = sum(one.state.final or one.state is FineTuneState.WAITING for one in sweep)
        store.put("jobs", {
            "id": self.id, "kind": KIND, "task": self.task,
            "state": "done" if over == len(sweep) else "running", "step": f"{over} of {len(sweep)} candidates",
            "detail": {
                "dataset": self.dataset, "finetunes": [one.id for one in sweep], "seconds": round(hours * 3600, 1),
                "usd": round(sum(map(cost, sweep)), 4), "budget": msgspec.to_builtins(self.budget),
            },
            "error": None, "created_at": self._created, "updated_at": time.time(),
        })  # fmt: skip

    def refusal(self, store: SqliteStore, finetune: FineTune) -> str | None:
        """Why this candidate must not be started now, given what the others have cost and may."""
        others = [one for one in self.sweep(store) if one.id != finetune.id]
        return refusal(finetune, others, self.budget, self.hours())

    def verdict(self, store: SqliteStore, finetune_id: str) -> str | None:
        """Why this candidate, in training, must be cancelled."""
        sweep = self.sweep(store)
        own = next((one for one in sweep if one.id == finetune_id), None)
        if own is None:
            return None
        return overrun(own, sweep, self.budget, self.hours()) or hopeless(own, sweep)


def _so_far(store: SqliteStore, sweep_id: str) -> tuple[float, float]:
    """Seconds worked so far, and when it was begun."""
    found = store.rows("jobs", "id = ?", [sweep_id])
    if not found:
        return 0.0, time.time()
    detail = msgspec.json.decode(found[0]["detail"], type=dict[str, object])
    seconds = detail.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0, float(found[0]["created_at"])


def marker(folder: Path, finetune_id: str) -> Path:
    """The file that asks whoever is at this candidate to cancel it; `folder` is the store's."""
    return folder / "locks" / f"{finetune_id}.cancel"


def watch(
    ledger: Ledger, store: SqliteStore, finetune_id: str, sleep: Callable[[float], None] = time.sleep
) -> Callable[[float], None]:
    """How a trainer waits for this candidate: it is called off within half a second of a reason to.

    Raises (the function that is returned):
        Stopped: with the reason.
    """
    asked = marker(store.path.parent, finetune_id)

    def wait(seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            if reason := CANCELLED if asked.exists() else ledger.verdict(store, finetune_id):
                raise Stopped(reason)
            ledger.note(store, at_least=NOTE_SECONDS)
            left = end - time.monotonic()
            if left <= 0:
                return
            sleep(min(left, SLICE_SECONDS))

    return wait
