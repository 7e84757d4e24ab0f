"""The labelled messages of the demo: varied, repeatable, learnable but not trivially so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from gateway.demo.messages import BUILT_IN, Labelled, descriptions, grammar, load, messages
from gateway.errors import ConfigError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_the_same_seed_gives_the_same_messages_and_another_seed_gives_others() -> None:
    assert messages(seed=0, count=300) == messages(seed=0, count=300)
    shared = {row.text for row in messages(seed=0, count=300)} & {row.text for row in messages(seed=1, count=300)}
    assert len(shared) < 60  # fragments such as "charged twice" are few, and occur in both


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    assert messages(seed=5, count=400)[:150] == messages(seed=5, count=150)


def test_the_built_in_messages_are_all_different_in_twelve_intents_of_fair_size() -> None:
    rows = messages()
    assert len({row.text for row in rows}) == len(rows) == BUILT_IN
    counts = Counter(row.label for row in rows)
    assert set(counts) == set(descriptions())
    assert len(counts) == 12
    assert min(counts.values()) >= 60
    assert max(counts.values()) <= 400


def test_lengths_run_from_a_few_words_to_several_sentences() -> None:
    words = sorted(len(row.text.split()) for row in messages())
    assert words[0] <= 3
    assert 10 <= words[len(words) // 2] <= 30
    assert 30 <= words[-1] <= 70


def test_no_message_shows_a_slot_that_was_left_open() -> None:
    assert [row for row in messages() if "{" in row.text or "}" in row.text] == []


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_seed_gives_messages_that_are_distinct_trimmed_at_the_front_and_labelled(seed: int) -> None:
    rows = messages(seed=seed, count=40)
    assert len({row.text for row in rows}) == 40
    assert all(row.text.strip() and row.label in grammar().intents and row.split is None for row in rows)


def test_no_phrasing_stands_under_two_intents() -> None:
    owners = Counter(
        line
        for intent in grammar().intents.values()
        for line in {*intent.asks, *intent.terse, *intent.asides, *intent.details}
    )
    assert [line for line, count in owners.items() if count > 1] == []


def test_a_linear_model_learns_the_intents_from_400_rows_but_not_perfectly() -> None:
    rows = messages(seed=0, count=1300)
    right = _accuracy(rows[:400], rows[400:])
    assert 0.90 <= right <= 0.96, right


def test_more_rows_teach_a_linear_model_more() -> None:
    rows = messages(seed=1, count=2100)
    assert 0.95 <= _accuracy(rows[:1200], rows[1200:]) <= 0.985


def test_one_keyword_for_each_intent_is_not_enough() -> None:
    """The best single word of each intent, chosen with hindsight, stays far from the linear model."""
    rows = messages()
    uses: dict[str, Counter[str]] = {}
    for row in rows:
        for word in set(row.text.lower().split()):
            uses.setdefault(word, Counter())[row.label] += 1
    found = 0
    for label in descriptions():
        best = max(uses.values(), key=lambda by_label: 2 * by_label[label] - by_label.total())
        found += best[label]
    assert found / len(rows) < 0.6


def test_a_file_is_read_with_its_splits_and_other_keys_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "mail.jsonl"
    file.write_text(
        '{"text": "Wo ist mein Paket?\\u2028Danke", "label": "status", "split": "test", "output": "{}"}\n'
        "\n"
        '{"text": "zurück\u2028bitte", "label": "return"}\n',
        encoding="utf-8",
    )
    assert load(file) == [
        Labelled("Wo ist mein Paket?\u2028Danke", "status", "test"),
        Labelled("zurück\u2028bitte", "return"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "hello"', "mail.jsonl, line 2: is not JSON"),
        ('["hello", "greeting"]', "mail.jsonl, line 2: must be an object"),
        ('{"label": "greeting"}', "mail.jsonl, line 2, key 'text': is missing"),
        ('{"text": "  ", "label": "greeting"}', "mail.jsonl, line 2, key 'text': is '  '"),
        ('{"text": "hello", "label": 7}', "mail.jsonl, line 2, key 'label': is 7"),
        ('{"text": "hello", "label": "x", "split": "dev"}', "mail.jsonl, line 2, key 'split': is 'dev'"),
    ],
)
def test_a_wrong_row_is_reported_with_file_line_and_key(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "mail.jsonl"
    file.write_text('{"text": "good morning", "label": "greeting"}\n' + line + "\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert problem in str(caught.value)


def test_a_file_that_is_missing_binary_or_has_one_label_is_refused(tmp_path: Path) -> None:
    binary, single = tmp_path / "photo.jsonl", tmp_path / "single.jsonl"
    binary.write_bytes(b"\xff\xd8\xff")
    single.write_text(json.dumps({"text": "hello", "label": "greeting"}))
    for file, problem in (
        (tmp_path / "none.jsonl", "cannot be read"),
        (binary, "not UTF-8"),
        (single, "at least 2 labels"),
    ):
        with pytest.raises(ConfigError, match=problem):
            load(file)


@pytest.mark.parametrize(("name", "labels"), [("banking77.jsonl", 77), ("snips_extract.jsonl", 7)])
def test_public_labelled_sets_load_the_same_way(name: str, labels: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data sets are not here")
    rows = load(SHARED / name)
    assert len({row.label for row in rows}) == labels
    assert {row.split for row in rows} == {"train", "test"}


def _accuracy(train: list[Labelled], test: list[Labelled]) -> float:
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    model = make_pipeline(features, LinearSVC(random_state=0))
    model.fit([row.text for row in train], [row.label for row in train])
    right: float = model.score([row.text for row in test], [row.label for row in test])
    return right
