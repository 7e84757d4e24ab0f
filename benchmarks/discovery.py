"""Discovery through the store: recorded exchanges in, tasks out, as the worker does it; time and memory.

The traffic is that of the template data's generator (`../shared/templates` beside the repository, or `--data`):
so many apps with prompts of their own, mixed, and a share of one-off requests. `--step`: so many are recorded
between two looks, as when traffic comes slowly.

    python benchmarks/discovery.py [--exchanges 100000] [--apps 500] [--one-offs 0.1] [--step 5000]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from drift import generator, say

from gateway.domain.exchange import Exchange
from gateway.pipeline.discover import Discovery
from gateway.stores.sqlite import SqliteStore
from gateway.stores.watched import standings


def traffic(gen: dict[str, Any], apps: int, count: int, one_offs: float, seed: int) -> Iterator[tuple[str, Any]]:
    """Mixed requests, each with the name of its app ("" for a one-off)."""
    dice = random.Random(seed)
    fitting = [t for t in gen["T"] if not any("history" in m for m in t["messages"])]
    hot: dict[str, Any] = {}
    made = [
        gen["Inst"](dice.choice(fitting) if n >= len(fitting) else fitting[n], random.Random(n), {}, hot)
        for n in range(apps)
    ]
    for _ in range(count):
        if dice.random() < one_offs:
            yield "", gen["noise"](dice)
        else:
            number = dice.randrange(apps)
            yield str(number), made[number].body(made[number].render())[0]


def exchanges(requests: Iterator[tuple[str, Any]]) -> Iterator[Exchange]:
    """As the recorder moves them in."""
    for number, (_, body) in enumerate(requests):
        yield Exchange(
            id=f"e{number:08}", started_at=1e9 + number, provider="openai", endpoint="/v1/chat/completions",
            model_requested="m", target="openai/m", status=200, complete=True, finish_reason="stop",
            request=json.dumps(body).encode(), response=b'{"choices":[{"message":{"content":"yes"}}]}',
        )  # fmt: skip


def main() -> None:
    """Print what it took."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "templates")
    options.add_argument("--exchanges", type=int, default=100_000)
    options.add_argument("--apps", type=int, default=500)
    options.add_argument("--one-offs", type=float, default=0.1)
    options.add_argument("--step", type=int, default=5000, help="exchanges recorded between two looks")
    options.add_argument("--seed", type=int, default=20)
    given = options.parse_args()
    gen, _ = generator(given.data, given.seed, "none")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "unprompt.db")
        source = exchanges(traffic(gen, given.apps, given.exchanges, given.one_offs, given.seed))
        discovery, spent, wall, done = Discovery(store), 0.0, 0.0, 0
        while some := list(islice(source, given.step)):
            with store.transaction():
                store.absorb("segment", done, some)
            done += len(some)
            some.clear()
            cpu, started = time.process_time(), time.perf_counter()
            discovery.step()
            spent += time.process_time() - cpu
            wall += time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            states = Counter(one.state for one in standings(store).values())
            left = store.unexplained_count()
            took = f"{done:>8} exchanges {spent:8.1f} s CPU {wall:8.1f} s"
            say(f"{took} {peak:>6} MB (generator {before}) {dict(states)} {left} unexplained")
        tasks = len(store.tasks())
    say(f"{tasks} tasks of {given.apps} apps")


if __name__ == "__main__":
    sys.exit(main())
