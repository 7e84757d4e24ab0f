"""Exchanges -> stripped rows -> exact duplicates out -> 80/20 split -> JSONL and a card with the funnel."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway import providers
from gateway.domain.dataset import Dataset, Row, Split
from gateway.domain.exchange import Exchange
from gateway.domain.template import Inputs, PromptTemplate
from gateway.encoding import decoded
from gateway.errors import DatasetError, StoreError, TaskError
from gateway.files import write_whole
from gateway.pipeline.card import card, card_text
from gateway.providers.openai import read_chat
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import untrusted

AT_LEAST = 50
"""Fewer rows are refused: nothing can be learnt from them, and less be proved."""
TRAIN_SHARE = 80
RECENT = 1000
"""So many of the newest answered exchanges decide which model is the teacher and which prompt is in use."""
_SESSION_CHARS = 20
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
"""Many programs that read lines end one at these, too; JSON leaves them as they are."""
_BEYOND = frozenset({"tool calls", "refusal", "empty answer"})
"""Answers that cannot be learnt, but that a candidate must not replace by one of its own."""
_FINISHED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn"})
_OLD_PROMPT = "older prompt version, held out"
_REFUSAL = re.compile(
    r"(?i)\b(i('|’)m sorry, (but )?i (can('|’)t|cannot)|i (can('|’)t|cannot|am unable to|am not able to) "
    r"(help|assist|comply|provide|answer)|as an ai\b)"
)


class Teacher(msgspec.Struct, frozen=True):
    """Whose answers are learnt: what its requests ask for, and the `upstream/model` that answers them."""

    provider: str
    model: str | None
    target: str


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What a dataset is about: one teacher's answers to one prompt. `templates` begins with the one in use;
    `students` are the targets of models that we have trained."""

    templates: tuple[PromptTemplate, ...]
    teacher: Teacher
    students: frozenset[str]
    feedback: Mapping[str, dict[str, Any]]


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange that can be learnt from, before duplicates are settled. The greatest `rank` counts; `beyond`
    is why its answer cannot be learnt, "" where it can."""

    id: str
    text: str
    messages: list[dict[str, Any]]
    output: str
    side: Split
    rank: tuple[int, bool]
    beyond: str = ""


def build(store: SqliteStore, task: str, folder: Path) -> Dataset:
    """The dataset of all that is recorded of a task, written below `folder` and noted in the store.

    Same exchanges, same bytes: its id is a hash of its files.

    Raises:
        TaskError: there is no such task.
        DatasetError: too few rows are left; says how many and where the others went.
        StoreError: the files could not be written.
    """
    scope = scope_of(store, task)
    dropped: Counter[str] = Counter()
    examples: list[Example] = []
    for exchange in store.each_exchange("task = ?", [task]):
        found = _example(exchange, scope)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            examples.append(found)
    recorded = dropped.total() + len(examples)
    rows, beyond, disagreement = _distinct(examples, dropped)
    if len(rows) < AT_LEAST or len({row.split for row in rows}) < 2:
        raise DatasetError(_too_few(task, recorded, len(rows), dropped))
    answered = store.answered(task, RECENT)
    tokens = [row["input_tokens"] for row in answered if row["input_tokens"]]
    about = {
        "task": task,
        "template": scope.templates[0].name,
        "teacher": msgspec.to_builtins(scope.teacher),
        "teachers": dict(Counter(_target(row) for row in answered).most_common(5)),
    } | card(rows, beyond, dropped, recorded, disagreement, tokens)
    return _write(store, about, rows, beyond, folder)


def scope_of(store: SqliteStore, task: str) -> Scope:
    """Who answers the task's requests now, and with which prompt: what most of the newest exchanges say.

    Raises:
        TaskError: there is no such task.
        DatasetError: none of its templates is trusted.
    """
    found = store.templates(task)
    if not found:
        known = ", ".join(row["name"] for row in store.tasks()) or "none yet"
        raise TaskError(f"no task {task!r}; known tasks: {known}")
    kept_back = untrusted(store)
    templates = [template for template in found if template.name not in kept_back]
    if not templates:
        raise DatasetError(f"task {task}: {found[-1].name} gives no rows: {kept_back[found[-1].name]}")
    students = frozenset(f"{f.upstream}/{f.model}" for f in store.finetunes("state = 'succeeded'"))
    recent = [row for row in store.answered(task, RECENT) if _target(row) not in students]
    teachers = Counter(Teacher(row["provider"], row["model_requested"], _target(row)) for row in recent)
    teacher = next(iter(teachers.most_common(1)), (Teacher("", None, ""), 0))[0]  # of equals, the newest
    own = [row for row in recent if _target(row) == teacher.target]
    uses = Counter(row["task_version"] for row in own)
    first = max(templates, key=lambda template: (uses[template.version], template.version))
    others = sorted((t for t in templates if t is not first), key=lambda t: -t.version)
    return Scope(
        templates=(first, *others), teacher=teacher, students=students, feedback=_feedback(store.rows("feedback"))
    )


def _target(row: Mapping[str, Any]) -> str:
    return row["target"] or f"{row['provider']}/{row['model_requested']}"


def _feedback(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was said of each exchange; of each field the last word counts."""
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        said[row["exchange_id"]].update({name: value for name, value in row.items() if value is not None})
    return said


# --- one exchange ----------------------------------------------------------------------------------------


def _example(exchange: Exchange, scope: Scope) -> Example | str:
    """The example, or the reason why there is none."""
    if not exchange.complete or exchange.truncated:
        return "incomplete"
    if exchange.status is None or not 200 <= exchange.status < 300:
        return "error status"
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    request = read_chat(body) if body else None
    inputs = next((i for t in scope.templates if (i := t.strip(request)) is not None), None) if request else None
    if inputs is None:
        return "does not match the template"
    answer = _answer(exchange, scope)
    if isinstance(answer, str):
        return answer
    output, rank, beyond = answer
    side, current = split_of(session(inputs)), inputs.template is scope.templates[0]
    if side == "validation" and not current:
        return _OLD_PROMPT  # it would judge candidates by what another prompt asked for
    return Example(
        id=exchange.id, text=inputs.text, messages=inputs.messages, output=output, side=side,
        rank=(rank, current), beyond=beyond,
    )  # fmt: skip


def _answer(exchange: Exchange, scope: Scope) -> tuple[str, int, str] | str:
    """(what to learn, its rank, why it cannot be learnt), or the reason to drop the exchange: a person's
    correction before an approved answer before a plain one."""
    said = scope.feedback.get(exchange.id, {})
    corrected = said.get("corrected_output") or said.get("label")
    if corrected:
        return (corrected, 2, "") if _is_text(corrected) else "not valid text"
    target = exchange.target or f"{exchange.provider}/{exchange.model_requested}"
    if exchange.stripped or target in scope.students:
        return "answered by a candidate"
    if said.get("score", 0) < 0:
        return "negative feedback"
    if Teacher(exchange.provider, exchange.model_requested, target) != scope.teacher:
        return "answered by another model"
    text, reason = _output(exchange)
    if reason and reason not in _BEYOND:
        return reason
    return text, 1 if said.get("score", 0) > 0 else 0, reason


_OPENAI = providers.load("openai")


def _output(exchange: Exchange) -> tuple[str, str]:
    """(text, "") or ("", reason)."""
    plain = decoded(exchange.response, exchange.response_headers.get("content-encoding"))
    read = _OPENAI.read_answer(plain, streamed=exchange.streamed) if plain else None
    if read is None or read.error:
        return "", "unreadable answer"
    answer = read.choices[0]
    if answer.tool_calls:
        return "", "tool calls"
    if answer.refusal or answer.finish_reason == "content_filter" or _REFUSAL.search(answer.text[:240]):
        return "", "refusal"
    if answer.finish_reason not in _FINISHED:
        return "", "not finished"
    if not answer.text.strip():
        return "", "empty answer"
    return (answer.text, "") if _is_text(answer.text) else ("", "not valid text")


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON lets half a surrogate pair through, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- one row for each input ------------------------------------------------------------------------------


def _distinct(examples: Sequence[Example], dropped: Counter[str]) -> tuple[list[Row], list[Row], float]:
    """Rows to learn from, held-out rows beyond learning, and the share of repeated inputs whose answers differ:
    an estimate of the teacher's noise. What is left out is counted in `dropped`."""
    groups: dict[str, list[Example]] = defaultdict(list)
    unlearnable: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        (unlearnable if example.beyond else groups)[example.text].append(example)
        if example.beyond:
            dropped[example.beyond] += 1
    repeated = [group for group in groups.values() if len(group) > 1]
    differing = sum(len({example.output for example in group}) > 1 for group in repeated)
    dropped["duplicate input"] += sum(len(group) - 1 for group in groups.values())
    beyond = [
        _row(group[-1], len(group))
        for text, group in unlearnable.items()
        if text not in groups and group[-1].side == "validation"
    ]
    rows = [_row(_winner(group), len(group)) for group in groups.values()]
    return _sorted(rows), _sorted(beyond), differing / len(repeated) if repeated else 0.0


def _winner(group: Sequence[Example]) -> Example:
    """The best rank, then the majority's answer, then the newest."""
    best = max(example.rank for example in group)
    ranked = [example for example in group if example.rank == best]
    votes = Counter(example.output for example in ranked)
    return max(ranked, key=lambda example: (votes[example.output], example.id))


def _row(example: Example, seen: int) -> Row:
    return Row(
        exchange_id=example.id, text=example.text, messages=example.messages, output=example.output,
        split=example.side, seen=seen,
    )  # fmt: skip


def _sorted(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.exchange_id)


def session(inputs: Inputs) -> str:
    """What requests of one conversation have in common: what its user said first. Without turns, the input."""
    if not inputs.template.turns:
        return inputs.text
    said = ""
    for turn in inputs.turns:
        if turn.get("role") == "user":
            said += f"\n{turn.get('content')}"
        if len(said) > _SESSION_CHARS:  # "Hi" alone is no conversation of its own
            break
    return said or inputs.text


def split_of(text: str) -> Split:
    """The side on which an input is, for ever: a hash of its words alone decides, so that inputs which differ in
    case, spaces or punctuation only are on the same side."""
    words = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
    number = int.from_bytes(hashlib.sha256((words or text.strip()).encode("utf-8", "surrogatepass")).digest()[:8])
    return "train" if number % 100 < TRAIN_SHARE else "validation"


def _too_few(task: str, recorded: int, rows: int, dropped: Counter[str]) -> str:
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common() if count) or "nothing dropped"
    return (
        f"task {task}: {rows} usable rows, and at least {AT_LEAST} are needed; of {recorded} recorded exchanges: "
        f"{lost}. Send more traffic through the gateway, 100 good rows are a start"
    )


# --- files -----------------------------------------------------------------------------------------------


def _write(store: SqliteStore, about: dict[str, Any], rows: list[Row], beyond: list[Row], folder: Path) -> Dataset:
    parts, task, template = _parts(rows), about["task"], about["template"]
    digest = _digest(parts)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", task)
    identity = hashlib.sha256(json.dumps([task, template, digest]).encode()).hexdigest()
    place = folder / name / f"{name}-{identity[:12]}"
    about |= {"id": place.name, "sha256": {k: hashlib.sha256(v).hexdigest() for k, v in parts.items()}}
    try:
        place.mkdir(parents=True, exist_ok=True)
        for side, data in parts.items():
            write_whole(place / f"{side}.jsonl", data)
        write_whole(place / "rows.jsonl", b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        write_whole(place / "beyond.jsonl", b"".join(msgspec.json.encode(row) + b"\n" for row in beyond))
        write_whole(place / "card.md", card_text(about).encode())
        write_whole(place / "card.json", json.dumps(about, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise StoreError(f"dataset {place}: {error.strerror}; check the disk and its permissions") from error
    dataset = Dataset(
        id=place.name, task=task, template=template, rows=rows, directory=str(place), digest=digest, card=about,
        beyond=beyond,
    )  # fmt: skip
    with store.transaction():
        store.set_kind(task, about["kind"])
        store.add_dataset(msgspec.structs.replace(dataset, directory=_relative(place, store)))
    return dataset


def _relative(place: Path, store: SqliteStore) -> str:
    """Relative to the store's folder, so that the folder can be moved as a whole."""
    home, place = store.path.parent.resolve(), place.resolve()
    return str(place.relative_to(home)) if place.is_relative_to(home) else str(place)


def _parts(rows: Sequence[Row]) -> dict[str, bytes]:
    return {side: b"".join(_line(row) for row in rows if row.split == side) for side in ("train", "validation")}


def _digest(parts: Mapping[str, bytes]) -> str:
    return hashlib.sha256(parts["train"] + b"\0" + parts["validation"]).hexdigest()


def _line(row: Row) -> bytes:
    """One example in OpenAI's chat format for supervised fine-tuning."""
    messages = [*row.messages, {"role": "assistant", "content": row.output}]
    return json.dumps({"messages": messages}, ensure_ascii=False).translate(_LINE_ENDS).encode() + b"\n"


def load(store: SqliteStore, dataset_id: str) -> Dataset:
    """A dataset that was built before, from its files.

    Raises:
        DatasetError: it is not there any more, or not as it was written.
    """
    found = store.rows("datasets", "id = ?", [dataset_id])
    if not found:
        raise DatasetError(f"no dataset {dataset_id}; build it with 'unprompt dataset TASK'")
    row = found[0]
    place = store.path.parent / row["directory"]
    try:
        rows, beyond = _read_rows(place / "rows.jsonl"), _read_rows(place / "beyond.jsonl")
        whole = _digest(_parts(rows)) == row["digest"] and all((place / f"{p}.jsonl").is_file() for p in _parts([]))
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise DatasetError(f"dataset {dataset_id}: {error}; build it again with 'unprompt dataset TASK'") from error
    if not whole:
        raise DatasetError(f"dataset {dataset_id}: {place} is damaged; build it again with 'unprompt dataset TASK'")
    return Dataset(
        id=row["id"], task=row["task"], template=row["template"], rows=rows, directory=str(place),
        digest=row["digest"], card=json.loads(row["card"]), beyond=beyond,
    )  # fmt: skip


def _read_rows(file: Path) -> list[Row]:
    return [msgspec.json.decode(line, type=Row) for line in file.read_bytes().splitlines()]


def export(dataset: Dataset, folder: Path) -> Path:
    """Copy a dataset's files below `folder`, for use elsewhere; gives the place."""
    place = folder / dataset.id
    try:
        shutil.copytree(dataset.directory, place, dirs_exist_ok=True)
    except OSError as error:
        raise StoreError(f"dataset {dataset.id} cannot be written to {place}: {error}") from error
    return place
