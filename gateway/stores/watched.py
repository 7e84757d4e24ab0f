"""How far each template may be trusted, and how many requests matched it hour by hour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from gateway.domain.exchange import Exchange
from gateway.domain.template import PromptTemplate
from gateway.stores.sqlite import SqliteStore

State = Literal["proposed", "trusted", "drifting"]
MATCHED = "matched"
"""The result of a request that matches; any other is the code of the reason why it does not."""
FEW = "found in few requests so far"
"""Why a proposal is not stripped."""
KEPT_HOURS = 90 * 24
"""Counts of earlier hours are deleted."""


class Standing(NamedTuple):
    """A template's state and, where it is drifting, why."""

    state: State
    remark: str | None = None


class Count(NamedTuple):
    """What is counted together: a version's requests of one hour (since the epoch) with one result."""

    task: str
    version: int
    hour: int
    result: str


def standings(store: SqliteStore) -> dict[str, Standing]:
    """Every template's standing by its name (`task@version`)."""
    rows = store.run("SELECT name, state, remark FROM templates")
    return {name: Standing(state, remark) for name, state, remark in rows}


def untrusted(store: SqliteStore) -> dict[str, str]:
    """The templates that no route may strip and that give no training rows, each with why."""
    return {n: s.remark or FEW for n, s in standings(store).items() if s.state != "trusted"}


def set_standing(store: SqliteStore, name: str, state: State, remark: str | None = None) -> None:
    """Change a template's state; `remark` says why it is drifting."""
    store.run("UPDATE templates SET state = ?, remark = ? WHERE name = ?", [state, remark, name])


def propose(store: SqliteStore, template: PromptTemplate) -> None:
    """Note a template that was found in few requests; a proposal of this name is replaced."""
    store.add_template(template)
    body = msgspec.json.encode(template).decode()
    store.run(
        "UPDATE templates SET body = ?, state = 'proposed' WHERE name = ? AND (state = 'proposed' OR body = ?)",
        [body, template.name, body],
    )


def count_results(store: SqliteStore, counted: Mapping[Count, int]) -> None:
    """Add to the counts; those older than `KEPT_HOURS` go."""
    store.run_many(
        "INSERT INTO template_matches VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET exchanges = exchanges + excluded.exchanges",
        [(*count, number) for count, number in counted.items()],
    )
    newest = max((count.hour for count in counted), default=0)
    store.run("DELETE FROM template_matches WHERE hour < ?", [newest - KEPT_HOURS])


def results(store: SqliteStore, task: str | None = None) -> dict[tuple[str, int], dict[str, int]]:
    """Requests by (task, version) and result: of one task, or of all."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    where, values = ("1", []) if task is None else ("task = ?", [task])
    query = f"SELECT task, version, result, SUM(exchanges) FROM template_matches WHERE {where} GROUP BY 1, 2, 3"
    for name, version, result, number in store.run(query, values):
        found.setdefault((name, version), {})[result] = number
    return found


def newest_of(store: SqliteStore, template: PromptTemplate, count: int) -> list[Exchange]:
    """The newest exchanges that match a template, oldest first."""
    rows = "SELECT rowid FROM exchanges WHERE task = ? AND task_version = ? ORDER BY rowid DESC LIMIT ?"
    return store.exchanges(f"rowid IN ({rows})", [template.task, template.version, count])


def newest_versions(store: SqliteStore, task: str, count: int) -> list[int]:
    """The versions that a task's newest exchanges match, oldest first."""
    query = (
        "SELECT task_version FROM exchanges WHERE task = ? AND task_version IS NOT NULL ORDER BY rowid DESC LIMIT ?"
    )
    return [version for (version,) in store.run(query, [task, count])][::-1]


def confirm(store: SqliteStore, name: str) -> bool:
    """A person says that what a drifting template's slots hold is input: it may be stripped again. Whether it was
    drifting."""
    where = "name = ? AND state = 'drifting'"
    return store.run(f"UPDATE templates SET state = 'trusted', remark = NULL WHERE {where}", [name]).rowcount > 0


def alarms(store: SqliteStore) -> dict[str, str]:
    """The tasks whose requests need a look, and why."""
    return dict(store.run("SELECT name, alarm FROM tasks WHERE alarm IS NOT NULL").fetchall())


def set_alarm(store: SqliteStore, task: str, sentence: str | None) -> None:
    """Say why a task's requests need a look; None: they do not any more."""
    store.run("UPDATE tasks SET alarm = ? WHERE name = ?", [sentence, task])
