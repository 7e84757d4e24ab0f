"""The second story: the app ships another prompt and its messages shift, while a model of its own serves it.

What should happen, and is watched here from outside: not one request of the new prompt is stripped as if it were
the old one; they go whole to the incumbent at once; the gateway finds the new version, trains anew, judges, and
flips the route again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gateway.demo.client import App, Call, Reply
from gateway.demo.messages import Labelled
from gateway.demo.prompts import Prompt
from gateway.demo.stage import Options, Say, gateway_at, recorded, stats_of, stay, teacher_at, write_config
from gateway.demo.story import plot
from gateway.errors import TaskError
from gateway.pipeline.decisions import flips
from gateway.stores.sqlite import SqliteStore

BATCH, FIRST, MEASURED = 150, 50, 200
MOST_REQUESTS = 12_000
RATE = 60.0
"""Requests a second."""
ROWS = 1_500
"""So many messages of each prompt are labelled by the incumbent before there is a training: of 900 so few are held
out that a good candidate is refused every other time."""
GROWTH = 5.0
"""The app asks so much that the rows double during a training; the next one shall be for its second prompt."""
ROUTE_SECONDS = 1.0
POLICY = {"min_rows": ROWS, "share": 100, "canary": [100], "retrain_growth": GROWTH}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened: seconds since the beginning, and how many requests the app had sent by then."""

    seconds: float
    requests: int
    what: str


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks what, before and after."""

    before: Prompt
    after: Prompt
    early: list[Labelled]
    late: list[Labelled]
    held_out: list[Labelled]


def shift(options: Options) -> Shift:
    """Some kinds of message come only after the prompt has changed."""
    told = plot(options)
    labels = sorted({row.label for row in told.traffic})
    rng = random.Random(options.seed)
    later = set(rng.sample(labels, max(1, len(labels) // 4)))
    return Shift(
        before=told.prompt,
        after=told.prompt.changes()[0],
        early=[row for row in told.traffic if row.label not in later],
        late=told.traffic,
        held_out=told.held_out,
    )


class Tale:
    """The app's requests so far, and what was seen to happen."""

    def __init__(self, app: App, store: SqliteStore, say: Say) -> None:
        self.app, self.store, self.say = app, store, say
        self.started = time.monotonic()
        self.sent = 0
        self.events: list[Event] = []
        self._told: set[str] = set()

    def note(self, what: str, about: str | None = None) -> None:
        """Once for each thing that it is `about`; for each sentence where that is not said."""
        if (about or what) in self._told:
            return
        self._told.add(about or what)
        event = Event(seconds=round(time.monotonic() - self.started, 1), requests=self.sent, what=what)
        self.events.append(event)
        self.say(f"{what} ({self.sent:,} requests sent)")

    async def ask(self, prompt: Prompt, texts: Iterator[Labelled], count: int = BATCH) -> list[Reply]:
        """So many requests with this prompt."""
        chosen = islice(texts, count)
        calls = [Call(messages=prompt.request(row.text), expected=prompt.answer(row.label)) for row in chosen]
        replies = await self.app.ask_at(calls, rate=RATE)
        self.sent += count
        self.look()
        return replies

    def look(self) -> None:
        """What the worker has done meanwhile."""
        for template in self.store.templates():
            found = self.store.rows("templates", "name = ?", [template.name])
            if found and found[-1]["state"] == "trusted":
                self.note(f"prompt found: {template.name}, {template.fixed_words} fixed words")
        for row in self.store.rows("datasets"):
            rows = f"{row['train_rows']} rows to learn from, {row['validation_rows']} to judge by"
            self.note(f"dataset built: {rows}", row["id"])
        for row in self.store.rows("evaluations"):
            trained = self.store.finetunes("dataset = ? AND state = 'succeeded'", [row["dataset"]])
            self.note(f"{len(trained)} candidates trained, and judged beside the prompted model", row["id"])
        for flip in reversed(flips(self.store)):
            verb = _ACTIONS.get(flip.action, flip.action)
            self.note(f"{verb}: {flip.reason}", f"{flip.action} {flip.at}")

    async def until(self, prompt: Prompt, texts: Iterator[Labelled], holds: Callable[[], bool]) -> list[Reply]:
        """Go on asking until it holds.

        Raises:
            TaskError: it never does.
        """
        replies: list[Reply] = []
        while not holds():
            replies += await self.ask(prompt, texts)
            await asyncio.sleep(0.1)
            if self.sent > MOST_REQUESTS:
                raise TaskError(f"no end after {MOST_REQUESTS:,} requests; the gateway's log tells what happened")
        return replies


_ACTIONS = {
    "promote": "route flipped", "advance": "next step", "rollback": "rolled back",
    "refuse": "not flipped",
}  # fmt: skip


async def tell(options: Options, say: Say, show: Callable[[dict[str, Any]], None]) -> None:
    """Run the story and `show` the object that `--json` prints.

    Raises:
        UnpromptError: a part did not start, or nothing comes of it.
    """
    told = shift(options)
    home = options.home or Path("unprompt-demo") / f"{datetime.now():%Y%m%d-%H%M%S}-drift"
    home.mkdir(parents=True, exist_ok=True)
    async with teacher_at(options, home) as upstream:
        write_config(home, upstream, POLICY)
        async with gateway_at(home) as url, App(f"{url}/v1", options.model) as app:
            store = SqliteStore(home / "data" / "unprompt.db")
            try:
                tale = Tale(app, store, say)
                figures = await _acts(told, tale, home, random.Random(options.seed))
                await recorded(home)
                seen = await stats_of(upstream)
                figures["wrong_strips"] += seen.get("altered", 0) + seen.get("bare", 0)
                show(figures | {"timeline": msgspec.to_builtins(tale.events), "home": str(home)})
            finally:
                store.close()
            await stay(options, url, say)


async def _acts(told: Shift, tale: Tale, home: Path, rng: random.Random) -> dict[str, Any]:
    routes = home / "config" / "routes.yaml"
    early, late, held_out = (_endless(rows, rng) for rows in (told.early, told.late, told.held_out))
    tale.note("the app goes live with its first prompt")
    await tale.until(told.before, early, lambda: len(stripped_by(routes)) > 0)
    first = set(stripped_by(routes).values())
    await asyncio.sleep(ROUTE_SECONDS)
    before = await tale.ask(told.before, early, MEASURED)
    changed_at = tale.sent
    tale.note("the app ships its second prompt, and messages of new kinds come")
    at_once = await tale.ask(told.after, late, FIRST)
    until = await tale.until(told.after, late, lambda: not set(stripped_by(routes).values()) <= first)
    promoted_at = tale.sent
    own = {target for target, template in stripped_by(routes).items() if template not in first}
    between = [reply for reply in at_once + until if reply.target not in own]  # of the last ones some come after it
    tale.note("the second prompt is served by a model of its own")
    await asyncio.sleep(ROUTE_SECONDS)
    after = await tale.ask(told.after, held_out, MEASURED)
    return {
        "before": _figures(before),
        "at_once": _figures(at_once),
        "between": _figures(between),
        "after": _figures(after),
        "requests_until_promoted_again": promoted_at - changed_at,
        "wrong_strips": sum(reply.stripped for reply in between),
        "versions": len({template.name for template in tale.store.templates()}),
        "promotions": tale.store.run("SELECT COUNT(*) FROM promotions WHERE action = 'promote'").fetchone()[0],
        "rollbacks": tale.store.run("SELECT COUNT(*) FROM promotions WHERE action = 'rollback'").fetchone()[0],
        "seconds": round(time.monotonic() - tale.started, 1),
    }


def _endless(rows: Sequence[Labelled], rng: random.Random) -> Iterator[Labelled]:
    """Each in a random order, and none again before all have come: a message seen before teaches nothing."""
    while True:
        yield from rng.sample(rows, len(rows))


def stripped_by(routes: Path) -> dict[str, str]:
    """The templates whose prompts the routes take away, each for the target that is then asked, named as a reply
    names it."""
    written = yaml.safe_load(routes.read_text("utf-8")) if routes.exists() else None
    targets = [target for route in (written or {}).get("routes") or [] for target in route["targets"]]
    return {f"{one['upstream']}/{one['model']} stripped": one["strip"] for one in targets if "strip" in one}


def _figures(replies: Sequence[Reply]) -> dict[str, Any]:
    return {
        "requests": len(replies),
        "stripped_share": round(sum(reply.stripped for reply in replies) / len(replies), 4),
        "accuracy": round(sum(reply.right for reply in replies) / len(replies), 4),
        "errors": sum(reply.error is not None for reply in replies),
    }
