"""Weeks of an app's traffic in minutes: what the gateway does by itself when things go wrong, and how soon.

    python benchmarks/simulate.py                        every story, some minutes
    python benchmarks/simulate.py decay worse --runs 20  only these, each with 20 seeds

What is real: the templates found in the traffic, the match and the strip of each request, the routes file and what
flips it, the dataset, the training, the evaluation and the gate, the canary, the audits and the alarms, the store.
What is not: the clock, the network, and the incumbent, which knows the label of each of the demo's messages. In the
stories about a candidate of a certain quality that candidate is made up, too: an upstream which gives the
incumbent's answer with a given probability.

`wrong strips`: requests with a prompt other than the one that was learnt whose prompt was taken away. `served`: the
share of requests that the candidate answered. `right`: of all answers, beside the label. `until`: requests from the
event to the first rollback, or to the first promotion after it.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from simulated_app import BATCH, REQUESTS_A_DAY, World

from gateway.pipeline import promotions


@dataclass
class Story:
    """How a world went. `event`: the number of the first request after which something was different."""

    world: World
    event: int = 0
    until: int | None = None

    def live_until(self, holds: Callable[[World], bool], days: float) -> bool:
        """Go on until it holds, at most so many days; notes after how many requests of the event it did."""
        for _ in range(round(days * REQUESTS_A_DAY / BATCH)):
            self.world.live(BATCH / REQUESTS_A_DAY)
            if holds(self.world):
                self.until = self.world.numbers - self.event
                return True
        return False


def promoted(world: World) -> bool:
    return len(world.flips("promote")) > len(world.flips("rollback"))


def all_steps(world: World) -> bool:
    """The candidate has passed all steps of its canary: it gets what the policy's `share` says."""
    standing = promotions.standing(world.store, world.task)
    return bool(standing) and not promotions.steps_left(standing[-1])


def quiet(story: Story) -> None:
    """Nothing happens: one promotion, and it stays."""
    story.live_until(all_steps, 7)
    story.world.live(story.world.days)


def noise(story: Story) -> None:
    """The incumbent is wrong in 5 % of its answers, at random."""
    story.world.error_rate = 0.05
    story.live_until(all_steps, 7)
    story.world.live(story.world.days)


def prompt_change(story: Story) -> None:
    """The app ships another prompt when the candidate serves: it must not be stripped, is learnt anew, and the
    next candidate is promoted for it. `until`: all traffic of the new prompt goes to the new candidate."""
    world = story.world
    story.live_until(all_steps, 7)
    world.live(1)
    before = {route.targets[0].strip for route in world.board.table.routes}
    world.prompt = world.prompt.changes()[0]
    story.event = world.numbers
    story.live_until(lambda w: all_steps(w) and {r.targets[0].strip for r in w.board.table.routes} != before, 14)
    world.live(world.days)


def topics_shift(story: Story) -> None:
    """One day half of the messages are of kinds that were never met. `until`: the next promotion."""
    world = story.world
    labels = sorted({row.label for row in world.texts})
    rare = set(labels[: len(labels) // 3])
    old = [row for row in world.texts if row.label not in rare]
    new = [row for row in world.texts if row.label in rare]
    everything, world.texts = world.texts, old
    story.live_until(all_steps, 7)
    world.live(1)
    story.event, promotions = world.numbers, len(world.flips("promote"))
    world.texts = [*new, *old[: len(new)]]
    story.live_until(lambda w: len(w.flips("promote")) > promotions and all_steps(w), 14)
    world.live(world.days)
    world.texts = everything


def outage(story: Story) -> None:
    """The incumbent is down for six hours when the candidate serves."""
    world = story.world
    story.live_until(all_steps, 7)
    world.live(1)
    story.event, story.until = world.numbers, None
    world.down = True
    world.live(0.25)
    world.down = False
    world.live(world.days)


def _made_serves(story: Story, agreement: float) -> None:
    world = story.world
    world.error_rate = 0.0  # else the incumbent's own errors come on top
    world.live(0.8)
    world.made.agreement = agreement
    world.promote_made()


def worse(story: Story) -> None:
    """A candidate that is 3 points worse than allowed is promoted by mistake. `until`: the rollback."""
    world = story.world
    world.policy.setdefault("margin", 0.05)
    _made_serves(story, 1 - world.shop.config.policy("x").margin - 0.03)
    story.event = world.numbers
    story.live_until(lambda w: bool(w.flips("rollback")), 28)


def decay(story: Story) -> None:
    """A candidate that is wrong half as often as allowed is 5 points worse from one moment on. `until`: the
    rollback."""
    world = story.world
    usual = 1 - world.shop.config.policy("x").margin / 2
    _made_serves(story, usual)
    story.live_until(all_steps, 7)
    world.live(2)
    world.made.agreement, story.event, story.until = usual - 0.05, world.numbers, None
    if not world.flips("rollback"):
        story.live_until(lambda w: bool(w.flips("rollback")), 28)


STORIES: dict[str, Callable[[Story], None]] = {
    "quiet": quiet, "noise": noise, "prompt_change": prompt_change, "topics_shift": topics_shift, "outage": outage,
    "worse": worse, "decay": decay,
}  # fmt: skip


def play(name: str, seed: int, days: float) -> dict[str, Any]:
    """One run of a story; what came of it."""
    with tempfile.TemporaryDirectory() as home:
        policy = {"min_rows": 10**9} if name in ("worse", "decay") else {}
        world = World(Path(home), seed, days, policy=policy)
        story = Story(world)
        time.time = lambda: world.now
        STORIES[name](story)
        world.work()
        return _figures(name, story)


def _figures(name: str, story: Story) -> dict[str, Any]:
    world, told = story.world, story.world.told
    after = [one for one in told if one.number > story.event]
    return {
        "story": name,
        "days": round(len(told) / REQUESTS_A_DAY, 1),
        "requests": len(told),
        "served": sum(one.stripped and not one.failed for one in after) / max(1, len(after)),
        "right": sum(one.right for one in after) / max(1, len(after)),
        "failed": sum(one.failed for one in told),
        "wrong_strips": sum(one.wrong for one in told),
        "promotions": len(world.flips("promote")),
        "rollbacks": len(world.flips("rollback")),
        "until": story.until,
        "alarms": sorted(world.known),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Weeks of traffic with a clock of its own")
    parser.add_argument("stories", nargs="*", choices=[*STORIES, []], help="default: all")
    parser.add_argument("--runs", type=int, default=1, help="seeds of each story")
    parser.add_argument("--days", type=float, default=7.0, help="how long a story goes on after its event")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found = []
    click.echo(
        "| story | days | served | right | failed | wrong strips | promotions | rollbacks | until | alarms |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    for name in given.stories or STORIES:
        runs = [play(name, seed, given.days) for seed in range(given.runs)]
        found += runs
        click.echo(_line(name, runs))
    if given.json:
        click.echo(json.dumps(found, indent=1))
    return int(any(run["wrong_strips"] for run in found))


def _line(name: str, runs: list[dict[str, Any]]) -> str:
    def mean(key: str) -> float:
        return statistics.fmean(run[key] for run in runs)

    until = [run["until"] for run in runs if run["until"] is not None]
    middle = f"{statistics.median(until):,.0f}" if until else "-"
    if len(until) < len(runs):
        middle += f" ({len(until)} of {len(runs)})"
    alarms = ", ".join(sorted({alarm for run in runs for alarm in run["alarms"]})) or "-"
    return (
        f"| {name} | {mean('days'):.0f} | {mean('served'):.1%} | {mean('right'):.1%} | {mean('failed'):.0f}"
        f" | {mean('wrong_strips'):g} | {mean('promotions'):.1f} | {mean('rollbacks'):.1f} | {middle} | {alarms} |"
    )


if __name__ == "__main__":
    sys.exit(main())
