"""Looks after every promoted candidate, every second: compares audited answers, takes the next canary step, raises
alarms, rolls back. What it knows is in the store after each look, so that it goes on from there, whatever dies."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import yaml

from gateway.config import TaskPolicy
from gateway.errors import StoreError
from gateway.pipeline import promote, promotions
from gateway.pipeline.alarms import (
    ACTIONS,
    Alarm,
    Expected,
    Kind,
    Watched,
    alarms,
    asked,
    audits_wanted,
    compared,
    is_over,
)
from gateway.pipeline.audits import Pair, outcome, pairs, remembered
from gateway.pipeline.canary import candidate_of, label_of
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.gate import promise
from gateway.pipeline.promotions import steps_left
from gateway.pipeline.routes_text import RouteDict
from gateway.pipeline.scores import Measure, load_report
from gateway.pipeline.shutdown import in_use, shutdowns
from gateway.raised import Told, raise_audits, tell
from gateway.stores import audited
from gateway.stores import watched as templates_watched
from gateway.stores.audited import Recorded
from gateway.stores.ledger import book

log = logging.getLogger(__name__)

FORGOTTEN_SECONDS = 900.0
"""An exchange that is under way for so long, or whose other half has not come, is waited for no longer."""
MOST_OPEN = 5000
ROWS_AT_ONCE = 100
"""So many rows are read together, and then their evidence is weighed."""
_SHORT = 200
"""A label is no longer than this; a longer answer is not one of a closed set."""

Row = dict[str, Any]


class Seen(NamedTuple):
    """A candidate that serves, as it stands after a look: the row of its promotion, its route and what is known of
    it. `trial`: a canary, or the first answers after its last step."""

    row: Row
    route: RouteDict
    expected: Expected
    watched: Watched
    trial: bool

    @property
    def label(self) -> str:
        return label_of(candidate_of(self.route))

    @property
    def audits(self) -> float:
        return audits_wanted(self.watched, trial=self.trial)


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
    used, served = in_use(shop.store, shop.config, moment), audited.served_tasks(shop.store)
    others = {row["task"] for row in audited.open_alarms(shop.store)}.union(used).difference(served)
    for task in sorted(others):
        _raise_and_clear(shop, task, [], _ending(shop, task, used.get(task, ()), moment), moment)
        known[task] = _told(shop, task, None, known.get(task))
    for task in served:
        seen = _look(shop, task, used.get(task, set()), moment, troubles)
        if not seen:
            known[task] = _told(shop, task, None, known.get(task))
            continue
        still = {row["id"] for row in promotions.standing(shop.store, task)}
        least = shop.config.policy(task).audit
        wanted = {one.label: one.audits for one in seen if least and one.row["id"] in still}
        audits |= {label: percent for label, percent in wanted.items() if percent > least}
        known[task] = _told(shop, task, seen[0].watched, known.get(task))
    home = shop.store.path.parent
    try:
        raise_audits(home, audits)
        tell(home, {task: told for task, told in known.items() if told != Told()})
    except OSError as error:
        raise StoreError(f"{home}: {error.strerror}; the relays cannot be told what to audit") from error
    if troubles:
        raise troubles[0]


def _told(shop: Workshop, task: str, watched: Watched | None, before: Told | None) -> Told:
    kinds = [row["kind"] for row in audited.open_alarms(shop.store, task)]
    return Told(sorted({*kinds, *(before.alarms if before else ())}), watched.agreement if watched else None)


def _look(shop: Workshop, task: str, used: set[str], now: float, troubles: list[Exception]) -> list[Seen]:
    """The task's candidates after this look, the newest first. `used`: the models that have answered lately."""
    standing = promotions.standing(shop.store, task)
    if not standing:
        _raise_and_clear(shop, task, [], _ending(shop, task, used, now), now)
        return []
    before = remembered(shop.store, task)
    seen = [_see(shop, task, row, before.get(row["id"]), now) for row in promotions.serving(standing)]
    after = {row["id"]: before[row["id"]] for row in standing if row["id"] in before}
    after |= {one.row["id"]: one.watched for one in seen}
    if after != before:
        audited.keep_watch_state(shop.store, task, msgspec.json.encode(after))
    try:
        _act(shop, task, seen, used, now)
    except Exception as error:  # noqa: BLE001 - raised when the other tasks have been looked at
        troubles.append(error)
    return seen


def _see(shop: Workshop, task: str, row: Row, before: Watched | None, now: float) -> Seen:
    policy = shop.config.policy(task)
    route: RouteDict = yaml.safe_load(row["routes_after"] or "") or {}
    expected = _expected(shop, row, policy)
    seen = Seen(row, route, expected, _begun(shop, row, before), trial=False)
    watched = _read(shop, task, seen, now)
    return seen._replace(watched=watched, trial=_on_trial(row, watched, policy))


# --- what was promised, and what is known ----------------------------------------------------------------


def _expected(shop: Workshop, row: Row, policy: TaskPolicy) -> Expected:
    """From the decision record and the evaluation that it was made on; what they do not say is not watched."""
    record = json.loads(row["decision"] or "null") or {}
    score = record.get("score") or {}
    rows = shop.store.rows("evaluations", "id = ?", [record.get("evaluation")])
    report = load_report(rows[-1]) if rows else None
    p95, cost = (report.incumbent.p95_ms, report.incumbent.cost_per_1k_usd) if report else (None, None)
    measure: Measure = report.measure if report else "exact"
    least = promise(report, policy) if report else 1 - policy.margin
    unwatched = measure == "judge" and (shop.bench is None or policy.judge is None or not policy.judge_audits)
    return Expected(
        margin=None if unwatched else 1 - least, alike=1 - (least + policy.margin), measure=measure,
        error_rate=policy.max_error_rate, answered=score.get("answered", 1.0), rows=score.get("rows", 0),
        differed=None if measure != "exact" else 1 - (score.get("agreement_answered") or 1.0),
        slow_ms=None if p95 is None else p95 * policy.max_latency_ratio,
        cost_usd=None if cost is None else cost / 1000 * policy.max_cost_ratio,
    )  # fmt: skip


def _begun(shop: Workshop, row: Row, watched: Watched | None) -> Watched:
    """What is known of a candidate before this look."""
    if watched is None:
        mark = audited.row_before(shop.store, row["created_at"])
        return Watched(promotion=row["id"], step=row["step"], mark=mark)
    if watched.step != row["step"]:
        watched = msgspec.structs.replace(watched, step=row["step"], pairs=0)
    return msgspec.structs.replace(watched, mark=min(watched.mark, audited.last_row(shop.store)))


def _read(shop: Workshop, task: str, seen: Seen, now: float) -> Watched:
    """All that has come since, counted once, up to what is a reason to go back; what is under way is looked at
    again."""
    watched, policy = seen.watched, shop.config.policy(task)
    rows = audited.recorded_since(shop.store, task, watched.mark, watched.open)
    left = {row.rowid for row in rows if row.rowid in watched.open}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        watched, waiting = _told_of(shop, task, part, seen._replace(watched=watched), now)
        left = left.difference(row.rowid for row in part).union(waiting)
        watched = msgspec.structs.replace(watched, mark=max(watched.mark, part[-1].rowid))
        if _is_harmful(task, watched, seen, policy):
            break
    return msgspec.structs.replace(watched, open=tuple(sorted(left)[-MOST_OPEN:]))


def _told_of(
    shop: Workshop, task: str, rows: Sequence[Recorded], seen: Seen, now: float
) -> tuple[Watched, list[int]]:
    """What is known with these rows, and those of them to wait for."""
    watched, waiting = seen.watched, list[int]()
    copies = [row for row in rows if row.copy_of is not None and row.latency_ms is not None]
    both = pairs(shop.store, copies, seen.label)
    for row in rows:
        after = _counted(shop, task, row, both.get(row.id), seen._replace(watched=watched), now)
        if after.is_over:
            watched = after.watched
        else:
            watched = msgspec.structs.replace(watched, judged=after.watched.judged)
            waiting += [row.rowid] if now - row.started_at < FORGOTTEN_SECONDS else []
    return watched, waiting


def _is_harmful(task: str, watched: Watched, seen: Seen, policy: TaskPolicy) -> bool:
    trial = _on_trial(seen.row, watched, policy)
    return any(one.action == "rollback" for one in alarms(task, watched, seen.expected, canary=trial))


class _Counted(NamedTuple):
    """`is_over` False: the exchange is under way, or the other half of its pair or its judge is."""

    watched: Watched
    is_over: bool = True


def _counted(shop: Workshop, task: str, row: Recorded, both: Pair | None, seen: Seen, now: float) -> _Counted:
    """What is known with this exchange; `both`: it and what it is a copy of."""
    if row.latency_ms is None:
        return _Counted(seen.watched, is_over=False)
    after = _Counted(seen.watched)
    if row.copy_of is not None:
        if both is None:
            return _Counted(seen.watched, is_over=False)
        after = _compared(shop, task, both, row, seen, now)
    became = outcome(row, seen.label) if after.is_over else None
    return after if became is None else _Counted(asked(after.watched, became, seen.expected))


def _compared(shop: Workshop, task: str, both: Pair, row: Recorded, seen: Seen, now: float) -> _Counted:
    """The same with a pair of answers: by a pure measure at once, or by a judge when it has spoken."""
    if seen.expected.measure == "judge" and seen.expected.margin is not None:
        return _judged(shop, task, both, row, seen, now)
    agrees = both.agrees(seen.expected.measure)
    if agrees is None:
        return _Counted(seen.watched)
    label = both.candidate if both.candidate is not None and len(both.candidate) <= _SHORT else None
    return _Counted(compared(seen.watched, agrees, label, seen.expected))


def _judged(shop: Workshop, task: str, both: Pair, row: Recorded, seen: Seen, now: float) -> _Counted:
    """A judge is asked as long as there is something left of its day; a pair on which it gives no word counts for
    nothing."""
    bench, policy, watched = shop.bench, shop.config.policy(task), seen.watched
    if bench is None or policy.judge is None:
        return _Counted(watched)
    found = bench.verdict(row.id)
    if found is not None:
        book(shop.store, task, now, policy.judge, found.cost_usd)
        return _Counted(watched if found.preference is None else
                        compared(watched, found.preference, None, seen.expected))  # fmt: skip
    if bench.is_asked(row.id):
        return _Counted(watched, is_over=False)
    left, comparison = _left(watched, policy, now), both.comparison()
    if left < 1 or comparison is None:
        return _Counted(watched)
    if not bench.is_full:
        bench.ask(row.id, policy.judge, comparison)
        watched = msgspec.structs.replace(watched, judged=(left - 1, now))
    return _Counted(watched, is_over=False)


def _left(watched: Watched, policy: TaskPolicy, now: float) -> float:
    """How many pairs the judge may be asked now: a day's worth at most, and it comes back evenly."""
    if watched.judged is None:
        return float(policy.judge_audits)
    left, moment = watched.judged
    return min(left + (now - moment) * policy.judge_audits / 86_400, float(policy.judge_audits))


def _on_trial(row: Row, watched: Watched, policy: TaskPolicy) -> bool:
    """A canary, and the first answers after the last step."""
    return bool(steps_left(row)) or bool(policy.audit and watched.pairs < policy.canary_pairs)


# --- what is done ----------------------------------------------------------------------------------------


def _act(shop: Workshop, task: str, seen: Sequence[Seen], used: set[str], now: float) -> None:
    newest = seen[0]
    found = [(one, alarm) for one in seen for alarm in alarms(task, one.watched, one.expected, canary=one.trial)]
    places = [*newest.route.get("targets", []), newest.route.get("fallback") or {}]
    ending = _ending(shop, task, used.union(map(label_of, places)), now)
    _raise_and_clear(shop, task, seen, [*(alarm for _, alarm in found), *ending], now)
    grave = next(((one, alarm) for one, alarm in found if alarm.action == "rollback"), None)
    if grave is not None:
        _roll_back(shop, task, *grave, now)
        return
    policy = shop.config.policy(task)
    if steps_left(newest.row) and newest.watched.pairs >= policy.canary_pairs and not newest.watched.raised:
        _advance(shop, task, newest.row, newest.watched)


def _raise_and_clear(shop: Workshop, task: str, seen: Sequence[Seen], found: Sequence[Alarm], now: float) -> None:
    """Note what is new of these alarms, and which others are over: with nobody `seen`, all of them."""
    for alarm in found:
        if audited.raise_alarm(shop.store, alarm, now):
            log.warning("task %s: %s: %s", task, alarm.kind, alarm.sentence)
    still = {Kind(one["kind"]) for one in audited.open_alarms(shop.store, task)} - {alarm.kind for alarm in found}
    over = [kind for kind in still if all(is_over(kind, one.watched, one.expected) for one in seen)]
    audited.clear_alarms(shop.store, task, over, now)


def _roll_back(shop: Workshop, task: str, one: Seen, alarm: Alarm, now: float) -> None:
    """With all that came after it: a newcomer's canary ends, too, where who serves beside it is taken back."""
    because = {"alarm": alarm, "candidate": promotions.candidate(one.row), "pairs": one.watched.pairs}
    while any(row["id"] == one.row["id"] for row in promotions.standing(shop.store, task)):
        promote.rollback(shop.store, shop.config, shop.routes, task, because)
    audited.clear_alarms(shop.store, task, [kind.value for kind in Kind if kind is not Kind.SHUTDOWN], now)
    log.warning("task %s: rolled back: %s", task, alarm.sentence)


def _advance(shop: Workshop, task: str, row: Row, watched: Watched) -> None:
    because = {
        "candidate": promotions.candidate(row), "pairs": watched.pairs, "agreement": watched.agreement,
        "evidence": {kind.value: bets.excess for kind, bets in watched.tests.items()},
    }  # fmt: skip
    route = promote.advance(shop.store, shop.config, shop.routes, task, because)
    if route is not None:
        share = route["targets"][0].get("weight", 0)
        shop.say(f"task {task}: {watched.pairs} answers compared, nothing wrong; {share:g} % of the requests now")


def _ending(shop: Workshop, task: str, labels: Iterable[str], now: float) -> list[Alarm]:
    """The next of these models that its provider takes away, where that is soon."""
    near = [one for one in shutdowns(shop.config, labels, now) if one.is_near][:1]
    return [
        Alarm(task=task, kind=Kind.SHUTDOWN, action=ACTIONS[Kind.SHUTDOWN], sentence=one.sentence,
              figures={"days": one.days})
        for one in near
    ]  # fmt: skip
