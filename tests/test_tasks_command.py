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
from gateway.pipeline.gate import Check, Decision
from gateway.pipeline.promotions import note_refusal
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import set_standing


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


# --- reading and changing templates as files --------------------------------------------------------------


def exported(desk: Desk, *words: str) -> str:
    result = desk.types("export", *words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_template_goes_out_as_yaml_and_comes_back_unchanged(told: Desk) -> None:
    text = exported(told, "mail")
    assert "based_on: mail@2\n" in text
    assert stories.NEW_SYSTEM in text
    file = told.folder / "mail.yaml"
    assert "written to" in exported(told, "mail@1", "--out", str(file))
    assert "based_on: mail@1\n" in file.read_text()
    back = told.types("import", str(file))
    assert back.exit_code == 0, back.output
    assert back.stdout.splitlines()[-1] == "nothing to store"
    assert [one.name for one in told.store.templates()] == ["mail@1", "mail@2"]


def test_the_tools_of_a_recorded_request_go_out_with_its_template(desk: Desk) -> None:
    body = asked("hi", response_format={"type": "json_object"})
    keep(desk.store, [exchange(1, body, "ok")], msgspec.structs.replace(template(), bucket=layout.bucket_of(body)))
    assert '{"response_format": {"type": "json_object"}}' in exported(desk, "mail")


def test_a_changed_file_becomes_a_version_after_its_effect_was_shown(told: Desk) -> None:
    file = told.folder / "mail.yaml"
    file.write_text(
        exported(told, "mail").replace("a small shop", "a {{size}} shop").replace("slots:", "slots:\n  size: {}")
    )
    dry = told.types("import", str(file), "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.startswith(f"mail@3  takes the place of mail@2  ({file})")
    assert "[-small-]{+{{size}}+}" in dry.stdout
    assert "of the last 60 requests of mail@2, 60 match it" in dry.stdout
    assert dry.stdout.endswith("nothing is stored (--dry-run)\n")
    assert len(told.store.templates()) == 2

    done = told.reads("import", str(file))
    assert (done["stored"], done["moved"], done["templates"][0]["template"]) == (True, 60, "mail@3")
    page = told.types("show", "mail").stdout
    assert page.startswith("mail@3")
    assert page.partition(" @3 ")[2].split()[2] == "hand"
    assert told.reads("show", "mail")["versions"][2]["replaces"] == "mail@2"


def test_a_folder_is_checked_whole_and_one_mistake_stores_nothing(told: Desk) -> None:
    folder = told.folder / "templates"
    folder.mkdir()
    (folder / "a.yaml").write_text(exported(told, "mail").replace("pin: false", "pin: true"))
    (folder / "b.yml").write_text(
        "task: letters\nmessages:\n- role: user\n  text: '{{a}}{{b}} is too short'\nx: 1\n"
    )
    (folder / "notes.txt").write_text("not a template")
    result = told.types("import", str(folder))
    assert result.exit_code == 1
    assert f"{folder}/b.yml:5: x: unknown key" in result.stderr
    assert "pinned" not in told.types("show", "mail").stdout
    (folder / "b.yml").write_text("task: letters\nmessages:\n- role: user\n  text: 'Answer this letter: {{a}}'\n")
    result = told.types("import", str(folder))
    assert result.exit_code == 0, result.output
    assert "mail@2: the template is as it was" in result.stdout
    assert "stored letters@1; 0 recorded requests belong to it now" in result.stdout
    assert told.types("show", "mail").stdout.startswith("mail@2  pinned, ")
    assert "letters@1" in told.types().stdout


def test_a_folder_without_templates_and_a_file_that_is_not_there(told: Desk) -> None:
    (told.folder / "empty").mkdir()
    empty = told.types("import", str(told.folder / "empty"))
    assert (empty.exit_code, "no .yaml file in" in empty.stderr) == (1, True)
    assert told.types("import", str(told.folder / "nowhere.yaml")).exit_code == 2
    assert told.types("import").exit_code == 2
    unwritable = told.types("export", "mail", "--out", str(told.folder / "no" / "where.yaml"))
    assert (unwritable.exit_code, "cannot be written" in unwritable.stderr) == (1, True)


def editor(monkeypatch: pytest.MonkeyPatch, folder: Path, *commands: str) -> None:
    """$EDITOR is a script that runs one sed command each time, in turn."""
    script = folder / "editor.sh"
    turns = "\n".join(
        f'if [ "$n" = {n} ]; then sed -i -e \'{command}\' "$1"; fi' for n, command in enumerate(commands)
    )
    script.write_text(
        f'#!/bin/sh\nn=$(cat "{folder}/n" 2>/dev/null || echo 0)\n{turns}\necho $((n + 1)) > "{folder}/n"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(script))


def test_a_template_is_changed_in_an_editor_shown_and_stored(told: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    editor(monkeypatch, told.folder, "s/{{message}}/{{letter}}/;s/  message: /  letter: /")
    result = told.types("edit", "mail", says="y\n")
    assert result.exit_code == 0, result.output
    assert "{+letter+}" in result.stdout
    assert "Store it as mail@3?" in result.output
    assert [slot.name for slot in told.store.templates()[-1].slots] == ["letter"]


def test_an_edit_can_be_mended_given_up_or_change_nothing(told: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    editor(monkeypatch, told.folder, "s/^pin:/pinn:/", "s/^pinn: false/pin: true/", "s/x/x/", "s/^task:/tusk:/")
    mended = told.types("edit", "mail", says="y\ny\n")
    assert "mail.yaml:9: pinn: unknown key; did you mean 'pin'?" in mended.stderr
    assert mended.stdout.endswith("stored: the pin\n")
    assert told.types("edit", "mail").stdout == "nothing was changed\n"
    given_up = told.types("edit", "mail", says="n\n")
    assert (given_up.exit_code, len(told.store.templates())) == (1, 2)


def test_a_task_is_pinned_and_let_go(told: Desk) -> None:
    assert told.types("pin", "mail").stdout == "mail: inference adds no versions\n"
    assert told.reads("show", "mail")["pinned"] is True
    assert told.types("pin", "mail", "--off").stdout == "mail: inference may add versions\n"
    assert told.reads()[0]["pinned"] is False
    assert told.types("pin", "post").exit_code == 1


def test_a_person_confirms_that_what_is_new_in_a_slot_is_input(told: Desk) -> None:
    set_standing(told.store, "mail@2", "drifting", "in `message`, the newest values begin with 'Hurry'")
    page = told.types("show", "mail").stdout
    assert "ALARM: in `message`, the newest values begin with 'Hurry'" in page
    assert "drifting" in page.partition("Versions")[2]
    assert told.types("confirm", "mail@2").stdout == "mail@2 may be stripped again\n"
    assert "ALARM" not in told.types("show", "mail").stdout
    again = told.types("confirm", "mail@2")
    assert (again.exit_code, "mail@2 is not drifting" in again.stderr) == (1, True)


@pytest.mark.parametrize("name", ["show", "export", "import", "edit", "pin", "confirm"])
def test_every_sub_command_has_help_with_an_example_and_is_in_the_reference(name: str) -> None:
    said = CliRunner().invoke(main, ["tasks", name, "--help"]).output
    assert f"unprompt tasks {name} " in said.partition("Example:")[2]
    reference = (Path(__file__).parent.parent / "docs" / "reference.md").read_text("utf-8")
    assert f"`tasks {name} " in reference


def test_each_decision_is_printed_with_all_its_conditions(told: Desk) -> None:
    assert "nothing was decided about mail yet" in told.types("decisions", "mail").stdout
    checks = (
        Check("agreement, lower bound", 0.93, 0.95, holds=False),
        Check("held-out rows", 120.0, 50.0, holds=True),
    )
    record = Decision(task="mail", evaluation="e1", candidate="ft-1", score=None, checks=checks, promote=False,
                      notes=("judged on 120 validation rows",))  # fmt: skip
    note_refusal(told.store, record)
    lines = [" ".join(line.split()) for line in told.types("decisions", "mail").stdout.splitlines()]
    for line in (
        "agreement, lower bound 0.93 0.95 NO",
        "held-out rows 120 50 yes",
        "- judged on 120 validation rows",
    ):
        assert line in lines
    (read,) = told.reads("decisions", "mail")
    assert (read["action"], read["decision"]["checks"][0]["value"]) == ("refuse", 0.93)
    assert told.types("decisions", "mial").exit_code == 1


def test_what_was_saved_stands_day_by_day(told: Desk) -> None:
    bare = [exchange(300 + n, asked(text), label, cost_usd=0.0, latency_ms=100.0, stripped=True, target="local/m-1",
                     version=2) for n, (text, label) in enumerate(mail()[:5])]  # fmt: skip
    whole = [exchange(400 + n, asked(text, system=stories.NEW_SYSTEM), label, cost_usd=0.004, latency_ms=900.0,
                      version=2) for n, (text, label) in enumerate(mail()[:10])]  # fmt: skip
    keep(told.store, [*whole, *bare])
    (day,) = told.reads("show", "mail")["saved_by_day"]
    page = told.types("show", "mail").stdout
    assert f"{5:>10}{day['usd']:>11.4f}" in page
