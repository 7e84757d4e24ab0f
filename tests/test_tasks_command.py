"""`unprompt tasks`: what was found, for people and for programs, and what people change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stories
import yaml
from click.testing import CliRunner, Result
from rich.console import Console
from stories import asked, exchange, keep, mail, template, traffic

from gateway import tables
from gateway.cli import main
from gateway.domain import layout
from gateway.stores.sqlite import SqliteStore


class Desk:
    """A person at a terminal of 80 columns, with a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "gateway.yaml"
        self.config.write_text(yaml.safe_dump({
            "store": {"url": f"sqlite:///{folder / 'data' / 'unprompt.db'}"},
            "providers": {"openai": {"base_url": "http://127.0.0.1:9/v1"}},
        }))  # fmt: skip

    @property
    def store(self) -> SqliteStore:
        return SqliteStore(self.folder / "data" / "unprompt.db")

    def types(self, *words: str, says: str | None = None) -> Result:
        return CliRunner().invoke(main, ["tasks", *words, "--config", str(self.config)], input=says)

    def reads(self, *words: str) -> Any:
        """What a program reads from the command's `--json`."""
        result = self.types(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(tables, "console", Console(width=80))
    return Desk(tmp_path)


@pytest.fixture
def told(desk: Desk) -> Desk:
    """30 letters with the old prompt, 60 with the new one, and 10 whose prompt says more."""
    new = [exchange(100 + n, asked(text, system=stories.NEW_SYSTEM), label, version=2)
           for n, (text, label) in enumerate(mail()[:60])]  # fmt: skip
    near = [exchange(200 + n, asked(text, system=stories.SYSTEM + " Hurry."), "praise", version=None)
            for n, (text, _) in enumerate(mail()[:10])]  # fmt: skip
    keep(desk.store, [*traffic(30), *new, *near], template(), template(stories.NEW_SYSTEM, 2))
    return desk


def test_without_traffic_there_are_none_and_it_says_how_there_will_be(desk: Desk) -> None:
    assert desk.types().stdout == "no tasks yet: a handful of requests with the same prompt make one\n"
    assert desk.reads() == []


def test_options_may_stand_in_front_of_the_sub_command(told: Desk) -> None:
    result = CliRunner().invoke(main, ["tasks", "--config", str(told.config), "--json", "show", "mail@1"])
    assert json.loads(result.stdout)["template"] == "mail@1"


def test_the_page_of_a_task_has_everything_in_80_columns(told: Desk) -> None:
    result = told.types("show", "mail")
    assert result.exit_code == 0, result.output
    page = result.stdout
    assert page.startswith(
        "mail@2  kind not known yet, 90 requests, 0 stripped, 90.0% of the last 1,000 match\nnext: "
    )
    assert f"\n{stories.NEW_SYSTEM}\n" in page
    assert "\nMessage: {{message}}\n" in page
    assert "\nMessage: {{" + mail()[59][0] + "}}\n" in page
    assert f"\nuser: {mail()[59][0]}\n" in page
    assert "40 whole, about " in page
    assert "mail@1 -> mail@2, [-gone-] {+new+}" in page
    assert "[-refund-]{+money+}" in page
    assert "literal" in page.partition("Near misses")[2]
    assert page.partition("literal")[2].split()[0] == "10"
    tables_only = [line for line in page.splitlines() if line.startswith(" ")]
    assert max(map(len, tables_only)) <= 80


def test_a_terminal_with_colours_gets_colours_instead_of_marks(told: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "console", Console(width=80, force_terminal=True, color_system="standard"))
    page = told.types("show", "mail").stdout
    assert "\x1b[1;36m{{message}}\x1b[0m" in page
    assert "\x1b[31mrefund\x1b[0m\x1b[32mmoney\x1b[0m" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "post"], "no task 'post'; 'unprompt tasks' lists those that there are"),
        (["show", "mail@7"], "no template mail@7; its versions are 1, 2"),
    ],
)
def test_what_is_not_there_is_one_sentence(told: Desk, words: list[str], said: str) -> None:
    result = told.types(*words)
    assert (result.exit_code, said in result.stderr) == (1, True)


@pytest.mark.parametrize("words", [["show"], ["show", "mail@x"], ["show", "@1"], ["list"], ["mail"]])
def test_what_makes_no_sense_is_a_usage_error(desk: Desk, words: list[str]) -> None:
    assert desk.types(*words).exit_code == 2


def test_a_page_shows_tools_turns_and_a_template_without_slots(desk: Desk) -> None:
    turns = [{"role": "user", "content": f"turn {n}"} for n in range(9)]
    body = {"model": "gpt-6", "response_format": {"type": "json_object"},
            "messages": [{"role": "system", "content": stories.SYSTEM}, *turns]}  # fmt: skip
    chat = msgspec.structs.replace(template(turns=True), bucket=layout.bucket_of(body))
    keep(desk.store, [exchange(1, body, "ok")], chat)
    page = desk.types("show", "mail").stdout
    assert '"type": "json_object"' in page
    assert "No slots: only the turns stay." in page
    assert "turns of the conversation: 9" in page
    assert "… and 3 more" in page
