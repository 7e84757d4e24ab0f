"""Finds tasks in what was recorded, as it comes: known templates first, then whatever the rest has in common.

Each request is matched at once. What no template explains leaves cues (`residue`), and five requests with the same
one are searched for a prompt. What is found in few requests is proposed: it is mined anew when requests nearly
match it and once more at twenty; from then on it is trusted and never changes. A changed prompt is a new version.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.domain import layout
from gateway.domain.exchange import Exchange
from gateway.domain.layout import Unreadable
from gateway.domain.matching import Match, reason
from gateway.domain.template import Inputs, PromptTemplate
from gateway.pipeline.infer import Inference, infer
from gateway.pipeline.known import Known, fingerprint
from gateway.pipeline.records import Recorded, recorded
from gateway.pipeline.residue import Residue
from gateway.pipeline.watch import Flag, Watch
from gateway.stores.edited import pinned_tasks
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import (
    MATCHED,
    Count,
    Standing,
    State,
    count_results,
    newest_of,
    propose,
    results,
    set_standing,
)

log = logging.getLogger(__name__)

BATCH = 500
"""So many exchanges are read at once: their bodies are in memory."""
RESIDUE = 2000
"""So many of the newest exchanges without a task are remembered when the process starts."""
AGAIN = 1000
"""So many of them are looked at again when something was found."""
TRUSTED_AFTER = 20
"""So many requests make a template trusted."""
_CLAIMED = 0.9
"""Share of a proposal's requests that what replaces it explains."""
_REMINED = 64


class Seen(NamedTuple):
    """A request that was looked at: what it matches or, as `near`, nearly matches."""

    request: Recorded
    match: Match | None
    near: PromptTemplate | None = None


class Discovery:
    """Looks at new exchanges. What it keeps in memory is bounded by the templates, not by the traffic, and is read
    again from the store by its successor. One at a time for a store."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._residue: Residue | None = None
        self._watch = Watch(store)
        self._fingerprint: object = None
        self._known = Known([], {})
        self._matched: Counter[tuple[str, int]] = Counter()

    def step(self, *, search: bool | None = None) -> list[str]:
        """Look at the new exchanges; gives the names of templates found. `search`: all that is unexplained (True),
        nothing (False), or what is worth it (None)."""
        self._refresh()
        found: list[str] = []
        while fresh := self._store.unseen(BATCH):
            self._look_at(fresh)
            if search is not False and (names := self._search_due()):
                found += names
                self._look_again()
        if search:
            found += self._learn(self._read(self._store.unassigned(2 * RESIDUE)))
        self._watch.tell(self._known.standing)
        return found

    def _refresh(self) -> None:
        now = fingerprint(self._store)
        if now != self._fingerprint:
            before = self._known
            self._fingerprint, self._known = now, Known.of(self._store)
            self._watch.know(before, self._known)
            counts = results(self._store)
            self._matched = Counter({key: found.get(MATCHED, 0) for key, found in counts.items()})

    # --- looking -----------------------------------------------------------------------------------------

    def _look_at(self, fresh: Sequence[Exchange]) -> None:
        seen = [self._see(request) for request in self._read(fresh)]
        read = {one.request.id for one in seen}
        own = [one for one in seen if not one.request.is_copy]  # a client's request counts once
        residue = self._remembered() if any(one.match is None for one in own) else None
        for one in own:
            if one.match is not None:
                self._watch.matched(one.request, one.match)
            elif residue is not None:
                self._miss(one, residue)
        with self._store.transaction():
            self._store.assign({one.request.id: _belongs(one.match) for one in seen})
            self._store.set_aside(exchange.id for exchange in fresh if exchange.id not in read)
            self._count(own)
        self._judge()

    def _see(self, request: Recorded) -> Seen:
        match = self._known.match(request.body)
        if match is not None:
            return Seen(request, match)
        try:
            return Seen(request, None, self._known.near.nearest(layout.read(request.body)))
        except Unreadable:
            return Seen(request, None)

    def _miss(self, one: Seen, residue: Residue) -> None:
        if one.near is not None:
            self._watch.missed(one.near)
        self._miss_quietly(one, residue)

    def _count(self, seen: Iterable[Seen]) -> None:
        """By template, hour and result; in the transaction of the assignment."""
        counts: Counter[Count] = Counter()
        for request, match, near in seen:
            hour = int(request.ts // 3600)
            if match is not None:
                counts[Count(match.template.task, match.template.version, hour, MATCHED)] += 1
                self._matched[match.template.task, match.template.version] += 1
            elif near is not None and (why := reason(near, request.body)):
                counts[Count(near.task, near.version, hour, why.code)] += 1
        count_results(self._store, counts)

    def _remembered(self) -> Residue:
        """What is unexplained; the first time, of the processes before too."""
        if self._residue is None:
            residue = Residue()
            for request in self._read(self._store.unassigned(RESIDUE)):
                self._miss_quietly(self._see(request), residue)
            self._residue = residue
        return self._residue

    def _miss_quietly(self, one: Seen, residue: Residue) -> None:
        if one.match is not None:
            return
        try:
            seen = layout.read(one.request.body)
        except Unreadable:
            return
        residue.add(one.request.id, one.request.key, seen, one.near.name if one.near else None)

    def _read(self, exchanges: Iterable[Exchange]) -> list[Recorded]:
        return [request for exchange in exchanges if (request := recorded(exchange)) is not None]

    def _look_again(self) -> None:
        """What was not searched itself may match what was found all the same."""
        ids = self._remembered().newest(AGAIN)
        exchanges = self._store.exchanges(
            "id IN (SELECT value FROM json_each(?)) AND task IS NULL", [json.dumps(ids)]
        )
        again = [(request, self._known.match(request.body)) for request in self._read(exchanges)]
        self._adopt([Seen(request, match) for request, match in again if match is not None])

    # --- searching ---------------------------------------------------------------------------------------

    def _search_due(self) -> list[str]:
        found: list[str] = []
        for group in self._residue.due() if self._residue is not None else ():
            ids = json.dumps(group.ids)
            exchanges = self._store.exchanges("id IN (SELECT value FROM json_each(?)) AND task IS NULL", [ids])
            near = self._known.by_name.get(group.near or "")
            found += self._learn(self._read(exchanges), near)
        return found

    def _learn(self, requests: Sequence[Recorded], near: PromptTemplate | None = None) -> list[str]:
        """Mine requests that nothing explained; those that nearly match a proposal together with its own."""
        left = [request for request in requests if self._known.match(request.body) is None]
        replaced = near if near is not None and self._known.is_proposed(near) else None
        if replaced is not None and left:
            found = self._replace(replaced, left)
            if found is not None:
                return found
        unexplained = {request.id for request in left}
        self._adopt([self._see(request) for request in requests if request.id not in unexplained])
        inference = infer(left, self._known.templates, unexplained=True) if left else Inference([], {})
        for narrow in self._narrower(inference.templates) if replaced is None else ():
            found = self._replace(narrow, left)
            if found is not None:
                return found
        return self._keep(self._related(inference.templates, near), left)

    def _replace(self, proposal: PromptTemplate, more: Sequence[Recorded]) -> list[str] | None:
        """Mine a proposal's requests anew, with more of them; None where that explains them no better."""
        own = self._own(proposal)
        others = [template for template in self._known.templates if template is not proposal]
        inference = infer([*own, *more], others, unexplained=True)
        claims = Counter(inference.assignments[request.id] for request in own)
        heir = next((t for t in inference.templates if claims[t.task, t.version] >= _CLAIMED * len(own)), None)
        if heir is None:
            return None
        taken = {template.name for template in self._known.templates}
        renamed = [_renamed(heir, proposal)]
        for other in inference.templates:
            if other is not heir:
                renamed.append(_fresh(other, {*taken, *(t.name for t in renamed)}))
        kept = self._keep(renamed, [*own, *more], counted=frozenset(request.id for request in own))
        return [name for name in kept if name != proposal.name]

    def _narrower(self, new: Sequence[PromptTemplate]) -> list[PromptTemplate]:
        """The proposals whose requests one of these would match too: their first few happened to be alike."""
        forms = {(t.bucket, tuple(p.header for p in t.head)): t for t in new if not t.turns}
        found: list[PromptTemplate] = []
        for known in self._known.templates:
            wide = forms.get((known.bucket, tuple(p.header for p in known.head)))
            if wide is not None and not known.turns and self._known.is_proposed(known):
                example = Inputs(known, tuple(f"value {i}" for i, _ in enumerate(known.slots)))
                if all(slot.kind != "part" for slot in known.slots) and _matches(wide, known.render(example)):
                    found.append(known)
        return found

    def _own(self, template: PromptTemplate) -> list[Recorded]:
        return self._read(newest_of(self._store, template, _REMINED))

    def _related(self, new: Sequence[PromptTemplate], near: PromptTemplate | None) -> list[PromptTemplate]:
        """What nearly matches a task's prompt, and was not placed in another task, is a version of that task."""
        tasks = {template.task for template in self._known.templates}
        related: list[PromptTemplate] = []
        for template in new:
            if near is not None and template.task not in tasks:
                names = {t.name for t in (*self._known.templates, *related)}
                related.append(_fresh(msgspec.structs.replace(template, task=near.task, version=1), names))
            else:
                related.append(template)
        return related

    def _keep(
        self, new: Sequence[PromptTemplate], requests: Sequence[Recorded], counted: frozenset[str] = frozenset()
    ) -> list[str]:
        """Note templates, but of pinned tasks, and the requests that they explain; gives their names. `counted`:
        these were counted before."""
        pinned = pinned_tasks(self._store)
        new = [template for template in new if template.task not in pinned]
        if not new:
            return []
        with self._store.transaction():
            for template in new:
                propose(self._store, template)
        for template in new:
            self._note(template, Standing("proposed"))
        self._adopt([self._see(request) for request in requests], counted, new)
        for template in new:
            log.info("found %s: %d exchanges", template.name, self._matched[template.task, template.version])
        self._judge()
        return [template.name for template in new]

    def _adopt(
        self, seen: Sequence[Seen], counted: frozenset[str] = frozenset(), new: Sequence[PromptTemplate] = ()
    ) -> None:
        """Assign requests that were unexplained to the templates that explain them now."""
        if not seen:
            return
        explained = [one for one in seen if one.match is not None]
        with self._store.transaction():
            self._store.assign({one.request.id: _belongs(one.match) for one in seen})
            self._count([one for one in explained if one.request.id not in counted])
        names = {template.name for template in new}
        for one in explained:
            if one.match is not None and one.match.template.name in names:
                self._watch.learnt_from(one.request, one.match)
        self._watch.begin(names)
        if self._residue is not None:
            self._residue.found([one.request.id for one in explained])

    def _note(self, template: PromptTemplate, standing: Standing) -> None:
        """What was changed in the store, in memory."""
        if self._known.by_name.get(template.name) not in (None, template):
            self._watch.drop(template.name)
        self._known.put(template, standing)
        self._fingerprint = fingerprint(self._store)

    # --- judging -----------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Trust what has been seen often enough; withhold what drifts."""
        for template in list(self._known.templates):
            enough = self._matched[template.task, template.version] >= TRUSTED_AFTER
            if enough and self._known.is_proposed(template):
                self._trust(template)
        for flag in self._watch.flags():
            self._withhold(flag)

    def _trust(self, proposal: PromptTemplate) -> None:
        """Mine it once more from all its requests; from now on it is final."""
        set_standing(self._store, proposal.name, "trusted")
        own = self._own(proposal)
        others = [template for template in self._known.templates if template is not proposal]
        inference = infer(own, others, unexplained=True)
        claims = Counter(inference.assignments.values())
        heir = next((t for t in inference.templates if claims[t.task, t.version] == len(own)), None)
        final = proposal
        if heir is not None and proposal.task not in pinned_tasks(self._store):
            final = _renamed(heir, proposal)
            body = msgspec.json.encode(final).decode()
            self._store.run("UPDATE templates SET body = ? WHERE name = ?", [body, proposal.name])
        self._note(final, Standing("trusted"))
        for name, standing in list(self._known.standing.items()):
            if standing.state == "drifting" and self._known.by_name[name].task == proposal.task:
                set_standing(self._store, name, "trusted")  # what drifted has a version of its own now
                self._note(self._known.by_name[name], Standing("trusted"))
                self._watch.forget(name)
        log.info("%s is trusted: %d exchanges", proposal.name, self._matched[proposal.task, proposal.version])
        self._watch.settle(proposal.task)

    def _withhold(self, flag: Flag) -> None:
        """A slot holds text that it did not hold: the template is not stripped until that text has a version."""
        template = flag.template
        state = self._known.standing[template.name].state
        if not flag.found.drift.adds_text:
            self._stand(template, state, flag.found.sentence)
            log.warning("%s: %s", template.name, flag.found.sentence)
            self._watch.accept(template.name)
            return
        new = self._version_of(flag) if template.task not in pinned_tasks(self._store) else None
        takes = new is None and flag.found.drift.kind == "version"
        if state != "proposed" or takes:  # what takes another's requests would soon be trusted with them
            self._stand(template, "drifting", flag.found.sentence)
            log.warning("%s is not stripped any more: %s", template.name, flag.found.sentence)
        self._watch.accept(template.name) if new is None else self._watch.forget(template.name)
        if new is not None:
            self._keep([new[0]], new[1], counted=frozenset(request.id for request in new[1]))

    def _stand(self, template: PromptTemplate, state: State, remark: str) -> None:
        set_standing(self._store, template.name, state, remark)
        self._note(template, Standing(state, remark))

    def _version_of(self, flag: Flag) -> tuple[PromptTemplate, list[Recorded]] | None:
        """The template of the newest requests, where it has more fixed text than the one that they match."""
        ids = json.dumps(flag.ids)
        read = self._read(self._store.exchanges("id IN (SELECT value FROM json_each(?))", [ids]))
        cut = [(request, flag.template.strip(request.body)) for request in read]
        requests = [request for request, inputs in cut if inputs is not None and flag.found.is_in(inputs)]
        inference = infer(requests, [])
        claims = Counter(inference.assignments.values())
        size = sum(map(len, flag.template.literals))
        for template in sorted(inference.templates, key=lambda t: -claims[t.task, t.version]):
            if sum(map(len, template.literals)) > size:
                names = {known.name for known in self._known.templates}
                new = _fresh(msgspec.structs.replace(template, task=flag.template.task, version=1), names)
                return new, [request for request in requests if template.strip(request.body) is not None]
        return None


def _matches(template: PromptTemplate, body: dict[str, Any]) -> bool:
    """As far as the messages go: tools and the like are compared elsewhere."""
    return template.bucket == "" and template.strip(body) is not None


def _belongs(match: Match | None) -> tuple[str, int] | None:
    return (match.template.task, match.template.version) if match is not None else None


def _renamed(template: PromptTemplate, like: PromptTemplate) -> PromptTemplate:
    return msgspec.structs.replace(template, task=like.task, version=like.version)


def _fresh(template: PromptTemplate, taken: set[str]) -> PromptTemplate:
    """The template as the first version of its task that is not taken."""
    version = template.version
    while f"{template.task}@{version}" in taken:
        version += 1
    return msgspec.structs.replace(template, version=version)
