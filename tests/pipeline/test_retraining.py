"""The next turn of the flywheel: when it is due, and what its candidate has to beat."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from stories import NEW_SYSTEM, asked, config_in, exchange, keep, mail, template, traffic, with_the_new_prompt

from gateway.config import TaskPolicy
from gateway.pipeline import cycle, evaluate, promote, promotions
from gateway.pipeline.alarms import Alarm, Kind
from gateway.pipeline.cycle import Workshop, turn
from gateway.pipeline.dataset import build, scope_of
from gateway.pipeline.overview import overview
from gateway.pipeline.promote import rollback
from gateway.pipeline.promotions import standing
from gateway.pipeline.serving import in_force, serves
from gateway.stores.audited import raise_alarm


def promoted(shop: Workshop, count: int = 500) -> str:
    """A shop whose first candidate serves; gives the candidate's id."""
    keep(shop.store, traffic(count))
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.promote, decision.reason
    assert decision.candidate is not None
    return decision.candidate


def more(shop: Workshop, count: int, *, start: int = 1000) -> None:
    """Requests that were seen before, asked again and answered as before."""
    again = [exchange(start + n, asked(mail()[n % 500][0]), mail()[n % 500][1]) for n in range(count)]
    keep(shop.store, again)


def test_after_an_alarm_a_quarter_more_rows_are_enough(shop: Workshop) -> None:
    promoted(shop)
    more(shop, 100)
    assert turn(shop, "mail") is None
    alarm = Alarm(task="mail", kind=Kind.INPUT_DRIFT, action="retrain", sentence="other words than before")
    assert raise_alarm(shop.store, alarm, time.time())
    assert turn(shop, "mail") is not None
    more(shop, 124, start=2000)
    assert turn(shop, "mail") is None  # the alarm was heard


def test_an_alarm_without_new_rows_trains_nothing(shop: Workshop) -> None:
    promoted(shop)
    alarm = Alarm(task="mail", kind=Kind.AGREEMENT, action="rollback", sentence="answers differ")
    raise_alarm(shop.store, alarm, time.time())
    more(shop, 99)
    assert turn(shop, "mail") is None


def test_an_alarm_that_changes_nothing_trains_nothing(shop: Workshop) -> None:
    promoted(shop)
    raise_alarm(shop.store, Alarm(task="mail", kind=Kind.ERRORS, action="log", sentence="down"), time.time())
    more(shop, 200)
    assert turn(shop, "mail") is None


def test_a_training_grows_old(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = {"default": {"min_rows": 100, "retrain_days": 30, "canary": [100]}}
    shop = msgspec.structs.replace(shop, config=config_in(shop.store.path.parent.parent, tasks=policy))
    promoted(shop)
    more(shop, 125)
    assert turn(shop, "mail") is None
    later = time.time() + 31 * 86_400
    monkeypatch.setattr("time.time", lambda: later)
    assert turn(shop, "mail") is not None


def test_the_same_candidate_is_not_promoted_again_after_a_rollback(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = promoted(shop)
    rollback(shop.store, shop.config, shop.routes, "mail")
    more(shop, 500)
    monkeypatch.setattr(cycle, "_candidates", lambda shop, _data: shop.store.finetunes("id = ?", [first]))
    decision = turn(shop, "mail")
    assert decision is not None
    assert (decision.candidate, decision.promote) == (first, False)
    assert "times that it was rolled back" in decision.reason
    assert standing(shop.store, "mail") == []
    assert shop.store.rows("promotions")[-1]["action"] == "refuse"


@pytest.mark.parametrize(("ahead", "flips"), [(0.01, True), (0.0, False), (-0.02, False), (None, False)])
def test_the_next_candidate_has_to_be_surely_better_than_the_one_that_serves(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, ahead: float | None, flips: bool
) -> None:
    """By the lower bound of how much more it answers rightly on the same rows; passing the gate is not enough."""
    first = promoted(shop)
    (evaluated,) = shop.store.rows("evaluations")
    before = evaluate.load_report(evaluated)
    now = msgspec.structs.replace(before.candidates[0], beaten_low=ahead)
    new = msgspec.structs.replace(now, finetune="ft-new", model="mail-new", upstream="openai", beaten_low=None)
    report = msgspec.structs.replace(before, candidates=[new, now])
    monkeypatch.setattr(cycle, "_report", lambda shop, task, job, *_: (report, job))
    more(shop, 500)
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.promote == flips, decision.reason
    assert ("beyond the candidate that serves" in decision.reason) == (not flips)
    assert promotions.candidate(standing(shop.store, "mail")[-1]) == ("ft-new" if flips else first)


def test_what_serves_already_and_is_still_the_best_stays(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = promoted(shop)
    flips = len(shop.store.rows("promotions"))
    more(shop, 500)
    monkeypatch.setattr(cycle, "_candidates", lambda shop, _data: shop.store.finetunes("id = ?", [first]))
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.candidate == first
    assert len(shop.store.rows("promotions")) == flips


def test_answers_of_candidates_are_no_training_rows_and_audits_are(shop: Workshop) -> None:
    """Of a stripped request the incumbent's answer to its copy is learnt; a shadow's answer never is."""
    keep(shop.store, traffic(60))
    student: dict[str, Any] = {"stripped": True, "target": "local/mail-7"}
    served = [exchange(100 + n, asked(text), "WRONG", **student) for n, (text, _) in enumerate(mail()[60:80])]
    copies = [
        exchange(200 + n, asked(text), label, copy_of=served[n].id) for n, (text, label) in enumerate(mail()[60:70])
    ]
    shadows = [
        exchange(300 + n, asked(text), "WRONG", copy_of=f"e{n:05}", **student)
        for n, (text, _) in enumerate(mail()[:20])
    ]
    keep(shop.store, [*served, *copies, *shadows])
    data = build(shop.store, "mail", shop.datasets)
    outputs = {row.exchange_id: row.output for row in data.rows}
    assert "WRONG" not in outputs.values()
    assert {copy.id for copy in copies} <= set(outputs)
    assert not {one.id for one in (*served, *shadows)} & set(outputs)


def another_prompt(shop: Workshop, count: int, *, start: int, form: str = "{}") -> None:
    """The same mail, asked with the prompt's second version."""
    letters = with_the_new_prompt(count, start=start, form=form)
    keep(shop.store, letters, template(), template(NEW_SYSTEM, 2))


def test_another_prompt_is_trained_for_as_soon_as_there_are_rows_of_it(shop: Workshop) -> None:
    """The candidate that serves cannot be stripped for it, so nobody has to wait for twice the rows."""
    promoted(shop)
    another_prompt(shop, 99, start=5000)
    assert turn(shop, "mail") is None
    another_prompt(shop, 51, start=5099)
    assert turn(shop, "mail") is not None
    (first, second) = shop.store.rows("datasets")
    assert (first["template"], second["template"]) == ("mail@1", "mail@2")
    another_prompt(shop, 99, start=5150)
    assert turn(shop, "mail") is None  # it was trained for
    another_prompt(shop, 51, start=5249)
    assert turn(shop, "mail") is not None  # and twice as many are more to go by, however many there were before


def test_a_few_requests_with_another_prompt_beside_the_old_one_train_nothing(shop: Workshop) -> None:
    promoted(shop)
    another_prompt(shop, 60, start=5000)
    more(shop, 65)
    assert turn(shop, "mail") is None


def test_what_is_learnt_for_is_counted_over_as_many_answers_as_make_a_turn_due(shop: Workshop) -> None:
    """Of the newest 1,000 answers most are to the second prompt, of the newest 1,200 to the first."""
    keep(shop.store, traffic(650))
    another_prompt(shop, 550, start=5000)
    assert scope_of(shop.store, "mail", TaskPolicy(min_rows=100)).templates[0].name == "mail@2"
    assert scope_of(shop.store, "mail", TaskPolicy(min_rows=1200)).templates[0].name == "mail@1"


def test_a_candidate_for_another_prompt_need_not_beat_the_one_that_serves_the_old_one(shop: Workshop) -> None:
    promoted(shop)
    another_prompt(shop, 500, start=5000)
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.promote, decision.reason
    assert not any("candidate that serves" in check.name for check in decision.checks)
    (route,) = yaml.safe_load(shop.routes.read_bytes())["routes"]
    assert route["targets"][0]["strip"] == "mail@2"


def test_while_a_candidate_is_on_its_way_no_other_one_is_trained(shop: Workshop, tmp_path: Path) -> None:
    stepwise = config_in(tmp_path, tasks={"default": {"min_rows": 100, "canary": [5, 100]}})
    shop = msgspec.structs.replace(shop, config=stepwise)
    promoted(shop)
    more(shop, 600)
    assert turn(shop, "mail") is None
    promote.advance(shop.store, shop.config, shop.routes, "mail")
    assert turn(shop, "mail") is not None


@pytest.mark.parametrize(
    ("was", "by_hand", "said"),
    [
        ("weight: 5.0", "weight: 95.0", "served by {}: 50 % of the requests, since"),
        ("weight: 5.0", "weight: 0", ""),
        ("routes:\n", "routes:\n  - {name: all, match: {}, targets: [{upstream: openai}]}\n", ""),
        (None, "routes: []\n", ""),
    ],
)
def test_a_canary_whose_route_a_person_has_changed_holds_up_no_training(
    shop: Workshop, tmp_path: Path, was: str | None, by_hand: str, said: str
) -> None:
    """It takes no step any more, so there is none to wait for; and nobody says that it does."""
    stepwise = config_in(tmp_path, tasks={"default": {"min_rows": 100, "canary": [5, 100]}})
    shop = msgspec.structs.replace(shop, config=stepwise)
    promoted(shop)
    more(shop, 600)
    written = shop.routes.read_text()
    shop.routes.write_text(written.replace(was, by_hand) if was else by_hand)
    assert shop.routes.read_text() != written
    (row,) = overview(shop.store, shop.config, in_force(shop.routes, shop.config))
    assert serves(row).startswith(said.format(promotions.standing(shop.store, "mail")[-1]["target"]))
    assert (bool(serves(row)), row["canary"], row["next"]) == (bool(said), None, "training is due")
    assert turn(shop, "mail") is not None


@pytest.mark.parametrize(("form", "older"), [("{}", 0), ("label: {}", 386)], ids=["as before", "in another form"])
def test_what_an_older_prompt_was_answered_is_learnt_only_where_it_is_what_the_new_one_would_be(
    shop: Workshop, form: str, older: int
) -> None:
    keep(shop.store, traffic(500))
    another_prompt(shop, 500, start=5000, form=form)
    made = build(shop.store, "mail", shop.datasets, shop.config.policy("mail"))
    assert made.template == "mail@2"
    dropped = made.card["dropped"]
    assert dropped["older prompt version, held out"] == 114
    assert dropped.get("older prompt version, answered otherwise", 0) == older
    assert {row.output for row in made.rows} <= {form.format(label) for _, label in mail()}
