from __future__ import annotations

import hashlib
import json
import string
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import UnpromptError
from gateway.student import (
    Calibration,
    FeatureSpec,
    ModelFileError,
    TextClassifier,
    Vectoriser,
    char_ngrams,
    ngrams,
    normalise,
    softmax,
    word_ngrams,
)

TEXTS = {
    "card": ["where is my card", "my card has not arrived", "the card is late"],
    "refund": ["I want my money back", "please refund the order", "refund me at once"],
    '{"intent": "open"}': ["when do you open", "are you open on Sunday", "opening hours, please"],
}


def classifier(texts: dict[str, list[str]] = TEXTS, spec: FeatureSpec | None = None) -> TextClassifier:
    """A student whose weights are simply its centroids: enough to read, write and answer."""
    vectoriser = Vectoriser.fit((text for group in texts.values() for text in group), spec or FeatureSpec())
    centroids = np.zeros((len(vectoriser.idf), len(texts)), dtype=np.float32)
    for column, group in enumerate(texts.values()):
        for text in group:
            indices, values = vectoriser(text)
            centroids[indices, column] += values
    centroids /= np.maximum(np.linalg.norm(centroids, axis=0), 1e-9)
    return TextClassifier(
        labels=tuple(texts),
        vectoriser=vectoriser,
        weights=centroids,
        bias=np.zeros(len(texts), dtype=np.float32),
        centroids=centroids,
        closeness=np.linspace(0.2, 0.9, 11, dtype=np.float32),
        calibration=Calibration(sharpness=5.0),
    )


STUDENT = classifier()
FILE = STUDENT.to_bytes()

any_text = st.text(st.characters(codec=None), max_size=60)  # half surrogate pairs too
familiar = ["my", "card", "late", "refund", "open", "Sunday", "money", "the", "zebra"]
words_we_know = st.lists(st.sampled_from(familiar)).map(" ".join)


def test_words_are_read_alone_and_in_pairs_without_punctuation() -> None:
    assert word_ngrams(["my", "card", ",", "please"], 1, 2) == [
        "my",
        "card",
        "please",
        "my card",
        "card please",
    ]


def test_characters_are_read_within_padded_words() -> None:
    assert char_ngrams(["my", "a"], 2, 3) == [" m", "my", "y ", " my", "my ", " a", "a ", " a "]


def test_a_short_word_gives_its_padded_self_once() -> None:
    assert char_ngrams(["a"], 3, 5) == [" a "]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Where's my CARD?!", ["where", "s", "my", "card"]),
        ("Ｆｕｌｌ width ﬁne", ["full", "width", "fine"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("user_id 42%", ["user_id", "42"]),
        ("「さくら」、はい。", ["さくら", "はい"]),
        ("\ud83d half a pair", ["half", "a", "pair"]),
        ("", []),
    ],
)
def test_words_in_many_scripts(text: str, words: list[str]) -> None:
    assert ngrams(text, FeatureSpec(word_max=1, char_max=0)) == (words, [])


def test_a_long_text_is_read_at_its_head_and_its_tail() -> None:
    head, tail = "my card is late " * 300, " please refund me" * 300
    assert STUDENT.predict(head + "x" * 10**6 + tail) == STUDENT.predict(head + "open Sunday " * 10**5 + tail)
    assert len(normalise("x" * 10**6, 8000)) == 8001


def test_an_answer_names_the_label_how_sure_and_how_familiar() -> None:
    known, strange = STUDENT.predict("is my card late?"), STUDENT.predict("zzz qqq xxx")
    assert known.label == "card"
    assert known.probability > 0.5
    assert known.support > 0.5
    assert strange.support == 0.0


def test_unknown_words_make_the_same_words_weaker() -> None:
    plain, drowned = "my card is late", "my card is late xylophone quagmire zephyr"
    assert STUDENT.predict(drowned).probability < STUDENT.predict(plain).probability
    assert STUDENT.predict(drowned).support < STUDENT.predict(plain).support


@given(any_text | words_we_know)
@settings(max_examples=500, deadline=None)
def test_every_text_is_answered_the_same_way_twice_and_after_a_round_trip_by_file(text: str) -> None:
    answer = STUDENT.predict(text)
    assert answer.label in TEXTS
    assert 0 <= answer.probability <= 1
    assert 0 <= answer.support <= 1
    assert STUDENT.predict(text) == answer
    assert TextClassifier.from_bytes(FILE).predict(text) == answer


@given(any_text | words_we_know)
@settings(max_examples=300, deadline=None)
def test_a_vector_has_known_ascending_indices_and_no_block_beyond_its_length(text: str) -> None:
    indices, values = STUDENT.vectoriser(text)
    assert np.all(np.diff(indices) > 0)
    assert np.all(values > 0)
    first_char = np.searchsorted(indices, len(STUDENT.vectoriser.words))
    assert np.linalg.norm(values[:first_char]) <= 0.7 + 1e-5
    assert np.linalg.norm(values[first_char:]) <= 1 + 1e-5


@given(words_we_know)
def test_probabilities_add_up_and_the_answer_is_the_greatest(text: str) -> None:
    odds = STUDENT.probabilities(text)
    assert odds.sum() == pytest.approx(1)
    assert STUDENT.labels[int(odds.argmax())] == STUDENT.predict(text).label


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([1e30, 0.0]), 100.0).tolist() == [1.0, 0.0]


def test_the_file_written_again_is_the_same_file() -> None:
    assert TextClassifier.from_bytes(FILE).to_bytes() == FILE


@pytest.mark.parametrize(
    "spec", [FeatureSpec(char_max=0), FeatureSpec(word_max=0), FeatureSpec(word_max=0, char_max=0)]
)
def test_a_student_of_one_kind_of_ngram_or_of_none_answers_and_keeps(spec: FeatureSpec) -> None:
    student = classifier(spec=spec)
    again = TextClassifier.from_bytes(student.to_bytes())
    assert again.predict("my card") == student.predict("my card")
    assert again.vectoriser.spec == spec


def test_labels_of_any_text_are_kept() -> None:
    labels = ["", "two\nlines", '{"a": "é"}', "\ud83d"]
    student = classifier({label: [f"text {n}"] for n, label in enumerate(labels)})
    assert TextClassifier.from_bytes(student.to_bytes()).labels == tuple(labels)


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
@settings(max_examples=500)
def test_one_altered_byte_anywhere_is_noticed(place: int, change: int) -> None:
    altered = bytearray(FILE)
    altered[place] ^= change
    with pytest.raises(ModelFileError):
        TextClassifier.from_bytes(bytes(altered))


@given(st.integers(0, len(FILE) - 1))
@settings(max_examples=300)
def test_a_file_cut_short_is_noticed(size: int) -> None:
    with pytest.raises(ModelFileError):
        TextClassifier.from_bytes(FILE[:size])


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_a_foreign_file_is_refused(blob: bytes) -> None:
    with pytest.raises(ModelFileError, match="not a text classifier"):
        TextClassifier.from_bytes(blob)


def forged(header: bytes, body: bytes = b"", version: int = 1) -> bytes:
    """A file with a true checksum over whatever it holds."""
    digest = hashlib.sha256(header + body).digest()
    return struct.pack("<8sH32sI", b"UNPRSTUD", version, digest, len(header)) + header + body


def true_header() -> dict[str, object]:
    (size,) = struct.unpack_from("<I", FILE, 42)
    header: dict[str, object] = json.loads(FILE[46 : 46 + size])
    return header


@pytest.mark.parametrize(
    "change",
    [
        {"labels": []},
        {"labels": ["one", "two"]},
        {"labels": "card"},
        {"words": [3, 10]},
        {"chars": [-1, 5]},
        {"closeness": 12},
        {"spec": {"unheard_of": 1}},
        {"calibration": None},
    ],
)
def test_a_header_that_does_not_fit_its_body_is_refused(change: dict[str, object]) -> None:
    (size,) = struct.unpack_from("<I", FILE, 42)
    assert TextClassifier.from_bytes(forged(json.dumps(true_header()).encode(), FILE[46 + size :]))
    with pytest.raises(ModelFileError, match="disagree"):
        TextClassifier.from_bytes(forged(json.dumps(true_header() | change).encode(), FILE[46 + size :]))


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"\xff", b"null"])
def test_a_header_that_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(ModelFileError, match="disagree"):
        TextClassifier.from_bytes(forged(header))


def test_a_file_of_a_later_version_says_so() -> None:
    with pytest.raises(ModelFileError, match="of version 4; this release reads version 3"):
        TextClassifier.from_bytes(forged(b"{}", version=4))


def test_a_file_error_is_one_of_ours_and_a_value_error() -> None:
    assert issubclass(ModelFileError, UnpromptError)
    assert issubclass(ModelFileError, ValueError)


def test_the_vocabulary_is_bounded_and_keeps_what_most_texts_have() -> None:
    texts = ["common words here", "common words there", "common thing"]
    vectoriser = Vectoriser.fit(texts, FeatureSpec(word_max=1, char_max=0), max_features=4)
    assert list(vectoriser.words) == ["common", "words"]
    indices, counts, unknown = vectoriser.counts("common words nowhere to be found")
    assert (indices.tolist(), counts.tolist(), unknown) == ([0, 1], [1, 1], (4, 0))


def test_serving_needs_neither_scikit_learn_nor_scipy() -> None:
    script = (
        "import sys; from gateway.student import TextClassifier;"
        "print(TextClassifier.from_bytes(sys.stdin.buffer.read()).predict('my card is late').label,"
        "[m for m in sys.modules if m.split('.')[0] in ('sklearn', 'scipy', 'joblib')])"
    )
    done = subprocess.run([sys.executable, "-c", script], input=FILE, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "card []"


def test_an_answer_among_77_labels_takes_well_under_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    letters = list(string.ascii_lowercase)
    vocabulary = ["".join(rng.choice(letters, 6)) for _ in range(2000)]
    student = classifier(
        {f"label {n}": [" ".join(rng.choice(vocabulary, 14)) for _ in range(10)] for n in range(77)}
    )
    text = " ".join(rng.choice(vocabulary, 14))
    assert 95 <= len(text) <= 100
    times = []
    for _ in range(200):
        started = time.perf_counter()
        student.predict(text)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.001
