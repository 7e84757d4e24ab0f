"""The numbered scripts of `sql/` that bring a file's tables up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib import resources


def migrations() -> dict[int, list[str]]:
    """The statements of each script by its number. One at a time: a whole script would commit the transaction that
    it runs in."""
    folder = resources.files("gateway.stores") / "sql"
    scripts = (file for file in folder.iterdir() if file.name.endswith(".sql"))
    return {int(script.name.split("_")[0]): list(_statements(script.read_text("utf-8"))) for script in scripts}


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
