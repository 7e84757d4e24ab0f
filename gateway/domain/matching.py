"""Which of many templates a live request belongs to; and, for people, why one does not match."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple, get_args

from gateway.domain.layout import Reader, TooLarge, Unreadable
from gateway.domain.pattern import Patience
from gateway.domain.prefixes import Prefixes, shared_start
from gateway.domain.template import Inputs, MessagePattern, PromptTemplate, TextPattern
from gateway.domain.turns import MAX_WRAPPED

MIN_FIXED_WORDS = 3
"""A template with less fixed text than this would claim requests by accident and is never matched."""
MAX_CANDIDATES = 16
"""So many templates are tried with one request; more than that is a request that is made to be slow."""
MAX_TRIED = 1 << 18
"""Characters that may be searched for fixed text with one request, over all templates that are tried."""

_Rank = tuple[bool, int, int, str]
_Ranked = tuple[_Rank, PromptTemplate]
_Candidate = tuple[_Rank, PromptTemplate, list[str]]
_Key = tuple[str, int, int, tuple[str, ...]]


class Match(NamedTuple):
    """A template and what it leaves of the request."""

    template: PromptTemplate
    inputs: Inputs


Code = Literal[
    "unreadable", "too_large", "tools", "messages", "literal", "ambiguous", "slot", "rebuild", "unknown", "crowded"
]
CODES: tuple[Code, ...] = get_args(Code)
"""Why a request does not match, a closed list for metrics and tables.

`unreadable`: no chat request that can be taken apart. `too_large`: too many messages or characters to match in
time. `tools`: other tools, tool choice or response format. `messages`: other roles, a message more or less,
another form of content. `literal`: other fixed text. `ambiguous`: a value holds fixed text, so that there are
several ways to cut. `slot`: a value unlike all that were seen there. `rebuild`: what was cut does not make the
request again (a safety net: this never happens). Of an index alone: `unknown`, there is no template that begins
and ends like the request; `crowded`, there are too many to try.
"""


class Reason(NamedTuple):
    """Why a request does not match: one of `CODES`, and a sentence for people."""

    code: Code
    sentence: str


class TemplateIndex:
    """Finds the template of a request among many.

    Of several that match, the one with the most fixed text wins, then the latest version; one that another replaces
    comes after all that none does. A request is looked
    up by its bucket and message headers, then by what its texts begin and end with; of the templates that are
    left, `MAX_CANDIDATES` at most are tried, fewer where the texts are long.
    """

    def __init__(self, templates: Sequence[PromptTemplate], replaced: Collection[str] = ()) -> None:
        """`replaced`: names that templates elsewhere replace."""
        usable = [template for template in templates if template.fixed_words >= MIN_FIXED_WORDS]
        groups: dict[_Key, list[PromptTemplate]] = defaultdict(list)
        for template in usable:
            headers = tuple(pattern.header for pattern in template.patterns)
            groups[(template.bucket, *_form(template), headers)].append(template)
        all_replaced = frozenset((*replaced, *(template.replaces for template in usable)))
        self._groups = {key: _Group(members, all_replaced) for key, members in groups.items()}
        self._forms = sorted({_form(template) for template in usable}, reverse=True)

    def match(self, body: dict[str, Any]) -> Match | None:
        """The template of this parsed JSON body and its inputs, or None."""
        try:
            seen = Reader(body)
            patience = Patience()
            for _, template, texts in self._candidates(seen)[0]:
                inputs = template.strip_texts(seen, texts, patience)
                if inputs is not None:
                    return Match(template, inputs)
        except Unreadable:
            pass
        return None

    def reason(self, body: dict[str, Any]) -> Reason | None:
        """Why no template matches: why the nearest does not, where one is near. None when one does match."""
        if self.match(body) is not None:
            return None
        try:
            near, left_out = self._candidates(Reader(body))
        except Unreadable as error:
            return _unreadable(error)
        if not near:
            return _UNKNOWN
        if left_out:
            return _CROWDED
        return reason(near[0][1], body)

    def _candidates(self, seen: Reader) -> tuple[list[_Candidate], bool]:
        """The templates that may match, best first; and whether there is no time for more that there are."""
        found: list[_Candidate] = []
        several = left_out = False
        for head, tail in self._forms:
            if head != seen.count if tail < 0 else head + tail > seen.count:
                continue
            try:
                headers, texts = seen.around(head, max(tail, 0))
            except TooLarge:
                raise
            except Unreadable:
                continue
            group = self._groups.get((seen.bucket, head, tail, headers))
            if group is not None:
                several = several or bool(found)
                near, more = group.candidates(texts)
                found += [(place, template, texts) for place, template in near]
                left_out = left_out or more
        if several:
            found.sort(key=itemgetter(0))
        return found, left_out


def _form(template: PromptTemplate) -> tuple[int, int]:
    """How many messages the head and the tail have; a tail of -1 means that nothing may stand between."""
    return len(template.head), len(template.tail) if template.turns else -1


class _Group:
    """Templates of equal headers, found by what their texts begin and end with."""

    def __init__(self, templates: Sequence[PromptTemplate], replaced: frozenset[str]) -> None:
        ranked = ((rank(template, template.name in replaced), template) for template in templates)
        self._ranked = sorted(ranked, key=itemgetter(0))
        rows = [[field for pattern in t.patterns for field in pattern.fields] for _, t in self._ranked]
        columns = list(enumerate(zip(*rows, strict=True)))
        self._searched = [i for i, column in columns if any(len(field.slots) > 1 for field in column)]
        trees = [(i, tree) for i, column in columns for tree in _trees(column) if len(tree.sizes) > 1]
        # The tree first that leaves the fewest members to the next.
        self._probes = sorted(trees, key=lambda probe: sum(size * size for size in probe[1].sizes))

    def candidates(self, texts: Sequence[str]) -> tuple[list[_Ranked], bool]:
        """Members whose fixed beginnings and endings these texts have, best first; and whether there are more."""
        left = (1 << len(self._ranked)) - 1
        for i, tree in self._probes:
            left &= tree.find(texts[i])
            if not left & (left - 1):
                break
        found: list[_Ranked] = []
        most = 1
        if left & (left - 1):
            searched = sum([len(texts[i]) for i in self._searched])
            most = min(MAX_CANDIDATES, max(1, MAX_TRIED // (1 + searched)))
        while left and len(found) < most:
            found.append(self._ranked[(left & -left).bit_length() - 1])
            left &= left - 1
        return found, left != 0


def _trees(column: Sequence[TextPattern]) -> tuple[Prefixes, Prefixes]:
    """The beginnings and the endings of one text in every member."""
    return (
        Prefixes((field.literals[0], 1 << i) for i, field in enumerate(column)),
        Prefixes(((field.literals[-1], 1 << i) for i, field in enumerate(column)), ending=True),
    )


def rank(template: PromptTemplate, is_replaced: bool) -> _Rank:
    """Smaller is better: none that is replaced, the most fixed text, then the latest version."""
    return (is_replaced, -fixed_size(template), -template.version, template.task)


def fixed_size(template: PromptTemplate) -> int:
    """Characters of fixed text: of two templates that match a request, the one with more is its own."""
    return sum(map(len, template.literals))


def show(template: PromptTemplate) -> str:
    """The template for a person to read: roles in brackets, slots as `{{name}}`."""
    lines = [line for pattern in template.head for line in _show_message(pattern)]
    if template.turns:
        lines.append(
            "[turns of the conversation" + (", the user's like the last message]" if template.wraps else "]")
        )
    lines += [line for pattern in template.tail for line in _show_message(pattern)]
    return "\n".join(lines)


def _show_message(pattern: MessagePattern) -> list[str]:
    names = [["{{" + slot.name + "}}" for slot in field.slots] for field in pattern.fields]
    texts = [field.fill(shown) for field, shown in zip(pattern.fields, names, strict=True)]
    return [f"[{pattern.role.removeprefix('^')}]", *texts]


def why_not(template: PromptTemplate, body: dict[str, Any]) -> str:
    """One sentence that says why the body does not match the template ("" when it does)."""
    found = reason(template, body)
    return found.sentence if found is not None else ""


def reason(template: PromptTemplate, body: dict[str, Any]) -> Reason | None:
    """Why the parsed JSON body does not match the template: a code to count and a sentence to read.

    None when it does match. Whenever `template.strip(body)` is None there is a reason, and only then.
    """
    try:
        seen = Reader(body)
        if template.strip_read(seen) is not None:
            return None
        for place in range(seen.count):
            seen.message(place)
        if seen.bucket != template.bucket:
            return _TOOLS
        return _why_messages(template, seen) or _why_texts(template, seen) or _why_turns(template, seen)
    except Unreadable as error:
        return _unreadable(error)


_TOOLS = Reason("tools", "The tools, the tool choice or the response format are not those of the template.")
_NOT_REBUILT = Reason("rebuild", "The request does not rebuild to itself.")
_UNKNOWN = Reason("unknown", "No template has these messages and begins and ends like this request.")
_CROWDED = Reason("crowded", "More templates begin and end like this request than there is time to try.")


def _unreadable(error: Unreadable) -> Reason:
    if isinstance(error, TooLarge):
        return Reason("too_large", f"The request is not matched: {error}.")
    return Reason("unreadable", f"The request cannot be taken apart: {error}.")


def _rows(template: PromptTemplate, count: int) -> list[tuple[int, MessagePattern]]:
    """Each pattern with the index of its message among `count`."""
    places = [*range(len(template.head)), *range(count - len(template.tail), count)]
    return list(zip(places, template.patterns, strict=True))


def _why_messages(template: PromptTemplate, seen: Reader) -> Reason | None:
    least, count = len(template.patterns), seen.count
    if count < least if template.turns else count != least:
        return Reason("messages", f"The request has {count} messages, the template {least}.")
    for i, pattern in _rows(template, count):
        if pattern.header != seen.message(i)[0]:
            return Reason("messages", f"Message {i + 1} is not a {pattern.role} message of the template's form.")
    if template.turns and not template.slots and count == least:
        return Reason("messages", "The conversation has no turn of its own.")
    return None


def _why_texts(template: PromptTemplate, seen: Reader) -> Reason | None:
    for i, pattern in _rows(template, seen.count):
        for field, text in zip(pattern.fields, seen.message(i)[1], strict=True):
            if field.cut(text) is None:
                code, words = _why_text(field, text)
                return Reason(code, f"In message {i + 1} ({pattern.role}), {words}.")
    return None


def _why_turns(template: PromptTemplate, seen: Reader) -> Reason:
    first, last = len(template.head), seen.count - len(template.tail)
    if template.wrapper is not None and template.wrapper.taken_off(seen.turns(first, last)) is None:
        few = f"or there are more than {MAX_WRAPPED}"
        return Reason("literal", f"A turn of the user is not wrapped like the last message, {few}.")
    return _NOT_REBUILT


def _why_text(field: TextPattern, text: str) -> tuple[Code, str]:
    first, last = field.literals[0], field.literals[-1]
    if not field.slots or not text.startswith(first):
        at = shared_start(first, text)
        wanted, found = first[at : at + 40], text[at : at + 40]
        if not wanted:
            return "literal", f"more follows the fixed text of {at} characters: {found!r}"
        return "literal", f"the fixed text ends at character {at}: expected {wanted!r}, found {found!r}"
    if not text.endswith(last) or len(text) < len(first) + len(last):
        return "literal", f"the text does not end with {last[-60:]!r}"
    position = len(first)
    for literal in field.literals[1:-1]:
        at = text.find(literal, position, len(text) - len(last))
        if at < 0:
            return "literal", f"the fixed text {literal[:60]!r} is missing"
        position = at + len(literal)
    loose = TextPattern(field.literals, tuple(type(slot)(slot.name) for slot in field.slots))
    values = loose.cut(text)
    if values is None:
        words = "a value holds fixed text of the template, so that it could be cut in more than one way"
        return "ambiguous", words
    name = next(slot.name for slot, value in zip(field.slots, values, strict=True) if not slot.holds(value))
    return "slot", f"the value of `{name}` is unlike all that were seen there"
