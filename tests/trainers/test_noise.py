"""A teacher errs: how often is estimated, and rows whose answer makes no sense count less."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from gateway.domain.dataset import Row
from gateway.trainers.classifier import Options, train
from gateway.trainers.classifier.noise import FEW, blind_share, estimate

SHARED = Path(__file__).parents[3] / "shared" / "data"


def judged(rows: int, labels: int, skill: float, noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Scores of a model of some skill, the answers of a teacher that errs, and where it erred."""
    rng = np.random.default_rng(seed)
    meant = rng.integers(0, labels, rows)
    scores = rng.normal(size=(rows, labels))
    scores[np.arange(rows), meant] += skill
    wrong = rng.random(rows) < noise
    answers = np.where(wrong, (meant + rng.integers(1, labels, rows)) % labels, meant)
    return scores, answers, wrong


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1, 0.2])
@pytest.mark.parametrize(("labels", "skill"), [(2, 4.0), (7, 4.0), (7, 3.0), (77, 6.0)])
def test_the_share_of_wrong_answers_is_found(labels: int, skill: float, noise: float) -> None:
    scores, answers, wrong = judged(2000, labels, skill, noise)
    assert estimate(scores, answers).share == pytest.approx(wrong.mean(), abs=0.03)


def test_wrong_answers_are_trusted_less_than_right_ones() -> None:
    scores, answers, wrong = judged(2000, 20, 5.0, 0.1)
    trust = estimate(scores, answers).trust
    assert trust[wrong].mean() < 0.3
    assert trust[~wrong].mean() > 0.9
    assert ((trust >= 0) & (trust <= 1)).all()


def test_an_honest_teacher_of_a_hard_task_is_not_accused() -> None:
    """The model is right in two of three cases only; the softmax at the right temperature explains the rest."""
    rng = np.random.default_rng(1)
    scores = 2 * rng.normal(size=(2000, 10))
    odds = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    answers = np.array([rng.choice(10, p=row) for row in odds])
    assert estimate(scores, answers).share < 0.03


def test_of_labels_with_few_rows_every_answer_is_trusted() -> None:
    scores, answers = np.zeros((6, 3)), np.array([0, 0, 0, 1, 1, 2])
    assert max(np.bincount(answers)) < FEW
    found = estimate(scores, answers)
    assert (found.share, found.trust.tolist()) == (0.0, [1.0] * 6)


def test_the_likeliest_share_of_blind_answers() -> None:
    sure = np.r_[np.full(900, 0.999), np.full(100, 1e-9)]
    assert blind_share(sure, 10) == pytest.approx(0.11, abs=0.01)  # a blind answer is right in one of ten cases


@pytest.mark.skipif(not SHARED.is_dir(), reason="the labelled data sets are not here")
def test_a_tenth_of_wrong_answers_costs_little_and_is_reported() -> None:
    with (SHARED / "snips_extract.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    draw = random.Random(0)
    seen = draw.sample([row for row in rows if row["split"] == "train"], 800)
    labels = sorted({row["label"] for row in seen})
    wrong = [draw.random() < 0.1 for _ in seen]
    given = [
        draw.choice([label for label in labels if label != row["label"]]) if errs else row["label"]
        for row, errs in zip(seen, wrong, strict=True)
    ]

    def learnt(answers: list[str], **options: bool) -> tuple[float, float]:
        texts = [row["text"] for row in seen]
        trained = train(
            [
                Row(exchange_id=str(n), text=text, messages=[], output=answer, split="train")
                for n, (text, answer) in enumerate(zip(texts, answers, strict=True))
            ],
            Options(robust=options.get("robust", True)),
        )
        test = [row for row in rows if row["split"] == "test"]
        right = [trained.student.predict(row["text"]).label == row["label"] for row in test]
        return float(np.mean(right)), trained.metrics["label_noise"]

    clean, none = learnt([row["label"] for row in seen])
    noisy, found = learnt(given)
    assert none < 0.02
    assert found == pytest.approx(np.mean(wrong), abs=0.03)
    assert noisy >= clean - 0.02
    assert noisy > learnt(given, robust=False)[0]
