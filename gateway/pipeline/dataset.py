"""Exchanges -> stripped rows -> exact duplicates out -> 80/20 split -> JSONL and a card with the funnel."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.domain.dataset import Dataset, Row, Split
from gateway.domain.exchange import Exchange
from gateway.domain.template import Inputs, PromptTemplate
from gateway.encoding import decoded
from gateway.errors import DatasetError, TaskError
from gateway.providers.openai import read_answer, read_chat
from gateway.stores.sqlite import SqliteStore

AT_LEAST = 50
"""Fewer rows are refused: nothing can be learnt from them, and less be proved."""
TRAIN_SHARE = 80
_REFUSAL = re.compile(
    r"(?i)\b(i('|’)m sorry, (but )?i (can('|’)t|cannot)|i (can('|’)t|cannot|am unable to|am not able to) "
    r"(help|assist|comply|provide|answer)|as an ai\b)"
)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange that can be learnt from, before duplicates are settled. `rank` orders whose answer counts."""

    exchange: Exchange
    inputs: Inputs
    output: str
    rank: int


def build(store: SqliteStore, task: str, folder: Path) -> Dataset:
    """The dataset of all that is recorded of a task, written below `folder` and noted in the store.

    Same exchanges, same bytes: its id is a hash of its files.

    Raises:
        TaskError: there is no such task.
        DatasetError: too few rows are left; says how many and where the others went.
    """
    templates = store.templates(task)
    if not templates:
        known = ", ".join(row["name"] for row in store.tasks()) or "none yet"
        raise TaskError(f"no task {task!r}; known tasks: {known}")
    dropped: Counter[str] = Counter()
    exchanges = store.exchanges("task = ?", [task])
    template = most_used(templates, exchanges)
    examples = list(_examples(exchanges, _newest_first(templates, template), _feedback(store), dropped))
    rows, disagreement = _distinct(examples, dropped)
    if len(rows) < AT_LEAST:
        raise DatasetError(_too_few(task, len(exchanges), len(rows), dropped))
    card = _card(task, template, exchanges, rows, dropped, disagreement)
    return _write(store, task, template, rows, card, folder)


def most_used(templates: Sequence[PromptTemplate], exchanges: Iterable[Exchange]) -> PromptTemplate:
    """The version that most of the newest exchanges were made with."""
    recent = list(exchanges)[-1000:]
    uses = Counter(exchange.task_version for exchange in recent)
    return max(templates, key=lambda template: (uses[template.version], template.version))


def _newest_first(templates: Sequence[PromptTemplate], first: PromptTemplate) -> list[PromptTemplate]:
    return [first, *sorted((t for t in templates if t is not first), key=lambda t: -t.version)]


def _feedback(store: SqliteStore) -> dict[str, dict[str, Any]]:
    """The newest feedback on each exchange."""
    return {row["exchange_id"]: row for row in store.rows("feedback")}


def _examples(
    exchanges: Iterable[Exchange],
    templates: Sequence[PromptTemplate],
    feedback: dict[str, dict[str, Any]],
    dropped: Counter[str],
) -> Iterable[Example]:
    for exchange in exchanges:
        found = _example(exchange, templates, feedback.get(exchange.id))
        if isinstance(found, str):
            dropped[found] += 1
        else:
            yield found


def _example(
    exchange: Exchange, templates: Sequence[PromptTemplate], feedback: dict[str, Any] | None
) -> Example | str:
    """The example, or the reason why there is none."""
    if exchange.stripped:
        return "answered by a candidate"
    if not exchange.complete or exchange.truncated:
        return "incomplete"
    if exchange.status is None or not 200 <= exchange.status < 300:
        return "error status"
    body = decoded(exchange.request, exchange.request_headers.get("content-encoding"))
    request = read_chat(body) if body else None
    inputs = next((i for t in templates if (i := t.strip(request)) is not None), None) if request else None
    if inputs is None:
        return "does not match the template"
    corrected = feedback and (feedback["corrected_output"] or feedback["label"])
    if corrected:
        return Example(exchange=exchange, inputs=inputs, output=corrected, rank=2)
    if feedback and feedback["score"] is not None and feedback["score"] < 0:
        return "negative feedback"
    output = _output(exchange)
    if output is None or output[1]:
        return output[1] if output else "unreadable answer"
    return Example(exchange=exchange, inputs=inputs, output=output[0], rank=1 if feedback else 0)


def _output(exchange: Exchange) -> tuple[str, str] | None:
    """(text, "") or ("", reason)."""
    plain = decoded(exchange.response, exchange.response_headers.get("content-encoding"))
    answer = read_answer(plain, streamed=exchange.streamed) if plain else None
    if answer is None:
        return None
    if answer.tool_calls:
        return "", "tool calls"
    if answer.finish_reason != "stop":
        return "", "not finished"
    if answer.refusal or _REFUSAL.search(answer.text[:240]):
        return "", "refusal"
    if not answer.text.strip():
        return "", "empty answer"
    return answer.text, ""


def _distinct(examples: Sequence[Example], dropped: Counter[str]) -> tuple[list[Row], float]:
    """One row for each input. Corrected answers win over approved over plain ones, then the majority, then the
    newest. Also the share of repeated inputs whose answers differ: an estimate of the teacher's noise."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.inputs.text].append(example)
    repeated = [group for group in groups.values() if len(group) > 1]
    differing = sum(len({example.output for example in group}) > 1 for group in repeated)
    dropped["duplicate input"] += len(examples) - len(groups)
    rows = [_row(_winner(group)) for group in groups.values()]
    return sorted(rows, key=lambda row: row.exchange_id), differing / len(repeated) if repeated else 0.0


def _winner(group: Sequence[Example]) -> Example:
    best = max(example.rank for example in group)
    ranked = [example for example in group if example.rank == best]
    votes = Counter(example.output for example in ranked)
    return max(ranked, key=lambda example: (votes[example.output], example.exchange.id))


def _row(example: Example) -> Row:
    text = example.inputs.text
    return Row(
        exchange_id=example.exchange.id,
        text=text,
        messages=example.inputs.messages,
        output=example.output,
        split=split_of(text),
    )


def split_of(text: str) -> Split:
    """The side on which an input is, for ever: a hash of the input alone decides."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
    return "train" if number % 100 < TRAIN_SHARE else "validation"


def _too_few(task: str, recorded: int, rows: int, dropped: Counter[str]) -> str:
    lost = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common() if count) or "nothing dropped"
    return (
        f"task {task}: {rows} usable rows, and at least {AT_LEAST} are needed; of {recorded} recorded exchanges: "
        f"{lost}. Send more traffic through the gateway, 100 good rows are a start"
    )


def kind_of(outputs: Sequence[str]) -> str:
    """`classification` (a closed set of answers), `extraction` (JSON objects) or `generation`."""
    counts = Counter(outputs)
    repeated = sum(count for count in counts.values() if count > 1)
    if repeated >= len(outputs) / 2 and max(map(len, counts)) <= 200:
        return "classification"
    return "extraction" if all(map(_is_json_object, outputs)) else "generation"


def _is_json_object(output: str) -> bool:
    try:
        return isinstance(json.loads(output), dict)
    except (ValueError, RecursionError):
        return False


def _card(
    task: str,
    template: PromptTemplate,
    exchanges: Sequence[Exchange],
    rows: Sequence[Row],
    dropped: Counter[str],
    disagreement: float,
) -> dict[str, Any]:
    outputs = [row.output for row in rows]
    kind = kind_of(outputs)
    balance = dict(Counter(outputs).most_common()) if kind == "classification" else {}
    sides = Counter(row.split for row in rows)
    tokens = [exchange.input_tokens for exchange in exchanges if exchange.input_tokens and not exchange.stripped]
    return {
        "task": task,
        "template": template.name,
        "kind": kind,
        "teachers": dict(
            Counter(e.model_served for e in exchanges if e.model_served and not e.stripped).most_common(5)
        ),
        "recorded": len(exchanges),
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "rows": len(rows),
        "train": sides["train"],
        "validation": sides["validation"],
        "inputs_on_both_sides": len(_inputs(rows, "train") & _inputs(rows, "validation")),
        "answers_differ_on_repeated_inputs": round(disagreement, 4),
        "input_tokens_before_mean": round(sum(tokens) / len(tokens), 1) if tokens else None,
        "input_tokens_after_mean": round(sum(len(row.text) for row in rows) / len(rows) / 4, 1),
        "labels": len(balance),
        "balance": balance,
        "samples": [{"input": row.text, "output": row.output} for row in rows[:5]],
    }


def _inputs(rows: Sequence[Row], side: Split) -> set[str]:
    return {row.text for row in rows if row.split == side}


def _write(
    store: SqliteStore, task: str, template: PromptTemplate, rows: list[Row], card: dict[str, Any], folder: Path
) -> Dataset:
    parts = {side: b"".join(_line(row) for row in rows if row.split == side) for side in ("train", "validation")}
    digest = hashlib.sha256(parts["train"] + b"\0" + parts["validation"]).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", task)
    dataset_id = f"{name}-{digest[:12]}"
    place = folder / name / dataset_id
    card = card | {"id": dataset_id, "sha256": {k: hashlib.sha256(v).hexdigest() for k, v in parts.items()}}
    place.mkdir(parents=True, exist_ok=True)
    for side, data in parts.items():
        _write_whole(place / f"{side}.jsonl", data)
    _write_whole(place / "rows.jsonl", b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    _write_whole(place / "card.md", card_text(card).encode())
    _write_whole(place / "card.json", json.dumps(card, indent=1, ensure_ascii=False).encode())
    dataset = Dataset(
        id=dataset_id, task=task, template=template.name, rows=rows, directory=str(place), digest=digest, card=card
    )
    with store.transaction():
        store.set_kind(task, card["kind"])
        store.add_dataset(dataset)
    return dataset


def _line(row: Row) -> bytes:
    """One example in OpenAI's chat format for supervised fine-tuning."""
    messages = [*row.messages, {"role": "assistant", "content": row.output}]
    return json.dumps({"messages": messages}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def load(store: SqliteStore, dataset_id: str) -> Dataset:
    """A dataset that was built before, from its files.

    Raises:
        DatasetError: it is not there any more.
    """
    found = store.rows("datasets", "id = ?", [dataset_id])
    if not found:
        raise DatasetError(f"no dataset {dataset_id}; build it with 'unprompt dataset TASK'")
    row = found[0]
    try:
        lines = (Path(row["directory"]) / "rows.jsonl").read_bytes().splitlines()
    except OSError as error:
        raise DatasetError(f"dataset {dataset_id}: {error}; build it again with 'unprompt dataset TASK'") from error
    return Dataset(
        id=row["id"],
        task=row["task"],
        template=row["template"],
        rows=[msgspec.json.decode(line, type=Row) for line in lines],
        directory=row["directory"],
        digest=row["digest"],
        card=json.loads(row["card"]),
    )


def card_text(card: dict[str, Any]) -> str:
    """The card for people, in Markdown."""
    lines = [
        f"# Dataset {card['id']}",
        "",
        f"Task {card['task']} ({card['kind']}), template {card['template']}.",
        "",
    ]
    lines += ["| funnel | rows |", "|---|---|", f"| recorded exchanges | {card['recorded']} |"]
    lines += [f"| dropped: {reason} | -{count} |" for reason, count in card["dropped"].items()]
    lines += [f"| rows | {card['rows']} |", f"| train / validation | {card['train']} / {card['validation']} |", ""]
    before, after = card["input_tokens_before_mean"], card["input_tokens_after_mean"]
    lines.append(
        f"Input tokens of a request, mean: {before} before, about {after} after the strip (4 characters each)."
    )
    differing = card["answers_differ_on_repeated_inputs"]
    lines += [f"Repeated inputs whose answers differ: {differing:.1%}."]
    lines += [f"Inputs on both sides of the split: {card['inputs_on_both_sides']}.", ""]
    if card["balance"]:
        lines += [
            "| answer | rows |",
            "|---|---|",
            *(f"| {_cell(a)} | {n} |" for a, n in card["balance"].items()),
            "",
        ]
    lines += ["| sample input | answer |", "|---|---|"]
    lines += [f"| {_cell(sample['input'])} | {_cell(sample['output'])} |" for sample in card["samples"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 120 else flat[:117] + "..."


def _write_whole(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
