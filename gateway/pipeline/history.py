"""The newest requests of one template: what is new in its slots, and in the turns that it leaves free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gateway.domain import layout
from gateway.domain.template import Inputs, PromptTemplate
from gateway.pipeline.drift import RECENT, Drift, SlotHistory, Sort

_UNWATCHED = frozenset({"date", "id", "part"})
_TURNS = {0: "first turn", -1: "last turn", -2: "last turn but one", -3: "last turn but two"}


class Found(NamedTuple):
    """What is new, and in which slot (or turn); "": it is no slot's."""

    slot: str
    drift: Drift

    @property
    def sentence(self) -> str:
        """For a person."""
        return f"in `{self.slot}`, {self.drift.sentence}" if self.slot else self.drift.sentence

    def is_in(self, inputs: Inputs) -> bool:
        """Whether a request holds what is new."""
        places = {name: place for place, name in _TURNS.items()}
        if self.slot in places:
            place = places[self.slot]
            return -len(inputs.turns) <= place < len(inputs.turns) and self.drift.is_in(_text(inputs.turns[place]))
        return all(self.drift.is_in(value) for name, value in inputs.slots if name == self.slot)


class TemplateHistory:
    """The newest requests of one template, in bounded memory: samples of each slot's values, and their ids."""

    def __init__(self, template: PromptTemplate) -> None:
        self._slots = [None if slot.kind in _UNWATCHED else SlotHistory(i) for i, slot in enumerate(template.slots)]
        self._names = [slot.name for slot in template.slots]
        self._turns = {place: SlotHistory(place) for place in _TURNS} if template.turns else {}
        self._conversations: deque[int] = deque(maxlen=2 * RECENT)
        self._requests: deque[int] = deque(maxlen=2 * RECENT)
        self.ids: deque[str] = deque(maxlen=RECENT)

    def add(self, exchange_id: str, inputs: Inputs) -> Found | None:
        """Note one more request; what is new about the newest ones. A request that is made again says nothing."""
        said = [_text(turn) for turn in (*inputs.turns[:3], *inputs.turns[-3:])]
        identity = hash((inputs.values, len(inputs.turns), *said))
        if identity in self._requests:
            return None
        self._requests.append(identity)
        self.ids.append(exchange_id)
        found: Found | None = None
        for name, history, value, sort in self._of(inputs):
            new = history.add(value, sort)
            if new is not None and (found is None or new.adds_text > found.drift.adds_text):
                found = Found(name, new)
        return found

    def _of(self, inputs: Inputs) -> Iterator[tuple[str, SlotHistory, str, Sort]]:
        for name, slot, value in zip(self._names, self._slots, inputs.values, strict=True):
            if slot is not None:
                yield name, slot, value, "of_session" if self._turns else "value"
        for place, history in self._turns.items():
            if place < len(inputs.turns) and -place <= len(inputs.turns) and self._is_new(place, inputs.turns):
                yield _TURNS[place], history, _text(inputs.turns[place]), "of_session" if place == -1 else "turn"

    def _is_new(self, place: int, turns: Sequence[Any]) -> bool:
        """All requests of a conversation begin alike: its first turn counts once. What follows the first turn and
        its answer tells conversations apart, even where an example was put in front of them."""
        if place != 0:
            return True
        conversation = hash(_text(turns[min(2, len(turns) - 1)]))
        if conversation in self._conversations:
            return False
        self._conversations.append(conversation)
        return True

    def learn(self) -> None:
        """What there was so far is what the next requests are compared with."""
        for history in self._histories():
            history.learn()

    def forget_recent(self) -> None:
        """The newest requests were another template's."""
        self.ids.clear()
        for history in self._histories():
            history.forget_recent()

    def _histories(self) -> Iterator[SlotHistory]:
        yield from (slot for slot in self._slots if slot is not None)
        yield from self._turns.values()


def _text(turn: Any) -> str:
    """Role and text of a turn; pictures and the like differ anyway, and tell nothing."""
    content = turn.get("content")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return f"{turn.get('role')}\n{content if isinstance(content, str) else layout.canonical(turn)}"
