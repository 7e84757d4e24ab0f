"""What a candidate and a sweep may set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.trainers.openai.failures import Failure

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


def options_of(options: dict[str, Any]) -> Options:
    """The options of a candidate, checked.

    Raises:
        Failure: a key is not known, is missing or has a value out of range.
    """
    valid = Options.__struct_fields__
    if unknown := sorted(options.keys() - set(valid)):
        reason = f"option {unknown[0]!r} is not known; valid options: {', '.join(valid)}"
        raise Failure("invalid_options", reason)
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        raise Failure("invalid_options", str(error)) from None


def default_epochs(rows: int) -> int:
    """The epochs that the service picks by itself for this many rows.

    Source: the public cookbook on preparing chat fine-tuning data: 3, more below 34 rows, fewer above 8,333.
    """
    if 3 * rows < 100:
        return min(25, 100 // max(rows, 1))
    return max(1, 25_000 // rows) if 3 * rows > 25_000 else 3
