"""The demo's prompts: of a size that pays to remove, for any label set, and changed ones that must stay whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.demo.answers import prompt_tokens
from gateway.demo.messages import Labelled, load, messages
from gateway.demo.prompts import Prompt, few_shot, one_offs, triage, urgency

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROWS = messages(count=600)
PROMPTS = [few_shot(ROWS), triage()]


def _made_up(labels: int) -> list[Labelled]:
    return [
        Labelled(f"Please look into my matter number {n}, of sort {n % labels}.", f"matter_of_sort_{n % labels}")
        for n in range(max(120, labels * 10))
    ]


@pytest.mark.parametrize("labels", [2, 3, 12, 40, 77, 150])
def test_a_prompt_for_any_number_of_labels_has_1000_to_2000_tokens(labels: int) -> None:
    prompt = few_shot(_made_up(labels))
    assert 1000 <= prompt.size() / 4 <= 2000
    assert 1000 <= prompt_tokens(prompt.request("Where is my teapot?")) <= 2000
    assert len(prompt.examples) >= 6
    system = prompt.turns[0][1].splitlines()
    assert all(any(line.startswith(f"- matter_of_sort_{n}") for line in system) for n in range(labels))


@pytest.mark.parametrize("name", ["banking77.jsonl", "snips_extract.jsonl"])
def test_a_prompt_for_a_public_data_set_shows_no_text_of_the_test_split(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data sets are not here")
    rows = load(SHARED / name)
    prompt = few_shot(rows)
    assert 1000 <= prompt.size() / 4 <= 2000
    assert set(prompt.examples) <= {row.text for row in rows if row.split == "train"}
    assert all(row.label in prompt.turns[0][1] for row in rows)


def test_the_prompt_explains_the_built_in_labels_and_shows_right_examples() -> None:
    prompt = few_shot(ROWS)
    assert "- refund_status: money for a returned or cancelled order" in prompt.turns[0][1]
    gold = {row.text: row.label for row in ROWS}
    asked = [content for role, content in prompt.turns if role == "user"]
    answered = [content for role, content in prompt.turns if role == "assistant"]
    assert answered == [gold[text] for text in prompt.examples]
    assert all(text in shown for text, shown in zip(prompt.examples, asked, strict=True))


def test_the_prompt_does_not_depend_on_how_many_more_rows_there_are() -> None:
    assert few_shot(messages(count=600)) == few_shot(messages(count=2000))


def test_the_last_message_wraps_the_text_and_says_how_to_answer() -> None:
    assert few_shot(ROWS).request("Where is my teapot?")[-1] == {
        "role": "user",
        "content": 'Customer message:\n"""\nWhere is my teapot?\n"""\n\nAnswer with the label only.',
    }


def test_the_second_task_is_one_user_message_with_the_text_in_its_middle() -> None:
    (only,) = triage().request("Sparks came out of it.")
    before, after = only["content"].split("Sparks came out of it.")
    assert only["role"] == "user"
    assert before.endswith("<message>\n")
    assert after.startswith("\n</message>")
    assert len(before) > 500 < len(after) * 4


@given(text=st.text(max_size=300), which=st.sampled_from([*PROMPTS, *PROMPTS[0].changes(), *PROMPTS[1].changes()]))
@settings(max_examples=300, deadline=None)
def test_taking_the_text_out_is_the_inverse_of_putting_it_in(text: str, which: Prompt) -> None:
    assert which.text_in(which.request(text)) == text


@given(text=st.text(max_size=80), where=st.integers(0, 30), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_request_that_lost_or_gained_anything_outside_its_text_is_not_the_prompts(
    text: str, where: int, data: st.DataObject
) -> None:
    prompt = PROMPTS[0]
    request = prompt.request(text)
    at = where % len(prompt.turns)
    change = data.draw(st.sampled_from(["drop", "edit", "role", "key", "more"]))
    if change == "drop":
        del request[at]
    elif change == "edit":
        request[at] = {**request[at], "content": request[at]["content"] + "."}
    elif change == "role":
        request[at] = {**request[at], "role": "developer"}
    elif change == "key":
        request[at] = {**request[at], "name": "eve"}
    else:
        request.append({"role": "user", "content": "And now in French."})
    assert prompt.text_in(request) is None


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_each_change_adds_one_instruction_and_keeps_everything_else(prompt: Prompt) -> None:
    before = _flat(prompt, "My kettle leaks.")
    for changed in prompt.changes():
        after = _flat(changed, "My kettle leaks.")
        assert len(after) > len(before) + 20, changed.name
        start = next(n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        end = len(before) - start
        assert after.endswith(before[len(before) - end :]), changed.name


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_changed_requests_come_in_all_four_places_and_are_the_same_each_time(prompt: Prompt) -> None:
    used = Counter(prompt.changed_for(row.text).name for row in ROWS)
    assert set(used) == {
        f"{prompt.name}/{place}" for place in ("instructions", "before_text", "after_text", "example")
    }
    assert min(used.values()) > 100
    assert prompt.changed("My kettle leaks.") == prompt.changed("My kettle leaks.")


def test_the_answer_to_a_changed_prompt_shows_that_the_instruction_was_read() -> None:
    said = {changed.name: changed.answer("refund_status") for changed in few_shot(ROWS).changes()}
    assert said == {
        "few_shot/instructions": "REFUND_STATUS",
        "few_shot/before_text": "partner: refund_status",
        "few_shot/after_text": "refund_status\nhigh",
        "few_shot/example": "refund_status",
    }


@pytest.mark.parametrize(
    ("text", "pile"),
    [
        ("Sparks came out of the plug.", "high"),
        ("I was charged twice for a lamp.", "high"),
        ("My lamp is broken. I need it by tomorrow.", "high"),
        ("No rush, but is my rug coming?", "low"),
        ("The mirror is cracked. Take your time.", "low"),
        ("How tall is the wardrobe?", "low"),
        ("The wardrobe is missing its door.", "normal"),
        ("I can't log in!!!", "normal"),
        ("Did it go out with today's post?", "low"),
        ("And some day, not today: how tall is it?", "normal"),
    ],
)
def test_urgency_follows_the_rules_that_its_prompt_states(text: str, pile: str) -> None:
    assert urgency(text) == pile


def test_every_pile_gets_its_share_of_the_messages() -> None:
    shares = Counter(urgency(row.text) for row in ROWS)
    assert min(shares.values()) > 0.05 * len(ROWS)
    assert max(shares.values()) < 0.75 * len(ROWS)


def test_one_off_requests_are_all_different_and_belong_to_no_prompt() -> None:
    chats = one_offs(seed=3, count=500)
    assert len({repr(chat) for chat in chats}) == 500
    assert chats[:50] == one_offs(seed=3, count=50)
    assert {len(chat) for chat in chats} >= {1, 2, 3, 4}
    assert all(prompt.text_in(chat) is None for prompt in PROMPTS for chat in chats)


def _flat(prompt: Prompt, text: str) -> str:
    return "".join(f"<{message['role']}>{message['content']}" for message in prompt.request(text))
