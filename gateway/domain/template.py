"""A prompt template: the fixed text of a task's requests and its slots; `strip` and `render` are inverses.

A template is laid over the whole message array. Fixed text must be there exactly, so (template, inputs) ->
request loses nothing by construction, and `strip` still rebuilds and compares every body before it answers.
Scanning is `startswith`, `endswith` and `find`: linear, with nothing to backtrack into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gateway.domain import layout
from gateway.domain.layout import Layout, Unreadable

_WORD = re.compile(r"[^\W\d_]+|\d+")
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]{0,6}"
_WEEKDAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?"
DATE = rf"(?:\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK})?|(?:{_WEEKDAY}, )?{_MONTH} \d{{1,2}}, \d{{4}}|{_CLOCK})"
"""A date, a date with a time, or a time (a regular expression without anchors)."""
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
ID = rf"(?:{_UUID}|(?=[a-f]{{0,31}}\d)[0-9a-f]{{16,64}}(?!\w)|\d{{10,19}})"
"""A UUID, a hash or trace id, an epoch or another long number (a regular expression without anchors)."""
_TYPES = {"date": re.compile(DATE), "id": re.compile(ID)}
_HEADING = re.compile(r"\\*\[[^\[\]\n]*\]")


class Slot(msgspec.Struct, frozen=True):
    """A hole in the text.

    `name` is for people and for the stripped form; `kind` says what it holds: `text`, `date`, `id`, or `part`
    for a whole content part that is not text. The rest is what the requests behind the template never
    went beyond; a value that does is not stripped: `limit` characters (0: any), `single_line`, or `choices`
    (empty: any).
    """

    name: str
    kind: str = "text"
    limit: int = 0
    single_line: bool = False
    choices: tuple[str, ...] = ()

    def holds(self, value: str) -> bool:
        """Whether the value is of the sort that was seen here."""
        if self.limit and len(value) > self.limit:
            return False
        if self.single_line and "\n" in value:
            return False
        if self.kind in _TYPES and _TYPES[self.kind].fullmatch(value) is None:
            return False
        return not self.choices or value in self.choices


def kind_of(value: str) -> str:
    """The kind of slot that this one value suggests: `date`, `id` or `text`."""
    return next((kind for kind, shape in _TYPES.items() if shape.fullmatch(value)), "text")


class TextPattern(msgspec.Struct, frozen=True):
    """One text of a message: `literals[0] slots[0] literals[1] ...`; inner literals are not empty."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...] = ()

    def fill(self, values: Sequence[str]) -> str:
        """The text with these slot values."""
        pieces = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            pieces += (value, literal)
        return "".join(pieces)

    def cut(self, text: str) -> tuple[str, ...] | None:
        """The slot values, or None where the text does not fit or could be cut in more than one way."""
        literals = self.literals
        if len(literals) == 1:
            return () if text == literals[0] else None
        start, end = len(literals[0]), len(text) - len(literals[-1])
        if start > end or not text.startswith(literals[0]) or not text.endswith(literals[-1]):
            return None
        values: tuple[str, ...] | None = (text[start:end],)
        if len(literals) > 2:
            values = self._cut_inner(text, start, end)
        if values is None or not all(map(Slot.holds, self.slots, values)):
            return None
        return values

    def _cut_inner(self, text: str, start: int, end: int) -> tuple[str, ...] | None:
        # The earliest and the latest way to place the literals agree exactly when there is only one way.
        values, position = [], start
        for literal in self.literals[1:-1]:
            at = text.find(literal, position, end)
            if at < 0:
                return None
            values.append(text[position:at])
            position = at + len(literal)
        values.append(text[position:end])
        limit = end
        for literal, value in zip(self.literals[-2:0:-1], values[:0:-1], strict=True):
            at = text.rfind(literal, start, limit)
            if limit - at - len(literal) != len(value):
                return None
            limit = at
        return tuple(values)


class MessagePattern(msgspec.Struct, frozen=True):
    """One message: its header (see `gateway.domain.layout`) and a pattern for each of its texts."""

    header: str
    fields: tuple[TextPattern, ...]

    @property
    def role(self) -> str:
        return layout.parse_header(self.header)[0]

    @property
    def slots(self) -> Iterator[Slot]:
        return (slot for field in self.fields for slot in field.slots)


class PromptTemplate(msgspec.Struct, frozen=True):
    """The fixed text of one version of a task's requests, with its slots.

    `head` are the messages every request begins with. With `turns`, any number of free messages follow, which
    stay real turns, and `tail` are the messages every request ends with. Without, `head` is all there is.
    """

    task: str
    version: int
    head: tuple[MessagePattern, ...]
    turns: bool = False
    tail: tuple[MessagePattern, ...] = ()
    bucket: str = ""

    @property
    def name(self) -> str:
        """How configuration and tables name it: `task@version`."""
        return f"{self.task}@{self.version}"

    @property
    def patterns(self) -> tuple[MessagePattern, ...]:
        return self.head + self.tail

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot, in the order of the text."""
        return tuple(slot for pattern in self.patterns for slot in pattern.slots)

    @property
    def literals(self) -> tuple[str, ...]:
        """Every piece of fixed text, in order."""
        return tuple(text for pattern in self.patterns for field in pattern.fields for text in field.literals)

    @property
    def fixed_words(self) -> int:
        """How many words of fixed text a request must hold to match."""
        return sum(len(_WORD.findall(text)) for text in self.literals)

    def strip(self, body: dict[str, Any]) -> Inputs | None:
        """The inputs of a parsed JSON request body, or None unless `render` gives back exactly this body."""
        try:
            return self.strip_layout(layout.read(body), body)
        except Unreadable:
            return None

    def strip_layout(self, seen: Layout, body: dict[str, Any]) -> Inputs | None:
        """As `strip`, for a body that has been read already."""
        if seen.bucket != self.bucket:
            return None
        head, tail, count = len(self.head), len(self.tail), len(seen.headers)
        if count < head + tail if self.turns else count != head:
            return None
        values: list[str] = []
        last = count - tail
        for pattern, index in zip(self.patterns, [*range(head), *range(last, count)], strict=True):
            if pattern.header != seen.headers[index]:
                return None
            for field, text in zip(pattern.fields, seen.fields[index], strict=True):
                cut = field.cut(text)
                if cut is None:
                    return None
                values += cut
        outside = count - len(body["messages"])
        turns = tuple(body["messages"][head - outside : last - outside]) if self.turns else ()
        inputs = Inputs(self, tuple(values), turns, seen.envelope)
        if (self.turns and not values and not turns) or not layout.same(self.render(inputs), body):
            return None
        return inputs

    def render(self, inputs: Inputs) -> dict[str, Any]:
        """The whole request body: the inverse of `strip`."""
        values = iter(inputs.values)
        body = dict(inputs.envelope)
        written: list[dict[str, Any]] = []
        for index, pattern in enumerate(self.patterns):
            if index == len(self.head):
                written += inputs.turns
            texts = [field.fill([next(values) for _ in field.slots]) for field in pattern.fields]
            message = layout.write_message(pattern.header, texts)
            if message["role"].startswith("^"):
                body[message["role"][1:]] = message["content"]
            else:
                written.append(message)
        if len(self.patterns) == len(self.head):
            written += inputs.turns
        body["messages"] = written
        return body


class Inputs(msgspec.Struct, frozen=True):
    """What is left of a request without its template; `envelope` is all of the body that is no prompt."""

    template: PromptTemplate
    values: tuple[str, ...]
    turns: tuple[dict[str, Any], ...] = ()
    envelope: dict[str, Any] = {}

    @property
    def slots(self) -> tuple[tuple[str, str], ...]:
        """Name and value of each slot, in the order of the text."""
        return tuple((slot.name, value) for slot, value in zip(self.template.slots, self.values, strict=True))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages to send, or to train on, instead of the request's own.

        One slot: a user message that is the bare value. Several: one user message with a `[name]` line
        before each value. A conversation keeps its turns, between the slots before and the slots behind.
        """
        template, count = self.template, sum(len(tuple(p.slots)) for p in self.template.head)
        first, last = self.values[:count], self.values[count:]
        if not template.turns:
            return [_message("user", template.slots, first)]
        messages: list[dict[str, Any]] = []
        if first:
            messages.append(_message(_role(template.head), template.slots[:count], first))
        messages += self.turns
        if last:
            messages.append(_message(_role(template.tail), template.slots[count:], last))
        return messages

    @property
    def text(self) -> str:
        """The same input as one string; equal texts of one template mean equal messages."""
        messages = self.messages
        if not self.template.turns and type(messages[0]["content"]) is str:
            return messages[0]["content"]
        return join_form([_turn(message) for message in messages])


def _role(patterns: Sequence[MessagePattern]) -> str:
    """The role of the last message that has a slot."""
    return next(p.role for p in reversed(patterns) if any(True for _ in p.slots)).removeprefix("^")


def _message(role: str, slots: Sequence[Slot], values: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(slots, values, strict=True))
    texts = [(slot.name, value) for slot, value in pairs if slot.kind != "part"]
    parts = [json.loads(value) for slot, value in pairs if slot.kind == "part"]
    text = texts[0][1] if len(texts) == 1 else join_form(texts)
    if not parts:
        return {"role": role, "content": text}
    return {"role": role, "content": ([{"type": "text", "text": text}] if texts else []) + parts}


def _turn(message: dict[str, Any]) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(content) is str and type(role) is str and _plain(role):
        return role, content
    return "", layout.canonical(message)


def _plain(name: str) -> bool:
    return bool(name) and not any(c in name for c in "[]\n")


def join_form(pairs: Sequence[tuple[str, str]]) -> str:
    """Several named values as one text: a line `[name]` before each value.

    A line of a value that looks like such a heading gets a backslash in front, and so does one that already
    begins with backslashes, so different pairs never give the same text. Names hold no brackets or new lines.
    """
    return "\n".join(f"[{name}]\n{_escape(value)}" for name, value in pairs)


def split_form(text: str) -> list[tuple[str, str]]:
    """The inverse of `join_form`.

    Raises:
        ValueError: the text does not begin with a heading.
    """
    pairs: list[tuple[str, list[str]]] = []
    for line in text.split("\n") if text else []:
        heading = _HEADING.fullmatch(line)
        if heading and line[0] == "[":
            pairs.append((line[1:-1], []))
        elif not pairs:
            raise ValueError("no heading before the first value")
        else:
            pairs[-1][1].append(line[1:] if heading else line)
    return [(name, "\n".join(lines)) for name, lines in pairs]


def _escape(value: str) -> str:
    if "[" not in value:
        return value
    return "\n".join("\\" + line if _HEADING.fullmatch(line) else line for line in value.split("\n"))


def parse_stripped(template: PromptTemplate, messages: Sequence[dict[str, Any]]) -> Inputs:
    """The inverse of `Inputs.messages`, with an empty envelope.

    Raises:
        ValueError: these messages are not what this template's requests are stripped to.
    """
    count = sum(len(tuple(pattern.slots)) for pattern in template.head)
    slots = template.slots
    if not template.turns:
        return Inputs(template, _parse_message(slots, messages[0]))
    before, after = bool(slots[:count]), bool(slots[count:])
    values: tuple[str, ...] = ()
    if before:
        values += _parse_message(slots[:count], messages[0])
    if after:
        values += _parse_message(slots[count:], messages[-1])
    return Inputs(template, values, tuple(messages[before : len(messages) - after]))


def _parse_message(slots: Sequence[Slot], message: dict[str, Any]) -> tuple[str, ...]:
    content = message["content"]
    names = [slot.name for slot in slots if slot.kind != "part"]
    parts: list[Any] = []
    if type(content) is list:
        parts = content[1:] if names else content
        content = content[0]["text"] if names else ""
    pairs = [(names[0], content)] if len(names) == 1 else split_form(content)
    if [name for name, _ in pairs] != names or len(parts) != len(slots) - len(names):
        raise ValueError("these are not the slots of the template")
    texts, rest = iter(value for _, value in pairs), iter(map(layout.canonical, parts))
    return tuple(next(rest) if slot.kind == "part" else next(texts) for slot in slots)
