"""Templates that people wrote take their place: what each would change, and then storing it as a new version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.config import InvalidConfig, Problem
from gateway.domain.matching import TemplateIndex, reason
from gateway.domain.template import PromptTemplate
from gateway.pipeline.differences import Piece, changes
from gateway.pipeline.records import recorded
from gateway.pipeline.template_text import Draft, write_template
from gateway.stores.edited import add_edited, pin, pinned_tasks
from gateway.stores.ledger import rename
from gateway.stores.sqlite import UNEXPLAINED, SqliteStore

SAMPLE = 1000
"""So many of the newest requests of each sort tell what a template would change."""
_AT_ONCE = 1000
_ASSIGNED = "task = ? AND complete = 1 AND truncated = 0"


class Effect(msgspec.Struct, frozen=True):
    """What a template does to the newest recorded requests: of `own` (made with the version that it replaces)
    `still` match, of `unexplained` (of no task) `found` do, of those of other tasks `claimed` would move here, by
    task; `ambiguous` could be cut in more than one way and do not match."""

    own: int = 0
    still: int = 0
    unexplained: int = 0
    found: int = 0
    claimed: dict[str, int] = {}
    ambiguous: int = 0


class Revision(msgspec.Struct, frozen=True):
    """A draft with the version that it would be stored as; `before` is the one whose place it takes, if any. Where
    `is_new` is false, the text is as it was and only the pin changes. `changes` are those of the YAML."""

    draft: Draft
    template: PromptTemplate
    before: PromptTemplate | None
    is_new: bool
    pin_changes: bool
    changes: list[list[Piece]]
    effect: Effect


def plan(store: SqliteStore, drafts: Sequence[Draft]) -> list[Revision]:
    """What the drafts would change; nothing is stored.

    Raises:
        InvalidConfig: with every problem of all of them.
    """
    templates = store.templates()
    pinned = pinned_tasks(store)
    problems: list[Problem] = []
    made: list[tuple[Draft, PromptTemplate, PromptTemplate | None]] = []
    for draft in drafts:
        known = [*templates, *(template for _, template, _ in made)]
        found = list(_problems(draft, known, [one for one, _, _ in made]))
        problems += found
        if not found:
            before = next((t for t in templates if t.name == draft.based_on), None)
            made.append((draft, _placed(draft, before, known), before))
    if problems:
        raise InvalidConfig(problems)
    index = TemplateIndex([*templates, *(template for _, template, before in made if template is not before)])
    revisions = [_revision(store, index, pinned, *one) for one in made]
    problems = [problem for revision in revisions for problem in _ambiguous(revision)]
    if problems:
        raise InvalidConfig(problems)
    return revisions


def _placed(draft: Draft, before: PromptTemplate | None, known: Sequence[PromptTemplate]) -> PromptTemplate:
    """The template with its version; the stored one where nothing has changed."""
    if before is not None and msgspec.structs.replace(draft.template, replaces=before.replaces) == before:
        return before
    versions = [t.version for t in known if t.task == draft.template.task]
    return msgspec.structs.replace(
        draft.template, version=1 + max(versions, default=0), replaces=before.name if before else ""
    )


def _problems(draft: Draft, known: Sequence[PromptTemplate], others: Sequence[Draft]) -> Iterator[Problem]:
    document, based_on = draft.document, draft.based_on
    if based_on and all(template.name != based_on for template in known):
        yield document.problem(["based_on"], f"no template {based_on}; leave it out for a template of your own")
        return
    if based_on and any(other.based_on == based_on for other in others):
        yield document.problem(
            ["based_on"], f"another file takes the place of {based_on}, too; import one of the two"
        )
    replaced = {template.replaces for template in known} | {based_on}
    for template in known:
        if template.name not in replaced and _pieces(template) == _pieces(draft.template):
            reasons = f"has the same fixed text as {template.name}, so that requests would belong to both"
            yield document.problem(["messages"], f"{reasons}; write 'based_on: {template.name}' to take its place")


def _pieces(template: PromptTemplate) -> tuple[object, ...]:
    """All that tells which requests match, but for what slots may hold."""
    texts = [[(p.header, [f.literals for f in p.fields]) for p in side] for side in (template.head, template.tail)]
    return template.bucket, template.turns, template.wraps, texts


def _revision(
    store: SqliteStore, index: TemplateIndex, pinned: frozenset[str], draft: Draft, template: PromptTemplate,
    before: PromptTemplate | None,
) -> Revision:  # fmt: skip
    is_new = template is not before
    was_pinned = template.task in pinned
    old = _yaml(before, before.task in pinned) if before else ""
    return Revision(
        draft, template, before, is_new, draft.pin != was_pinned,
        changes(old, _yaml(template, draft.pin)), _effect(store, index, template, before) if is_new else Effect(),
    )  # fmt: skip


def _yaml(template: PromptTemplate, pinned: bool) -> str:
    """As it is written, without what differs between any two versions."""
    lines = write_template(template, pin=pinned).split("\n")
    return "\n".join(line for line in lines if not line.startswith(("#", "based_on:")))


def _effect(
    store: SqliteStore, index: TemplateIndex, template: PromptTemplate, before: PromptTemplate | None
) -> Effect:
    own: dict[str, dict[str, Any]] = {}
    if before is not None:
        own = _bodies(store, f"{_ASSIGNED} AND task_version = ?", [before.task, before.version])
    unexplained = _bodies(store, UNEXPLAINED, [])
    task = before.task if before else template.task
    rows = store.records(
        "SELECT id, task FROM exchanges WHERE task IS NOT NULL AND task != ? ORDER BY rowid DESC LIMIT ?",
        [task, SAMPLE],
    )
    tasks = {row["id"]: row["task"] for row in rows}
    elsewhere = _bodies(store, "task IS NOT NULL AND task != ? AND complete = 1", [task])
    claimed = Counter(tasks[key] for key in _fitting(index, template, elsewhere) if key in tasks)
    bodies = [*own.values(), *unexplained.values()]
    return Effect(
        own=len(own),
        still=len(_fitting(index, template, own)),
        unexplained=len(unexplained),
        found=len(_fitting(index, template, unexplained)),
        claimed=dict(claimed),
        ambiguous=sum((why := reason(template, body)) is not None and why.code == "ambiguous" for body in bodies),
    )


def _bodies(store: SqliteStore, where: str, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The newest readable requests of a kind, by their exchanges' ids."""
    newest = f"rowid IN (SELECT rowid FROM exchanges WHERE {where} ORDER BY rowid DESC LIMIT ?)"
    requests = (recorded(exchange) for exchange in store.each_exchange(newest, [*values, SAMPLE]))
    return {request.id: request.body for request in requests if request is not None}


def _fitting(index: TemplateIndex, template: PromptTemplate, bodies: Mapping[str, dict[str, Any]]) -> list[str]:
    found = ((key, index.match(body)) for key, body in bodies.items())
    return [key for key, match in found if match is not None and match.template.name == template.name]


def _ambiguous(revision: Revision) -> Iterator[Problem]:
    effect = revision.effect
    if effect.ambiguous > effect.still + effect.found:
        problem = f"{effect.ambiguous} recorded requests could be cut in more than one way, and only"
        remedy = "put more text between the slots, or make one slot of two"
        said = f"{problem} {effect.still + effect.found} in just one; {remedy}"
        yield revision.draft.document.problem(["messages"], said)


def store_all(store: SqliteStore, revisions: Sequence[Revision]) -> int:
    """Keep the new versions and move the recorded requests that match them; gives how many were moved."""
    with store.transaction():
        for revision in revisions:
            if revision.is_new:
                add_edited(store, revision.template)
            pin(store, revision.template.task, revision.draft.pin)
    new = {revision.template.name for revision in revisions if revision.is_new}
    if not new:
        return 0
    tasks = {r.before.task for r in revisions if r.before} | {r.template.task for r in revisions}
    index = TemplateIndex(store.templates())
    moved = sum(_move(store, index, new, _ASSIGNED, [task]) for task in sorted(tasks))
    _rename_in_books(store, revisions)
    return moved + _move(store, index, new, UNEXPLAINED, [])


def _rename_in_books(store: SqliteStore, revisions: Sequence[Revision]) -> None:
    """A task all of whose requests are another one's now was renamed."""
    for revision in revisions:
        before, name = revision.before, revision.template.task
        if before is not None and before.task != name and not store.count(_ASSIGNED, [before.task]):
            rename(store, before.task, name)


def _move(store: SqliteStore, index: TemplateIndex, new: set[str], where: str, values: Sequence[Any]) -> int:
    """Assign the requests that match one of the new templates; the others stay with the version that they have."""
    moved = 0
    waiting: dict[str, tuple[str, int] | None] = {}
    for exchange in store.each_exchange(where, values):
        request = recorded(exchange)
        match = index.match(request.body) if request is not None else None
        if match is None or match.template.name not in new:
            continue
        place = (match.template.task, match.template.version)
        if (exchange.task, exchange.task_version) != place:
            waiting[exchange.id] = place
        if len(waiting) >= _AT_ONCE:
            moved += _assign(store, waiting)
    return moved + _assign(store, waiting)


def _assign(store: SqliteStore, waiting: dict[str, tuple[str, int] | None]) -> int:
    count = len(waiting)
    with store.transaction():
        store.assign(waiting)
    waiting.clear()
    return count
