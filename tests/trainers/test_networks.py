from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from gateway.domain.dataset import Row
from gateway.student import Floats, TextClassifier
from gateway.trainers.classifier import Options, train
from gateway.trainers.classifier.features import Idf, count, feature_spec, weigh
from gateway.trainers.classifier.networks import MOST_INPUTS, readers, scores_of

THINGS = ["card", "order", "parcel", "invoice", "ticket", "laptop", "jacket", "lamp", "table", "phone"]
ASKED = {
    "late": ["where is my {}", "my {} has not arrived", "how long until the {} comes"],
    "refund": ["I want my money back for the {}", "please refund the {}", "return the {} and pay me"],
    "broken": ["the {} does not work", "my {} arrived damaged", "there is a crack in the {}"],
}
BLEND = Options(features="pair+char", head="blend")


def asked() -> list[Row]:
    """90 rows over three intents."""
    return [
        Row(exchange_id=f"{intent}{n}{thing}", text=text.format(thing), messages=[], output=intent, split="train")
        for intent, texts in ASKED.items()
        for n, text in enumerate(texts)
        for thing in THINGS
    ]


def crossed() -> list[Row]:
    """The same, and 40 rows whose answer hangs on two words too far apart to be a pair: no line parts these."""
    far = "the {} {} that I bought last week in your shop down by the river is too {}"
    pairs = [(colour, size) for colour in ("red", "blue") for size in ("big", "small")]
    return asked() + [
        Row(exchange_id=f"{colour}{size}{thing}", text=far.format(colour, thing, size), messages=[],
            output="keep" if (colour == "red") == (size == "big") else "swap", split="train")
        for colour, size in pairs for thing in THINGS
    ]  # fmt: skip


@pytest.fixture(scope="module")
def student() -> TextClassifier:
    return train(crossed(), BLEND).student


def test_a_blend_answers_with_two_networks_beside_the_linear_head(student: TextClassifier) -> None:
    assert len(student.networks) == 2
    assert len(student.sharpness) == 3
    assert student.predict("where is my bicycle").label == "late"
    assert student.predict("the bicycle arrived damaged").label == "broken"
    assert student.predict("please refund the bicycle").probability > 0.8


def test_a_blend_is_the_same_after_a_round_trip_by_file(student: TextClassifier) -> None:
    blob = student.to_bytes()
    again = TextClassifier.from_bytes(blob)
    assert again.to_bytes() == blob
    for text in ["where is my bicycle", "", "zzz", "refund refund lamp"]:
        assert again.predict(text) == student.predict(text)


def test_the_same_rows_give_the_same_networks_and_another_seed_gives_others(student: TextClassifier) -> None:
    assert train(crossed(), BLEND).student.to_bytes() == student.to_bytes()
    other = train(crossed(), Options(features="pair+char", head="blend", seed=1)).student
    assert other.networks[0].first.tolist() != student.networks[0].first.tolist()


def test_networks_say_the_same_when_they_serve_as_when_they_learn(student: TextClassifier) -> None:
    rows = asked()
    texts, spec = [row.text for row in rows], feature_spec(BLEND)
    answers = np.zeros(len(texts), dtype=np.int64)
    examples = count(student.vectoriser, texts, answers, np.ones(len(texts), dtype=np.float32))
    idf = Idf(student.vectoriser.idf, student.vectoriser.unseen_idf)
    matrix = weigh(examples, idf, len(student.vectoriser.words), spec)
    for network in student.networks:
        served = [network(*student.vectoriser(text)) for text in texts]
        assert scores_of(network, matrix) == pytest.approx(np.array(served), abs=1e-3)


def test_the_linear_head_has_no_say_where_networks_are_asked_for() -> None:
    alone = train(asked(), Options(features="pair+char", head="net")).student
    assert alone.sharpness[0] == 0
    assert not alone.weights.any()
    assert alone.predict("please refund the bicycle").label == "refund"


def test_networks_that_make_a_blend_worse_are_left_out() -> None:
    few = [row for n, row in enumerate(asked()) if n % 10 == n // 30]  # nine rows: three of each intent
    many_labels = [
        Row(exchange_id=str(n), text=f"{a} {b}", messages=[], output=a, split="train")
        for n, (a, b) in enumerate((f"word{n % 30}", f"other{n}") for n in range(60))
    ]
    trained = train(few + many_labels, BLEND)
    linear = train(few + many_labels, Options(features="pair+char"))
    assert trained.metrics["cv_accuracy"] >= linear.metrics["cv_accuracy"]
    assert bool(trained.student.networks) == bool(trained.student.sharpness)


def test_features_of_too_few_texts_are_not_read_and_the_most_frequent_of_too_many_are() -> None:
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]))
    words = np.array([True, True, True, False])
    nothing = np.zeros(4, dtype=bool)
    assert [read.tolist() for read in readers([words, nothing, nothing], matrix)] == [[0, 1]]
    wide = csr_matrix(np.vstack([np.ones(MOST_INPUTS + 9), np.arange(MOST_INPUTS + 9) >= 9] * 2))
    every, none = np.ones(MOST_INPUTS + 9, dtype=bool), np.zeros(MOST_INPUTS + 9, dtype=bool)
    (read,) = readers([every, none, none], wide)
    assert read.tolist() == list(range(9, MOST_INPUTS + 9))


@pytest.mark.parametrize("head", ["nb", "centroid", "lr", "svc"])
def test_every_linear_head_tells_the_intents_apart(head: str) -> None:
    trained = train(asked(), msgspec.convert({"features": "pair+char", "head": head}, Options))
    assert trained.metrics["cv_accuracy"] > 0.9
    assert trained.student.networks == ()
    assert trained.student.predict("where is my bicycle").label == "late"


class Letters:
    """An encoder that counts five letters."""

    name, sha256, dimensions, heavy = "letters", "0" * 64, 5, False

    def __call__(self, texts: Sequence[str]) -> Floats:
        found: Floats = np.array(
            [[text.count(letter) + 0.1 for letter in "aeiou"] for text in texts], dtype=np.float32
        )
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found


def test_beside_an_embedding_one_network_reads_that_alone() -> None:
    student = train(asked(), Options(features="pair+char", head="net"), Letters()).student
    first = len(student.vectoriser.idf)
    assert [network.inputs.tolist() for network in student.networks] == [list(range(first, first + 5))]
    again = TextClassifier.from_bytes(student.to_bytes(), lambda name: Letters())
    assert again.predict("where is my bicycle") == student.predict("where is my bicycle")


class Knowing(Letters):
    """An encoder that tells the intents, and no things."""

    dimensions = 3

    def __call__(self, texts: Sequence[str]) -> Floats:
        known = (("where", "not arrived", "how"), ("money", "refund", "return"), ("work", "damaged", "crack"))
        return np.array([[any(w in text for w in words) for words in known] for text in texts], dtype=np.float32)


class Blind(Letters):
    """An encoder whose vectors say nothing of the text but which it is."""

    def __call__(self, texts: Sequence[str]) -> Floats:
        draws = [np.random.default_rng(list(text.encode())).standard_normal(5) for text in texts]
        return np.array([draw / np.linalg.norm(draw) for draw in draws], dtype=np.float32)


@pytest.mark.parametrize(("encoder", "length"), [(Knowing(), 1.5), (Blind(), 0.7)])
def test_an_embedding_is_read_as_long_as_rows_that_were_left_out_like_best(encoder: Letters, length: float) -> None:
    """The one that knows is heard; the one that knows nothing is not."""
    some = [row for n, row in enumerate(asked()) if n % 5 == 0]
    student = train(some, Options(features="word"), encoder).student
    assert student.embedding is not None
    assert student.embedding.weight == length
