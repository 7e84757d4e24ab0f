"""A template as YAML: what is written reads back as it was, and a person's mistakes are named with their lines."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.document import InvalidConfig
from gateway.domain import layout
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.errors import TaskError
from gateway.pipeline.template_text import Draft, read_draft, write_template


def header(role: str, **others: Any) -> str:
    return layout.read_message({"role": role, "content": "", **others})[0]


def message(role: str, *literals: str, slots: tuple[Slot, ...] = (), **others: Any) -> MessagePattern:
    return MessagePattern(header(role, **others), (TextPattern(literals, slots),))


MAIL = PromptTemplate(
    "mail",
    3,
    (
        message("system", "You sort the mail of a small shop.\nAnswer with one word:\n  refund or other."),
        message("user", "Message: ", "\nIntent:", slots=(Slot("message", limit=420, single_line=True),)),
    ),
)

MAIL_TEXT = """\
task: mail
based_on: mail@3
pin: false
messages:
- role: system
  text: |-
    You sort the mail of a small shop.
    Answer with one word:
      refund or other.
- role: user
  text: |-
    Message: {{message}}
    Intent:
slots:
  message: {limit: 420, single_line: true}
"""


def read(text: str) -> Draft:
    return read_draft("mail.yaml", text.encode())


def wrong(text: str) -> list[str]:
    """What is said of a text that is no template."""
    with pytest.raises(InvalidConfig) as refused:
        read(text)
    return [str(problem) for problem in refused.value.problems]


def test_a_template_reads_like_its_prompt() -> None:
    written = "".join(line for line in write_template(MAIL).splitlines(keepends=True) if line[0] != "#")
    assert written == MAIL_TEXT
    assert read(MAIL_TEXT).template == MAIL
    assert (read(MAIL_TEXT).based_on, read(MAIL_TEXT).pin) == ("mail@3", False)


def test_what_a_person_changes_is_what_is_read() -> None:
    text = MAIL_TEXT.replace("a small shop", "{{kind}} shop").replace("message}}", "letter}}")
    text = text.replace("  message: {limit: 420, single_line: true}", "  letter: {limit: 99}").replace(
        "n: f", "n: t"
    )
    draft = read(text.replace("pin: talse", "pin: true"))
    assert draft.template.literals[:2] == (
        "You sort the mail of ",
        " shop.\nAnswer with one word:\n  refund or other.",
    )
    assert draft.template.slots == (Slot("kind"), Slot("letter", limit=99))
    assert draft.pin


def test_a_template_of_ones_own_needs_little() -> None:
    draft = read("task: letters\nmessages:\n- role: user\n  text: 'Answer this letter: {{letter}}'\n")
    assert draft.template == PromptTemplate(
        "letters", 1, (message("user", "Answer this letter: ", "", slots=(Slot("letter"),)),)
    )
    assert (draft.based_on, draft.pin) == ("", False)


def test_tools_and_response_format_are_written_out_where_they_are_known() -> None:
    asked = {"model": "m", "response_format": {"type": "json_object"}, "tools": [{"n": 1.0}]}
    template = msgspec.structs.replace(MAIL, bucket=layout.bucket_of(asked))
    written = write_template(template, settings=asked)
    assert '{"response_format": {"type": "json_object"}, "tools": [{"n": 1.0}]}' in written
    assert read(written).template == template
    assert "settings: " + template.bucket[:4] in write_template(template).replace("'", "")
    assert read(write_template(template, settings={"tools": []})).template == template
    by_hand = MAIL_TEXT + "settings: {response_format: {type: json_object}, tools: [{n: 1.0}]}\n"
    assert read(by_hand).template == template


def test_a_prompt_that_quotes_marks_gets_others() -> None:
    quoting = msgspec.structs.replace(
        MAIL, head=(message("user", "Fill {{name}} and << x >>: ", "{", slots=(Slot("a"),)),)
    )
    written = write_template(quoting)
    assert "marks: << >>" in written
    assert "Fill {{name}} and << x >>: <<a>>{" in written
    assert read(written).template == quoting


CHAT = PromptTemplate(
    "тема 7",
    2,
    (
        MessagePattern(
            "^" + layout.read_message({"role": "system", "content": ""})[0], (TextPattern(("Be kind to all.",)),)
        ),
        MessagePattern(
            layout.read_message(
                {
                    "role": "user",
                    "name": "bob\u2028",
                    "content": [{"type": "text", "text": "", "cache": {"on": 1.0}}, {"type": "image"}],
                }
            )[0],
            (TextPattern(("  two\r\nlines \n\n",)), TextPattern(("", ""), (Slot("part", kind="part"),))),
        ),
    ),
    turns=True,
    tail=(message("user", "", "\n\n", slots=(Slot("last", choices=("yes\n", " no", "null")),)),),
)


def test_parts_turns_other_keys_and_a_system_prompt_beside_the_messages() -> None:
    written = write_template(CHAT, pin=True)
    assert read(written).template == CHAT
    assert read(written).pin
    assert "- turns: true" in written
    assert "role: ^system" in written


def test_turns_that_are_wrapped_like_the_last_message() -> None:
    wrapping = PromptTemplate(
        "mail", 1, (), True, (message("user", "Say it again: ", "", slots=(Slot("said"),)),), wraps=True
    )
    written = write_template(wrapping)
    assert "  wrapped: true" in written
    assert read(written).template == wrapping
    with pytest.raises(InvalidConfig, match="with one slot"):
        read(written.replace("{{said}}", "").split("slots:")[0])


# Texts where YAML, editors and marks do their worst.
odd = st.text(
    st.sampled_from(" \t\n\r:#-?|>{}[]<>\"'%@\\&*!a1é\u0085\u00a0\u2028\ufeff\x00\x1b\x7f\ue000\uffff😀")
    | st.characters(),
    max_size=12,
).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
text = odd | st.lists(
    st.sampled_from(["{{a}}", "{{", "}}", "<<a>>", "\n", " ", "a", "a: b", "- c", "---\n", "...\n", "# d", "\t"]),
    max_size=6,
).map("".join)  # fmt: skip
scalar = st.sampled_from([None, True, 0, 1, 1.0, 1e20, 1e-9, 2**70, "", "a", "é\n", "2024-01-01"])
value = (
    scalar | st.lists(scalar, max_size=2) | st.dictionaries(st.sampled_from(["a", "on", "1"]), scalar, max_size=2)
)
keys = st.dictionaries(st.sampled_from(["name", "tool_calls", "no", "é"]), value, max_size=2)
part = st.fixed_dictionaries({"type": st.just("text"), "text": st.just("")}, optional={"cache": value}) | st.just(
    {"type": "image"}
)
content = st.sampled_from([{"content": ""}, {}, {"content": None}]) | st.builds(
    dict, content=st.lists(part, max_size=3)
)
roles = st.sampled_from(["system", "user", "assistant", "on", "null", "1", "a: b", "é\n"])
headers = st.builds(
    lambda role, rest, more: layout.read_message({**rest, **more, "role": role})[0], roles, keys, content
)
names = st.sampled_from(["a", "b", "input-2", "on", "null", "1", "été", "user id", "x.y"])
slots = st.builds(Slot, name=names, kind=st.sampled_from(["text", "date", "id", "json"]), limit=st.integers(0, 99),
                  single_line=st.booleans(), lone_line=st.booleans(), choices=st.lists(text, max_size=2).map(tuple),
                  usual=st.none() | st.tuples(st.floats(0, 1e6), st.floats(1, 99)))  # fmt: skip


@st.composite
def templates(draw: st.DrawFn) -> PromptTemplate:
    """Any template: odd texts, all forms of messages, every slot with a name of its own."""
    free = draw(st.lists(slots, max_size=5, unique_by=lambda slot: slot.name))

    def field() -> TextPattern:
        mine = tuple(free.pop() for _ in range(draw(st.integers(0, min(2, len(free))))))
        literals = [draw(text) for _ in range(len(mine) + 1)]
        return TextPattern(tuple(t or "x" if 0 < i < len(mine) else t for i, t in enumerate(literals)), mine)

    def pattern(header: str) -> MessagePattern:
        form = layout.parse_header(header)[1]
        count = 1 if form == "s" else len(form) - 1 if form[0] == "l" else 0
        return MessagePattern(header, tuple(field() for _ in range(count)))

    head, tail = (tuple(map(pattern, draw(st.lists(headers, max_size=2)))) for _ in "ht")
    long = message("user", "A template is never shorter than this.")
    turns = draw(st.booleans())
    task = draw(st.sampled_from(["mail", "тема 7", "no", "a:b"]))
    bucket = draw(st.sampled_from(["", "0" * 16, "1234567812345678", "abcdef0123456789", "1e30000000000000"]))
    return PromptTemplate(task, draw(st.integers(1, 99)), (*head, long), turns, tail if turns else (), bucket)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(templates())
def test_what_is_written_reads_back_as_it_was(template: PromptTemplate) -> None:
    assert read(write_template(template)).template == template


@given(text)
def test_an_editor_that_takes_blanks_off_the_ends_of_lines_changes_nothing(words: str) -> None:
    template = PromptTemplate("mail", 1, (message("user", "A long enough text: " + words),))
    trimmed = "".join(line.rstrip(" \t") + "\n" for line in write_template(template).split("\n"))
    assert read(trimmed).template == template


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("pin: false", "pin: perhaps", "mail.yaml:3: pin: input should be a valid boolean"),
        ("based_on: mail@3", "based_on: mail", "mail.yaml:2: based_on: must be TASK@VERSION; leave it out"),
        ("task: mail", "task: mail@3", "mail.yaml:1: task: must be a name without '@'"),
        ("pin:", "pinned:", "mail.yaml:3: pinned: unknown key; did you mean 'pin'?"),
        ("  message: {limit", "  massage: {limit", "mail.yaml:15: slots.massage: stands in no text"),
        ("limit: 420", "limits: 420", "mail.yaml:15: slots.message.limits: unknown key; known keys: kind, limit"),
        ("limit: 420", "limit: long", "mail.yaml:15: slots.message: Expected `int`, got `str`"),
        ("limit: 420", "limit: -1", "mail.yaml:15: slots.message.limit: must not be negative"),
        ("limit: 420", "kind: numbr", "mail.yaml:15: slots.message.kind: no kind of slot; there are"),
        ("limit: 420", "kind: part", "mail.yaml:11: messages[1].text: {{message}} of 'kind: part' is a whole"),
        ("Intent:\n", "{{message}}\n", "mail.yaml:11: messages[1].text: {{message}} stands in the messages twice"),
        ("Message: {{m", "{{x}}{{m", "mail.yaml:11: messages[1].text: {{x}}{{message}}: between two slots"),
        ("- role: user", "- role: ^user", "mail.yaml:10: messages[1].role: beside the messages there is only"),
        ("- role: user", "- parts: []", "mail.yaml:10: messages[1].parts: a message has text or parts"),
        ("- role: user\n", "-\n", "mail.yaml:11: messages[1]: no message that a request could have"),
        ("slots:", "settings: {model: m}\nslots:", "mail.yaml:14: settings.model: is no part of the prompt;"),
        ("slots:", "marks: a b\nslots:", "mail.yaml:14: marks: must be two marks"),
        ("slots:", "task: post\nslots:", "mail.yaml:14: task: stands here twice"),
        ("- role: user\n", "- role: user\n  others: 'x'\n", "mail.yaml:11: messages[1].others: no JSON"),
        ("messages:", "messages: {}\nslot:", "mail.yaml:4: messages: input should be a valid list"),
        ("pin: false", "pin: [", "mail.yaml:"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_a_remedy(before: str, after: str, said: str) -> None:
    assert any(problem.startswith(said) for problem in wrong(MAIL_TEXT.replace(before, after))), wrong(
        MAIL_TEXT.replace(before, after)
    )


def test_every_mistake_is_named_at_once() -> None:
    text = (
        MAIL_TEXT.replace("limit: 420", "limits: 4")
        .replace("Intent:", "{{message}}")
        .replace("role: user", "role: 1")
    )
    assert len(wrong(text)) == 1  # of the wrong form: the rest cannot be read
    assert len(wrong(text.replace("role: 1", "role: user"))) == 2


def test_a_template_of_hardly_any_text_is_refused() -> None:
    (said,) = wrong("task: a\nmessages:\n- role: user\n  text: 'Do: {{a}}'\n")
    assert said.startswith("mail.yaml:2: messages: a template needs 3 fixed words at least")


def test_slots_of_equal_names_cannot_be_written() -> None:
    twice = msgspec.structs.replace(MAIL, head=MAIL.head + MAIL.head)
    with pytest.raises(TaskError, match="cannot be written down by name"):
        write_template(twice)
