"""How sure a model was of its answer, by the log-probabilities of the answer's tokens."""

from __future__ import annotations

import math
from typing import Any

from gateway.providers.answers import Choice

_ENDED = ("stop", "eos")  # the second is Together's word
_NEVER = -9999.0
"""The log-probability of what never comes, as servers write it; some write an infinite one."""
_ABOVE_ALL = 0.01
"""Above 0, the log-probability of a certain token, by more than rounding."""


def confidence_of(choice: Choice) -> float | None:
    """The probability of the whole text, 0 to 1: the product of its tokens' (OpenAI API reference, "logprobs").

    None where it cannot be told: no log-probabilities, or not of the whole text; something else than a text (a
    refusal, calls of tools); a text that did not end by itself.
    """
    plain = choice.text and not (choice.refusal or choice.tool_calls) and choice.finish_reason in _ENDED
    told = choice.logprobs.get("content") if isinstance(choice.logprobs, dict) else None
    if not plain or not isinstance(told, list):
        return None
    tokens = [_token(one) for one in told]
    if not tokens or None in tokens:
        return None
    known = [one for one in tokens if one is not None]
    if sum(length for length, _ in known) < len(choice.text.encode("utf-8", "surrogatepass")):
        return None
    return math.exp(min(0.0, math.fsum(logprob for _, logprob in known)))


def _token(one: Any) -> tuple[int, float] | None:
    """Its length in bytes, and its log-probability."""
    if not isinstance(one, dict):
        return None
    logprob, spelled, text = one.get("logprob"), one.get("bytes"), one.get("token")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob < _ABOVE_ALL:
        return None  # no number, or of no probability
    known = float(max(logprob, _NEVER))
    if isinstance(spelled, list):
        return len(spelled), known
    return (len(text.encode("utf-8", "surrogatepass")), known) if isinstance(text, str) else None
