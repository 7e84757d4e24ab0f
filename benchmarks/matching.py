"""How long it takes to find a request's template and to strip it: by size, and against an adversary.

    python benchmarks/matching.py

Templates and requests are made up from a fixed seed. A request's time is the best of five, since a busy machine
interrupts; a table's p50 and p99 are over the requests.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gateway.domain import layout
from gateway.domain.matching import TemplateIndex
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern

TEMPLATES = 1000
TOKEN = 4  # characters
SIZES = (100, 500, 1000, 2000, 8000, 30000)
WORDS = [a + b + c for a in "bdfklmnprst" for b in ("a", "e", "io", "u") for c in ("nd", "lt", "r", "ster", "m")]

Body = dict[str, Any]


def prose(rng: random.Random, characters: int) -> str:
    """Sentences of made-up words."""
    words: list[str] = []
    length = 0
    while length < characters:
        words.append(rng.choice(WORDS) + (".\n" if rng.random() < 0.08 else ""))
        length += len(words[-1]) + 1
    return " ".join(words)[:characters]


def header(role: str) -> str:
    return layout.read_message({"role": role, "content": ""})[0]


def message(role: str, *literals: str, usual: tuple[float, float] | None = None) -> MessagePattern:
    slots = tuple(Slot(f"s{i}", limit=1 << 20, usual=usual) for i in range(len(literals) - 1))
    return MessagePattern(header(role), (TextPattern(literals, slots),))


def template(rng: random.Random, number: int, tokens: int) -> PromptTemplate:
    """One of four forms: system and user, user alone, few-shot turns, or a conversation."""
    long = prose(rng, int(tokens * TOKEN * 0.8))
    system = message("system", f"You are the clerk of office {number}. {long}")
    user = message("user", "Letter: ", f"\nTone ({rng.choice(WORDS)}): ", "\nAnswer in one word.")
    form = number % 4
    if form == 0:
        return PromptTemplate(f"t{number}", 1, (system, user))
    if form == 1:
        return PromptTemplate(f"t{number}", 1, (message("user", long, "\n\nLetter: ", "\nAnswer in one word."),))
    if form == 2:
        shots = [message(role, prose(rng, 60)) for _ in range(4) for role in ("user", "assistant")]
        return PromptTemplate(f"t{number}", 1, (system, *shots, user))
    return PromptTemplate(f"t{number}", 1, (system,), turns=True)


def ask(rng: random.Random, one: PromptTemplate, tokens: int) -> Body:
    """A request of the template, about a fifth of it input."""
    value = tokens * TOKEN // 5
    messages = []
    for pattern in one.patterns:
        field = pattern.fields[0]
        parts = [prose(rng, max(20, value // max(1, len(field.slots)))).strip() for _ in field.slots]
        messages.append({"role": pattern.role, "content": field.fill(parts)})
    if one.turns:
        messages += [{"role": role, "content": prose(rng, value // 4)} for role in ("user", "assistant") * 2]
    return {"model": "m", "messages": messages, "temperature": 0.2, "stream": True, "max_tokens": 200}


def miss(rng: random.Random, body: Body) -> Body:
    """The same with one word more somewhere in a message."""
    messages = [dict(each) for each in body["messages"]]
    chosen = messages[0]
    at = rng.randrange(len(chosen["content"]))
    chosen["content"] = chosen["content"][:at] + " please " + chosen["content"][at:]
    return {**body, "messages": messages}


def best(index: TemplateIndex, body: Body, repeats: int = 5) -> float:
    """Microseconds of the quickest of some matches."""
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        index.match(body)
        spent.append(time.perf_counter() - started)
    return min(spent) * 1e6


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def row(name: str, spent: list[float], matched: int) -> None:
    spent.sort()
    at = [spent[int(share * (len(spent) - 1))] for share in (0.5, 0.99, 1)]
    say(f"{name:28s} {len(spent):6d} {matched:8d}" + "".join(f"{value:9.1f}" for value in at))


def by_size() -> None:
    say(f"{'tokens':28s} {'count':>6s} {'matched':>8s}{'p50 us':>9s}{'p99 us':>9s}{'max us':>9s}")
    for tokens in SIZES:
        rng = random.Random(tokens)
        count = TEMPLATES if tokens <= 2000 else max(40, TEMPLATES * 2000 // tokens)
        templates = [template(rng, number, tokens) for number in range(count)]
        index = TemplateIndex(templates)
        hits = [ask(rng, rng.choice(templates), tokens) for _ in range(300)]
        for name, bodies in (("hit", hits), ("miss", [miss(rng, body) for body in hits])):
            matched = sum(index.match(body) is not None for body in bodies)
            row(f"{tokens} ({count} templates) {name}", [best(index, body) for body in bodies], matched)


def user(text: str) -> Body:
    return {"messages": [{"role": "user", "content": text}]}


def turns(n: int) -> Body:
    said = [{"role": "user", "content": "hm"}] * (n // 100)
    return {"messages": [{"role": "system", "content": "Guide of museum 7"}, *said]}


def calls(n: int) -> Body:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}] * (n // 100)
    return {"messages": [{"role": "system", "content": "Guide of museum 7"}, *said]}


def nested(n: int) -> Body:
    value: Any = 0
    for _ in range(min(n // 2, 700)):
        value = [value]
    return {"messages": [{"role": "user", "content": [{"type": "x", "deep": value}] * (n // 1000 + 1)}]}


def adversaries() -> Iterator[tuple[str, TemplateIndex, Callable[[int], Body]]]:
    """Name, index, and a request of n characters that is made to be slow."""
    one = PromptTemplate(
        "one", 1, (message("user", "Read the letter: ", "\nTone: ", "\nPlace: ", "\nAnswer now."),)
    )
    texts = ("Read the letter: ", "\nTone: ", "\nPlace: ", "\nAnswer now.")
    loud = TextPattern(("Read the letter: ", "\nAnswer now."), (Slot("letter", sentence_limit=50),))
    shouted = PromptTemplate("shouted", 1, (MessagePattern(message("user", "").header, (loud,)),))
    quoted = PromptTemplate("quoted", 1, (message("user", *texts, usual=(9, 2)),))
    ruled = "-" * 40 + "\nTone of it\n" + "-" * 40
    ruler = PromptTemplate("ruler", 1, (message("user", "Read the letter: ", ruled, "\nAnswer now."),))
    alike = [
        PromptTemplate(f"a{i}", 1, (message("user", "Read the letter: ", f"\nTone {i}: ", "\nAnswer now."),))
        for i in range(TEMPLATES)
    ]
    chat = [
        PromptTemplate(f"c{i}", 1, (message("system", f"Guide of museum {i}"),), turns=True) for i in range(300)
    ]

    labels = [[f"\n{letter}{i}: " for letter in "ABCDEFGHIJKL"] for i in range(20)]
    rivals = [
        PromptTemplate(f"r{i}", 1, (message("user", "Read the letter: ", *mine, "\nAnswer now.", usual=(30, 2)),))
        for i, mine in enumerate(labels)
    ]
    every = "".join(label for mine in labels for label in mine)

    def letter(text: str) -> Body:
        return user(f"Read the letter: {text}\nAnswer now.")

    def weighed(n: int, count: int) -> Body:
        return letter("x" * n + "\nTone: dry\nPlace: Rome" * count)

    yield "one anchor, n times", TemplateIndex([one]), lambda n: letter("\nTone: " * (n // 7))
    yield "both anchors in turn", TemplateIndex([one]), lambda n: letter("\nTone: \nPlace: " * (n // 15))
    yield "8 times 2 anchors to weigh", TemplateIndex([quoted]), lambda n: weighed(n, 8)
    yield "20 times 2 anchors", TemplateIndex([quoted]), lambda n: weighed(n, 20)
    yield (
        "20 rivals of 12 anchors each",
        TemplateIndex(rivals),
        lambda n: letter((every * (n // len(every) + 1))[:n]),
    )
    yield "exclamation marks", TemplateIndex([shouted]), lambda n: letter("!" * n)
    yield "nearly an anchor", TemplateIndex([one]), lambda n: letter("\nTone" * (n // 5))
    yield "nearly an anchor, Cyrillic", TemplateIndex([one]), lambda n: letter("я\nTone" * (n // 6))
    yield "a ruler of dashes", TemplateIndex([ruler]), lambda n: letter("-" * n)
    yield "candidate of 1,000", TemplateIndex(alike), lambda n: letter("x" * n)
    yield "... all anchors but one", TemplateIndex(alike), lambda n: letter("\nTone 999" * (n // 9))
    yield "nearly the opening", TemplateIndex(alike), lambda n: user("Read the letter:" * (n // 16))
    yield "turns (n / 100)", TemplateIndex(chat), turns
    yield "tool calls (n / 100)", TemplateIndex(chat), calls
    yield "nested JSON parts", TemplateIndex(alike), nested
    yield "emoji in one slot", TemplateIndex([one]), lambda n: letter("😀" * n + "\nTone: \nPlace: ")


def against() -> None:
    sizes = (10_000, 20_000, 40_000, 120_000, 500_000)
    say(f"\n{'an adversary: microseconds at n':28s}" + "".join(f"{size:>10,d}" for size in sizes))
    for name, index, request in adversaries():
        say(f"{name:31s}" + "".join(f"{best(index, request(size)):10.1f}" for size in sizes))


def main() -> None:
    gc.disable()
    by_size()
    against()


if __name__ == "__main__":
    main()
