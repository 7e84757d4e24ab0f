"""P2: `kill -9` at random moments under load loses no exchange that a client has received whole.

The same program with 1,000 kills: `python benchmarks/kill.py`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

KILLS = int(os.environ.get("UNPROMPT_TEST_KILLS", "12"))


@pytest.fixture(scope="module")
def killer() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "kill.py"
    spec = importlib.util.spec_from_file_location("kill", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_nothing_acknowledged_is_lost_however_often_it_is_killed(tmp_path: Path, killer: ModuleType) -> None:
    story = killer.run(tmp_path, kills=KILLS, seed=os.getpid(), clients=6, longest=0.3, say=False)
    report = asyncio.run(story)
    assert report.kills == KILLS
    assert report.acknowledged >= 3 * KILLS  # it was under load indeed
    assert (report.lost, report.different, report.torn) == (0, 0, 0), report
    assert report.rows >= report.acknowledged
    assert report.incomplete >= KILLS // 2  # what was under way has left its mark
    assert report.incomplete + report.acknowledged >= report.rows - report.kills * 6
