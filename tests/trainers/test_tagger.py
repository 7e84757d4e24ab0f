"""The trainer of extraction students: answers whose values stand in the text, from rows as they were recorded."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import DatasetError, TaskError
from gateway.extraction import Extractor
from gateway.tagging import segments
from gateway.trainers import TrainerSettings, build
from gateway.trainers.tagger.answers import Example, learn
from gateway.trainers.tagger.learning import Options, fit_chain, swap, train
from gateway.upstreams.embedded import EmbeddedModel

SHARED = Path(__file__).parents[3] / "shared" / "data"
DAYS = ["Monday", "Tuesday", "Friday", "next week", "the 4th of May", "tomorrow"]
FIRST = ["Ann", "Bob", "Chloé", "Dev", "Eva", "Finn", "Grace", "Hugo", "Ines", "Jon"]
LAST = ["", " Lee", " Martin", " Patel", " Olsen", " Hopper"]
NAMES = [first + last for last in LAST for first in FIRST]
ASKED = [
    ("book {day} for {name}", "book", ("day", "name")),
    ("a table on {day} please, my name is {name}", "book", ("day", "name")),
    ("{name} here, we come {day}", "book", ("day", "name")),
    ("cancel {day}", "cancel", ("day",)),
    ("please cancel what {name} booked", "cancel", ("name",)),
]
THINGS = ["a garden", "parking", "a menu for children", "vegan dishes", "high chairs", "a terrace", "live music"]


def row(text: str, output: str) -> Row:
    return Row(exchange_id=text, text=text, messages=[], output=output, split="train")


def bookings(write: Any = json.dumps) -> list[Row]:
    """171 rows, each text once: an intent, and the day and the name that the text has."""
    texts: dict[str, dict[str, Any]] = {}
    names = itertools.cycle(NAMES)
    for pattern, intent, keys in ASKED:
        for day, _ in itertools.product(DAYS, range(6)):
            values = {"day": day, "name": next(names)}
            slots = {key: values[key] for key in keys}
            texts[pattern.format(**values)] = {"intent": intent, "slots": slots}
    for thing, question in itertools.product(
        THINGS, ("do you have {}", "is there {} near you", "tell me about {}")
    ):
        texts[question.format(thing)] = {"intent": "ask", "slots": {}}
    return [row(text, write(answer)) for text, answer in texts.items()]


def dataset(rows: list[Row]) -> Dataset:
    return Dataset(id="d1", task="shop", template="t1", rows=rows, directory="", digest="abc", card={})


def ran(models: Path, rows: list[Row], **options: Any) -> FineTune:
    finetune = FineTune(id="ft-1", task="shop/slots", dataset="d1", trainer="tagger", options=options)
    return build("tagger", TrainerSettings(models=models)).run(finetune, dataset(rows), lambda _: None)


QUICK = Options(swaps=1, iterations=30)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one trained model."""
    folder = tmp_path_factory.mktemp("models")
    done = ran(folder, bookings(), swaps=1, iterations=30)
    assert (done.state, done.upstream, done.error) == (FineTuneState.SUCCEEDED, "local", None)
    assert done.metrics["cv_accuracy"] > 0.9
    assert done.metrics["most_frequent_answer"] == pytest.approx(21 / 171, abs=0.001)
    return folder


def model_in(folder: Path) -> EmbeddedModel:
    (name,) = [place.name for place in folder.iterdir()]
    return EmbeddedModel.load(folder, name)


def student_in(folder: Path) -> Extractor:
    student = model_in(folder).student
    assert isinstance(student, Extractor)
    return student


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("book Friday for Zoe", '{"intent": "book", "slots": {"day": "Friday", "name": "Zoe"}}'),
        (
            "Ann Patel here, we come next week",
            '{"intent": "book", "slots": {"day": "next week", "name": "Ann Patel"}}',
        ),
        ("do you have a garden", '{"intent": "ask", "slots": {}}'),
    ],
)
def test_it_answers_new_texts_as_the_teacher_would_have_written(models: Path, text: str, answer: str) -> None:
    found = student_in(models).predict(text)
    assert found.label == answer
    assert found.probability > 0.5


def test_it_is_not_sure_of_a_text_unlike_all_it_was_trained_on(models: Path) -> None:
    known, sure = model_in(models).answer("book Friday for Bob")
    assert known == '{"intent": "book", "slots": {"day": "Friday", "name": "Bob"}}'
    assert sure > 0.5
    assert model_in(models).answer("SELECT 17 FROM q WHERE z ~ 9;")[1] == 0.0


def test_a_damaged_model_file_says_so_and_what_to_do(models: Path, tmp_path: Path) -> None:
    (folder,) = models.iterdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-1] + b"x")
    with pytest.raises(TaskError, match=r"checksum does not match; train it again"):
        EmbeddedModel.load(tmp_path, "m")


def test_what_it_was_trained_on_is_written_beside_it(models: Path) -> None:
    (folder,) = models.iterdir()
    about = json.loads((folder / "model.json").read_text())
    assert about["copied"] == ["slots.day", "slots.name"]
    assert about["chosen"] == ["intent"]
    left_out = json.loads((folder / "crossfit.json").read_text())
    assert {name: len(values) for name, values in left_out.items()} == dict.fromkeys(
        ("confidence", "support", "right"), len(bookings())
    )
    assert np.mean(left_out["right"]) == pytest.approx(about["metrics"]["cv_accuracy"], abs=1e-4)


def test_the_same_rows_options_and_seed_give_the_same_bytes() -> None:
    rows = bookings()[::2]
    files = [train(rows, msgspec.structs.replace(QUICK, seed=seed)).student.to_bytes() for seed in (0, 0, 1)]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert Extractor.from_bytes(files[0]).to_bytes() == files[0]


def test_a_chain_does_not_see_what_is_left_out_of_its_view() -> None:
    seen, tags = [[["w=a", "3=- a"], ["w=b", "3=a b"]]] * 9, [["I-0", "O"]] * 9
    families = [
        {name.partition("=")[0] for name in fit_chain(seen, tags, QUICK, left_out).names}
        for left_out in ((), {"3"})
    ]
    assert families == [{"w", "3"}, {"w"}]


def test_several_chains_have_the_same_tags_and_views_of_their_own() -> None:
    rows = bookings()[::2]
    both = train(rows, QUICK).student.chains
    assert both[0].tags == both[1].tags
    assert both[0].names != both[1].names
    (one,) = train(rows, msgspec.structs.replace(QUICK, chains=1)).student.chains
    assert one.names == both[0].names


def test_wrong_options_and_answers_that_are_not_in_the_text_fail_with_a_sentence(tmp_path: Path) -> None:
    assert "options of trainer 'tagger' are wrong" in (ran(tmp_path, bookings(), swaps=-1).error or "")
    written = [row(f"text {n}", json.dumps({"summary": f"what it says, number {n * 7}"})) for n in range(60)]
    failed = ran(tmp_path, written)
    assert failed.state is FineTuneState.FAILED
    assert "no field of the answers has most of its values in the text: summary 0%" in (failed.error or "")
    assert list(tmp_path.iterdir()) == []


def test_where_only_some_answers_are_in_the_text_the_share_is_told() -> None:
    rows = [
        row(f"Ann{n} on May {n}", json.dumps({"name": f"Ann{n}" if n % 3 else f"Mrs {n}", "day": day}))
        for n in range(60)
        for day in [f"May {n}" if n % 3 != 1 else f"in {n} weeks"]
    ]
    with pytest.raises(DatasetError, match=r"only 20 of 60 answers \(33%\).*day 67%, name 67%"):
        learn(rows)
    with pytest.raises(DatasetError, match="no JSON objects: 0 of 60"):
        learn([row(f"{n}", "a label") for n in range(60)])


# --- the form of the answers ------------------------------------------------------------------------------


def pretty(answer: dict[str, Any]) -> str:
    return "```json\n" + json.dumps(answer, ensure_ascii=False, indent=2) + "\n```"


def compact(answer: dict[str, Any]) -> str:
    return json.dumps(answer, separators=(",", ":"))


def with_nulls(answer: dict[str, Any]) -> str:
    return json.dumps({"name": None, "day": None} | answer["slots"] | {"intent": answer["intent"], "version": 2})


def only_slots(answer: dict[str, Any]) -> str:
    return json.dumps({"slots": answer["slots"] or None})


def in_capitals(answer: dict[str, Any]) -> str:
    return json.dumps({key: value.upper() for key, value in answer["slots"].items()})


@pytest.mark.parametrize("write", [json.dumps, pretty, compact, with_nulls, only_slots, in_capitals])
def test_every_habit_of_writing_is_learnt_from_the_answers(write: Any) -> None:
    rows = bookings(write)
    form, examples = learn(rows)
    assert [example.output for example in examples if not example.whole] == []
    assert {field.name.split(".")[-1] for field in form.fields if field.shape} == {"day", "name"}


def test_keys_in_the_order_of_the_text_are_learnt() -> None:
    rows = [
        row(f"{a} to {b}", json.dumps({a[0]: a, b[0]: b}))
        for a in ("x1", "y1")
        for b in ("x2", "y2")
        if a[0] != b[0]
    ]
    form, examples = learn(rows * 10)
    assert form.by_text
    assert all(example.whole for example in examples)


def test_numbers_and_lists_are_values_too() -> None:
    rows = [
        row(f"{n} seats for {a}, {b} and me", json.dumps({"seats": n, "who": [a, b]}))
        for n in range(2, 12)
        for a, b in (("Ann", "Bob"), ("Cleo", "Dan"))
    ]
    form, examples = learn(rows)
    assert [(field.name, field.shape, field.many) for field in form.fields] == [
        ("seats", "number", False), ("who", "copy", True),
    ]  # fmt: skip
    assert examples[0].tags == ("B-0", "O", "O", "B-1", "O", "B-1", "O", "O")


def test_a_value_that_is_cut_out_of_a_word_cannot_be_learnt_and_counts_as_wrong() -> None:
    rows = [row(f"order {name}-{n}", json.dumps({"name": name})) for n, name in enumerate(NAMES)]
    odd = row("order Bobby-2", '{"name": "Bob"}')
    _, examples = learn([*rows, odd])
    assert [example.tokens.text for example in examples if not example.whole] == ["order Bobby-2"]


EXAMPLES = learn(bookings())[1]


def without_values(example: Example) -> tuple[str, list[int]]:
    """The text with a gap for each value, and the fields of the values in their order."""
    found = segments(example.tokens, example.tags, [1.0] * len(example.tags))
    text, at = "", 0
    for one in found:
        text, at = f"{text}{example.tokens.text[at : one.start]}_", one.end
    return text + example.tokens.text[at:], [one.field for one in found]


@given(st.integers(0, len(EXAMPLES) - 1), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_a_row_with_other_values_has_them_in_the_places_of_its_own(number: int, seed: int) -> None:
    copy = swap(EXAMPLES[number], {2: DAYS, 3: NAMES}, random.Random(seed))
    assert copy is None or without_values(copy) == without_values(EXAMPLES[number])


# --- on real data, where it lies beside the repository ----------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the labelled data is not there")
def test_real_answers_can_be_made_of_their_texts() -> None:
    for name, least in (("snips_extract", 0.999), ("restaurant8k_extract", 0.99)):
        with (SHARED / f"{name}.jsonl").open() as lines:
            found = [json.loads(line) for line, _ in zip(lines, range(2000), strict=False)]
        _, examples = learn([row(one["text"], one["output"]) for one in found])
        assert np.mean([example.whole for example in examples]) >= least


@pytest.mark.skipif(not SHARED.is_dir(), reason="the labelled data is not there")
def test_a_few_hundred_real_rows_teach_it(tmp_path: Path) -> None:
    with (SHARED / "restaurant8k_extract.jsonl").open() as lines:
        found = [json.loads(line) for line, _ in zip(lines, range(900), strict=False)]
    rows = [row(one["text"], one["output"]) for one in found]
    trained = train(rows[:300], QUICK)
    answers = [trained.student.predict(one.text) for one in rows[300:]]
    right = np.array([answer.label == one.output for answer, one in zip(answers, rows[300:], strict=True)])
    sure = np.array([answer.probability for answer in answers])
    assert right.mean() > 0.65, "all empty would be right in 36 %"
    assert right[sure >= 0.9].mean() > right.mean() + 0.1
