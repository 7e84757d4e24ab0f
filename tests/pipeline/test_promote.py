"""Flips: people's comments and other routes keep their bytes, history and file agree, going back is exact."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stories
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Config, load_routes, parse_routes
from gateway.domain.route import RouteLimits
from gateway.errors import ConfigError, TaskError
from gateway.pipeline import promote
from gateway.pipeline.canary import Step
from gateway.pipeline.evaluate import Report, Score
from gateway.pipeline.gate import Decision
from gateway.pipeline.promote import rollback, settle
from gateway.pipeline.promotions import standing
from gateway.pipeline.routes_text import edit, routes_of
from gateway.stores.sqlite import SqliteStore

TUNED = Score(
    candidate="openai tuned", finetune="ft-1", upstream="openai", model="ft:mail-1", rows=200, agreement=0.99,
    agreement_low=0.96, answered=1.0, agreement_answered=0.99, min_confidence=0.0, cost_per_1k_usd=0.1, p50_ms=1.0,
    p95_ms=2.0, input_tokens=10.0,
)  # fmt: skip
INCUMBENT = msgspec.structs.replace(TUNED, candidate="incumbent", finetune=None, model="gpt-6")


def report(task: str = "mail", model: str = "gpt-6", tuned: Score = TUNED) -> Report:
    return Report(
        id=f"eval-{task}", task=task, dataset="d", template=f"{task}@1", confidence=0.95,
        incumbent=msgspec.structs.replace(INCUMBENT, model=model), candidates=[tuned], failed={},
        provider="openai", model=model,
    )  # fmt: skip


class Switch:
    """A routes file and the history beside it, flipped the way the worker and the commands do."""

    def __init__(self, folder: Path, store: SqliteStore) -> None:
        self.file = folder / "config" / "routes.yaml"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.store, self.config, self.models = store, stories.config_in(folder), folder / "models"

    def promote(self, share: float = 95.0, steps: Sequence[Step] = (), **about: Any) -> dict[str, Any]:
        found = report(**about)
        decision = Decision(task=found.task, evaluation=found.id, candidate="ft-1", score=found.candidates[0],
                            checks=(), promote=True)  # fmt: skip
        return promote.promote(self.store, self.config, self.file, self.models, found, decision,
                               steps=steps or (Step(share),))  # fmt: skip

    def rollback(self, task: str = "mail") -> dict[str, Any] | None:
        return rollback(self.store, self.config, self.file, task)

    def write(self, text: str | bytes) -> None:
        self.file.write_bytes(text.encode() if isinstance(text, str) else text)

    @property
    def bytes(self) -> bytes:
        return self.file.read_bytes()

    @property
    def routes(self) -> list[dict[str, Any]]:
        load_routes(self.file, self.config)  # what the relay would say
        return routes_of(self.bytes.decode())

    def history(self) -> list[tuple[str, str]]:
        return [(row["action"], row["state"]) for row in self.store.rows("promotions")]


@pytest.fixture
def switch(tmp_path: Path, store: SqliteStore) -> Switch:
    return Switch(tmp_path, store)


PROMOTED = {
    "name": "mail",
    "match": {"provider": "openai", "model": "gpt-6", "task": "mail"},
    "targets": [
        {"upstream": "openai", "model": "ft:mail-1", "weight": 95.0, "strip": "mail@1"},
        {"upstream": "openai", "model": "gpt-6", "weight": 5.0},
    ],
    "fallback": {"upstream": "openai", "model": "gpt-6"},
    "audit": 10.0,
}

PROMOTED_CANARY = [
    {"upstream": "openai", "model": "ft:mail-1", "weight": 5, "strip": "mail@1"},
    {"upstream": "openai", "model": "gpt-6", "weight": 95},
]

BY_HAND = """\
# Our switchboard. Ask Ann before you touch it!
routes:
  # Ann's team pays for this one.
  - name: vip
    match: {key: "a1b2", model: gpt-6}   # the key's id, not the key
    targets: [{upstream: openai, model: gpt-6}]

  - name: reviews
    match:
      task: reviews
    targets:
      - upstream: openai   # until the new one is ready
        model: gpt-6
# the end
"""


def test_the_first_promotion_makes_the_file(switch: Switch) -> None:
    assert switch.promote() == PROMOTED
    assert switch.routes == [PROMOTED]
    assert switch.history() == [("promote", "done")]
    assert not list(switch.file.parent.glob("*.partial"))


def test_a_route_comes_before_what_holds_for_everybody_and_behind_what_holds_for_some(switch: Switch) -> None:
    switch.write(BY_HAND)
    switch.promote()
    assert [route["name"] for route in switch.routes] == ["vip", "mail", "reviews"]
    text = switch.bytes.decode()
    ours = text[text.index("  - name: mail") : text.index("  - name: reviews")]
    assert text.replace(ours, "") == BY_HAND
    switch.rollback()
    assert switch.bytes.decode() == BY_HAND


def test_more_of_the_traffic_replaces_the_routes_lines_only(switch: Switch) -> None:
    switch.write(BY_HAND)
    switch.promote(share=5)
    canary = switch.bytes
    switch.promote(share=100)
    assert switch.routes[1]["targets"] == [
        {"upstream": "openai", "model": "ft:mail-1", "weight": 100, "strip": "mail@1"}
    ]
    assert switch.bytes.startswith(canary[: canary.index(b"  - name: mail")])
    assert switch.bytes.endswith(canary[canary.index(b"\n  - name: reviews") :])
    switch.rollback()
    assert switch.bytes == canary
    switch.rollback()
    assert switch.bytes.decode() == BY_HAND
    with pytest.raises(TaskError, match="no promotion to roll back"):
        switch.rollback()


WITH_POLICY = """\
routes:
  - name: mail-by-hand
    match: {provider: openai, model: gpt-6, task: mail}
    targets: [{upstream: openai, model: gpt-6}]
    fallback: {upstream: openai, model: gpt-6-old}
    timeouts: {connect: 2, first_byte: 30}
    retry: {attempts: 2, when: [connect, 503]}
    circuit: false
    limits: {concurrency: 40}   # what the contract allows
    on_client_gone: finish
"""


def test_limits_timeouts_and_retries_of_the_route_before_hold_for_the_promoted_one(switch: Switch) -> None:
    switch.write(WITH_POLICY)
    policy = {
        "timeouts": {"connect": 2, "first_byte": 30}, "retry": {"attempts": 2, "when": ["connect", 503]},
        "circuit": False, "limits": {"concurrency": 40}, "on_client_gone": "finish",
    }  # fmt: skip
    assert switch.promote(share=5) == {**PROMOTED, **policy, "targets": PROMOTED_CANARY}
    (canary,) = load_routes(switch.file, switch.config).routes
    assert (canary.limits, canary.on_client_gone) == (RouteLimits(concurrency=40), "finish")
    assert (canary.timeouts.first_byte, canary.circuit and canary.circuit.failures) == (30, None)

    switch.write(switch.bytes.replace(b"concurrency: 40", b"concurrency: 80"))  # and so on, at the next step
    assert switch.promote(share=95) == {**PROMOTED, **policy, "limits": {"concurrency": 80}}
    switch.write(switch.bytes.replace(b"concurrency: 80", b"concurrency: 90"))
    switch.promote(share=95)  # nothing new: the history stays as it is
    assert (switch.history(), b"concurrency: 90" in switch.bytes) == ([("promote", "done")] * 2, True)
    switch.rollback()
    assert switch.routes[0] == {**PROMOTED, **policy, "targets": PROMOTED_CANARY, "limits": {"concurrency": 80}}
    switch.rollback()
    assert switch.bytes.decode() == WITH_POLICY


def test_the_policy_of_another_route_is_not_taken_along(switch: Switch) -> None:
    switch.write(WITH_POLICY.replace("task: mail", "task: letters"))
    assert switch.promote() == PROMOTED


def test_doing_it_twice_is_doing_it_once(switch: Switch) -> None:
    switch.promote()
    before = switch.bytes
    switch.promote()
    assert (switch.bytes, len(switch.history())) == (before, 1)
    assert switch.rollback() is None
    assert switch.routes == []


def test_after_the_rollback_of_the_first_the_file_says_that_there_are_none(switch: Switch) -> None:
    """Not no file at all, which the relay takes for an accident."""
    switch.promote()
    switch.rollback()
    assert switch.bytes == b"routes: []\n"


def test_a_person_has_changed_the_file_since_and_keeps_the_changes(switch: Switch) -> None:
    switch.write(BY_HAND)
    switch.promote()
    switch.write(switch.bytes.replace(b"95", b"50").replace(b"Ann before", b"Bob before"))
    assert switch.rollback() is None
    assert switch.bytes.decode() == BY_HAND.replace("Ann before", "Bob before")


def test_a_person_has_renamed_the_route_since(switch: Switch) -> None:
    switch.write(BY_HAND)
    switch.promote()
    switch.write(switch.bytes.replace(b"name: mail", b"name: post"))
    switch.rollback()
    assert switch.bytes.decode() == BY_HAND


def test_a_person_has_taken_the_route_out_already(switch: Switch) -> None:
    switch.promote()
    switch.write("routes: []  # we went back by hand\n")
    assert switch.rollback() is None
    assert switch.bytes == b"routes: []  # we went back by hand\n"
    assert standing(switch.store, "mail") == []


def test_two_tasks_go_back_in_any_order(switch: Switch) -> None:
    switch.write(BY_HAND)
    switch.promote()
    switch.promote(task="reviews")
    switch.rollback("mail")
    switch.rollback("reviews")
    assert switch.bytes.decode() == BY_HAND


def test_two_models_of_one_task_have_a_route_each(switch: Switch) -> None:
    switch.promote()
    switch.promote(model="gpt-6-mini")
    assert [(route["name"], route["match"]["model"]) for route in switch.routes] == [
        ("mail-2", "gpt-6-mini"),
        ("mail", "gpt-6"),
    ]
    switch.rollback()
    assert [route["name"] for route in switch.routes] == ["mail"]


def test_a_name_that_a_person_has_given_to_something_else_is_left_to_it(switch: Switch) -> None:
    switch.write("routes:\n- name: mail\n  match: {tags: {team: a}}\n  targets: [{upstream: openai}]\n")
    switch.promote()
    assert [route["name"] for route in switch.routes] == ["mail", "mail-2"]


def test_the_incumbent_is_who_answered_before(switch: Switch) -> None:
    """A person's route had the requests for gpt-6 answered by gpt-6-mini: that is what is fallen back to."""
    found = msgspec.structs.replace(report(), incumbent=msgspec.structs.replace(INCUMBENT, model="gpt-6-mini"))
    decision = Decision(task="mail", evaluation="e", candidate="ft-1", score=TUNED, checks=(), promote=True)
    route = promote.promote(switch.store, switch.config, switch.file, switch.models, found, decision,
                            steps=[Step(95)])  # fmt: skip
    assert route["match"]["model"] == "gpt-6"
    assert route["fallback"]["model"] == route["targets"][1]["model"] == "gpt-6-mini"


# --- files that people write -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        "routes:",
        "routes:\n",
        "routes: # none\n",
        "routes: []",
        "routes: []\n# the end\n",
        "routes:   []   # none yet\n",
        "routes: null\n",
        "{routes: []}\n",
        "# The switchboard.\n# Two lines of it.\nroutes: []\n",
        BY_HAND,
        BY_HAND.replace("\n", "\r\n"),
        BY_HAND.rstrip("\n"),
        "\ufeff" + BY_HAND,
        "routes: [{name: a, targets: [{upstream: openai}]},  # 1\n  {name: b, targets: [{upstream: openai}]}]\n",
        "routes:\n-\n  name: a\n  targets:\n  - upstream: openai\n\n\n# z\n",
        "---\nroutes:\n    - name: über\n      targets: [ {upstream: openai} ]\n...\n",
        "routes:\n  - targets: &all [{upstream: openai}]\n    name: a\n  - {name: b, targets: *all}\n",
    ],
)  # fmt: skip
def test_what_a_person_wrote_stays_and_comes_back_byte_for_byte(switch: Switch, text: str) -> None:
    switch.write(text)
    before = routes_of(text)
    switch.promote()
    after = switch.bytes.decode()
    assert switch.routes == [PROMOTED, *before] or switch.routes == [*before[:1], PROMOTED, *before[1:]]
    comments = [line for line in text.splitlines() if line.strip().startswith("#")]
    assert [line for line in after.splitlines() if line.strip().startswith("#")] == comments
    switch.write(after + "\n# edited since\n" if text[:1] != "{" and "..." not in text else after)
    switch.rollback()
    assert switch.routes == before
    if switch.bytes != text.encode():
        assert [line for line in switch.bytes.decode().splitlines() if line.strip().startswith("#")] == [
            *comments,
            "# edited since",
        ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("routes: [\n", "no routes file, it is left as it is"),
        ("\troutes: []\n", "no routes file, it is left as it is"),
        ("- a list\n", "no routes file, it is left as it is"),
        ("routes: {a: b}\n", "must be a list of mappings"),
        ("routes: [mail]\n", "must be a list of mappings"),
        (b"routes: []  # \xff\n", "cannot be read"),
        ("routes:\n- name: a\n  targets: [{upstream: nowhere}]\n", r"yaml:\d+: routes.*upstream: no upstream"),
        ("routes:\n- name: a\n  target: [{upstream: openai}]\n", "unknown key; did you mean 'targets'"),
        ("routes: []\nroute: []\n", "route: unknown key; did you mean 'routes'"),
    ],
)  # fmt: skip
def test_a_file_with_a_problem_is_refused_and_left_untouched(
    switch: Switch, text: str | bytes, reason: str
) -> None:
    switch.write(text)
    before = switch.bytes
    with pytest.raises(ConfigError, match=reason):
        switch.promote()
    assert switch.bytes == before
    assert [state for _, state in switch.history() if state == "done"] == []
    assert sorted(file.name for file in switch.file.parent.iterdir()) == [".routes.yaml.lock", "routes.yaml"]


def test_a_folder_that_cannot_be_written_to_leaves_everything_as_it_was(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch.write(BY_HAND)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.pipeline.routes_file._write_beside", full)
    with pytest.raises(ConfigError, match=r"cannot be written .No space left on device.; it is left as it is"):
        switch.promote()
    monkeypatch.undo()
    assert switch.bytes.decode() == BY_HAND
    assert switch.history() == [("promote", "abandoned")]
    switch.promote()
    assert switch.rollback() is None
    assert switch.bytes.decode() == BY_HAND


def test_a_link_stays_a_link_and_the_files_mode_stays(switch: Switch, tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_text(BY_HAND)
    real.chmod(0o640)
    switch.file.symlink_to(real)
    switch.promote()
    assert switch.file.is_symlink()
    assert "ft:mail-1" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "real.yaml.previous").read_text() == BY_HAND


def test_a_local_model_that_is_gone_is_not_routed_to(switch: Switch) -> None:
    local = msgspec.structs.replace(TUNED, upstream="local", model="mail-7", min_confidence=0.9)
    with pytest.raises(TaskError, match="no trained model 'mail-7'"):
        switch.promote(tuned=local)
    assert not switch.file.exists()


# --- killed half-way -------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import msgspec, stories
from gateway.pipeline import promote, routes_file
from gateway.pipeline.canary import Step
from gateway.pipeline.evaluate import Report
from gateway.pipeline.gate import Decision
from gateway.stores.sqlite import SqliteStore

folder, where, report, decision = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
store = SqliteStore(folder / "data" / "unprompt.db")
write, change = routes_file.write, SqliteStore.change

def die(*_, **__):
    os.kill(os.getpid(), 9)

if where == "noted":
    routes_file.write = die
elif where == "half":
    os.fsync = die
elif where == "written":
    SqliteStore.change = die
files = stories.config_in(folder), folder / "config" / "routes.yaml"
if report:
    found, made = msgspec.json.decode(report, type=Report), msgspec.json.decode(decision, type=Decision)
    promote.promote(store, *files, folder / "models", found, made, steps=[Step(95)])
else:
    promote.rollback(store, *files, "mail")
"""


def killed(folder: Path, where: str, *, rolling_back: bool = False) -> None:
    """Promote, or roll back, in a process that is killed at this point."""
    found = report()
    decision = Decision(task="mail", evaluation=found.id, candidate="ft-1", score=TUNED, checks=(), promote=True)
    told = ["", ""] if rolling_back else [msgspec.json.encode(each).decode() for each in (found, decision)]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n{KILLED}"
    process = subprocess.run([sys.executable, "-c", code, str(folder), where, *told], capture_output=True)
    assert process.returncode == -9, process.stderr.decode()


@pytest.mark.parametrize(("where", "took_place"), [("noted", False), ("half", False), ("written", True)])
def test_killed_in_a_flip_history_and_file_agree_afterwards(
    switch: Switch, tmp_path: Path, where: str, took_place: bool
) -> None:
    switch.write(BY_HAND)
    killed(tmp_path, where)
    assert switch.history() == [("promote", "writing")]
    assert (b"ft:mail-1" in switch.bytes) is took_place
    settle(switch.store, switch.file)
    assert len(standing(switch.store, "mail")) == took_place
    switch.promote()
    assert len(standing(switch.store, "mail")) == 1
    assert [route["name"] for route in switch.routes] == ["vip", "mail", "reviews"]
    switch.rollback()
    assert switch.bytes.decode() == BY_HAND


@pytest.mark.parametrize(("where", "took_place"), [("noted", False), ("written", True)])
def test_killed_while_going_back(switch: Switch, tmp_path: Path, where: str, took_place: bool) -> None:
    switch.write(BY_HAND)
    switch.promote()
    killed(tmp_path, where, rolling_back=True)
    if took_place:
        with pytest.raises(TaskError, match="no promotion to roll back"):
            switch.rollback()
    else:
        switch.rollback()
    assert switch.bytes.decode() == BY_HAND


def test_killed_and_then_edited_by_a_person_the_route_itself_tells(switch: Switch, tmp_path: Path) -> None:
    killed(tmp_path, "written")
    switch.write(switch.bytes + b"# I was here\n")
    settle(switch.store, switch.file)
    assert len(standing(switch.store, "mail")) == 1


def test_many_flips_at_once_are_one_after_the_other(switch: Switch, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import stories, test_promote
from gateway.stores.sqlite import SqliteStore
folder = Path(sys.argv[1])
switch = test_promote.Switch(folder, SqliteStore(folder / "data" / "unprompt.db"))
for _ in range(3):
    switch.promote(task=sys.argv[3])
    switch.rollback(sys.argv[3])
switch.promote(task=sys.argv[3])
"""
    switch.write(BY_HAND)
    here = Path(__file__).parent
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(here)!r})\n{code}", str(tmp_path)]
    processes = [
        subprocess.Popen([*command, str(here.parent), f"task-{n}"], stderr=subprocess.PIPE) for n in range(4)
    ]
    assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 4
    assert {route["name"] for route in switch.routes} == {"vip", "reviews", *(f"task-{n}" for n in range(4))}
    for number in range(4):
        switch.rollback(f"task-{number}")
    assert switch.bytes.decode() == BY_HAND


# --- the text, as a property -----------------------------------------------------------------------------

words = st.text(alphabet="abcäß客 :#'\"-[]{}&*!|>%@`,?", min_size=1, max_size=8).filter(lambda w: w.strip() == w)
targets = st.lists(
    st.fixed_dictionaries({"upstream": st.just("openai")}, optional={"model": words, "weight": st.integers(1, 9)}),
    min_size=1, max_size=2,
)  # fmt: skip
route_values: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"name": words, "match": st.fixed_dictionaries({"task": words})} | {"targets": targets}
)
unique_routes = st.lists(route_values, max_size=4, unique_by=lambda route: route["match"]["task"])
COMMENTS = ["", "\n", "# a comment\n", "  # indented\n", "\n\n# - name: not a route\n"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[dict[str, Any]]]:
    """A routes file as people write it: block or flow style, comments anywhere between, either line end."""
    routes = draw(unique_routes)
    indent = " " * draw(st.integers(0, 4))
    if draw(st.booleans()) and routes:
        text = yaml.safe_dump(
            {"routes": routes}, default_flow_style=True, allow_unicode=True, width=draw(st.sampled_from([20, 1000]))
        )
        text = text.replace("{routes: ", "routes: ", 1).rstrip()[:-1] + "\n"
    else:
        text = draw(st.sampled_from(COMMENTS)) + "routes:\n"
        for route in routes:
            style = draw(st.sampled_from([None, False, True]))
            item = yaml.safe_dump(
                [route], default_flow_style=style, allow_unicode=True, width=1000, sort_keys=False
            )
            item = "- " + item.strip()[1:-1] + "\n" if style else item
            text += draw(st.sampled_from(COMMENTS)) + "".join(indent + line for line in item.splitlines(True))
        text += draw(st.sampled_from(COMMENTS))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text.rstrip("\r\n") if draw(st.booleans()) else text, routes


@settings(max_examples=150, deadline=None)
@given(files(), route_values, st.data())
def test_every_other_byte_stays_and_the_edit_can_be_taken_back(
    file: tuple[str, list[dict[str, Any]]], route: dict[str, Any], data: st.DataObject
) -> None:
    text, routes = file
    if routes_of(text) != routes:
        return  # PyYAML itself reads something else: not a file to judge by
    tasks = [one["match"]["task"] for one in routes]
    task = data.draw(st.sampled_from([*tasks, route["match"]["task"]]))
    route = route | {"match": {"task": task}}

    def fits(one: dict[str, Any]) -> bool:
        return bool(one["match"]["task"] == task)

    made = edit(text, fits, route)
    place = tasks.index(task) if task in tasks else 0
    wanted = [*routes[:place], route, *routes[place + (task in tasks) :]]
    assert routes_of(made.text) == wanted
    assert made.replaced == (routes[place] if task in tasks else None)
    back = edit(made.text, fits, made.replaced, made.source)
    assert routes_of(back.text) == routes
    without = edit(text, fits, None)
    assert routes_of(without.text) == [one for one in routes if not fits(one)]
    written = {line for comment in COMMENTS for line in comment.splitlines() if line}
    for comment in written & set(text.splitlines()):
        assert comment in made.text
        assert comment in without.text
    if routes and "routes: [" not in text:
        assert back.text.rstrip() == text.rstrip()


def test_an_anchor_that_another_route_uses_is_written_out() -> None:
    text = "routes:\n- {name: a, match: {task: a}, targets: &t [{upstream: openai}]}\n- {name: b, targets: *t}\n"
    made = edit(text, lambda one: one["name"] == "a", None)
    assert routes_of(made.text) == [{"name": "b", "targets": [{"upstream": "openai"}]}]
    assert parse_routes("r", made.text.encode(), Config()).routes[0].name == "b"
