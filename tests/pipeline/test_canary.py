"""By which steps a candidate takes over, and that each of them is one flip: forwards, and back at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stories
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config, load_routes
from gateway.config.settings import TaskPolicy
from gateway.domain.route import Match, Route, Target
from gateway.errors import TaskError
from gateway.pipeline import promote
from gateway.pipeline.canary import Step, candidate_of, staged, steps
from gateway.pipeline.evaluate import Report, Score
from gateway.pipeline.gate import Decision
from gateway.pipeline.promote import advance, rollback
from gateway.pipeline.promotions import serving, standing, steps_left, taken_back
from gateway.pipeline.routes_text import routes_of
from gateway.stores.sqlite import SqliteStore

TUNED = Score(
    candidate="openai tuned", finetune="ft-1", upstream="openai", model="ft:mail-1", rows=200, agreement=0.99,
    agreement_low=0.96, answered=1.0, agreement_answered=0.99, min_confidence=0.0, cost_per_1k_usd=0.1, p50_ms=1.0,
    p95_ms=2.0, input_tokens=10.0,
)  # fmt: skip
CANDIDATE = {"upstream": "openai", "model": "ft:mail-1"}
TEACHER = {"upstream": "openai", "model": "gpt-6"}


@pytest.mark.parametrize(
    ("policy", "shares"),
    [
        ({}, [10, 50, 95]),
        ({"canary": [100]}, [95]),
        ({"canary": [5, 25, 100]}, [5, 25, 95]),
        ({"canary": [5, 25, 100], "share": 100}, [5, 25, 100]),
        ({"canary": [5, 25, 100], "share": 20}, [5, 20]),
        ({"canary": []}, [95]),
        ({"canary": [50, 10]}, [10, 50, 95]),
        ({"canary": [5, 25, 100], "audit": 0}, [95]),  # nothing could be compared
    ],
)
def test_the_policy_says_the_steps(policy: dict[str, Any], shares: list[float]) -> None:
    assert [step.share for step in steps(TaskPolicy(**policy))] == shares


def test_before_the_first_step_a_candidate_may_be_asked_in_the_shadow() -> None:
    first, *others = steps(TaskPolicy(shadow=50, canary=(10,)))
    assert first == Step(0.0, shadow=50)
    assert others == [Step(10), Step(95)]


def test_a_person_begins_where_they_want() -> None:
    policy = TaskPolicy(canary=(5, 25, 100))
    assert steps(policy, Step(10)) == (Step(10), Step(25), Step(95))
    assert steps(policy, Step(97)) == (Step(97),)
    assert steps(policy, Step(0, shadow=100)) == (Step(0, shadow=100), Step(5), Step(25), Step(95))
    assert steps(TaskPolicy(), Step(5)) == (Step(5), Step(10), Step(50), Step(95))


# --- each step is one flip -------------------------------------------------------------------------------


class Switch:
    """A routes file, the history beside it, and a candidate that takes over step by step."""

    def __init__(self, folder: Path, store: SqliteStore) -> None:
        self.file, self.store = folder / "config" / "routes.yaml", store
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.config: Config = stories.config_in(folder)

    def promote(
        self, *shares: Step, task: str = "mail", finetune: str = "ft-1", version: int = 1
    ) -> dict[str, Any]:
        score = msgspec.structs.replace(TUNED, finetune=finetune, model=finetune.replace("ft-", "ft:mail-"))
        report = Report(
            id=f"eval-{task}", task=task, dataset="d", template=f"{task}@{version}", confidence=0.95,
            incumbent=msgspec.structs.replace(TUNED, candidate="incumbent", finetune=None, model="gpt-6"),
            candidates=[score], failed={}, provider="openai", model="gpt-6",
        )  # fmt: skip
        decision = Decision(
            task=task, evaluation=report.id, candidate=finetune, score=score, checks=(), promote=True
        )
        return promote.promote(self.store, self.config, self.file, self.file.parent, report, decision, steps=shares)

    def advance(self, task: str = "mail") -> dict[str, Any] | None:
        return advance(self.store, self.config, self.file, task, {"pairs": 50})

    def rollback(self, task: str = "mail") -> dict[str, Any] | None:
        return rollback(self.store, self.config, self.file, task)

    @property
    def text(self) -> str:
        return self.file.read_text()

    @property
    def shares(self) -> list[float]:
        """Of the first route, as the relay reads it."""
        route = load_routes(self.file, self.config).routes[0]
        return [target.weight for target in route.targets]


@pytest.fixture
def switch(tmp_path: Path, store: SqliteStore) -> Switch:
    return Switch(tmp_path, store)


def test_from_five_percent_to_all(switch: Switch) -> None:
    switch.promote(Step(5), Step(25), Step(100))
    assert switch.shares == [5, 95]
    switch.advance()
    assert switch.shares == [25, 75]
    last = switch.advance()
    assert last is not None
    assert last["targets"] == [{**CANDIDATE, "weight": 100, "strip": "mail@1"}]
    assert switch.advance() is None
    assert [row["action"] for row in switch.store.rows("promotions")] == ["promote", "advance", "advance"]
    assert switch.store.rows("promotions")[1]["decision"] == '{"pairs":50}'


def test_from_the_shadow_into_the_light(switch: Switch) -> None:
    route = switch.promote(Step(0, shadow=100), Step(5), Step(95))
    assert route["targets"] == [TEACHER]
    assert route["shadow"] == {**CANDIDATE, "strip": "mail@1", "percent": 100}
    (loaded,) = load_routes(switch.file, switch.config).routes
    assert loaded.shadow is not None
    assert loaded.shadow.percent == 100
    after = switch.advance()
    assert after is not None
    assert "shadow" not in after
    assert [target["weight"] for target in after["targets"]] == [5, 95]


def test_a_canary_is_taken_back_with_all_its_steps_and_byte_for_byte(switch: Switch) -> None:
    before = "# ours\nroutes:\n  - name: vip\n    match: {key: a1}\n    targets: [{upstream: openai}]   # paid\n"
    switch.file.write_text(before)
    switch.promote(Step(5), Step(25), Step(95))
    switch.advance()
    switch.advance()
    assert switch.rollback() is None
    assert switch.text == before
    assert standing(switch.store, "mail") == []
    with pytest.raises(TaskError, match="no promotion"):
        switch.rollback()


def test_what_was_promoted_meanwhile_stays_when_a_canary_is_taken_back(switch: Switch) -> None:
    switch.promote(Step(5), Step(95))
    switch.promote(Step(95), task="reviews", finetune="ft-2")
    switch.advance()
    switch.rollback()
    assert [route["name"] for route in routes_of(switch.text)] == ["reviews"]


def test_what_a_person_has_set_meanwhile_holds_at_the_next_step(switch: Switch) -> None:
    switch.promote(Step(5), Step(95))
    switch.file.write_text(switch.text.replace("audit: 10.0", "audit: 30\n    limits: {concurrency: 9}"))
    after = switch.advance()
    assert after is not None
    assert (after["audit"], after["limits"], switch.shares) == (30, {"concurrency": 9}, [95, 5])


def test_a_route_that_a_person_has_led_elsewhere_is_theirs(switch: Switch) -> None:
    switch.promote(Step(5), Step(95))
    switch.file.write_text(switch.text.replace("weight: 5,", "weight: 7,"))
    before = switch.text
    assert switch.advance() is None
    assert switch.text == before
    assert len(switch.store.rows("promotions")) == 1


def test_the_steps_that_are_left_outlive_the_process(switch: Switch) -> None:
    switch.promote(Step(5), Step(25), Step(95))
    (row,) = standing(SqliteStore(switch.store.path), "mail")
    assert steps_left(row) == (Step(25), Step(95))
    switch.advance()
    (row,) = standing(switch.store, "mail")
    assert steps_left(row) == (Step(95),)


# --- a newcomer, and who served before ---------------------------------------------------------------------


def who(switch: Switch) -> dict[str, float]:
    """Who answers how many percent, by model."""
    (route,) = load_routes(switch.file, switch.config).routes
    return {str(target.model): target.weight for target in route.targets}


def test_while_a_newcomer_takes_its_steps_the_rest_stays_with_who_served_before(switch: Switch) -> None:
    switch.promote(Step(10), Step(95))
    assert who(switch) == {"ft:mail-1": 10, "gpt-6": 90}
    switch.advance()
    switch.promote(Step(10), Step(50), Step(95), finetune="ft-2")
    assert who(switch) == {"ft:mail-2": 10, "ft:mail-1": 85, "gpt-6": 5}
    switch.advance()
    assert who(switch) == {"ft:mail-2": 50, "ft:mail-1": 45, "gpt-6": 5}
    switch.advance()
    assert who(switch) == {"ft:mail-2": 95, "gpt-6": 5}


def test_a_newcomer_goes_back_to_who_served_before_and_that_to_the_incumbent(switch: Switch) -> None:
    switch.promote(Step(10), Step(95))
    switch.advance()
    serving = switch.text
    switch.promote(Step(10), Step(50), Step(95), finetune="ft-2")
    switch.advance()
    switch.rollback()
    assert switch.text == serving
    assert who(switch) == {"ft:mail-1": 95, "gpt-6": 5}
    assert switch.rollback() is None
    assert routes_of(switch.text) == []


def test_in_the_shadow_of_who_serves(switch: Switch) -> None:
    switch.promote(Step(95))
    route = switch.promote(Step(0, shadow=100), Step(10), Step(95), finetune="ft-2")
    assert who(switch) == {"ft:mail-1": 95, "gpt-6": 5}
    assert candidate_of(route)["model"] == route["shadow"]["model"] == "ft:mail-2"
    switch.advance()
    assert who(switch) == {"ft:mail-2": 10, "ft:mail-1": 85, "gpt-6": 5}


def test_a_third_takes_the_place_of_a_newcomer_that_was_still_on_trial(switch: Switch) -> None:
    switch.promote(Step(95))
    switch.promote(Step(10), Step(95), finetune="ft-2")
    switch.promote(Step(10), Step(95), finetune="ft-3")
    assert who(switch) == {"ft:mail-3": 10, "ft:mail-1": 85, "gpt-6": 5}
    found = serving(standing(switch.store, "mail"))
    assert [json.loads(row["decision"])["candidate"] for row in found] == ["ft-3", "ft-1"]


def test_one_that_never_arrived_keeps_nothing(switch: Switch) -> None:
    switch.promote(Step(10), Step(95))
    switch.promote(Step(10), Step(95), finetune="ft-2")
    assert who(switch) == {"ft:mail-2": 10, "gpt-6": 90}
    assert len(serving(standing(switch.store, "mail"))) == 1


def test_the_same_candidate_once_more_with_less_stands_beside_the_incumbent(switch: Switch) -> None:
    switch.promote(Step(95))
    switch.promote(Step(5), Step(95))
    assert who(switch) == {"ft:mail-1": 5, "gpt-6": 95}
    assert len(serving(standing(switch.store, "mail"))) == 1


def test_a_route_that_a_person_has_changed_is_no_promise_to_who_served_before(switch: Switch) -> None:
    switch.promote(Step(95))
    switch.file.write_text(switch.text.replace("weight: 95", "weight: 40"))
    switch.promote(Step(10), Step(95), finetune="ft-2")
    assert who(switch) == {"ft:mail-2": 10, "gpt-6": 90}


def test_doing_a_step_twice_beside_another_is_doing_it_once(switch: Switch) -> None:
    switch.promote(Step(95))
    steps_before = [Step(10), Step(95)]
    assert switch.promote(*steps_before, finetune="ft-2") == switch.promote(*steps_before, finetune="ft-2")
    assert len(switch.store.rows("promotions")) == 2


@given(st.lists(st.sampled_from([1.0, 5.0, 10.0, 33.3, 50.0, 99.0]), min_size=1, unique=True), st.floats(1, 100))
def test_nobody_changes_sides_twice(shares: list[float], served: float) -> None:
    """A request at any point of the line goes from who served it to the newcomer, once, or stays."""
    old, new = {"upstream": "a", "model": "old", "strip": "m@1"}, {"upstream": "a", "model": "new", "strip": "m@1"}
    incumbent = {"upstream": "a", "model": "gpt"}
    before = old | {"weight": served}
    for point in (0.0, 0.07, 0.31, 0.64, 0.985):
        seen = []
        for share in sorted(shares):
            targets = staged(new, before, incumbent, Step(share))["targets"]
            assert sum(target.get("weight", 100) for target in targets) == pytest.approx(100)
            line = [Target(upstream="a", model=one["model"], weight=one.get("weight", 100)) for one in targets]
            seen.append(Route(name="r", match=Match(), targets=tuple(line)).choose(point).model)
        first = "old" if point * 100 < served - 1e-3 else "gpt"
        assert seen in [[first] * (len(seen) - n) + ["new"] * n for n in range(len(seen) + 1)] or (
            abs(point * 100 - served) < 1e-3
        )


def test_a_candidate_that_was_taken_back_is_remembered(switch: Switch) -> None:
    switch.promote(Step(95))
    assert taken_back(switch.store, "mail") == frozenset()
    switch.promote(Step(5), Step(95), finetune="ft-2")
    switch.advance()
    switch.rollback()
    assert taken_back(switch.store, "mail") == {"ft-2"}
    rollback(switch.store, switch.config, switch.file, "mail", {"candidate": "ft-0"})  # another one was to blame
    assert taken_back(switch.store, "mail") == {"ft-2", "ft-0"}
    switch.promote(Step(95))
    assert [row["action"] for row in standing(switch.store, "mail")] == ["promote"]
