"""The promise of the gate, checked by simulation: what is worse is kept out, what is equal gets in."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import TaskPolicy
from gateway.pipeline.bounds import (
    LEAST,
    NEVER,
    POWERS,
    agreement_low,
    chance_to_pass,
    choose_threshold,
    mean,
    most_that_keep,
    most_wrong_that_pass,
    p95,
    ratio_high,
)
from gateway.pipeline.gate import Decision, decide, noticed
from gateway.pipeline.intervals import Figure
from gateway.pipeline.scores import Gold, Itself, Report, Score

POLICY = TaskPolicy()  # margin 5 points, confidence 95 %
GOOD = Score(
    candidate="classifier word", finetune="ft-1", upstream="local", model="mail-1", rows=200, agreement=0.99,
    agreement_low=0.96, agreement_requests=0.99, answered=0.9, agreement_answered=0.99, min_confidence=0.8,
    cost_per_1k_usd=0.1, cost_ratio_high=0.12, p50_ms=1.0, p95_ms=500.0, latency_ratio_high=0.9, input_tokens=10.0,
)  # fmt: skip
INCUMBENT = msgspec.structs.replace(
    GOOD, candidate="incumbent", finetune=None, upstream="openai", model="gpt-6", agreement=1.0, agreement_low=1.0,
    answered=1.0, cost_per_1k_usd=1.0, p95_ms=600.0, cost_ratio_high=None, latency_ratio_high=None,
)  # fmt: skip


def decided(*candidates: Score, incumbent: Score = INCUMBENT, policy: TaskPolicy = POLICY) -> Decision:
    report = Report(
        id="eval-1", task="mail", dataset="d", template="mail@1", confidence=0.95, incumbent=incumbent,
        candidates=list(candidates), failed={}, provider="openai", model="gpt-6",
    )  # fmt: skip
    return decide(report, policy)


def failing(score: Score, **more: Any) -> list[str]:
    return [check.name for check in decided(score, **more).checks if not check.holds]


def but(score: Score, **changes: Any) -> Score:
    return msgspec.structs.replace(score, **changes)


# --- the decision ----------------------------------------------------------------------------------------


def test_a_good_candidate_is_promoted() -> None:
    decision = decided(GOOD)
    assert decision.promote
    assert decision.candidate == "ft-1"
    assert decision.reason == "classifier word: passes the gate"
    told = decision.sentence.removeprefix(decision.reason)
    assert all(check.figures in told for check in decision.checks)  # the log has them all


def test_only_the_first_is_judged_so_that_luck_does_not_choose() -> None:
    decision = decided(but(GOOD, agreement_low=0.9), GOOD)
    assert not decision.promote
    assert decision.reason == "classifier word: refused by the gate (agreement, lower bound: 0.9, limit 0.95)"


def test_without_a_candidate_nothing_is_promoted() -> None:
    decision = decided()
    assert not decision.promote
    assert decision.reason == "refused: there is no candidate to judge"


@pytest.mark.parametrize(
    ("changes", "condition"),
    [
        ({"agreement_low": 0.949}, "agreement, lower bound"),
        ({"agreement_requests": 0.9}, "agreement, each input as often as it was asked"),
        ({"answered": 0.0}, "answers requests itself (share, above the limit)"),
        ({"cost_ratio_high": 0.91}, "cost, ratio to the incumbent, upper bound"),
        ({"cost_ratio_high": None}, "cost, ratio to the incumbent, upper bound"),
        ({"latency_ratio_high": 1.21}, "p95 latency, ratio to the incumbent, upper bound"),
        ({"latency_ratio_high": None}, "p95 latency, ratio to the incumbent, upper bound"),
    ],
)  # fmt: skip
def test_each_condition_alone_refuses(changes: dict[str, Any], condition: str) -> None:
    assert failing(but(GOOD, **changes)) == [condition]


def test_traffic_without_a_price_is_not_judged_by_cost() -> None:
    unpriced = but(INCUMBENT, cost_per_1k_usd=None)
    assert failing(but(GOOD, cost_per_1k_usd=None, cost_ratio_high=None), incumbent=unpriced) == []


def test_a_free_incumbent_cannot_be_undercut_by_something_that_costs() -> None:
    free = but(INCUMBENT, cost_per_1k_usd=0.0)
    assert failing(GOOD, incumbent=free) == ["USD per 1,000 requests, beside a free incumbent"]
    assert failing(but(GOOD, cost_per_1k_usd=None), incumbent=free) != []
    assert failing(but(GOOD, cost_per_1k_usd=0.0), incumbent=free) == []


# --- what it is measured by, and what speaks against it ------------------------------------------------------


def judged_by(report_changes: dict[str, Any], score: Score = GOOD, policy: TaskPolicy = POLICY) -> Decision:
    """The decision about a report with one candidate and these changes."""
    report = Report(
        id="eval-1", task="mail", dataset="d", template="mail@1", confidence=0.95, incumbent=INCUMBENT,
        candidates=[score], failed={},
    )  # fmt: skip
    return decide(msgspec.structs.replace(report, **report_changes), policy)


def refusals(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.holds]


AGAIN = but(INCUMBENT, role="incumbent again", rows=200, quality=0.93, agreement=0.93)


def test_few_held_out_rows_decide_nothing() -> None:
    assert failing(but(GOOD, rows=49)) == ["held-out rows"]
    assert failing(but(GOOD, rows=49), policy=TaskPolicy(min_held_out=49)) == []


def test_beside_an_incumbent_that_changes_its_mind_the_difference_counts() -> None:
    """It agrees with itself in 93 of 100 cases; a candidate at 92 is as good, and one at 80 is not."""
    alike = but(GOOD, quality=0.92, quality_low=0.88, quality_requests=0.92, difference_low=-0.04)
    decision = judged_by({"baselines": [AGAIN]}, alike)
    assert decision.promote
    assert "that is the yardstick" in decision.notes[-1]
    assert refusals(judged_by({"baselines": [AGAIN]}, but(alike, difference_low=-0.051))) == [
        "agreement, beside the incumbent's with itself, lower bound"
    ]
    assert not judged_by({}, alike).promote


def test_who_agrees_often_enough_needs_no_yardstick() -> None:
    """What the incumbent says twice is known, and decides nothing: agreement alone shows the promise."""
    decision = judged_by({"baselines": [AGAIN]}, but(GOOD, quality=0.99, quality_low=0.96, difference_low=-0.2))
    assert decision.promote
    assert "agreement, lower bound" in [check.name for check in decision.checks]
    assert decision.notes[-1].endswith("agreement with what it answered shows enough without that.")


def test_what_the_app_asked_twice_stands_in_for_asking_again_and_the_record_says_what_that_assumes() -> None:
    alike = but(GOOD, quality=0.95, quality_low=0.92, quality_requests=0.95, difference_low=-0.04)
    twice = Itself(rows=300, value=0.97, source="asked twice by the app")
    decision = judged_by({"twice": twice}, alike)
    assert decision.promote
    assert decision.notes[-1] == (
        "Of 300 inputs that the app asked more than once, 97.0% were answered alike twice; on all others the "
        "incumbent is taken to be as steady; that is the yardstick."
    )
    assert not judged_by({"twice": twice}, but(alike, difference_low=None)).promote


@pytest.mark.parametrize(
    ("again", "why"), [(but(AGAIN, rows=49), "too few rows"), (but(AGAIN, quality=0.79), "too seldom")]
)
def test_an_incumbent_asked_too_little_or_too_moody_is_no_yardstick(again: Score, why: str) -> None:
    alike = but(GOOD, quality=0.92, quality_low=0.88, difference_low=0.1)
    decision = judged_by({"baselines": [again]}, alike)
    assert refusals(decision)[0] == "agreement, lower bound"
    assert decision.notes[-1].endswith(f": {why} to be the yardstick.")


def test_what_the_app_asked_twice_is_no_yardstick_for_one_that_hands_over_and_the_record_says_that() -> None:
    twice = Itself(rows=240, value=1.0, source="asked twice by the app")
    note = judged_by({"twice": twice}, but(GOOD, difference_low=None)).notes[-1]
    assert note.endswith("no yardstick for this candidate, which hands some requests over or answers too few rows.")


def test_the_newer_rows_can_refute_what_the_validation_rows_say() -> None:
    later = but(GOOD, rows=60, quality=0.8, quality_low=0.7, quality_high=0.88)
    decision = judged_by({"confirmation": later})
    assert refusals(decision) == ["agreement on 60 newer rows, upper bound"]
    assert decision.notes[1] == "Refuted by the newer rows: 99.0% on the validation rows, 80.0% on 60 newer ones."
    kept = judged_by({"confirmation": but(later, quality_high=0.96), "confirmed_before": 2})
    assert kept.promote
    assert kept.notes[1].startswith(
        "Confirmed, which means not refuted, by the newer rows: 99.0% on the validation"
    )
    assert kept.notes[1].endswith("Earlier evaluations had used these rows 2 times.")


def test_newer_rows_speak_only_of_the_candidate_that_was_asked_them() -> None:
    other = but(GOOD, finetune="ft-2", rows=60, quality=0.5, quality_high=0.6)
    decision = judged_by({"confirmation": other})
    assert (decision.promote, decision.confirmation) == (True, None)
    assert decision.notes[1].startswith("Not confirmed on newer rows: another candidate was asked them.")


def test_too_few_newer_rows_are_told_and_decide_nothing() -> None:
    few = but(GOOD, rows=19, quality=0.5, quality_high=0.7)
    decision = judged_by({"confirmation": few})
    assert decision.promote
    assert decision.notes[1].startswith(
        "Not confirmed: too few newer rows (20 are needed): 99.0% on the validation"
    )
    assert "there are none (about 500 held-out rows are needed)" in judged_by({}).notes[1]


@pytest.mark.parametrize("rows", [20, 60, 250])
def test_what_the_newer_rows_would_have_noticed_they_notice_in_four_of_five_cases(rows: int) -> None:
    worst = noticed(rows, 0.95, 0.95)
    wrong = np.random.default_rng(3).binomial(rows, 1 - worst, size=4000)
    refuted = np.array([1 - agreement_low(rows - n, rows, 0.95) < 0.95 for n in range(rows + 1)])
    assert refuted[wrong].mean() == pytest.approx(0.8, abs=0.03)


def gold(rows: int, low: float, high: float) -> Gold:
    middle = (low + high) / 2
    return Gold(rows=rows, accuracy=Figure(0.9, 0.8, 1.0), difference=Figure(middle, low, high))


def test_people_can_speak_against_a_candidate_that_agrees_with_the_incumbent() -> None:
    assert refusals(judged_by({}, but(GOOD, gold=gold(60, -0.3, -0.06)))) == [
        "accuracy by people's word beside the incumbent's, upper bound"
    ]
    assert judged_by({}, but(GOOD, gold=gold(60, -0.3, 0.1))).promote
    assert judged_by({}, but(GOOD, gold=gold(19, -0.3, -0.2))).promote  # too few to say so


def test_a_judge_that_finds_both_alike_gives_a_half() -> None:
    even = but(GOOD, quality=0.5, quality_low=0.46, quality_requests=0.5)
    decision = judged_by({"measure": "judge"}, even, TaskPolicy(judge="openai/wise"))
    assert decision.promote
    assert "where two equally good models would have 0.5" in decision.notes[2]
    worse = but(even, quality_low=0.44)
    assert refusals(judged_by({"measure": "judge"}, worse)) == ["preference of the judge, lower bound"]
    unknown = but(GOOD, quality=None, quality_low=None)
    assert "preference of the judge, lower bound" in refusals(judged_by({"measure": "judge"}, unknown))


def test_likeness_of_prose_says_nothing_without_the_incumbents_own() -> None:
    alike = but(GOOD, quality=0.6, quality_low=0.57, quality_requests=0.6, difference_low=-0.02)
    assert refusals(judged_by({"measure": "similarity"}, alike)) != []
    itself = but(AGAIN, quality=0.62)
    assert judged_by({"measure": "similarity", "baselines": [itself]}, alike).promote


def test_the_record_says_how_the_candidate_was_chosen_and_what_its_bounds_allow_for() -> None:
    def chosen(count: int, confidence: float, *, named_of: int = 0, **changes: Any) -> str:
        report = Report(
            id="eval-1", task="mail", dataset="d", template="mail@1", confidence=confidence, incumbent=INCUMBENT,
            candidates=[but(GOOD, **changes)] * count, failed={},
        )  # fmt: skip
        return decide(report, POLICY, named_of=named_of).notes[0]

    assert chosen(10, 0.995).startswith(
        "Chosen of 10 by the very rows that judge it; judged on 200 validation rows."
    )
    assert "99.50% (the policy's 95.00%, its error shared among" in chosen(10, 0.995)
    assert "by what training promised (cross-fitted), not by the rows" in chosen(10, 0.95, expected=0.9)
    assert chosen(1, 0.95, named_of=10).endswith("for that choice they do not allow.")


def test_the_record_holds_inputs_figures_rule_and_outcome_and_can_be_read_again() -> None:
    decision = judged_by({"confirmation": but(GOOD, rows=60, quality=0.97, quality_high=0.99)})
    read = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    assert read == decision
    assert (read.dataset, read.template, read.policy["margin"]) == ("d", "mail@1", 0.05)
    assert read.rule == "every condition holds; bounds are one-sided at 95.00%"
    assert read.incumbent == INCUMBENT
    assert read.notes[0] == "The only candidate; judged on 200 validation rows. Bounds are one-sided at 95.00%."


def test_a_record_of_an_earlier_release_can_still_be_read() -> None:
    old: dict[str, Any] = {
        "task": "mail",
        "evaluation": "e",
        "candidate": None,
        "score": None,
        "checks": [],
        "promote": False,
    }
    assert msgspec.convert(old, Decision).notes == ()


# --- the simulation --------------------------------------------------------------------------------------


def promoted_share(true_agreement: float, rows: int, *, runs: int = 4000, confidence: float = 0.95) -> float:
    """How often a candidate that agrees on this share of all requests passes, judged by `rows` rows."""
    wrong = np.random.default_rng(7).binomial(rows, 1 - true_agreement, size=runs)
    most = most_wrong_that_pass(rows, POLICY.margin, confidence)
    assert (agreement_low(most, rows, confidence) >= 1 - POLICY.margin) or most == -1
    return float((wrong <= most).mean())


@pytest.mark.parametrize("rows", [40, 59, 60, 100, 200, 500, 2000])
def test_a_candidate_that_is_worse_than_the_margin_is_promoted_in_one_of_20_runs_at_most(rows: int) -> None:
    noise = 3 * (0.05 * 0.95 / 4000) ** 0.5
    assert promoted_share(0.9499, rows) <= 0.05 + noise
    assert promoted_share(0.93, rows) <= 0.05


@pytest.mark.parametrize(("rows", "agreement"), [(60, 1.0), (120, 0.997), (300, 0.985), (500, 0.98), (2000, 0.97)])
def test_a_candidate_that_is_equal_but_for_noise_is_mostly_promoted(rows: int, agreement: float) -> None:
    assert promoted_share(agreement, rows) >= 0.8


def answers(random: np.random.Generator, rows: int, skill: float) -> tuple[Any, Any]:
    """A calibrated model's confidences and whether it was right: of those it is 90 % sure of, 90 % are right."""
    sure = random.beta(skill, 1, size=rows)
    return sure, random.random(rows) < sure


@pytest.mark.parametrize("rows", [400, 1500, 5000])
@pytest.mark.parametrize("skill", [3.0, 10.0, 30.0])
def test_with_a_threshold_of_its_own_an_honest_model_passes_whatever_its_skill(rows: int, skill: float) -> None:
    """A model that is right in 75 %, 91 % or 97 % of cases: it answers less, and what it answers holds."""
    random, passed, promised = np.random.default_rng(11), 0, 0.0
    train, held_out = rows * 4 // 5, rows // 5
    for _ in range(150):
        threshold, expected = choose_threshold(answers(random, train, skill), POLICY, held_out, 0.95)
        sure, right = answers(random, held_out, skill)
        wrong = int((~right[sure >= threshold]).sum())
        passed += agreement_low(wrong, held_out, 0.95) >= 0.95
        promised += (expected or 0.0) / 150
    assert passed / 150 >= 0.7
    assert promised > (0.1 if skill > 3 else 0.01)  # few rows seldom show 95 % where three of four are right


@pytest.mark.parametrize("rows", [400, 1500])
def test_a_model_that_is_surer_than_it_should_be_is_kept_out(rows: int) -> None:
    """Its cross-fitted answers look right, and live it is wrong in 8 % of what it dares: 20 runs, 1 passes."""
    random, passed = np.random.default_rng(13), 0
    held_out = rows // 5
    for _ in range(1000):
        wrong = int((random.random(held_out) < 0.08 * 0.95).sum())
        passed += agreement_low(wrong, held_out, 0.95) >= 0.95
    assert passed / 1000 <= 0.05


def test_the_choice_among_candidates_costs_confidence() -> None:
    """Ten candidates that are all just too bad: the luckiest of them passes in one of 20 runs at most."""
    random = np.random.default_rng(17)
    rows, looks = 400, 10
    wrong = random.binomial(rows, 0.05, size=(2000, looks)).min(axis=1)
    shared = 1 - 0.05 / looks
    assert (wrong <= most_wrong_that_pass(rows, 0.05, shared)).mean() <= 0.05
    assert (wrong <= most_wrong_that_pass(rows, 0.05, 0.95)).mean() > 0.2  # what it would be without


# --- bounds ----------------------------------------------------------------------------------------------


def test_the_bound_is_the_exact_one_of_the_binomial() -> None:
    assert agreement_low(0, 59, 0.95) == pytest.approx(0.05 ** (1 / 59))
    assert agreement_low(0, 59, 0.95) >= 0.95 > agreement_low(0, 58, 0.95)
    assert agreement_low(5, 5, 0.95) == 0.0
    assert agreement_low(0, 0, 0.95) == 0.0


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0.01, 0.3), st.floats(0.6, 0.999))
def test_the_most_wrong_that_pass_is_the_last_that_passes(rows: int, margin: float, confidence: float) -> None:
    most = most_wrong_that_pass(rows, margin, confidence)
    assert -1 <= most < rows
    if most >= 0:
        assert agreement_low(most, rows, confidence) >= 1 - margin
    assert agreement_low(most + 1, rows, confidence) < 1 - margin


@pytest.mark.parametrize(("seen", "rows"), [(400, 100), (1000, 250), (4000, 1000)])
def test_the_chance_to_pass_is_how_often_it_passes(seen: int, rows: int) -> None:
    """Of candidates with as many wrong answers in training as this one, that share passes on fresh rows."""
    random = np.random.default_rng(23)
    truth = random.uniform(0, 0.1, size=200_000)
    wrong = random.binomial(seen, truth)
    passes = random.binomial(rows, truth) <= most_wrong_that_pass(rows, 0.05, 0.95)
    for count in (seen // 100, seen // 40):
        alike = wrong == count
        said = float(chance_to_pass(np.array([count]), seen, rows, 0.05, 0.95)[0])
        assert passes[alike].mean() == pytest.approx(said, abs=0.04)


scores = st.lists(st.tuples(st.integers(0, 1000).map(lambda n: n / 1000), st.booleans()), min_size=1, max_size=200)


@settings(deadline=None)
@given(scores, st.integers(1, 500))
def test_above_the_threshold_the_promises_hold_on_what_it_was_chosen_from(
    rows: list[tuple[float, bool]], held_out: int
) -> None:
    sure, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows])
    threshold, expected = choose_threshold((sure, right), POLICY, held_out, 0.95)
    answered = sure >= threshold
    if threshold == NEVER:
        assert expected == 0.0
        return
    assert LEAST <= threshold <= 1
    wrong = int((~right[answered]).sum())
    assert chance_to_pass(np.array([wrong]), len(rows), held_out, POLICY.margin, 0.95)[0] >= POWERS[-1]
    assert wrong / int(answered.sum()) <= 1 - POLICY.answer_agreement + 1e-9
    assert expected == pytest.approx(right[answered].sum() / len(rows))


@pytest.mark.parametrize(("rows", "skill", "target"), [(400, 10.0, 0.95), (1600, 4.0, 0.95), (1600, 30.0, 0.98)])
def test_the_promise_of_the_threshold_is_kept_in_19_of_20_runs(rows: int, skill: float, target: float) -> None:
    """The true agreement above the threshold is known here: the mean of the beta distribution beyond it."""
    random, kept, answered = np.random.default_rng(29), [], []
    policy = TaskPolicy(answer_agreement=target)
    sample = random.beta(skill, 1, size=400_000)
    for _ in range(400):
        threshold, _ = choose_threshold(answers(random, rows, skill), policy, 0, 0.95)
        above = sample[sample >= threshold]
        answered.append(len(above) / len(sample))
        kept.append(len(above) == 0 or bool(above.mean() >= target))
    assert np.mean(kept) >= 0.95 - 3 * (0.05 * 0.95 / 400) ** 0.5
    assert np.mean(answered) > 0.15


def test_a_model_that_is_surer_than_it_should_be_gets_a_threshold_that_its_answers_keep() -> None:
    """It says 97 % where 93 % are right, and 99.5 % where 99 % are: only the latter are answered."""
    random = np.random.default_rng(31)
    sure = np.r_[np.full(800, 0.97), np.full(800, 0.995)]
    right = random.random(1600) < np.r_[np.full(800, 0.93), np.full(800, 0.99)]
    assert choose_threshold((sure, right), POLICY, 0, 0.95)[0] in (0.97, 0.995, NEVER)
    assert most_that_keep(sure[::-1], np.cumsum(~right[::-1]), np.array([800, 1600]), 0.97, 0.95) in (0, 800)


def test_where_the_promise_needs_no_threshold_each_answer_is_as_sure_as_the_promise() -> None:
    sure = np.linspace(0.2, 1.0, 500)
    threshold, _ = choose_threshold((sure, np.ones(500, dtype=bool)), POLICY, 0, 0.95)
    assert 0.95 <= threshold <= 0.98


def test_a_model_that_cannot_tell_how_sure_it_is_answers_everything() -> None:
    assert choose_threshold(None, POLICY, 100, 0.95) == (0.0, None)


def test_a_model_that_was_always_certain_is_not_asked_to_be_more_certain_than_a_model_can_be() -> None:
    """Left out, it was 1.000000 sure of everything, by rounding; live it is 0.9999995 sure."""
    threshold, expected = choose_threshold((np.ones(400), np.ones(400, dtype=bool)), POLICY, 100, 0.95)
    assert (threshold, expected) == (0.999, 1.0)


def test_what_is_unlike_everything_seen_is_never_answered() -> None:
    """Confidence 0 stands for a text unlike all training texts; a perfect model still leaves those alone."""
    sure, right = np.array([0.0] * 90 + [0.97] * 90), np.ones(180, dtype=bool)
    threshold, _ = choose_threshold((sure, right), POLICY, 200, 0.95)
    assert threshold == pytest.approx(0.97)


def test_a_cheaper_candidate_has_a_ratio_below_one_with_room_for_chance() -> None:
    random = np.random.default_rng(3)
    base = random.lognormal(0, 1, 200)
    bound = ratio_high(list(0.5 * base), list(base), mean, 0.95)
    assert bound == pytest.approx(0.5)
    noisy = ratio_high(list(0.5 * random.permutation(base)), list(base), mean, 0.95)
    assert noisy is not None
    assert 0.5 < noisy < 0.8


def test_a_ratio_with_something_missing_is_not_known() -> None:
    assert ratio_high([1.0, None], [1.0, 1.0], mean, 0.95) is None
    assert ratio_high([1.0, 1.0], [None, None], mean, 0.95) is None
    assert ratio_high([1.0], [0.0], mean, 0.95) is None
    assert ratio_high([1.0, None], [2.0, None], mean, 0.95) == 0.5


def test_a_candidate_as_slow_as_the_incumbent_is_not_slower_and_one_of_twice_the_time_is() -> None:
    random = np.random.default_rng(5)
    passed = {1.0: 0, 2.0: 0}
    for _ in range(40):
        base = random.lognormal(6, 0.6, 120)
        for factor in passed:
            again = factor * random.lognormal(6, 0.6, 120)
            bound = ratio_high(list(again), list(base), p95, 0.95)
            passed[factor] += bound is not None and bound <= 1.5
    assert passed[2.0] <= 2
    assert passed[1.0] >= 20
