"""`unprompt label`: a person at the terminal, and files of labels, each against a real store."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from stories import asked, config_in, exchange, keep, mail, traffic

from gateway.cli import main
from gateway.pipeline.dataset import build
from gateway.pipeline.label_files import BadLine, Reason, read_labels
from gateway.stores.remarks import said
from gateway.stores.sqlite import SqliteStore


class Desk:
    """A person with 60 sorted letters, two of which were sorted twice, and one in an odd way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config" / "gateway.yaml"
        self.config.parent.mkdir(parents=True)
        self.config.write_text(f"store: {{url: '{config_in(folder).store.url}'}}\n")
        self.store = SqliteStore(folder / "data" / "unprompt.db")
        more = [("twice", "refund"), ("twice", "praise"), ("again", "delivery"), ("again", "other"),
                ("odd\x1b[31m", "complaint")]  # fmt: skip
        keep(self.store, [*traffic(60), *(exchange(900 + n, asked(t), a) for n, (t, a) in enumerate(more))])

    def types(self, *words: str, keys: str = "") -> Result:
        return CliRunner().invoke(main, ["label", "mail", *words, "--config", str(self.config)], input=keys)

    def brings(self, name: str, content: str | bytes, *words: str) -> Result:
        file = self.folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.types("--import", str(file), *words)

    @property
    def said(self) -> dict[str, dict[str, Any]]:
        return said(self.store)

    def learnt(self) -> dict[str, str]:
        rows = build(self.store, "mail", self.folder / "datasets").rows
        return {row.text: row.output for row in rows}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- in the terminal -------------------------------------------------------------------------------------


def test_enter_approves_a_number_and_a_text_correct_and_s_skips(desk: Desk) -> None:
    told = desk.types(keys="\n2\ns\n")
    assert told.exit_code == 0
    assert "2 labelled and saved, 1 skipped, 0 left" in told.output
    assert "other answers to it: refund (1 x)" in told.output
    assert "\x1b[31m" not in told.output  # what customers write does not colour the terminal
    assert desk.said == {"e00901": {"score": 1.0}, "e00903": {"label": "other", "corrected_output": ""}}
    learnt = desk.learnt()
    assert (learnt["twice"], learnt["again"]) == ("praise", "other")
    assert "nothing is in doubt" not in desk.types(keys="q\n").output  # the skipped one is left
    desk.types(keys="Refund\n")
    assert desk.learnt()["odd\x1b[31m"] == "refund"
    assert "nothing is in doubt" in desk.types().output


def test_what_is_no_answer_so_far_is_asked_about_once_more(desk: Desk) -> None:
    desk.types("--limit", "1", keys="refnd\nn\n=s\ny\n")
    assert desk.said == {"e00901": {"label": "s", "corrected_output": ""}}


@pytest.mark.parametrize("end", ["q\n", ""])
def test_what_was_said_before_the_end_is_saved(desk: Desk, end: str) -> None:
    told = desk.types(keys=f"\n{end}")
    assert told.exit_code == 0
    assert "1 labelled and saved, 0 skipped, 2 left" in told.output
    assert list(desk.said) == ["e00901"]


def test_control_c_ends_it_and_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["praise"])

    def prompt(*_: Any, **__: Any) -> str:
        for text in typed:
            return text
        raise click.Abort

    monkeypatch.setattr("gateway.commands.label.click.prompt", prompt)
    told = desk.types()
    assert told.exit_code == 0
    assert "1 labelled and saved" in told.output
    assert desk.said["e00901"]["label"] == "praise"


def test_a_long_answer_is_corrected_in_the_editor(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.commands.label.click.edit", lambda text: f"{text.replace('praise', 'refund')}\n")
    desk.types("--limit", "1", keys="e\n")
    assert desk.said["e00901"]["label"] == "refund"


def test_an_exchange_that_was_deleted_meanwhile_is_passed_over(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompt(*_: Any, **__: Any) -> str:
        SqliteStore(desk.store.path).run("DELETE FROM exchange_rows WHERE id = 'e00901'")
        return ""

    monkeypatch.setattr("gateway.commands.label.click.prompt", prompt)
    told = desk.types("--limit", "2")
    assert "deleted meanwhile" in told.output
    assert list(desk.said) == ["e00903"]


def test_approving_a_rejected_or_a_candidates_answer_makes_it_a_row(desk: Desk) -> None:
    keep(desk.store, [exchange(950, asked("new"), "odd one", stripped=True, target="local/mail-1")])
    desk.store.put("feedback", {"id": "f", "exchange_id": "e00005", "score": -1.0, "created_at": 1.0})
    assert mail()[5][0] not in desk.learnt()
    told = desk.types(keys="\n" * 5)
    assert "5 labelled" in told.output
    assert desk.learnt()[mail()[5][0]] == mail()[5][1]
    assert desk.learnt()["new"] == "odd one"


def test_an_unknown_task_is_refused(desk: Desk) -> None:
    for words in ([], ["--export", str(desk.folder / "q.csv")], ["--import", str(desk.config)]):
        told = CliRunner().invoke(main, ["label", "letters", *words, "--config", str(desk.config)])
        assert told.exit_code == 1
        assert "no task 'letters'; known tasks: mail" in told.output
    both = desk.types("--import", str(desk.config), "--export", "x.csv")
    assert both.exit_code == 2


def test_a_program_reads_the_queue(desk: Desk) -> None:
    found = json.loads(desk.types("--json").stdout)
    assert [(one["input"], one["answers"]) for one in found[:2]] == [
        ("twice", {"refund": 1, "praise": 1}), ("again", {"delivery": 1, "other": 1}),
    ]  # fmt: skip
    assert len(json.loads(desk.types("--json", "--all").stdout)) == 63


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_queue_goes_out_is_filled_in_here_and_there_and_comes_back(desk: Desk, ending: str) -> None:
    file = desk.folder / f"queue.{ending}"
    assert "3 inputs written" in desk.types("--export", str(file)).output
    text = file.read_text("utf-8")
    if ending == "csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        rows[1]["label"] = "praise"
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = "\ufeff" + out.getvalue()  # as a spreadsheet saves it
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        lines[1]["label"] = "praise"
        text = "\n".join(map(json.dumps, lines))
    told = desk.brings(f"back.{ending}", text)
    assert (told.exit_code, told.output) == (0, "1 labels, 1 noted; 2 lines without a label, 0 bad ones\n")
    assert desk.learnt()["again"] == "praise"
    assert "1 labels, 0 noted" in desk.brings(f"back.{ending}", text).output  # once more changes nothing


def test_an_input_names_its_newest_exchange(desk: Desk) -> None:
    assert desk.brings("l.jsonl", '{"input": "twice", "corrected_output": "delivery"}').exit_code == 0
    assert desk.said == {"e00901": {"corrected_output": "delivery"}}
    assert desk.learnt()["twice"] == "delivery"


BAD: list[tuple[str, Reason]] = [
    ("{oh", Reason.NOT_JSON),
    ("[]", Reason.NOT_OBJECT),
    ('{"exchange_id": "e00001", "labels": "x"}', Reason.UNKNOWN_COLUMN),
    ('{"label": "x"}', Reason.NAMES_NOTHING),
    ('{"exchange_id": "e00001", "score": 7}', Reason.BAD_VALUE),
    ('{"exchange_id": "e00001", "label": 7}', Reason.BAD_VALUE),
    ('{"exchange_id": ["e00001"], "label": "x"}', Reason.BAD_VALUE),
    ('{"exchange_id": "e77777", "label": "x"}', Reason.UNKNOWN_EXCHANGE),
    ('{"input": "never asked", "label": "x"}', Reason.UNKNOWN_INPUT),
    ('{"exchange_id": "e00000", "label": "other"}', Reason.CONFLICT),
]
GOOD = '{"exchange_id": "e00000", "label": "praise"}'


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_named_by_number_and_reason_and_nothing_is_taken(
    desk: Desk, line: str, reason: Reason
) -> None:
    told = desk.brings("l.jsonl", f"{GOOD}\n\n{line}\n")
    assert told.exit_code == 1
    assert f"line 3: {reason.value}: " in told.stderr
    assert "nothing was taken" in told.stderr
    assert desk.said == {}
    skipped = desk.brings("l.jsonl", f"{GOOD}\n\n{line}\n", "--skip-bad", "--json")
    assert skipped.exit_code == 0
    found = json.loads(skipped.stdout)
    assert (found["noted"], [(one["line"], one["reason"]) for one in found["bad"]]) == (1, [(3, reason.value)])
    assert desk.said == {"e00000": {"label": "praise", "corrected_output": ""}}


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"exchange_id,label\ne00000,praise\ne00001,refund,more\n", 3, Reason.NOT_CSV),
        (b'exchange_id,comment,label\n"e00000","two\nlines",praise\ne77777,,refund\n', 4, Reason.UNKNOWN_EXCHANGE),
        (b"exchange_id,label,score\ne00000,praise,high\n", 2, Reason.BAD_VALUE),
        (b"exchange_id,label,score\ne00000,praise,nan\n", 2, Reason.BAD_VALUE),
        (b"exchange_id,label\ne00000,\xff\n", 1, Reason.NOT_CSV),
        (b'exchange_id,label\ne00000,"praise\n', 2, Reason.NOT_CSV),
    ],
)
def test_a_bad_line_of_a_csv_file_is_named_too(desk: Desk, content: bytes, line: int, reason: Reason) -> None:
    told = desk.brings("l.csv", content)
    assert told.exit_code == 1
    assert f"line {line}: {reason.value}: " in told.stderr
    assert desk.said == {}


def test_every_reason_is_shown_above() -> None:
    assert {reason for _, reason in BAD} | {Reason.NOT_CSV} == set(Reason)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.booleans())
def test_whatever_a_file_holds_each_line_is_taken_silent_or_bad(content: bytes, is_csv: bool) -> None:
    found = read_labels(content, is_csv=is_csv, ids={"e1"}, find=lambda text: None)
    assert found.remarks == []
    assert all(isinstance(one, BadLine) and one.line >= 1 for one in found.bad)
