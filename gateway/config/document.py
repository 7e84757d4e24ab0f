"""A YAML file read once: its value, the line of each key, and every problem with a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import pydantic
import yaml
from pydantic import BaseModel, ConfigDict

from gateway.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
Steps = Iterable["str | int"]


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong in a file. `line` is counted from 1; 0 means the file as a whole."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class InvalidConfig(ConfigError):
    """The files have problems; all of them are in `problems`. `partial` is what holds without the wrong parts,
    so that whoever reports problems can look for more."""

    def __init__(self, problems: list[Problem], partial: Any = None) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.line))
        self.partial = partial
        super().__init__("\n".join(map(str, self.problems)))


class Section(BaseModel):
    """A mapping in a file: unknown keys are problems, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Document:
    """A YAML text: its value, and the line of each key. `name` is what problems call the file."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name, self.text = name, text
        self.node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
        self.value = {} if value is None else value

    def line(self, path: Steps) -> int:
        """The line (from 1) of the deepest part of `path` that exists."""
        node, line = self.node, 1
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line

    def problem(self, path: Steps, message: str) -> Problem:
        steps = [step for step in path if step != "[key]"]
        return Problem(self.name, self.line(steps), _dotted(steps), message)

    def repeated_keys(self) -> list[Problem]:
        """Keys that stand twice in one mapping: YAML readers keep the last one and drop the others in silence."""
        return [
            Problem(self.name, key.start_mark.line + 1, str(key.value), "stands here twice; keep one of the two")
            for mapping in _mappings(self.node, set())
            for key in _repeated(mapping)
        ]


def _mappings(node: yaml.Node | None, met: set[int]) -> Iterator[yaml.MappingNode]:
    if node is None or id(node) in met:  # an alias gives the same node again, and may even hold itself
        return
    met.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value, met)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _mappings(item, met)


def _repeated(mapping: yaml.MappingNode) -> Iterator[yaml.Node]:
    met: set[str] = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in met:
                yield key
            met.add(key.value)


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def _dotted(path: Steps) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def read(file: Path) -> Document:
    """The file's document.

    Raises:
        InvalidConfig: it cannot be read, is no YAML, or holds no mapping.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the path and its permissions"
        raise InvalidConfig([Problem(str(file), 0, "", reason)]) from error
    return parse(str(file), text)


def parse(name: str, text: bytes) -> Document:
    """The document of a text that problems call `name`.

    Raises:
        InvalidConfig: it is no YAML, or holds no mapping.
    """
    try:
        document = Document(name, text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfig([_syntax_problem(name, error)]) from error
    if not isinstance(document.value, dict):
        raise InvalidConfig([Problem(name, 1, "", "must be a mapping of sections, like 'server: {...}'")])
    return document


def _syntax_problem(name: str, error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or " ".join(str(error).split())
    if "'\\t'" in text:
        text = "a tab is no indentation in YAML; use spaces"
    return Problem(name, mark.line + 1 if mark else 0, "", f"not valid YAML: {text}")


def problem_at(file: Path, path: Steps, message: str) -> Problem:
    """A problem that was found later, with the line that `path` has in the file now."""
    try:
        return read(file).problem(path, message)
    except InvalidConfig:
        return Problem(str(file), 0, _dotted(path), message)


def validate(model: type[M], document: Document, at: tuple[str | int, ...] = ()) -> tuple[M | None, list[Problem]]:
    """The section at `at` and every problem of it. With problems, the section is what is left without the wrong
    parts, None where nothing is."""
    value = document.value
    for step in at:
        value = value[step]
    try:
        return model.model_validate(value), []
    except pydantic.ValidationError as error:
        details = error.errors()
    problems = [_explain(model, document, at, detail) for detail in details]
    try:
        return model.model_validate(_without(value, [detail["loc"][:2] for detail in details])), problems
    except pydantic.ValidationError:
        return None, problems


def _without(value: Any, paths: Iterable[tuple[int | str, ...]]) -> Any:
    """The mapping less the entries at these paths, which are one or two keys long."""
    if not isinstance(value, dict):
        return value
    left = {key: dict(inner) if isinstance(inner, dict) else inner for key, inner in value.items()}
    for path in paths:
        inner = left.get(path[0]) if path else None
        if len(path) == 2 and isinstance(inner, dict):
            inner.pop(path[1], None)
        elif path:
            left.pop(path[0], None)
    return left


def _explain(model: type[BaseModel], document: Document, at: tuple[str | int, ...], detail: Any) -> Problem:
    path = detail["loc"]
    here = (*at, *path)
    if detail["type"] == "extra_forbidden":
        return document.problem(here, f"unknown key; {_known_keys(model, path)}")
    if detail["type"] == "missing":
        return document.problem(here, f"is missing; add '{path[-1]}:' here")
    if detail["type"] in ("model_type", "dict_type"):
        return document.problem(here, f"must be a mapping, like {{key: value}} (found {_shown(detail['input'])})")
    message = str(detail["msg"]).removeprefix("Value error, ")
    return document.problem(here, f"{message[:1].lower()}{message[1:]} (found {_shown(detail['input'])})")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> str:
    section = _section(model, path[:-1])
    keys = list(section.model_fields) if section else []
    near = difflib.get_close_matches(str(path[-1]), keys, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(keys)}"


def _section(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The model that validates the value at `path`."""
    current: Any = model
    for step in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(step))
            current = field.annotation if field else None
        else:  # an item of a list or mapping
            inner = [argument for argument in get_args(current) if argument is not Ellipsis]
            current = inner[-1] if inner else None
        options = [a for a in get_args(current) if isinstance(a, type) and issubclass(a, BaseModel)]
        if options and type(None) in get_args(current):
            current = options[0]
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
