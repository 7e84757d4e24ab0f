"""What goes on at a service while somebody looks: a file that is checked, a job, a model that is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Steps:
    """States that are passed through one after the other, one on with every so many looks."""

    states: Sequence[str]
    looks_per_state: int = 1
    looks: int = 0
    at: int = 0

    @property
    def state(self) -> str:
        """The state that it is in."""
        return self.states[self.at]

    @property
    def is_over(self) -> bool:
        """Whether the last state has come."""
        return self.at == len(self.states) - 1

    def look(self) -> list[int]:
        """The places of the states that are entered with this look."""
        self.looks += 1
        reached = min(self.looks // self.looks_per_state, len(self.states) - 1)
        entered = list(range(self.at + 1, reached + 1))
        self.at = max(self.at, reached)
        return entered

    def share_of(self, place: int) -> float:
        """Of all the times that this state comes, the share that is over when this one is entered."""
        times = [at for at, state in enumerate(self.states) if state == self.states[place]]
        return (times.index(place) + 1) / len(times)

    def end(self, state: str) -> None:
        """Go no further: this is the last state."""
        self.states = [*self.states[: self.at + 1], state]
        self.at += 1
