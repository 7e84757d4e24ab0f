"""Providers tell in their model lists when they take a model away: asked once a day, known to everybody."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from stories import config_in

from gateway.config import Config
from gateway.pipeline.model_lists import EVERY_SECONDS, RETRY_SECONDS, any_known, refresh, shutdown_date
from gateway.pipeline.shutdown import shutdowns
from gateway.testing import FakeOpenAI, Fault

NOW = 1_800_000_000.0  # 2027-01-15
NANO = "gpt-4.1-nano-2025-04-14"
DAY = datetime.date(2027, 1, 31)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SHOP_KEY", "sk-of-the-shop")
    return "SHOP_KEY"


def told(folder: Path, api: FakeOpenAI, **more: Any) -> Config:
    return config_in(folder, providers={"openai": {"base_url": api.base_url, "api_key_env": "SHOP_KEY", **more}})


def test_the_providers_own_word_is_known_without_a_line_in_the_config(tmp_path: Path, key: str) -> None:
    with FakeOpenAI(shutdown_dates={NANO: "2027-01-31"}) as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        assert not any_known(config)
        refresh(config, NOW)
        assert any_known(config)
        (one,) = shutdowns(config, [f"openai/{NANO}", "openai/gpt-6", "elsewhere/gpt-6"], NOW)
        assert one.sentence == f"openai takes {NANO} away on 2027-01-31 (in 16 days)"
        assert one.is_near


def test_a_tuned_model_goes_with_its_base_model_and_the_config_comes_first(tmp_path: Path, key: str) -> None:
    tuned = f"ft:{NANO}:org:shop:1"
    with FakeOpenAI(shutdown_dates={NANO: "2027-01-31"}) as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        refresh(config, NOW)
        assert shutdown_date(config, "openai", tuned) == DAY
        other = told(tmp_path, api, shutdown_dates={tuned: "2028-02-01", NANO: "2027-03-01"})
        assert shutdown_date(other, "openai", tuned) == datetime.date(2028, 2, 1)
        assert shutdown_date(other, "openai", NANO) == datetime.date(2027, 3, 1)


def test_it_is_asked_once_a_day_and_with_our_own_key_only(tmp_path: Path, key: str) -> None:
    with FakeOpenAI(shutdown_dates={NANO: "2027-01-31"}, api_key="sk-of-the-shop") as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        for seconds in (0, 60, EVERY_SECONDS - 1, EVERY_SECONDS):
            refresh(config, NOW + seconds)
        assert len(api.received) == 2
        keyless = config_in(tmp_path / "other", providers={"openai": {"base_url": api.base_url}})
        refresh(keyless, NOW)
        assert len(api.received) == 2


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(drop=True), Fault(status=200, body="<html>"),
                                   Fault(status=200, body='{"data": [7]}')])  # fmt: skip
def test_what_was_told_stays_known_while_the_provider_is_away(tmp_path: Path, key: str, fault: Fault) -> None:
    with FakeOpenAI(shutdown_dates={NANO: "2027-01-31"}) as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        refresh(config, NOW)
        api.inject(fault)
        refresh(config, NOW + EVERY_SECONDS)
        assert shutdown_date(config, "openai", NANO) == DAY
        api.shutdown_dates = {}  # it was put off
        refresh(config, NOW + EVERY_SECONDS + RETRY_SECONDS)
        assert shutdown_date(config, "openai", NANO) is None


@pytest.mark.parametrize("said", [None, "", "soon", 0, True, [], "2027-13-01", 1e30])
def test_a_day_that_is_none_is_none(tmp_path: Path, key: str, said: Any) -> None:
    with FakeOpenAI(shutdown_dates={NANO: said}) as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        refresh(config, NOW)
        assert shutdown_date(config, "openai", NANO) is None


@pytest.mark.parametrize("said", ["2027-01-31", "2027-01-31T08:00:00Z", 1_801_353_600])
def test_a_day_may_be_written_in_several_ways(tmp_path: Path, key: str, said: Any) -> None:
    with FakeOpenAI(shutdown_dates={NANO: said}) as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        refresh(config, NOW)
        assert shutdown_date(config, "openai", NANO) == DAY


def test_a_damaged_file_is_no_file(tmp_path: Path, key: str) -> None:
    with FakeOpenAI() as api:
        config = told(tmp_path, api)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "shutdowns.json").write_text("{")
        assert shutdown_date(config, "openai", NANO) is None
        refresh(config, NOW)
        assert len(api.received) == 1
