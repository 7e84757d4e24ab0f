"""A sweep: which candidates are tried, what that may cost, and when one is not worth going on with."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import msgspec

from gateway.domain.finetune import FineTune, FineTuneState

Options = dict[str, Any]
Sweep = Mapping[str, Sequence[Options]]
"""Trainer name -> the options of each of its candidates."""

MOST_CANDIDATES = 10
"""So many candidates does a default sweep have at most."""
LEAST_RIVALS = 3
"""So many others must have come as far before one is stopped early."""
HOPELESS = 1.1
"""A loss by so much above the best one's is no chance difference."""

RUNG = "valid_loss_epoch_"
"""The metric that holds the validation loss after so many whole epochs."""
STEP = "valid_loss_step_"
"""The metric that holds the validation loss of the checkpoint of that step."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to train one candidate, before it starts. None: not known."""

    usd: float | None = None
    hours: float | None = None
    tokens: int | None = None

    def metrics(self) -> dict[str, float]:
        """As it is kept with the candidate."""
        named = {"estimated_usd": self.usd, "estimated_hours": self.hours, "estimated_tokens": self.tokens}
        return {name: float(value) for name, value in named.items() if value is not None}


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep may cost in all, in US dollars and in hours of work. None: no limit."""

    usd: float | None = None
    hours: float | None = None


# --- which candidates ------------------------------------------------------------------------------------


def expanded(grids: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Options]:
    """The candidates of a grid, or of a list of grids: every combination of the values that are lists.

    A value that is itself a list is written as a list in a list.

    Raises:
        ValueError: a list without a value, or a name that is no text.
    """
    found = [options for grid in ([grids] if isinstance(grids, Mapping) else grids) for options in _combined(grid)]
    return [options for at, options in enumerate(found) if options not in found[:at]]


def _combined(grid: Mapping[str, Any]) -> Iterator[Options]:
    for name, value in grid.items():
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name of an option")
        if isinstance(value, list | tuple) and not value:
            raise ValueError(f"option {name!r} has no value to try")
    lists = [value if isinstance(value, list | tuple) else [value] for value in grid.values()]
    return (dict(zip(grid, values, strict=True)) for values in product(*lists))


def by_trainer(value: Any) -> dict[str, list[Options]]:
    """The candidates of a sweep file: `{trainer: grid or list of grids}`, or a list of grids that each name
    their `trainer` (or several).

    Raises:
        ValueError: it is neither; says what is wrong.
    """
    if isinstance(value, Mapping):
        wrong = [name for name, grids in value.items() if not _is_grid(grids)]
        if not wrong and value:
            return {str(name): expanded(grids) for name, grids in value.items()}
    elif isinstance(value, list) and value and all(isinstance(g, Mapping) and "trainer" in g for g in value):
        found: dict[str, list[Options]] = {}
        for options in expanded(value):
            name = str(options.pop("trainer"))
            found.setdefault(name, []).append(options)
        return found
    raise ValueError("no trainers with lists of options")


def _is_grid(value: Any) -> bool:
    many = value if isinstance(value, list) else [value]
    return bool(many) and all(isinstance(grid, Mapping) for grid in many)


def fair_share(sweep: Sweep, most: int = MOST_CANDIDATES) -> dict[str, list[Options]]:
    """So many candidates at most: by turns the first, the second, ... of each trainer."""
    turns = [
        (place, name) for name, many in sweep.items() for place in range(len(many))
    ]  # fmt: skip
    names = list(sweep)
    kept = sorted(turns, key=lambda turn: (turn[0], names.index(turn[1])))[:most]
    counts = {name: sum(owner == name for _, owner in kept) for name in sweep}
    return {name: list(many[: counts[name]]) for name, many in sweep.items()}


# --- what it costs ---------------------------------------------------------------------------------------


def cost(finetune: FineTune) -> float:
    """US dollars that a candidate has cost, or, as long as that is not known, may: the estimate counts from its
    start, and whole for one that was cancelled. One that failed is not paid for, unless the service says so."""
    known = finetune.metrics.get("cost_usd")
    if known is not None:
        return known
    if finetune.state in (FineTuneState.CREATED, FineTuneState.FAILED):
        return 0.0
    if finetune.state in (FineTuneState.CANCELLED, FineTuneState.WAITING) and not finetune.remote.get("job"):
        return 0.0
    return finetune.metrics.get("estimated_usd", 0.0)


def settled(finetune: FineTune) -> FineTune:
    """A candidate at its end, with what it has cost: by the tokens that were trained, where the service tells."""
    metrics = finetune.metrics
    trained, expected = metrics.get("trained_tokens"), metrics.get("estimated_tokens")
    if not finetune.state.final or "cost_usd" in metrics or "estimated_usd" not in metrics:
        return finetune
    usd = metrics["estimated_usd"] * trained / expected if trained and expected else cost(finetune)
    return finetune.but(metrics=metrics | {"cost_usd": usd})


def refusal(finetune: FineTune, sweep: Sequence[FineTune], budget: Budget, hours: float) -> str | None:
    """Why a candidate must not be started: nothing is started that is not expected to fit into what is left.
    `hours` have been worked on this sweep."""
    if budget.usd is not None:
        usd, left = finetune.metrics.get("estimated_usd"), budget.usd - sum(map(cost, sweep))
        if usd is None:
            return "not started: it has no price, and the sweep has a budget; see trainers.NAME.prices"
        if usd > left + 1e-9:
            return f"not started: about {usd:.2f} USD, and {max(left, 0):.2f} of {budget.usd:.2f} USD are left"
    if budget.hours is not None:
        need, left = finetune.metrics.get("estimated_hours", 0.0), budget.hours - hours
        if left <= 0 or need > left:
            return f"not started: about {need:.2g} h, and {max(left, 0):.2g} of {budget.hours:g} h are left"
    return None


def overrun(finetune: FineTune, sweep: Sequence[FineTune], budget: Budget, hours: float) -> str | None:
    """Why a candidate in training must be cancelled: it has used up what was left when it started."""
    if budget.hours is not None and hours > budget.hours:
        return f"over budget: still training after {budget.hours:g} h"
    if budget.usd is not None and "cost_usd" in finetune.metrics:
        spent = sum(map(cost, sweep))
        if spent > budget.usd:
            return f"over budget: {spent:.2f} of {budget.usd:.2f} USD"
    return None


# --- when to stop early ----------------------------------------------------------------------------------


def hopeless(finetune: FineTune, sweep: Sequence[FineTune]) -> str | None:
    """Why it is not worth training on: asynchronous successive halving.

    At the rungs of 1, 2, 4, 8, ... whole epochs a candidate stays when its validation loss is in the better half
    of all that have come as far, itself included, or within a tenth of the best. Only candidates of the same
    trainer and base model are compared, since a loss per token means something else with another vocabulary, and
    only when three others have come as far.

    Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", with eta 2.
    """
    rung = max((epoch for epoch in _epochs(finetune) if epoch & (epoch - 1) == 0), default=0)
    if not rung:
        return None
    name = f"{RUNG}{rung}"
    rivals = [one.metrics[name] for one in sweep if _alike(one, finetune) and name in one.metrics]
    own = finetune.metrics[name]
    if len(rivals) < LEAST_RIVALS or own <= statistics.median([own, *rivals]) or own <= HOPELESS * min(rivals):
        return None
    return f"stopped early: validation loss {own:.3g} after epoch {rung}, the best has {min(rivals):.3g}"


def _epochs(finetune: FineTune) -> Iterator[int]:
    return (int(name.removeprefix(RUNG)) for name in finetune.metrics if name.startswith(RUNG))


def _alike(one: FineTune, other: FineTune) -> bool:
    same_model = one.options.get("base_model") == other.options.get("base_model")
    return one.id != other.id and one.trainer == other.trainer and same_model


# --- models of earlier epochs ----------------------------------------------------------------------------


def checkpoints(finetune: FineTune) -> list[FineTune]:
    """The models of earlier epochs that are candidates too: those whose validation loss is not above that of
    the model at the end, or not known."""
    if finetune.state is not FineTuneState.SUCCEEDED:
        return []
    steps = {name.removeprefix("checkpoint_"): model for name, model in finetune.remote.items()
             if name.startswith("checkpoint_")}  # fmt: skip
    last = next((step for step, model in steps.items() if model == finetune.model), None)
    at_end = finetune.metrics.get(f"{STEP}{last}", float("inf"))
    return [
        finetune.but(
            id=f"{finetune.id}-step-{step}", model=model, remote={}, metrics={"cost_usd": 0.0},
            options=finetune.options | {"checkpoint": f"step {step}"},
        )
        for step, model in sorted(steps.items(), key=lambda item: int(item[0]))
        if model != finetune.model and finetune.metrics.get(f"{STEP}{step}", at_end) <= at_end
    ]  # fmt: skip
