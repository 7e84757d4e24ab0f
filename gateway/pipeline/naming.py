"""Names for tasks and slots, from the prompt's own words and the labels in front of the slots."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterator, Sequence

import msgspec

from gateway.domain.pattern import Slot, TextPattern, is_json, is_kind, kind_of, several_sentences
from gateway.domain.template import MessagePattern, PromptTemplate
from gateway.pipeline.alignment import COMMON
from gateway.pipeline.quoting import weighed

_SKIPPED = COMMON | {
    *(
        "following",
        "given",
        "below",
        "above",
        "please",
        "task",
        "should",
        "must",
        "will",
        "would",
        "can",
        "may",
    ),
    *("using", "use", "each", "every", "any", "some", "all", "one", "their", "its", "his", "her", "they"),
    *("only", "also", "very", "into", "than", "then", "there", "here", "does", "yes", "who", "which", "what"),
    *("when", "where", "how", "assistant", "helpful", "expert", "provided", "act", "role", "based", "user"),
}
_LABEL = re.compile(r"([A-Za-z][A-Za-z0-9 _-]{0,30}?)\s*[\"'`*)\]]*\s*[:=]\s*[\"'`*\[(]*\s*$")
_TAG = re.compile(r"<([A-Za-z][A-Za-z0-9_-]{0,30})(?:\s[^<>]{0,60})?>\s*$")
_HEADING = re.compile(r"(?:^|\n)\s*(?:#+|\*\*|\[)\s*([A-Za-z][A-Za-z0-9 _-]{0,30}?)\s*[:*#\]]*\s*$")
_SOME = 5
_MORE = 8
_MANY = 12
_CHOICES_AFTER = 16


def slug(template: PromptTemplate, taken: Collection[str]) -> str:
    """A short readable task name from the prompt's first telling words, unlike all that are taken."""
    texts = [field.literals for pattern in reversed(template.patterns) for field in pattern.fields]
    best: list[str] = []
    for literals in texts:
        chosen: list[str] = []
        for word in re.findall(r"[A-Za-z]{3,20}", " ".join(literals)[:2000]):
            low = word.lower()
            if low not in _SKIPPED and low not in chosen:
                chosen.append(low)
            if len(chosen) == 3:
                break
        if len(chosen) > len(best):
            best = chosen
    name = "-".join(best) or "task"
    return unique(name, taken)


def unique(name: str, taken: Collection[str]) -> str:
    """The name, with a number behind it where it is taken."""
    number, tried = 2, name
    while tried in taken:
        tried, number = f"{name}-{number}", number + 1
    return tried


def finish(template: PromptTemplate, rows: Sequence[tuple[str, ...]]) -> PromptTemplate:
    """The template with its slots named, and what their values never went beyond written down."""
    taken: set[str] = set()
    columns = iter(zip(*rows, strict=True))
    head = tuple(_finish_message(pattern, columns, taken) for pattern in template.head)
    tail = tuple(_finish_message(pattern, columns, taken) for pattern in template.tail)
    return msgspec.structs.replace(template, head=head, tail=tail)


def _finish_message(pattern: MessagePattern, columns: Iterator[tuple[str, ...]], taken: set[str]) -> MessagePattern:
    fields = []
    for bare in pattern.fields:
        texts = next(columns)
        field = weighed(bare, texts)
        cuts = [cut for text in texts if (cut := field.cut(text)) is not None]
        slots = []
        for i, (slot, values) in enumerate(zip(field.slots, zip(*cuts, strict=True), strict=True)):
            name = unique(slot_name(field.literals[i], slot), taken)
            taken.add(name)
            slots.append(msgspec.structs.replace(bounded(Slot(name, slot.kind), values), usual=slot.usual))
        fields.append(TextPattern(field.literals, tuple(slots)))
    return MessagePattern(pattern.header, tuple(fields))


def slot_name(before: str, slot: Slot) -> str:
    """What the text in front of a slot calls it (a label, a tag, a heading), else `input`."""
    if slot.kind == "part":
        return "part"
    for shape in (_TAG, _LABEL, _HEADING):
        found = shape.search(before[-120:])
        if found:
            name = "_".join(found[1].lower().replace("-", " ").split()[-3:])
            if name:
                return name
    return "input"


def bounded(slot: Slot, values: Sequence[str]) -> Slot:
    """The slot with its kind, and what its values never went beyond.

    Each rule is broken by fewer than one in a thousand of the values that come later (measured on other people's
    prompts): what breaks it is more likely an instruction that was written next to the slot.
    """
    if slot.kind == "part":
        return slot
    kinds = {kind_of(value) for value in values if value}
    if len(kinds) == 1 and "text" not in kinds:
        return Slot(slot.name, kinds.pop())
    distinct = sorted(set(values))
    few = len(values) >= _CHOICES_AFTER and len(distinct) <= max(2, len(values) // 8)
    closed = few and sum(map(len, distinct)) >= 20 * len(distinct)
    some, more, many = (len(values) >= least for least in (_SOME, _MORE, _MANY))
    return Slot(
        slot.name,
        slot.kind if slot.kind != "text" else _kind(distinct, some=some, few=few),
        length_limit(values),
        lone_line=more and not any("\n" in value for value in distinct),
        choices=tuple(distinct) if closed else (),
        sentence_limit=max(map(len, distinct)) if many and not any(map(several_sentences, distinct)) else 0,
        single_word=some and not any(len(value.split(None, 1)) > 1 for value in distinct),
    )


def _kind(distinct: Sequence[str], *, some: bool, few: bool) -> str:
    """The narrowest kind that all values are of."""
    there = [value for value in distinct if value]
    if some and there:
        if all(is_kind("number", value) for value in there):
            return "number"
        if all(is_kind("json", value) and is_json(value) for value in there):
            return "json"
    if few:
        return "choice"
    return "list" if some and there and all(is_kind("list", value) for value in there) else "text"


def length_limit(values: Sequence[str]) -> int:
    """Characters beyond which a value is unlike these.

    Lengths of texts are spread as their logarithms are: five standard deviations above the mean, but never less
    than four times the longest. From few values no spread can be told: eight times the longest. (With twice the
    longest, the limit was the one rule to refuse 7 of 11,654 unchanged requests, and none of 734 changed ones.)
    """
    longest = max(map(len, values))
    if len(values) < _MORE:
        return 8 * longest + 400
    logs = [math.log(len(value) + 10) for value in values]
    deviation = max(0.25, statistics.pstdev(logs))
    return max(4 * longest + 120, math.ceil(math.exp(statistics.fmean(logs) + 5 * deviation)))
