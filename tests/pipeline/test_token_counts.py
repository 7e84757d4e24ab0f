"""A card's tokens are counted where a vocabulary lies on this machine, and estimated where none does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from stories import keep, traffic

from gateway.config import Config, TaskPolicy, TrainerConfig
from gateway.pipeline.dataset import build
from gateway.pipeline.token_counts import base_models, tokenizer_of
from gateway.stores.sqlite import SqliteStore

TEXTS = ["where is my parcel", "refund"]


class Words:
    """What the packages' tokenizers answer, in their shapes; a token is a word."""

    def no_truncation(self) -> None:
        pass

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[SimpleNamespace]:
        assert not add_special_tokens
        return [SimpleNamespace(ids=text.split()) for text in texts]

    def encode_ordinary_batch(self, texts: Sequence[str]) -> list[list[str]]:
        return [text.split() for text in texts]


def read(file: str) -> Words:
    if Path(file).read_text("utf-8") != "words":
        raise Exception("expected value at line 1")  # of no class of its own, as the package does
    return Words()


def known(model: str) -> str:
    return {"gpt-4.1-nano": "o200k_base", "gpt-4": "cl100k_base"}[model]


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both packages, whether or not they are installed; nothing in tiktoken's cache."""
    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=SimpleNamespace(from_file=read)))
    there = SimpleNamespace(encoding_name_for_model=known, get_encoding=lambda name: Words())
    monkeypatch.setitem(sys.modules, "tiktoken", there)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "small-model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("words", "utf-8")
    return str(folder)


def config(*models: str) -> Config:
    return Config(trainers={"lora": TrainerConfig(kind="trl", options={"base_models": list(models)})})


def fetched(tmp_path: Path, name: str) -> None:
    """tiktoken has once fetched an encoding: its cache names files by the SHA-1 of where they come from."""
    digests = {
        "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
        "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    }
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / digests[name]).write_bytes(b"")


def test_a_base_model_that_lies_here_counts_by_its_own_tokenizer(model: str) -> None:
    found = tokenizer_of(config("hub/elsewhere", model), "mail")
    assert found is not None
    assert (found.name, found.counts(TEXTS)) == (f"the tokenizer of {model}", [4, 1])


def test_a_hub_name_counts_if_its_files_were_fetched_before(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(name: str, file: str) -> str | None:
        if name.count("/") > 1:
            raise ValueError("no name of the hub")
        return str(Path(model) / file) if name == "some/model" else None

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(try_to_load_from_cache=cached))
    found = tokenizer_of(config("/no/such/folder", "long" * 2000, "other/model", "some/model"), "mail")
    assert found is not None
    assert found.name == "the tokenizer of some/model"


def test_else_tiktoken_counts_by_the_encoding_of_the_base_model(tmp_path: Path) -> None:
    fetched(tmp_path, "cl100k_base")
    found = tokenizer_of(config("unheard-of", "gpt-4"), "mail")
    assert found is not None
    assert (found.name, found.counts(TEXTS)) == ("tiktoken, cl100k_base", [4, 1])
    fetched(tmp_path, "o200k_base")
    other = tokenizer_of(Config(), "mail")
    assert other is not None
    assert other.name == "tiktoken, o200k_base"


def test_tiktoken_is_not_asked_for_what_it_would_have_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(tmp_path, "cl100k_base")
    assert tokenizer_of(config("gpt-4.1-nano"), "mail") is None
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # its way of saying: no cache
    assert tokenizer_of(config("gpt-4"), "mail") is None


def test_a_damaged_file_or_a_missing_package_counts_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(model) / "tokenizer.json").write_text("{", "utf-8")
    assert tokenizer_of(config(model), "mail") is None
    (Path(model) / "tokenizer.json").write_text("words", "utf-8")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert tokenizer_of(config(model), "mail") is None


def test_base_models_are_those_of_the_tasks_own_trainers(model: str) -> None:
    swept = TrainerConfig(kind="openai", options={"base_model": "a"}, sweep=({"base_model": ["b", "c"]}, {}))
    assert list(base_models(swept)) == ["a", "b", "c"]
    assert list(base_models(TrainerConfig(kind="openai", sweep={"base_model": "d"}))) == ["d"]
    both = config(model).model_copy(update={"tasks": {"mail": TaskPolicy(trainers=("classifier",))}})
    assert tokenizer_of(both, "mail") is None
    assert tokenizer_of(both, "other") is not None


def test_a_card_says_who_counted(model: str, store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    plain = build(store, "mail", tmp_path / "datasets").card
    counted = build(store, "mail", tmp_path / "datasets", tokenizer=tokenizer_of(config(model), "mail"))
    words = [len(row.text.split()) for row in counted.rows]
    assert plain["input_tokens_after_is"] == "estimate"
    assert counted.card["input_tokens_after_is"] == f"counted by the tokenizer of {model}"
    assert counted.card["input_tokens_after_mean"] == round(sum(words) / len(words), 1)
    assert plain["input_tokens_before_mean"] == counted.card["input_tokens_before_mean"]
    text = (Path(counted.directory) / "card.md").read_text("utf-8")
    assert f"after the strip: counted by the tokenizer of {model} (" in text


def test_the_real_package_reads_what_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tokenizers")
    real = pytest.importorskip("tokenizers")
    vocabulary = {"where": 0, "is": 1, "my": 2, "parcel": 3, "[UNK]": 4}
    made = real.Tokenizer(importlib.import_module("tokenizers.models").WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = importlib.import_module("tokenizers.pre_tokenizers").Whitespace()
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    found = tokenizer_of(config(str(tmp_path)), "mail")
    assert found is not None
    assert found.counts(TEXTS) == [4, 1]
