"""Answers that are JSON with one field from a closed set are labels like any others, from traffic to answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stories import asked, config_in, exchange, keep, mail, sorted_by_the_model

from gateway.domain.finetune import FineTuneState
from gateway.pipeline.dataset import build
from gateway.pipeline.finetune import run
from gateway.pipeline.sweep import plan, sweep_of
from gateway.stores.sqlite import SqliteStore
from gateway.upstreams.embedded import EmbeddedModel


@pytest.mark.parametrize("fence", ["%s", "```json\n%s\n```"])
def test_json_of_one_closed_field_is_learnt_by_the_classifier_and_written_as_it_was(
    store: SqliteStore, tmp_path: Path, fence: str
) -> None:
    def written(label: str) -> str:
        return fence % json.dumps({"kind": label}, indent=1)

    keep(store, [exchange(n, asked(text), written(label)) for n, (text, label) in enumerate(mail()[:300])])
    data = build(store, "mail", tmp_path / "data" / "datasets")
    config, models = config_in(tmp_path), tmp_path / "models"
    sweep = sweep_of(config, data, models)
    assert "classifier" in sweep
    candidates = [one for one in plan(store, data, sweep) if one.trainer == "classifier"]
    (done,) = run(store, config, data, candidates, models)
    assert done.state is FineTuneState.SUCCEEDED
    model = EmbeddedModel.load(models, str(done.model))
    right = [model.answer(row.text)[0] == written(sorted_by_the_model(row.text)) for row in data.part("validation")]
    assert sum(right) >= 0.95 * len(right)
