"""Which of many templates a live request belongs to; and, for people, why one does not match."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from gateway.domain import layout
from gateway.domain.layout import Layout, Unreadable
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate, TextPattern

MIN_FIXED_WORDS = 3
"""A template with less fixed text than this would claim requests by accident and is never matched."""

_TAILS = (32, 8, 0)
_Ranked = tuple[tuple[int, int, str], PromptTemplate]


class Match(NamedTuple):
    """A template and what it leaves of the request."""

    template: PromptTemplate
    inputs: Inputs


Code = Literal["unreadable", "tools", "messages", "literal", "ambiguous", "slot", "rebuild"]
CODES: tuple[Code, ...] = get_args(Code)
"""Why a request does not match a template, a closed list for metrics and tables.

`unreadable`: no chat request that can be taken apart. `tools`: other tools, tool choice or response format.
`messages`: other roles, a message more or less, another form of content. `literal`: other fixed text.
`ambiguous`: a value holds fixed text, so that there are several ways to cut. `slot`: a value unlike all that
were seen there. `rebuild`: what was cut does not make the request again (a safety net: this never happens).
"""


class Reason(NamedTuple):
    """Why a request does not match: one of `CODES`, and a sentence for people."""

    code: Code
    sentence: str


class TemplateIndex:
    """Finds the template of a request among many.

    Of several that match, the one with the most fixed text wins, then the latest version. A request is looked
    up by its bucket and message headers, then by binary search over the text that templates begin with.
    """

    def __init__(self, templates: Sequence[PromptTemplate]) -> None:
        groups: dict[tuple[object, ...], list[PromptTemplate]] = defaultdict(list)
        for template in templates:
            if template.fixed_words >= MIN_FIXED_WORDS:
                groups[_group_key(template)].append(template)
        self._groups = {key: _PrefixTree(members) for key, members in groups.items()}
        self._spans = sorted({(len(t.head), len(t.tail)) for t in templates if t.turns}, reverse=True)

    def match(self, body: dict[str, Any]) -> Match | None:
        """The template of this parsed JSON body and its inputs, or None."""
        try:
            seen = layout.read(body)
        except Unreadable:
            return None
        for template in self._candidates(seen):
            inputs = template.strip_layout(seen, body)
            if inputs is not None:
                return Match(template, inputs)
        return None

    def _candidates(self, seen: Layout) -> list[PromptTemplate]:
        found: list[_Ranked] = []
        group = self._groups.get((seen.bucket, seen.headers))
        if group is not None:
            found += group.candidates(seen.fields)
        count = len(seen.headers)
        for head, tail in self._spans:
            if head + tail <= count:
                key = (seen.bucket, seen.headers[:head], seen.headers[count - tail :])
                group = self._groups.get(key)
                if group is not None:
                    found += group.candidates(seen.fields[:head])
        found.sort(key=lambda pair: pair[0])
        return [template for _, template in found]


def _group_key(template: PromptTemplate) -> tuple[object, ...]:
    head = tuple(pattern.header for pattern in template.head)
    if not template.turns:
        return (template.bucket, head)
    return (template.bucket, head, tuple(pattern.header for pattern in template.tail))


class _PrefixTree:
    """Templates of equal headers, found by the text up to their first slot."""

    def __init__(self, templates: Sequence[PromptTemplate]) -> None:
        nodes: dict[str, list[PromptTemplate]] = defaultdict(list)
        for template in templates:
            nodes[_opening(template)].append(template)
        self._keys = sorted(nodes)
        self._nodes = [_by_ending(nodes[key]) for key in self._keys]
        self._parents: list[int] = []
        for i, key in enumerate(self._keys):
            parent = i - 1
            while parent >= 0 and not key.startswith(self._keys[parent]):
                parent = self._parents[parent]
            self._parents.append(parent)

    def candidates(self, fields: Sequence[tuple[str, ...]]) -> list[_Ranked]:
        # Every key that the text begins with is the closest smaller key or one of its parents: all strings
        # that sort between a prefix and the text begin with that prefix too.
        text = _joined(fields)
        last = fields[-1][-1] if fields and fields[-1] else ""
        found: list[_Ranked] = []
        i = bisect_right(self._keys, text) - 1
        while i >= 0:
            if text.startswith(self._keys[i]):
                node = self._nodes[i]
                for size in _TAILS:
                    found += node.get((size, last[len(last) - size :] if size <= len(last) else ""), ())
            i = self._parents[i]
        return found


def _joined(fields: Sequence[tuple[str, ...]]) -> str:
    if len(fields) == 1 and len(fields[0]) == 1:
        return fields[0][0]
    return "\0".join([text for texts in fields for text in texts])


def _opening(template: PromptTemplate) -> str:
    """The joined text of the head up to its first slot."""
    texts = []
    for field in (field for pattern in template.head for field in pattern.fields):
        texts.append(field.literals[0])
        if field.slots:
            break
    return "\0".join(texts)


def _ending(template: PromptTemplate) -> tuple[int, str]:
    last = template.head[-1].fields if template.head else ()
    text = last[-1].literals[-1] if last else ""
    size = next(size for size in _TAILS if size <= len(text))
    return size, text[len(text) - size :]


def _by_ending(templates: Sequence[PromptTemplate]) -> dict[tuple[int, str], list[_Ranked]]:
    found: dict[tuple[int, str], list[_Ranked]] = defaultdict(list)
    for template in templates:
        rank = (-sum(map(len, template.literals)), -template.version, template.task)
        found[_ending(template)].append((rank, template))
    return dict(found)


def show(template: PromptTemplate) -> str:
    """The template for a person to read: roles in brackets, slots as `{{name}}`."""
    lines = [line for pattern in template.head for line in _show_message(pattern)]
    if template.turns:
        lines.append("[turns of the conversation]")
    lines += [line for pattern in template.tail for line in _show_message(pattern)]
    return "\n".join(lines)


def _show_message(pattern: MessagePattern) -> list[str]:
    names = [["{{" + slot.name + "}}" for slot in field.slots] for field in pattern.fields]
    texts = [field.fill(shown) for field, shown in zip(pattern.fields, names, strict=True)]
    return [f"[{pattern.role.removeprefix('^')}]", *texts]


def why_not(template: PromptTemplate, body: dict[str, Any]) -> str:
    """One sentence that says why the body does not match the template ("" when it does)."""
    found = reason(template, body)
    return found.sentence if found is not None else ""


def reason(template: PromptTemplate, body: dict[str, Any]) -> Reason | None:
    """Why the parsed JSON body does not match the template: a code to count and a sentence to read.

    None when it does match. Whenever `template.strip(body)` is None there is a reason, and only then.
    """
    try:
        seen = layout.read(body)
    except Unreadable as error:
        return Reason("unreadable", f"The request cannot be taken apart: {error}.")
    if template.strip_layout(seen, body) is not None:
        return None
    if seen.bucket != template.bucket:
        return Reason("tools", "The tools, the tool choice or the response format are not those of the template.")
    return _why_messages(template, seen) or _why_texts(template, seen) or _NOT_REBUILT


_NOT_REBUILT = Reason("rebuild", "The request does not rebuild to itself.")


def _rows(template: PromptTemplate, count: int) -> list[tuple[int, MessagePattern]]:
    """Each pattern with the index of its message among `count`."""
    places = [*range(len(template.head)), *range(count - len(template.tail), count)]
    return list(zip(places, template.patterns, strict=True))


def _why_messages(template: PromptTemplate, seen: Layout) -> Reason | None:
    least, count = len(template.patterns), len(seen.headers)
    if count < least if template.turns else count != least:
        return Reason("messages", f"The request has {count} messages, the template {least}.")
    for i, pattern in _rows(template, count):
        if pattern.header != seen.headers[i]:
            return Reason("messages", f"Message {i + 1} is not a {pattern.role} message of the template's form.")
    if template.turns and not template.slots and count == least:
        return Reason("messages", "The conversation has no turn of its own.")
    return None


def _why_texts(template: PromptTemplate, seen: Layout) -> Reason | None:
    for i, pattern in _rows(template, len(seen.headers)):
        for field, text in zip(pattern.fields, seen.fields[i], strict=True):
            if field.cut(text) is None:
                code, words = _why_text(field, text)
                return Reason(code, f"In message {i + 1} ({pattern.role}), {words}.")
    return None


def _why_text(field: TextPattern, text: str) -> tuple[Code, str]:
    first, last = field.literals[0], field.literals[-1]
    if not field.slots or not text.startswith(first):
        at = next(
            (i for i, (a, b) in enumerate(zip(first, text, strict=False)) if a != b),
            min(len(first), len(text)),
        )
        wanted, found = first[at : at + 40], text[at : at + 40]
        return "literal", f"the fixed text ends at character {at}: expected {wanted!r}, found {found!r}"
    if not text.endswith(last) or len(text) < len(first) + len(last):
        return "literal", f"the text does not end with {last[-60:]!r}"
    position = len(first)
    for literal in field.literals[1:-1]:
        at = text.find(literal, position, len(text) - len(last))
        if at < 0:
            return "literal", f"the fixed text {literal[:60]!r} is missing"
        position = at + len(literal)
    loose = TextPattern(field.literals, tuple(type(slot)(slot.name) for slot in field.slots))
    values = loose.cut(text)
    if values is None:
        words = "a value holds fixed text of the template, so that it could be cut in more than one way"
        return "ambiguous", words
    name = next(slot.name for slot, value in zip(field.slots, values, strict=True) if not slot.holds(value))
    return "slot", f"the value of `{name}` is unlike all that were seen there"
