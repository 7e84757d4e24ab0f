"""What people said of templates: which versions are theirs, and which tasks inference must leave alone."""

from __future__ import annotations

from gateway.domain.template import PromptTemplate
from gateway.stores.sqlite import SqliteStore


def add_edited(store: SqliteStore, template: PromptTemplate) -> None:
    """Keep a version that a person made; one that is there already stays as it is."""
    store.add_template(template)
    store.run("UPDATE templates SET edited = 1 WHERE name = ?", [template.name])


def pin(store: SqliteStore, task: str, pinned: bool) -> None:
    """Whether inference must leave the task's templates as they are."""
    store.run("UPDATE tasks SET pinned = ? WHERE name = ?", [pinned, task])


def pinned_tasks(store: SqliteStore) -> frozenset[str]:
    """The tasks to which inference adds no version."""
    return frozenset(name for (name,) in store.run("SELECT name FROM tasks WHERE pinned = 1"))
