"""A candidate that serves: audited answers are compared, canaries go on, and what slips is taken back."""

from __future__ import annotations

import datetime
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from halves import end, stored
from stories import answer, asked, config_in, exchange, keep, mail, template, workshop_in

from gateway.config import Config
from gateway.domain.dataset import Row
from gateway.domain.exchange import Exchange, id_maker
from gateway.errors import ConfigError
from gateway.pipeline import promote, promotions
from gateway.pipeline.asking import Answered, Ask
from gateway.pipeline.bench import Bench
from gateway.pipeline.canary import Step
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.gate import Decision
from gateway.pipeline.monitor import look_after
from gateway.pipeline.promotions import standing
from gateway.pipeline.routes_text import routes_of
from gateway.pipeline.savings import savings
from gateway.pipeline.scores import Measure, Report, Score
from gateway.raised import Told, raised, watched_candidates
from gateway.stores.audited import keep_watch_state, open_alarms, row_before, watch_state
from gateway.stores.ledger import entries
from gateway.stores.sqlite import SqliteStore

TUNED = Score(
    candidate="openai tuned", finetune="ft-1", upstream="openai", model="ft:mail-1", rows=500, agreement=0.98,
    agreement_low=0.96, answered=0.95, agreement_answered=0.98, min_confidence=0.0, cost_per_1k_usd=0.1,
    p50_ms=100.0, p95_ms=300.0, input_tokens=10.0,
)  # fmt: skip
TEACHER = msgspec.structs.replace(
    TUNED, candidate="incumbent", finetune=None, model="gpt-6", cost_per_1k_usd=1.0, p95_ms=700.0
)
NOW = 100_000.0


class Life:
    """A task whose requests a candidate answers, audited or not; the monitor looks whenever it is asked to."""

    def __init__(self, shop: Workshop) -> None:
        self.shop, self.store, self.number = shop, shop.store, 0

    def promote(self, *steps: Step, finetune: str = "ft-1", task: str = "mail", measure: Measure = "exact") -> None:
        score = msgspec.structs.replace(TUNED, finetune=finetune, model=finetune.replace("ft-", "ft:mail-"))
        report = Report(
            id="eval-1", task=task, dataset="d", template=f"{task}@1", confidence=0.95, incumbent=TEACHER,
            candidates=[score], failed={}, provider="openai", model="gpt-6", measure=measure,
        )  # fmt: skip
        self.store.put("evaluations", {"id": report.id, "task": "mail", "dataset": "d", "created_at": 1.0,
                                       "report": msgspec.to_builtins(report)})  # fmt: skip
        decision = Decision(
            task=task, evaluation="eval-1", candidate=finetune, score=score, checks=(), promote=True
        )
        promote.promote(self.store, self.shop.config, self.shop.routes, self.shop.models, report, decision,
                        steps=steps or [Step(95)])  # fmt: skip

    def one(self, reply: str | dict[str, Any], **columns: Any) -> Exchange:
        self.number += 1
        body = asked(mail()[self.number % 500][0])
        return exchange(self.number, body, reply, started_at=NOW, **columns)

    def served(self, reply: str | dict[str, Any] = "refund", **columns: Any) -> Exchange:
        """A stripped request that the candidate answered."""
        usual = {"target": "openai/ft:mail-1", "stripped": True, "latency_ms": 120.0, "cost_usd": 0.0001}
        return self.one(reply, **(usual | columns))

    def whole(self, reply: str | dict[str, Any] = "refund", **columns: Any) -> Exchange:
        """A request that the incumbent answered."""
        return self.one(reply, **columns)

    def audits(self, *agree: bool) -> list[Exchange]:
        """Requests that the candidate answered, and the incumbent, too."""
        both = []
        for agrees in agree:
            own = self.served("refund")
            both += [own, self.whole("refund" if agrees else "praise", copy_of=own.id)]
        return both

    def record(self, exchanges: Sequence[Exchange]) -> None:
        keep(self.store, exchanges)

    def look(self, later: float = 0.0) -> None:
        look_after(self.shop, NOW + later)

    @property
    def state(self) -> dict[str, Any]:
        return self.states[standing(self.store, "mail")[-1]["id"]]

    @property
    def states(self) -> dict[str, dict[str, Any]]:
        """What is known of each candidate, by promotion."""
        found: dict[str, dict[str, Any]] = json.loads(watch_state(self.store, "mail") or b"{}")
        return found

    @property
    def seen(self) -> dict[str, int]:
        return {kind: bets["seen"] for kind, bets in self.state["tests"].items()}

    @property
    def share(self) -> float | None:
        """Percent of the requests that the route sends to the candidate now."""
        routes = routes_of(self.shop.routes.read_text())
        return routes[0]["targets"][0].get("weight") if routes else None


@pytest.fixture
def life(shop: Workshop) -> Life:
    return Life(shop)


def test_a_good_candidate_is_left_alone_and_its_agreement_is_told(life: Life) -> None:
    life.promote()
    dice = random.Random(3)
    life.record(life.audits(*(dice.random() < 0.98 for _ in range(300))))
    life.look()
    assert life.share == 95
    assert open_alarms(life.store) == []
    home = life.store.path.parent
    assert raised(home) == {}
    known = watched_candidates(home)["mail"]
    assert known.alarms == []
    assert known.agreement is not None
    low, mean, high = known.agreement
    assert low < 0.98 < high
    assert mean == pytest.approx(0.98, abs=0.02)


def test_one_that_slips_is_rolled_back_with_the_figures_that_say_so(life: Life) -> None:
    life.promote()
    life.record(life.audits(*[True] * 100))
    life.look()
    dice = random.Random(1)
    life.record(life.audits(*(dice.random() < 0.7 for _ in range(150))))
    life.look()
    assert life.share is None
    assert standing(life.store, "mail") == []
    last = life.store.rows("promotions")[-1]
    record = json.loads(last["decision"])
    assert (last["action"], record["candidate"], record["alarm"]["kind"]) == ("rollback", "ft-1", "agreement")
    assert record["alarm"]["figures"]["evidence"] >= record["alarm"]["figures"]["limit"] == 5e3  # better before
    (alarm,) = life.store.rows("alarms")
    assert (alarm["action"], alarm["cleared_at"]) == ("rollback", NOW)
    life.look()
    assert watched_candidates(life.store.path.parent) == {}


def test_what_was_bad_is_taken_back_however_much_came_after_it_before_anybody_looked(life: Life) -> None:
    """A machine that is busy looks late: the rows are weighed as they came, not only after the last of them."""
    life.promote()
    life.record(life.audits(*[True] * 100, *[False] * 40, *[True] * 900))
    life.look()
    assert life.share is None
    (alarm,) = life.store.rows("alarms")
    assert alarm["kind"] == "agreement"
    assert json.loads(alarm["figures"])["seen"] < 200


def test_suspicion_has_everything_audited_until_it_is_settled(life: Life) -> None:
    home = life.store.path.parent
    life.promote()
    life.record(life.audits(*[True] * 100, False, False, False))
    life.look()
    assert raised(home) == {"openai/ft:mail-1": 100.0}
    assert life.share == 95
    life.record(life.audits(*[True] * 150))
    life.look()
    assert raised(home) == {}


def test_where_nothing_is_to_be_audited_nothing_is_raised(shop: Workshop, tmp_path: Path) -> None:
    policy = {"default": {"audit": 0, "min_rows": 100}}
    life = Life(msgspec.structs.replace(shop, config=config_in(tmp_path, tasks=policy)))
    life.promote()
    life.record(life.audits(*[True] * 100, False, False, False))
    life.look()
    assert raised(life.store.path.parent) == {}


# --- a canary --------------------------------------------------------------------------------------------


def test_a_canary_goes_on_when_enough_was_compared(life: Life) -> None:
    life.promote(Step(5), Step(25), Step(95))
    life.look()
    assert raised(life.store.path.parent) == {"openai/ft:mail-1": 100.0}  # every answer of a canary is compared
    life.record(life.audits(*[True] * 49))
    life.look()
    assert life.share == 5
    life.record(life.audits(True))
    life.look()
    assert life.share == 25
    life.look()
    assert life.share == 25  # each step has its own
    life.record(life.audits(*[True] * 50))
    life.look()
    assert life.share == 95
    life.record(life.audits(*[True] * 49))
    life.look()
    assert raised(life.store.path.parent) == {"openai/ft:mail-1": 100.0}  # also the first after the last step
    life.record(life.audits(True))
    life.look()
    assert raised(life.store.path.parent) == {}
    first, *others = life.store.rows("promotions")
    assert [json.loads(row["decision"])["pairs"] for row in others] == [50, 50]
    assert standing(life.store, "mail")[0]["id"] == first["id"]


def test_a_canary_under_suspicion_waits(life: Life) -> None:
    life.promote(Step(5), Step(95))
    life.record(life.audits(*[True] * 60, False, False, False))
    life.look()
    assert life.share == 5
    life.record(life.audits(*[True] * 120))
    life.look()
    assert life.share == 95


def test_what_takes_over_at_once_is_on_trial_at_first(life: Life) -> None:
    life.promote(Step(95))
    life.look()
    assert raised(life.store.path.parent) == {"openai/ft:mail-1": 100.0}
    life.record(life.audits(*[False] * 6))
    life.look()
    assert life.share is None


@pytest.mark.parametrize("wrong", ["answers", "errors", "latency"])
def test_a_bad_canary_is_taken_back_at_once(life: Life, wrong: str) -> None:
    life.shop.routes.parent.mkdir(parents=True)
    life.shop.routes.write_text("routes: []  # ours\n")
    life.promote(Step(5), Step(25), Step(95))
    bad = {
        "answers": life.audits(*[True] * 10, *[False] * 8),
        "errors": [life.whole(attempts=["openai/ft:mail-1: http_500"]) for _ in range(8)],
        "latency": [life.served(latency_ms=2000.0) for _ in range(8)],
    }
    life.record(bad[wrong])
    life.look()
    assert life.shop.routes.read_text() == "routes: []  # ours\n"
    kind = {"answers": "agreement"}.get(wrong, wrong)
    assert json.loads(life.store.rows("promotions")[-1]["decision"])["alarm"]["kind"] == kind


def test_in_the_shadow_answers_are_compared_that_nobody_got(life: Life) -> None:
    life.promote(Step(0, shadow=100), Step(95))
    both = []
    for _ in range(50):
        own = life.whole("refund")
        both += [own, life.served("refund", copy_of=own.id)]
    life.record(both)
    life.look()
    assert life.seen["agreement"] == 50
    assert life.share == 95


# --- a newcomer beside the one that serves -------------------------------------------------------------------


def newcomer(life: Life, *agree: bool) -> list[Exchange]:
    both = []
    for agrees in agree:
        own = life.served("refund", target="openai/ft:mail-2")
        both += [own, life.whole("refund" if agrees else "praise", copy_of=own.id)]
    return both


@pytest.fixture
def settled(life: Life) -> Life:
    """The first candidate has taken all its steps, the second begins."""
    life.promote(Step(95))
    life.record(life.audits(*[True] * 80))
    life.look()
    life.promote(Step(10), Step(95), finetune="ft-2")
    return life


def served(life: Life) -> list[str]:
    return [target["model"] for target in routes_of(life.shop.routes.read_text())[0]["targets"]]


def test_only_the_newcomers_answers_are_all_audited(settled: Life) -> None:
    settled.look()
    assert raised(settled.store.path.parent) == {"openai/ft:mail-2": 100.0}
    assert served(settled) == ["ft:mail-2", "ft:mail-1", "gpt-6"]


def test_both_are_watched_each_by_its_own_answers(settled: Life) -> None:
    settled.record([*settled.audits(*[True] * 7), *newcomer(settled, *[True] * 5, False)])
    settled.look()
    seen = [state["tests"]["agreement"] for state in settled.states.values()]
    assert sorted((one["seen"], one["total"]) for one in seen) == [(6, 1.0), (87, 0.0)]


def test_a_newcomer_that_fails_goes_back_to_the_one_that_serves_which_is_watched_on(settled: Life) -> None:
    settled.record(newcomer(settled, *[False] * 8))
    settled.look()
    assert served(settled) == ["ft:mail-1", "gpt-6"]
    settled.record(settled.audits(*[True] * 5))
    settled.look()
    assert settled.seen["agreement"] == 85
    assert raised(settled.store.path.parent) == {}


def test_one_that_slips_beside_a_newcomer_takes_both_back_and_only_itself_the_blame(settled: Life) -> None:
    settled.record(settled.audits(*[False] * 30))
    settled.look()
    assert settled.share is None
    assert promotions.taken_back(settled.store, "mail") == {"ft-1"}
    assert [row["action"] for row in settled.store.rows("promotions")] == ["promote"] * 2 + ["rollback"] * 2


def test_what_an_earlier_release_knew_of_its_one_candidate_is_read(life: Life) -> None:
    life.promote(Step(95))
    life.record(life.audits(*[True] * 20))
    life.look()
    keep_watch_state(life.store, "mail", json.dumps(life.state).encode())
    life.record(life.audits(True))
    life.look()
    assert life.seen["agreement"] == 21


# --- what only a judge can compare -------------------------------------------------------------------------


class Judge:
    """Says at once, or not, which answer is better: `praise` always loses."""

    def __init__(self, says: str | None = "") -> None:
        self.says, self.asked = says, 0

    def __call__(self, provider: str, model: str) -> Ask:
        assert (provider, model) == ("openai", "judge-1")

        def ask(rows: Any) -> list[Answered]:
            return [self._answer(row) for row, _ in rows]

        return ask

    def _answer(self, row: Row) -> Answered:
        self.asked += 1
        _, _, two = row.text.partition(" answer of A ")
        first, _, second = two.partition(" answer of B ")
        bad = ["praise" in first, "praise" in second]
        word = self.says or ("TIE" if bad[0] == bad[1] else "B" if bad[0] else "A")
        return Answered(text=word, sure=None, latency_ms=1.0, cost_usd=0.01)


def prose(shop: Workshop, folder: Path, judge: Judge, **policy: Any) -> Life:
    config = config_in(folder, tasks={"default": {"min_rows": 100, "judge": "openai/judge-1", **policy}})
    return Life(msgspec.structs.replace(shop, config=config, bench=Bench(judge)))


def compared_of(life: Life, most: int = 400) -> dict[str, Any]:
    """Look until nothing is before the judge any more."""
    for _ in range(most):
        life.look()
        if not life.states or not any(state["open"] for state in life.states.values()):
            break
        time.sleep(0.005)
    found: dict[str, Any] = next(iter(life.states.values()))
    return found


def test_prose_is_compared_by_the_judge_that_the_gate_asked(shop: Workshop, tmp_path: Path) -> None:
    life = prose(shop, tmp_path, Judge())
    life.promote(measure="judge")
    life.record(life.audits(*[True] * 6))
    assert compared_of(life)["tests"]["agreement"] | {"restarted": 0, "logs": 0} == {
        "seen": 6, "total": 3.0, "restarted": 0, "logs": 0,
    }  # fmt: skip
    assert (life.state["pairs"], life.share) == (6, 95)
    (entry,) = (one for one in entries(life.store) if one.served == "judge")
    assert (entry.target, entry.exchanges, round(entry.cost_usd, 4)) == ("openai/judge-1", 6, 0.12)
    assert savings(entries(life.store))["mail"].overhead_usd >= 0.12


def test_prose_that_is_worse_is_rolled_back(shop: Workshop, tmp_path: Path) -> None:
    life = prose(shop, tmp_path, Judge())
    life.promote(measure="judge")
    both = []
    for _ in range(30):
        own = life.served("praise")
        both += [own, life.whole("refund", copy_of=own.id)]
    life.record(both)
    compared_of(life)
    assert life.share is None
    assert json.loads(life.store.rows("promotions")[-1]["decision"])["alarm"]["kind"] == "agreement"


def test_a_judge_is_asked_as_often_a_day_as_the_policy_says(shop: Workshop, tmp_path: Path) -> None:
    judge = Judge()
    life = prose(shop, tmp_path, judge, judge_audits=4)
    life.promote(measure="judge")
    life.record(life.audits(*[True] * 10))
    assert compared_of(life)["pairs"] == 4
    life.record(life.audits(*[True] * 10))
    life.look(later=43_200.0)  # half a day later: two more
    time.sleep(0.1)
    life.look(later=43_200.0)
    assert judge.asked == 12


def test_a_judge_that_says_nothing_is_held_against_nobody(shop: Workshop, tmp_path: Path) -> None:
    life = prose(shop, tmp_path, Judge("I would rather not say"))
    life.promote(measure="judge")
    life.record(life.audits(*[True] * 8))
    assert (compared_of(life)["pairs"], life.share) == (0, 95)


# --- what counts, and how often ----------------------------------------------------------------------------


def test_each_exchange_counts_once_however_often_it_is_looked_at(life: Life) -> None:
    life.promote()
    life.record([*life.audits(True, False), life.served(), life.whole()])
    for _ in range(3):
        life.look()
    assert life.seen == {"errors": 3, "input_drift": 3, "latency": 3, "cost": 3, "agreement": 2}


def test_a_copy_that_comes_before_its_original_waits_for_it(life: Life) -> None:
    """Workers write journals of their own."""
    life.promote()
    own, copy = life.audits(False)
    life.record([copy])
    life.look()
    assert (life.state["tests"], len(life.state["open"])) == ({}, 1)
    life.record([own])
    life.look()
    life.look()
    assert life.seen["agreement"] == 1


def test_an_answer_under_way_is_waited_for_but_not_for_ever(life: Life) -> None:
    life.promote()
    open_one = life.served(latency_ms=None, status=None, complete=False)
    life.record([open_one])
    life.look()
    assert len(life.state["open"]) == 1
    with life.store.transaction():
        life.store.absorb_records("segment", 1, stored(end(id=open_one.id, stripped=True, target=open_one.target)))
    life.look()
    assert (life.seen["errors"], life.state["open"]) == (1, [])
    life.record([life.served(latency_ms=None, status=None, complete=False)])
    life.look(later=1000.0)
    assert (life.seen["errors"], life.state["open"]) == (1, [])


def test_what_says_nothing_of_the_candidate_is_not_held_against_it(life: Life) -> None:
    own = [life.served("refund") for _ in range(4)]
    failed = life.whole("", status=500, error_type="upstream_http_5xx", copy_of=own[0].id)
    without_body = msgspec.structs.replace(life.whole("praise", copy_of=own[1].id), response=b"")
    another = life.served("praise", target="openai/ft:mail-0")
    life.promote()
    left = life.served(status=200, complete=False, error_type="caller_cancelled")
    skipped = life.whole(attempts=["openai/ft:mail-1: circuit_open"])
    everywhere = life.whole("", status=400, error_type="upstream_http_4xx", attempts=["openai/ft:mail-1: http_400"])
    life.record(
        [everywhere, *own, failed, without_body, another, life.whole("praise", copy_of=another.id), left, skipped]
    )
    life.look()
    assert life.seen == {"errors": 4, "input_drift": 4, "latency": 4, "cost": 4}


def test_a_text_where_the_incumbent_calls_a_tool_is_another_answer(life: Life) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "pay_back", "arguments": "{}"}}
    tools = answer(None, finish="tool_calls", tool_calls=[call])
    life.promote()
    own = life.served("refund")
    life.record([own, life.whole(tools, copy_of=own.id)])
    life.look()
    assert life.state["tests"]["agreement"]["total"] == 1.0


def test_the_same_call_of_a_tool_with_its_arguments_in_another_order_is_the_same_answer(life: Life) -> None:
    def calls(arguments: str) -> dict[str, Any]:
        call = {
            "id": f"c{len(arguments)}",
            "type": "function",
            "function": {"name": "pay_back", "arguments": arguments},
        }
        return answer(None, finish="tool_calls", tool_calls=[call])

    life.promote()
    same, other = life.served(calls('{"order": 7, "all": true}')), life.served(calls('{"order": 7, "all": true}'))
    life.record([same, life.whole(calls('{"all":true,"order":7}'), copy_of=same.id)])
    life.look()
    assert life.state["tests"]["agreement"]["total"] == 0.0
    life.record([other, life.whole(calls('{"all":true,"order":8}'), copy_of=other.id)])
    life.look()
    assert life.state["tests"]["agreement"]["total"] == 1.0


@pytest.mark.parametrize(
    ("measure", "differs"), [("exact", 1.0), ("fields", 0.5), ("similarity", 0.18), ("judge", None)]
)
def test_answers_are_compared_by_what_the_gate_judged_by(
    life: Life, measure: Measure, differs: float | None
) -> None:
    """A judge is asked by nobody here: then the agreement is not watched, and a canary goes on all the same."""
    life.promote(measure=measure)
    own = life.served('{"item": "kettle", "wish": "refund"}')
    life.record([own, life.whole('{"item": "kettle", "wish": "repair"}', copy_of=own.id)])
    life.look()
    found = life.state["tests"].get("agreement")
    assert (found and found["total"]) == (None if differs is None else pytest.approx(differs, abs=0.01))
    assert life.state["pairs"] == 1


def test_what_is_handed_over_is_no_failure(life: Life) -> None:
    life.promote()
    life.record([life.whole(attempts=["openai/ft:mail-1: abstained"]) for _ in range(30)])
    life.look()
    tests = life.state["tests"]
    assert (tests["errors"]["total"], tests["input_drift"]["total"]) == (0.0, 30.0)


# --- alarms that change nothing ----------------------------------------------------------------------------


def test_an_outage_is_an_alarm_that_ends_by_itself(life: Life) -> None:
    life.promote()
    life.record(life.audits(*[True] * 50))
    life.look()
    life.record([life.whole(attempts=["openai/ft:mail-1: http_500"]) for _ in range(100)])
    life.look()
    life.look()
    (alarm,) = open_alarms(life.store)
    assert (alarm["kind"], alarm["action"]) == ("errors", "log")
    assert watched_candidates(life.store.path.parent)["mail"].alarms == ["errors"]
    assert life.share == 95
    life.record([life.served() for _ in range(1500)])
    life.look(later=60.0)
    assert open_alarms(life.store) == []
    assert [row["cleared_at"] for row in life.store.rows("alarms")] == [NOW + 60]


def test_a_model_that_its_provider_takes_away_is_told_a_month_before(shop: Workshop, tmp_path: Path) -> None:
    today = datetime.datetime.fromtimestamp(NOW, datetime.UTC).date()
    url = {"base_url": "http://127.0.0.1:9/v1"}
    for days, expected in ((31, []), (30, ["shutdown"])):
        dates = {"gpt-6": today + datetime.timedelta(days=days)}
        config = config_in(tmp_path, providers={"openai": url | {"shutdown_dates": dates}})
        life = Life(workshop_in(tmp_path, shop.store, config))
        if not standing(shop.store, "mail"):
            life.promote()
        life.look()
        assert [row["kind"] for row in open_alarms(shop.store)] == expected


def dated(folder: Path, model: str, days: int, now: float = NOW) -> Config:
    day = datetime.datetime.fromtimestamp(now, datetime.UTC).date() + datetime.timedelta(days=days)
    return config_in(
        folder, providers={"openai": {"base_url": "http://127.0.0.1:9/v1", "shutdown_dates": {model: day}}}
    )


@pytest.mark.parametrize(
    ("days", "said"), [(30, "openai takes gpt-6 away on 1970-02-01 (in 30 days)"),
                       (-2, "openai took gpt-6 away on 1969-12-31 (2 days ago)"), (31, None)],
)  # fmt: skip
def test_a_task_that_was_never_promoted_loses_its_model_too(
    shop: Workshop, tmp_path: Path, days: int, said: str | None
) -> None:
    """The app itself asks for a model that ends."""
    config = dated(tmp_path, "gpt-6", days)
    life = Life(workshop_in(tmp_path, shop.store, config))
    life.record([life.whole() for _ in range(3)])
    life.look()
    assert [row["sentence"] for row in open_alarms(shop.store)] == ([said] if said else [])
    assert watched_candidates(shop.store.path.parent) == ({"mail": Told(["shutdown"])} if said else {})
    look_after(life.shop, NOW + 9 * 86_400)  # nobody has asked for it in a week
    assert open_alarms(shop.store) == []


def test_a_rollback_does_not_bring_the_model_back(shop: Workshop, tmp_path: Path) -> None:
    life = Life(workshop_in(tmp_path, shop.store, dated(tmp_path, "gpt-6", 5)))
    life.promote()
    life.record(life.audits(*[False] * 30))
    life.look()
    life.look()
    assert life.share is None
    assert [row["kind"] for row in open_alarms(shop.store)] == ["shutdown"]


def test_a_routes_file_that_a_person_is_editing_is_waited_for(life: Life) -> None:
    life.promote()
    good = life.shop.routes.read_text()
    life.shop.routes.write_text("routes:\n  - name: half wri")
    life.record(life.audits(*[False] * 30))
    for _ in range(2):
        with pytest.raises(ConfigError, match="left as it is"):
            life.look()
    assert life.shop.routes.read_text() == "routes:\n  - name: half wri"
    life.shop.routes.write_text(good)
    life.look()
    assert life.share is None


def test_where_nothing_is_new_nothing_is_written(life: Life) -> None:
    """It looks every second, and a write is forced to the disk."""
    life.promote()
    life.record(life.audits(True, True))
    life.look()
    before = life.store.run("SELECT total_changes()").fetchone()
    for _ in range(3):
        life.look()
    assert life.store.run("SELECT total_changes()").fetchone() == before


def test_trouble_with_one_task_stops_no_other(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.promote()
    life.promote(task="post", finetune="ft-2")
    life.record(life.audits(*[False] * 30))
    rollback = promote.rollback

    def broken(store: SqliteStore, config: Config, routes: Path, task: str, because: object) -> Any:
        return 1 / 0 if task == "mail" else rollback(store, config, routes, task, because)

    post = [msgspec.structs.replace(one, id=f"p{one.id}", task="post", copy_of=one.copy_of and f"p{one.copy_of}",
                                    target=one.target and one.target.replace("mail-1", "mail-2"))
            for one in life.audits(*[False] * 30)]  # fmt: skip
    keep(life.store, post, template(task="post"))
    monkeypatch.setattr(promote, "rollback", broken)
    with pytest.raises(ZeroDivisionError):
        life.look()
    assert [route["name"] for route in routes_of(life.shop.routes.read_text())] == ["mail"]


def test_a_person_who_rolls_back_ends_the_alarms(life: Life) -> None:
    life.promote()
    life.record(life.audits(*[True] * 50))
    life.look()
    life.record([life.whole(attempts=["openai/ft:mail-1: http_500"]) for _ in range(100)])
    life.look()
    assert [alarm["kind"] for alarm in open_alarms(life.store)] == ["errors"]
    promote.rollback(life.store, life.shop.config, life.shop.routes, "mail")
    life.look()
    assert open_alarms(life.store) == []


def test_the_next_candidate_begins_with_a_clean_slate(life: Life) -> None:
    life.promote()
    life.record(life.audits(*[True] * 20, False, False))
    life.look()
    life.promote(Step(5), Step(95), finetune="ft-2")
    life.look()
    assert life.state["pairs"] == 0


def test_only_what_came_after_the_promotion_is_read(store: SqliteStore) -> None:
    """Ids are ordered by time, and a look that comes late misses nothing."""
    make = id_maker(iter([100.0, 200.0, 300.0]).__next__)
    store.absorb("segment", 0, [Exchange(id=make(), started_at=moment) for moment in (100.0, 200.0, 300.0)])
    assert [row_before(store, moment) for moment in (50.0, 100.5, 250.0, 400.0)] == [0, 1, 2, 3]


def test_a_match_rate_that_has_fallen_is_told_with_the_others(life: Life) -> None:
    life.record([life.whole()])
    life.store.run("UPDATE tasks SET alarm = 'its requests nearly match' WHERE name = 'mail'")
    life.look()
    assert watched_candidates(life.store.path.parent) == {"mail": Told(["match_rate"])}


def test_after_a_crash_in_between_the_next_look_goes_on(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.promote()
    life.record(life.audits(*[False] * 30))
    with monkeypatch.context() as broken:
        broken.setattr(promote, "rollback", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            life.look()
    assert life.share == 95
    again = Life(msgspec.structs.replace(life.shop, store=SqliteStore(life.store.path)))
    again.look()
    assert again.share is None
    assert [state["tests"]["agreement"]["seen"] for state in again.states.values()] == [30]
