"""The templates that are known, ready to be matched; read again only when they have changed."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.domain.matching import TemplateIndex
from gateway.domain.template import PromptTemplate
from gateway.pipeline.near import NearMisses
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import Standing, standings


class Known:
    """A snapshot of the store's templates and their standings."""

    def __init__(self, templates: Sequence[PromptTemplate], standing: dict[str, Standing]) -> None:
        self.templates = list(templates)
        self.standing = standing
        self.by_name = {template.name: template for template in templates}
        self.index = TemplateIndex(self.templates)
        self._near: NearMisses | None = None

    @classmethod
    def of(cls, store: SqliteStore) -> Known:
        """As they are now."""
        return cls(store.templates(), standings(store))

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
