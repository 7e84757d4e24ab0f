"""The templates that are known, ready to be matched; read whole only when somebody else has changed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.domain.matching import Match, TemplateIndex, fixed_size, rank
from gateway.domain.template import PromptTemplate
from gateway.pipeline.near import NearMisses
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import Standing, standings

_NEW_AT_MOST = 40


class Known:
    """The store's templates and their standings. What is added or replaced goes into a small index of its own,
    since building the large one takes as long as thousands of requests."""

    def __init__(self, templates: Sequence[PromptTemplate], standing: dict[str, Standing]) -> None:
        self.standing = standing
        self.by_name = {template.name: template for template in templates}
        self._index = TemplateIndex(list(templates))
        self._replaced = {template.replaces for template in templates}
        self._new: dict[str, PromptTemplate] = {}
        self._new_index: TemplateIndex | None = None
        self._near: NearMisses | None = None

    @classmethod
    def of(cls, store: SqliteStore) -> Known:
        """As they are now."""
        return cls(store.templates(), standings(store))

    @property
    def templates(self) -> list[PromptTemplate]:
        """All of them."""
        return list(self.by_name.values())

    def put(self, template: PromptTemplate, standing: Standing) -> None:
        """Add a template, or replace the one of this name."""
        self.standing[template.name] = standing
        if self.by_name.get(template.name) == template:
            return
        self.by_name[template.name] = self._new[template.name] = template
        self._new_index = None
        if self._near is not None:
            self._near.put(template)
        if len(self._new) > _NEW_AT_MOST or template.replaces:
            self._build()

    def _build(self) -> None:
        self._index, self._new, self._new_index = TemplateIndex(self.templates), {}, None
        self._replaced = {template.replaces for template in self.by_name.values()}

    def match(self, body: dict[str, Any]) -> Match | None:
        """As `TemplateIndex.match`, of all templates as they are now."""
        old = self._index.match(body)
        if not self._new:
            return old
        if self._new_index is None:
            self._new_index = TemplateIndex(list(self._new.values()), self._replaced)
        new = self._new_index.match(body)
        if old is None or new is None:
            found = old or new
        else:
            found = min(old, new, key=lambda match: rank(match.template, match.template.name in self._replaced))
        if old is not None and old.template.name in self._new:  # replaced since: what would be found without it?
            if new is not None and fixed_size(new.template) >= fixed_size(old.template):
                return new
            self._build()
            return self._index.match(body)
        return found

    @property
    def near(self) -> NearMisses:
        """Made when the first request matches nothing."""
        if self._near is None:
            self._near = NearMisses(self.templates)
        return self._near

    def is_proposed(self, template: PromptTemplate) -> bool:
        """Whether it was found in few requests and may still change."""
        return self.standing[template.name].state == "proposed"


def fingerprint(store: SqliteStore) -> tuple[tuple[str, int, int], ...]:
    """Changes when a template is added or gets another state; costs a look at an index."""
    rows = store.run("SELECT state, COUNT(*), MAX(rowid) FROM templates GROUP BY state ORDER BY state")
    return tuple(rows.fetchall())
