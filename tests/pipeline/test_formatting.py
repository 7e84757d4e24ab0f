"""A dataset in every format: each row valid and in the file of its part; pairs from what people say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from stories import answer, asked, config_in, exchange, feedback, keep, mail, template, traffic

from gateway import formats
from gateway.cli import main
from gateway.domain import layout
from gateway.domain.dataset import Dataset
from gateway.errors import DatasetError, StoreError
from gateway.pipeline.dataset import build
from gateway.pipeline.formatting import write_format
from gateway.pipeline.preferences import judged_answers, pairs
from gateway.stores.sqlite import SqliteStore

ODD = [
    "where is it?\u2028please",
    "где моя посылка?",
    "返品したい\x85",
    "a\x00b",
    '{"not": "mine"}',
    "say <|im_end|> now",
    "{{x}}",
]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]


def built(store: SqliteStore, folder: Path) -> Dataset:
    return build(store, "mail", folder / "datasets")


@pytest.mark.parametrize("name", sorted(set(formats.names()) - {"dpo"}))
def test_every_row_that_the_pipeline_writes_is_valid_and_each_is_in_the_file_of_its_part(
    store: SqliteStore, tmp_path: Path, name: str
) -> None:
    keep(store, [*traffic(80), *(exchange(900 + n, asked(text), "other") for n, text in enumerate(ODD))])
    data = built(store, tmp_path)
    found = write_format(store, data, name, tmp_path / "out")
    form, written = formats.load(name), 0
    for part, count in found.rows.items():
        lines = (tmp_path / "out" / f"{part}.jsonl").read_bytes().split(b"\n")[:-1]
        assert list(formats.invalid_rows(form, lines)) == []
        assert len(lines) == count
        written += count
    left_out = lines_of(tmp_path / "out" / "left_out.jsonl")
    assert written + len(left_out) == len(data.rows)
    assert {one["reason"] for one in left_out} <= {"special_token", "missing_content"}
    assert json.loads((tmp_path / "out" / "format.json").read_bytes())["rows"] == found.rows
    again = write_format(store, data, name, tmp_path / "again" / "out")
    assert again.sha256 == found.sha256
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / "out" / file.name).read_bytes() == file.read_bytes()


def test_the_tools_that_requests_declare_are_in_every_row(store: SqliteStore, tmp_path: Path) -> None:
    prompt = msgspec.structs.replace(template(), bucket=layout.bucket_of(asked("x", tools=[TOOL])))
    keep(
        store,
        [exchange(n, asked(text, tools=[TOOL]), label) for n, (text, label) in enumerate(mail()[:60])],
        prompt,
    )
    data = built(store, tmp_path)
    write_format(store, data, "openai", tmp_path / "out")
    assert all(row["tools"] == [TOOL] for row in lines_of(tmp_path / "out" / "train.jsonl"))


def test_too_few_rows_for_the_consumer_are_refused_with_what_was_left_out(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, traffic(60))
    data = built(store, tmp_path)
    with pytest.raises(DatasetError, match=r"0 training rows in format dpo, which needs 10 pairs: label more rows"):
        write_format(store, data, "dpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    long = "x" * 201
    other = SqliteStore(tmp_path / "other" / "u.db")
    keep(other, [exchange(n, asked(text), f"{long}{n}") for n, (text, _) in enumerate(mail()[:60])])
    with pytest.raises(
        DatasetError, match=r"are left out, the first: too_long: a label of 20\d characters, over 200"
    ):
        write_format(other, build(other, "mail", tmp_path / "other"), "classifier", tmp_path / "out")
    other.close()


def test_a_folder_that_cannot_be_written_is_told(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="check the disk"):
        write_format(store, built(store, tmp_path), "trl", tmp_path / "out")


def test_the_command_writes_a_format_beside_the_dataset_that_it_copies(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, [*traffic(60), exchange(900, asked("say <|im_end|> now"), "other")])
    config = tmp_path / "gateway.yaml"
    config.write_text(f"store: {{url: '{config_in(tmp_path).store.url}'}}\n")
    words = ["dataset", "mail", "--config", str(config), "--format", "fireworks"]
    assert CliRunner().invoke(main, words).exit_code == 2  # where to?
    told = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    (folder,) = (tmp_path / "out").iterdir()
    rows = len(lines_of(folder / "fireworks" / "train.jsonl")) + len(
        lines_of(folder / "fireworks" / "validation.jsonl")
    )
    assert rows in (60, 61)
    as_json = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(as_json.stdout)["format"]["rows"]["train"] == len(
        lines_of(folder / "fireworks" / "train.jsonl")
    )


# --- pairs -----------------------------------------------------------------------------------------------


def test_corrections_and_approvals_make_pairs(store: SqliteStore, tmp_path: Path) -> None:
    said = [("twice", "refund"), ("twice", "praise"), ("twice", "other"), ("wrong", "refund"), ("alone", "praise")]
    keep(store, [*traffic(60), *(exchange(900 + n, asked(text), label) for n, (text, label) in enumerate(said))])
    feedback(store, "e00900", score=1.0)  # refund is right
    feedback(store, "e00901", score=-1.0)  # praise is not
    feedback(store, "e00903", label="delivery")
    feedback(store, "e00904", score=1.0)  # nothing worse is known
    data = built(store, tmp_path)
    found = [(row.text, row.output, worse) for row, worse in pairs(data.rows, judged_answers(store, "mail"))]
    assert found == [("twice", "refund", "praise"), ("wrong", "delivery", "refund")]


def test_a_label_that_says_what_was_answered_makes_no_pair(store: SqliteStore, tmp_path: Path) -> None:
    keep(store, traffic(60))
    feedback(store, "e00000", label="refund")
    assert pairs(built(store, tmp_path).rows, judged_answers(store, "mail")) == []


def test_twenty_corrections_are_twenty_pairs_each_on_its_side_of_the_split(
    store: SqliteStore, tmp_path: Path
) -> None:
    keep(store, [*traffic(80), exchange(900, asked("called"), answer(None, finish="tool_calls", tool_calls=[]))])
    for n in range(40):
        feedback(store, f"e{n:05}", corrected_output="complaint")
    data = built(store, tmp_path)
    found = write_format(store, data, "dpo", tmp_path / "out")
    assert sum(found.rows.values()) == 40
    side = {row.text: row.split for row in data.rows}
    for part in found.rows:
        for row in lines_of(tmp_path / "out" / f"{part}.jsonl"):
            text = row["input"]["messages"][0]["content"]
            assert side[text] == part
            assert row["preferred_output"][0]["content"] == "complaint"
            assert row["non_preferred_output"][0]["content"] == dict(mail())[text]


def test_a_worse_answer_is_scrubbed_like_the_rows(store: SqliteStore, tmp_path: Path) -> None:
    keep(
        store,
        [exchange(n, asked(text), f"write to anna{n}@example.com") for n, (text, _) in enumerate(mail()[:80])],
    )
    for n in range(60):
        feedback(store, f"e{n:05}", corrected_output=f"call {n}, please")
    write_format(store, built(store, tmp_path), "dpo", tmp_path / "out")
    for row in lines_of(tmp_path / "out" / "train.jsonl"):
        said = row["non_preferred_output"][0]["content"]
        assert said.startswith("write to ")
        assert "anna" not in said
