"""A prompt template: the fixed text of a task's requests and its slots; `strip` and `render` are inverses.

A template is laid over the whole message array. Fixed text must be there exactly, so (template, inputs) ->
request loses nothing by construction, and `strip` still rebuilds and compares every body before it answers.
Scanning is `startswith`, `endswith` and `find`: linear, with nothing to backtrack into.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import msgspec

from gateway.domain import layout
from gateway.domain.layout import Reader, TooLarge, Unreadable
from gateway.domain.pattern import DATE, ID, Patience, Slot, TextPattern, kind_of
from gateway.domain.turns import WRAPPING, Wrapper, are_written

__all__ = ["DATE", "ID", "Inputs", "MessagePattern", "PromptTemplate", "Slot", "TextPattern", "join_form",
           "kind_of", "parse_stripped", "split_form"]  # fmt: skip

_WORD = re.compile(r"[^\W\d_]+|\d+")
_HEADING = re.compile(r"\\*\[[^\[\]\n]*\]")


class MessagePattern(msgspec.Struct, frozen=True, dict=True):
    """One message: its header (see `gateway.domain.layout`) and a pattern for each of its texts."""

    header: str
    fields: tuple[TextPattern, ...]

    @cached_property
    def role(self) -> str:
        return layout.parse_header(self.header)[0]

    @property
    def slots(self) -> Iterator[Slot]:
        return (slot for field in self.fields for slot in field.slots)

    @cached_property
    def holes(self) -> int:
        """How many slots the message has."""
        return sum(len(field.slots) for field in self.fields)

    @cached_property
    def is_outside(self) -> bool:
        """Whether the message is a system prompt outside the message array."""
        return self.header.startswith("^")

    @cached_property
    def is_plain(self) -> bool:
        """Whether the message is a role and one text, nothing else."""
        return layout.parse_header(self.header)[1:] == ("s", "") and len(self.fields) == 1

    def writes(self, values: Sequence[str], message: dict[str, Any]) -> bool:
        """Whether these slot values make this message."""
        if self.is_plain:
            text = message.get("content")
            if len(message) != 2 or message.get("role") != self.role or type(text) is not str:
                return False
            return self.fields[0].fills(values, text)
        ends = list(accumulate([len(field.slots) for field in self.fields], initial=0))
        texts = [field.fill(values[a:b]) for field, (a, b) in zip(self.fields, pairwise(ends), strict=True)]
        return layout.same(layout.write_message(self.header, texts), message)


class PromptTemplate(msgspec.Struct, frozen=True, dict=True):
    """The fixed text of one version of a task's requests, with its slots.

    `head` are the messages every request begins with. With `turns`, any number of free messages follow, which
    stay real turns, and `tail` are the messages every request ends with. Without, `head` is all there is.
    With `wraps`, each turn of the user is wrapped like the last message, and stays as what is inside.
    `replaces` names the version whose place this one takes, where a person made it: of a request that matches
    both, this one is the template.
    """

    task: str
    version: int
    head: tuple[MessagePattern, ...]
    turns: bool = False
    tail: tuple[MessagePattern, ...] = ()
    bucket: str = ""
    replaces: str = ""
    wraps: bool = False

    @property
    def name(self) -> str:
        """How configuration and tables name it: `task@version`."""
        return f"{self.task}@{self.version}"

    @cached_property
    def patterns(self) -> tuple[MessagePattern, ...]:
        return self.head + self.tail

    @cached_property
    def fields(self) -> tuple[TextPattern, ...]:
        """Every text, in order."""
        return tuple(field for pattern in self.patterns for field in pattern.fields)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Every slot, in the order of the text."""
        return tuple(slot for field in self.fields for slot in field.slots)

    @cached_property
    def can_wrap(self) -> bool:
        """Whether the last message could be what each turn of the user is wrapped in: one text with one slot."""
        last = self.tail[0] if self.turns and len(self.tail) == 1 else None
        return last is not None and last.header in WRAPPING and last.holes == 1

    @cached_property
    def wrapper(self) -> Wrapper | None:
        """What each turn of the user is wrapped in, if the app does so."""
        return Wrapper(self.tail[0].header, self.tail[0].fields[0]) if self.wraps and self.can_wrap else None

    @property
    def literals(self) -> tuple[str, ...]:
        """Every piece of fixed text, in order."""
        return tuple(text for field in self.fields for text in field.literals)

    @property
    def fixed_words(self) -> int:
        """How many words of fixed text a request must hold to match."""
        return sum(len(_WORD.findall(text)) for text in self.literals)

    def strip(self, body: dict[str, Any]) -> Inputs | None:
        """The inputs of a parsed JSON request body, or None unless `render` gives back exactly this body."""
        try:
            return self.strip_read(Reader(body))
        except Unreadable:
            return None

    def strip_read(self, seen: Reader) -> Inputs | None:
        """As `strip`, for a body that is being read already.

        Raises:
            Unreadable: a message that was looked at has a shape that no chat API knows.
        """
        behind = seen.count - len(self.tail)
        if (behind < len(self.head) if self.turns else behind != len(self.head)) or seen.bucket != self.bucket:
            return None
        headers, texts = seen.around(len(self.head), len(self.tail))
        if any(pattern.header != header for pattern, header in zip(self.patterns, headers, strict=True)):
            return None
        return self.strip_texts(seen, texts)

    def strip_texts(self, seen: Reader, texts: Sequence[str], patience: Patience | None = None) -> Inputs | None:
        """As `strip`, for a body with the bucket and the headers of the template; `texts` are those of its
        head and tail, `patience` what other templates have left.

        Raises:
            Unreadable: a turn is no message that can be sent, or there is too much text.
        """
        if len(texts) != len(self.fields):
            return None
        values: tuple[str, ...] = ()
        size = 0
        for field, text in zip(self.fields, texts, strict=True):
            size += len(text) if len(field.literals) < 3 else 2 * len(text)
            if size > layout.MAX_CHARACTERS:
                raise TooLarge(f"its texts have more than {layout.MAX_CHARACTERS} characters")
            cut = field.cut(text, patience)
            if cut is None:
                return None
            values += cut
        found = seen.turns(len(self.head), seen.count - len(self.tail)) if self.turns else ()
        turns = self.wrapper.taken_off(found) if self.wrapper else found
        if turns is None or (self.turns and not values and not turns):
            return None
        if not all(map(str.isascii, values)):
            layout.sound("".join(values))
        inputs = Inputs(self, values, turns, seen.envelope)
        return inputs if rebuilds(inputs, seen.body) else None

    def render(self, inputs: Inputs) -> dict[str, Any]:
        """The whole request body: the inverse of `strip`."""
        values = iter(inputs.values)
        turns = self.wrapper.put_on(inputs.turns) if self.wrapper else inputs.turns
        body = dict(inputs.envelope)
        written: list[dict[str, Any]] = []
        for index, pattern in enumerate(self.patterns):
            if index == len(self.head):
                written += turns
            texts = [field.fill([next(values) for _ in field.slots]) for field in pattern.fields]
            message = layout.write_message(pattern.header, texts)
            if message["role"].startswith("^"):
                body[message["role"][1:]] = message["content"]
            else:
                written.append(message)
        if len(self.patterns) == len(self.head):
            written += turns
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
        before each value. A conversation keeps its turns, between the slots before and the slots behind; where
        the user's are wrapped, what is inside.
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


def rebuilds(inputs: Inputs, body: dict[str, Any]) -> bool:
    """Whether `inputs.template.render(inputs)` is this body, told without writing a second one.

    Nothing that `strip` found is believed but the inputs: their pieces are laid over the body's own texts.
    """
    template, messages, envelope = inputs.template, body.get("messages"), inputs.envelope
    outside = layout.outside(body)
    if type(messages) is not list or len(envelope) + outside + 1 != len(body):
        return False
    if len(template.patterns) + len(inputs.turns) != len(messages) + outside:
        return False
    for key, value in envelope.items():
        if key not in body or not (value is body[key] or layout.same(value, body[key])):
            return False
    try:
        return _writes(inputs, messages, body)
    except (ValueError, RecursionError):  # JSON that cannot be read again
        return False


def _writes(inputs: Inputs, messages: list[Any], body: dict[str, Any]) -> bool:
    """Whether patterns, values and turns make these messages, and the system prompt that stands outside."""
    template, values = inputs.template, inputs.values
    first = place = 0
    for index, pattern in enumerate(template.patterns):
        if index == len(template.head):
            place = _past_turns(inputs, messages, place)
        last = first + pattern.holes
        if pattern.is_outside:
            original = {"role": pattern.role, "content": body.get(pattern.role[1:])}
        elif 0 <= place < len(messages):
            original, place = messages[place], place + 1
        else:
            return False
        if not pattern.writes(values[first:last], original):
            return False
        first = last
    if len(template.patterns) == len(template.head):
        place = _past_turns(inputs, messages, place)
    return first == len(values) and place == len(messages)


def _past_turns(inputs: Inputs, messages: Sequence[Any], place: int) -> int:
    """The place behind the turns, if they are the messages from `place` on; else -1."""
    after = place + len(inputs.turns)
    return after if are_written(inputs.turns, inputs.template.wrapper, messages[place:after]) else -1


def _role(patterns: Sequence[MessagePattern]) -> str:
    """The role of the last message that has a slot."""
    return next(p.role for p in reversed(patterns) if any(True for _ in p.slots)).removeprefix("^")


def _message(role: str, slots: Sequence[Slot], values: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(slots, values, strict=True))
    texts = [(slot.name, value) for slot, value in pairs if slot.kind != "part"]
    parts = [msgspec.json.decode(value) for slot, value in pairs if slot.kind == "part"]
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
