"""Personal data and secrets are replaced by something of the same form; nothing else is touched."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stories import asked, template

from gateway.domain.template import Inputs
from gateway.pipeline.scrub import KINDS, scrub, scrubbed


def found(text: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    scrub(text, counts)
    return dict(counts)


def masked(text: str) -> str:
    return scrub(text, Counter())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to ann.lee+shop@mail.corp.example, please", "email"),
        ("почта: аня@пример.рф", "email"),
        ("call +49 30 1234567 after six", "phone"),
        ("my number is (415) 555-2671", "phone"),
        ("or 415-555-2671 at work", "phone"),
        ("paid with 4111 1111 1111 1111 in May", "card"),
        ("card 5500005555555559", "card"),
        ("to DE89 3704 0044 0532 0130 00, thanks", "iban"),
        ("my ssn is 123-45-6789", "ssn"),
        ("from 203.0.113.77 at noon", "ip"),
        ("key sk-proj-abcdefghijklmnop1234567890", "secret"),
        ("AKIAIOSFODNN7EXAMPLE is the id", "secret"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "secret"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijklmnop", "secret"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqh\nkiG9w0BAQEF\n-----END PRIVATE KEY-----", "secret"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwx", "password"),
        ("the password: hunter2!x works", "password"),
        ("API_KEY=abc123def456", "password"),
    ],
)
def test_what_its_form_gives_away_is_found_and_replaced(text: str, kind: str) -> None:
    assert found(text) == {kind: 1}
    assert masked(text) != text
    assert found(masked(text)).keys() <= {kind}


@pytest.mark.parametrize(
    "text",
    [
        "order 4415552671 of 2026-11-23 10:20:33 came to 1,203.50",
        "track 1Z999AA10123456784, version 1.2.3, invoice 2026/1107/44",
        "paid with 4111 1111 1111 1112",  # the check digit is wrong
        "DE89 3704 0044 0532 0130 01",
        "123e4567-e89b-12d3-a456-426614174000",
        "see http://shop.example/items?id=12345678",
        "the key to the house, a secret of mine, token by token",
        "1 2 3 4 5 6 7 8 9 10 11 12 13",
        "@ home, me@work, a@b",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert found(text) == {}
    assert masked(text) == text


def test_a_replacement_has_the_same_form_and_is_the_same_each_time() -> None:
    text = "I am ann@corp.example, +1 (415) 555-2671, sk-live-Abcdefghij0123456789"
    changed = masked(text)
    assert changed == masked(text)
    assert re.fullmatch(
        r"I am person\d+@example\.com, \+\d \(\d{3}\) \d{3}-\d{4}, sk-[a-z]{4}-[A-Z][a-z]{9}\d{10}", changed
    )
    assert masked("ann@corp.example") in changed


def test_the_input_and_the_answer_get_the_same_replacement() -> None:
    inputs = template().strip(asked("send it to ann@corp.example"))
    assert inputs is not None
    counts: Counter[str] = Counter()
    clean, answer = scrubbed(inputs, '{"email": "ann@corp.example"}', counts)
    (address,) = re.findall(r"person\d+@example\.com", clean.text)
    assert answer == f'{{"email": "{address}"}}'
    assert counts == {"email": 2}
    assert clean.text == f"send it to {address}"


def test_turns_are_scrubbed_in_all_their_texts_and_pictures_are_not() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,ann@corp.example"}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"who": "ann@corp.example"}'}}
    turns: tuple[dict[str, Any], ...] = (
        {"role": "user", "content": [{"type": "text", "text": "I am ann@corp.example"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "ann@corp.example: gold"},
    )
    counts: Counter[str] = Counter()
    clean, _ = scrubbed(Inputs(template(turns=True), (), turns), "", counts)
    assert counts == {"email": 3}
    assert clean.turns[0]["content"][1] == picture
    assert str(clean.turns).count("ann@corp.example") == 1
    assert turns[0]["content"][0]["text"] == "I am ann@corp.example"


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab1 2.-_@+()=:skAKIAeyJ\n٣é"), max_size=300))
def test_any_text_comes_through_line_by_line_and_changes_only_where_something_was_found(text: str) -> None:
    counts: Counter[str] = Counter()
    changed = scrub(text, counts)
    assert counts.keys() <= set(KINDS)
    assert (changed == text) or counts
    assert len(changed.splitlines()) == len(text.splitlines())


@pytest.mark.parametrize(
    "unit", ["a@", "1 ", "1.", "+1 ", "(12) ", "A1", "sk-", "key=", "-----BEGIN PRIVATE KEY-----"]
)
def test_no_text_takes_long(unit: str) -> None:
    import time

    times = []
    for size in (4_000, 16_000):
        started = time.process_time()
        scrub(unit * (size // len(unit)), Counter())
        times.append(time.process_time() - started)
    assert times[1] < max(0.3, 12 * times[0])
