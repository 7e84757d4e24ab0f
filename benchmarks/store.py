"""What it costs to move exchanges from the journal into the store, and how much disk they take, at growing sizes.

    python benchmarks/store.py                      up to 100,000 rows, about a minute
    python benchmarks/store.py --rows 1000,100000,1000000
    python benchmarks/store.py --rows 100000,1000000,10000000 --answers varied --pool 20000

An exchange is a few-shot request of 2 KB of which the last message is new, and an answer of 1.5 KB. `repeating`
answers are made of ten words, `varied` ones of 3,000 words drawn at random, which is harder than any language. CPU
is that of the whole move (read, decode, compress, insert, commit, fsync), 1,000 exchanges at a time; `poll` is what
the worker asks of the store when nothing is new, `show` the reading of one exchange somewhere in the store. With
`--pool` so many exchanges are made, and recorded again and again under new ids: making them takes longer than all
that is measured, and a body that comes back after 20,000 others costs as much as a new one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from gateway.domain.exchange import Begin, End, Usage, id_maker
from gateway.stores.journal import JournalWriter
from gateway.stores.recorder import Recorder
from gateway.stores.space import checkpoint
from gateway.stores.sqlite import SqliteStore

SYLLABLES = ("ba", "ter", "lo", "mi", "con", "sta", "re", "in", "gra", "po", "ve", "na", "du", "er", "ing", "ly")
BATCH = 1000
"""Exchanges that arrive between two looks at the journal."""
MESSAGE_CHARS = 120
"""The part of a request that is new each time; the mean of banking77's messages is 60."""


class Traffic:
    """An app with one prompt, and the model that answers."""

    def __init__(self, seed: int, *, varied: bool) -> None:
        self._dice = random.Random(seed)
        words = ["".join(self._dice.choices(SYLLABLES, k=self._dice.randint(1, 4))) for _ in range(3000)]
        self._words = words
        self._weights = [1 / (n + 3) for n in range(len(words))]
        self._answers = words if varied else words[:10]
        self._new_id = id_maker()
        system = {"role": "system", "content": self._text(330)}
        shots = [
            {"role": role, "content": self._text(size)} for role, size in (("user", 220), ("assistant", 130)) * 3
        ]
        self._prompt = [system, *shots]

    def _text(self, size: int) -> str:
        return " ".join(self._dice.choices(self._words, self._weights, k=size // 4))[:size]

    def exchange(self) -> tuple[Begin, End]:
        """The two records of one request, with a request id and token counts of its own."""
        dice, key = self._dice, self._new_id()
        message = {"role": "user", "content": self._text(MESSAGE_CHARS)}
        request = {
            "model": "gpt-4o-mini",
            "messages": [*self._prompt, message],
            "temperature": 0.0,
            "max_tokens": 256,
        }
        text = " ".join(dice.choices(self._answers, k=300))[:950]
        answer = {
            "id": f"chatcmpl-{dice.getrandbits(116):029x}", "object": "chat.completion",
            "created": int(time.time()), "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": None},
                         "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": dice.randrange(400, 600), "completion_tokens": dice.randrange(150, 256),
                      "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                      "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0}},
            "service_tier": "default", "system_fingerprint": "fp_560af6e559",
        }  # fmt: skip
        return self._begin(key, json.dumps(request).encode()), self._end(key, json.dumps(answer).encode())

    def endless(self, pool: int) -> Iterator[tuple[Begin, End]]:
        """Exchanges without end; with a pool, of so many different ones."""
        made = [self.exchange() for _ in range(pool)]
        for begin, end in itertools.cycle(made):
            key = self._new_id()
            yield replace(begin, id=key), replace(end, id=key)
        while True:
            yield self.exchange()

    def _begin(self, key: str, request: bytes) -> Begin:
        return Begin(
            id=key, started_at=time.time(), method="POST", endpoint="/v1/chat/completions", provider="openai",
            route=None, task=None, task_hint=None, model_requested="gpt-4o-mini", key_id="k-3fa9c2d1", tags={},
            request_headers={"content-type": "application/json", "accept": "application/json",
                             "user-agent": "OpenAI/Python 2.8.1"}, request=request,
        )  # fmt: skip

    def _end(self, key: str, response: bytes) -> End:
        dice = self._dice
        return End(
            id=key, target="openai/gpt-4o-mini", stripped=False, status=200, streamed=False, complete=True,
            error_type=None, latency_ms=dice.uniform(300, 3000), ttft_ms=None,
            model_served="gpt-4o-mini-2024-07-18", finish_reason="stop",
            usage=Usage(input=512, cached=0, output=200, reasoning=0, source="upstream"),
            cost_usd=dice.uniform(1e-4, 2e-4), attempts=[], response=response,
            response_headers={"content-type": "application/json",
                              "x-request-id": f"req_{dice.getrandbits(128):032x}",
                              "openai-processing-ms": str(dice.randrange(300, 3000))},
        )  # fmt: skip


def fill(home: Path, rows: int, *, varied: bool, late: bool, pool: int) -> Iterator[tuple[SqliteStore, float]]:
    """Record so many exchanges; gives the store and the recorder's CPU seconds so far after each batch.

    `late`: the end of an exchange comes a batch after its begin, as where models take seconds."""
    traffic, writer = Traffic(1, varied=varied).endless(pool), JournalWriter(home / "journal")
    store = SqliteStore(home / "unprompt.db")
    recorder, spent = Recorder(home / "journal", store), 0.0
    waiting: list[End] = []
    for done in range(0, rows, BATCH):
        pairs = list(itertools.islice(traffic, min(BATCH, rows - done)))
        for end in waiting:
            writer.append(end)
        for begin, end in pairs:
            writer.append(begin)
            if not late:
                writer.append(end)
        waiting = [end for _, end in pairs] if late else []
        spent += cpu(recorder.drain)
        yield store, spent
    for end in waiting:
        writer.append(end)
    writer.close()
    spent += cpu(recorder.drain)
    checkpoint(store)
    yield store, spent
    store.close()


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of the call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def poll(store: SqliteStore) -> None:
    """What the worker asks every few seconds."""
    store.unseen(1)
    store.unexplained_count()
    for row in store.tasks():
        store.answered_count(row["name"])
        store.version_counts(row["name"], 1000)


def show(store: SqliteStore, count: int) -> None:
    """Read so many exchanges from all over the store, each from a block of its own."""
    last = store.run("SELECT MAX(rowid) FROM exchanges").fetchone()[0]
    for part in range(count):
        (one,) = store.exchanges("rowid = ?", [1 + part * (last - 1) // count])
        assert one.request.endswith(b"}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000,10000,100000", help="sizes, smallest first")
    parser.add_argument("--answers", choices=["repeating", "varied", "both"], default="both")
    parser.add_argument("--late", action="store_true", help="each answer comes a batch later than its request")
    parser.add_argument("--pool", type=int, default=0, help="so many different exchanges; 0: all different")
    parser.add_argument("--home", help="where the stores are made; default: where temporary files are")
    given = parser.parse_args()
    sizes = [int(size) for size in given.rows.split(",")]
    sys.stdout.write(
        f"{'answers':>10}{'rows':>12}{'us each':>9}{'bytes each':>12}{'file MB':>9}{'poll us':>9}{'show us':>9}\n"
    )
    for kind in ("repeating", "varied") if given.answers == "both" else (given.answers,):
        with tempfile.TemporaryDirectory(dir=given.home) as home:
            measure(Path(home), kind, sizes, late=given.late, pool=given.pool)
    return 0


def measure(home: Path, kind: str, sizes: list[int], *, late: bool, pool: int) -> None:
    """One line for each size; microseconds are those of the exchanges since the size before."""
    before, spent_before, done, total = 0, 0.0, 0, sizes[-1]
    sizes = list(sizes)
    for store, spent in fill(home, total, varied=kind == "varied", late=late, pool=pool):
        done = min(done + BATCH, total)
        if not sizes or done < sizes[0]:
            continue
        checkpoint(store)
        size = store.path.stat().st_size
        asked = min(cpu(lambda: poll(store)) for _ in range(5))  # noqa: B023
        shown = cpu(lambda: show(store, 50)) / 50  # noqa: B023
        sys.stdout.write(
            f"{kind:>10}{done:>12,}{(spent - spent_before) / (done - before) * 1e6:>9.1f}{size / done:>12.0f}"
            f"{size / 1e6:>9.1f}{asked * 1e6:>9.0f}{shown * 1e6:>9.0f}\n"
        )
        sys.stdout.flush()
        before, spent_before = done, spent
        sizes.pop(0)


if __name__ == "__main__":
    sys.exit(main())
