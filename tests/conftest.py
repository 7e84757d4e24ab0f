"""What every test may use: a store, and the offline wing around it. `stories` can be imported everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.pipeline.cycle import Workshop
from gateway.stores.sqlite import SqliteStore

sys.path.insert(0, str(Path(__file__).parent))

import stories


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "data" / "unprompt.db")
    yield opened
    opened.close()


@pytest.fixture
def shop(store: SqliteStore, tmp_path: Path) -> Workshop:
    return stories.workshop_in(tmp_path, store, stories.config_in(tmp_path))
