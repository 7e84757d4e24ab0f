"""A YAML file read once: its value, the line of each key, and every problem with a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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
    """The files have problems; all of them are in `problems`."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class Section(BaseModel):
    """A mapping in a file: unknown keys are problems, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Document:
    """A YAML file read once: its value, and the line of each key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.text = file.read_bytes()
        self.node = yaml.compose(self.text, Loader=yaml.SafeLoader)
        self.value = yaml.safe_load(self.text) or {}

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
        steps = list(path)
        return Problem(str(self.file), self.line(steps), _dotted(steps), message)


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
    try:
        document = Document(file)
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the path and its permissions"
        raise InvalidConfig([Problem(str(file), 0, "", reason)]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        text = getattr(error, "problem", None) or str(error)
        line = mark.line + 1 if mark else 0
        raise InvalidConfig([Problem(str(file), line, "", f"not valid YAML: {text}")]) from error
    if not isinstance(document.value, dict):
        raise InvalidConfig([Problem(str(file), 1, "", "must be a mapping of sections, like 'server: {...}'")])
    return document


def validate(model: type[M], document: Document) -> tuple[M | None, list[Problem]]:
    try:
        return model.model_validate(document.value), []
    except pydantic.ValidationError as error:
        return None, [_explain(model, document, detail) for detail in error.errors()]


def _explain(model: type[BaseModel], document: Document, detail: Any) -> Problem:
    path = detail["loc"]
    if detail["type"] == "extra_forbidden":
        return document.problem(path, f"unknown key; {_known_keys(model, path)}")
    if detail["type"] == "missing":
        return document.problem(path, f"is missing; add '{path[-1]}:' here")
    message = str(detail["msg"]).removeprefix("Value error, ")
    return document.problem(path, f"{message[:1].lower()}{message[1:]} (found {_shown(detail['input'])})")


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
            current = get_args(current)[-1] if get_args(current) else None
        options = [a for a in get_args(current) if isinstance(a, type) and issubclass(a, BaseModel)]
        if options and type(None) in get_args(current):
            current = options[0]
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None
