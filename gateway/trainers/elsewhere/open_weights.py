"""What the services that tune open weights have in common: what a candidate sets, and the sweep over it."""

from __future__ import annotations

from datetime import datetime
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from gateway.trainers.elsewhere import candidate_options, default_epochs

LearningRate = Annotated[float, Meta(gt=0)] | Literal["auto"]
Rank = Annotated[int, Meta(ge=1)] | Literal["auto"]
Epochs = Annotated[int, Meta(ge=1)]


class OpenOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate; `auto` leaves the choice to the service. `lora_rank` is that of the adapter's matrices."""

    base_model: Annotated[str, Meta(min_length=1)]
    n_epochs: Epochs = 3
    learning_rate: LearningRate = "auto"
    lora_rank: Rank = "auto"


class OpenSweep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The default candidates, every combination of the lists. Without `n_epochs`, a usual number for the rows, and
    twice that. `outage_hours`: so long an outage of the service is waited out. `one`: what a candidate may set."""

    one: ClassVar[type[OpenOptions]]
    base_models: Annotated[tuple[str, ...], Meta(min_length=1)]
    n_epochs: tuple[Epochs, ...] = ()
    learning_rates: Annotated[tuple[LearningRate, ...], Meta(min_length=1)] = ("auto", 1e-4)
    lora_ranks: Annotated[tuple[Rank, ...], Meta(min_length=1)] = ("auto",)
    outage_hours: Annotated[float, Meta(ge=0)] = 72.0

    def candidates(self, rows: int) -> list[dict[str, Any]]:
        """Every combination of the lists."""
        usual = default_epochs(rows)
        epochs = self.n_epochs or (usual, 2 * usual)
        return [
            {"base_model": model, "n_epochs": n, "learning_rate": rate, "lora_rank": rank}
            for model, n, rate, rank in product(self.base_models, epochs, self.learning_rates, self.lora_ranks)
        ]

    def length(self, options: dict[str, Any], rows: int) -> tuple[str, int]:
        """The base model of a candidate, and its epochs.

        Raises:
            Failure: the options are wrong.
        """
        chosen = candidate_options(options, self.one)
        return chosen.base_model, chosen.n_epochs


def seconds_between(start: object, end: object) -> float | None:
    """Seconds between two ISO 8601 times; None where one of them is none."""
    try:
        return (datetime.fromisoformat(str(end)) - datetime.fromisoformat(str(start))).total_seconds()
    except (ValueError, TypeError):
        return None
