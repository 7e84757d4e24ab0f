"""From raw scores to probabilities that mean what they say."""

from __future__ import annotations

import numpy as np

from gateway.student import Calibration, Floats, Scores, log_odds, softmax
from gateway.trainers.classifier.features import Labels


def calibrate(scores: Scores, closeness: Floats, answers: Labels) -> Calibration:
    """Temperature first (Guo et al. 2017, "On Calibration of Modern Neural Networks"), then a logistic curve from
    the top label's odds and its closeness to "the top label is right" (Platt 1999)."""
    sharpness = fit_sharpness(scores, answers)
    odds = softmax(scores, sharpness)
    right = (odds.argmax(axis=1) == answers).astype(np.float64)
    inputs = np.column_stack([np.ones(len(answers)), log_odds(odds.max(axis=1)), closeness])
    return Calibration(sharpness, *map(float, fit_curve(inputs, right, np.array([0.0, 1.0, 0.0]))))


def fit_curve(inputs: Scores, right: Scores, prior: Scores) -> Scores:
    """The coefficients (columns,) of logistic regression, drawn towards `prior` by about one row's weight."""

    def loss(curve: Scores) -> float:
        margin = inputs @ curve
        return float((np.logaddexp(0, margin) - right * margin).sum() + ((curve - prior) ** 2).sum() / 2)

    curve = prior
    for _ in range(50):  # Newton's method; a step that does not help is halved
        chance = 1 / (1 + np.exp(-np.clip(inputs @ curve, -50, 50)))
        gradient = inputs.T @ (chance - right) + (curve - prior)
        hessian = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.eye(len(prior))
        step = np.linalg.solve(hessian, gradient)
        while loss(curve - step) > loss(curve) and np.abs(step).max() > 1e-9:
            step = step / 2
        curve = curve - step
    return curve


def log_loss(scores: Scores, answers: Labels, sharpness: float) -> float:
    """The mean of -ln of the probability (at least 1e-12) that the scores (rows, labels) give to each answer."""
    odds = softmax(scores, sharpness)[np.arange(len(answers)), answers]
    return float(-np.log(np.maximum(odds, 1e-12)).mean())


def fit_sharpness(scores: Scores, answers: Labels) -> float:
    """The inverse temperature with the least log loss."""

    def loss(log_sharpness: float) -> float:
        return log_loss(scores, answers, float(np.exp(log_sharpness)))

    low, high = float(np.log(0.05)), float(np.log(100.0))
    for _ in range(40):  # ternary search: the loss has one valley, being convex in the sharpness
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))
