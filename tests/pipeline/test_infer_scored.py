"""The benchmark's own scorer on generated traffic, where the benchmark is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.pipeline.predictions import infer_files

BENCHMARK = Path(__file__).resolve().parents[3] / "shared" / "templates"
SCENARIOS = {
    # at least: share of live requests matched, grouping F1, share of the fixed text stripped
    "s02_few020": (0.97, 0.97, 0.95),
    "s07_adv": (0.93, 0.95, 0.80),
    "s08_multi": (0.90, 0.88, 0.90),
}

pytestmark = pytest.mark.skipif(not BENCHMARK.exists(), reason="the template benchmark is not here")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    traffic, out = tmp_path_factory.mktemp("traffic"), tmp_path_factory.mktemp("predictions")
    run("gen.py", BENCHMARK / "dev", traffic, "--seed", 23, "--only", ",".join(SCENARIOS))
    for name in SCENARIOS:
        train, live = (traffic / f"{name}.{part}.jsonl.gz" for part in ("train", "live"))
        infer_files(train, live, out / f"{name}.pred.jsonl")
    run("score.py", traffic, out, "--json", out / "scores.json")
    return {score["scenario"]: score for score in json.loads((out / "scores.json").read_text())}


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, str(BENCHMARK / script), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_stripped_that_the_template_does_not_hold(scores: dict[str, dict[str, Any]], name: str) -> None:
    score = scores[name]
    assert score["changed"]["n"] > 50
    assert score["changed"]["false_strip"] == 0
    assert score["noise"]["false_strip"] == 0
    assert score["lossless"]["recon_ok"] == 1.0
    assert score["lossless"]["variant_inconsistent"] == 0


@pytest.mark.parametrize(("name", "floors"), SCENARIOS.items())
def test_tasks_are_told_apart_matched_and_stripped(
    scores: dict[str, dict[str, Any]], name: str, floors: tuple[float, float, float]
) -> None:
    score = scores[name]
    reached = (score["live_coverage"], score["group"]["F1"], score["live"]["strip_rate"])
    assert all(value >= floor for value, floor in zip(reached, floors, strict=True)), reached
