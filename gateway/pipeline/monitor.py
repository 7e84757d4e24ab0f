"""Looks after every promoted candidate, every second: compares audited answers, takes the next canary step, raises
alarms, rolls back. What it knows is in the store after each look, so that it goes on from there, whatever dies."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import yaml

from gateway.config import TaskPolicy
from gateway.errors import StoreError
from gateway.pipeline import promote
from gateway.pipeline.alarms import (
    ACTIONS,
    Alarm,
    Expected,
    Kind,
    Watched,
    alarms,
    asked,
    compared,
    is_over,
)
from gateway.pipeline.audits import outcome, pair
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.gate import promise
from gateway.pipeline.promote import candidate_of, steps_left
from gateway.pipeline.routes_text import RouteDict
from gateway.pipeline.scores import Measure, load_report
from gateway.raised import Told, raise_audits, tell
from gateway.stores import audited
from gateway.stores import watched as templates_watched
from gateway.stores.audited import Recorded

log = logging.getLogger(__name__)

FORGOTTEN_SECONDS = 900.0
"""An exchange that is under way for so long, or whose other half has not come, is waited for no longer."""
MOST_OPEN = 5000
SHUTDOWN_DAYS = 30
_SHORT = 200
"""A label is no longer than this; a longer answer is not one of a closed set."""

Row = dict[str, Any]


def look_after(shop: Workshop, now: float | None = None) -> None:
    """One look at every task that was promoted. `now`: seconds since the epoch. What stops one task stops no other,
    and is raised at the end.

    Raises:
        ConfigError: a step or a rollback is due, and routes.yaml has a problem.
        StoreError: what is known cannot be kept or told.
    """
    moment = time.time() if now is None else now
    audits: dict[str, float] = {}
    known = {task: Told([Kind.MATCH_RATE.value]) for task in templates_watched.alarms(shop.store)}
    troubles: list[Exception] = []
    for task in audited.served_tasks(shop.store):
        watched = _look(shop, task, moment, troubles)
        if watched is None:
            continue
        row = promote.newest(shop.store, task)
        policy = shop.config.policy(task)
        if row is not None and policy.audit and (watched.raised or _on_trial(row, watched, policy)):
            audits[task] = 100.0
        known[task] = _told(shop, task, watched, known.get(task))
    home = shop.store.path.parent
    try:
        raise_audits(home, audits)
        tell(home, known)
    except OSError as error:
        raise StoreError(f"{home}: {error.strerror}; the relays cannot be told what to audit") from error
    if troubles:
        raise troubles[0]


def _told(shop: Workshop, task: str, watched: Watched, before: Told | None) -> Told:
    kinds = [row["kind"] for row in audited.open_alarms(shop.store, task)]
    return Told(sorted({*kinds, *(before.alarms if before else ())}), watched.agreement)


def _look(shop: Workshop, task: str, now: float, troubles: list[Exception]) -> Watched | None:
    """What is known of the task's candidate after this look; None where there is none."""
    row = promote.newest(shop.store, task)
    if row is None:
        over = [one["kind"] for one in audited.open_alarms(shop.store, task)]
        audited.clear_alarms(shop.store, task, over, now)
        return None
    policy = shop.config.policy(task)
    route: RouteDict = yaml.safe_load(row["routes_after"] or "") or {}
    candidate = "/".join(str(candidate_of(route).get(key)) for key in ("upstream", "model"))
    expected = _expected(shop, row, policy)
    before = _remembered(shop, task, row)
    watched = _read(shop, task, before, expected, candidate, now)
    if watched != before:
        audited.keep_watch_state(shop.store, task, msgspec.json.encode(watched))
    try:
        _act(shop, task, row, route, watched, expected, now)
    except Exception as error:  # noqa: BLE001 - raised when the other tasks have been looked at
        troubles.append(error)
    return watched


# --- what was promised, and what is known ----------------------------------------------------------------


def _expected(shop: Workshop, row: Row, policy: TaskPolicy) -> Expected:
    """From the decision record and the evaluation that it was made on; what they do not say is not watched."""
    record = json.loads(row["decision"] or "null") or {}
    score = record.get("score") or {}
    rows = shop.store.rows("evaluations", "id = ?", [record.get("evaluation")])
    report = load_report(rows[-1]) if rows else None
    p95, cost = (report.incumbent.p95_ms, report.incumbent.cost_per_1k_usd) if report else (None, None)
    measure: Measure = report.measure if report else "exact"
    margin = 1 - promise(report, policy) if report else policy.margin
    return Expected(
        # Nobody judges live answers: where the gate asked a judge, their agreement is not watched.
        margin=None if measure == "judge" else margin, measure=measure, error_rate=policy.max_error_rate,
        answered=score.get("answered", 1.0), rows=score.get("rows", 0),
        slow_ms=None if p95 is None else p95 * policy.max_latency_ratio,
        cost_usd=None if cost is None else cost / 1000 * policy.max_cost_ratio,
    )  # fmt: skip


def _remembered(shop: Workshop, task: str, row: Row) -> Watched:
    kept = audited.watch_state(shop.store, task)
    watched = msgspec.json.decode(kept, type=Watched) if kept else None
    if watched is None or watched.promotion != row["id"]:
        mark = audited.row_before(shop.store, row["created_at"])
        return Watched(promotion=row["id"], step=row["step"], mark=mark)
    if watched.step != row["step"]:
        watched = msgspec.structs.replace(watched, step=row["step"], pairs=0)
    return msgspec.structs.replace(watched, mark=min(watched.mark, audited.last_row(shop.store)))


def _read(shop: Workshop, task: str, watched: Watched, expected: Expected, candidate: str, now: float) -> Watched:
    """All that has come since, counted once; what is under way is looked at again."""
    rows = audited.recorded_since(shop.store, task, watched.mark, watched.open)
    waiting: list[int] = []
    for row in rows:
        young = now - row.started_at < FORGOTTEN_SECONDS
        after = _counted(shop, row, watched, expected, candidate)
        if after is not None:
            watched = after
        elif young:
            waiting.append(row.rowid)
    mark = max([watched.mark, *(row.rowid for row in rows)])
    return msgspec.structs.replace(watched, mark=mark, open=tuple(waiting[-MOST_OPEN:]))


def _counted(shop: Workshop, row: Recorded, watched: Watched, expected: Expected, candidate: str) -> Watched | None:
    """The same with this exchange; None: it is under way, or the other half of its pair is."""
    if row.latency_ms is None:
        return None
    if row.copy_of is not None:
        both = pair(shop.store, row, candidate, expected.measure)
        if both is None:
            return None
        if both.agrees is not None:
            label = both.candidate if both.candidate is not None and len(both.candidate) <= _SHORT else None
            watched = compared(watched, both.agrees, label, expected)
    became = outcome(row, candidate)
    return watched if became is None else asked(watched, became, expected)


def _on_trial(row: Row, watched: Watched, policy: TaskPolicy) -> bool:
    """A canary, and the first answers after the last step."""
    return bool(steps_left(row)) or bool(policy.audit and watched.pairs < policy.canary_pairs)


# --- what is done ----------------------------------------------------------------------------------------


def _act(
    shop: Workshop, task: str, row: Row, route: RouteDict, watched: Watched, expected: Expected, now: float
) -> None:
    left, policy = steps_left(row), shop.config.policy(task)
    trial = _on_trial(row, watched, policy)
    found = [*alarms(task, watched, expected, canary=trial), *_shutdowns(shop, task, route, now)]
    for alarm in found:
        if audited.raise_alarm(shop.store, alarm, now):
            log.warning("task %s: %s: %s", task, alarm.kind, alarm.sentence)
    grave = next((alarm for alarm in found if alarm.action == "rollback"), None)
    if grave is not None:
        _roll_back(shop, task, row, watched, grave, now)
        return
    raised = {alarm.kind for alarm in found}
    still = {Kind(one["kind"]) for one in audited.open_alarms(shop.store, task)} - raised
    over = [kind for kind in still if is_over(kind, watched, expected)]
    audited.clear_alarms(shop.store, task, over, now)
    if left and watched.pairs >= policy.canary_pairs and not watched.raised:
        _advance(shop, task, row, watched)


def _roll_back(shop: Workshop, task: str, row: Row, watched: Watched, alarm: Alarm, now: float) -> None:
    because = {"alarm": alarm, "candidate": promote.candidate(row), "pairs": watched.pairs}
    promote.rollback(shop.store, shop.config, shop.routes, task, because)
    audited.clear_alarms(shop.store, task, [kind.value for kind in Kind], now)
    log.warning("task %s: rolled back: %s", task, alarm.sentence)


def _advance(shop: Workshop, task: str, row: Row, watched: Watched) -> None:
    because = {
        "candidate": promote.candidate(row), "pairs": watched.pairs, "agreement": watched.agreement,
        "evidence": {kind.value: bets.excess for kind, bets in watched.tests.items()},
    }  # fmt: skip
    route = promote.advance(shop.store, shop.config, shop.routes, task, because)
    if route is not None:
        share = route["targets"][0].get("weight", 0)
        shop.say(f"task {task}: {watched.pairs} answers compared, nothing wrong; {share:g} % of the requests now")


def _shutdowns(shop: Workshop, task: str, route: RouteDict, now: float) -> Iterator[Alarm]:
    """Models of the route that their provider takes away soon."""
    for target in [*route.get("targets", []), route.get("fallback") or {}]:
        provider = shop.config.providers.get(target.get("upstream", ""))
        date = provider.shutdown_dates.get(target.get("model", "")) if provider else None
        days = (date - datetime.fromtimestamp(now, UTC).date()).days if date else SHUTDOWN_DAYS + 1
        if days <= SHUTDOWN_DAYS:
            sentence = f"{target['upstream']} takes {target['model']} away on {date} (in {days} days)"
            yield Alarm(
                task=task, kind=Kind.SHUTDOWN, action=ACTIONS[Kind.SHUTDOWN], sentence=sentence,
                figures={"days": days},
            )  # fmt: skip
            return
