"""Models that their provider takes away: which tasks need them, and when."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import NamedTuple

from gateway.config import Config
from gateway.pipeline.model_lists import any_known, shutdown_date
from gateway.stores.ledger import targets_since
from gateway.stores.sqlite import SqliteStore

ALARM_DAYS = 30
"""So many days before, it is an alarm."""
IN_USE_DAYS = 7
"""A model that answered within so many days is in use."""


class Shutdown(NamedTuple):
    """A model (`upstream/model`), the day on which it is taken away, and how many days that is from now (UTC)."""

    label: str
    date: datetime.date
    days: int

    @property
    def sentence(self) -> str:
        """For a person."""
        upstream, _, model = self.label.partition("/")
        if self.days < 0:
            return f"{upstream} took {model} away on {self.date} ({-self.days} days ago)"
        return f"{upstream} takes {model} away on {self.date} (in {self.days} days)"

    @property
    def is_near(self) -> bool:
        """Whether it is time to do something."""
        return self.days <= ALARM_DAYS


def shutdowns(config: Config, labels: Iterable[str], now: float) -> list[Shutdown]:
    """What the config or their provider says of these models, the next one first. `now`: seconds since the
    epoch."""
    today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
    found = []
    for label in {*labels}:
        upstream, _, model = label.partition("/")
        date = shutdown_date(config, upstream, model)
        found += [Shutdown(label, date, (date - today).days)] if date else []
    return sorted(found, key=lambda one: (one.date, one.label))


def in_use(store: SqliteStore, config: Config, now: float) -> dict[str, set[str]]:
    """The models that have answered lately, by task: the incumbent's and the candidates'. Nothing where no such
    day is known: this is asked every second."""
    if not any_known(config):
        return {}
    found: dict[str, set[str]] = {}
    for task, target in targets_since(store, int(now // 86_400) - IN_USE_DAYS):
        found.setdefault(task, set()).add(target)
    return found
