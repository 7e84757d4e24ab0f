"""Watches templates in live traffic: slots that drift, and tasks whose requests match less often than before."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from gateway.domain.matching import Match
from gateway.domain.template import Inputs, PromptTemplate
from gateway.errors import StoreError
from gateway.matches import Matches, write_matches
from gateway.pipeline.drift import BASELINE, RECENT
from gateway.pipeline.history import Found, TemplateHistory
from gateway.pipeline.known import Known
from gateway.pipeline.matchrate import MatchRate
from gateway.pipeline.records import Recorded, recorded
from gateway.pipeline.savings import Saved, savings
from gateway.pipeline.takeover import EXAMPLES, NEWEST, Takeover
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import (
    FEW,
    MATCHED,
    Standing,
    alarms,
    newest_of,
    newest_versions,
    results,
    set_alarm,
)
from gateway.withheld import withhold

log = logging.getLogger(__name__)

SAVED_SECONDS = 60.0
"""How often what was saved is added up: over all days of all tasks."""
TOLD_SECONDS = 5.0
"""How often the counts of matches are written down for the relays to tell."""


class Flag(NamedTuple):
    """A template whose slots hold something new, or that takes another version's requests; and its newest ones."""

    template: PromptTemplate
    found: Found
    ids: tuple[str, ...]


class Watch:
    """Watches all templates: what is new in their slots, and how often each task's requests match.

    The histories of slots are read again from the store when a template's first request comes.
    """

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._histories: dict[str, TemplateHistory] = {}
        self._takeovers: dict[str, Takeover] = {}
        self._rates: dict[str, MatchRate] = {}
        self._templates: Mapping[str, PromptTemplate] = {}
        self._flags: dict[str, Flag] = {}
        self._alarms: dict[str, str] | None = None
        self._told = self._added = 0.0
        self._saved: dict[str, Saved] = {}

    def matched(self, request: Recorded, match: Match) -> None:
        """Note a request that matches."""
        template = match.template
        history = self._histories.get(template.name)
        if history is None:
            history = self._histories[template.name] = self._remembered(template)
        found, newest = history.add(request.id, match.inputs), RECENT
        if template.task not in self._takeovers:
            self._takeovers[template.task] = self._versions_of(template.task)
        taken = self._takeovers[template.task].add(match.inputs)
        if found is None and taken is not None:
            found, newest = Found("", taken.drift), taken.requests
        if found is not None:
            self._flags[template.name] = Flag(template, found, tuple(history.ids)[-newest:])
        rate = self._rate(template.task)
        rate.add(matches=True)
        if template.task in self._alarmed() and rate.has_recovered:
            self.settle(template.task)

    def missed(self, near: PromptTemplate) -> None:
        """Note a request that nearly matches this template: it counts against its task."""
        rate = self._rate(near.task)
        if rate.add(matches=False) and near.task not in self._alarmed():
            misses = len(rate.newest) - sum(rate.newest)
            sentence = f"{misses} of its newest {len(rate.newest)} requests nearly match, and did not before"
            self._alarm(near.task, sentence)
            log.warning("task %s: %s", near.task, sentence)

    def flags(self) -> list[Flag]:
        """What was found since this was asked last."""
        found = list(self._flags.values())
        self._flags.clear()
        return found

    # --- what becomes of it --------------------------------------------------------------------------------

    def learnt_from(self, request: Recorded, match: Match) -> None:
        """Note a request that a new template was found in."""
        name = match.template.name
        self._histories.setdefault(name, TemplateHistory(match.template)).add(request.id, match.inputs)

    def begin(self, names: Iterable[str]) -> None:
        """What these templates were found in is what their next requests are compared with."""
        names = set(names)
        for name in names:
            if name in self._histories:
                self._histories[name].learn()
        for task in {_task(name) for name in names}:
            self._takeovers[task] = self._versions_of(task, names)

    def accept(self, name: str) -> None:
        """What a template's slots hold now, and that it has the task's requests, is as it should be."""
        if name in self._histories:
            self._histories[name].learn()
        if _task(name) in self._takeovers:
            self._takeovers[_task(name)].accept(name)

    def forget(self, name: str) -> None:
        """The newest requests of a template are another one's."""
        if name in self._histories:
            self._histories[name].forget_recent()

    def drop(self, name: str) -> None:
        """A template has another text now: its slots are others."""
        self._histories.pop(name, None)
        self._takeovers.pop(_task(name), None)

    def settle(self, task: str) -> None:
        """The requests of a task that did not match are explained."""
        self._rate(task).settle()
        if task in self._alarmed():
            self._alarm(task, None)
            log.info("task %s: its requests match again", task)

    def know(self, before: Known, now: Known) -> None:
        """The templates have changed: histories of those that are no more, or have another text, are dropped; a
        person has confirmed what drifted and does not any more."""
        self._templates = now.by_name
        for name in {*before.by_name, *now.by_name}:
            if before.by_name.get(name) != now.by_name.get(name):
                self._takeovers.pop(_task(name), None)
        for name in list(self._histories):
            if name not in now.by_name or before.by_name.get(name) not in (None, now.by_name[name]):
                del self._histories[name]
        for name, standing in now.standing.items():
            was = before.standing.get(name)
            if was is not None and was.state == "drifting" and standing.state == "trusted":
                self.accept(name)

    def tell(self, standing: Mapping[str, Standing]) -> None:
        """Write down which templates are withheld, and at most every few seconds how many requests match."""
        home = self._store.path.parent
        try:
            withhold(home, {name: one.remark or FEW for name, one in standing.items() if one.state != "trusted"})
            if time.monotonic() - self._told >= TOLD_SECONDS:
                self._told = time.monotonic()
                write_matches(home, self._matches(standing))
        except OSError as error:
            raise StoreError(f"{home}: {error.strerror}; what is known of templates cannot be told") from error

    def _matches(self, standing: Mapping[str, Standing]) -> Matches:
        alarms = self._alarmed()
        shares = {task: rate.share for task, rate in self._rates.items() if rate.share is not None}
        counts = {f"{task}@{version}": found for (task, version), found in results(self._store).items()}
        states: dict[str, str] = {name: one.state for name, one in standing.items()}
        if time.monotonic() - self._added >= SAVED_SECONDS or not self._added:
            self._saved, self._added = savings(entries(self._store)), time.monotonic()
        saved = self._saved
        return Matches(
            shares=shares,
            counts=counts,
            states=states,
            alarms=sorted(alarms),
            saved_usd={task: one.usd for task, one in saved.items() if one.usd is not None},
            saved_seconds={task: one.seconds for task, one in saved.items() if one.seconds is not None},
        )

    # --- read from the store -------------------------------------------------------------------------------

    def _remembered(self, template: PromptTemplate) -> TemplateHistory:
        history = TemplateHistory(template)
        for exchange_id, inputs in self._newest(template, RECENT + BASELINE):
            history.add(exchange_id, inputs)
        history.learn()
        return history

    def _versions_of(self, task: str, new: Collection[str] = ()) -> Takeover:
        """Which versions the task's newest requests are of; since now, where some are new."""
        templates = [template for template in self._templates.values() if template.task == task]
        if len(templates) < 2:
            return Takeover(templates)
        examples = [inputs for one in templates for _, inputs in self._newest(one, EXAMPLES)]
        if new:
            return Takeover(templates, examples, older=[one.name for one in templates if one.name not in new])
        newest = [f"{task}@{version}" for version in newest_versions(self._store, task, NEWEST)]
        counts = results(self._store, task=task)
        matched = {one.name: counts.get((task, one.version), {}).get(MATCHED, 0) for one in templates}
        older = [name for name, count in matched.items() if count > newest.count(name)]
        return Takeover(templates, examples, newest, older)

    def _newest(self, template: PromptTemplate, count: int) -> Iterator[tuple[str, Inputs]]:
        """Id and inputs of the newest requests that match a template, oldest first."""
        for one in newest_of(self._store, template, count):
            request = recorded(one)
            inputs = template.strip(request.body) if request is not None else None
            if inputs is not None:
                yield one.id, inputs

    def _rate(self, task: str) -> MatchRate:
        if task not in self._rates:
            counts = [found for (name, _), found in results(self._store, task=task).items() if name == task]
            matched = sum(found.get(MATCHED, 0) for found in counts)
            self._rates[task] = MatchRate(matched, sum(sum(found.values()) for found in counts))
        return self._rates[task]

    def _alarmed(self) -> dict[str, str]:
        if self._alarms is None:
            self._alarms = alarms(self._store)
        return self._alarms

    def _alarm(self, task: str, sentence: str | None) -> None:
        set_alarm(self._store, task, sentence)
        self._alarms = None


def _task(name: str) -> str:
    return name.rpartition("@")[0]
