"""How many of the teacher's answers are wrong, and which ones probably are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gateway.student import Scores, softmax
from gateway.trainers.classifier.features import Labels

_SHARPNESS = np.geomspace(0.3, 40, 60)
_ROUNDS = 100
FEW = 4


class Noise(NamedTuple):
    """`share` of all answers that are wrong; `trust` (rows,) is the probability that a row's answer is meant."""

    share: float
    trust: Scores


def estimate(scores: Scores, answers: Labels) -> Noise:
    """From scores (rows, labels) of heads that have not seen the row.

    A mixture is fitted by maximum likelihood: with probability 1 - e the teacher answers as the softmax of the
    scores at some temperature says, else any label at random (the e-step and m-step of Dempster, Laird and Rubin
    1977). Honest doubt between labels ends up in the temperature, an answer that makes no sense in e. Rows of
    small trust are those that confident learning (Northcutt et al. 2021) would prune. Errors that always take one
    label for the same other one look like knowledge, and are not found.

    Of a label with fewer than `FEW` rows the heads know too little to doubt an answer: those rows are trusted.
    """
    labels = scores.shape[1]
    judged = np.flatnonzero(np.bincount(answers, minlength=labels)[answers] >= FEW)
    trust = np.ones(len(answers))
    if len(judged) == 0:
        return Noise(0.0, trust)
    fits = []
    for sharpness in _SHARPNESS:
        meant = softmax(scores[judged], float(sharpness))[np.arange(len(judged)), answers[judged]]
        blind = blind_share(meant, labels)
        fits.append((float(np.log((1 - blind) * meant + blind / labels).sum()), blind, meant))
    _, blind, meant = max(fits, key=lambda fit: fit[0])
    trust[judged] = (1 - blind) * meant / ((1 - blind) * meant + blind / labels)
    return Noise(blind * (labels - 1) / labels, trust)


def blind_share(meant: Scores, labels: int) -> float:
    """The share of blind answers under which these probabilities (rows,) of the given answers are likeliest."""
    share = 0.1
    for _ in range(_ROUNDS):
        blind = share / labels
        better = float((blind / ((1 - share) * meant + blind)).mean())
        if abs(better - share) < 1e-6:
            break
        share = better
    return share
