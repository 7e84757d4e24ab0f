"""An evaluation asks through a running relay: the same answers, a client's time, and nothing in the books."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from judging import REMOTE, only
from stories import asked, config_in, exchange, keep, mail, sorted_by_the_model, traffic

from gateway.app import Files, workshop
from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune
from gateway.errors import TaskError
from gateway.pipeline import cycle
from gateway.pipeline.asking import Answered, Asking, directly
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.dataset import build
from gateway.pipeline.finetune import run
from gateway.pipeline.sweep import plan
from gateway.pipeline.trial import Trial, read_trial
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Fault


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(400))
    return build(store, "mail", tmp_path / "data" / "datasets")


def shop_in(folder: Path, store: SqliteStore, config: Config) -> Workshop:
    """The workshop as the product wires it."""
    return workshop(Files(None, folder / "config" / "routes.yaml"), config, store=store)


def priced(api: FakeOpenAI) -> dict[str, Any]:
    return {"openai": {"base_url": api.base_url, "prices": {"small-1": {"input": 1.0, "output": 2.0}}}}


def last_word(body: dict[str, Any]) -> str:
    """The tuned model: it is asked the bare message, without a prompt."""
    return sorted_by_the_model(body["messages"][-1]["content"])


def classifier(store: SqliteStore, config: Config, data: Dataset, models: Path) -> FineTune:
    (trained,) = run(store, config, data, plan(store, data, {"classifier": [{"features": "word"}]}), models)
    return trained


def trial_of(store: SqliteStore, data: Dataset) -> Trial:
    return read_trial(store, data, data.part("validation"), [])


def through_a_relay(shop: Workshop, data: Dataset, work: Callable[[Asking], list[Answered]]) -> list[Answered]:
    assert shop.relayed is not None
    with shop.relayed(data) as asking:
        return work(asking)


def test_the_embedded_model_says_the_same_over_a_socket_and_is_as_sure(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    config = config_in(tmp_path)
    shop = shop_in(tmp_path, store, config)
    trained, trial = classifier(store, config, data, shop.models), trial_of(store, data)
    rows = list(zip(trial.rows, trial.envelopes, strict=True))
    here = directly(config, shop.prices, shop.models).candidate(trained)(rows)
    there = through_a_relay(shop, data, lambda asking: asking.candidate(trained)(rows))
    assert [(one.text, one.sure, one.cost_usd) for one in there] == [(one.text, one.sure, 0.0) for one in here]
    assert sum(one.latency_ms for one in there) > sum(one.latency_ms for one in here)


def test_nothing_of_an_evaluation_enters_the_books(
    store: SqliteStore, tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with FakeOpenAI(last_word) as api:
        config = config_in(tmp_path, providers=priced(api))
        shop = shop_in(tmp_path, store, config)
        before = store.count()
        report = cycle.evaluation(shop, data, [classifier(store, config, data, shop.models), REMOTE])
        assert len(api.received) == 3 * len(data.part("validation"))  # the candidate, its base stripped and whole
    assert {score.upstream for score in report.candidates} == {"local", "openai"}
    assert all("through a relay started for it" in score.latency_source for score in report.candidates)
    assert store.count() == before
    assert not (tmp_path / "data" / "journal").exists()
    assert not list(tmp_path.glob("unprompt-evaluation-*"))


def test_a_provider_is_asked_what_it_is_asked_directly(store: SqliteStore, tmp_path: Path) -> None:
    more: dict[str, Any] = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    keep(store, [exchange(n, asked(text, **more), label) for n, (text, label) in enumerate(mail()[:100])])
    data = build(store, "mail", tmp_path / "data" / "datasets")
    with FakeOpenAI(last_word) as api:
        shop = shop_in(tmp_path, store, config_in(tmp_path, providers=priced(api)))
        score = only(cycle.evaluation(shop, data, [REMOTE]))
        relayed = sorted(json.dumps(request.json(), sort_keys=True) for request in api.received)
        api.received.clear()
        plain = only(cycle.evaluation(msgspec.structs.replace(shop, relayed=None), data, [REMOTE]))
        assert sorted(json.dumps(request.json(), sort_keys=True) for request in api.received) == relayed
    assert (score.agreement, score.cost_per_1k_usd) == (1.0, plain.cost_per_1k_usd)
    assert plain.latency_source.startswith("asked directly")


def test_the_time_is_until_the_whole_answer_is_there(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    data = build(store, "mail", tmp_path / "data" / "datasets")
    with FakeOpenAI(last_word, latency=0.05) as api:
        shop = shop_in(tmp_path, store, config_in(tmp_path, providers=priced(api)))
        score = only(cycle.evaluation(shop, data, [REMOTE]))
    assert score.p50_ms is not None
    assert 50 <= score.p50_ms < 500


def test_what_the_relay_would_leave_to_the_incumbent_counts_as_left_to_it(
    store: SqliteStore, tmp_path: Path
) -> None:
    """Requests for two answers at once go whole: a model in this process gives one."""
    rows = [exchange(n, asked(text, n=2), label) for n, (text, label) in enumerate(mail()[:200])]
    keep(store, rows)
    data = build(store, "mail", tmp_path / "data" / "datasets")
    config = config_in(tmp_path)
    shop = shop_in(tmp_path, store, config)
    trained, trial = classifier(store, config, data, shop.models), trial_of(store, data)
    rows_asked = list(zip(trial.rows, trial.envelopes, strict=True))
    answers = through_a_relay(shop, data, lambda asking: asking.candidate(trained)(rows_asked))
    assert {answer.text for answer in answers} == {None}


def test_a_provider_that_stumbles_is_asked_again(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    data = build(store, "mail", tmp_path / "data" / "datasets")
    with FakeOpenAI(last_word) as api:
        api.inject(Fault(503, times=1))
        shop = shop_in(tmp_path, store, config_in(tmp_path, providers=priced(api)))
        score = only(cycle.evaluation(shop, data, [REMOTE]))
    assert (score.agreement, score.answered) == (1.0, 1.0)


@pytest.mark.parametrize("fault", [Fault(401, times=999), Fault(body="<html>", status=200, times=999)])
def test_a_provider_that_refuses_is_a_candidate_that_failed_and_its_key_is_not_told(
    store: SqliteStore, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store, traffic(60))
    data = build(store, "mail", tmp_path / "data" / "datasets")
    monkeypatch.setenv("MAIL_KEY", "sk-secret")
    with FakeOpenAI(last_word) as api:
        api.inject(fault)
        config = config_in(tmp_path, providers={"openai": {"base_url": api.base_url, "api_key_env": "MAIL_KEY"}})
        report = cycle.evaluation(shop_in(tmp_path, store, config), data, [REMOTE])
        keys = {request.headers["authorization"] for request in api.received}
    assert report.candidates == []
    assert "gave no answer to any of" in report.failed["ft-r"]
    assert "secret" not in json.dumps(msgspec.to_builtins(report))
    assert keys == {"Bearer sk-secret"}


def test_a_model_that_is_gone_and_a_provider_that_is_gone_are_named(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    shop = shop_in(tmp_path, store, config_in(tmp_path))
    lost = REMOTE.but(upstream="local", model="mail-9")
    with pytest.raises(TaskError, match="no trained model 'mail-9'"):
        through_a_relay(shop, data, lambda asking: asking.candidate(lost)([]))
    with pytest.raises(TaskError, match="no provider 'elsewhere' in the config; there are: openai"):
        through_a_relay(shop, data, lambda asking: asking.other("elsewhere", "small")([]))
