"""Who may work on a store, and who waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import StoreError
from gateway.pipeline.locks import DISCOVERY_LOCK, TURN_LOCK, one_at_a_time, worker_at_rest


def test_one_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "below" / "a.lock"
    with one_at_a_time(file, wait=False) as first:
        assert first
        with one_at_a_time(file, wait=False) as second:
            assert not second
    with one_at_a_time(file, wait=True) as third:
        assert third
    (tmp_path / "blocked").write_text("")
    with (
        pytest.raises(StoreError, match="check the permissions"),
        one_at_a_time(tmp_path / "blocked" / "x", wait=True),
    ):
        pass


@pytest.mark.parametrize(("held", "mine"), [(None, True), (TURN_LOCK, True), (DISCOVERY_LOCK, False)])
def test_who_does_not_wait_is_told_whether_templates_are_looked_for(
    tmp_path: Path, held: str | None, mine: bool
) -> None:
    waited: list[str] = []
    with one_at_a_time(tmp_path / (held or "none"), wait=False):
        with worker_at_rest(tmp_path, wait=False, on_wait=lambda: waited.append("for a turn")) as quiet:
            assert quiet == mine
        assert waited == []  # who does not wait has nothing to say


def test_nobody_takes_turns_or_looks_for_templates_while_it_rests(tmp_path: Path) -> None:
    with worker_at_rest(tmp_path):
        for lock in (TURN_LOCK, DISCOVERY_LOCK):
            with one_at_a_time(tmp_path / lock, wait=False) as free:
                assert not free
    with one_at_a_time(tmp_path / TURN_LOCK, wait=False) as free:
        assert free
