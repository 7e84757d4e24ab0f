"""What a candidate is compared with: untuned models, the incumbent's second answers, people's word, newer rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from judging import REMOTE, evaluated, only, says
from stories import SYSTEM, asked, config_in, exchange, feedback, keep, mail, sorted_by_the_model, template, traffic
from tiny_bert import tiny_bert

from gateway.app import price_book
from gateway.config import TaskPolicy
from gateway.domain import layout
from gateway.domain.dataset import Dataset, Row
from gateway.domain.finetune import FineTune
from gateway.pipeline import evaluate
from gateway.pipeline.asking import Answered, Ask, asker, other_models
from gateway.pipeline.dataset import build
from gateway.pipeline.evaluate import Report
from gateway.stores.sqlite import SqliteStore
from gateway.testing import FakeOpenAI, Refusal


@pytest.fixture
def data(store: SqliteStore, tmp_path: Path) -> Dataset:
    keep(store, traffic(400))
    return build(store, "mail", tmp_path / "data" / "datasets")


# --- baselines, the incumbent again, hosting ---------------------------------------------------------------


def compared(
    store: SqliteStore, folder: Path, data: Dataset, api: FakeOpenAI, policy: dict[str, Any] | None = None,
    hosting: float = 0.0, finetune: FineTune = REMOTE,
) -> Report:  # fmt: skip
    """Evaluated with everything that the policy allows to ask, at the shop's provider and at a host of its own."""
    price = {"input": 1.0, "output": 2.0}
    config = config_in(
        folder,
        providers={
            "openai": {"base_url": api.base_url, "prices": {"small-1": price, "small": price, "gpt-6": price}},
            "own": {"base_url": api.base_url, "hosting_usd_per_hour": hosting},
        },
        tasks={"default": {"min_rows": 100, **(policy or {})}},
    )
    book = price_book(config)
    models = folder / "models"
    return evaluate.evaluate(
        store, config, data, [finetune], models, asker(config, book, models), other_models(config, book)
    )


def the_apps_models(body: dict[str, Any]) -> str:
    """The tuned model knows what to do with a bare message, the untuned one needs the prompt."""
    text = body["messages"][-1]["content"]
    return sorted_by_the_model(text) if body["model"] != "small" or "Message: " in text else "How can I help?"


def test_the_untuned_model_is_asked_with_and_without_the_prompt(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    with FakeOpenAI(the_apps_models) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 40, "sibling": "openai/gpt-6-mini"})
        asked_of = Counter(request.json()["model"] for request in api.received)
    stripped, whole, sibling = report.baselines
    assert [score.role for score in report.baselines] == ["base stripped", "base whole", "sibling"]
    assert (stripped.agreement, whole.agreement, sibling.agreement) == (0.0, 1.0, 1.0)
    assert (stripped.rows, stripped.answered, sibling.model) == (40, 1.0, "gpt-6-mini")
    assert asked_of == {"small-1": len(data.part("validation")), "small": 80, "gpt-6-mini": 40}
    assert stripped.cost_per_1k_usd is not None
    assert whole.cost_per_1k_usd is not None
    assert whole.cost_per_1k_usd > 1.5 * stripped.cost_per_1k_usd
    assert sibling.cost_per_1k_usd is None  # nobody knows its price


def test_what_a_baseline_fails_to_answer_nobody_answers_for_it(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    def answer(body: dict[str, Any]) -> str:
        if body["model"] == "small" and "parcel" in body["messages"][-1]["content"]:
            raise Refusal(400, "no")
        return the_apps_models(body)

    with FakeOpenAI(answer) as api:
        whole = compared(store, tmp_path, data, api).baselines[1]
    assert 0.7 < whole.agreement < 0.95
    assert whole.answered == whole.agreement


def test_a_baseline_that_cannot_be_asked_is_named_and_costs_nothing_else(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    def answer(body: dict[str, Any]) -> str:
        if body["model"] == "small":
            raise Refusal(404, "no such model")
        return the_apps_models(body)

    with FakeOpenAI(answer) as api:
        report = compared(store, tmp_path, data, api)
    assert only(report).agreement == 1.0
    assert sorted(report.failed) == ["small untuned, stripped", "small untuned, whole prompt"]
    assert "gave no answer to any" in report.failed["small untuned, stripped"]


def test_a_provider_that_was_taken_out_of_the_config_fails_its_baseline_only(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    teacher = data.card["teacher"] | {"target": "gone/gpt-6"}
    moved = msgspec.structs.replace(data, card=data.card | {"teacher": teacher})
    with FakeOpenAI(the_apps_models) as api:
        report = compared(store, tmp_path, moved, api, {"baseline_rows": 0, "ask_again": 60})
    assert only(report).agreement == 1.0
    assert "no provider 'gone' in the config" in report.failed["incumbent asked again"]


def test_nobody_is_asked_for_a_baseline_where_the_policy_says_so(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    with FakeOpenAI(the_apps_models) as api:
        assert compared(store, tmp_path, data, api, {"baseline_rows": 0}).baselines == []


def test_the_incumbent_asked_again_shows_how_far_it_agrees_with_itself(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """The incumbent changes its mind on every tenth message, and so does the candidate, on others."""
    asked_so_far = Counter[str]()

    def moody(body: dict[str, Any]) -> str:
        asked_so_far[body["model"]] += 1
        return "other" if asked_so_far[body["model"]] % 10 == 0 else the_apps_models(body)

    with FakeOpenAI(moody) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0, "ask_again": 400})
    again = report.again
    assert again is not None
    assert (again.rows, again.role) == (len(data.part("validation")), "incumbent again")
    assert 0.9 <= again.agreement < 1
    low = only(report).difference_low
    assert low is not None
    assert -0.15 < low < 0
    assert {request.json()["messages"][0]["role"] for request in api.received
            if request.json()["model"] == "gpt-6"} == {"system"}  # fmt: skip


def one_in(count: int, models: str, *, wrong: str = "other") -> Callable[[dict[str, Any]], str]:
    """The shop's models, of which these get every so many-th message wrong."""
    asked_so_far = Counter[str]()

    def answer(body: dict[str, Any]) -> str:
        asked_so_far[body["model"]] += 1
        slips = body["model"] in models and asked_so_far[body["model"]] % count == 0
        return wrong if slips else the_apps_models(body)

    return answer


def test_where_agreement_alone_decides_the_incumbent_is_not_asked_again(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    with FakeOpenAI(the_apps_models) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0})
        assert {request.json()["model"] for request in api.received} == {"small-1"}
    assert report.itself is None


def test_where_it_would_make_the_difference_the_incumbent_is_asked_again_by_itself(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """The candidate differs in a tenth of its answers, and so does the incumbent from itself."""
    with FakeOpenAI(one_in(10, "small-1 gpt-6", wrong="gift")) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0})
    assert report.itself is not None
    assert (report.itself.source, report.itself.rows) == ("asked again", len(data.part("validation")))
    assert 0.85 < report.itself.value < 0.95
    assert only(report).difference_low is not None


@pytest.mark.parametrize(
    ("policy", "asked"),
    [({"ask_again_usd": 0.1}, True), ({"ask_again_usd": 0.049}, False), ({"ask_again": 0}, False)],
)
def test_asking_again_costs_no_more_than_allowed(
    store: SqliteStore, tmp_path: Path, data: Dataset, policy: dict[str, Any], asked: bool
) -> None:
    """Each of the incumbent's answers costs 0.001 USD, and fifty of them are the least that says anything."""
    with FakeOpenAI(one_in(10, "small-1", wrong="gift")) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0, **policy})
        again = [request for request in api.received if request.json()["model"] == "gpt-6"]
    assert bool(again) == asked
    assert (report.again is not None) == asked


def test_a_candidate_that_is_far_too_bad_is_not_worth_asking_again(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    with FakeOpenAI(one_in(2, "small-1", wrong="gift")) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0})
    assert (only(report).agreement, report.again) == (0.5, None)


def test_what_the_app_asked_twice_says_how_steady_the_incumbent_is(store: SqliteStore, tmp_path: Path) -> None:
    """Every second message is asked twice, and one in ten of these is answered otherwise."""
    texts = mail()[:400]
    once = [exchange(n, asked(text), label) for n, (text, label) in enumerate(texts)]
    twice = [exchange(400 + n, asked(text), "gift" if n % 10 == 0 else label)
             for n, (text, label) in enumerate(texts[::2])]  # fmt: skip
    keep(store, [*once, *twice])
    data = build(store, "mail", tmp_path / "data" / "datasets")
    assert (data.card["asked_twice"], data.card["asked_twice_alike"]) == (200, 180)
    report = evaluated(store, tmp_path, data, says(sorted_by_the_model))
    assert report.itself is not None
    assert (report.itself.rows, report.itself.value, report.itself.source) == (200, 0.9, "asked twice by the app")
    assert only(report).difference_low is not None


def test_of_who_leaves_some_to_the_incumbent_that_says_nothing(store: SqliteStore, tmp_path: Path) -> None:
    """Perhaps it changes its mind only where the candidate abstains."""
    keep(store, traffic(400))
    data = build(store, "mail", tmp_path / "data" / "datasets")
    steady = msgspec.structs.replace(data, card=data.card | {"asked_twice": 200, "asked_twice_alike": 180})
    shy = says(lambda text: None if "parcel" in text else sorted_by_the_model(text))
    assert only(evaluated(store, tmp_path, steady, shy)).difference_low is None


def test_what_is_left_to_the_incumbent_is_no_better_than_its_second_answer(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """A candidate that answers nothing is exactly as good as the incumbent: the difference is nought."""

    def answer(body: dict[str, Any]) -> str:
        if body["model"] == "small-1" and "parcel" not in body["messages"][-1]["content"]:
            raise Refusal(400, "not sure")
        return "other" if body["model"] == "gpt-6" else the_apps_models(body)

    with FakeOpenAI(answer) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0, "ask_again": 400})
    assert report.again is not None
    assert report.again.agreement < 0.5
    low = only(report).difference_low
    assert low is not None
    assert low < 0.2  # and not the half that the incumbent's own changes of mind would give it


def test_hosting_is_shared_among_the_traffic_and_pays_from_some_volume_on(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """400 requests in 400 seconds count as 400 an hour; the host costs 0.1 USD an hour, the incumbent 0.4."""
    mine = REMOTE.but(upstream="own")
    with FakeOpenAI(the_apps_models) as api:
        score = only(compared(store, tmp_path, data, api, {"baseline_rows": 0}, hosting=0.1, finetune=mine))
    assert score.hosting_per_1k_usd == pytest.approx(0.25)
    assert score.cost_per_1k_usd == pytest.approx(0.25)  # its tokens have no price of their own
    assert score.cost_ratio_high == pytest.approx(0.25)
    assert score.break_even_per_day == pytest.approx(2400)


def test_a_host_that_costs_more_than_it_saves_never_pays_at_this_volume(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    mine = REMOTE.but(upstream="own")
    with FakeOpenAI(the_apps_models) as api:
        score = only(compared(store, tmp_path, data, api, {"baseline_rows": 0}, hosting=10.0, finetune=mine))
    assert score.cost_ratio_high == pytest.approx(25.0)
    assert score.break_even_per_day == pytest.approx(240_000)


# --- gold, confirmation ------------------------------------------------------------------------------------


def test_where_people_have_said_what_is_right_it_is_accuracy_for_both(store: SqliteStore, tmp_path: Path) -> None:
    """On 30 held-out messages a person corrects the incumbent to `gift`, and approves it on 30; the candidate
    learnt the corrections."""
    keep(store, traffic(400))
    rows = build(store, "mail", tmp_path / "first").part("validation")
    for row in rows[:30]:
        feedback(store, row.exchange_id, corrected_output="gift")
    for row in rows[30:60]:
        feedback(store, row.exchange_id, score=1.0)
    data = build(store, "mail", tmp_path / "data" / "datasets")
    corrected = {row.text for row in data.part("validation") if row.output == "gift"}
    report = evaluated(store, tmp_path, data, says(lambda t: "gift" if t in corrected else sorted_by_the_model(t)))
    gold, base = only(report).gold, report.incumbent.gold
    assert gold is not None
    assert base is not None
    assert (gold.rows, gold.accuracy.value, base.accuracy.value) == (60, 1.0, 0.5)
    assert gold.difference is not None
    assert gold.difference.low > 0.3


def test_without_a_persons_word_there_is_no_accuracy(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    report = evaluated(store, tmp_path, data, says(sorted_by_the_model))
    assert (only(report).gold, report.incumbent.gold) == (None, None)


def test_the_chosen_one_is_confirmed_once_on_newer_rows(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    """Ten candidates; the newest rows are asked of the first alone, and it has learnt nothing of them."""
    rows = data.part("validation")
    newest = {row.exchange_id for row in rows[-25:]}
    parted = [msgspec.structs.replace(r, split="confirmation") if r.exchange_id in newest else r for r in data.rows]
    later = msgspec.structs.replace(data, rows=parted)
    asked_rows = Counter[str]()

    def asks(finetune: FineTune) -> Ask:
        def ask(given: Iterable[tuple[Row, dict[str, Any]]]) -> list[Answered]:
            found = list(given)
            asked_rows[finetune.id] += len(found)
            wrong = {row.text for row, _ in found if row.exchange_id in newest}
            return says(lambda t: "gift" if t in wrong else sorted_by_the_model(t))(found)

        return ask

    many = [REMOTE.but(id=f"ft-{n}") for n in range(10)]
    report = evaluate.evaluate(store, config_in(tmp_path), later, many, tmp_path, asks)
    assert report.confirmation is not None
    assert (report.confirmation.rows, report.confirmation.quality) == (25, 0.0)
    assert report.candidates[0].agreement == 1.0
    assert sorted(asked_rows.values()) == [len(rows) - 25] * 9 + [len(rows)]
    assert report.confirmed_before == 0
    assert evaluate.evaluate(store, config_in(tmp_path), later, many, tmp_path, asks).confirmed_before == 1


# --- other kinds of answers --------------------------------------------------------------------------------


def kind(data: Dataset, name: str) -> Dataset:
    return msgspec.structs.replace(data, card=data.card | {"kind": name})


@pytest.mark.parametrize(
    ("policy", "of", "again", "measure"),
    [
        ({}, "classification", 100, "exact"),
        ({}, "extraction", 100, "exact"),
        ({"measure": "fields"}, "extraction", 100, "fields"),
        ({}, "generation", 0, "exact"),
        ({}, "generation", 100, "similarity"),
        ({"judge": "openai/wise"}, "generation", 100, "judge"),
    ],
)
def test_by_what_a_task_is_judged(policy: dict[str, Any], of: str, again: int, measure: str) -> None:
    assert evaluate.measure_of(TaskPolicy.model_validate(policy), of, again) == measure


def test_json_is_judged_by_its_fields_where_the_policy_says_so(store: SqliteStore, tmp_path: Path) -> None:
    """Two fields, and the candidate always gets the second one wrong."""
    said = [exchange(n, asked(text), json.dumps({"label": label, "by": f"clerk {n}"}))
            for n, (text, label) in enumerate(mail()[:400])]  # fmt: skip
    keep(store, said)
    data = build(store, "mail", tmp_path / "data" / "datasets")
    assert data.card["kind"] == "extraction"
    config = config_in(tmp_path, tasks={"default": {"min_rows": 100, "measure": "fields"}})
    half = says(lambda text: json.dumps({"by": "nobody", "label": sorted_by_the_model(text)}))
    score = only(evaluated(store, tmp_path, data, half, config=config))
    assert (score.agreement, score.quality) == (0.0, 0.5)
    assert score.quality_low is not None
    assert 0.4 < score.quality_low < 0.5
    assert score.metrics["field_f1"].value == pytest.approx(0.5)
    assert score.metrics["json_valid"].value == 1.0


def test_where_a_schema_was_asked_for_answers_are_held_to_it(store: SqliteStore, tmp_path: Path) -> None:
    """The candidate leaves out a field that the schema wants wherever a parcel is looked for."""
    schema = {"type": "object", "required": ["label"], "properties": {"label": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "mail", "schema": schema}}
    said = [exchange(n, asked(text, response_format=form), json.dumps({"label": label, "by": f"clerk {n}"}))
            for n, (text, label) in enumerate(mail()[:400])]  # fmt: skip
    body = asked("hi", response_format=form)
    keep(store, said, msgspec.structs.replace(template(), bucket=layout.bucket_of(body)))
    data = build(store, "mail", tmp_path / "data" / "datasets")
    reply = says(lambda text: "{}" if "parcel" in text else json.dumps({"label": sorted_by_the_model(text)}))
    score = only(evaluated(store, tmp_path, data, reply))
    rows = data.part("validation")
    lost = sum("parcel" in row.text for row in rows) / len(rows)
    assert 0 < lost < 1
    assert score.metrics["schema_valid"].value == pytest.approx(1 - lost)
    assert score.metrics["json_valid"].value == 1.0


def test_what_was_replaced_in_the_rows_is_replaced_in_second_answers_too(
    store: SqliteStore, tmp_path: Path
) -> None:
    """Every answer quotes the customer's address, which no row holds; the incumbent still agrees with itself."""
    people = [f"ada{n}@shop{n}.org" for n in range(400)]
    keep(store, [exchange(n, asked(f"{text}, write to {who}"), f"{label} for {who}")
                 for n, ((text, label), who) in enumerate(zip(mail(), people, strict=False))])  # fmt: skip
    data = build(store, "mail", tmp_path / "data" / "datasets")
    assert not any(who in row.output for row in data.rows for who in people[:5])

    def answer(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        return f"{sorted_by_the_model(text)} for {text.rpartition(' ')[2]}"

    with FakeOpenAI(answer) as api:
        report = compared(store, tmp_path, data, api, {"baseline_rows": 0, "ask_again": 50})
    assert report.again is not None
    assert (report.again.agreement, only(report).agreement) == (1.0, 1.0)


def test_prose_is_judged_by_a_model_that_is_asked_only_about_what_differs(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """A third of the letters are worded otherwise by the candidate; the judge finds them alike."""

    def answer(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        if body["model"] == "wise":
            return "TIE"
        return f"{sorted_by_the_model(text)}, dear customer" if "kettle" in text else sorted_by_the_model(text)

    with FakeOpenAI(answer) as api:
        report = compared(
            store, tmp_path, kind(data, "generation"), api, {"judge": "openai/wise", "baseline_rows": 0}
        )
        judged = [request for request in api.received if request.json()["model"] == "wise"]
    score = only(report)
    differing = sum("kettle" in row.text for row in data.part("validation"))
    assert len(judged) == 2 * differing > 0
    assert (report.measure, score.quality) == ("judge", 0.5)
    assert report.judge is not None
    assert (report.judge.pairs, report.judge.equal) == (differing, differing)
    assert SYSTEM in judged[0].json()["messages"][0]["content"]
    assert score.metrics["chrf"].value < 1.0


def test_prose_is_compared_by_an_embedding_where_one_is_named(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    """Random weights: what they find alike is of no use, but the same answer is the same, and others are not."""
    (tmp_path / "encoder").mkdir()
    config = config_in(tmp_path, tasks={"default": {"embedding": str(tiny_bert(tmp_path / "encoder"))}})
    prose = kind(data, "generation")
    polite = says(lambda text: f"{sorted_by_the_model(text)}: where is my card?")
    other = only(evaluated(store, tmp_path, prose, polite, config=config)).metrics["embedding"]
    assert 0 <= other.low <= other.value <= other.high < 1
    same = evaluated(store, tmp_path, prose, says(sorted_by_the_model), config=config)
    assert only(same).metrics["embedding"].value == 1.0
    assert "embedding" not in only(evaluated(store, tmp_path, data, polite, config=config)).metrics  # labels


def test_an_embedding_that_is_not_here_is_named(store: SqliteStore, tmp_path: Path, data: Dataset) -> None:
    config = config_in(tmp_path, tasks={"default": {"embedding": "no-such-embedding"}})
    report = evaluated(store, tmp_path, kind(data, "generation"), says(sorted_by_the_model), config=config)
    assert "it is not installed" in report.failed["embedding no-such-embedding"]
    assert sorted(only(report).metrics) == ["chrf"]


def test_without_its_judge_the_quality_of_prose_is_not_known(
    store: SqliteStore, tmp_path: Path, data: Dataset
) -> None:
    config = config_in(tmp_path, tasks={"default": {"judge": "openai/wise"}})
    report = evaluated(store, tmp_path, kind(data, "generation"), says(sorted_by_the_model), config=config)
    assert (report.measure, only(report).quality, report.judge) == ("judge", None, None)
