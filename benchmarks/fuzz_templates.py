"""Strip is lossless whatever comes: mutated requests against many templates.

    python benchmarks/fuzz_templates.py --requests 1000000 --seed 1

Each request is made from a template with hostile values, then mutated up to four times: text cut, doubled,
inserted, odd Unicode and control characters, messages and keys added, moved or taken away, types swapped.
For each that matches: it rebuilds to itself, value types included; its stripped form can be sent and reads back
to the same inputs; no other inputs of the template have that form; and the bytes that would be recorded give
the same form again. Any failure is printed and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections import Counter
from typing import Any

import msgspec

from gateway.domain import layout
from gateway.domain.matching import TemplateIndex
from gateway.domain.template import (
    Inputs,
    MessagePattern,
    PromptTemplate,
    Slot,
    TextPattern,
    parse_stripped,
)

Body = dict[str, Any]

PIECES = (
    "", " ", "\n", "\n\n", "\r\n", "\t", "a", "-" * 40, "Letter: ", "\nTone: ", "\nTone", "Answer in one word.",
    "[tone]", "\\[tone]", "[a]\n", "]", "\\", "\x00", "\x1f", "\x1fs\x1f", "{{tone}}", "^system", "user",
    "<|im_end|>", '{"a":1}', "true", "1.0", "é", "e\u0301", "ß", "İ", "١٢", "漢字", "\u200b", "\ufeff", "\u2028",
    "😀", "👩\u200d👩\u200d👧", "\U0010ffff", "\ud83d", "\ude00",
)  # fmt: skip
ROLES = ("user", "assistant", "system", "developer", "tool", "^system", "", "us\x1fer")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 1.0, -0.0, 1e300, 2**70, "", "x", [], {}, [1], {"a": None}, [[["deep"]]], "\ud800",
)  # fmt: skip
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "n": 1.0}}}]


def templates(rng: random.Random) -> list[PromptTemplate]:
    """Some of each form: slots side by side with rulers, JSON parts, system prompts outside, conversations."""
    found: list[PromptTemplate] = []
    for number in range(40):
        office = f"You are the clerk of office number {number}."
        bucket = layout.bucket_of({"tools": TOOLS}) if number % 3 == 0 else ""
        known = number % 3 == 0
        slots = (
            Slot("letter", usual=(300.0, 3.0) if known else None),
            Slot("tone", lone_line=number % 2 == 0, limit=2000, usual=(8.0, 2.0) if known else None),
        )
        asked = TextPattern(("Letter: ", "\nTone: ", "\nAnswer in one word."), slots)
        ruled = TextPattern((f"Office {number}\n", "-" * 40, "-" * 39 + "\n"), (Slot("over"), Slot("under")))
        free = TextPattern((f"To office {number} at once: ", ""), (Slot("text"),))
        fixed = TextPattern((office,))
        look = pattern({"role": "user", "content": [{"type": "text", "text": ""}, IMAGE]}, asked, part())
        named = pattern({"role": "user", "content": "", "name": "bob"}, free)
        system, user = plain("system", fixed), plain("user", asked)
        outside = MessagePattern("^" + plain("system", fixed).header, (fixed,))
        heads: list[tuple[tuple[MessagePattern, ...], bool, tuple[MessagePattern, ...]]] = [
            ((system, user), False, ()),
            ((plain("user", ruled),), False, ()),
            ((system, look), False, ()),
            ((outside, plain("user", free)), False, ()),
            ((named,), False, ()),
            ((system,), True, ()),
            ((plain("system", free),), True, (user,)),
            ((system,), True, (plain("user", free),)),
            ((), True, (pattern({"role": "user", "content": [{"type": "text", "text": ""}]}, free),)),
        ]
        found += [
            PromptTemplate(f"t{number}-{i}", 1, head, turns, tail, bucket, wraps=i >= len(heads) - 2)
            for i, (head, turns, tail) in enumerate(heads)
        ]
    rng.shuffle(found)
    return found


def plain(role: str, field: TextPattern) -> MessagePattern:
    return pattern({"role": role, "content": ""}, field)


def pattern(message: Body, *fields: TextPattern) -> MessagePattern:
    return MessagePattern(layout.read_message(message)[0], fields)


def part() -> TextPattern:
    return TextPattern(("", ""), (Slot("part", kind="part"),))


def value(rng: random.Random, slot: Slot) -> str:
    if slot.kind == "part":
        return layout.canonical(
            rng.choice([IMAGE, {"type": "x", "n": 1.0}, {"type": "x", "deep": [[1, None, True]]}])
        )
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(5)))


def request(rng: random.Random, one: PromptTemplate) -> Body:
    turns = tuple(
        {"role": rng.choice(ROLES[:5]), "content": value(rng, Slot("s"))} for _ in range(rng.randrange(4))
    )
    envelope: Body = {"model": "m", "temperature": rng.choice(VALUES[:8])}
    if one.bucket:
        envelope["tools"] = TOOLS
    values = tuple(value(rng, slot) for slot in one.slots)
    return one.render(Inputs(one, values, turns if one.turns else (), envelope))


def mutate(rng: random.Random, body: Body) -> None:
    """One change somewhere."""
    messages = body.get("messages")
    kind = rng.randrange(10)
    if kind == 0 or type(messages) is not list or not messages:
        body[rng.choice(["system", "tools", "n", "messages", "response_format", ""])] = copy.deepcopy(
            rng.choice(VALUES)
        )
    elif kind == 1:
        messages.insert(rng.randrange(len(messages) + 1), copy.deepcopy(rng.choice(messages)))
    elif kind == 2:
        del messages[rng.randrange(len(messages))]
    elif kind == 3:
        rng.shuffle(messages)
    else:
        change_message(rng, messages, rng.randrange(len(messages)))


def change_message(rng: random.Random, messages: list[Any], at: int) -> None:
    message = messages[at]
    if type(message) is not dict or rng.random() < 0.05:
        messages[at] = copy.deepcopy(rng.choice(VALUES))
        return
    key = rng.choice(["role", "content", "content", "content", "content", "name", ""])
    old = message.get(key)
    if key == "role":
        message[key] = rng.choice(ROLES)
    elif type(old) is str and rng.random() < 0.9:
        message[key] = change_text(rng, old)
    elif type(old) is list and old and rng.random() < 0.9:
        place = rng.randrange(len(old))
        if type(old[place]) is dict and type(old[place].get("text")) is str:
            old[place] = {**old[place], "text": change_text(rng, old[place]["text"])}
        else:
            old[place] = copy.deepcopy(rng.choice([*VALUES, IMAGE, {"type": "text", "text": "x", "n": 1}]))
    else:
        message[key] = copy.deepcopy(rng.choice(VALUES))


def change_text(rng: random.Random, text: str) -> str:
    """Cut, doubled, or with something put into it."""
    start, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    kind = rng.randrange(4)
    if kind == 0:
        return text[:start] + text[end:]
    if kind == 1:
        return text[:end] + text[start:]
    place = rng.choice([start, 0, len(text)])
    return text[:place] + rng.choice(PIECES) + text[place:]


def faults(template: PromptTemplate, inputs: Inputs, body: Body, forms: dict[int, int]) -> list[str]:
    """What is wrong with this match, if anything; `forms` remembers the inputs of each stripped form."""
    found = []
    if not layout.same(template.render(inputs), body):
        found.append("does not rebuild to itself")
    sent = msgspec.json.decode(msgspec.json.encode(inputs.messages))
    again = parse_stripped(template, sent)
    if (again.values, again.turns) != (inputs.values, inputs.turns):
        found.append("the stripped form reads back to other inputs")
    form, meant = hash((template.name, inputs.text)), hash((inputs.values, layout.canonical(list(inputs.turns))))
    if forms.setdefault(form, meant) != meant:
        found.append("two inputs have one stripped form")
    try:
        recorded = template.strip(msgspec.json.decode(msgspec.json.encode(body)))
    except UnicodeEncodeError:
        return found  # a parameter that no JSON of a client can hold
    if recorded is None or (recorded.messages, recorded.text) != (inputs.messages, inputs.text):
        found.append("what would be recorded is stripped to something else")
    return found


def fuzz(count: int, seed: int) -> Counter[str]:
    """How many requests matched, did not, and failed; failures are printed."""
    rng, said = random.Random(seed), Counter[str]()
    every = templates(rng)
    index, forms = TemplateIndex(every), dict[int, int]()
    for number in range(count):
        body = request(rng, rng.choice(every))
        changes = rng.randrange(5)
        for _ in range(changes):
            mutate(rng, body)
        kept = copy.deepcopy(body)
        try:
            match = index.match(body)
            wrong = faults(*match, body, forms) if match else []
        except Exception as error:  # noqa: BLE001 - whatever is raised is what is looked for
            match, wrong = None, [f"raises {error!r}"]
        if not layout.same(kept, body):
            wrong.append("the request was changed")
        said["requests"] += 1
        said["matched" if match else "not matched"] += 1
        said["mutated and matched"] += bool(match and changes)
        said["failures"] += bool(wrong)
        if wrong and said["failures"] <= 10:
            say(f"request {number} of seed {seed}: {wrong}: {ascii(body)[:400]}")
    return said


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started, spent = time.perf_counter(), time.process_time()
    said = fuzz(arguments.requests, arguments.seed)
    took = f"{time.perf_counter() - started:.0f} s, of CPU {time.process_time() - spent:.0f} s"
    say(", ".join(f"{count:,} {name}" for name, count in said.items()) + f"; {took}")
    sys.exit(said["failures"] > 0)


if __name__ == "__main__":
    main()
