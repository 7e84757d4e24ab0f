"""What the worker tells the relays: how much to audit, and which alarms there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.raised import ALARMS, AUDITS, Told, raise_audits, raised, tell, watched_candidates


def test_audits_are_raised_and_lowered_again(tmp_path: Path) -> None:
    assert raised(tmp_path) == {}
    assert raise_audits(tmp_path, {"local/mail-1": 100.0})
    assert raised(tmp_path) == {"local/mail-1": 100.0}
    assert not raise_audits(tmp_path, {"local/mail-1": 100.0})
    assert raise_audits(tmp_path, {})
    assert raised(tmp_path) == {}


def test_nothing_is_written_where_nothing_was_ever_raised(tmp_path: Path) -> None:
    assert not raise_audits(tmp_path, {})
    assert not tell(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_known_of_a_candidate_comes_back_as_it_was_told(tmp_path: Path) -> None:
    known = {"mail": Told(["agreement"], (0.9, 0.93, 0.95)), "post": Told()}
    assert tell(tmp_path, known)
    assert watched_candidates(tmp_path) == known


@pytest.mark.parametrize("content", [b"", b"{", b'{"mail": "much"}', b"\xff"])
def test_a_file_that_cannot_be_read_raises_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / AUDITS).write_bytes(content)
    (tmp_path / ALARMS).write_bytes(content)
    assert (raised(tmp_path), watched_candidates(tmp_path)) == ({}, {})
