from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.dataset import Dataset, Row, Split
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.student import TextClassifier, Vectoriser
from gateway.trainers import TrainerSettings, build
from gateway.trainers.classifier import Options, model_name, train
from gateway.trainers.classifier.calibration import calibrate, fit_curve
from gateway.trainers.classifier.features import Idf, count, example_weights, feature_spec, label_words, weigh
from gateway.trainers.classifier.heads import folds

SHARED = Path(__file__).parents[3] / "shared" / "data"

THINGS = ["card", "order", "parcel", "invoice", "ticket", "laptop", "jacket", "lamp", "table", "phone"]
ASKED = {
    "late": ["where is my {}", "my {} has not arrived", "how long until the {} comes"],
    "refund": ["I want my money back for the {}", "please refund the {}", "return the {} and pay me"],
    "broken": ["the {} does not work", "my {} arrived damaged", "there is a crack in the {}"],
}


def written_rows(split: Split = "train", **answers: str) -> list[Row]:
    """90 rows over three intents; `answers` may rename an intent."""
    return [
        Row(
            exchange_id=f"{split}-{intent}-{pattern}-{thing}",
            text=pattern.format(thing),
            messages=[],
            output=answers.get(intent, intent),
            split=split,
        )
        for intent, patterns in ASKED.items()
        for pattern in patterns
        for thing in THINGS
    ]


def rows_of(pairs: list[tuple[str, str]]) -> list[Row]:
    return [
        Row(exchange_id=str(n), text=text, messages=[], output=output, split="train")
        for n, (text, output) in enumerate(pairs)
    ]


def dataset(rows: list[Row]) -> Dataset:
    return Dataset(id="d1", task="shop", template="t1", rows=rows, directory="", digest="abc", card={})


def finetune(**options: Any) -> FineTune:
    return FineTune(id="ft-1", task="shop/intent", dataset="d1", trainer="classifier", options=options)


def ran(models: Path, rows: list[Row], **options: Any) -> FineTune:
    return build("classifier", TrainerSettings(models=models)).run(
        finetune(**options), dataset(rows), lambda _: None
    )


def student_of(models: Path, done: FineTune) -> TextClassifier:
    assert done.model is not None
    return TextClassifier.from_bytes((models / done.model / "model.bin").read_bytes())


def test_a_trained_model_answers_new_texts_and_says_where_it_is(tmp_path: Path) -> None:
    done = ran(tmp_path, written_rows())
    assert (done.state, done.upstream, done.error) == (FineTuneState.SUCCEEDED, "local", None)
    assert done.model == model_name(finetune())
    student = student_of(tmp_path, done)
    assert student.predict("where is my bicycle").label == "late"
    assert student.predict("please refund the bicycle").label == "refund"
    assert student.predict("the bicycle arrived damaged").label == "broken"
    assert done.metrics["cv_accuracy"] > 0.9
    assert done.metrics["rows"] == 90
    assert done.metrics["train_seconds"] < 30


def test_what_it_was_trained_on_is_written_beside_it(tmp_path: Path) -> None:
    done = ran(tmp_path, written_rows(), c=5.0)
    folder = tmp_path / str(done.model)
    about = json.loads((folder / "model.json").read_text())
    assert about["labels"] == ["broken", "late", "refund"]
    assert about["options"]["c"] == 5.0
    assert about["dataset_digest"] == "abc"
    assert about["train_seconds"] > 0
    left_out = json.loads((folder / "crossfit.json").read_text())
    assert {name: len(values) for name, values in left_out.items()} == {
        "confidence": 90,
        "support": 90,
        "right": 90,
    }
    assert np.mean(left_out["right"]) == pytest.approx(done.metrics["cv_accuracy"], abs=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["crossfit.json", "model.bin", "model.json"]


def test_the_same_dataset_and_options_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = ran(tmp_path / "one", written_rows()), ran(tmp_path / "two", written_rows())
    other = ran(tmp_path / "other", written_rows(), seed=1)
    written = [
        student_of(tmp_path / n, done).to_bytes() for n, done in [("one", one), ("two", two), ("other", other)]
    ]
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_validation_rows_leave_no_trace_in_the_model(tmp_path: Path) -> None:
    alone = ran(tmp_path / "alone", written_rows())
    misleading = written_rows("validation", late="refund", refund="nonsense")
    beside = ran(tmp_path / "beside", written_rows() + misleading)
    assert student_of(tmp_path / "alone", alone).to_bytes() == student_of(tmp_path / "beside", beside).to_bytes()


def test_json_answers_are_learnt_verbatim(tmp_path: Path) -> None:
    done = ran(tmp_path, written_rows(late='{"intent": "late"}', refund='{"intent": "refund"}'))
    assert student_of(tmp_path, done).predict("where is my bicycle").label == '{"intent": "late"}'


def test_every_default_candidate_trains(tmp_path: Path) -> None:
    trainer = build("classifier", TrainerSettings(models=tmp_path))
    data = dataset(written_rows())
    sweep = trainer.candidates(data)
    assert 8 <= len(sweep) <= 10
    for number, options in enumerate(sweep):
        done = trainer.run(finetune(**options).but(id=f"ft-{number}"), data, lambda _: None)
        assert done.metrics["cv_accuracy"] > 0.9
    assert len(list(tmp_path.iterdir())) == len(sweep)


def test_settings_reach_every_candidate(tmp_path: Path) -> None:
    trainer = build("classifier", TrainerSettings(models=tmp_path, options={"seed": 7}))
    assert {options["seed"] for options in trainer.candidates(dataset(written_rows()))} == {7}


def test_states_are_saved_before_and_after(tmp_path: Path) -> None:
    saved: list[FineTune] = []
    done = build("classifier", TrainerSettings(models=tmp_path)).run(
        finetune(), dataset(written_rows()), saved.append
    )
    assert [s.state for s in saved] == [FineTuneState.RUNNING, FineTuneState.SUCCEEDED]
    assert saved[-1] == done


def test_a_run_cut_off_half_way_is_run_again_and_a_finished_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / model_name(finetune())
    folder.mkdir()
    (folder / "model.bin.partial").write_bytes(b"half a mod")
    trainer = build("classifier", TrainerSettings(models=tmp_path))
    half = finetune().but(state=FineTuneState.RUNNING, stage="training")
    done = trainer.run(half, dataset(written_rows()), lambda _: None)
    assert student_of(tmp_path, done).predict("where is my hat").label == "late"
    (folder / "model.bin").unlink()
    assert trainer.run(done, dataset(written_rows()), lambda _: None) == done
    assert not (folder / "model.bin").exists()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "at least 2 different outputs, 0 rows have 0"),
        (rows_of([("hello", "hi")] * 60), "at least 2 different outputs, 60 rows have 1"),
        (rows_of([(f"question {n}", f"answer {n}") for n in range(60)]), "60 of 60 rows have one"),
        (rows_of([(f"q {n}", f"a {n}") for n in range(40)] + [("q", "a")] * 30), "40 of 70 rows have one"),
        (rows_of([("write", "word " * 60), ("say", "no")] * 30), "one has 300 characters, over 200"),
    ],
)
def test_outputs_that_are_no_closed_set_of_labels_are_refused(
    tmp_path: Path, rows: list[Row], sentence: str
) -> None:
    done = ran(tmp_path, rows)
    assert (done.state, done.model) == (FineTuneState.FAILED, None)
    assert sentence in str(done.error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 3}, "unknown field `depth`"),
        ({"head": "forest"}, "Invalid enum value 'forest' - at `$.head`"),
        ({"c": -1}, ">= 0"),
        ({"seed": "x"}, "Expected `int`"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    done = ran(tmp_path, written_rows(), **options)
    assert done.state is FineTuneState.FAILED
    assert sentence in str(done.error)
    assert str(done.error).startswith("the options of trainer 'classifier' are wrong")


def test_a_folder_that_cannot_be_written_fails_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    done = ran(tmp_path / "models", written_rows())
    assert done.state is FineTuneState.FAILED
    assert "the model could not be written" in str(done.error)


def test_a_label_with_one_row_is_learnt_all_the_same() -> None:
    rows = written_rows() + rows_of([("talk to a human being", "human")])
    student = train(rows, Options()).student
    assert student.predict("can I talk to a human").label == "human"


def test_two_labels_of_which_one_has_a_single_row() -> None:
    rows = rows_of([(f"buy cheap pills {thing}", "spam") for thing in THINGS] + [("hello mother", "ham")])
    for head in ("lr", "svc"):
        student = train(rows, msgspec.convert({"head": head}, Options)).student
        assert student.predict("cheap pills").label == "spam"
        assert student.predict("hello mother").label == "ham"


def test_a_rare_label_is_not_drowned_by_a_frequent_one() -> None:
    rare = [row for row in written_rows() if row.output == "refund"][::6]
    frequent = [row for row in written_rows() if row.output == "late"] * 10
    student = train(rare + frequent, Options()).student
    assert student.predict("please refund the bicycle").label == "refund"


def test_a_label_that_speaks_for_itself_is_recognised_by_its_name() -> None:
    rows = rows_of([("aa bb", "lost_passport"), ("cc dd", "exchangeRate"), ("ee ff", "top-up")] * 3)
    with_names, without = train(rows, Options()).student, train(rows, Options(label_names=0)).student
    assert with_names.predict("what is the exchange rate").label == "exchangeRate"
    assert without.predict("what is the exchange rate").support == 0.0


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("card_arrival", "card arrival"),
        ("CardArrival", "Card Arrival"),
        ('{"intent": "top-up"}', " intent top up "),
        ("Refund_not_showing_up?", "Refund not showing up "),
    ],
)
def test_the_words_of_a_label(label: str, words: str) -> None:
    assert label_words(label) == words


def test_confidence_on_noise_is_low_and_on_sense_is_high() -> None:
    rng = random.Random(0)
    words = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st"]
    noise = rows_of([(" ".join(rng.choices(words, k=4)), rng.choice(["one", "two"])) for _ in range(200)])
    coin = train(noise, Options(label_names=0))
    assert 0.35 < coin.metrics["cv_accuracy"] < 0.65
    assert coin.metrics["cv_confidence"] == pytest.approx(coin.metrics["cv_accuracy"], abs=0.08)
    assert coin.student.predict("ab cd ef").probability < 0.75
    assert train(written_rows(), Options()).student.predict("where is my lamp").probability > 0.8


TEXTS = st.lists(
    st.text(max_size=30) | st.sampled_from(["where is my card", "refund me", ""]), min_size=2, max_size=8
)


@given(TEXTS, TEXTS, st.sampled_from(["word", "char", "word+char"]), st.integers(4, 400))
@settings(max_examples=400, deadline=None)
def test_the_vectors_of_training_are_the_vectors_of_serving(
    seen: list[str], others: list[str], features: str, limit: int
) -> None:
    """For seen texts and unseen ones, with a vocabulary that is cut as well as one that is whole."""
    spec = feature_spec(msgspec.convert({"features": features}, Options))
    vectoriser = Vectoriser.fit(seen, spec, max_features=limit)
    texts = [*seen, *others]
    answers = np.zeros(len(texts), dtype=np.int64)
    examples = count(vectoriser, texts, answers, np.ones(len(texts), dtype=np.float32))
    idf = Idf.of(examples.at(np.arange(len(seen))).counts)
    assert idf.known == pytest.approx(vectoriser.idf)
    assert idf.unseen == pytest.approx(vectoriser.unseen_idf)
    matrix = weigh(examples, idf, len(vectoriser.words), spec).toarray()
    for row, text in zip(matrix, texts, strict=True):
        served = np.zeros(len(vectoriser.idf))
        indices, values = vectoriser(text)
        served[indices] = values
        assert row == pytest.approx(served, abs=1e-6)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3))
def test_folds_hold_each_row_out_once_and_deal_each_label_evenly(labels: list[int], seed: int) -> None:
    answers = np.array(labels)
    masks = list(folds(answers, seed, 5))
    assert sum(mask.astype(int) for mask in masks).tolist() == [1] * len(labels)  # type: ignore[union-attr]
    for label, total in Counter(labels).items():
        held = [int((mask & (answers == label)).sum()) for mask in masks]
        assert max(held) - min(held) <= 1 or total < 2


def test_rare_labels_weigh_up_to_frequent_ones_by_choice() -> None:
    answers = np.array([0] * 8 + [1] * 2 + [0, 1])  # the last two are the labels' names
    flat = example_weights(answers, 2, Options(balance=0.0, label_names=2.0))
    full = example_weights(answers, 2, Options(balance=1.0, label_names=1.0))
    assert flat.tolist() == [1.0] * 10 + [2.0, 2.0]
    assert full[answers == 0].sum() == pytest.approx(full[answers == 1].sum())


@given(st.integers(2, 40), st.integers(2, 6), st.integers(0, 1000), st.floats(0.01, 1e4))
@settings(max_examples=300, deadline=None)
def test_calibration_is_finite_and_no_worse_than_none(rows: int, labels: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, labels)) * scale
    answers = rng.integers(0, labels, rows)
    fitted = calibrate(scores, rng.uniform(0, 1, rows).astype(np.float32), answers)
    assert all(np.isfinite(value) for value in msgspec.structs.astuple(fitted))
    assert 0 <= fitted(np.float64(0.999), 0.5) <= 1


def test_a_curve_finds_the_coefficients_that_made_the_rows() -> None:
    rng = np.random.default_rng(0)
    inputs = np.column_stack([np.ones(20_000), rng.normal(size=20_000)])
    right = (rng.uniform(size=20_000) < 1 / (1 + np.exp(-(0.5 + 2 * inputs[:, 1])))).astype(np.float64)
    assert fit_curve(inputs, right, np.array([0.0, 1.0])) == pytest.approx([0.5, 2.0], abs=0.1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the labelled data sets are not here")
@pytest.mark.parametrize(("name", "floor"), [("banking77", 0.60), ("snips_extract", 0.95)])
def test_400_rows_of_public_data_are_enough_for_this_accuracy(name: str, floor: float) -> None:
    with (SHARED / f"{name}.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    seen = random.Random(0).sample([row for row in rows if row["split"] == "train"], 400)
    student = train(rows_of([(row["text"], row["label"]) for row in seen]), Options()).student
    test = [row for row in rows if row["split"] == "test"]
    answers = [student.predict(row["text"]) for row in test]
    right = np.array([answer.label == row["label"] for answer, row in zip(answers, test, strict=True)])
    sure = np.array([answer.probability for answer in answers])
    assert right.mean() >= floor
    assert abs(right.mean() - sure.mean()) < 0.08
    assert right[sure >= 0.9].mean() > 0.9
