"""Prompt templates are found in traffic that nobody labelled."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from gateway.domain.matching import TemplateIndex
from gateway.pipeline.infer import Inference, Recorded, infer

INTENT = """Classify the customer message into one intent.
Intents: card_lost, refund, balance, fees

Message: I cannot find my card
Intent: card_lost
Message: Give me my money back
Intent: refund
Message: {}
Intent:"""
URGENCY = """How urgent is this support ticket? Answer low, medium or high.

Ticket: The whole site is down
Urgency: high
Ticket: A typo in the footer
Urgency: low
Ticket: {}
Urgency:"""
SYSTEM = "You turn questions about a shop's orders into SQL. Answer with the statement only, no prose."
NOUNS = [
    "card",
    "app",
    "invoice",
    "phone",
    "order",
    "plan",
    "password",
    "refund",
    "parcel",
    "flight",
    "ticket",
    "router",
    "meter",
    "policy",
]
VERBS = ["lost", "broke", "blocked", "charged", "returned", "shipped", "missed", "cancelled", "renewed", "paid"]
REST = ["today", "two days ago", "again and again", "when I travelled to Rome", "since the update", "for my mother"]


def sentence(rng: random.Random) -> str:
    """What a customer might write: no two begin or end alike for long."""
    noun, verb, when = rng.choice(NOUNS), rng.choice(VERBS), rng.choice(REST)
    shapes = (
        f"{noun} {verb} {when}",
        f"I think you {verb} the {noun} {when}, why?",
        f"Hello, {when} a {noun} of mine got {verb}. Please help",
        f"{when}: {verb} {noun}",
        f"Can anybody tell me who {verb} it {when}?",
        f"the {noun}'s {rng.choice(NOUNS)} is {verb}!",
    )
    return rng.choice(shapes) + rng.choice(["", " Thanks", f" ({rng.randint(2, 999)})", " :("])


def user(text: str, **others: Any) -> dict[str, Any]:
    return {"model": "gpt-6-luna", "messages": [{"role": "user", "content": text}], **others}


def with_system(system: str, text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}


def record(
    make: Callable[[random.Random], dict[str, Any]], count: int, name: str, start: int = 0, **others: Any
) -> list[Recorded]:
    rng = random.Random(name)
    return [Recorded(f"{name}-{i}", float(start + i), make(rng), **others) for i in range(count)]


def intents(count: int = 30, start: int = 0, **others: Any) -> list[Recorded]:
    return record(lambda rng: user(INTENT.format(sentence(rng))), count, "intent", start, **others)


def urgencies(count: int = 30) -> list[Recorded]:
    return record(lambda rng: user(URGENCY.format(sentence(rng))), count, "urgency")


def queries(count: int = 30) -> list[Recorded]:
    return record(lambda rng: with_system(SYSTEM, sentence(rng)), count, "sql")


def one_offs(count: int = 12) -> list[Recorded]:
    rng = random.Random("one-off")
    words = NOUNS + VERBS
    return [
        Recorded(f"free-{i}", float(i), user(" ".join(rng.choices(words, k=rng.randint(3, 30)))))
        for i in range(count)
    ]


def tasks(inference: Inference, requests: list[Recorded]) -> set[tuple[str, int] | None]:
    return {inference.assignments[request.id] for request in requests}


def test_few_shot_tasks_mixed_behind_one_model_are_told_apart() -> None:
    groups = [intents(), urgencies(), queries()]
    free = one_offs()
    inference = infer([*groups[0], *groups[1], *groups[2], *free])
    found = [tasks(inference, group) for group in groups]
    assert all(len(names) == 1 for names in found)
    assert len({name for names in found for name in names}) == 3
    assert tasks(inference, free) == {None}
    assert len(inference.templates) == 3


def test_the_slot_is_the_input_and_is_named_by_its_label() -> None:
    index = TemplateIndex(infer(intents() + urgencies()).templates)
    match = index.match(user(INTENT.format("Where is my parcel?"), temperature=0))
    assert match is not None
    assert match.inputs.messages == [{"role": "user", "content": "Where is my parcel?"}]
    assert match.inputs.slots == (("message", "Where is my parcel?"),)
    assert match.template.name == "classify-customer-message@1"


def test_five_requests_are_enough_and_one_repeated_request_is_no_task() -> None:
    assert len(infer(intents(5)).templates) == 1
    same = [Recorded(str(i), float(i), user(INTENT.format("always this"))) for i in range(40)]
    assert infer(same).templates == []
    assert infer([]) == Inference([], {})


def test_the_order_of_the_requests_changes_nothing() -> None:
    requests = intents(12) + urgencies(9) + queries(7) + one_offs(5)
    expected = infer(requests)
    for seed in range(3):
        shuffled = list(requests)
        random.Random(seed).shuffle(shuffled)
        assert infer(shuffled) == expected._replace(assignments=dict(expected.assignments))


def test_a_changed_prompt_is_the_next_version_and_the_old_one_still_matches() -> None:
    changed = INTENT.replace("into one intent.", "into exactly one intent. Never answer with prose.")
    later = record(lambda rng: user(changed.format(sentence(rng))), 20, "later", start=1000)
    together = infer(intents() + later)
    assert [t.name for t in together.templates] == ["classify-customer-message@1", "classify-customer-message@2"]
    assert tasks(together, intents()) == {("classify-customer-message", 1)}
    assert tasks(together, later) == {("classify-customer-message", 2)}
    first = infer(intents())
    second = infer(later, known=first.templates)
    assert [t.name for t in second.templates] == ["classify-customer-message@2"]
    assert infer(intents() + later, known=[*first.templates, *second.templates]).templates == []


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["messages"][0].update(content=SYSTEM + " Never use joins."),
        lambda body: body["messages"].append({"role": "user", "content": "And use the archive."}),
        lambda body: body.update(tools=[{"type": "function", "function": {"name": "run"}}]),
        lambda body: body.update(response_format={"type": "json_object"}),
        lambda body: body["messages"][0].update(role="developer"),
    ],
)
def test_an_instruction_that_the_template_does_not_know_is_not_stripped(change: Callable[[Any], None]) -> None:
    index = TemplateIndex(infer(queries()).templates)
    body = with_system(SYSTEM, "My card was lost")
    assert index.match(body) is not None
    change(body)
    assert index.match(body) is None


def test_several_slots_are_found_and_named() -> None:
    text = "Rewrite the review below for a web page.\n\nProduct: {}\nReview: {}\nLanguage: {}\n\nKeep it short."
    requests = record(
        lambda rng: user(text.format(rng.choice(NOUNS), sentence(rng), rng.choice(["German", "Thai", "Greek"]))),
        40,
        "review",
    )
    (template,) = infer(requests).templates
    assert [slot.name for slot in template.slots] == ["product", "review", "language"]


def test_the_apps_own_name_for_the_task_is_used_where_it_agrees() -> None:
    assert infer(intents(hint="support intent")).templates[0].name == "support-intent@1"
    mixed = [*intents(15, hint="a"), *record(lambda rng: user(INTENT.format(sentence(rng))), 15, "more", hint="b")]
    assert infer(mixed).templates[0].task == "classify-customer-message"


def test_tenants_never_share_a_new_template() -> None:
    requests = [Recorded(r.id, r.ts, r.body, key=f"tenant-{i % 10}") for i, r in enumerate(intents(30))]
    assert infer(requests).templates == []


def conversation(rng: random.Random, turns: int) -> dict[str, Any]:
    system = "You are the concierge of the Hotel Aurora. Be short, kind and honest; never promise a late check-out."
    said = [("user" if i % 2 == 0 else "assistant", sentence(rng)) for i in range(2 * turns + 1)]
    return {"messages": [{"role": r, "content": c} for r, c in [("system", system), *said]]}


def test_of_a_conversation_the_system_prompt_goes_and_the_turns_stay() -> None:
    requests = record(lambda rng: conversation(rng, rng.randint(0, 3)), 30, "talk")
    (template,) = infer(requests).templates
    assert template.turns
    body = conversation(random.Random(1), 5)
    inputs = template.strip(body)
    assert inputs is not None
    assert inputs.messages == body["messages"][1:]


def growing(count: int) -> list[Recorded]:
    """So many conversations with one system prompt, each asked for an answer after every turn."""
    whole = [conversation(random.Random(i), 4)["messages"] for i in range(count)]
    bodies = [{"messages": messages[: 2 + 2 * n]} for messages in whole for n in range(5)]
    return [Recorded(f"g{i}", float(i), body) for i, body in enumerate(bodies)]


def test_a_few_long_conversations_show_their_system_prompt() -> None:
    (template,) = infer(growing(3)).templates
    assert template.turns
    assert template.strip(conversation(random.Random(9), 2)) is not None
    assert infer(growing(2)).templates == []


def wrapped_conversation(rng: random.Random, turns: int) -> dict[str, Any]:
    body = conversation(rng, turns)
    for message in body["messages"]:
        if message["role"] == "user":
            message["content"] = f"The guest says: {message['content']}\nYour answer:"
    return body


def test_turns_that_an_app_wraps_alike_stay_without_what_they_are_wrapped_in() -> None:
    (template,) = infer(record(lambda rng: wrapped_conversation(rng, rng.randint(0, 3)), 30, "talk")).templates
    assert template.wraps
    inputs = template.strip(wrapped_conversation(random.Random(1), 4))
    assert inputs is not None
    assert inputs.messages == conversation(random.Random(1), 4)["messages"][1:]

    def last_only(rng: random.Random) -> dict[str, Any]:
        body = conversation(rng, rng.randint(0, 3))
        body["messages"][-1] = wrapped_conversation(rng, 0)["messages"][-1]
        return body

    assert not any(template.wraps for template in infer(record(last_only, 30, "talk")).templates)


def test_a_wrapped_turn_may_hold_what_any_turn_held() -> None:
    """Of these conversations only later questions were recorded: a line each, after a longer first one."""

    def later(rng: random.Random) -> dict[str, Any]:
        body = wrapped_conversation(rng, rng.randint(1, 3))
        said = "\n".join(sentence(rng) for _ in range(rng.randint(1, 2)))
        body["messages"][1]["content"] = f"The guest says: {said}\nYour answer:"
        return body

    recorded = record(later, 30, "talk")
    (template,) = infer(recorded).templates
    assert template.wraps
    assert all(template.strip(request.body) is not None for request in recorded)


def test_examples_that_begin_every_conversation_are_template_and_its_turns_are_not() -> None:
    opening = [
        {"role": "system", "content": "You tutor in mathematics. Show each step, and end with the result alone."},
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "content": "Two and two more are four. 4"},
        {"role": "user", "content": "And half of that?"},
        {"role": "assistant", "content": "Half of four is two. 2"},
    ]

    def make(rng: random.Random) -> dict[str, Any]:
        turns = conversation(rng, rng.randint(0, 3))["messages"][1:]
        return {"messages": [*opening, *turns]}

    other = record(lambda rng: conversation(rng, rng.randint(0, 3)), 40, "talk")
    requests = record(make, 30, "tutor")
    inference = infer(requests + other)
    assert len(tasks(inference, requests)) == len(tasks(inference, other)) == 1
    (template,) = (t for t in inference.templates if (t.task, t.version) in tasks(inference, requests))
    assert template.turns
    assert len(template.head) == len(opening)


def test_few_shot_examples_as_messages_are_template() -> None:
    shots = [
        ("user", "Ticket: the site is down"),
        ("assistant", "high"),
        ("user", "Ticket: typo"),
        ("assistant", "low"),
    ]

    def make(rng: random.Random) -> dict[str, Any]:
        messages = [("system", "Rate the urgency of the ticket."), *shots, ("user", f"Ticket: {sentence(rng)}")]
        return {"messages": [{"role": r, "content": c} for r, c in messages]}

    (template,) = infer(record(make, 20, "shots")).templates
    assert not template.turns
    inputs = template.strip(make(random.Random(7)))
    assert inputs is not None
    assert [message["role"] for message in inputs.messages] == ["user"]
    assert "Ticket" not in inputs.text


def test_many_requests_are_mined_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.pipeline.infer.BATCH", 40)
    groups = [intents(100), urgencies(100), queries(5)]
    requests = [request for group in groups for request in group]
    inference = infer(requests)
    index = TemplateIndex(inference.templates)
    live = {request.id: match.template.name for request in requests if (match := index.match(request.body))}
    named = {key: f"{place[0]}@{place[1]}" for key, place in inference.assignments.items() if place is not None}
    assert named == live  # whichever batch explained them
    assert [len(tasks(inference, group)) for group in groups] == [1, 1, 1]
    assert len({request for group in groups for request in tasks(inference, group)} - {None}) >= 2
