"""The page of `unprompt tasks show`: one task, for a person to read; slots in colour where there is any."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.text import Text

from gateway import tables
from gateway.domain import layout
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.figures import duration, figure, share
from gateway.pipeline.decisions import ACTIONS, Flip
from gateway.pipeline.differences import Piece, shorten
from gateway.pipeline.explain import RECENT, Explanation, Tokens, VersionFacts, heading
from gateway.pipeline.revise import Revision
from gateway.pipeline.serving import serves

_SLOT = "bold cyan"
_PIECES = {"same": "", "skipped": "dim", "gone": "red", "new": "green"}
_MOST_TURNS = 6
_MOST_DAYS = 14
_FIXED_CHARS = 160
_VALUE_CHARS = 600
_CELL_CHARS = 72


def show(found: Explanation, console: Console) -> None:
    """Print the page."""
    for part in _page(found, console.is_terminal):
        console.print(part, soft_wrap=isinstance(part, Text))


def _page(found: Explanation, colour: bool) -> Iterator[RenderableType]:
    yield _title(found)
    yield from _section(
        "Prompt", f"{found.template.fixed_words:,} fixed words go when a request is stripped; slots stay"
    )
    yield from _prompt(found.template)
    if found.template.bucket:
        yield _role("a request must have just these settings, too")
        yield Text(
            json.dumps(found.settings, indent=1, ensure_ascii=False) if found.settings else "(none recorded)"
        )
    yield _slots(found)
    if found.example is not None:
        yield from _section("Example", f"exchange {found.example.exchange_id}")
        yield from _filled(found.template, found.example.inputs, colour)
        yield _role("stripped, it goes out as")
        yield Text("\n").join(_turn(message) for message in found.example.stripped)
    if found.tokens is not None:
        yield Text(f"\nInput tokens of a request: {_tokens(found.tokens)}")
    if found.row["saved_by_day"]:
        yield _saved(found.row["saved_by_day"][-_MOST_DAYS:])
    yield _versions(found)
    yield from _changes(found.versions, colour)
    yield _non_matches(found)


def _title(found: Explanation) -> Text:
    row = found.row
    facts = ["pinned"] if row["pinned"] else []
    facts += [
        row["kind"] or "kind not known yet",
        f"{row['exchanges']:,} requests",
        f"{row['stripped']:,} stripped",
    ]
    if found.match_rate is not None:
        facts.append(f"{share(found.match_rate)} of the last {RECENT:,} match")
    if row["saved_usd"] is not None:
        facts.append(f"{row['saved_usd']:,.2f} USD and {duration(row['saved_seconds'])} saved")
    alarm = [(f"\nALARM: {row['alarm']}", "bold red")] if row["alarm"] else []
    return Text.assemble((found.template.name, "bold"), f"  {', '.join(facts)}\n{_now(row)}", *alarm)


def _now(row: dict[str, Any]) -> str:
    """Who serves the task, and what is next."""
    return "\n".join(filter(None, (serves(row), row["next"] and f"next: {row['next']}")))


def _section(title: str, remark: str) -> Iterator[RenderableType]:
    yield Text.assemble("\n", (title, "bold"), f"  {remark}")


def _role(role: str) -> Rule:
    return Rule(Text(role, "dim"), align="left", style="dim")


# --- the prompt, and a request --------------------------------------------------------------------------


def _prompt(template: PromptTemplate) -> Iterator[RenderableType]:
    for pattern in template.head:
        yield from _pattern(pattern)
    if template.turns:
        inside = ", the user's without the last message's fixed text" if template.wraps else ""
        yield _role(f"turns of the conversation: they stay{inside}")
    for pattern in template.tail:
        yield from _pattern(pattern)


def _pattern(pattern: MessagePattern) -> Iterator[RenderableType]:
    yield _role(heading(pattern))
    for field in pattern.fields:
        names = [("{{" + slot.name + "}}", _SLOT) for slot in field.slots]
        yield _joined(field.literals, [Text(*name) for name in names])


def _joined(literals: Sequence[str], values: Sequence[Text]) -> Text:
    text = Text(literals[0])
    for value, literal in zip(values, literals[1:], strict=True):
        text.append_text(value).append(literal)
    return text


def _filled(template: PromptTemplate, inputs: Inputs, colour: bool) -> Iterator[RenderableType]:
    """The request: its fixed text shortened, its values whole unless they are very long. Without colour they are
    in the marks of their slots."""
    values = iter(inputs.values)
    for i, pattern in enumerate(template.patterns):
        if i == len(template.head):
            yield from _turns(inputs)
        yield _role(heading(pattern))
        for field in pattern.fields:
            yield _filled_field(field, [next(values) for _ in field.slots], colour)
    if len(template.patterns) == len(template.head):
        yield from _turns(inputs)


def _filled_field(field: TextPattern, values: Sequence[str], colour: bool) -> Text:
    fixed = [shorten(literal, _FIXED_CHARS) for literal in field.literals]
    shown = [shorten(value, _VALUE_CHARS) for value in values]
    return _joined(fixed, [Text(value if colour else "{{" + value + "}}", _SLOT) for value in shown])


def _turns(inputs: Inputs) -> Iterator[RenderableType]:
    if inputs.turns:
        yield _role(f"turns of the conversation: {len(inputs.turns)}")
        yield from (_turn(turn) for turn in inputs.turns[:_MOST_TURNS])
        if len(inputs.turns) > _MOST_TURNS:
            yield Text(f"… and {len(inputs.turns) - _MOST_TURNS} more")


def _turn(message: dict[str, object]) -> Text:
    content = message.get("content")
    said = content if isinstance(content, str) else layout.canonical(content)
    return Text.assemble((f"{message.get('role')}: ", "dim"), (shorten(said, _VALUE_CHARS), _SLOT))


# --- tables ---------------------------------------------------------------------------------------------


def _slots(found: Explanation) -> RenderableType:
    if not found.slots:
        return Text("\nNo slots: " + ("only the turns stay." if found.template.turns else "nothing stays."))
    title = f"Slots (what the newest {found.sampled:,} requests hold)"
    return tables.table(f"\n{title}", ("slot", "different", "holds", "example"), [
        (facts.slot.name, f"{facts.different:,}", holds(facts.slot),
         "-" if facts.example is None else _cell(facts.example))
        for facts in found.slots
    ])  # fmt: skip


def holds(slot: Slot) -> str:
    """What a slot's value may be, in words."""
    rules: list[str] = [slot.kind]
    if slot.single_line:
        rules.append("one line")
    if slot.lone_line:
        rules.append("no line beside a line")
    if slot.limit:
        rules.append(f"at most {slot.limit:,} characters")
    if slot.choices:
        rules.append("one of " + " | ".join(shorten(choice, 40) for choice in slot.choices))
    plain = Slot(slot.name)
    known = ("name", "kind", "single_line", "lone_line", "limit", "choices")
    more = [name for name in slot.__struct_fields__ if name not in known]
    rules += [f"{name}: {getattr(slot, name)}" for name in more if getattr(slot, name) != getattr(plain, name)]
    return ", ".join(rules)


def _cell(value: str) -> str:
    return shorten(value.replace("\n", "↵"), _CELL_CHARS) or "(empty)"


def _tokens(tokens: Tokens) -> str:
    less = 1 - tokens.stripped / tokens.whole if tokens.whole else 0.0
    whole = f"{tokens.whole:,.0f}" if tokens.whole_counted else f"about {tokens.whole:,.0f} (4 characters a token)"
    stripped = f"{tokens.stripped:,.0f}" if tokens.stripped_counted else f"about {tokens.stripped:,.0f}"
    how = "" if tokens.stripped_counted else "; estimated from the characters"
    return f"{whole} whole, {stripped} stripped ({less:.0%} less{how})"


def _saved(days: Sequence[dict[str, Any]]) -> RenderableType:
    title = "Saved a day, beside what the whole prompt would have cost (UTC; net of audits and shadows)"
    return tables.table(f"\n{title}", ("day", "stripped", "saved USD", "saved time", "audits USD"), [
        (f"{datetime.fromtimestamp(one['day'], UTC):%Y-%m-%d}", f"{one['stripped']:,}",
         figure(one["usd"], "{:,.4f}"), duration(one["seconds"]), figure(one["overhead_usd"], "{:,.4f}"))
        for one in days
    ])  # fmt: skip


def _versions(found: Explanation) -> RenderableType:
    columns = ("version", "since", "by", "state", "fixed words", "requests", "share")
    return tables.table(f"\nVersions (requests: of the task's last {RECENT:,})", columns, [
        (f"@{one.template.version}", time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created_at)),
         "hand" if one.edited else "inference", one.state, f"{one.template.fixed_words:,}", f"{one.requests:,}",
         share(one.share))
        for one in found.versions
    ])  # fmt: skip


def _changes(versions: Sequence[VersionFacts], colour: bool) -> Iterator[RenderableType]:
    for before, after in pairwise(versions):
        remark = f"{before.template.name} -> {after.template.name}"
        if not after.changes:
            yield from _section("Changes", f"{remark}: none in the texts")
            continue
        yield from _section("Changes", f"{remark}{'' if colour else ', [-gone-] {+new+}'}")
        yield changed_lines(after.changes, colour)


def changed_lines(lines: Iterable[Sequence[Piece]], colour: bool) -> Text:
    """What changed: in red and green, or as `[-gone-]` and `{+new+}` where there is no colour."""
    around = {"gone": ("[-", "-]"), "new": ("{+", "+}")} if not colour else {}
    text = Text()
    for number, line in enumerate(lines):
        text.append("\n" if number else "")
        for piece in line:
            before, after = around.get(piece.kind, ("", ""))
            text.append(before + piece.text + after, _PIECES[piece.kind])
    return text


def _non_matches(found: Explanation) -> RenderableType:
    if not found.non_matches:
        return Text("\nNo recent request nearly matched and did not.")
    title = f"\nNear misses among the last {RECENT:,}: they go whole"
    return tables.table(title, ("reason", "requests", "example"), [
        (one.code, f"{one.count:,}", f"{one.sentence} ({one.exchange_id})") for one in found.non_matches
    ])  # fmt: skip


# --- what was decided -----------------------------------------------------------------------------------


def show_decisions(found: Iterable[Flip], console: Console) -> None:
    """Print each decision and flip with the whole record, the newest last."""
    for flip in reversed(list(found)):
        when = f"{datetime.fromtimestamp(flip.at, UTC):%Y-%m-%d %H:%M} UTC"
        what = " ".join(filter(None, (ACTIONS.get(flip.action, flip.action), flip.target)))
        said = (("\n" + when, "dim"), "  ", (what, "bold"), f"\n{flip.reason}")
        console.print(Text.assemble(*said), soft_wrap=True)
        if flip.decision is not None:
            console.print(tables.decision(flip.decision, title=""))
            console.print(tables.remarks(flip.decision), markup=False, highlight=False)


# --- what an import changes -----------------------------------------------------------------------------


def show_revision(revision: Revision, console: Console) -> None:
    """Print what a template that a person wrote would change."""
    name, before = revision.template.name, revision.before
    heading = name if revision.is_new else f"{name}: the template is as it was"
    place = f"  takes the place of {before.name}" if before and revision.is_new else ""
    console.print(Text.assemble((heading, "bold"), f"{place}  ({revision.draft.document.name})"), soft_wrap=True)
    if before is not None:
        console.print(changed_lines(revision.changes, console.is_terminal), soft_wrap=True)
    for sentence in _effects(revision):
        console.print(Text(f"  {sentence}"), soft_wrap=True)


def _effects(revision: Revision) -> Iterator[str]:
    effect = revision.effect
    if not revision.is_new:
        return
    if revision.before is not None:
        yield f"of the last {effect.own:,} requests of {revision.before.name}, {effect.still:,} match it"
    yield f"of the last {effect.unexplained:,} requests without a task, {effect.found:,} match it"
    for task, count in sorted(effect.claimed.items()):
        yield f"CLAIMS requests like {count:,} of the last ones of {task}, from now on"
    if effect.ambiguous:
        yield f"{effect.ambiguous:,} could be cut in more than one way, and go whole"


def revision_as_json(revision: Revision) -> dict[str, object]:
    """The same values for programs."""
    return {
        "file": revision.draft.document.name,
        "template": revision.template.name,
        "replaces": revision.before.name if revision.before and revision.is_new else None,
        "is_new": revision.is_new,
        "pin": revision.draft.pin,
        "changes": [list(map(list, line)) for line in revision.changes],
        "effect": msgspec.to_builtins(revision.effect),
    }
