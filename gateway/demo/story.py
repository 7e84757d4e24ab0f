"""The demo's story: an app with a few-shot prompt points its base URL at the gateway; the rest is ordinary.

Everything runs as a user would run it: the gateway is `unprompt serve` in its own process with a config file,
the traffic comes from the `openai` package over HTTP, the teacher is an HTTP server. Nothing in the product
knows that it is in a demo.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gateway.demo import messages as data
from gateway.demo.client import App, Call, Reply
from gateway.demo.messages import Labelled
from gateway.demo.prompts import Prompt, few_shot, one_offs, triage
from gateway.demo.stage import (
    LIVE,
    Options,
    Say,
    gateway_at,
    recorded,
    route_in_force,
    stats_of,
    stay,
    teacher_at,
    write_config,
)
from gateway.errors import TaskError
from gateway.pipeline.canary import steps_of
from gateway.stores.sqlite import SqliteStore

HELD_OUT = 300
CHANGED = 60
MOST_LIVE = 3000
"""So many are asked at most while the candidate takes over, step by step."""
CANARY = (25.0, 100.0)
RATE = 20.0
"""Requests a second while latency is measured."""
SETTLE_SECONDS = 240.0


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks what: the main task's traffic, what is asked while the candidate takes over, texts held out for the
    comparison, and what is mixed in."""

    prompt: Prompt
    traffic: list[Labelled]
    live: list[Labelled]
    held_out: list[Labelled]
    aside: list[list[dict[str, Any]]]


def plot(options: Options) -> Plot:
    """Held-out texts come from the file's own test split, where it has one; none is ever in the traffic."""
    rows = data.load(options.data) if options.data else data.messages()
    about = None if options.data else data.descriptions()
    prompt = few_shot(rows, about)
    rng = random.Random(options.seed)
    used = set(prompt.examples)
    test = [row for row in rows if row.split == "test"]
    pool = [row for row in rows if row.split != "test" and row.text not in used]
    rng.shuffle(test)
    rng.shuffle(pool)
    number = min(HELD_OUT, len(pool) // 4)
    held_out = test[:number] or pool[:number]
    texts = {row.text for row in held_out}
    left = [row for row in pool if row.text not in texts]
    traffic = left[: options.rows]
    later = left[options.rows :] if options.data else data.messages(count=data.BUILT_IN + LIVE)[data.BUILT_IN :]
    other = triage()
    aside = [other.request(row.text) for row in traffic[: len(traffic) // 8]]
    aside += one_offs(seed=options.seed, count=40)
    return Plot(prompt=prompt, traffic=traffic, live=later or traffic, held_out=held_out, aside=aside)


async def tell(options: Options, say: Say, show: Callable[[dict[str, Any]], None]) -> None:
    """Run the whole story and `show` the object that `--json` prints.

    Raises:
        UnpromptError: a part did not start, or the worker came to no decision in time.
    """
    started = time.monotonic()
    story = plot(options)
    home = options.home or Path("unprompt-demo") / f"{datetime.now():%Y%m%d-%H%M%S}"
    home.mkdir(parents=True, exist_ok=True)
    async with teacher_at(options, home) as upstream:
        write_config(home, upstream, _policy(story))
        async with gateway_at(home) as url, App(f"{url}/v1", options.model) as app:
            show(await _acts(options, story, home, url, upstream, app, say, started))
            await stay(options, url, say)


async def _acts(
    options: Options, story: Plot, home: Path, url: str, upstream: str, app: App, say: Say, started: float
) -> dict[str, Any]:
    say(f"gateway at {url}, its upstream at {upstream}, everything kept in {home}")
    say(f"prompt: about {story.prompt.size() // 4} tokens; {len(story.traffic)} messages to label")
    before = await app.ask_at(_calls(story, "before"), rate=RATE)
    say(f"before: {len(before)} held-out messages asked with the whole prompt")
    traffic = _traffic(story, options.seed)
    await app.ask(traffic, at_once=options.at_once, progress=_progress(say, "traffic sent", len(traffic)))
    seen = await _watch(home, story, say)
    if seen["promoted"]:
        await route_in_force(url)
        seen["live"] = await _take_over(options, story, home, app, say)
    after = await app.ask_at(_calls(story, "after"), rate=RATE)
    changed = await app.ask_at(_changed(story), rate=RATE)
    say(f"after: the same {len(after)} held-out messages, and {len(changed)} with a changed prompt")
    await recorded(home)
    return await _result(story, home, upstream, before, after, changed, seen, time.monotonic() - started)


def _policy(story: Plot) -> dict[str, Any]:
    """Training starts when the main task's traffic is in; the candidate takes over in fewer steps than usual, for
    want of time."""
    return {"min_rows": max(50, len(story.traffic) * 19 // 20), "canary": list(CANARY)}


# --- what is asked -------------------------------------------------------------------------------------


def _calls(story: Plot, phase: str) -> list[Call]:
    """The held-out messages; recorded without their bodies, so that nothing can be learnt from them."""
    headers = {"x-unprompt-log": "metadata", "x-unprompt-tags": f"phase={phase}"}
    return [
        Call(messages=story.prompt.request(row.text), stream=number % 2 == 1, headers=headers, expected=row.label)
        for number, row in enumerate(story.held_out)
    ]


def _changed(story: Plot) -> list[Call]:
    headers = {"x-unprompt-log": "metadata", "x-unprompt-tags": "phase=changed"}
    return [
        Call(messages=story.prompt.changed(row.text), headers=headers,
             expected=story.prompt.changed_for(row.text).answer(row.label))
        for row in story.held_out[:CHANGED]
    ]  # fmt: skip


def _traffic(story: Plot, seed: int) -> list[Call]:
    """The app's requests in a random order, another task's and one-off ones among them."""
    calls = [
        Call(messages=story.prompt.request(row.text), stream=number % 3 == 2)
        for number, row in enumerate(story.traffic)
    ]
    calls += [Call(messages=messages) for messages in story.aside]
    random.Random(seed).shuffle(calls)
    return calls


def _progress(say: Say, what: str, total: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done % -(-total // 5) == 0 or done == total:
            say(f"{what}: {done} of {total}")

    return progress


# --- waiting for the worker ------------------------------------------------------------------------------


async def _watch(home: Path, story: Plot, say: Say) -> dict[str, Any]:
    """Report what the worker does until it has decided about the main task."""
    store = SqliteStore(home / "data" / "unprompt.db")
    told: set[str] = set()

    def once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            say(sentence)

    deadline = time.monotonic() + SETTLE_SECONDS
    try:
        while time.monotonic() < deadline:
            _report(store, once)
            decided = [row for row in store.rows("promotions") if row["action"] in ("promote", "refuse")]
            if decided:
                return _seen(store, decided[-1])
            failed = store.rows("jobs", "state = 'failed'")
            if failed:
                raise TaskError(f"the worker gave up: {failed[-1]['error']}")
            await asyncio.sleep(0.3)
    finally:
        store.close()
    raise TaskError(f"no decision within {SETTLE_SECONDS:.0f} s; {home / 'gateway.log'} tells what happened")


def _report(store: SqliteStore, once: Say) -> None:
    busy = {row["name"] for row in store.tasks() if row["exchanges"] >= 20}
    for template in store.templates():
        if template.task not in busy:
            continue
        slots = ", ".join(slot.name for slot in template.slots)
        once(f"task found: {template.name}, slots: {slots}, {template.fixed_words} words of prompt")
    for row in store.rows("datasets"):
        once(f"dataset {row['id']}: {row['train_rows']} train, {row['validation_rows']} validation rows")
    for finetune in store.finetunes("state = 'succeeded'"):
        once(f"trained {finetune.model} in {finetune.metrics.get('train_seconds', 0):.1f} s {finetune.options}")


def _seen(store: SqliteStore, decided: dict[str, Any]) -> dict[str, Any]:
    report = json.loads(store.rows("evaluations", "task = ?", [decided["task"]])[-1]["report"])
    decision = json.loads(decided["decision"])
    return {
        "task": decided["task"],
        "promoted": decided["action"] == "promote",
        "report": report,
        "decision": decision,
    }


async def _take_over(options: Options, story: Plot, home: Path, app: App, say: Say) -> int:
    """The app goes on asking, and the worker takes the steps of the canary; gives how many requests that took."""
    store = SqliteStore(home / "data" / "unprompt.db")
    rng, sent, told = random.Random(options.seed), 0, 0
    try:
        while sent < MOST_LIVE:
            flips = store.rows("promotions", "state = 'done' AND action IN ('advance', 'rollback')")
            for row in flips[told:]:
                say(_step(row, sent))
            told = len(flips)
            if (flips and flips[-1]["action"] == "rollback") or not _is_on_trial(store):
                break
            rows = [rng.choice(story.live) for _ in range(50)]
            calls = [Call(messages=story.prompt.request(row.text), stream=number % 3 == 2)
                     for number, row in enumerate(rows)]  # fmt: skip
            await app.ask(calls, at_once=options.at_once)
            sent += len(calls)
    finally:
        store.close()
    return sent


def _is_on_trial(store: SqliteStore) -> bool:
    newest = store.rows("promotions", "state = 'done' AND action IN ('promote', 'advance')")[-1]
    return bool(steps_of(newest["steps"]))


def _step(row: dict[str, Any], sent: int) -> str:
    if row["action"] == "rollback":
        return f"canary: rolled back after {sent} more requests: {json.loads(row['decision'])['alarm']['sentence']}"
    share = yaml.safe_load(row["routes_after"])["targets"][0].get("weight", 100)
    pairs = json.loads(row["decision"])["pairs"]
    return f"canary: {pairs} answers compared in {sent} more requests; now {share:g} % of the requests"


# --- the result --------------------------------------------------------------------------------------------


async def _result(
    story: Plot, home: Path, upstream: str, before: Sequence[Reply], after: Sequence[Reply],
    changed: Sequence[Reply], seen: dict[str, Any], seconds: float,
) -> dict[str, Any]:  # fmt: skip
    store = SqliteStore(home / "data" / "unprompt.db")
    stats = await stats_of(upstream)
    stripped = sum(reply.stripped for reply in after)
    result = {
        "before": phase_figures(store, "before", before),
        "after": phase_figures(store, "after", after),
        "stripped_share": round(stripped / len(after), 4),
        "fallback_share": round(1 - stripped / len(after), 4),
        "wrong_strips": sum(reply.stripped for reply in changed) + stats.get("altered", 0) + stats.get("bare", 0),
        "changed_requests": len(changed),
        "changed_accuracy": round(sum(reply.right for reply in changed) / len(changed), 4),
        "versions": len(store.templates(seen["task"])),
        "promotions": len(store.rows("promotions", "action = 'promote'")),
        "rollbacks": len(store.rows("promotions", "action = 'rollback'")),
        "fallbacks": store.count("attempts != '[]'"),
        "rows": json.loads(store.rows("datasets", "task = ?", [seen["task"]])[-1]["card"])["rows"],
        "candidates": len(store.finetunes("task = ?", [seen["task"]])),
        "tasks": [row["name"] for row in store.tasks()],
        "task": seen["task"],
        "promoted": seen["promoted"],
        "canary_requests": seen.get("live", 0),
        "labels": len({row.label for row in story.traffic}),
        "report": seen["report"],
        "decision": seen["decision"],
        "home": str(home),
        "seconds": round(seconds, 1),
    }
    store.close()
    return result


def phase_figures(store: SqliteStore, phase: str, replies: Sequence[Reply]) -> dict[str, Any]:
    """Accuracy against gold and latency as the app saw them; cost and tokens as the gateway recorded them."""
    times = sorted(reply.milliseconds for reply in replies)
    recorded = store.exchanges("json_extract(tags, '$.phase') = ?", [phase])
    costs = [e.cost_usd for e in recorded if e.cost_usd is not None]
    tokens = [e.input_tokens for e in recorded if e.input_tokens is not None]
    return {
        "requests": len(replies),
        "accuracy": round(sum(reply.right for reply in replies) / len(replies), 4),
        "cost_per_1k_usd": round(1000 * sum(costs) / len(costs), 5)
        if len(costs) == len(recorded) and costs
        else None,
        "input_tokens": round(sum(tokens) / len(tokens), 1) if tokens else None,
        "p50_ms": round(times[len(times) // 2], 1),
        "p95_ms": round(times[int(len(times) * 0.95)], 1),
        "errors": sum(reply.error is not None for reply in replies),
    }
