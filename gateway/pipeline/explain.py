"""All that is known of one task, for a person to judge: what is taken away from its requests, what stays, what it
saves, how many requests fit, what changed between versions, and why some requests do not match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.config import Config
from gateway.domain import layout
from gateway.domain.exchange import Exchange
from gateway.domain.matching import show
from gateway.domain.route import RouteTable
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate, Slot
from gateway.errors import TaskError
from gateway.pipeline.differences import Piece, changes, shorten
from gateway.pipeline.misses import NearMiss, near_misses
from gateway.pipeline.overview import overview
from gateway.pipeline.records import recorded
from gateway.stores.sqlite import SqliteStore

RECENT = 1000
"""So many of a task's newest requests are counted."""
SAMPLE = 500
"""So many of a version's newest requests are taken apart to tell what its slots hold."""
_CHARS_PER_TOKEN = 4.0
_HEADING_CHARS = 160


class SlotFacts(msgspec.Struct, frozen=True):
    """A slot and what the newest requests hold there: `different` values, and the example's."""

    slot: Slot
    different: int
    example: str | None


class Example(msgspec.Struct, frozen=True):
    """A recorded request taken apart."""

    exchange_id: str
    inputs: Inputs

    @property
    def stripped(self) -> list[dict[str, Any]]:
        """The messages that go out instead of the request's own."""
        return self.inputs.messages


class Tokens(msgspec.Struct, frozen=True):
    """Input tokens of a request, on average: whole, and stripped. What is not `counted` by an upstream is estimated
    from the characters, by the tokens that a whole request takes (4 characters a token where none are known)."""

    whole: float
    stripped: float
    whole_counted: bool
    stripped_counted: bool


class VersionFacts(msgspec.Struct, frozen=True):
    """A version of the template; `share` of the task's newest requests that were made with it. `edited`: a person
    made it. `state`: proposed, trusted or drifting. `changes`: against the version before."""

    template: PromptTemplate
    created_at: float
    edited: bool
    state: str
    requests: int
    share: float | None
    changes: list[list[Piece]] = []


class NonMatch(msgspec.Struct, frozen=True):
    """Recent requests that nearly match the task, by the code of the reason; one of them as an example."""

    code: str
    count: int
    exchange_id: str
    sentence: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What `unprompt tasks show` tells.

    `row` is the task's row of the overview; `settings` the tools, response format and so on that a request must
    have, where a recorded one shows them; `sampled` requests were taken apart; `match_rate` is the share of the
    newest requests that match some version, near misses counted against it.
    """

    row: dict[str, Any]
    template: PromptTemplate
    settings: dict[str, Any]
    slots: list[SlotFacts]
    sampled: int
    example: Example | None
    tokens: Tokens | None
    match_rate: float | None
    versions: list[VersionFacts]
    non_matches: list[NonMatch]


def explain(
    store: SqliteStore, config: Config, task: str, version: int | None = None, table: RouteTable | None = None
) -> Explanation:
    """Everything about a task and one version of its template (None: the one in use). `table`: see `overview`.

    Raises:
        TaskError: there is no such task or version.
    """
    row = next((row for row in overview(store, config, table) if row["name"] == task), None)
    if row is None:
        raise TaskError(f"no task {task!r}; 'unprompt tasks' lists those that there are")
    template = find_version(store, task, version or row["version"])
    pairs = _sample(store, template, SAMPLE)
    misses = _misses(store, task)
    fitting = sum(store.version_counts(task, RECENT).values())
    return Explanation(
        row=row,
        template=template,
        settings=_settings(pairs),
        slots=_slots(template, [inputs for _, inputs in pairs]),
        sampled=len(pairs),
        example=Example(pairs[-1][0].id, pairs[-1][1]) if pairs else None,
        tokens=_tokens(pairs),
        match_rate=fitting / (fitting + len(misses)) if fitting else None,
        versions=_versions(store, task),
        non_matches=_by_code(misses),
    )


def find_version(store: SqliteStore, task: str, version: int | None) -> PromptTemplate:
    """A version of a task's template (None: the newest).

    Raises:
        TaskError: there is none; names those that there are.
    """
    templates = {template.version: template for template in store.templates(task)}
    if not templates:
        raise TaskError(f"no task {task!r}; 'unprompt tasks' lists those that there are")
    if version is not None and version not in templates:
        raise TaskError(f"no template {task}@{version}; its versions are {', '.join(map(str, templates))}")
    return templates[version or max(templates)]


def recorded_settings(store: SqliteStore, template: PromptTemplate) -> dict[str, Any]:
    """The tools, response format and so on of the version's newest request; empty where none is recorded."""
    return _settings(_sample(store, template, 1))


def _sample(store: SqliteStore, template: PromptTemplate, most: int) -> list[tuple[Exchange, Inputs]]:
    """The version's newest requests, taken apart, oldest first."""
    newest = (
        "rowid IN (SELECT rowid FROM exchanges WHERE task = ? AND task_version = ? AND complete = 1"
        " ORDER BY rowid DESC LIMIT ?)"
    )
    pairs = []
    for exchange in store.each_exchange(newest, [template.task, template.version, most]):
        request = recorded(exchange)
        inputs = template.strip(request.body) if request is not None else None
        if inputs is not None:
            pairs.append((exchange, inputs))
    return pairs


def _settings(pairs: Sequence[tuple[Exchange, Inputs]]) -> dict[str, Any]:
    envelope = pairs[-1][1].envelope if pairs else {}
    return {key: envelope[key] for key in layout.STATIC_KEYS if key in envelope}


def _slots(template: PromptTemplate, rows: Sequence[Inputs]) -> list[SlotFacts]:
    columns = list(zip(*(inputs.values for inputs in rows), strict=True)) or [()] * len(template.slots)
    return [
        SlotFacts(slot, len(set(values)), values[-1] if values else None)
        for slot, values in zip(template.slots, columns, strict=True)
    ]


def _tokens(pairs: Sequence[tuple[Exchange, Inputs]]) -> Tokens | None:
    if not pairs:
        return None
    sizes = [(len(_text(inputs.template.render(inputs))), len(_text({"messages": inputs.messages})))
             for _, inputs in pairs]  # fmt: skip
    whole = [(x.input_tokens, chars[0]) for (x, _), chars in zip(pairs, sizes, strict=True)
             if not x.stripped and x.usage_source == "upstream" and x.input_tokens]  # fmt: skip
    per_token = sum(chars for _, chars in whole) / sum(n for n, _ in whole) if whole else _CHARS_PER_TOKEN
    counted = [x.input_tokens for x, _ in pairs if x.stripped and x.usage_source == "upstream" and x.input_tokens]
    return Tokens(
        whole=_mean([chars / per_token for chars, _ in sizes]),
        stripped=_mean(counted or [chars / per_token for _, chars in sizes]),
        whole_counted=bool(whole),
        stripped_counted=bool(counted),
    )


def _text(body: Mapping[str, Any]) -> str:
    """What a model reads of a body, near enough to count characters."""
    return layout.canonical(
        [body[key] for key in ("messages", *layout.SYSTEM_KEYS, *layout.STATIC_KEYS) if key in body]
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _versions(store: SqliteStore, task: str) -> list[VersionFacts]:
    counts = store.version_counts(task, RECENT)
    total = sum(counts.values())
    made = {row["version"]: row for row in store.rows("templates", "task = ?", [task])}
    found: list[VersionFacts] = []
    for template in store.templates(task):
        before = show(found[-1].template) if found else None
        requests = counts.get(template.version, 0)
        row = made[template.version]
        found.append(VersionFacts(
            template, row["created_at"], bool(row["edited"]), row["state"], requests,
            requests / total if total else None, changes(before, show(template)) if before is not None else [],
        ))  # fmt: skip
    return found


def _misses(store: SqliteStore, task: str) -> list[NearMiss]:
    """Near misses among the newest requests that belong to no task, none older than the task's counted ones."""
    oldest = store.records("SELECT id FROM exchanges WHERE task = ? ORDER BY rowid DESC LIMIT ?", [task, RECENT])
    since = oldest[-1]["id"] if oldest else ""
    requests = [recorded(exchange) for exchange in store.unassigned(RECENT) if exchange.id >= since]
    bodies = {request.id: request.body for request in requests if request is not None}
    templates = store.templates()
    own = [template for template in templates if template.task == task]
    return near_misses(own, [template for template in templates if template.task != task], bodies)


def _by_code(misses: Sequence[NearMiss]) -> list[NonMatch]:
    newest = {miss.code: miss for miss in misses}
    counts = Counter(miss.code for miss in misses)
    return [NonMatch(code, n, newest[code].exchange_id, newest[code].sentence) for code, n in counts.most_common()]


def heading(pattern: MessagePattern) -> str:
    """Which message a pattern is of, in a few words: its role, and what else it must have."""
    role, _, rest = layout.parse_header(pattern.header)
    place = " (beside the messages)" if role.startswith("^") else ""
    return f"{role.removeprefix('^')}{place}{'  ' + shorten(rest, _HEADING_CHARS) if rest else ''}"


def as_json(found: Explanation) -> dict[str, Any]:
    """The same values for programs."""
    example = found.example
    return found.row | {
        "template": found.template.name,
        "fixed_words": found.template.fixed_words,
        "prompt": show(found.template),
        "settings": found.settings,
        "slots": [msgspec.to_builtins(facts.slot) | {"different": facts.different, "example": facts.example}
                  for facts in found.slots],
        "sampled": found.sampled,
        "example": None if example is None else {
            "exchange_id": example.exchange_id, "inputs": [list(pair) for pair in example.inputs.slots],
            "stripped": example.stripped,
        },
        "tokens": msgspec.to_builtins(found.tokens),
        "match_rate": found.match_rate,
        "versions": [_version_as_json(one) for one in found.versions],
        "non_matches": msgspec.to_builtins(found.non_matches),
    }  # fmt: skip


def _version_as_json(one: VersionFacts) -> dict[str, Any]:
    return {
        "version": one.template.version,
        "created_at": one.created_at,
        "edited": one.edited,
        "state": one.state,
        "replaces": one.template.replaces or None,
        "requests": one.requests,
        "share": one.share,
        "fixed_words": one.template.fixed_words,
        "prompt": show(one.template),
        "changes": [list(map(list, line)) for line in one.changes],
    }
