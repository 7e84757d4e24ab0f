"""How many requests after an app has changed its prompt is there a version for it, through the store?

Uses the generator of the template data (`../shared/templates` beside the repository, or `--data`): each app sends
40 requests, then its prompt is edited (one to three sentences inserted, replaced or deleted) and the requests come
one by one, each looked at alone.

    python benchmarks/versions.py [--apps 40] [--seed 20]
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from discovery import exchanges
from drift import generator, say

from gateway.pipeline.discover import Discovery
from gateway.stores.sqlite import SqliteStore

MOST = 30


def one_app(app: Any) -> tuple[str, int]:
    """What became of the changed prompt, and after how many requests."""
    numbered = itertools.count()

    def record(version: int, count: int) -> None:
        made = (("", app.body(app.render(version))[0]) for _ in range(count))
        start = next(numbered) * 1000
        store.absorb("segment", 0, [_renumbered(one, start) for one in exchanges(made)])

    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "unprompt.db")
        discovery = Discovery(store)
        record(0, 40)
        discovery.step()
        before = {template.name for template in store.templates()}
        tasks = {template.task for template in store.templates()}
        if not before:
            return "prompt not found", 0
        for sent in range(1, MOST + 1):
            record(1, 1)
            discovery.step()
            new = [template for template in store.templates() if template.name not in before]
            if new:
                return ("version" if new[0].task in tasks else "task of its own"), sent
        matched = store.count("task IS NOT NULL") - 40
        return ("absorbed" if matched > MOST // 2 else "nothing"), MOST


def _renumbered(one: Any, start: int) -> Any:
    return msgspec.structs.replace(one, id=f"e{start + int(one.id[1:]):09}", started_at=one.started_at + start)


def main() -> None:
    """Print what became of them, and after how many requests."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "templates")
    options.add_argument("--apps", type=int, default=40)
    options.add_argument("--seed", type=int, default=20)
    given = options.parse_args()
    gen, _ = generator(given.data, given.seed, "none")
    dice = random.Random(given.seed)
    fitting = [t for t in gen["T"] if not any("history" in m for m in t["messages"])]
    became: Counter[str] = Counter()
    after: list[int] = []
    for template in dice.sample(fitting, given.apps):
        app = gen["Inst"](template, random.Random(dice.randrange(1 << 30)), {"versions": 2}, {})
        what, sent = one_app(app)
        became[what] += 1
        after += [sent] if what in ("version", "task of its own") else []
    spread = sorted(after)
    say(f"{dict(became)}; found after {spread[len(spread) // 2]} requests (median), at most {spread[-1]}")


if __name__ == "__main__":
    main()
