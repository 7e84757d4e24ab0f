"""The review queue: which recorded answers are most worth a person's look, the most valuable first.

An input's worth is the sum of what speaks for it:

- `rejected`, 4: somebody has said that the answer is wrong, and not what would be right.
- `differing answers`, up to 3: the same input was answered differently; the normalised entropy of its answers
  (query by committee: Seung, Opper and Sompolinsky 1992).
- `candidate disagrees`, up to 2: a candidate that has not seen the input answers otherwise; its confidence
  (confident learning: Northcutt, Jiang and Chuang 2021).
- `unsure`, up to 1: one minus that candidate's confidence (uncertainty sampling: Lewis and Gale 1994).
- `rare answer`, up to 1: how far below an even share of the inputs its answer's is, over the root of its number;
  only where answers repeat.

Equal ones come in the order of their ids, so that the same store gives the same queue. What a person has labelled
or approved is out of it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.domain.exchange import Exchange
from gateway.domain.feedback import correction
from gateway.domain.template import Inputs, PromptTemplate
from gateway.encoding import decoded
from gateway.pipeline.records import recorded
from gateway.providers import load

NEWEST = 5_000
"""So many of a task's newest exchanges are looked through."""
LEAST_WORTH = 0.1
"""What is worth less is in no doubt."""
_OPENAI = load("openai")


class Opinion(msgspec.Struct, frozen=True):
    """What a candidate would answer, and how sure it is (0 to 1)."""

    answer: str
    confidence: float


class Reviewable(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded input with its answer. `settled`: a person has labelled or approved it; `rejected`: has said that
    it is wrong; `learnt`: the answer is one that training rows are made of, so that an approval of it counts."""

    id: str
    text: str
    answer: str
    settled: bool = False
    rejected: bool = False
    learnt: bool = True


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """One input of the queue, by its newest exchange with the answer that it got most. `answers` counts all that
    it got; `why` says what makes up its `worth`; `opinion` is a candidate's answer, where one was asked."""

    exchange_id: str
    input: str
    answer: str
    worth: float
    why: tuple[str, ...]
    answers: dict[str, int]
    learnt: bool = True
    opinion: Opinion | None = None


def queue(
    seen: Sequence[Reviewable], opinion: Callable[[Reviewable], Opinion | None], least: float = LEAST_WORTH
) -> list[Doubt]:
    """The inputs that are worth `least` or more, the most valuable first."""
    groups: dict[str, list[Reviewable]] = defaultdict(list)
    for one in seen:
        groups[one.text].append(one)
    counts = Counter(group[-1].answer for group in groups.values())
    closed = sum(count for count in counts.values() if count > 1) >= len(groups) / 2
    doubts = [
        _doubt(group, opinion, counts if closed else Counter())
        for group in groups.values()
        if not any(one.settled for one in group)
    ]
    return sorted(
        (doubt for doubt in doubts if doubt.worth >= least), key=lambda doubt: (-doubt.worth, doubt.exchange_id)
    )


def _doubt(group: Sequence[Reviewable], ask: Callable[[Reviewable], Opinion | None], counts: Counter[str]) -> Doubt:
    answers = Counter(one.answer for one in group)
    # An exchange that was said to be wrong is the one to put right.
    shown = max(group, key=lambda one: (one.rejected, answers[one.answer], one.learnt, one.id))
    opinion = ask(shown)
    parts = {
        "rejected": 4.0 * shown.rejected,
        "differing answers": 3 * _entropy(answers),
        "candidate disagrees": 2 * opinion.confidence if opinion and opinion.answer != shown.answer else 0.0,
        "unsure": 1 - opinion.confidence if opinion else 0.0,
        "rare answer": _rarity(counts, shown.answer),
    }
    return Doubt(
        exchange_id=shown.id, input=shown.text, answer=shown.answer, worth=round(sum(parts.values()), 4),
        why=tuple(name for name, value in parts.items() if value >= LEAST_WORTH),
        answers=dict(answers.most_common()), learnt=shown.learnt, opinion=opinion,
    )  # fmt: skip


def _rarity(counts: Counter[str], answer: str) -> float:
    """From 0 (as frequent as others, or free text) to 1."""
    if not counts[answer]:
        return 0.0
    even = counts.total() / len(counts)
    return max(0.0, 1 - counts[answer] / even) / math.sqrt(counts[answer])


def _entropy(answers: Counter[str]) -> float:
    """From 0 (all the same) to 1 (all different)."""
    if len(answers) < 2:
        return 0.0
    total = answers.total()
    bits = -sum(count / total * math.log2(count / total) for count in answers.values())
    return bits / math.log2(total)


# --- what is recorded ------------------------------------------------------------------------------------


def reviewable(
    exchange: Exchange, templates: Sequence[PromptTemplate], said: Mapping[str, Any], teacher: str | None
) -> Reviewable | None:
    """The exchange as a person may judge it; None where it is no whole answer in text to one of these prompts.
    `teacher` is the `upstream/model` whose answers are learnt."""
    inputs, answer = inputs_of(exchange, templates), answer_of(exchange)
    if inputs is None or answer is None:
        return None
    score = said.get("score", 0)
    settled = correction(said) is not None or score > 0
    target = exchange.target or f"{exchange.provider}/{exchange.model_requested}"
    return Reviewable(
        id=exchange.id, text=inputs.text, answer=answer, settled=settled, rejected=score < 0 and not settled,
        learnt=not exchange.stripped and target == teacher,
    )  # fmt: skip


def inputs_of(exchange: Exchange, templates: Sequence[PromptTemplate]) -> Inputs | None:
    """What is left of the request without its prompt, whichever of the templates it was made with."""
    request = recorded(exchange)
    if request is None or not exchange.complete or exchange.truncated:
        return None
    return next((found for template in templates if (found := template.strip(request.body)) is not None), None)


def answer_of(exchange: Exchange) -> str | None:
    """The text of a whole answer; None where it failed, or is no text (a tool call)."""
    if exchange.status is None or not 200 <= exchange.status < 300:
        return None
    body = decoded(exchange.response, exchange.response_headers.get("content-encoding"))
    read = _OPENAI.read_answer(body, streamed=exchange.streamed) if body else None
    text = read.choices[0].text if read is not None and not read.error else ""
    return text if text.strip() else None
