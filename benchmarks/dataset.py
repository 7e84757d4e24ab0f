"""How long a dataset of many exchanges takes, in how much memory, and whether a build that is killed goes on.

    python benchmarks/dataset.py                         20,000 and 100,000 exchanges, a few minutes
    python benchmarks/dataset.py --rows 1000000 --kill   half an hour, most of it making the exchanges
    python benchmarks/dataset.py --rows 100000 --workers 1

An exchange has 4 KB: a prompt of 2.2 KB, an input of 100 to 1,000 characters, and an answer of 0.7 KB that holds
one of 40 labels. Of the inputs 10 % were seen before, 10 % are nearly the same as one before, 2 % hold personal
data; 1 % of the answers failed, 1 % were refused, 5 % of the answers to repeated inputs differ. `CPU` is that of
all processes, `memory` the largest resident set of the process that builds, and of the largest of those that read
for it. With `--kill` the build is then made again, killed on its way twice (SIGKILL), and its files must have the
same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from gateway.domain import layout
from gateway.domain.exchange import Begin, End, Usage, id_maker
from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
from gateway.pipeline import dataset
from gateway.stores.journal import JournalWriter
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore

SYLLABLES = ("ba", "ter", "lo", "mi", "con", "sta", "re", "in", "gra", "po", "ve", "na", "du", "er", "ing", "ly")
LABELS = 40
BATCH = 1000


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Traffic:
    """An app that has its customers' letters sorted."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._words = ["".join(self._dice.choices(SYLLABLES, k=self._dice.randint(1, 4))) for _ in range(8000)]
        self._new_id = id_maker()
        self.system = "Sort the letter. " + self._text(2200)
        self._said: list[tuple[str, int]] = []

    def _text(self, size: int) -> str:
        return " ".join(self._dice.choices(self._words, k=size // 6 + 1))[:size].strip()

    def template(self) -> PromptTemplate:
        """The prompt, as inference would find it."""
        header = {role: layout.read_message({"role": role, "content": ""})[0] for role in ("system", "user")}
        asked = MessagePattern(header["user"], (TextPattern(("Letter: ", ""), (Slot("letter"),)),))
        return PromptTemplate(
            "letters", 1, (MessagePattern(header["system"], (TextPattern((self.system,)),)), asked)
        )

    def _letter(self) -> tuple[str, int]:
        dice, kind = self._dice, self._dice.random()
        if kind < 0.2 and self._said:
            text, label = dice.choice(self._said)
            if kind < 0.1:
                return text, label if dice.random() > 0.05 else dice.randrange(LABELS)
            words = text.split()
            words[dice.randrange(len(words))] = dice.choice(self._words)
            return " ".join(words), label
        text = self._text(dice.randint(100, 1000))
        if kind > 0.98:
            text += (
                f" {dice.choice(self._words)}@{dice.choice(self._words)}.com +49 30 {dice.randrange(10**6, 10**7)}"
            )
        found = (text, dice.randrange(LABELS))
        if len(self._said) < 50_000:
            self._said.append(found)
        return found

    def exchange(self) -> tuple[Begin, End]:
        """The two records of one request."""
        dice, key = self._dice, self._new_id()
        letter, label = self._letter()
        fate = dice.random()
        text = "I'm sorry, but I can't help with that." if fate < 0.01 else f"label {label}"
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": f"Letter: {letter}"}]
        request = {"model": "gpt-4o-mini", "messages": messages, "temperature": 0.0}
        answer = {
            "id": f"chatcmpl-{dice.getrandbits(116):029x}", "object": "chat.completion", "created": 1750000000,
            "model": "gpt-4o-mini-2024-07-18", "system_fingerprint": "fp_560af6e559", "service_tier": "default",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": None,
                                                 "annotations": []}, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 600, "completion_tokens": 3, "total_tokens": 603,
                      "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                      "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                                                    "accepted_prediction_tokens": 0}},
        }  # fmt: skip
        begin = Begin(
            id=key, started_at=time.time(), method="POST", endpoint="/v1/chat/completions", provider="openai",
            route=None, task="letters", task_hint=None, model_requested="gpt-4o-mini", key_id="k-3fa9c2d1", tags={},
            request_headers={"content-type": "application/json", "user-agent": "OpenAI/Python 2.8.1"},
            request=json.dumps(request).encode(),
        )  # fmt: skip
        return begin, End(
            id=key, target="openai/gpt-4o-mini", stripped=False, status=500 if fate > 0.99 else 200, streamed=False,
            complete=True, error_type=None, latency_ms=800.0, ttft_ms=None, model_served="gpt-4o-mini-2024-07-18",
            finish_reason="stop", usage=Usage(input=600, output=3, source="upstream"), cost_usd=0.0001, attempts=[],
            response_headers={"content-type": "application/json", "x-request-id": f"{dice.getrandbits(128):032x}"},
            response=json.dumps(answer).encode(),
        )  # fmt: skip


def fill(home: Path, rows: int) -> Iterator[int]:
    """Record so many exchanges; gives how many are there after each batch."""
    traffic, writer = Traffic(1), JournalWriter(home / "journal")
    store = SqliteStore(home / "unprompt.db")
    store.add_template(traffic.template())
    recorder = Recorder(home / "journal", store)
    for done in range(0, rows, BATCH):
        for _ in range(min(BATCH, rows - done)):
            begin, end = traffic.exchange()
            writer.append(begin)
            writer.append(end)
        writer.sync()
        recorder.drain()
        yield min(done + BATCH, rows)
    store.close()


def build(home: Path, workers: int | None) -> dict[str, Any]:
    """Build the dataset; gives its card and what it took."""
    if workers:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    store, started = SqliteStore(home / "unprompt.db"), time.perf_counter()
    made = dataset.build(store, "letters", home / "datasets", say=lambda text: say(f"  {text}"))
    took = time.perf_counter() - started
    ours, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime
    return {"card": made.card, "seconds": took, "cpu": cpu, "mb": (ours.ru_maxrss / 1024, theirs.ru_maxrss / 1024)}


def built(home: Path, workers: int | None) -> dict[str, Any]:
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(build, home, workers).result()


def killed(home: Path, workers: int | None, after: float) -> int:
    """Begin to build and kill it after so many seconds; gives how many parts had been read."""
    process = multiprocessing.get_context("spawn").Process(target=build, args=(home, workers))
    process.start()
    process.join(after)
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return len(list(home.glob("datasets/*/.parts-*/*.part")))


def hashes(home: Path) -> dict[str, str]:
    """The bytes of all files of all datasets."""
    files = sorted(file for file in home.glob("datasets/*/*/*") if file.is_file())
    return {str(file.relative_to(home)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def report(rows: int, result: dict[str, Any]) -> None:
    card, (ours, theirs) = result["card"], result["mb"]
    took = f"{result['seconds']:.1f} s, {result['cpu']:.1f} s CPU"
    say(f"{rows:,} exchanges: {took}, memory {ours:.0f} + {theirs:.0f} MB")
    say(f"  recorded {card['recorded']:,}")
    for reason, count in card["dropped"].items():
        say(f"  - {count:>9,} {reason}")
    parts = ", ".join(f"{card[part]:,} {part}" for part in ("train", "validation", "confirmation"))
    say(f"  = {card['rows']:>9,} rows: {parts}; {card['held_out_beyond']:,} beyond learning")
    say(f"  on both sides: {card['on_both_sides']}, not compared: {card['pairs_not_compared']:,}")
    say(f"  scrubbed: {card['scrubbed']}; answers outvoted: {card['answers_outvoted_on_repeated_inputs']:.2%}")
    say(f"  tokens before {card['input_tokens_before_mean']}, after {card['input_tokens_after_mean']}")


def kill_and_compare(home: Path, workers: int | None, seconds: float) -> None:
    """The same build, killed twice on its way."""
    alone = hashes(home)
    shutil.rmtree(home / "datasets")
    had = [killed(home, workers, seconds * share) for share in (0.2, 0.3)]
    again = built(home, workers)
    same = hashes(home) == alone
    say(f"  killed twice with {had} parts read, then {again['seconds']:.1f} s: same bytes {same}")
    if not same:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, memory and determinism of a dataset's build.")
    parser.add_argument("--rows", default="20000,100000", help="exchanges, one or several numbers with commas")
    parser.add_argument("--workers", type=int, help="cores that the build may use; default all")
    parser.add_argument("--kill", action="store_true", help="kill it on its way, and compare the bytes")
    parser.add_argument("--home", type=Path, help="folder of a store that an earlier run left; it is kept")
    arguments = parser.parse_args()
    for rows in map(int, arguments.rows.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            home = arguments.home or Path(temporary)
            if not (home / "unprompt.db").is_file():
                for done in fill(home, rows):
                    if done % 50_000 == 0:
                        say(f"  recorded {done:,}")
            shutil.rmtree(home / "datasets", ignore_errors=True)
            result = built(home, arguments.workers)
            report(rows, result)
            if arguments.kill:
                kill_and_compare(home, arguments.workers, result["seconds"])


if __name__ == "__main__":
    main()
