"""Finds tasks in what was recorded: known templates first, then whatever the rest has in common."""

from __future__ import annotations

import logging
from collections import Counter

from gateway.domain.exchange import Exchange, task_name
from gateway.domain.matching import TemplateIndex
from gateway.encoding import decoded
from gateway.pipeline.infer import Recorded, infer
from gateway.providers.openai import read_chat
from gateway.stores.edited import pinned_tasks
from gateway.stores.sqlite import SqliteStore

log = logging.getLogger(__name__)

BATCH = 2000
RESIDUE = 4000
"""So many of the newest exchanges without a task are searched for a new one."""
ENOUGH = 20
"""So many of them make a search worth while; the next one needs a quarter more than there are."""


def recorded(exchange: Exchange) -> Recorded | None:
    """The exchange as inference sees it; None when it is no readable chat request."""
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    parsed = read_chat(body) if body else None
    if parsed is None:
        return None
    key = f"{exchange.provider} {exchange.endpoint} {exchange.key_id}"
    return Recorded(
        id=exchange.id, ts=exchange.started_at, body=parsed, key=key, hint=task_name(exchange.task_hint)
    )


class Discovery:
    """Keeps count of what is unexplained, so that searching is not repeated for nothing."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._unexplained_at_last_search = 0

    def step(self, *, search: bool | None = None) -> list[str]:
        """Look at the new exchanges; gives the names of templates found. `search` None: when it is worth it."""
        while self._look_at_new():
            pass
        unexplained = self._store.unexplained_count()
        worth = unexplained - self._unexplained_at_last_search >= max(ENOUGH, self._unexplained_at_last_search // 4)
        if not (worth if search is None else search):
            return []
        found = self._search()
        self._unexplained_at_last_search = self._store.unexplained_count()
        return found

    def _look_at_new(self) -> int:
        fresh = self._store.unseen(BATCH)
        if not fresh:
            return 0
        index = TemplateIndex(self._store.templates())
        assignments: dict[str, tuple[str, int] | None] = {}
        for exchange in fresh:
            request = recorded(exchange)
            if request is not None:
                match = index.match(request.body)
                assignments[exchange.id] = (match.template.task, match.template.version) if match else None
        with self._store.transaction():
            self._store.assign(assignments)
            self._store.set_aside(exchange.id for exchange in fresh if exchange.id not in assignments)
        return len(fresh)

    def _search(self) -> list[str]:
        exchanges = self._store.unassigned(RESIDUE)
        requests = [request for exchange in exchanges if (request := recorded(exchange)) is not None]
        inference = infer(requests, self._store.templates())
        pinned = pinned_tasks(self._store)
        templates = [template for template in inference.templates if template.task not in pinned]
        left_out = {(t.task, t.version) for t in inference.templates if t.task in pinned}
        found = {key: value for key, value in inference.assignments.items() if value and value not in left_out}
        with self._store.transaction():
            for template in templates:
                self._store.add_template(template)
            self._store.assign(found)
        uses = Counter(found.values())
        for template in templates:
            log.info("found %s: %d exchanges", template.name, uses[template.task, template.version])
        return [template.name for template in templates]
