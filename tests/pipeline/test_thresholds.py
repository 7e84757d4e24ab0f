"""A model elsewhere that says how sure it is answers what it is sure of, and the rows that choose its threshold
still judge it fairly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from judging import REMOTE, evaluated, only
from stories import config_in, keep, sorted_by_the_model, traffic, workshop_in

from gateway.app import Files, price_book, workshop
from gateway.config import TaskPolicy, load_routes
from gateway.domain.dataset import Dataset, Row
from gateway.pipeline import cycle, promote
from gateway.pipeline.asking import Answered, Ask, asker
from gateway.pipeline.canary import Step
from gateway.pipeline.dataset import build
from gateway.pipeline.evaluate import evaluate
from gateway.pipeline.gate import decide
from gateway.pipeline.thresholds import LOOKS, lowest_threshold
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Refusal

POLICY = TaskPolicy()
CONFIDENCE = 1 - (1 - POLICY.confidence) / LOOKS


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(2400))
    return build(store, "mail", tmp_path / "data" / "datasets")


def is_about_colours(text: str) -> bool:
    """What the tuned model never learnt."""
    return "colours" in text


def tuned(text: str) -> str:
    return "praise" if is_about_colours(text) else sorted_by_the_model(text)


def how_sure(text: str) -> float:
    return 0.62 if is_about_colours(text) else 0.97 if "kettle" in text else 0.99


def that_tells(reply: Any = tuned, sure: Any = how_sure) -> Ask:
    def ask(rows: Iterable[tuple[Row, dict[str, Any]]]) -> list[Answered]:
        return [
            Answered(text=reply(row.text), sure=sure(row.text), latency_ms=10.0, cost_usd=0.0001) for row, _ in rows
        ]

    return ask


def test_it_answers_what_it_is_sure_of_and_passes_the_gate(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    report = evaluated(store, tmp_path, data, that_tells())
    score = only(report)
    left = sum(is_about_colours(row.text) for row in data.part("validation")) / score.rows
    assert left > 0.05
    assert score.min_confidence == 0.97
    assert score.answered == pytest.approx(1 - left)
    assert (score.agreement, score.agreement_answered) == (1.0, 1.0)
    assert report.confidence == CONFIDENCE  # its threshold was a second look
    made = decide(report, POLICY)
    assert made.promote, made.sentence
    assert any("log-probabilities make it at least 0.97 sure" in note for note in made.notes)
    assert not any("promised (cross-fitted)" in note for note in made.notes)


def test_the_same_model_that_does_not_tell_is_refused(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    report = evaluated(store, tmp_path, data, that_tells(sure=lambda text: None))
    assert (only(report).min_confidence, only(report).answered) == (0.0, 1.0)
    assert report.confidence == POLICY.confidence
    made = decide(report, POLICY)
    assert not made.promote
    assert "agreement, lower bound" in made.failing


def test_one_that_is_good_enough_throughout_answers_everything(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    score = only(evaluated(store, tmp_path, data, that_tells(sorted_by_the_model)))
    assert (score.min_confidence, score.answered, score.agreement) == (0.0, 1.0, 1.0)


def test_being_sure_of_what_is_wrong_helps_nobody(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    report = evaluated(store, tmp_path, data, that_tells(sure=lambda text: 1.5 - how_sure(text)))
    assert only(report).min_confidence == 0.0
    assert not decide(report, POLICY).promote


def test_what_it_does_not_tell_of_an_answer_it_does_not_answer(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """Of calls of tools, and where its server leaves it out."""
    silent = that_tells(sure=lambda text: None if is_about_colours(text) else 0.9)
    score = only(evaluated(store, tmp_path, data, silent))
    assert score.min_confidence == 0.9
    assert score.agreement == 1.0
    assert score.answered < 1


def test_who_answers_more_itself_comes_first(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    """One hands a fifth over, and what it hands over is right: not by its merit. The other answers nearly all."""
    lazy, able = (msgspec.structs.replace(REMOTE, id=f"ft-{n}", model=n) for n in ("lazy", "able"))
    careful = that_tells(sure=lambda text: 0.99 if len(text) % 5 and not is_about_colours(text) else 0.1)
    asks = {"lazy": careful, "able": that_tells()}
    config = config_in(tmp_path)
    report = evaluate(
        store, config, data, [lazy, able], tmp_path / "models", lambda finetune: asks[finetune.model or ""]
    )
    assert [score.model for score in report.candidates] == ["able", "lazy"]
    assert report.candidates[0].answered > 0.85 > report.candidates[1].answered > 0.5
    assert report.confidence == pytest.approx(1 - 0.05 / 4)


def test_it_is_promoted_with_its_threshold(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    config = config_in(tmp_path)
    shop = workshop_in(tmp_path, store, config)
    report = evaluated(store, tmp_path, data, that_tells())
    made = decide(report, POLICY)
    promote.promote(store, config, shop.routes, shop.models, report, made, steps=[Step(95)])
    table = load_routes(shop.routes, config)
    assert table.routes[0].targets[0].min_confidence == 0.97


@pytest.mark.parametrize("relayed", [False, True], ids=["directly", "through a relay"])
@pytest.mark.parametrize("refuses", [False, True], ids=["it tells", "it refuses to tell"])
def test_a_server_is_asked_how_sure_its_model_is_until_it_refuses(
    store: SqliteStore, tmp_path: Path, data: Dataset, relayed: bool, refuses: bool
) -> None:
    def sure(body: dict[str, Any]) -> float:
        if refuses:
            raise Refusal(403, "You are not allowed to request logprobs from this model", param="logprobs")
        return how_sure(body["messages"][-1]["content"])

    with FakeOpenAI(lambda body: tuned(body["messages"][-1]["content"]), sure=sure) as api:
        config = config_in(tmp_path, providers={"openai": {"base_url": api.base_url}})
        if relayed:
            shop = workshop(Files(None, tmp_path / "config" / "routes.yaml"), config, store=store)
            score = only(cycle.evaluation(shop, data, [REMOTE]))
        else:
            ask = asker(config, price_book(config), tmp_path)
            score = only(evaluate(store, config, data, [REMOTE], tmp_path, ask))
        bodies = [body for request in api.received if (body := request.json())["model"] == "small-1"]
    assert score.min_confidence == (0.0 if refuses else pytest.approx(0.97))
    put = sum("logprobs" in body for body in bodies)
    assert (1 <= put <= 4) if refuses else put == score.rows  # four are asked at once
    assert len(bodies) == score.rows + (put if refuses else 0)


def test_a_provider_that_must_not_be_asked_is_not(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    with FakeOpenAI(lambda body: tuned(body["messages"][-1]["content"]), sure=lambda body: 0.9) as api:
        config = config_in(tmp_path, providers={"openai": {"base_url": api.base_url, "logprobs": False}})
        evaluate(store, config, data, [REMOTE], tmp_path, asker(config, price_book(config), tmp_path))
        assert not any("logprobs" in request.json() for request in api.received)


@pytest.mark.parametrize("rows", [100, 400])
def test_a_model_whose_confidence_tells_nothing_hardly_ever_breaks_the_promise(rows: int) -> None:
    """Right in 94.9 % of all cases, however sure: no threshold keeps 95 %. More: `benchmarks/thresholds.py`."""
    dice = np.random.default_rng(rows)
    found = 0
    for _ in range(300):
        sure, right = dice.beta(6, 1, rows), dice.random(rows) < 0.949
        found += lowest_threshold(np.ones(rows, bool), right, sure, POLICY, CONFIDENCE) is not None
    assert found <= 300 * 0.05 + 12  # three standard deviations above the 5 % that it may be


def test_a_row_that_is_refused_for_itself_leaves_the_others_asked(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """By a content filter, or for its length: with the question or without."""
    first = data.part("validation")[0].text

    def reply(body: dict[str, Any]) -> str:
        if body["messages"][-1]["content"] == first:
            raise Refusal(400, "The prompt triggered the content filter")
        return tuned(body["messages"][-1]["content"])

    with FakeOpenAI(reply, sure=lambda body: how_sure(body["messages"][-1]["content"])) as api:
        config = config_in(tmp_path, providers={"openai": {"base_url": api.base_url}})
        ask = asker(config, price_book(config), tmp_path)
        score = only(evaluate(store, config, data, [REMOTE], tmp_path, ask))
        assert sum("logprobs" not in request.json() for request in api.received) == 1
    assert score.min_confidence == pytest.approx(0.97)


def test_one_that_must_not_be_asked_has_no_threshold_though_the_app_itself_asks(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """No route could have one: its check refuses it."""
    row = data.part("validation")[0]
    with FakeOpenAI(sure=lambda body: 0.9) as api:
        config = config_in(tmp_path, providers={"openai": {"base_url": api.base_url, "logprobs": False}})
        (answer,) = asker(config, price_book(config), tmp_path)(REMOTE)([(row, {"logprobs": True})])
    assert (answer.error, answer.sure) == (None, None)


def test_who_is_certain_is_no_surer_than_who_is_nearly_so() -> None:
    """What was 1 here is 0.99999988 there, where numbers are added up in another order. And whoever a threshold was
    chosen by is above it."""
    right = np.repeat([True, False], [300, 100])
    certain = lowest_threshold(np.ones(400, bool), right, np.repeat([1.0, 0.2], [300, 100]), POLICY, CONFIDENCE)
    assert certain == 0.9999
    nearly = 0.97 - 1e-12
    chosen = lowest_threshold(np.ones(400, bool), right, np.repeat([nearly, 0.2], [300, 100]), POLICY, CONFIDENCE)
    assert chosen == nearly


def test_a_narrow_margin_asks_more_than_the_answers_promise() -> None:
    """Of 200 answers that it is sure of, 2 are wrong: agreed as promised; of all 400 that clients get 99.5 % must
    be right, and that is not shown."""
    given = np.ones(400, bool)
    sure = np.repeat([0.9, 0.1], [200, 200])
    right = np.repeat([True, False], [198, 202])
    right[:198], right[198:200] = True, False
    wide, narrow = TaskPolicy(), TaskPolicy(margin=0.005)
    assert lowest_threshold(given, right, sure, wide, 0.95) == pytest.approx(0.9)
    assert lowest_threshold(given, right, sure, narrow, 0.95) is None
