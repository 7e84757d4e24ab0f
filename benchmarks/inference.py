"""What it costs to find the tasks in traffic that nobody has seen before: time, memory, and how many are found.

    python benchmarks/inference.py                          100,000 requests of 520 tasks, about a minute in all
    python benchmarks/inference.py --requests 10000 --tasks 60 --json

The prompts are made up: 20 to 400 words, half of them behind a system message, one to three inputs, some of them
documents that come again. One task in ten is a conversation, one request in twenty belongs to no task. A few tasks
get most of the traffic, as everywhere (Zipf, exponent 0.8). `exact` is the share of tasks whose requests all, and
no others, were found to be one task. Seconds are wall clock, CPU seconds the process's own, MB its peak.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from gateway.pipeline.infer import Recorded, infer

SYLLABLES = ("ba", "ter", "lo", "mi", "con", "sta", "re", "in", "gra", "po", "ve", "na", "du", "er", "ing", "ly")
LABELS = ("Text", "Question", "Context", "Message", "Review", "Document", "Input", "Ticket")
ONE_OFFS = 0.05

Render = Callable[[], dict[str, Any]]


class Language:
    """Words, sentences and paragraphs at random; common words are common."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._words = ["".join(dice.choices(SYLLABLES, k=dice.randint(1, 4))) for _ in range(4000)]
        self._weights = list(accumulate(1 / (rank + 5) for rank in range(len(self._words))))

    def sentence(self, low: int, high: int) -> str:
        """A sentence of `low` to `high` words."""
        words = self._dice.choices(self._words, cum_weights=self._weights, k=self._dice.randint(low, high))
        return " ".join(words).capitalize() + self._dice.choice(".??!...")

    def prose(self, words: int) -> str:
        """About so many words in sentences."""
        return " ".join(self.sentence(6, 18) for _ in range(max(1, words // 12)))


def single(dice: random.Random, language: Language) -> Render:
    """A task of single requests: instructions, labelled inputs, a last line."""
    system = language.prose(dice.randint(10, 60)) if dice.random() < 0.5 else ""
    labels = dice.sample(LABELS, dice.randint(1, 3))
    before, after = language.prose(dice.randint(20, 340)), language.sentence(3, 8)
    documents = [language.prose(80) for _ in range(20)] if dice.random() < 0.3 else []

    def value(n: int) -> str:
        return (
            dice.choice(documents)
            if documents and n == 0 and len(labels) > 1
            else language.prose(dice.randint(5, 60))
        )

    def render() -> dict[str, Any]:
        inputs = "\n".join(f"{label}: {value(n)}" for n, label in enumerate(labels))
        messages = [{"role": "user", "content": f"{before}\n\n{inputs}\n\n{after}"}]
        return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}

    return render


def conversation(dice: random.Random, language: Language) -> Render:
    """A task whose system prompt stays and whose turns are free."""
    system = language.prose(dice.randint(40, 200))

    def render() -> dict[str, Any]:
        turns = [language.prose(dice.randint(5, 40)) for _ in range(2 * dice.randint(0, 4) + 1)]
        said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
        return {"messages": [{"role": "system", "content": system}, *said]}

    return render


def traffic(count: int, tasks: int, seed: int) -> tuple[list[Recorded], list[int | None]]:
    """Requests in order of time, and the number of each one's task; None: a one-off."""
    dice = random.Random(seed)
    language = Language(dice)
    renders = [conversation(dice, language) if n % 10 == 9 else single(dice, language) for n in range(tasks)]
    weights = [(n + 1) ** -0.8 for n in range(tasks)]
    truth: list[int | None] = []
    requests = []
    for i, task in enumerate(dice.choices(range(tasks), weights, k=count)):
        one_off = dice.random() < ONE_OFFS
        truth.append(None if one_off else task)
        body = {"messages": [{"role": "user", "content": language.prose(40)}]} if one_off else renders[task]()
        requests.append(Recorded(str(i), float(i), {"model": "m", **body}))
    return requests, truth


def exact(groups: Sequence[object], truth: Sequence[int | None]) -> float:
    """The share of true tasks that are exactly one group."""
    found, true = defaultdict(set), defaultdict(set)
    for i, (group, task) in enumerate(zip(groups, truth, strict=True)):
        found[group].add(i)
        true[task].add(i)
    groups_found = {frozenset(members) for group, members in found.items() if group is not None}
    return sum(frozenset(members) in groups_found for task, members in true.items() if task is not None) / max(
        1, sum(task is not None for task in true)
    )


def peak_mb() -> float:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=520)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    requests, truth = traffic(given.requests, given.tasks, given.seed)
    before, wall, cpu = peak_mb(), time.perf_counter(), time.process_time()
    inference = infer(requests)
    figures = {
        "requests": given.requests,
        "tasks": given.tasks,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "mb_with_the_requests": round(before),
        "peak_mb": round(peak_mb()),
        "templates": len(inference.templates),
        "tasks_found": len({template.task for template in inference.templates}),
        "exact": round(exact([(inference.assignments[r.id] or (None,))[0] for r in requests], truth), 4),
    }
    table = "\n".join(f"{name:22} {value}" for name, value in figures.items())
    sys.stdout.write((json.dumps(figures) if given.json else table) + "\n")


if __name__ == "__main__":
    main()
