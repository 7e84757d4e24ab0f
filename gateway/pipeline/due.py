"""When a task's next turn is due: enough answers, many more than at the last one, or another version of its prompt;
and whether the app still sends a version at all."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.config import Config, TaskPolicy
from gateway.domain.route import RouteTable
from gateway.pipeline import promotions
from gateway.pipeline.gate import Check
from gateway.pipeline.serving import is_on_trial
from gateway.stores.audited import last_call_to_retrain
from gateway.stores.sqlite import SqliteStore

RETRY_GROWTH = 1.25
"""A turn that failed is tried again when the data has grown by this factor."""
NEWEST = 200
LEAST_SHARE = 0.05
"""A version of a prompt that fewer of the task's newest requests have is left to the incumbent: a model for it
would serve next to nothing."""
MANY_TIMES = 4
"""So much oftener another version must be sent: of thirty that are all sent alike, none has many requests."""

Job = dict[str, Any]


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """How many (`own`) of a task's newest requests (`asked`) were made with a version of its prompt, and with which
    version `most` of them (`leading`) were."""

    template: str
    own: int
    asked: int
    most: str
    leading: int

    @property
    def share(self) -> float | None:
        """None where nothing is known of the task's requests."""
        return self.own / self.asked if self.asked else None

    @property
    def is_gone(self) -> bool:
        """Whether the app has left this version for others. Of very many in use side by side, none is left."""
        return self.share is not None and self.share < LEAST_SHARE and self.own * MANY_TIMES <= self.leading

    @property
    def sentence(self) -> str:
        return (
            f"{self.template} is hardly sent any more ({self.own} of the last {self.asked} requests); most are "
            f"{self.most}"
        )

    @property
    def check(self) -> Check:
        """The condition for a decision record."""
        name = f"sent with {self.template} (share of the last {self.asked} requests)"
        return Check(name, self.share, LEAST_SHARE, not self.is_gone)


def use_of(store: SqliteStore, template: str) -> Use:
    """How much a version (`TASK@VERSION`) is used now, candidates' requests included."""
    task, _, version = template.rpartition("@")
    counts = store.version_counts(task, NEWEST)
    most = max(counts, key=lambda one: (counts[one], one), default=int(version))
    return Use(
        template=template, own=counts.get(int(version), 0), asked=sum(counts.values()), most=f"{task}@{most}",
        leading=counts.get(most, 0),
    )  # fmt: skip


class LastTurn(msgspec.Struct, frozen=True, kw_only=True):
    """The task's newest turn as its job's row says; all empty where there was none. `state`: running, done, failed,
    ended (before its end: nobody needs what it would have made)."""

    state: str = "none"
    step: str = ""
    error: str | None = None
    created_at: float = 0.0
    detail: Job = {}


def last_turn(store: SqliteStore, task: str) -> LastTurn:
    """See `LastTurn`."""
    found = store.rows("jobs", "kind = 'cycle' AND task = ?", [task])
    if not found:
        return LastTurn()
    row = found[-1]
    return LastTurn(
        state=row["state"], step=row["step"], error=row["error"], created_at=row["created_at"],
        detail=json.loads(row["detail"]),
    )  # fmt: skip


def missing(
    store: SqliteStore, task: str, config: Config, last: LastTurn, table: Callable[[], RouteTable | None]
) -> int | None:
    """So many more answers of the incumbent until the next turn; 0: it is due. None: not before the canary that is
    on its way by the `table` of routes has ended, since another one would begin all over again."""
    usable, policy = store.answered_count(task), config.policy(task)
    if usable < policy.min_rows:
        return policy.min_rows - usable
    newest = _newest_versions(store, task, policy)
    wanted = _wanted(store, task, policy, last, newest)
    rows = _rows_of_another_prompt(store, task, policy, last, newest)
    if rows:  # the old rows say little of it
        left = min(policy.min_rows - rows, wanted + policy.min_rows - usable)
    elif _is_on_its_way(store, task, config, table):
        return None
    else:
        left = wanted - usable
    return math.ceil(left) if left > 0 else _until_it_is_used(store, task, newest[: policy.min_rows])


def _is_on_its_way(store: SqliteStore, task: str, config: Config, table: Callable[[], RouteTable | None]) -> bool:
    """Whether a candidate is at a step of its canary; the table is asked only where that may be."""
    found = promotions.newest(store, task)
    return found is not None and bool(promotions.steps_left(found)) and is_on_trial(task, found, table(), config)


def _wanted(store: SqliteStore, task: str, policy: TaskPolicy, last: LastTurn, newest: Sequence[int]) -> float:
    """So many recorded answers make the next turn due: many more than at the last one; fewer where it came to
    nothing, where the last training is too old, or where an alarm has called for another one since; any where of
    those at the last one none is left."""
    had, began = _still_there(store, task, last), float(last.detail.get("started_at", 0))
    is_old = policy.retrain_days is not None and time.time() - began > policy.retrain_days * 86_400
    if not had:
        return 0.0
    if last.state in ("failed", "ended"):
        return had + _grown(store, policy, last, newest, RETRY_GROWTH)
    if is_old or (last.detail and last_call_to_retrain(store, task) > began):
        return had + min(_grown(store, policy, last, newest, RETRY_GROWTH), policy.min_rows)
    return had + _grown(store, policy, last, newest, policy.retrain_growth)


def what_is_there(store: SqliteStore, task: str) -> Job:
    """What a turn that begins now notes of the answers, for `missing` to tell later how many have come since."""
    first, upto = store.extent(task)
    return {
        "usable": store.answered_count(task), "first": first, "upto": upto, "rows": store.rows_until(task, upto),
    }  # fmt: skip


def _still_there(store: SqliteStore, task: str, last: LastTurn) -> float:
    """How many of the answers at the last turn there still are, by the share of the requests: where exchanges are
    kept for some time only, all of them would never be many more."""
    had, then = float(last.detail.get("usable", 0)), last.detail
    if "upto" not in then or store.extent(task)[0] == then["first"]:
        return had
    left = store.rows_until(task, int(then["upto"])) / max(1, int(then["rows"]))
    return had * min(1.0, left)


def _grown(store: SqliteStore, policy: TaskPolicy, last: LastTurn, newest: Sequence[int], factor: float) -> float:
    """How many more answers there are when those to the prompt that the last turn was about have grown by the
    factor, if as many of all are to it as of the newest; or all of them have, if that is sooner. After a change
    of the prompt that is soon: what was asked before says little of it."""
    all_of_them = float(last.detail.get("usable", 0)) * (factor - 1)
    built = store.rows("datasets", "id = ?", [last.detail.get("dataset")])
    own, of_it = last.detail.get("own"), list(newest)[: policy.min_rows]
    if own is None or not built:
        return all_of_them
    share = of_it.count(int(built[-1]["template"].rpartition("@")[2])) / max(1, len(of_it))
    return min(all_of_them, own * (factor - 1) / share) if share else all_of_them


def _newest_versions(store: SqliteStore, task: str, policy: TaskPolicy) -> list[int]:
    """Which version each of the newest answers is to, the newest first."""
    newest = store.answered(task, policy.min_rows * 5 // 4)
    return [row["task_version"] for row in newest if row["task_version"] is not None]


def _rows_of_another_prompt(
    store: SqliteStore, task: str, policy: TaskPolicy, last: LastTurn, newest: list[int]
) -> int:
    """How many of the newest answers are to the version of the prompt that is in use (see `dataset.scope_of`),
    where that is another one than was trained for last; else 0."""
    trained = store.rows("datasets", "id = ?", [last.detail.get("dataset")])
    used = Counter(newest[: policy.min_rows]).most_common(1)
    if not trained or not used or f"{task}@{used[0][0]}" == trained[-1]["template"]:
        return 0
    return newest.count(used[0][0])


def _until_it_is_used(store: SqliteStore, task: str, newest: list[int]) -> int:
    """0 where the version that most of the newest answers are to is still sent; else so many answers until most are
    to the one that is."""
    ranked = Counter(newest).most_common(2)
    if not ranked:
        return 0
    use = use_of(store, f"{task}@{ranked[0][0]}")
    if not use.is_gone:
        return 0
    now = newest.count(int(use.most.rpartition("@")[2]))
    return max(1, math.ceil((ranked[0][1] - now) / 2))  # each new answer takes the place of an old one
