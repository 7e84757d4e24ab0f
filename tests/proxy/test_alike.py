"""Requests like one met before are told by their bytes, and no plan is another for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stories import NEW_SYSTEM, SYSTEM, asked, template

from gateway.domain import layout
from gateway.domain.matching import Match, TemplateIndex
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.providers.openai import read_chat
from gateway.proxy.alike import KNOWN_AT_MOST, LARGEST, Alike

HEADER = layout.read_message({"role": "user", "content": ""})[0]


def with_slot(*literals: str, version: int = 1, **said: Any) -> PromptTemplate:
    """The shop's prompt with the customer's words in a text of these pieces."""
    slots = tuple(Slot(f"message_{n}", **said) for n in range(len(literals) - 1))
    return PromptTemplate(
        "mail", version, (template().head[0], MessagePattern(HEADER, (TextPattern(literals, slots),)))
    )


def compact(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def spaced(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def read(templates: list[PromptTemplate], body: bytes) -> tuple[dict[str, Any], Match] | None:
    """What a relay makes of a body that it reads as a whole."""
    parsed = read_chat(body)
    match = TemplateIndex(templates).match(parsed) if parsed is not None else None
    return None if parsed is None or match is None else (parsed, match)


def met(templates: list[PromptTemplate], *bodies: bytes) -> Alike:
    """What is known of requests when these were met."""
    alike = Alike(templates)
    for body in bodies:
        found = read(templates, body)
        assert found is not None
        alike.met(body, *found)
    return alike


def agree(templates: list[PromptTemplate], alike: Alike, body: bytes) -> bool:
    """Whether it is told by its bytes; what is told then is what is read."""
    told = alike.read(body)
    if told is None:
        return False
    parsed, match = told
    whole = read(templates, body)
    assert whole is not None
    assert layout.same(parsed, whole[0])
    assert list(parsed) == list(whole[0])
    assert match == whole[1]
    return True


@pytest.mark.parametrize("written", [compact, spaced])
@pytest.mark.parametrize(
    ("literals", "text"),
    [(("Message: ", ""), "Message: {}"), (("", ""), "{}"), (('Say "', '" in French.\n'), 'Say "{}" in French.\n')],
)
def test_the_next_request_is_told_by_its_bytes(written: Any, literals: tuple[str, ...], text: str) -> None:
    def body(value: str) -> bytes:
        request = asked("", temperature=0.5, user="app")
        request["messages"][1]["content"] = text.format(value)
        return bytes(written(request))

    templates = [with_slot(*literals)]
    alike = met(templates, body("where is my parcel"))
    assert agree(templates, alike, body("it came broken"))
    assert agree(templates, alike, body('two\nlines, "quoted", C:\\temp, naïve 🙂, and \x07'))
    assert agree(templates, alike, body(""))


def test_a_value_that_stands_in_the_prompt_too_is_found_where_the_slot_is() -> None:
    templates = [with_slot("", "")]
    one = asked("", user=SYSTEM[:3])
    one["messages"][1]["content"] = SYSTEM[:3]
    alike = met(templates, compact(one))
    one["messages"][1]["content"] = "another"
    assert agree(templates, alike, compact(one))


BODY = spaced(asked("where is my parcel", temperature=1, user="app"))

OTHER = {
    "another prompt": BODY.replace(b"system", b"developer"),
    "another key": BODY.replace(b'"temperature": 1', b'"temperature": 2'),
    "a key more": BODY.replace(b'"user"', b'"seed": 1, "user"'),
    "a second content": BODY.replace(b"parcel", b'parcel", "content": "x'),
    "a message more": BODY.replace(b"parcel", b'parcel"}, {"role": "user", "content": "Message: x'),
    "what looks like a key": BODY.replace(b"where is my parcel", b'say \\"content'),
    "a key spelled otherwise": BODY.replace(b"parcel", b"\\u0063ontent"),
    "a lone surrogate": BODY.replace(b"parcel", b"\\ud83d"),
    "a line end": BODY.replace(b"parcel", b"par\ncel"),
    "no UTF-8": BODY.replace(b"parcel", b"par\xffcel"),
    "half a character": BODY.replace(b"parcel", b"\xc3"),
    "an escape without an end": BODY.replace(b"parcel", b"\\"),
    "cut off": BODY[:-1],
    "a byte more": BODY + b" ",
    "much too long": BODY.replace(b"parcel", b"x" * LARGEST),
}


@pytest.mark.parametrize("difference", OTHER)
def test_whatever_else_differs_is_read_as_a_whole(difference: str) -> None:
    assert OTHER[difference] != BODY
    assert met([template()], BODY).read(OTHER[difference]) is None


def test_a_value_unlike_all_that_were_seen_is_none() -> None:
    templates = [with_slot("Message: ", "", limit=30, single_line=True)]
    alike = met(templates, BODY)
    assert agree(templates, alike, BODY.replace(b"parcel", b"box"))
    for value in (b"so many words that nobody would say", b"one\\ntwo"):
        assert alike.read(BODY.replace(b"where is my parcel", value)) is None


def test_two_values_in_one_text_are_cut_as_ever() -> None:
    templates = [with_slot("Message: ", " my ", "")]
    alike = met(templates, BODY)
    assert agree(templates, alike, BODY.replace(b"where is my parcel", b"it broke, my \\nbox"))
    for text in (b"where is it", b"is it my own my thing"):
        assert read(templates, BODY.replace(b"where is my parcel", text)) is None
        assert alike.read(BODY.replace(b"where is my parcel", text)) is None


@pytest.mark.parametrize("value", ["u0063 is where it is", "temp\\"])
def test_a_key_that_could_be_spelled_with_the_prompt_next_to_the_value_is_looked_for(value: str) -> None:
    """A reader with less patience takes `C:\\u0063`, a back slash and a name, for the letter c."""
    templates = [with_slot("Open C:\\", "u0063.txt")]

    def body(value: str) -> bytes:
        request = asked("", temperature=1)
        request["messages"][1]["content"] = f"Open C:\\{value}u0063.txt"
        return spaced(request)

    alike = met(templates, body("letters"))
    assert agree(templates, alike, body("mail"))
    assert read(templates, body(value)) is None
    assert alike.read(body(value)) is None


def test_values_in_two_texts_and_a_conversation_are_read_as_a_whole() -> None:
    system = MessagePattern(template().head[0].header, (TextPattern((SYSTEM[:20], ""), (Slot("rest"),)),))
    two = PromptTemplate("mail", 1, (system, with_slot("Message: ", "").head[1]))
    assert met([two], BODY).read(BODY) is None
    talk = template(turns=True)
    assert met([talk], BODY).read(BODY) is None


def test_where_another_template_could_claim_some_value_every_request_is_read_as_a_whole() -> None:
    brief = with_slot("Message: ", "\nBe brief.", version=2)
    assert met([template(), brief], BODY).read(BODY) is None
    assert met([template(), template(NEW_SYSTEM, 2)], BODY).read(BODY) is not None
    assert met([template(), template(turns=True, task="talk")], BODY).read(BODY) is not None  # it says less
    assert met([template(turns=True, task="talk"), template()], BODY).read(BODY) is not None


def test_a_request_whose_keys_may_be_hidden_teaches_nothing() -> None:
    """It is read because it is written without spaces; others like it need not be."""
    body = compact(asked("where is my parcel", user="content"))
    assert read([template()], body) is not None
    assert met([template()], body).read(body) is None


def test_an_app_that_never_sends_the_same_keys_is_looked_into_ever_more_rarely() -> None:
    bodies = [spaced(asked("where is my parcel", user=f"app-{n}")) for n in range(1000)]
    alike = met([template()], *bodies)
    known = [n for n, body in enumerate(bodies) if alike.read(body) is not None]
    assert known == [2**n - 1 for n in range(2, 10)]
    assert len(known) == KNOWN_AT_MOST


NEAR = [template(), template(NEW_SYSTEM, 2)]
TWO = [with_slot("Message: ", "a", "b", "")]
ALIKE = met(NEAR, BODY, compact(asked("where is my parcel")))
ALIKE_TWO = met(TWO, spaced(asked("1 a 2 b 3", temperature=1, user="app")), compact(asked("1 a 2 b 3")))
TEXT = st.text(alphabet=st.sampled_from('ab"\\/\n\x00\x7f{}[]:, é🙂'), max_size=12)


@given(value=TEXT | st.text(max_size=20), is_spaced=st.booleans())
@settings(max_examples=1000, deadline=None)
def test_whatever_the_value_is_it_is_told_as_it_is_read(value: str, is_spaced: bool) -> None:
    try:
        body = spaced(asked(value, temperature=1, user="app")) if is_spaced else compact(asked(value))
    except UnicodeEncodeError:
        return
    assert agree(NEAR, ALIKE, body) == (read(NEAR, body) is not None)
    assert agree(TWO, ALIKE_TWO, body) == (read(TWO, body) is not None)


@given(
    at=st.integers(0, len(BODY)),
    gone=st.integers(0, 8),
    put=st.text(alphabet='\\"u0063content{}:, \n\x01é', max_size=6).map(lambda text: text.encode("latin-1")),
)
@settings(max_examples=3000, deadline=None)
def test_whatever_stands_there_is_told_as_it_is_read_or_not_at_all(at: int, gone: int, put: bytes) -> None:
    agree(NEAR, ALIKE, BODY[:at] + put + BODY[at + gone :])


@given(
    middle=st.lists(
        st.sampled_from(
            [b'"', b"\\", b"content", b"u0063", b"ud83d", b"\\ude00", b"role", b"x", b"\xc3\xa9", b"\xc3", b" "]
        ),
        max_size=8,
    ).map(b"".join)
)
@settings(max_examples=3000, deadline=None)
def test_no_bytes_between_are_taken_for_a_value_that_reading_does_not_find(middle: bytes) -> None:
    body = BODY.replace(b"where is my parcel", middle)
    assert agree(NEAR, ALIKE, body) == (read(NEAR, body) is not None)
