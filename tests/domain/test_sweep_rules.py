"""A sweep on paper: which candidates a grid gives, what fits into a budget, and which one is hopeless."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import (
    Budget,
    by_trainer,
    checkpoints,
    cost,
    expanded,
    fair_share,
    hopeless,
    overrun,
    refusal,
    settled,
)


def candidate(name: str, state: str = "created", **metrics: float) -> FineTune:
    return FineTune(
        id=name, task="mail", dataset="d", trainer="cloud", options={"base_model": "small"},
        state=FineTuneState(state), remote={"job": f"job-{name}"}, metrics=metrics,
    )  # fmt: skip


# --- which candidates ------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_a_list_of_grids_their_sum() -> None:
    assert expanded({"base_model": ["a", "b"], "n_epochs": [1, 3], "seed": 7}) == [
        {"base_model": "a", "n_epochs": 1, "seed": 7},
        {"base_model": "a", "n_epochs": 3, "seed": 7},
        {"base_model": "b", "n_epochs": 1, "seed": 7},
        {"base_model": "b", "n_epochs": 3, "seed": 7},
    ]
    assert expanded([{"c": [1.0, 3.0]}, {"c": 3.0}, {}]) == [{"c": 1.0}, {"c": 3.0}, {}]
    assert expanded({"target_modules": [["q", "v"]]}) == [{"target_modules": ["q", "v"]}]


def test_a_sweep_file_goes_by_trainer_or_by_grids_that_name_theirs() -> None:
    grid: dict[str, Any] = {"learning_rate": [1e-4, 1e-5]}
    both = [{"learning_rate": 1e-4}, {"learning_rate": 1e-5}]
    assert by_trainer({"here": grid, "there": [grid]}) == {"here": both, "there": both}
    assert by_trainer([{"trainer": ["here", "there"], **grid}]) == {"here": both, "there": both}


@pytest.mark.parametrize(
    "wrong", [None, [], {}, "classifier", [{"c": 1}], {"classifier": "word"}, {"c": []}, {"c": [3]}]
)
def test_what_is_no_sweep_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="no trainers with lists of options"):
        by_trainer(wrong)


def test_an_option_without_a_value_is_named() -> None:
    with pytest.raises(ValueError, match="'n_epochs' has no value"):
        by_trainer({"cloud": {"n_epochs": []}})


@given(st.dictionaries(st.text(max_size=3), st.lists(st.integers(), min_size=1, max_size=4), max_size=4))
def test_a_grid_of_distinct_values_has_the_product_of_their_numbers(grid: dict[str, list[int]]) -> None:
    found = expanded(grid)
    assert len(found) == math.prod(len(set(values)) for values in grid.values())
    assert all(options[name] in grid[name] for options in found for name in grid)


def test_of_two_long_lists_each_trainer_gives_its_first_ones() -> None:
    many = [{"number": number} for number in range(8)]
    shared = fair_share({"here": many, "there": many, "one": many[:1]})
    assert {name: len(options) for name, options in shared.items()} == {"here": 5, "there": 4, "one": 1}
    assert shared["there"] == many[:4]


# --- the budget ------------------------------------------------------------------------------------------


def test_nothing_is_started_that_does_not_fit_into_what_is_left() -> None:
    sweep = [
        candidate("over", "succeeded", estimated_usd=9.0, cost_usd=4.0),
        candidate("under way", "running", estimated_usd=3.0),
        candidate("failed", "failed", estimated_usd=50.0),
        candidate("dear", estimated_usd=3.5),
        candidate("cheap", estimated_usd=2.5),
    ]
    budget = Budget(usd=10.0)
    assert refusal(sweep[3], sweep, budget, 0.0) == "not started: about 3.50 USD, and 3.00 of 10.00 USD are left"
    assert refusal(sweep[4], sweep, budget, 0.0) is None
    assert refusal(sweep[3], sweep, Budget(), 1e9) is None


def test_what_has_no_price_is_not_started_on_a_budget() -> None:
    assert "it has no price" in (refusal(candidate("a"), [], Budget(usd=1e6), 0.0) or "")
    assert refusal(candidate("a", estimated_usd=0.0), [], Budget(usd=0.0), 0.0) is None


def test_nothing_is_started_that_would_not_end_in_time() -> None:
    one = candidate("a", estimated_hours=2.0)
    assert refusal(one, [one], Budget(hours=5.0), 3.0) is None
    assert refusal(one, [one], Budget(hours=5.0), 3.5) == "not started: about 2 h, and 1.5 of 5 h are left"
    assert refusal(candidate("unknown"), [], Budget(hours=5.0), 5.0) is not None


def test_what_still_trains_when_the_hours_are_over_has_overrun() -> None:
    one = candidate("a", "running", estimated_hours=1.0)
    assert overrun(one, [one], Budget(hours=2.0), 1.99) is None
    assert overrun(one, [one], Budget(hours=2.0), 2.01) == "over budget: still training after 2 h"


def test_a_price_that_the_service_tells_while_it_trains_can_overrun() -> None:
    dear = candidate("a", "running", estimated_usd=2.0, cost_usd=12.0)
    assert overrun(dear, [dear], Budget(usd=10.0), 0.0) == "over budget: 12.00 of 10.00 USD"
    assert overrun(dear, [dear], Budget(usd=13.0), 0.0) is None


def test_the_cost_is_settled_by_the_tokens_that_were_trained() -> None:
    ended = candidate("a", "succeeded", estimated_usd=2.0, estimated_tokens=1000.0, trained_tokens=1500.0)
    assert settled(ended).metrics["cost_usd"] == 3.0
    stopped = candidate("a", "cancelled", estimated_usd=2.0, estimated_tokens=1000.0)
    assert settled(stopped).metrics["cost_usd"] == 2.0
    assert settled(stopped.but(remote={})).metrics["cost_usd"] == 0.0
    assert settled(candidate("a", "failed", estimated_usd=2.0)).metrics["cost_usd"] == 0.0
    assert "cost_usd" not in settled(candidate("a", "running", estimated_usd=2.0)).metrics


def test_what_is_trained_has_its_price_also_while_a_person_has_to_deploy_it() -> None:
    trained = candidate("a", "waiting", estimated_usd=2.0)
    assert trained.remote.get("job")
    assert cost(trained) == 2.0
    assert cost(trained.but(remote={})) == 0.0  # files that somebody else trains on


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 2)), max_size=12),
    st.floats(0, 100),
)
def test_as_long_as_estimates_are_not_too_low_a_budget_holds(given: list[tuple[float, float]], usd: float) -> None:
    """Candidates one after the other, each of which costs what was expected, or less."""
    done: list[FineTune] = []
    for number, (expected, share) in enumerate(given):
        one = candidate(str(number), estimated_usd=expected, estimated_tokens=100.0)
        if refusal(one, done, Budget(usd=usd), 0.0) is None:
            tokens = 100.0 * min(share, 1.0)
            done.append(
                settled(one.but(state=FineTuneState.SUCCEEDED, metrics=one.metrics | {"trained_tokens": tokens}))
            )
    assert sum(map(cost, done)) <= usd + 1e-6


# --- stopping early --------------------------------------------------------------------------------------


def ran(name: str, *losses: float, **more: Any) -> FineTune:
    """A candidate with the validation loss of each epoch so far."""
    metrics = {f"valid_loss_epoch_{at}": loss for at, loss in enumerate(losses, start=1)}
    return candidate(name, "running", **metrics).but(**more)


def test_one_in_the_worse_half_and_far_from_the_best_is_stopped() -> None:
    sweep = [ran("a", 0.5), ran("b", 0.6), ran("c", 0.7), ran("d", 0.9)]
    assert hopeless(sweep[3], sweep) == "stopped early: validation loss 0.9 after epoch 1, the best has 0.5"
    assert hopeless(sweep[2], sweep) is not None
    assert hopeless(sweep[1], sweep) is None
    assert hopeless(sweep[0], sweep) is None


def test_near_ties_and_small_fields_stop_nobody() -> None:
    close = [ran("a", 0.50), ran("b", 0.51), ran("c", 0.52), ran("d", 0.54)]
    assert [hopeless(one, close) for one in close] == [None] * 4
    few = [ran("a", 0.5), ran("b", 0.6), ran("c", 9.0), ran("late")]
    assert hopeless(few[2], few) is None


def test_only_the_same_number_of_epochs_and_the_same_base_model_are_compared() -> None:
    early = [ran("a", 0.5, 0.2), ran("b", 0.5, 0.2), ran("c", 0.5, 0.2), ran("d", 0.5)]
    assert hopeless(early[3], early) is None
    others = [ran(name, 0.1, options={"base_model": "large"}) for name in "abc"]
    assert hopeless(ran("d", 0.9), others) is None


def test_between_the_rungs_nobody_is_judged_anew() -> None:
    """At epoch 3 the loss is compared at rung 2."""
    sweep = [ran("a", 0.5, 0.4, 0.1), ran("b", 0.5, 0.4, 0.1), ran("c", 0.5, 0.4, 0.1), ran("d", 0.5, 0.4, 9.9)]
    assert hopeless(sweep[3], sweep) is None


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12))
def test_the_best_and_the_better_half_are_never_stopped(losses: list[float]) -> None:
    sweep = [ran(str(at), loss) for at, loss in enumerate(losses)]
    stopped = [one for one in sweep if hopeless(one, sweep)]
    assert len(stopped) <= len(sweep) / 2
    assert all(one.metrics["valid_loss_epoch_1"] > min(losses) for one in stopped)


# --- models of earlier epochs ----------------------------------------------------------------------------


def test_an_earlier_epoch_is_a_candidate_unless_its_loss_is_worse() -> None:
    done = candidate("a", "succeeded", valid_loss_step_10=0.9, valid_loss_step_20=0.4, valid_loss_step_30=0.5).but(
        model="m", remote={"checkpoint_10": "m:10", "checkpoint_20": "m:20", "checkpoint_30": "m"}
    )
    (better,) = checkpoints(done)
    assert (better.id, better.model, better.state) == ("a-step-20", "m:20", FineTuneState.SUCCEEDED)
    assert better.options == {"base_model": "small", "checkpoint": "step 20"}
    assert cost(better) == 0.0
    unknown = done.but(metrics={})
    assert [one.model for one in checkpoints(unknown)] == ["m:10", "m:20"]
    assert checkpoints(done.but(state=FineTuneState.FAILED)) == []
