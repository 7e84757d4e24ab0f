"""Does a wide version of a prompt take the requests of a narrow one? Then the narrow one's prompt has changed.

Where values quote their prompt, a few requests have a version of their own, with a slot over text that is fixed in
the others. A request whose prompt was changed in just that text is no longer the narrow version's, and the wide one
takes it as if the text were a value. That slot has few values before, and the text stands somewhere between others
in it; but that the newest requests are all of a version that few were of tells by itself, by the same exact test.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple

from gateway.domain.template import Inputs, PromptTemplate, TextPattern
from gateway.pipeline.drift import ALPHA, RECENT, WINDOWS, Drift, fisher

NEWEST = 100
"""Of so many of a task's newest requests is remembered which version they are of."""
EXAMPLES = 3
"""So many requests of a version tell which others it could be of."""


class Taken(NamedTuple):
    """What is new, and in how many of the version's newest requests."""

    drift: Drift
    requests: int


class Takeover:
    """Which of a task's `templates` each of its newest requests is of. `examples` are some requests of before;
    `newest` the newest ones' versions by name, oldest first; `older` those that had requests before these."""

    def __init__(
        self,
        templates: Iterable[PromptTemplate],
        examples: Iterable[Inputs] = (),
        newest: Iterable[str] = (),
        older: Iterable[str] = (),
    ) -> None:
        self._templates = {template.name: template for template in templates}
        self._looked_at: Counter[str] = Counter()
        self._covered: dict[str, dict[str, frozenset[int]]] = defaultdict(dict)
        self._newest: deque[str] = deque(newest, maxlen=NEWEST)
        self._older = set(older)
        self._said: deque[int] = deque(maxlen=2 * RECENT)
        self._told: set[str] = set()
        self._own: set[str] = set()
        for one in examples:
            self._look_at(one)

    def add(self, inputs: Inputs) -> Taken | None:
        """Note one more request; which version it takes the requests of, if it does. Requests with the same values
        where the other version has fixed text count once."""
        name = inputs.template.name
        if len(self._templates) < 2 or name not in self._templates:
            return None
        self._look_at(inputs)
        narrow = self._narrow(name)
        places = sorted(frozenset().union(*narrow.values()))
        values = tuple(inputs.values[i] for i in places) if places else (inputs.values, str(inputs.turns[:1]))
        said = hash((name, values))
        if said in self._said:
            return None
        self._said.append(said)
        if len(self._newest) == NEWEST:
            self._older.add(self._newest[0])
        self._newest.append(name)
        return self._taken(name, narrow) if narrow and name not in self._own else None

    def _look_at(self, inputs: Inputs) -> None:
        """Which other versions could hold it? One that cannot hold each of the first few is another prompt."""
        name = inputs.template.name
        self._looked_at[name] += 1
        if self._looked_at[name] > EXAMPLES:
            return
        for wide in self._templates.values():
            if wide.name != name:
                slots, before = covered(wide, inputs), self._covered[wide.name].get(name)
                both = slots if before is None else slots | before if slots and before else frozenset[int]()
                self._covered[wide.name][name] = both

    def _narrow(self, name: str) -> dict[str, frozenset[int]]:
        """The versions with fixed text where this one has slots, and which these are; none where all of them came
        after it: then it is what the prompt was before."""
        found = {other: slots for other, slots in self._covered[name].items() if slots}
        is_later = any(self._templates[one].version < self._templates[name].version for one in found)
        return found if is_later else {}

    def accept(self, name: str) -> None:
        """What was told of this version is as it should be: the app sends it, too."""
        self._own |= {name} & self._told

    def _taken(self, name: str, narrow: Iterable[str]) -> Taken | None:
        wide = [one == name for one in self._newest if one == name or one in narrow]
        run = next((n for n, one in enumerate(reversed(wide)) if not one), len(wide))
        if run >= RECENT:  # it has been all there was, and nothing was to be seen in that
            self._own.add(name)
        if run >= RECENT or (wide.index(True) == len(wide) - run and name not in self._older):
            return None  # a version that has just come takes the place of another
        for size in (size for size in WINDOWS if size < len(wide)):
            newest, before = wide[-size:], wide[:-size]
            probability = fisher(sum(newest), size, sum(before), len(before))
            if probability < ALPHA:
                self._told.add(name)
                other = next(one for one in reversed(self._newest) if one in narrow)
                return Taken(Drift("version", other, probability), sum(newest))
        return None


def covered(wide: PromptTemplate, inputs: Inputs) -> frozenset[int]:
    """The slots of `wide` that would hold fixed text of the version that a request is of; none where it could not
    be a request of `wide`."""
    narrow = inputs.template
    if _form(wide) != _form(narrow):
        return frozenset()
    given, values = iter(inputs.values), []
    for ours, theirs in zip(wide.fields, narrow.fields, strict=True):
        cut = _cut(ours, theirs.fill([next(given) for _ in theirs.slots]))
        if cut is None:
            return frozenset()
        values += cut
    own = {value.strip() for value in inputs.values}
    return frozenset(i for i, value in enumerate(values) if value.strip() not in own)


def _form(template: PromptTemplate) -> tuple[object, ...]:
    headers = [[(p.header, len(p.fields)) for p in side] for side in (template.head, template.tail)]
    return template.bucket, template.turns, template.wraps, headers


def _cut(pattern: TextPattern, text: str) -> list[str] | None:
    """As `TextPattern.cut`, whatever its slots may hold, and each piece where it comes first."""
    first, last = pattern.literals[0], pattern.literals[-1]
    if len(pattern.literals) == 1:
        return [] if text == first else None
    at, end = len(first), len(text) - len(last)
    if at > end or not (text.startswith(first) and text.endswith(last)):
        return None
    values = []
    for literal in pattern.literals[1:-1]:
        place = text.find(literal, at, end)
        if place < 0:
            return None
        values.append(text[at:place])
        at = place + len(literal)
    return [*values, text[at:end]]
