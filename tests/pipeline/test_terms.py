"""A provider whose terms do not allow it teaches nobody; what people say is learnt all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from stories import asked, config_in, exchange, feedback, keep, mail, traffic

from gateway.cli import main
from gateway.config import Config, load_config
from gateway.domain.terms import Terms
from gateway.errors import DatasetError
from gateway.pipeline.card import card_text
from gateway.pipeline.dataset import build
from gateway.stores.sqlite import SqliteStore

BARRED = Terms(barred=frozenset({"openai"}))


def test_the_settings_say_whose_answers_may_be_learnt(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    url = "http://127.0.0.1:9/v1"
    file.write_text(yaml.safe_dump({"providers": {
        "a": {"base_url": url}, "b": {"base_url": url, "train_on_outputs": False},
        "c": {"base_url": url, "train_on_outputs": True},
    }}))  # fmt: skip
    terms = load_config(file).terms()
    assert [(name, terms.bars(f"{name}/m/x"), terms.is_unsaid(f"{name}/m/x")) for name in "abcd"] == [
        ("a", False, True), ("b", True, False), ("c", False, False), ("d", False, True),
    ]  # fmt: skip
    assert Config().terms() == Terms()


def test_a_barred_providers_answers_are_refused_with_what_can_be_done(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    feedback(store, "e00001", score=1.0)  # approved, and still the provider's
    with pytest.raises(DatasetError) as refused:
        build(store, "mail", tmp_path / "datasets", terms=BARRED)
    assert str(refused.value) == (
        "task mail: 0 usable rows, and at least 50 are needed; of 60 recorded exchanges: 60 its provider's terms. "
        "providers.openai.train_on_outputs is false: have a provider answer whose terms let models be trained on "
        "its answers, or say what is right yourself ('unprompt label mail --all')"
    )
    assert store.rows("datasets") == []


def test_what_people_say_is_learnt_and_the_rest_is_counted_in_the_card(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(160))
    for n in range(100):
        feedback(store, f"e{n:05}", label=mail()[n][1])
    data = build(store, "mail", tmp_path / "datasets", terms=BARRED)
    assert {row.exchange_id for row in data.rows} == {f"e{n:05}" for n in range(100)}
    assert data.card["dropped"] == {"its provider's terms": 60}
    assert (data.card["recorded"], data.card["train_on_outputs"]) == (160, "barred")
    assert "| dropped: its provider's terms | -60 |" in card_text(data.card)


def test_only_the_barred_providers_answers_are_dropped(store: SqliteStore, tmp_path: Path) -> None:
    spare = [
        exchange(500 + n, asked(text), label, target="spare/llama") for n, (text, label) in enumerate(mail()[:40])
    ]
    keep(store, [*traffic(60), *spare])
    terms = Terms(barred=frozenset({"spare"}), allowed=frozenset({"openai"}))
    data = build(store, "mail", tmp_path / "datasets", terms=terms)
    assert data.card["dropped"] == {"its provider's terms": 40}
    assert (len(data.rows), data.card["train_on_outputs"]) == (60, "allowed")


def test_the_first_dataset_reminds_of_the_terms_unless_the_settings_name_them(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, traffic(60))
    told: list[str] = []
    build(store, "mail", tmp_path / "a", None, told.append, Terms(allowed=frozenset({"openai"})))
    assert not [sentence for sentence in told if "train_on_outputs" in sentence]
    store.run("DELETE FROM datasets")
    for _ in range(2):
        build(store, "mail", tmp_path / "b", None, told.append)
    (reminder,) = [sentence for sentence in told if "train_on_outputs" in sentence]
    assert "answers of openai/gpt-6" in reminder
    assert "providers.openai.train_on_outputs: false" in reminder


@pytest.mark.parametrize("command", ["dataset", "finetune"])
def test_every_command_that_learns_obeys(store: SqliteStore, tmp_path: Path, command: str) -> None:
    keep(store, traffic(60))
    config = tmp_path / "gateway.yaml"
    config.write_text(yaml.safe_dump({
        "store": {"url": config_in(tmp_path).store.url},
        "providers": {"openai": {"base_url": "http://127.0.0.1:9/v1", "train_on_outputs": False}},
    }))  # fmt: skip
    told = CliRunner().invoke(main, [command, "mail", "--config", str(config)])
    assert told.exit_code == 1
    assert "providers.openai.train_on_outputs is false" in told.stderr
    assert store.rows("datasets") == []


def test_the_worker_obeys(tmp_path: Path) -> None:
    from stories import workshop_in

    from gateway.pipeline import cycle

    store = SqliteStore(tmp_path / "data" / "unprompt.db")
    providers = {"openai": {"base_url": "http://127.0.0.1:9/v1", "train_on_outputs": False}}
    keep(store, traffic(120))
    shop = workshop_in(tmp_path, store, config_in(tmp_path, providers=providers))
    assert cycle.turn_all(shop) == []
    (job,) = store.rows("jobs")
    assert (job["state"], "train_on_outputs is false" in job["error"]) == ("failed", True)
    assert json.loads(job["detail"])["usable"] == 120  # tried again only when a quarter more is there
    store.close()
