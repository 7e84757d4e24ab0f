"""What a candidate of the embedded classifier may set."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate of the sweep may set.

    `features` are n-grams of words, of characters, or both; `pair` are words cut to five letters and pairs of them.
    `head` is what learns: `svc` (large margins), `lr` (logistic regression), `nb` (complement naive Bayes),
    `centroid` (the mean of each label's rows), `net` (small neural networks for words and for characters, or one
    for the embedding) or `blend` (`svc` and `net`). `embedding` names a sentence embedding of `gateway.embeddings`
    (or the folder of one) whose vectors stand beside the n-grams; empty: none. `c` is the inverse strength of
    regularisation, 0 for the head's usual one; only `svc`, `lr` and `blend` have one. `balance` (0..1) is how far
    rare labels are weighed up to the frequent ones. `label_names` is the weight of a label's own name as one more
    example of it, which helps where examples are few. `robust` weighs down rows whose answer is probably wrong.
    `seed` decides folds, the solver's order and the networks' first weights.
    """

    features: Literal["word", "char", "word+char", "pair+char"] = "word+char"
    embedding: str = ""
    head: Literal["svc", "lr", "nb", "centroid", "net", "blend"] = "svc"
    c: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    balance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    label_names: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    robust: bool = True
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
