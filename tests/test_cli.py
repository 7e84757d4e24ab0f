"""The command line: what each command says, and its exit code: 0 done, 1 problem found or refused, 2 usage."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from stories import asked, exchange, keep, mail, template, traffic

from gateway.cli import main
from gateway.pipeline.locks import TURN_LOCK, one_at_a_time
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI

COMMANDS = sorted(name for name, command in main.commands.items() if not command.hidden)


class Desk:
    """A person at a terminal, with a config and a store."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder
        self.config = folder / "config" / "gateway.yaml"
        self.routes = self.config.with_name("routes.yaml")
        self.config.parent.mkdir(parents=True)
        self.config.write_text(yaml.safe_dump({
            "store": {"url": f"sqlite:///{folder / 'data' / 'unprompt.db'}"},
            "providers": {"openai": {"base_url": "http://127.0.0.1:9/v1"}},
            "trainers": {"classifier": {"kind": "classifier", "sweep": [{"features": "word"}]}},
        } | sections))  # fmt: skip

    @property
    def store(self) -> SqliteStore:
        return SqliteStore(self.folder / "data" / "unprompt.db")

    def types(self, *words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--config", str(self.config)])

    def reads(self, *words: str) -> Any:
        """What a program reads from the command's `--json`."""
        result = self.types(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def trained(desk: Desk) -> Desk:
    """With 500 letters recorded, and one candidate trained and evaluated."""
    keep(desk.store, traffic(500))
    assert desk.types("finetune", "mail").exit_code == 0
    assert desk.types("evaluate", "mail").exit_code == 0
    return desk


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: unprompt {name}" in result.output
    assert len((main.commands[name].help or "").split("\n")[0]) > 10


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_option_is_a_usage_error(name: str) -> None:
    assert CliRunner().invoke(main, [name, "--no-such-option"]).exit_code == 2


def test_every_command_that_a_program_may_read_has_json() -> None:
    readable = {"tasks", "dataset", "finetune", "evaluate", "promote", "rollback", "demo", "show", "prune"}
    has = {name for name, command in main.commands.items() if any("--json" in p.opts for p in command.params)}
    assert readable <= has


def test_no_command_and_an_unknown_one_are_usage_errors() -> None:
    assert CliRunner().invoke(main, []).exit_code == 2
    assert CliRunner().invoke(main, ["tune"]).exit_code == 2
    version = CliRunner().invoke(main, ["--version"])
    assert (version.exit_code, version.output.split(",")[0]) == (0, "unprompt")


@pytest.mark.parametrize("words", [["dataset"], ["finetune"], ["evaluate"], ["promote"], ["rollback"],
                                   ["tasks", "show"], ["tasks", "mail"], ["infer"],
                                   ["promote", "mail", "--canary", "none"], ["promote", "mail", "--canary", "101%"],
                                   ["finetune", "mail", "--sweep", "nowhere.yaml"]])  # fmt: skip
def test_what_is_missing_or_makes_no_sense_is_a_usage_error(desk: Desk, words: list[str]) -> None:
    result = CliRunner().invoke(main, words) if words == ["infer"] else desk.types(*words)
    assert result.exit_code == 2, result.output
    assert "Usage:" in result.output


# --- check -----------------------------------------------------------------------------------------------


def test_check_finds_every_problem_of_both_files_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNPROMPT_TEST_UNSET", raising=False)
    desk.config.write_text(f"""\
store: {{url: "sqlite:///{desk.folder}/data/unprompt.db"}}
providers:
  openai: {{base_url: "http://127.0.0.1:9/v1"}}
  spare: {{base_url: nowhere}}
  claude: {{protocol: anthropic, base_url: "http://127.0.0.1:9", api_key_env: UNPROMPT_TEST_UNSET}}
trainers:
  mine: {{kind: clasifier}}
job: {{}}
""")
    desk.routes.write_text("""\
routes:
  - name: a
    match: {provider: openai, taks: mail}
    targets: [{upstream: claude}]
  - name: b
    match: {provider: openai}
    targets:
      - {upstream: spare}
      - {upstream: claude}
      - {upstream: nowhere}
""")
    result = desk.types("check")
    assert result.exit_code == 1
    said = [line.removeprefix(f"{desk.config.parent}/") for line in result.stdout.splitlines()]
    assert [line.split(":")[0:2] for line in said] == [
        ["gateway.yaml", "4"], ["gateway.yaml", "5"], ["gateway.yaml", "8"], ["gateway.yaml", "7"],
        ["routes.yaml", "3"], ["routes.yaml", "9"], ["routes.yaml", "10"],
    ]  # fmt: skip
    assert "did you mean 'jobs'?" in said[2]
    assert "trainers.mine: trainer kind 'clasifier' is not known" in said[3]
    assert "did you mean 'task'?" in said[4]
    assert "'claude' speaks anthropic" in said[5]
    assert "no upstream 'nowhere'" in said[6]
    assert "7 problems found" in result.stderr


def test_check_names_the_line_of_a_template_and_a_model_that_do_not_exist(desk: Desk) -> None:
    keep(desk.store, traffic(1))
    desk.routes.write_text("""\
routes:
  - name: mail
    match: {task: mail}
    targets:
      - upstream: local
        model: mail-7
        strip: mail@1
      - upstream: openai
        model: small
        strip: mail@2
""")
    result = desk.types("check")
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert f"{desk.routes}:6: routes[0].targets[0].model: no trained model 'mail-7'" in first
    assert f"{desk.routes}:10: routes[0].targets[1].strip: no template mail@2; 'unprompt tasks' lists" in second


@pytest.mark.parametrize("text", ["routes: [\n", "routes:\n\t- a\n", "routes:\n- name: a\n  name: b\n"])
def test_check_names_the_line_of_broken_yaml(desk: Desk, text: str) -> None:
    desk.routes.write_text(text)
    result = desk.types("check")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{desk.routes}:")


def test_check_of_good_files_makes_none(desk: Desk) -> None:
    result = desk.types("check")
    assert result.exit_code == 0
    assert result.stdout == f"{desk.config}: good; {desk.routes}: not there, no routes\n"
    assert not (desk.folder / "data").exists()


def test_check_of_the_files_that_we_ship() -> None:
    shipped = Path(__file__).parent.parent / "config" / "gateway.yaml"
    result = CliRunner().invoke(main, ["check", "--config", str(shipped)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "name", ["serve", "check", "tasks", "dataset", "finetune", "evaluate", "promote", "rollback"]
)
def test_a_config_file_that_is_not_there_is_a_problem_of_every_command(tmp_path: Path, name: str) -> None:
    task = [] if name in ("serve", "check", "tasks") else ["mail"]
    result = CliRunner().invoke(main, [name, *task, "--config", str(tmp_path / "nowhere.yaml")])
    assert result.exit_code == 1
    assert "nowhere.yaml: cannot be read" in result.output


# --- the offline commands, one after the other -----------------------------------------------------------


def test_tasks_are_listed_and_shown(desk: Desk) -> None:
    assert desk.reads("tasks") == []
    keep(desk.store, traffic(30))
    (row,) = desk.reads("tasks")
    assert (row["name"], row["exchanges"], row["next"]) == ("mail", 30, "470 more exchanges until training")
    shown = desk.types("tasks", "show", "mail")
    assert shown.exit_code == 0
    assert "mail@1" in shown.output
    assert "Message: {{message}}" in shown.output
    missing = desk.types("tasks", "show", "post")
    assert missing.exit_code == 1
    assert "no task 'post'" in missing.output


def test_a_dataset_is_built_and_copied_where_it_is_wanted(desk: Desk) -> None:
    keep(desk.store, traffic(60))
    card = desk.reads("dataset", "mail", "--out", str(desk.folder / "out"))
    assert card["rows"] == 60
    assert (Path(card["directory"]) / "train.jsonl").is_file()
    assert Path(card["directory"]).parent == desk.folder / "out"
    again = desk.types("dataset", "mail")
    assert again.exit_code == 0
    assert "| recorded exchanges | 60 |" in again.output
    for words, reason in ((["dataset", "post"], "no task 'post'; known tasks: mail"),):
        refused = desk.types(*words)
        assert (refused.exit_code, reason in refused.output) == (1, True)


def test_too_little_is_refused_with_the_reason(desk: Desk) -> None:
    keep(desk.store, traffic(20))
    for command in ("dataset", "finetune"):
        result = desk.types(command, "mail")
        assert result.exit_code == 1
        assert "20 usable rows, and at least 50 are needed" in result.output


def test_what_has_to_come_first_is_said(desk: Desk) -> None:
    keep(desk.store, traffic(60))
    assert "run 'unprompt finetune mail' first" in desk.types("evaluate", "mail").output
    promoted = desk.types("promote", "mail")
    assert promoted.exit_code == 1
    assert "run 'unprompt evaluate mail' first" in promoted.output
    back = desk.types("rollback", "mail")
    assert back.exit_code == 1
    assert "no promotion to roll back" in back.output


def test_from_traffic_to_a_route_and_back_by_hand(desk: Desk) -> None:
    keep(desk.store, traffic(500))
    (one,) = desk.reads("finetune", "mail")
    assert (one["state"], one["upstream"]) == ("succeeded", "local")
    judged = desk.reads("evaluate", "mail")
    assert judged["decision"]["promote"] is True
    assert judged["report"]["candidates"][0]["model"] == one["model"]
    flipped = desk.reads("promote", "mail", one["model"], "--canary", "5%")
    assert flipped["route"]["targets"][0]["weight"] == 5
    assert yaml.safe_load(desk.routes.read_text())["routes"] == [flipped["route"]]
    assert desk.types("check").exit_code == 0
    assert desk.reads("rollback", "mail") == {"task": "mail", "route": None}
    assert desk.routes.read_text() == "routes: []\n"


def test_a_dataset_that_was_only_looked_at_hides_no_candidates(trained: Desk) -> None:
    keep(trained.store, traffic(40, start=5000))
    (before,) = trained.store.rows("datasets")
    assert trained.types("dataset", "mail").exit_code == 0
    assert len(trained.store.rows("datasets")) == 2
    judged = trained.types("evaluate", "mail")
    assert judged.exit_code == 0, judged.output
    assert f"judging those of {before['id']}" in judged.stderr


def test_tables_are_for_people(trained: Desk) -> None:
    assert "classifier word" in trained.types("finetune", "mail").output
    told = trained.types("evaluate", "mail").output
    assert "classifier word" in told
    assert "- Intervals: rows resampled 1,000 times" in told
    dry = trained.types("promote", "mail", "--dry-run")
    assert dry.exit_code == 0
    assert "Decision (nothing is changed): classifier word: would be promoted" in " ".join(dry.output.split())
    promoted = trained.types("promote", "mail")
    assert promoted.exit_code == 0
    assert f"{trained.routes}: 95 % of the requests of mail go to mail-" in promoted.output.replace("\n", "")
    back = trained.types("rollback", "mail")
    assert back.exit_code == 0
    assert "the requests of mail have no route any more: they go whole" in back.output


def test_a_candidate_may_begin_in_the_shadow_or_with_a_few_requests(trained: Desk) -> None:
    """The worker takes the further steps."""
    shown = trained.types("promote", "mail", "--shadow")
    assert "is asked 100 % of the requests of mail, too" in shown.output.replace("\n", "")
    (route,) = yaml.safe_load(trained.routes.read_text())["routes"]
    assert route["targets"] == [{"upstream": "openai", "model": "gpt-6"}]
    assert (route["shadow"]["upstream"], route["shadow"]["percent"]) == ("local", 100)
    (row,) = trained.store.rows("promotions", "action = 'promote'")
    assert [step["share"] for step in json.loads(row["steps"])] == [10, 50, 95]
    assert trained.reads("rollback", "mail") == {"task": "mail", "route": None}
    assert trained.reads("promote", "mail", "--canary", "5%")["route"]["targets"][0]["weight"] == 5
    assert trained.types("promote", "mail", "--canary", "0%").exit_code == 2


def test_the_gate_refuses_unless_it_is_forced(desk: Desk) -> None:
    """120 letters leave too few to judge by."""
    keep(desk.store, traffic(120))
    assert desk.types("finetune", "mail").exit_code == 0
    assert desk.types("evaluate", "mail").exit_code == 0
    refused = desk.types("promote", "mail")
    assert refused.exit_code == 1
    assert "the gate refuses; nothing was changed" in refused.output
    assert not desk.routes.exists()
    assert [row["action"] for row in desk.store.rows("promotions")] == ["refuse"]
    forced = desk.types("promote", "mail", "--force")
    assert forced.exit_code == 0, forced.output
    (row,) = desk.store.rows("promotions", "action = 'promote'")
    assert json.loads(row["decision"])["promote"] is False


def test_a_dry_run_shows_the_decision_record_and_changes_nothing(trained: Desk) -> None:
    shown = trained.types("promote", "mail", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "agreement, lower bound" in shown.output
    assert "- Chosen of 1 by what training promised" in shown.output
    record = trained.reads("promote", "mail", "--dry-run")["decision"]
    assert (record["promote"], record["policy"]["margin"], record["template"]) == (True, 0.05, "mail@1")
    assert not trained.routes.exists()
    assert trained.store.rows("promotions") == []


def test_a_dry_run_of_what_the_gate_refuses_ends_with_1(desk: Desk) -> None:
    keep(desk.store, traffic(120))
    assert desk.types("finetune", "mail").exit_code == 0
    assert desk.types("evaluate", "mail").exit_code == 0
    assert desk.types("promote", "mail", "--dry-run").exit_code == 1
    assert desk.store.rows("promotions") == []


def test_the_report_is_beside_the_dataset_and_where_it_is_wanted(trained: Desk) -> None:
    wanted = trained.folder / "mail.html"
    told = trained.types("evaluate", "mail", "--report", str(wanted))
    assert told.exit_code == 0, told.output
    assert f"report: {wanted}" in told.output.replace("\n", "")
    (beside,) = (trained.folder / "data" / "datasets").rglob("report.html")
    assert wanted.read_bytes() == beside.read_bytes()
    assert b"Quality, cost, latency" in wanted.read_bytes()
    nowhere = trained.types("evaluate", "mail", "--report", str(trained.folder / "no" / "x.html"))
    assert nowhere.exit_code == 1
    assert "the report could not be written there" in nowhere.output


def test_a_candidate_that_does_not_exist_is_not_promoted(trained: Desk) -> None:
    result = trained.types("promote", "mail", "mail-99")
    assert result.exit_code == 1
    assert "no candidate 'mail-99' in its newest evaluation; 'unprompt evaluate mail' lists them" in result.output


def test_promote_leaves_a_broken_routes_file_alone(trained: Desk) -> None:
    trained.routes.write_text("routes:\n  - name: half wri")
    result = trained.types("promote", "mail")
    assert result.exit_code == 1
    assert "is left as it is" in result.output
    assert trained.routes.read_text() == "routes:\n  - name: half wri"


def test_a_sweep_of_ones_own(desk: Desk) -> None:
    keep(desk.store, traffic(80))
    sweep = desk.folder / "sweep.yaml"
    sweep.write_text("classifier:\n- {features: word}\n- {features: char}\n")
    assert [one["options"]["features"] for one in desk.reads("finetune", "mail", "--sweep", str(sweep))] == [
        "word",
        "char",
    ]
    for text, reason in (
        ("clasifier: [{}]", "no trainer 'clasifier'; the config has classifier, tagger"),
        ("- word", "write it like 'classifier: [{features: word}]'"),
        ("classifier: [", "write it like 'classifier: [{features: word}]'"),
    ):
        sweep.write_text(text)
        result = desk.types("finetune", "mail", "--sweep", str(sweep))
        assert (result.exit_code, reason in result.output) == (1, True), result.output


def test_when_no_candidate_is_trained_that_is_a_problem(desk: Desk) -> None:
    keep(
        desk.store, [exchange(n, asked(text), f"a text of its own {n}") for n, (text, _) in enumerate(mail()[:80])]
    )
    result = desk.types("finetune", "mail")
    assert result.exit_code == 1
    assert "no candidate was trained" in result.output


def test_commands_that_call_nobody_need_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNPROMPT_TEST_UNSET", raising=False)
    provider = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "UNPROMPT_TEST_UNSET"}
    desk = Desk(tmp_path, providers={"openai": provider})
    keep(desk.store, traffic(60))
    assert desk.types("tasks").exit_code == 0
    assert desk.types("dataset", "mail").exit_code == 0
    assert "no promotion to roll back" in desk.types("rollback", "mail").output
    assert "UNPROMPT_TEST_UNSET is not set" in desk.types("finetune", "mail").output


def test_beside_a_worker_that_takes_a_turn_looking_and_going_back_wait_for_nobody(trained: Desk) -> None:
    assert trained.types("promote", "mail").exit_code == 0
    with one_at_a_time(trained.folder / "data" / TURN_LOCK, wait=False) as mine:
        assert mine
        assert len(trained.reads("tasks")) == 1
        assert trained.types("rollback", "mail").exit_code == 0


def test_tasks_of_odd_names_have_their_commands(desk: Desk) -> None:
    letters = [exchange(n, asked(text), label, task="отдел 7") for n, (text, label) in enumerate(mail()[:60])]
    keep(desk.store, letters, template(task="отдел 7"))
    assert desk.reads("dataset", "отдел 7")["rows"] == 60


def test_a_store_that_is_no_database_is_one_sentence(desk: Desk) -> None:
    (desk.folder / "data").mkdir()
    (desk.folder / "data" / "unprompt.db").write_text("hello" * 1000)
    result = desk.types("tasks")
    assert result.exit_code == 1
    assert "file is not a database" in result.output
    assert "Traceback" not in result.output


# --- what is recorded ------------------------------------------------------------------------------------


def test_an_exchange_is_shown_with_its_bytes_as_they_were(desk: Desk) -> None:
    one, other = traffic(2)
    keep(desk.store, [one, msgspec.structs.replace(other, response=b"\xff\x00 no text")])
    assert desk.types("show", one.id, "--part", "request").stdout_bytes == one.request
    assert desk.types("show", other.id, "--part", "response").stdout_bytes == b"\xff\x00 no text"
    shown = desk.types("show", one.id).output
    assert "model_requested    gpt-6" in shown
    assert one.request.decode() in shown
    assert desk.reads("show", one.id)["request"] == one.request.decode()
    assert desk.reads("show", other.id)["response_base64"] == base64.b64encode(b"\xff\x00 no text").decode()
    missing = desk.types("show", "e9")
    assert (missing.exit_code, "no exchange 'e9'" in missing.output) == (1, True)


def test_exchanges_are_exported_as_lines(desk: Desk) -> None:
    keep(desk.store, [*traffic(3), exchange(7, asked("x"), "y", version=None, tags={"user": "7"})])
    lines = [json.loads(line) for line in desk.types("export").stdout.splitlines()]
    assert [line["id"] for line in lines] == ["e00000", "e00001", "e00002", "e00007"]
    assert json.loads(lines[0]["response"])["choices"][0]["message"]["content"] == "refund"
    out = desk.folder / "mail.jsonl"
    assert desk.types("export", "--task", "mail", "--out", str(out)).exit_code == 0
    assert len(out.read_text().splitlines()) == 3
    assert json.loads(desk.types("export", "--tag", "user=7").stdout)["id"] == "e00007"


def test_a_prune_says_what_it_did_and_a_dry_run_what_it_would_do(desk: Desk) -> None:
    keep(desk.store, traffic(60))
    assert desk.types("dataset", "mail").exit_code == 0
    assert desk.reads("prune", "--older-than", "1d", "--dry-run")["exchanges"] == 60
    assert desk.store.count() == 60
    done = desk.types("prune", "--id", "e00000", "--id", "e00001")
    assert done.exit_code == 0, done.output
    assert "2 exchanges deleted" in done.output
    assert "is deleted: it held rows of them" in done.output
    assert desk.store.count() == 58
    assert desk.reads("dataset", "mail")["rows"] == 58  # the next one is built from what is left
    assert desk.reads("prune", "--keep-mb", "0")["exchanges"] == 58


def test_a_prune_without_options_does_what_the_settings_say(tmp_path: Path) -> None:
    nothing, settled = Desk(tmp_path / "a"), Desk(tmp_path / "b")
    assert nothing.types("prune").exit_code == 2
    text = settled.config.read_text().replace("store:\n", "store:\n  keep_days: 1\n")
    settled.config.write_text(text)
    keep(settled.store, traffic(5))
    assert settled.reads("prune")["exchanges"] == 5


@pytest.mark.parametrize("words", [["--older-than", "soon"], ["--tag", "user"], ["--keep-mb", "-1"]])
def test_a_prune_that_makes_no_sense_is_a_usage_error(desk: Desk, words: list[str]) -> None:
    assert desk.types("prune", *words).exit_code == 2


def test_every_command_is_a_click_command() -> None:
    assert {type(command) for command in main.commands.values()} == {click.Command, click.Group}


# --- sweeps ------------------------------------------------------------------------------------------------


def away(folder: Path, api: FakeOpenAI, **trainers: Any) -> Desk:
    """A desk whose sweep trains two candidates at a fake service, one of them twice as dear."""
    grid = {"base_model": "gpt-4.1-nano-2025-04-14", "n_epochs": [2, 4]}
    cloud = {"kind": "openai", "provider": "openai", "poll_seconds": 0.01, "sweep": grid, "prices": {"*": 100.0}}
    desk = Desk(
        folder, providers={"openai": {"base_url": api.base_url}}, trainers={"cloud": cloud} | trainers,
        tasks={"default": {"trainers": ["cloud", *trainers]}},
    )  # fmt: skip
    keep(desk.store, traffic(80))
    return desk


def test_what_a_sweep_would_cost_is_shown_and_nothing_is_started(tmp_path: Path) -> None:
    with FakeOpenAI() as api:
        desk = away(tmp_path, api)
        cheap, dear = (one["metrics"]["estimated_usd"] for one in desk.reads("finetune", "mail", "--dry-run"))
        assert dear == pytest.approx(2 * cheap)
        shown = " ".join(desk.types("finetune", "mail", "--dry-run", "--budget", str(dear)).output.split())
        assert "not started: about" in shown
        assert f"of {dear:.2f} USD" in shown
        assert api.received == []


def test_a_budget_is_kept_and_a_larger_one_trains_the_rest(tmp_path: Path) -> None:
    with FakeOpenAI() as api:
        desk = away(tmp_path, api)
        usd = str(desk.reads("finetune", "mail", "--dry-run")[0]["metrics"]["estimated_usd"])
        assert [one["state"] for one in desk.reads("finetune", "mail", "--budget", usd)] == ["succeeded", "created"]
        assert [one["state"] for one in desk.reads("finetune", "mail")] == ["succeeded", "succeeded"]
        assert len(api.jobs) == 2


def test_a_sweep_is_cancelled_by_command(tmp_path: Path) -> None:
    with FakeOpenAI() as api:
        desk = away(tmp_path, api)
        desk.reads("finetune", "mail", "--dry-run")
        assert [one["state"] for one in desk.reads("finetune", "mail", "--cancel")] == ["cancelled", "cancelled"]
        assert api.received == []
        result = desk.types("finetune", "mail")
        assert (result.exit_code, "cancelled by hand" in result.output) == (1, True)


def test_the_model_that_came_of_exported_files_is_named_by_command(tmp_path: Path) -> None:
    with FakeOpenAI() as api:
        desk = away(tmp_path, api, hand={"kind": "export", "provider": "openai"})
        waiting = desk.reads("finetune", "mail")[2]
        assert waiting["state"] == "waiting"
        assert f"--model {waiting['id']}=MODEL" in waiting["remote"]["todo"]
        (done,) = desk.reads("finetune", "mail", "--model", f"{waiting['id']}=ours-1")
        assert (done["state"], done["upstream"], done["model"]) == ("succeeded", "openai", "ours-1")
        assert "waiting for a model: none" in desk.types("finetune", "mail", "--model", "other").output
