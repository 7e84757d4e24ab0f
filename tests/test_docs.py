"""The reference names everything that there is to set, call, send, scrape or query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
from pydantic import BaseModel

from gateway.cli import main
from gateway.config.routes import _RouteConfig
from gateway.config.settings import Config
from gateway.domain.exchange import Outcome
from gateway.errors import CODES
from gateway.metrics import TABLE
from gateway.stores.sqlite import SqliteStore

ROOT = Path(__file__).parent.parent
REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """The names of all settings below a section, however deep."""
    for name, field in model.model_fields.items():
        yield name
        for part in (field.annotation, *_inner(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from keys_of(part)


def _inner(annotation: object) -> Iterator[object]:
    for part in get_args(annotation):
        yield part
        yield from _inner(part)


@pytest.mark.parametrize("key", sorted({*keys_of(Config), *keys_of(_RouteConfig)}))
def test_every_setting_is_in_the_reference(key: str) -> None:
    assert f"{key}`" in REFERENCE or f".{key}" in REFERENCE or f"`{key}" in REFERENCE


@pytest.mark.parametrize("name", sorted(name for name, command in main.commands.items() if not command.hidden))
def test_every_command_is_in_the_reference_and_has_an_example(name: str) -> None:
    command = main.commands[name]
    assert isinstance(command, click.Command)
    assert f"`{name}" in REFERENCE
    assert f"Example: unprompt {name}" in (command.help or "")


@pytest.mark.parametrize("name", [metric.name for metric in TABLE])
def test_every_metric_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in REFERENCE


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_is_in_the_reference(code: str) -> None:
    assert f"`{code}`" in REFERENCE


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_in_the_reference(outcome: Outcome) -> None:
    assert f"`{outcome.value}`" in REFERENCE


def test_every_table_is_in_the_reference(tmp_path: Path) -> None:
    tables = SqliteStore(tmp_path / "unprompt.db").db.table_names()
    assert [table for table in tables if f"`{table}`" not in REFERENCE] == []


def test_every_file_is_in_the_readmes_tree_and_every_file_there_is_real() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").partition("\ngateway/\n")[2].partition("```")[0]
    named = sorted(line.split()[0] for line in tree.splitlines() if line.split()[0].endswith(".py"))
    files = (path for path in (ROOT / "gateway").rglob("*.py") if not path.name.startswith("__"))
    assert named == sorted(path.name for path in files)
