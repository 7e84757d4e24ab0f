"""Candidates are judged by what clients would get: their answer, or after they abstain the incumbent's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from judging import REMOTE, evaluated, only, says
from stories import answer, asked, config_in, exchange, feedback, keep, mail, sorted_by_the_model, traffic

from gateway.app import price_book
from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Sweep
from gateway.errors import DatasetError, TaskError
from gateway.pipeline import evaluate, trial
from gateway.pipeline.asking import Ask, asker, same_answer
from gateway.pipeline.dataset import build
from gateway.pipeline.evaluate import Report, load_report
from gateway.pipeline.finetune import run
from gateway.pipeline.scoring import percentiles
from gateway.pipeline.sweep import plan
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Fault, Refusal


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(400))
    return build(store, "mail", tmp_path / "data" / "datasets")


def test_a_perfect_candidate_beside_the_incumbent(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    report = evaluated(store, tmp_path, data, says(sorted_by_the_model, cost=0.0001))
    score = only(report)
    assert score.rows == report.incumbent.rows == len(data.part("validation"))
    assert (score.agreement, score.agreement_requests, score.answered) == (1.0, 1.0, 1.0)
    assert score.agreement_low == pytest.approx(0.05 ** (1 / score.rows))
    assert score.cost_per_1k_usd == pytest.approx(0.1)
    assert report.incumbent.cost_per_1k_usd == pytest.approx(1.0)
    assert score.cost_ratio_high == pytest.approx(0.1)
    assert score.p95_ms == 10.0
    assert report.incumbent.p95_ms is not None
    assert 650 <= report.incumbent.p95_ms <= 700
    assert score.latency_ratio_high is not None
    assert score.latency_ratio_high < 0.02
    assert (report.provider, report.model) == ("openai", "gpt-6")
    assert (report.incumbent.upstream, report.incumbent.model) == ("openai", "gpt-6")


def test_what_it_gets_wrong_counts_and_what_it_leaves_to_the_incumbent_does_not(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """It answers praise with `other`, and has no answer to questions about delivery."""
    given = {"refund": "refund", "praise": "other", "other": " other\n", "delivery": None}
    score = only(evaluated(store, tmp_path, data, says(lambda text: given[sorted_by_the_model(text)])))
    labels = [row.output for row in data.part("validation")]
    wrong, left = labels.count("praise") / len(labels), labels.count("delivery") / len(labels)
    assert score.agreement == pytest.approx(1 - wrong)
    assert score.answered == pytest.approx(1 - left)
    assert score.agreement_answered == pytest.approx(1 - wrong / (1 - left))
    assert score.p95_ms is not None
    assert score.p95_ms > 600  # the candidate's time and then the incumbent's
    assert score.cost_per_1k_usd == pytest.approx(1000 * left * 0.001)


def test_a_frequent_input_weighs_as_often_as_it_is_asked(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    often = data.part("validation")[0].text
    keep(store, [exchange(900 + n, asked(often), sorted_by_the_model(often)) for n in range(100)])
    again = build(store, "mail", tmp_path / "data" / "datasets")
    score = only(evaluated(store, tmp_path, again, says(lambda t: "no" if t == often else sorted_by_the_model(t))))
    rows = len(again.part("validation"))
    assert score.agreement == pytest.approx(1 - 1 / rows)
    assert score.agreement_requests == pytest.approx(1 - 101 / (rows + 100))


def test_who_answers_what_the_incumbent_refuses_is_wrong(store: SqliteStore, tmp_path: Path) -> None:
    """A quarter of the traffic asks for tools or is refused; it is in no training row, and in the judgement."""
    refused = [exchange(900 + n, asked(f"how do I break into house number {n}?"), answer(None, refusal="No."))
               for n in range(100)]  # fmt: skip
    keep(store, [*traffic(300), *refused])
    data = build(store, "mail", tmp_path / "data" / "datasets")
    share = len(data.beyond) / (len(data.beyond) + len(data.part("validation")))
    assert share > 0.15
    bold = only(evaluated(store, tmp_path, data, says(sorted_by_the_model)))
    assert bold.agreement == pytest.approx(1 - share)
    wise = only(evaluated(store, tmp_path, data, says(lambda t: None if "break" in t else sorted_by_the_model(t))))
    assert wise.agreement == 1.0
    assert wise.answered == pytest.approx(1 - share)


def test_of_a_row_that_a_person_corrected_after_our_own_model_the_incumbents_time_is_not_known(
    store: SqliteStore, tmp_path: Path
) -> None:
    ours = [exchange(900 + n, asked(f"odd message number {n}"), "refund", stripped=True, target="local/mail-1",
                     latency_ms=0.1, cost_usd=0.0) for n in range(200)]  # fmt: skip
    keep(store, [*traffic(100), *ours])
    for one in ours:
        feedback(store, one.id, corrected_output="other")
    data = build(store, "mail", tmp_path / "data" / "datasets")
    report = evaluated(store, tmp_path, data, says(lambda text: "other" if "odd" in text else None))
    assert report.incumbent.cost_per_1k_usd == pytest.approx(1.0)
    assert report.incumbent.p50_ms is not None
    assert report.incumbent.p50_ms > 300
    assert only(report).agreement == 1.0


def test_without_prices_and_times_nothing_is_invented(store: SqliteStore, tmp_path: Path) -> None:
    bare = [exchange(n, asked(text), label, cost_usd=None, input_tokens=None, latency_ms=None)
            for n, (text, label) in enumerate(mail()[:100])]  # fmt: skip
    keep(store, bare)
    data = build(store, "mail", tmp_path / "data" / "datasets")
    report = evaluated(store, tmp_path, data, says(sorted_by_the_model, cost=None))
    assert (report.incumbent.cost_per_1k_usd, report.incumbent.p95_ms, report.incumbent.input_tokens) == (None,) * 3
    assert (only(report).cost_per_1k_usd, only(report).cost_ratio_high, only(report).latency_ratio_high) == (
        None,
    ) * 3
    kept = store.rows("evaluations")[0]
    assert "NaN" not in kept["report"]
    assert load_report(kept) == report


def test_a_candidate_without_a_price_beside_a_priced_incumbent_has_an_unknown_ratio(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    score = only(evaluated(store, tmp_path, data, says(sorted_by_the_model, cost=None)))
    assert (score.cost_per_1k_usd, score.cost_ratio_high) == (None, None)


def test_failed_candidates_are_named_with_their_reason(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    lost = REMOTE.but(id="ft-lost")
    broken = REMOTE.but(id="ft-broken", state=FineTuneState.FAILED, error="quota: no money left.")

    def asks(finetune: FineTune) -> Ask:
        if finetune.id == "ft-lost":
            raise TaskError("no trained model 'small-1'")
        return says(sorted_by_the_model)

    report = evaluate.evaluate(store, config_in(tmp_path), data, [REMOTE, lost, broken], tmp_path, asks)
    assert [score.finetune for score in report.candidates] == ["ft-r"]
    assert report.failed == {"ft-lost": "no trained model 'small-1'", "ft-broken": "quota: no money left."}


def test_how_far_the_first_one_is_ahead_of_each_other_is_told_by_a_bound(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """A quarter of the messages are questions about delivery: `ft-silent` leaves them to the incumbent, `ft-wrong`
    sorts them wrongly, `ft-one` leaves but one of them."""
    questions = sorted({row.text for row in data.part("validation") if row.output == "delivery"})

    def asks(finetune: FineTune) -> Ask:
        to_questions = {"ft-silent": None, "ft-wrong": "other"}.get(finetune.id, "delivery")

        def reply(text: str) -> str | None:
            label = sorted_by_the_model(text)
            if finetune.id == "ft-one" and text == questions[0]:
                return None
            return to_questions if label == "delivery" else label

        return says(reply, cost={"ft-best": 0.0001, "ft-one": 0.0002}.get(finetune.id, 0.0003))

    four = [REMOTE.but(id=one) for one in ("ft-silent", "ft-wrong", "ft-best", "ft-one")]
    report = evaluate.evaluate(store, config_in(tmp_path), data, four, tmp_path, asks)
    ahead = {score.finetune: score.beaten_low for score in report.candidates}
    rows, missed = report.incumbent.rows, len(questions)
    assert missed >= 10
    assert (report.candidates[0].finetune, ahead["ft-best"]) == ("ft-best", None)
    for one in ("ft-silent", "ft-wrong"):  # what it leaves, it does not answer rightly either
        low = ahead[one]
        assert low is not None
        assert 0 < low < missed / rows
    assert ahead["ft-one"] is not None
    assert ahead["ft-one"] <= 0  # one row more or less is chance


def test_one_that_never_answers_has_failed_and_is_not_a_silent_refusal(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    report = evaluated(store, tmp_path, data, says(lambda text: None))
    assert report.candidates == []
    assert "gave no answer to any of" in report.failed["ft-r"]


def test_each_candidate_that_is_chosen_by_the_judging_rows_costs_confidence(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    four = [REMOTE.but(id=f"ft-{n}") for n in range(4)]
    report = evaluated(store, tmp_path, data, says(sorted_by_the_model), *four)
    assert report.confidence == pytest.approx(1 - 0.05 / 4)
    assert evaluated(store, tmp_path, data, says(sorted_by_the_model)).confidence == pytest.approx(0.95)


def test_no_more_rows_are_asked_than_needed(
    store: SqliteStore, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "MOST_ROWS", 30)
    score = only(evaluated(store, tmp_path, data, says(sorted_by_the_model)))
    assert score.rows == 30


def test_without_validation_rows_there_is_nothing_to_judge_by(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    bare = msgspec.structs.replace(data, rows=data.part("train"))
    with pytest.raises(DatasetError, match="has no validation rows"):
        evaluated(store, tmp_path, bare, says(sorted_by_the_model))


# --- the real candidates ---------------------------------------------------------------------------------


def test_the_embedded_classifier_answers_when_it_is_sure(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    config, models = config_in(tmp_path), tmp_path / "data" / "models"
    planned = plan(store, data, {"classifier": [{"features": "word"}]})
    trained = run(store, config, data, planned, models)
    report = evaluate.evaluate(store, config, data, trained, models, asker(config, price_book(config), models))
    score = only(report)
    assert score.upstream == "local"
    assert score.expected is not None
    assert score.agreement > 0.97
    assert score.answered > 0.5
    assert score.cost_per_1k_usd is not None
    assert score.cost_per_1k_usd < 0.5
    assert 0 < score.min_confidence <= 1
    assert round(score.min_confidence, 6) == score.min_confidence  # what is judged is what the route will hold


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_without_the_trainers_word_on_confidence_all_but_the_strange_is_answered(
    store: SqliteStore, tmp_path: Path, data: Dataset, damage: str
) -> None:
    config, models = config_in(tmp_path), tmp_path / "data" / "models"
    trained = run(store, config, data, plan(store, data, {"classifier": [{"features": "word"}]}), models)
    file = models / (trained[0].model or "") / "crossfit.json"
    content = {"missing": None, "cut": file.read_bytes()[:50], "other": b'{"confidence": [1], "right": []}'}[damage]
    file.unlink() if content is None else file.write_bytes(content)
    report = evaluate.evaluate(store, config, data, trained, models, asker(config, price_book(config), models))
    assert (only(report).expected, only(report).min_confidence) == (None, 1e-6)


def test_a_damaged_model_file_costs_that_candidate_only(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    config, models = config_in(tmp_path), tmp_path / "data" / "models"
    sweep: Sweep = {"classifier": [{"features": "word"}, {"features": "word", "balance": 0.0}]}
    one, two = run(store, config, data, plan(store, data, sweep), models)
    file = models / (one.model or "") / "model.bin"
    file.write_bytes(file.read_bytes()[:-5])
    report = evaluate.evaluate(store, config, data, [one, two], models, asker(config, price_book(config), models))
    assert only(report).finetune == two.id
    assert "the model file is damaged" in report.failed[one.id]


def remote_config(folder: Path, api: FakeOpenAI) -> Config:
    prices = {"small-1": {"input": 1.0, "output": 2.0}}
    return config_in(folder, providers={"openai": {"base_url": api.base_url, "prices": prices}})


def asked_over_http(store: SqliteStore, folder: Path, data: Dataset, api: FakeOpenAI) -> Report:
    config = remote_config(folder, api)
    ask = asker(config, price_book(config), folder)
    return evaluate.evaluate(store, config, data, [REMOTE], folder, ask)


def last_word(body: dict[str, Any]) -> str:
    """The tuned model: it is asked the bare message, without a prompt."""
    return sorted_by_the_model(body["messages"][-1]["content"])


def test_a_remote_candidate_is_asked_what_a_live_request_would_ask(store: SqliteStore, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    keep(store, [exchange(n, asked(text, **more), label) for n, (text, label) in enumerate(mail()[:100])])
    data = build(store, "mail", tmp_path / "data" / "datasets")
    with FakeOpenAI(last_word) as api:
        score = only(asked_over_http(store, tmp_path, data, api))
        bodies = [request.json() for request in api.received]
    assert score.agreement == 1.0
    assert len(bodies) == score.rows == len(data.part("validation"))
    asked_for = {"max_tokens", "messages", "model", "temperature", "logprobs", "top_logprobs"}
    assert all(set(body) == asked_for for body in bodies)
    assert {body["messages"][0]["content"] for body in bodies} == {row.text for row in data.part("validation")}
    assert score.cost_per_1k_usd is not None
    assert 0.005 < score.cost_per_1k_usd < 0.05


def test_a_candidate_whose_provider_is_gone_from_the_config_is_noted_as_failed(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    with FakeOpenAI(last_word) as api:
        config = remote_config(tmp_path, api)
        gone = msgspec.structs.replace(REMOTE, id="ft-gone", upstream="closed")
        ask = asker(config, price_book(config), tmp_path)
        report = evaluate.evaluate(store, config, data, [REMOTE, gone], tmp_path, ask)
    assert only(report).finetune == REMOTE.id
    assert report.failed == {"ft-gone": "no provider 'closed' in the config; there are: openai"}


def test_tool_calls_and_empty_answers_of_a_candidate_are_wrong_and_not_an_abstention(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    call = {
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }

    def reply(body: dict[str, Any]) -> str | dict[str, Any]:
        label = last_word(body)
        return call if label == "refund" else label.replace("praise", "")

    with FakeOpenAI(reply) as api:
        score = only(asked_over_http(store, tmp_path, data, api))
    labels = [row.output for row in data.part("validation")]
    assert score.answered == 1.0
    assert score.agreement == pytest.approx(1 - (labels.count("refund") + labels.count("praise")) / len(labels))


def test_a_candidate_that_refuses_some_is_blended_with_the_incumbent(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    def reply(body: dict[str, Any]) -> str:
        if "parcel" in body["messages"][-1]["content"]:
            raise Refusal(400, "not today")
        return last_word(body)

    with FakeOpenAI(reply) as api:
        score = only(asked_over_http(store, tmp_path, data, api))
    assert score.agreement == 1.0
    assert 0.7 < score.answered < 0.95


@pytest.mark.parametrize(
    "fault", [Fault(401, times=999), Fault(404, times=999), Fault(body="<html>", status=200, times=999)]
)
def test_an_upstream_that_is_not_there_fails_the_candidate_without_its_key_in_the_reason(
    store: SqliteStore, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store, traffic(60))
    data = build(store, "mail", tmp_path / "data" / "datasets")
    monkeypatch.setenv("MAIL_KEY", "sk-secret")
    with FakeOpenAI(last_word) as api:
        api.inject(fault)
        config = config_in(tmp_path, providers={"openai": {"base_url": api.base_url, "api_key_env": "MAIL_KEY"}})
        asks = asker(config, price_book(config), tmp_path)
        report = evaluate.evaluate(store, config, data, [REMOTE], tmp_path, asks)
        keys = {request.headers["authorization"] for request in api.received}
    assert report.candidates == []
    assert "gave no answer to any" in report.failed["ft-r"]
    assert "secret" not in json.dumps(msgspec.to_builtins(report))
    assert keys == {"Bearer sk-secret"}


# --- small things ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("refund", " refund\n", True),
        ("refund", "Refund", False),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ("1", "1.0", False),
        ('"x"', "x", False),
        ("[" * 5000, "[" * 5001, False),
    ],
)
def test_the_same_answer(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same


def test_percentiles_of_nothing_are_not_known() -> None:
    assert percentiles([]) == (None, None)
    assert percentiles(list(np.arange(101.0))) == (50.0, 95.0)
