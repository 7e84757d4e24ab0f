"""Embeddings are read from files alone: a tiny network with random weights stands in for the real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import PIECES, tiny_bert, write_tensors

from gateway import embeddings
from gateway.embeddings.bert import MOST_PIECES, BertEncoder, gelu
from gateway.embeddings.static import StaticEncoder
from gateway.embeddings.tensors import read_tensors
from gateway.embeddings.wordpiece import WordPieces, words


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> BertEncoder:
    return BertEncoder.read(tiny_bert(tmp_path_factory.mktemp("bert")))


# --- pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Where is my CARD?", ["where", "is", "my", "card", "?"]),
        ("cards cardboard", ["card", "##s", "card", "##board"]),
        ("unable uncards zebra", ["un", "##able", "[UNK]", "[UNK]"]),
        ("my\tcard\x00\u200b", ["my", "card"]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_the_longest_pieces_that_there_are(text: str, pieces: list[str]) -> None:
    cut = WordPieces({piece: number for number, piece in enumerate(PIECES)}, 64)(text)
    assert [PIECES[number] for number in cut] == ["[CLS]", *pieces, "[SEP]"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("Café naïve", ["cafe", "naive"]), ("日本go", ["日", "本", "go"]), ("don't!", ["don", "'", "t", "!"])],
)
def test_words_lose_accents_and_stand_apart_from_punctuation_and_ideographs(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_a_long_text_keeps_its_beginning() -> None:
    cut = WordPieces({piece: number for number, piece in enumerate(PIECES)}, 16)("my card " * 10**5)
    assert len(cut) == 16
    assert (PIECES[cut[0]], PIECES[cut[1]], PIECES[cut[-1]]) == ("[CLS]", "my", "[SEP]")


# --- the network -----------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=40) | st.sampled_from(["where is my card", "cards?", ""]), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_texts_vector_has_length_1_and_does_not_depend_on_its_company(texts: list[str]) -> None:
    encode = ENCODERS[0]
    together = encode(texts)
    assert together.shape == (len(texts), 8)
    for text, vector in zip(texts, together, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert vector == pytest.approx(encode([text])[0], abs=1e-5)


ENCODERS: list[BertEncoder] = []


@pytest.fixture(autouse=True, scope="module")
def _known(encoder: BertEncoder) -> None:
    ENCODERS[:] = [encoder]


def test_the_order_of_words_counts_and_what_is_beyond_the_limit_does_not(encoder: BertEncoder) -> None:
    one, other = encoder(["where is my card", "my card is where"])
    assert np.abs(one - other).max() > 1e-4
    long, longer = encoder(["my card " * MOST_PIECES, "my card " * MOST_PIECES + "where is"])
    assert long == pytest.approx(longer)


def test_gelu_is_x_times_the_normal_share_below_x() -> None:
    x = np.linspace(-6, 6, 400, dtype=np.float32)
    exact = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()]
    assert gelu(x) == pytest.approx(np.array(exact), abs=2e-6)


# --- static vectors --------------------------------------------------------------------------------------


def static(folder: Path) -> StaticEncoder:
    vocabulary = {"\u2581": 0, "c": 1, "a": 2, "r": 3, "ca": 4, "car": 5, "\u2581car": 6, "<0xC3>": 7, "<0xA9>": 8}
    model = {"vocab": vocabulary, "merges": ["c a", "ca r", "\u2581 car"]}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    write_tensors(folder / "weights.safetensors", {"w": np.eye(9, 9, dtype=np.float32)}, "F16")
    return StaticEncoder.read(folder / "tokenizer.json", folder / "weights.safetensors")


def test_pieces_are_joined_in_the_order_in_which_they_were_learnt_and_averaged(tmp_path: Path) -> None:
    vectors = static(tmp_path)(["car", "car ca", "é", "", "zzz"])
    assert np.flatnonzero(vectors[0]).tolist() == [6]
    assert np.flatnonzero(vectors[1]).tolist() == [0, 4, 6]
    assert np.flatnonzero(vectors[2]).tolist() == [0, 7, 8]  # bytes of a character that is no piece
    assert not vectors[3].any()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0, 1])


# --- files -----------------------------------------------------------------------------------------------


def test_a_tensors_file_is_read_and_a_damaged_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"a": np.array([[1.5, 2], [3, 4]], dtype=np.float32)})
    assert read_tensors(file)["a"].tolist() == [[1.5, 2], [3, 4]]
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"."):
            read_tensors(file)


def test_a_folder_is_an_embedding_whose_digest_tells_when_a_file_changes(tmp_path: Path) -> None:
    one, two = tiny_bert(tmp_path / "one"), tiny_bert(tmp_path / "two")
    same, other = embeddings.find(str(one)), embeddings.find(str(two))
    assert same is not None
    assert other is not None
    assert (same.name, same.dimensions, same.heavy, same.sha256) == (str(one), 8, True, other.sha256)
    three = tiny_bert(tmp_path / "three")
    (three / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    changed = embeddings.find(str(three))
    assert changed is not None
    assert changed.sha256 != same.sha256


def test_what_is_not_there_or_cannot_be_read_is_no_embedding(tmp_path: Path) -> None:
    assert embeddings.find("no-such-embedding") is None
    folder = tiny_bert(tmp_path / "cut")
    (folder / "model.safetensors").write_bytes(b"short")
    assert embeddings.find(str(folder)) is None
    assert set(embeddings.installed()) <= set(embeddings.KNOWN)


@pytest.mark.skipif("all-MiniLM-L6-v2" not in embeddings.installed(), reason="its weights are not installed")
def test_the_real_weights_give_the_similarities_that_their_model_card_shows() -> None:
    encode = embeddings.find("all-MiniLM-L6-v2")
    assert encode is not None
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = encode(texts)
    assert vectors @ vectors[0] == pytest.approx([1, 0.695, 0.943, 0.257], abs=0.001)
