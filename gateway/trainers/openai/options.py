"""What a candidate and a sweep may set."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.trainers.elsewhere import candidate_options, default_epochs

Epochs = Annotated[int, Meta(ge=1, le=50)] | Literal["auto"]
LearningRate = Annotated[float, Meta(gt=0)] | Literal["auto"]
BatchSize = Annotated[int, Meta(ge=1, le=256)] | Literal["auto"]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate. Ranges are those of the OpenAI API; `auto` leaves the choice to the service."""

    base_model: str
    n_epochs: Epochs = "auto"
    learning_rate_multiplier: LearningRate = "auto"
    batch_size: BatchSize = "auto"
    seed: int | None = None
    suffix: str = ""


class Sweep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer's `options` in the config: the default candidates, and how long an outage is waited out.

    Candidates are every combination of the lists. Without `n_epochs`, the service's own default for the
    number of rows, and twice that.
    """

    base_models: tuple[str, ...] = ("gpt-4.1-mini-2025-04-14", "gpt-4.1-nano-2025-04-14")
    n_epochs: tuple[Epochs, ...] = ()
    learning_rate_multipliers: tuple[LearningRate, ...] = ("auto", 0.5)
    batch_size: BatchSize = "auto"
    seed: int | None = None
    suffix: str = ""
    outage_hours: Annotated[float, Meta(ge=0)] = 72.0

    def candidates(self, rows: int) -> list[dict[str, Any]]:
        """Every base model with every number of epochs and every learning rate."""
        usual = default_epochs(rows)
        epochs = self.n_epochs or sorted({usual, min(50, 2 * usual)})
        fixed = {"batch_size": self.batch_size, "seed": self.seed, "suffix": self.suffix}
        fixed = {name: value for name, value in fixed.items() if value not in ("auto", None, "")}
        return [
            {"base_model": model, "n_epochs": n, "learning_rate_multiplier": rate, **fixed}
            for model, n, rate in product(self.base_models, epochs, self.learning_rate_multipliers)
        ]

    def length(self, options: dict[str, Any], rows: int) -> tuple[str, int]:
        """The base model of a candidate, and how many epochs it has with so many rows.

        Raises:
            Failure: the options are wrong.
        """
        chosen = options_of(options)
        return chosen.base_model, default_epochs(rows) if chosen.n_epochs == "auto" else chosen.n_epochs


def options_of(options: dict[str, Any]) -> Options:
    """The options of a candidate, checked.

    Raises:
        Failure: a key is not known, is missing or has a value out of range.
    """
    return candidate_options(options, Options)
