"""From the requests of one bucket to templates: single requests, few-shot prompts and conversations.

Requests of one form are mined as they are when the form is all there is to say: no assistant messages, or always
the same ones (few-shot examples). The others are mined by how they begin, up to the first user message. Where the
requests behind one such beginning have many lengths, it is a conversation: its turns stay turns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.domain import layout
from gateway.domain.layout import Layout
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline.mining import Found, Miner, Row, cut_row
from gateway.pipeline.naming import finish
from gateway.pipeline.quoting import refined
from gateway.pipeline.records import Recorded
from gateway.pipeline.splitting import MIN_ROWS, STRONG, fixed_words, words
from gateway.pipeline.versions import Use

_MOST = 0.6
_LEVELS = 6
_FEW = 3
"""Conversations that are enough where their requests are many."""
Opening = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]


class Seen(NamedTuple):
    """A request and its body taken apart."""

    request: Recorded
    layout: Layout


def mine_bucket(seen: Sequence[Seen]) -> list[Use]:
    """Templates, not yet named, among requests (in order of time) that share tools and response format."""
    uses: list[Use] = []
    left: list[Seen] = []
    for headers, group in _grouped(seen).items():
        fixed = _few_shot(group, seen)
        examples = _mine(fixed, headers) if fixed else []
        uses += [use for found in examples for use in _uses(fixed, headers, found)]
        left += _without(group, fixed, examples)
    for beginning, group in _by_beginning(left).items():
        begun = _mine(group, beginning)
        for found in begun:
            uses += _uses_of_beginning([group[i] for i in found.members], beginning, found)
        unexplained = _without(group, group, begun)
        for members in _few_conversations(unexplained, len(beginning) - 1):
            uses.append(_conversation(members, beginning, _opened(members[0], len(beginning))))
            taken = set(map(id, members))
            unexplained = [item for item in unexplained if id(item) not in taken]
        for headers, rest in _grouped(unexplained).items():
            if headers != beginning:
                uses += [use for found in _mine(rest, headers) for use in _uses(rest, headers, found)]
    return uses


def _by_beginning(seen: Sequence[Seen]) -> dict[tuple[str, ...], list[Seen]]:
    """Requests by the headers up to the first user message that is not part of a fixed opening.

    An opening is fixed when most requests with its system prompt go on like it, and then in many ways.
    """
    ends = {id(item): _next_user(item, 0) for item in seen}
    starts = {id(item): max(0, ends[id(item)] - 1) for item in seen}
    moving = list(seen)
    while moving:
        siblings = Counter(_opening(item, starts[id(item)]) for item in moving)
        same = Counter(_opening(item, ends[id(item)]) for item in moving)
        ways = _ways(moving, ends)
        moving = [
            item
            for item in moving
            if ways[opening := _opening(item, ends[id(item)])] >= MIN_ROWS
            and same[opening] >= _MOST * siblings[_opening(item, starts[id(item)])]
            and ends[id(item)] < len(item.layout.headers)
        ]
        starts.update({id(item): ends[id(item)] for item in moving})
        ends.update({id(item): _next_user(item, ends[id(item)]) for item in moving})
    groups: dict[tuple[str, ...], list[Seen]] = defaultdict(list)
    for item in sorted(seen, key=lambda item: (item.request.ts, item.request.id)):
        groups[item.layout.headers[: ends[id(item)]]].append(item)
    return dict(sorted(groups.items()))


def _ways(seen: Sequence[Seen], ends: dict[int, int]) -> Counter[Opening]:
    """In how many ways an opening goes on: the most that there are up to the same one of the next user messages.

    One conversation that grows request by request goes on in one way, however long it gets.
    """
    found: dict[tuple[Opening, int], set[int]] = defaultdict(set)
    for item in seen:
        opening, end = _opening(item, ends[id(item)]), ends[id(item)]
        for level in range(_LEVELS):
            if end == len(item.layout.headers):
                break
            end = _next_user(item, end)
            found[opening, level].add(hash(_opening(item, end)))
    most: Counter[Opening] = Counter()
    for (opening, _), ways in found.items():
        most[opening] = max(most[opening], len(ways))
    return most


def _opening(item: Seen, end: int) -> Opening:
    return item.layout.headers[:end], item.layout.fields[:end]


def _next_user(item: Seen, start: int) -> int:
    """The number of messages up to the first user message from `start` on; all if there is none."""
    headers = item.layout.headers
    return next((i + 1 for i in range(start, len(headers)) if _is_user(headers[i])), len(headers))


def _grouped(seen: Sequence[Seen]) -> dict[tuple[str, ...], list[Seen]]:
    groups: dict[tuple[str, ...], list[Seen]] = defaultdict(list)
    for item in seen:
        groups[item.layout.headers].append(item)
    return dict(sorted(groups.items()))


def _mine(group: Sequence[Seen], headers: tuple[str, ...]) -> list[Found]:
    """What the miner finds in the first messages of each request; `members` are all requests that fit."""
    rows = [_row(item, range(len(headers))) for item in group]
    forms = "".join(map(_forms, headers))
    system = [_is_system(header) for header in headers for _ in _forms(header)]
    return Miner(rows, forms, system).mine()


def _few_shot(group: Sequence[Seen], seen: Sequence[Seen]) -> list[Seen]:
    """The requests of a group whose answers all recur as examples do, and are not how conversations begin."""
    headers = group[0].layout.headers
    answers = [i for i, header in enumerate(headers) if not _is_system(header) and not _is_user(header)]
    if not answers or len(group) < MIN_ROWS:
        return []
    counts = Counter(_row(item, answers) for item in group)
    longer = [item for item in seen if len(item.layout.headers) > len(headers)]
    begun = Counter(_row(i, answers) for i in longer if i.layout.headers[: len(headers)] == headers)
    return [item for item in group if counts[row := _row(item, answers)] >= MIN_ROWS > begun[row]]


def _without(group: Sequence[Seen], mined: Sequence[Seen], found: Sequence[Found]) -> list[Seen]:
    """The group less what was found among `mined`."""
    taken = {id(mined[i]) for f in found for i in f.members}
    return [item for item in group if id(item) not in taken]


def _uses_of_beginning(members: list[Seen], beginning: tuple[str, ...], found: Found) -> list[Use]:
    """The template behind a beginning: the whole request, a longer request of one form, or a conversation."""
    shapes = {item.layout.headers for item in members}
    if shapes == {beginning}:
        return _uses(members, beginning, Found(found.patterns, list(range(len(members)))))
    if len(shapes) == 1:
        (headers,) = shapes
        whole = [use for f in _mine(members, headers) for use in _uses(members, headers, f)]
        if whole:
            return whole
    return [_conversation(members, beginning, found.patterns)]


def _conversation(members: list[Seen], beginning: tuple[str, ...], patterns: tuple[TextPattern, ...]) -> Use:
    head = _messages(beginning, patterns)
    tail: tuple[MessagePattern, ...] = ()
    if not sum(map(fixed_words, head[-1].fields)):
        head = head[:-1]
    elif last := _wrapping(members, head[-1]):
        head, tail = head[:-1], (last,)
    if not tail and len(head) == len(beginning):
        head += _shared_messages(members, len(head))
    bare = PromptTemplate("", 1, head, turns=True, tail=tail, bucket=members[0].layout.bucket)
    bare = msgspec.structs.replace(bare, wraps=bare.can_wrap and _wraps_all(members, bare))
    rows = []
    for item in members:
        count = len(item.layout.headers)
        rows.append(_row(item, [*range(len(head)), *range(count - len(tail), count)]))
    return _finished(bare, members, [*rows, *(_said_earlier(members, len(head)) if bare.wraps else ())])


def _said_earlier(members: Sequence[Seen], head: int) -> list[Row]:
    """A row for each other text of the user's earlier turns, as if it were the last message: its slot holds them
    all."""
    met = {item.layout.fields[-1] for item in members}
    rows: list[Row] = []
    for item in members:
        for header, fields in zip(item.layout.headers[head:-1], item.layout.fields[head:-1], strict=True):
            if _is_user(header) and fields not in met:
                met.add(fields)
                rows.append(_row(item, range(head)) + fields)
    return rows


def _few_conversations(left: Sequence[Seen], opened: int) -> list[list[Seen]]:
    """Requests that begin with the same `opened` messages, long enough to be a prompt, in a few conversations that
    grew to several lengths: too few for their first turns to show it, but their requests are many."""
    groups: dict[Opening, list[Seen]] = defaultdict(list)
    for item in left:
        groups[_opening(item, opened)].append(item)
    found = []
    for (headers, fields), members in sorted(groups.items()):
        said = sum(words(text) for texts in fields for text in texts)
        begun = {item.layout.fields[opened] for item in members if len(item.layout.headers) > opened}
        lengths = {len(item.layout.headers) for item in members}
        many = len(begun) >= _FEW and len(members) >= 2 * MIN_ROWS and len(lengths) >= MIN_ROWS
        if many and said >= 2 * STRONG and all(map(_is_system, headers)):
            found.append(members)
    return found


def _opened(item: Seen, count: int) -> tuple[TextPattern, ...]:
    """The patterns of the first messages, all as they are here but for the last one, which may say anything."""
    fixed = _row(item, range(count - 1))
    free = tuple(TextPattern(("", ""), (Slot("input"),)) for _ in item.layout.fields[count - 1])
    return (*(TextPattern((text,)) for text in fixed), *free)


def _shared_messages(members: list[Seen], start: int) -> tuple[MessagePattern, ...]:
    """The messages from `start` on that are the same in all members."""
    shared: list[MessagePattern] = []
    first = members[0].layout
    for i in range(start, min(len(item.layout.headers) for item in members)):
        message = (first.headers[i], first.fields[i])
        if any((item.layout.headers[i], item.layout.fields[i]) != message for item in members):
            break
        shared.append(MessagePattern(message[0], tuple(TextPattern((text,)) for text in message[1])))
    return tuple(shared)


def _wrapping(members: list[Seen], first: MessagePattern) -> MessagePattern | None:
    """The pattern of the last message, when every turn of the user is wrapped in the first one's fixed text."""
    for item in members:
        if item.layout.headers[-1] != first.header or cut_row(first.fields, item.layout.fields[-1]) is None:
            return None
    return first


def _wraps_all(members: list[Seen], bare: PromptTemplate) -> bool:
    """Whether all messages of the user are wrapped like the last one, in conversations of some turns."""
    first, (last,) = len(bare.head), bare.tail
    earlier = [
        (header, fields)
        for item in members
        for header, fields in zip(item.layout.headers[first:-1], item.layout.fields[first:-1], strict=True)
        if _is_user(header)
    ]
    whole = all(header == last.header and cut_row(last.fields, fields) is not None for header, fields in earlier)
    return whole and len(earlier) >= MIN_ROWS


def _uses(group: Sequence[Seen], headers: tuple[str, ...], found: Found) -> list[Use]:
    """The template that was found; and others, where it cannot be told of some requests how they are to be cut."""
    rows = [_row(item, range(len(headers))) for item in group]
    main, quoting = refined(rows, "".join(map(_forms, headers)), found)
    first = _use(group, headers, main)
    return [first, *(_use(group, headers, one)._replace(quotes=first.template.literals) for one in quoting)]


def _use(group: Sequence[Seen], headers: tuple[str, ...], found: Found) -> Use:
    members = [group[i] for i in found.members]
    bare = PromptTemplate("", 1, _messages(headers, found.patterns), bucket=members[0].layout.bucket)
    return _finished(bare, members, [_row(item, range(len(headers))) for item in members])


def _finished(bare: PromptTemplate, members: Sequence[Seen], rows: Sequence[Row]) -> Use:
    hints = tuple(item.request.hint for item in members)
    return Use(finish(bare, rows), members[0].request.ts, members[-1].request.ts, hints, _settings(members))


def _settings(members: Sequence[Seen]) -> dict[str, str | None]:
    """The parameters around the messages as canonical JSON; None for one that varies."""
    first = members[0].layout.envelope
    same = {key: all(item.layout.envelope.get(key) == value for item in members) for key, value in first.items()}
    varying = {key for item in members for key in item.layout.envelope if not same.get(key)}
    return {key: layout.canonical(value) for key, value in first.items()} | dict.fromkeys(varying)


def _row(item: Seen, messages: Sequence[int]) -> Row:
    return tuple(text for i in messages for text in item.layout.fields[i])


def _messages(headers: Sequence[str], patterns: Sequence[TextPattern]) -> tuple[MessagePattern, ...]:
    rest = iter(patterns)
    return tuple(MessagePattern(h, tuple(next(rest) for _ in _forms(h))) for h in headers)


def _forms(header: str) -> str:
    form = layout.parse_header(header)[1]
    return form if form == "s" else form[1:]


def _is_system(header: str) -> bool:
    return layout.parse_header(header)[0].removeprefix("^") in ("system", "developer")


def _is_user(header: str) -> bool:
    return layout.parse_header(header)[0] == "user"
