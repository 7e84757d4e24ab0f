"""What a candidate of the embedded classifier may set."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate of the sweep may set.

    `embedding` names a sentence embedding of `gateway.embeddings` (or the folder of one) whose vectors stand beside
    the n-grams; empty: none. `c` is the inverse strength of regularisation, 0 for the head's usual one. `balance`
    (0..1) is how far rare labels are weighed up to the frequent ones. `label_names` is the weight of a label's own
    name as one more example of it, which helps where examples are few. `robust` weighs down rows whose answer is
    probably wrong. `seed` decides folds and the solver's order.
    """

    features: Literal["word", "char", "word+char"] = "word+char"
    embedding: str = ""
    head: Literal["lr", "svc"] = "svc"
    c: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    balance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    label_names: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    robust: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
