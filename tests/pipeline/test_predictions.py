"""`unprompt infer`: from a file of recorded requests to predictions, and what it says of files that are none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stories import asked, mail

from gateway.cli import main

REQUESTS = [{"rid": f"r{n}", "ts": n, "body": asked(text)} for n, (text, _) in enumerate(mail()[:60])]
ODD = {"rid": "odd", "ts": 99, "body": {"model": "m", "messages": [{"role": "user", "content": ["hi", None]}]}}


def lines(*requests: Any) -> bytes:
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def infer(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["infer", "--out", str(folder / "pred.jsonl"), *options])


def test_each_request_has_its_prediction_and_people_get_a_table(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(*REQUESTS, ODD))
    (tmp_path / "live.jsonl.gz").write_bytes(gzip.compress(lines(REQUESTS[0] | {"rid": "again"})))
    result = infer(tmp_path, "--train", str(tmp_path / "train.jsonl"), "--live", str(tmp_path / "live.jsonl.gz"))
    assert result.exit_code == 0, result.output
    assert "1 template in 61 requests" in result.stdout
    assert [line.split()[1] for line in result.stdout.splitlines() if "(no template)" in line or "@1" in line] == [
        "60",
        "template)",
    ]
    meta, *predictions = map(json.loads, (tmp_path / "pred.jsonl").read_text().splitlines())
    assert (meta["meta"]["n"], [p["rid"] for p in predictions[-2:]]) == (61, ["odd", "again"])
    text = mail()[0][0]
    assert predictions[0]["segs"] == predictions[-1]["segs"] == [[1, -1, len("Message: "), len(f"Message: {text}")]]
    assert (predictions[-2]["match"], predictions[-1]["match"]) == (False, True)


def test_programs_get_the_totals(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(*REQUESTS))
    result = infer(tmp_path, "--train", str(tmp_path / "train.jsonl"), "--json")
    assert json.loads(result.stdout).keys() == {"infer_seconds", "n", "templates"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "line 2 is no request: Expecting property name"),
        (b"[" * 100_000, "line 2 is no request"),
        (b"[]", "line 2 is no request: Expected `object`"),
        (lines({"rid": 7, "ts": 1, "body": {}}), "Expected `str`, got `int` - at `$.rid`"),
        (lines({"rid": "a", "ts": 1}), "missing required field `body`"),
        (b"\xff{}", "line 2 is no request"),
    ],
    ids=["broken", "deep", "list", "number", "no-body", "no-text"],
)
@pytest.mark.parametrize("role", ["--train", "--live"])
def test_a_line_that_is_no_request_is_named_with_the_reason(
    tmp_path: Path, bad: bytes, reason: str, role: str
) -> None:
    good, wrong = tmp_path / "good.jsonl", tmp_path / "wrong.jsonl"
    good.write_bytes(lines(*REQUESTS[:1]))
    wrong.write_bytes(lines(REQUESTS[0]) + bad)
    files = {"--train": good, "--live": good} | {role: wrong}
    result = infer(tmp_path, *(str(word) for pair in files.items() for word in pair))
    assert result.exit_code == 1
    assert f"{wrong}: " in result.stderr
    assert reason in result.stderr
    assert not (tmp_path / "pred.jsonl").exists()


def test_a_file_that_is_no_gzip_one_that_is_not_there_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    good, wrong, cut = tmp_path / "good.jsonl", tmp_path / "wrong.jsonl.gz", tmp_path / "cut.jsonl.gz"
    good.write_bytes(lines(*REQUESTS[:1]))
    wrong.write_bytes(good.read_bytes())
    cut.write_bytes(gzip.compress(lines(*REQUESTS))[:-30])
    assert "cannot be read after line 0 (Not a gzipped file" in infer(tmp_path, "--train", str(wrong)).stderr
    assert "cannot be read after line" in infer(tmp_path, "--train", str(cut)).stderr
    assert infer(tmp_path, "--train", str(tmp_path / "nowhere.jsonl")).exit_code == 2
    unwritable = infer(tmp_path, "--train", str(good), "--out", str(tmp_path / "no" / "where.jsonl"))
    assert (unwritable.exit_code, "cannot be written (No such file" in unwritable.stderr) == (1, True)
