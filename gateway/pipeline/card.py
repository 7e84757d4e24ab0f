"""A dataset's card: where its rows came from, what was dropped and why, and what they look like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.domain.dataset import Row
from gateway.pipeline.choosing import Chosen
from gateway.pipeline.parts import Found
from gateway.pipeline.token_counts import Tokenizer
from gateway.pipeline.tool_calls import of_row, shown

LABEL_CHARS = 200
SAMPLES = 5
COUNTED = 1000
"""Tokens are counted of so many rows at most, evenly spaced."""
FEW_TEXTS = 0.1
"""Where no larger share of the rows are texts, the task is to call tools, whatever the texts are."""


def kind_of(outputs: Sequence[str]) -> str:
    """What texts are: `classification` (a closed set of answers), `extraction` (JSON objects) or `generation`."""
    counts = Counter(outputs)
    repeated = sum(count for count in counts.values() if count > 1)
    longest, objects = max(map(len, counts), default=0), all(map(_is_json_object, outputs))
    return _kind(repeated, len(counts), len(outputs), longest, objects)


def _kind(repeated: int, different: int, outputs: int, longest: int, objects: bool) -> str:
    """Of JSON objects many are alike where texts often hold nothing to extract: they must be few to be labels."""
    closed = different <= outputs / 10 if objects else repeated >= outputs / 2
    if closed and longest <= LABEL_CHARS:
        return "classification"
    return "extraction" if objects else "generation"


def _is_json_object(output: str) -> bool:
    try:
        return isinstance(json.loads(output), dict)
    except (ValueError, RecursionError):
        return False


def card(
    found: Found, chosen: Chosen, rows: Sequence[Row], calls: Sequence[Row], tokenizer: Tokenizer | None = None
) -> dict[str, Any]:
    """The figures of a card; `rows` are those whose answer is a text, `calls` those that call tools. `recorded`
    exchanges are all rows and what was dropped, each counted once. `tokenizer` counts what the strip leaves."""
    counts, noise = chosen.counts, chosen.settled.noise
    places = chosen.places[~found.columns.calls[chosen.places]]
    _, first, often = np.unique(found.columns.answers[places], return_index=True, return_counts=True)
    longest = int(found.sizes[places].max(initial=0))
    kind = _kind(int(often[often > 1].sum()), len(often), len(places), longest, bool(found.objects[places].all()))
    kind = "tools" if calls and len(rows) <= FEW_TEXTS * len(chosen.places) else kind
    balance = _balance(rows, first, often) if kind == "classification" else {}
    return {
        "kind": kind,
        "recorded": chosen.recorded,
        "dropped": dict(sorted(chosen.dropped.items())),
        "rows": len(chosen.places),
        **{part: counts[part] for part in ("train", "validation", "confirmation")},
        "calls": dict(Counter(row.split for row in calls)),
        "called": dict(Counter(call["function"]["name"] for row in calls for call in row.tool_calls).most_common()),
        "held_out_beyond": len(chosen.beyond_parts),
        "on_both_sides": chosen.leaks,
        "pairs_not_compared": chosen.settled.uncompared,
        "answers_differ_on_repeated_inputs": _share(noise.differing, noise.repeated),
        "answers_outvoted_on_repeated_inputs": _share(noise.outvoted, noise.answers),
        "asked_twice": noise.twice,
        "asked_twice_alike": noise.alike,
        "scrubbed": dict(sorted(found.scrubbed.items())),
        "examples_scrubbed": sum(head.rows_scrubbed for head in found.heads),
        **_tokens(found, chosen, rows or calls, tokenizer),
        "labels": len(balance),
        "balance": balance,
        "samples": [{"input": row.text, "output": shown(of_row(row))} for row in _samples(rows, calls)],
    }


def _samples(rows: Sequence[Row], calls: Sequence[Row]) -> list[Row]:
    """The first ones, of texts and calls alike where there are both."""
    texts = max(SAMPLES - len(calls), (SAMPLES + 1) // 2)
    first = [*rows[:texts]]
    return [*first, *calls[: SAMPLES - len(first)]]


def _balance(rows: Sequence[Row], first: Any, often: Any) -> dict[str, int]:
    """How many rows each answer has, most first, then in the order of the rows."""
    order = np.lexsort((first, -often))
    return {rows[int(first[n])].output: int(often[n]) for n in order}


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _tokens(found: Found, chosen: Chosen, rows: Sequence[Row], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Tokens of a request, mean: as upstreams counted them before the strip, and how many are left, as `tokenizer`
    counts them on some rows; without one an estimate: a token is taken to be as long as in the task's own requests,
    which were counted; else 4 characters."""
    asked = sum(head.asked for head in found.heads)
    tokens = sum(head.asked_tokens for head in found.heads)
    characters = sum(head.asked_characters for head in found.heads)
    length = characters / tokens if tokens and characters else 4.0
    mean = float(found.lengths[chosen.places].mean()) if len(chosen.places) else 0.0
    left = mean / length
    if tokenizer and rows:
        some = [rows[n].text for n in range(0, len(rows), -(-len(rows) // COUNTED))]
        counted = sum(tokenizer.counts(some))
        length = sum(map(len, some)) / counted if counted else length
        left = counted / len(some)
    return {
        "input_tokens_before_mean": round(tokens / asked, 1) if asked else None,
        "input_tokens_after_mean": round(left, 1),
        "characters_per_token": round(length, 2),
        "input_tokens_after_is": f"counted by {tokenizer.name}" if tokenizer and rows else "estimate",
    }


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
    parts = f"{card['train']} / {card['validation']} / {card['confirmation']}"
    lines += [f"| rows | {card['rows']} |", f"| train / validation / confirmation | {parts} |", ""]
    lines += [*_sentences(card), ""]
    if card["balance"]:
        lines += ["| answer | rows |", "|---|---|"]
        lines += [f"| {_cell(answer)} | {count} |" for answer, count in card["balance"].items()]
        lines.append("")
    lines += ["| sample input | answer |", "|---|---|"]
    lines += [f"| {_cell(sample['input'])} | {_cell(sample['output'])} |" for sample in card["samples"]]
    lines += ["", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| {name}.jsonl | {value} |" for name, value in card["sha256"].items()]
    return "\n".join(lines) + "\n"


def _sentences(card: dict[str, Any]) -> list[str]:
    before, after, length = (
        card[key] for key in ("input_tokens_before_mean", "input_tokens_after_mean", "characters_per_token")
    )
    both = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in card["on_both_sides"].items())
    masked = ", ".join(f"{count} {kind}" for kind, count in card["scrubbed"].items()) or "nothing found"
    done = {"off": "off", "mask": f"masked: {masked}", "drop": "examples with any dropped"}[card["scrub"]]
    return [
        f"Input tokens of a request, mean: {before} before, as upstreams counted them, and {after} after the strip:"
        f" {card['input_tokens_after_is']} ({length} characters each).",
        f"Repeated inputs whose answers differ: {card['answers_differ_on_repeated_inputs']:.1%};"
        f" answers that the others outvote: {card['answers_outvoted_on_repeated_inputs']:.1%}.",
        f"On both sides of the split: {both}.",
        f"Personal data and secrets: {done}.",
        f"Whether the terms of {card['teacher']['target']} let models be trained on its answers:"
        f" {card['train_on_outputs']}.",
        "Held-out inputs whose answer cannot be learnt (refusals, calls of undeclared tools):"
        f" {card['held_out_beyond']}.",
        *_calls(card),
    ]


def _calls(card: dict[str, Any]) -> list[str]:
    """What the rows have of tools."""
    if not card.get("tools"):
        return []
    counts = ", ".join(f"{count} {part}" for part, count in card["calls"].items()) or "none"
    names = ", ".join(f"{name} {count}" for name, count in card["called"].items())
    of_each = f" (calls of each: {names})" if names else ""
    return [
        f"Every row declares {card['tools']} tools; rows that call one, which chat models alone learn:"
        f" {counts}{of_each}."
    ]


def _cell(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= 120 else flat[:117] + "..."
