"""A dataset's card: where its rows came from, what was dropped and why, and what they look like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gateway.domain.dataset import Row, Split


def kind_of(outputs: Sequence[str]) -> str:
    """`classification` (a closed set of answers), `extraction` (JSON objects) or `generation`."""
    counts = Counter(outputs)
    repeated = sum(count for count in counts.values() if count > 1)
    if repeated >= len(outputs) / 2 and max(map(len, counts), default=0) <= 200:
        return "classification"
    return "extraction" if all(map(_is_json_object, outputs)) else "generation"


def _is_json_object(output: str) -> bool:
    try:
        return isinstance(json.loads(output), dict)
    except (ValueError, RecursionError):
        return False


def card(
    rows: Sequence[Row], beyond: Sequence[Row], dropped: Counter[str], recorded: int, disagreement: float,
    tokens: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """The figures of a card. `recorded` exchanges are the rows and what was dropped, each counted once; `tokens`
    are the input tokens of recent whole requests."""
    outputs = [row.output for row in rows]
    kind = kind_of(outputs)
    balance = dict(Counter(outputs).most_common()) if kind == "classification" else {}
    sides = Counter(row.split for row in rows)
    return {
        "kind": kind,
        "recorded": recorded,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "rows": len(rows),
        "train": sides["train"],
        "validation": sides["validation"],
        "held_out_beyond": len(beyond),
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


def card_text(card: dict[str, Any]) -> str:
    """The card for people, in Markdown."""
    teacher = card["teacher"]["target"]
    lines = [
        f"# Dataset {card['id']}",
        "",
        f"Task {card['task']} ({card['kind']}), template {card['template']}, answers of {teacher}.",
        "",
    ]
    lines += ["| funnel | rows |", "|---|---|", f"| recorded exchanges | {card['recorded']} |"]
    lines += [f"| dropped: {reason} | -{count} |" for reason, count in card["dropped"].items()]
    lines += [f"| rows | {card['rows']} |", f"| train / validation | {card['train']} / {card['validation']} |", ""]
    before, after = card["input_tokens_before_mean"], card["input_tokens_after_mean"]
    lines.append(
        f"Input tokens of a request, mean: {before} before, about {after} after the strip (4 characters each)."
    )
    lines.append(f"Repeated inputs whose answers differ: {card['answers_differ_on_repeated_inputs']:.1%}.")
    lines.append(f"Inputs on both sides of the split: {card['inputs_on_both_sides']}.")
    lines += [f"Held-out inputs that a candidate must leave to the incumbent: {card['held_out_beyond']}.", ""]
    if card["balance"]:
        lines += ["| answer | rows |", "|---|---|"]
        lines += [f"| {_cell(answer)} | {count} |" for answer, count in card["balance"].items()]
        lines.append("")
    lines += ["| sample input | answer |", "|---|---|"]
    lines += [f"| {_cell(sample['input'])} | {_cell(sample['output'])} |" for sample in card["samples"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 120 else flat[:117] + "..."
