"""A prompt template as YAML that a person can read and change: `read_draft` and `write_template` are inverses.

Texts are literal blocks with `{{name}}` for each slot. What a block cannot hold unharmed (carriage returns, odd
line ends) or an editor might take away (blanks at the end of a line) is written in quotes, line by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import yaml
from pydantic import Field, ValidationInfo, field_validator

from gateway.config.document import Document, InvalidConfig, Problem, Section, parse, validate
from gateway.domain import layout
from gateway.domain.matching import MIN_FIXED_WORDS
from gateway.domain.pattern import KINDS
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.errors import TaskError

NAME = re.compile(r"\w(?:[\w .-]*\w)?")
"""What a slot's name may be: words, with blanks, dots or dashes between them."""
_MARKS = ("{{ }}", "<< >>", "[[ ]]", "(( ))", "<% %>", "${ }", "⟦ ⟧", "«« »»")
_HASH = re.compile(r"[0-9a-f]{16}")
_QUIET = re.compile(  # what a literal block holds as it is, whoever reads or edits it
    r"(?![ \n])(?:[\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    r"|(?<![ \t\n])\t(?![\t\n])|(?<![ \t])\n)+(?<![ \t\n])\n?"
)
_LOUD = re.compile(r"[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|[\"\\]")
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_HEAD = """\
# The prompt template {name}: what is fixed is taken away from a request, what is in {marks} is its input.
# Change it and store it as a new version with 'unprompt tasks import FILE'; no stored version ever changes.
#   task       another name moves the template to that task
#   pin        true: inference adds no version to the task
#   messages   all text outside of {marks} must be there exactly, blanks and line ends too
#   slots      what a value may be; a request that holds another one is not stripped
"""


class Draft(msgspec.Struct, frozen=True):
    """A template as a person wrote it. `based_on` names the stored version that it was made from and is to take
    the place of, "" where there is none; `document` knows its lines."""

    template: PromptTemplate
    based_on: str
    pin: bool
    document: Document


# --- writing ---------------------------------------------------------------------------------------------


def write_template(template: PromptTemplate, *, pin: bool = False, settings: dict[str, Any] | None = None) -> str:
    """The template's YAML. `settings`: the tools, response format and so on of a request that matches it, which the
    template itself only knows the hash of; written out where they are these.

    Raises:
        TaskError: it has slots that no text can name: of odd or equal names.
    """
    names = [slot.name for slot in template.slots]
    if len(set(names)) < len(names) or not all(map(NAME.fullmatch, names)):
        raise TaskError(f"template {template.name}: its slots cannot be written down by name: {', '.join(names)}")
    marks = _marks_for([field for pattern in template.patterns for field in pattern.fields])
    lines = [_HEAD.format(name=_plain(template.name), marks=marks.replace(" ", "name"))]
    lines += [f"task: {_value(template.task)}\n", f"based_on: {_value(template.name)}\n"]
    lines.append(f"pin: {_value(pin)}\n")
    if marks != _MARKS[0]:
        lines.append(f"marks: {_value(marks)}\n")
    if template.bucket:
        lines.append(f"settings: {_settings(template.bucket, settings)}\n")
    lines.append("messages:\n")
    lines += [_message(pattern, marks) for pattern in template.head]
    if template.turns:
        lines.append("- turns: true  # all turns of the conversation stay\n")
        lines += [
            "  wrapped: true  # the user's without the text around the slot of the last message\n"
        ] * template.wraps
    lines += [_message(pattern, marks) for pattern in template.tail]
    if template.slots:
        lines.append("slots:\n")
        lines += [_slot(slot) for slot in template.slots]
    return "".join(lines)


def _plain(text: str) -> str:
    return _LOUD.sub(" ", text)


def _marks_for(fields: Sequence[TextPattern]) -> str:
    """The first pair of marks with which every text reads back as it is."""
    numbered = (f"<{n}: :{n}>" for n in range(1000))
    for marks in (*_MARKS, *numbered):
        if all(_cut(_marked(field, marks), marks) == (field.literals, _names(field)) for field in fields):
            return marks
    raise TaskError("the template quotes every mark that a slot could have")


def _names(field: TextPattern) -> tuple[str, ...]:
    return tuple(slot.name for slot in field.slots)


def _marked(field: TextPattern, marks: str) -> str:
    opening, closing = marks.split(" ")
    return field.fill([opening + name + closing for name in _names(field)])


def _cut(text: str, marks: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Literals and slot names of a text with marks."""
    opening, closing = map(re.escape, marks.split(" "))
    pieces = re.split(rf"{opening}({NAME.pattern}){closing}", text)
    return tuple(pieces[::2]), tuple(pieces[1::2])


def _settings(bucket: str, settings: dict[str, Any] | None) -> str:
    if settings is None or layout.bucket_of(settings) != bucket:
        return f"{_value(bucket)}  # the hash of the tools, response format and so on that a request must have"
    static = {key: settings[key] for key in layout.STATIC_KEYS if key in settings}
    return _text(_json(static), "  ")


def _message(pattern: MessagePattern, marks: str) -> str:
    role, form, rest = layout.parse_header(pattern.header)
    others: dict[str, Any] = json.loads(rest) if rest else {}
    lines = [f"- role: {_value(role)}\n"]
    if form == "s":
        lines.append(f"  text: {_text(_marked(pattern.fields[0], marks), '    ')}\n")
    elif form != "n":
        more = iter(others.pop("", []))
        lines.append("  parts:\n" if pattern.fields else "  parts: []\n")
        for letter, field in zip(form[1:], pattern.fields, strict=True):
            kind = "data" if letter == "j" else "text"
            lines.append(f"  - {kind}: {_text(_marked(field, marks), '      ')}\n")
            if letter == "x":
                lines.append(f"    others: {_text(_json(next(more)), '      ')}\n")
    if others:
        lines.append(f"  others: {_text(_json(others), '    ')}\n")
    return "".join(lines)


def _json(value: dict[str, Any]) -> str:
    """JSON that reads back as the same value, in the letters of its language where they can be written."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value, sort_keys=True)


def _slot(slot: Slot) -> str:
    own = msgspec.to_builtins(slot)
    plain = msgspec.to_builtins(Slot(slot.name))
    limits = {key: value for key, value in own.items() if key != "name" and value != plain[key]}
    lists = {key: value for key, value in limits.items() if _is_texts(value)}
    rest = {key: value for key, value in limits.items() if key not in lists}
    if not lists:
        return f"  {_value(slot.name)}: {_value(rest)}\n"
    lines = [f"  {_value(slot.name)}:\n"]
    lines += [f"    {key}: {_value(value)}\n" for key, value in rest.items()]
    for key, texts in lists.items():
        lines.append(f"    {key}:\n")
        lines += [f"    - {_text(text, '      ')}\n" for text in texts]
    return "".join(lines)


def _is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)


def _value(value: object) -> str:
    """A small value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(key)}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str) and not value.isprintable():
        return f'"{_LOUD.sub(_escaped, value)}"'
    # In a list, so that what ends a value in one is in quotes.
    return yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]


def _text(text: str, indent: str) -> str:
    """A text behind its key: a literal block, or in quotes with each of its lines on one of ours."""
    if _QUIET.fullmatch(text):
        body = text.removesuffix("\n")
        block = "\n".join(indent + line if line else "" for line in body.split("\n"))
        return f"{'|-' if body == text else '|'}\n{block}"
    lines = [_LOUD.sub(_escaped, line) for line in re.findall(r"[^\n]*\n|[^\n]+", text)]
    rest = ["\\" + line if line.startswith(" ") else line for line in lines[1:]]
    return '"' + f"\\\n{indent}".join([*lines[:1], *rest]) + '"'


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if char in _ESCAPES:
        return _ESCAPES[char]
    number = ord(char)
    return f"\\x{number:02X}" if number < 256 else f"\\u{number:04X}" if number < 65536 else f"\\U{number:08X}"


# --- reading ---------------------------------------------------------------------------------------------


class _Part(Section):
    text: str | None = None
    data: str | None = None
    others: str | dict[str, Any] = {}


class _Message(Section):
    role: str | None = None
    turns: bool = False
    wrapped: bool = False
    text: str | None = None
    parts: list[_Part] | None = None
    others: str | dict[str, Any] = {}


class _File(Section):
    task: str
    based_on: str = ""
    pin: bool = False
    marks: str = _MARKS[0]
    settings: str | dict[str, Any] = ""
    messages: list[_Message] = Field(min_length=1)
    slots: dict[str, dict[str, Any] | None] = {}

    @field_validator("task", "based_on")
    @classmethod
    def _named(cls, name: str, info: ValidationInfo) -> str:
        task, _, version = name.rpartition("@") if info.field_name == "based_on" else (name, "", "")
        if (
            not (name or info.field_name == "based_on")
            or "@" in task
            or not task.isprintable()
            or task != task.strip()
        ):
            raise ValueError("must be a name without '@' or blanks around it")
        if info.field_name == "based_on" and name and not (task and re.fullmatch(r"[1-9]\d{0,8}", version)):
            raise ValueError("must be TASK@VERSION; leave it out for a template of your own")
        return name

    @field_validator("marks")
    @classmethod
    def _two(cls, marks: str) -> str:
        if not re.fullmatch(r"[^\w\s]\S* \S*[^\w\s]", marks):
            raise ValueError("must be two marks that are no words, with a blank between them, like '<< >>'")
        return marks


def read_draft(name: str, text: bytes) -> Draft:
    """The template of a YAML text that problems call `name`.

    Raises:
        InvalidConfig: with every problem, each with its line and a remedy.
    """
    document = parse(name, text)
    file, problems = validate(_File, document)
    problems = [*document.repeated_keys(), *problems]
    if file is None or problems:
        raise InvalidConfig(problems)
    reading = _Reading(document, file)
    template = reading.template()
    reading.problems += _weak(document, template)
    if reading.problems:
        raise InvalidConfig(reading.problems)
    return Draft(template, file.based_on, file.pin, document)


def _weak(document: Document, template: PromptTemplate) -> Iterator[Problem]:
    """Why no request should be matched by this."""
    if template.fixed_words < MIN_FIXED_WORDS:
        least = f"a template needs {MIN_FIXED_WORDS} fixed words at least, or it would claim requests by accident"
        yield document.problem(["messages"], f"{least}; it has {template.fixed_words}")


class _Reading:
    """A file on its way to a template; `problems` are those found so far."""

    def __init__(self, document: Document, file: _File) -> None:
        self.document, self.file = document, file
        self.problems: list[Problem] = []
        self._slots = {name: self._slot(name, limits or {}) for name, limits in file.slots.items()}
        self._met: set[str] = set()

    def template(self) -> PromptTemplate:
        at = [i for i, message in enumerate(self.file.messages) if message.turns]
        for i in at[1:]:
            self._problem(["messages", i], "the turns stand here twice; keep one of the two")
        patterns = [self._pattern(i, m) for i, m in enumerate(self.file.messages) if not m.turns]
        for name in self.file.slots:
            if name not in self._met:
                self._problem(["slots", name], f"stands in no text; mark it there as {self._mark(name)}")
        cut = at[0] if at else len(patterns)
        version = self.file.based_on.rpartition("@")[2]
        template = PromptTemplate(
            self.file.task, int(version or 1), tuple(patterns[:cut]), bool(at), tuple(patterns[cut:]),
            self._bucket(), wraps=any(message.wrapped for message in self.file.messages),
        )  # fmt: skip
        if template.wraps and not template.can_wrap:
            where = next(i for i, message in enumerate(self.file.messages) if message.wrapped)
            reasons = "needs 'turns: true' and behind it one message of the user, the last, with one slot"
            self._problem(["messages", where, "wrapped"], reasons)
        return template

    def _problem(self, path: Iterable[str | int], message: str) -> None:
        self.problems.append(self.document.problem(path, message))

    def _mark(self, name: str) -> str:
        return self.file.marks.replace(" ", name)

    def _slot(self, name: str, limits: dict[str, Any]) -> Slot:
        path = ["slots", name]
        known = [field for field in Slot.__struct_fields__ if field != "name"]
        if not NAME.fullmatch(name):
            self._problem(path, "a slot's name is made of words, with blanks, dots or dashes between them")
        unknown = [key for key in limits if key not in known]
        for key in unknown:
            self._problem([*path, key], f"unknown key; known keys: {', '.join(known)}")
        if "kind" in limits and limits["kind"] not in KINDS:
            self._problem([*path, "kind"], f"no kind of slot; there are {', '.join(KINDS)}")
        for key in ("limit", "sentence_limit"):
            if type(limits.get(key)) is int and limits[key] < 0:
                self._problem([*path, key], "must not be negative; 0 means any length")
        try:
            return msgspec.convert({"name": name, **limits} if not unknown else {"name": name}, Slot)
        except msgspec.ValidationError as error:
            self._problem(path, str(error).replace(" - at `$.", " at `"))
            return Slot(name)

    def _pattern(self, i: int, message: _Message) -> MessagePattern:
        path: list[str | int] = ["messages", i]
        role = message.role and message.role.removeprefix("^")
        content: dict[str, Any] = {}
        fields: list[TextPattern] = []
        if message.text is not None and message.parts is not None:
            self._problem([*path, "parts"], "a message has text or parts; take one of the two away")
        if message.text is not None:
            content, fields = {"content": ""}, [self._field([*path, "text"], message.text)]
        elif message.parts is not None:
            made = [self._part([*path, "parts", n], part) for n, part in enumerate(message.parts)]
            content, fields = {"content": [part for part, _ in made]}, [field for _, field in made]
        others = self._others([*path, "others"], message.others)
        if role != message.role and role not in layout.SYSTEM_KEYS:  # it stands beside the messages, in some APIs
            self._problem([*path, "role"], f"beside the messages there is only ^{', ^'.join(layout.SYSTEM_KEYS)}")
        if clash := others.keys() & ({"role"} | content.keys()):
            self._problem([*path, "others"], f"{', '.join(sorted(clash))} stands above; take it out here")
        try:
            header, texts = layout.read_message({"role": role, **others, **content})
        except layout.Unreadable as error:
            self._problem(path, f"no message that a request could have: {error}; give it 'role:' and 'text:'")
            return MessagePattern("", ())
        if len(texts) != len(fields):
            self._problem([*path, "others"], "a message's content belongs into 'text:' or 'parts:'")
        return MessagePattern("^" + header if role != message.role else header, tuple(fields))

    def _part(self, path: list[str | int], part: _Part) -> tuple[dict[str, Any], TextPattern]:
        if (part.text is None) == (part.data is None):
            self._problem(path, "a part has either 'text:' or 'data:' (JSON)")
        if part.data is not None:
            return {"type": "data"}, self._field([*path, "data"], part.data, is_data=True)
        others = self._others([*path, "others"], part.others)
        if clash := others.keys() & {"type", "text"}:
            self._problem([*path, "others"], f"{', '.join(sorted(clash))} stands above; take it out here")
        return {**others, "type": "text", "text": ""}, self._field([*path, "text"], part.text or "")

    def _others(self, path: list[str | int], others: str | dict[str, Any]) -> dict[str, Any]:
        if isinstance(others, dict):
            return others
        try:
            value = json.loads(others)
        except (ValueError, RecursionError) as error:
            self._problem(path, f"no JSON: {error}")
            return {}
        if not isinstance(value, dict):
            self._problem(path, 'must be a JSON object, like {"name": "bob"}')
            return {}
        return value

    def _field(self, path: list[str | int], text: str, *, is_data: bool = False) -> TextPattern:
        literals, names = _cut(text, self.file.marks)
        for name in names:
            if name in self._slots and self._slots[name].kind == "part" and not (is_data and literals == ("", "")):
                reason = f"{self._mark(name)} of 'kind: part' is a whole content part: it stands alone in a 'data:'"
                self._problem(path, reason)
        for name in names:
            if name in self._met:
                self._problem(
                    path, f"{self._mark(name)} stands in the messages twice; give one of them another name"
                )
            self._met.add(name)
        if not all(literals[1:-1]):
            where = next(n for n, literal in enumerate(literals[1:-1]) if not literal)
            pair = self._mark(names[where]) + self._mark(names[where + 1])
            self._problem(path, f"{pair}: between two slots there must be text, or they could be cut in many ways")
        return TextPattern(literals, tuple(self._slots.get(name) or Slot(name) for name in names))

    def _bucket(self) -> str:
        settings = self.file.settings
        if isinstance(settings, str):
            if not settings or _HASH.fullmatch(settings):
                return settings
            settings = self._others(["settings"], settings)
        for key in settings:
            if key not in layout.STATIC_KEYS:
                known = ", ".join(layout.STATIC_KEYS)
                self._problem(["settings", key], f"is no part of the prompt; what is: {known}")
        return layout.bucket_of(settings)
