"""Strip and render are inverses; what does not match exactly is never stripped."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import layout
from gateway.domain.matching import TemplateIndex, show, why_not
from gateway.domain.pattern import Patience, several_sentences
from gateway.domain.template import (
    Inputs,
    MessagePattern,
    PromptTemplate,
    Slot,
    TextPattern,
    join_form,
    parse_stripped,
    rebuilds,
    split_form,
)

SYSTEM = "You sort messages of customers by what they want."
SYSTEM_MESSAGE = {"role": "system", "content": SYSTEM}


def body(*messages: tuple[str, str], **others: Any) -> dict[str, Any]:
    return {"model": "gpt-6-luna", "messages": [{"role": r, "content": c} for r, c in messages], **others}


def header(role: str) -> str:
    return layout.read_message({"role": role, "content": ""})[0]


def message(role: str, *literals: str, names: tuple[str, ...] = ()) -> MessagePattern:
    slots = tuple(Slot(name) for name in names) or tuple(Slot(f"s{i}") for i in range(len(literals) - 1))
    return MessagePattern(header(role), (TextPattern(literals, slots),))


INTENT = PromptTemplate(
    "intent", 1, (message("system", SYSTEM), message("user", "Message: ", "\nIntent:", names=("message",)))
)
REPLY = PromptTemplate(
    "reply", 3, (message("user", "Question: ", "\nTone: ", "\nReply now:", names=("question", "tone")),)
)
CHAT = PromptTemplate("chat", 1, (message("system", SYSTEM),), turns=True)
TUTOR = PromptTemplate(
    "tutor",
    1,
    (message("system", "Teach ", " to a child.", names=("topic",)),),
    turns=True,
    tail=(message("user", "The pupil says: ", "", names=("answer",)),),
)
SUPPORT = PromptTemplate(
    "support",
    1,
    (message("system", SYSTEM),),
    turns=True,
    tail=(message("user", "Customer: ", "\nReply:", names=("said",)),),
    wraps=True,
)


def test_one_slot_leaves_the_bare_value_as_a_user_message() -> None:
    request = body(("system", SYSTEM), ("user", "Message: my card is gone\nIntent:"), temperature=0)
    inputs = INTENT.strip(request)
    assert inputs is not None
    assert inputs.messages == [{"role": "user", "content": "my card is gone"}]
    assert inputs.text == "my card is gone"
    assert inputs.slots == (("message", "my card is gone"),)
    assert inputs.envelope == {"model": "gpt-6-luna", "temperature": 0}
    assert INTENT.render(inputs) == request


def test_several_slots_leave_named_values() -> None:
    inputs = REPLY.strip(body(("user", "Question: why?\nTone: calm\nReply now:")))
    assert inputs is not None
    assert inputs.messages == [{"role": "user", "content": "[question]\nwhy?\n[tone]\ncalm"}]


def test_a_conversation_keeps_its_turns_and_loses_its_system_prompt() -> None:
    request = body(("system", SYSTEM), ("user", "hi"), ("assistant", "hello"), ("user", "bye"))
    inputs = CHAT.strip(request)
    assert inputs is not None
    assert [m["role"] for m in inputs.messages] == ["user", "assistant", "user"]
    assert CHAT.render(inputs) == request


def test_slots_around_a_conversation_stand_before_and_behind_its_turns() -> None:
    request = body(
        ("system", "Teach rain to a child."),
        ("user", "hm"),
        ("assistant", "?"),
        ("user", "The pupil says: wet"),
    )
    inputs = TUTOR.strip(request)
    assert inputs is not None
    assert [m["content"] for m in inputs.messages] == ["rain", "hm", "?", "wet"]
    assert inputs.messages[0]["role"] == "system"


def support(*said: str, between: tuple[str, str] = ("assistant", "Well.")) -> dict[str, Any]:
    asked = [("user", f"Customer: {one}\nReply:") for one in said]
    return body(("system", SYSTEM), *[turn for one in asked[:-1] for turn in (one, between)], asked[-1])


def test_where_each_turn_of_the_user_is_wrapped_alike_what_is_inside_stays() -> None:
    request = support("my card", "the blue one", "gone")
    inputs = SUPPORT.strip(request)
    assert inputs is not None
    assert [m["content"] for m in inputs.messages] == ["my card", "Well.", "the blue one", "Well.", "gone"]
    assert SUPPORT.render(inputs) == request
    assert "the user's like the last" in show(SUPPORT)
    parts = {"role": "user", "content": [{"type": "text", "text": "Customer: 7\nReply:"}]}
    looks = msgspec.structs.replace(
        SUPPORT, tail=(MessagePattern(layout.read_message(parts)[0], SUPPORT.tail[0].fields),)
    )
    seen = looks.strip({"messages": [SYSTEM_MESSAGE, parts, {"role": "assistant", "content": "?"}, parts]})
    assert seen is not None
    assert [m["content"] for m in seen.messages] == ["7", "?", "7"]
    tool = support("my card", "gone", between=("tool", "Customer: 7\nReply:"))
    assert SUPPORT.strip(tool).messages[1] == tool["messages"][2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": "my card is gone"},
        {"role": "user", "content": "Customer: a\nReply in verse:"},
        {"role": "user", "content": "Customer: a\nReply:", "name": "bob"},
        {"role": "user", "content": [{"type": "text", "text": "Customer: a\nReply:"}]},
    ],
)
def test_a_turn_of_the_user_that_is_not_wrapped_alike_is_not_stripped(turn: dict[str, Any]) -> None:
    request = support("a", "b")
    request["messages"][1] = turn
    assert SUPPORT.strip(request) is None
    assert "turn" in why_not(SUPPORT, request)
    assert msgspec.structs.replace(SUPPORT, wraps=False).strip(request) is not None


def test_of_wrapped_turns_there_is_a_number_beyond_which_it_would_take_too_long() -> None:
    assert SUPPORT.strip(support(*"a" * 101)) is not None
    assert SUPPORT.strip(support(*"a" * 102)) is None
    assert "100" in why_not(SUPPORT, support(*"a" * 102))


@pytest.mark.parametrize(
    "changed",
    [
        body(("system", SYSTEM + " Never say no."), ("user", "Message: a\nIntent:")),
        body(("system", SYSTEM), ("user", "Message: a\nIntent: ")),
        body(("user", SYSTEM), ("user", "Message: a\nIntent:")),
        body(("system", SYSTEM), ("user", "Message: a\nIntent:"), ("user", "and quickly")),
        body(("system", SYSTEM), ("user", "Message: a\nIntent:"), tools=[{"type": "function"}]),
        body(("system", SYSTEM), ("user", "Message: a\nIntent:"), response_format={"type": "json_object"}),
        {"messages": [SYSTEM_MESSAGE, {"role": "user", "content": "Message: a\nIntent:", "name": "b"}]},
        {"messages": [SYSTEM_MESSAGE, {"role": "user", "content": None}]},
        {"messages": []},
        {"input": "Message: a\nIntent:"},
    ],
)  # fmt: skip
def test_whatever_the_template_does_not_know_is_not_stripped(changed: dict[str, Any]) -> None:
    assert INTENT.strip(changed) is None
    assert TemplateIndex([INTENT]).match(changed) is None
    assert why_not(INTENT, changed).endswith(".")


def test_a_value_that_quotes_the_template_is_not_cut_at_a_guess() -> None:
    request = body(("user", "Question: is\nTone: a label?\nTone: calm\nReply now:"))
    assert REPLY.strip(request) is None
    assert "more than one way" in why_not(REPLY, request)


LETTER, TONE = Slot("letter", usual=(200.0, 1.6)), Slot("tone", usual=(8.0, 1.6))
ABOUT = "the oak table that came on Monday with a scratch across its top, and what the shop will do about it " * 2


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (f"Letter: {ABOUT}\nTone: warm\nGo.", (ABOUT, "warm")),
        (f"Letter: He said:\nTone: {ABOUT}\nTone: dry\nGo.", (f"He said:\nTone: {ABOUT}", "dry")),
        (f"Letter: {ABOUT}\nTone: dry\nTone: warm\nGo.", None),  # "dry", and more, or a longer letter?
        (f"Letter: {ABOUT}\nTone: dry" + "\nTone: " * 60 + "\nGo.", None),  # nobody weighs so many
        (f"Letter: {ABOUT}" + ABOUT * 400 + "\nTone: dry\nTone: warm\nGo.", None),  # nor looks so far
    ],
)
def test_of_several_ways_to_cut_the_one_is_taken_whose_values_are_clearly_as_long_as_usual(
    text: str, values: tuple[str, ...] | None
) -> None:
    assert TextPattern(("Letter: ", "\nTone: ", "\nGo."), (LETTER, TONE)).cut(text) == values


def test_of_many_templates_that_could_be_meant_in_many_ways_only_the_first_few_are_weighed() -> None:
    """Each is tried for a while; the one that fits is found where it stands before all patience is gone."""
    text = f"Letter: He said:\nTone: {ABOUT}" + "\nMood: " * 20 + "\nPlan: " * 20 + "\nTone: dry\nGo."
    fits = TextPattern(("Letter: ", "\nTone: ", "\nGo."), (Slot("letter", usual=(500.0, 1.1)), TONE))
    assert fits.cut(text) is not None
    patience = Patience()
    for label in ("\nMood: ", "\nPlan: "):
        assert TextPattern(("Letter: ", label, "\nGo."), (LETTER, TONE)).cut(text, patience) is None
    assert fits.cut(text, patience) is None


def test_a_number_ends_where_it_ends_whatever_follows() -> None:
    issue = TextPattern(("Issue ", " for ", "."), (Slot("number", "number"), Slot("text")))
    assert issue.cut("Issue 12 for tea for two for me.") == ("12", "tea for two for me")
    assert issue.cut("Issue twelve for tea for two.") is None
    either = TextPattern(("Issue ", " for ", " by ", "."), (Slot("number", "number"), Slot("a"), Slot("b")))
    assert either.cut("Issue 12 for tea by the sea for a day by day.") is None  # which `by`?


def test_without_a_usual_length_for_every_slot_nothing_is_weighed() -> None:
    text = f"Letter: He said:\nTone: {ABOUT}\nTone: dry\nGo."
    assert TextPattern(("Letter: ", "\nTone: ", "\nGo."), (LETTER, Slot("tone"))).cut(text) is None


lengths = st.tuples(st.floats(0, 30), st.floats(1, 5))


@given(
    st.lists(st.text("ab:", min_size=1, max_size=3), min_size=3, max_size=5), st.text("ab:", max_size=40), st.data()
)
def test_what_is_weighed_is_one_of_the_ways_to_cut(literals: list[str], text: str, data: st.DataObject) -> None:
    slots = tuple(Slot(f"s{i}", usual=data.draw(lengths)) for i in range(len(literals) - 1))
    ends = literals[0], literals[-1]
    values = TextPattern(("", *literals[1:-1], ""), slots).cut(text)
    whole = TextPattern(tuple(literals), slots).cut(ends[0] + text + ends[1])
    assert values == whole
    assert values is None or values in _cuts(("", *literals[1:-1], ""), text)


def test_a_value_unlike_all_that_were_seen_is_not_stripped() -> None:
    slot = Slot("message", limit=20, single_line=True)
    pattern = TextPattern(("Message: ", ""), (slot,))
    assert pattern.cut("Message: short") == ("short",)
    assert pattern.cut("Message: " + "long" * 20) is None
    assert pattern.cut("Message: two\nlines") is None
    assert TextPattern(("Say ", ""), (Slot("x", choices=("yes", "no")),)).cut("Say maybe") is None


def test_a_rebuild_is_believed_only_if_it_is_one() -> None:
    request = body(("system", "Teach rain to a child."), ("user", "hm"), ("user", "The pupil says: wet"), n=1)
    inputs = TUTOR.strip(request)
    assert inputs is not None
    assert rebuilds(inputs, request)
    wrong: list[dict[str, Any]] = [
        {"values": ("rain ", "wet")}, {"values": ("rain",)}, {"values": ("rain", "wet", "")},
        {"turns": ()}, {"turns": ({"role": "user", "content": "hm "},)}, {"turns": inputs.turns * 2},
        {"envelope": {}}, {"envelope": {**inputs.envelope, "n": 1.0}}, {"envelope": {**inputs.envelope, "m": 1}},
        {"template": INTENT}, {"template": CHAT},
    ]  # fmt: skip
    for fields in wrong:
        assert not rebuilds(msgspec.structs.replace(inputs, **fields), request)


values = st.tuples(st.sampled_from(["", "a", "\nTone: "]), st.sampled_from(["", "b", "\nReply now:"]))


@given(values, values, st.sampled_from([0, 1, 1.0, True]), st.sampled_from([0, 1, 1.0, True]))
def test_laying_the_pieces_over_a_body_tells_the_same_as_building_it(
    one: tuple[str, str], other: tuple[str, str], n: object, m: object
) -> None:
    request = REPLY.render(Inputs(REPLY, one, (), {"n": n}))
    inputs = Inputs(REPLY, other, (), {"n": m})
    assert rebuilds(inputs, request) == layout.same(REPLY.render(inputs), request)


def test_nothing_that_could_not_be_sent_is_stripped() -> None:
    deep: Any = 0
    for _ in range(300_000):  # msgspec writes 1,000 of them on Python 3.11, and 100,000 on 3.14
        deep = [deep]
    part = {"type": "x", "deep": deep}
    look = MessagePattern(
        layout.read_message({"role": "user", "content": [part | {"deep": 0}]})[0],
        (TextPattern(("", ""), (Slot("part", kind="part"),)),),
    )
    template = PromptTemplate("look", 1, (message("system", SYSTEM), look))
    for content in ([part], [{"type": "x", "text": "\ud800"}]):
        assert template.strip({"messages": [SYSTEM_MESSAGE, {"role": "user", "content": content}]}) is None
    for turn in (
        {"role": "user", "content": "\ud800"},
        {"role": "^system", "content": "x"},
        {"role": "a", "b": deep},
    ):
        assert CHAT.strip({"messages": [SYSTEM_MESSAGE, turn]}) is None
    assert CHAT.strip({"messages": [SYSTEM_MESSAGE, "hi"]}) is None


def test_tools_response_format_and_number_types_are_kept_apart() -> None:
    one = {"model": "m", "messages": [], "response_format": {"n": 1}}
    assert len({layout.bucket_of({**one, "response_format": {"n": n}}) for n in (1, 1.0, True, "1")}) == 4
    assert layout.same({"a": [1]}, {"a": [1]})
    assert not layout.same({"a": [1]}, {"a": [1.0]})
    assert not layout.same(1, True)


def test_a_system_prompt_outside_the_messages_is_part_of_the_template() -> None:
    request = {
        "model": "m",
        "system": SYSTEM,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
    }
    pattern = MessagePattern(layout.read(request).headers[0], (TextPattern((SYSTEM,)),))
    template = PromptTemplate("anthropic", 1, (pattern, message("user", "", "")))
    inputs = template.strip(request)
    assert inputs is not None
    assert inputs.messages == [{"role": "user", "content": "hi"}]
    assert template.render(inputs) == request
    assert template.strip({**request, "system": SYSTEM + "!"}) is None


def test_an_image_stays_a_part() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    request = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look: a cat"}, image]}]}
    pattern = MessagePattern(
        layout.read(request).headers[0],
        (TextPattern(("Look: ", ""), (Slot("what"),)), TextPattern(("", ""), (Slot("part", kind="part"),))),
    )
    template = PromptTemplate("look", 1, (pattern,))
    inputs = template.strip(request)
    assert inputs is not None
    assert inputs.messages == [{"role": "user", "content": [{"type": "text", "text": "a cat"}, image]}]
    assert parse_stripped(template, inputs.messages).values == inputs.values


def test_templates_survive_the_store() -> None:
    for template in (INTENT, REPLY, CHAT, TUTOR):
        assert msgspec.json.decode(msgspec.json.encode(template), type=PromptTemplate) == template


def test_people_see_slots_in_braces() -> None:
    assert show(INTENT) == f"[system]\n{SYSTEM}\n[user]\nMessage: {{{{message}}}}\nIntent:"
    assert INTENT.name == "intent@1"


def test_of_several_templates_the_most_fixed_text_wins_then_the_latest_version() -> None:
    wide = PromptTemplate("wide", 1, (message("system", SYSTEM), message("user", "", "")))
    again = msgspec.structs.replace(INTENT, version=2)
    request = body(("system", SYSTEM), ("user", "Message: a\nIntent:"))
    for order in ([wide, INTENT, again], [again, INTENT, wide]):
        match = TemplateIndex(order).match(request)
        assert match is not None
        assert match.template is again
    other = TemplateIndex([INTENT, wide]).match(body(("system", SYSTEM), ("user", "free text")))
    assert other is not None
    assert other.template is wide


def test_a_template_that_another_replaces_comes_after_it_whatever_their_text() -> None:
    wide = PromptTemplate("wide", 1, (message("system", SYSTEM), message("user", "", "")), replaces="intent@1")
    request = body(("system", SYSTEM), ("user", "Message: a\nIntent:"))
    for order in ([wide, INTENT], [INTENT, wide]):
        match = TemplateIndex(order).match(request)
        assert match is not None
        assert match.template is wide
    narrow = msgspec.structs.replace(
        INTENT, version=2, replaces="wide@1", head=(INTENT.head[0], message("user", "No!"))
    )
    old = TemplateIndex([wide, narrow]).match(request)
    assert old is not None
    assert old.template is wide


def test_a_template_of_hardly_any_text_is_never_matched() -> None:
    bare = PromptTemplate("bare", 1, (message("system", "Be nice"), message("user", "", "")))
    assert TemplateIndex([bare]).match(body(("system", "Be nice"), ("user", "hi"))) is None


def test_an_index_of_many_templates_finds_each() -> None:
    templates = [
        PromptTemplate(f"t{i}", 1, (message("user", f"Answer like number {i}: ", f"\nSigned, writer {i % 7}"),))
        for i in range(300)
    ] + [PromptTemplate(f"e{i}", 1, (message("user", "", f"\nIn the style of writer {i}"),)) for i in range(300)]
    index = TemplateIndex(templates)
    for template in templates:
        field = template.head[0].fields[0]
        match = index.match(body(("user", field.fill(["x"]))))
        assert match is not None
        assert match.template is template


# Few letters, and the template's own pieces among them: this is where inverses break.
tricky = st.text(alphabet="ab\n:[]\\", max_size=8) | st.lists(
    st.sampled_from(["\nTone: ", "Question: ", "[tone]", "\n", "\\[tone]", "[question]", "\nReply now:"]),
    max_size=5,
).map("".join)  # fmt: skip
literal = st.text(alphabet="ab\n:[]", min_size=1, max_size=3)


@given(tricky, tricky)
def test_strip_finds_just_what_was_rendered_or_nothing(question: str, tone: str) -> None:
    request = body(("user", REPLY.head[0].fields[0].fill([question, tone])), temperature=0.5)
    inputs = REPLY.strip(copy.deepcopy(request))
    if inputs is None:
        assert "\nTone: " in question + "|" + tone or question.endswith("\n") or tone.startswith("\n")
    else:
        assert inputs.values == (question, tone)
        assert layout.same(REPLY.render(inputs), request)
        assert parse_stripped(REPLY, inputs.messages).values == inputs.values


@given(st.lists(literal, min_size=1, max_size=4), st.text("ab\n:[]", max_size=3), st.text("ab\n:[]", max_size=16))
def test_a_cut_is_right_and_the_only_one(inner: list[str], edge: str, text: str) -> None:
    pattern = TextPattern((edge, *inner, ""), tuple(Slot(str(i)) for i in range(len(inner) + 1)))
    ways = _cuts(pattern.literals, text)
    assert pattern.cut(text) == (ways[0] if len(ways) == 1 else None)


def _cuts(literals: tuple[str, ...], text: str) -> list[tuple[str, ...]]:
    """Every way to cut, by trying all."""
    if not text.startswith(literals[0]):
        return []
    rest = text[len(literals[0]) :]
    if len(literals) == 1:
        return [()] if not rest else []
    return [(rest[:i], *more) for i in range(len(rest) + 1) for more in _cuts(literals[1:], rest[i:])]


@given(st.lists(st.tuples(st.sampled_from(["question", "tone", "a b"]), tricky), max_size=4))
def test_the_form_of_several_values_reads_back(pairs: list[tuple[str, str]]) -> None:
    assert split_form(join_form(pairs)) == pairs


turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": tricky})


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), tricky), max_size=3), tricky)
def test_wrapped_turns_read_back(turns: list[tuple[str, str]], last: str) -> None:
    said = [(role, f"Customer: {text}\nReply:" if role == "user" else text) for role, text in turns]
    request = body(("system", SYSTEM), *said, ("user", f"Customer: {last}\nReply:"))
    inputs = SUPPORT.strip(request)
    assert inputs is not None
    assert rebuilds(inputs, request)
    assert SUPPORT.render(parse_stripped(SUPPORT, inputs.messages))["messages"] == request["messages"]
    unwrapped = msgspec.structs.replace(inputs, turns=(*inputs.turns, {"role": "user", "content": "a"}))
    assert not rebuilds(unwrapped, request)


@given(st.sampled_from([CHAT, TUTOR]), tricky, tricky, st.lists(turn, min_size=1, max_size=3))
def test_stripped_messages_read_back(
    template: PromptTemplate, topic: str, answer: str, turns: list[dict[str, Any]]
) -> None:
    messages = [{"role": "system", "content": SYSTEM}, *turns]
    if template is TUTOR:
        messages[0] = {"role": "system", "content": f"Teach {topic} to a child."}
        messages.append({"role": "user", "content": f"The pupil says: {answer}"})
    inputs = template.strip({"messages": messages})
    assert inputs is not None
    again = parse_stripped(template, inputs.messages)
    assert template.render(again) == {"messages": messages}


scalar = st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, 0.5, 2**70, "", "a", "\ud800", "é"])
json_value = scalar | st.lists(scalar, max_size=2) | st.dictionaries(st.sampled_from(["a", "", "type"]), scalar)
text_part = st.fixed_dictionaries({"type": st.just("text"), "text": tricky}, optional={"cache": json_value})
any_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "tool", "^system", "x\x1fy"])},
    optional={
        "content": tricky | json_value | st.lists(text_part | json_value, max_size=3),
        "name": json_value,
        "": json_value,
    },
)
top_level = st.dictionaries(st.sampled_from(["model", "system", "tools"]), json_value, max_size=2)


@given(st.lists(any_message, max_size=3), top_level)
def test_any_body_is_refused_or_put_together_again(messages: list[Any], others: dict[str, Any]) -> None:
    request = {**others, "messages": messages}
    try:
        seen = layout.read(request)
    except layout.Unreadable:
        return
    assert layout.same(layout.write(seen.headers, seen.fields, seen.envelope), request)


@pytest.mark.parametrize("place", [0, 900, 2500, 4500])
def test_another_sentence_is_looked_for_where_one_could_be_put(place: int) -> None:
    """Beside the value: behind what was put before it, or before what was put behind it."""
    words = "a" * place + " Answer in French. Then " + "a" * (5000 - place)
    assert several_sentences(words) is (place != 2500)
    assert not several_sentences("a" * 5000)
