"""A sweep that is killed at random moments ends as one that is not, and trains nothing twice.

The same program with more kills: `python benchmarks/sweep.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

KILLS = int(os.environ.get("UNPROMPT_TEST_SWEEP_KILLS", "3"))


@pytest.fixture(scope="module")
def killer() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "sweep.py"
    spec = importlib.util.spec_from_file_location("sweep_killer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep_killer"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_table(
    tmp_path: Path, killer: ModuleType
) -> None:
    report = killer.run(tmp_path, kills=KILLS, seed=os.getpid(), rows=120, polls_per_state=3)
    assert len(report.undisturbed) == 9
    assert report.killed == report.undisturbed
    assert {state for _, state, _, _ in report.killed} == {"succeeded"}
    assert report.hits.get("running", 0) > 0  # it was at work when it was killed
    assert report.after > 0  # also when some of it was done
    assert (report.jobs_created, report.files_uploaded, report.finished_and_written_again) == (4, 2, 0), report
