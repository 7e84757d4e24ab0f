"""Routes: which requests go where. Frozen; a new file is a new table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

LOCAL = "local"
"""The upstream of models that run inside this process."""


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """What a request must be for a route; what is None matches everything."""

    provider: str | None = None
    model: str | None = None
    task: str | None = None
    tags: dict[str, str] = {}
    key: str | None = None

    def fits(self, provider: str, model: str | None, tags: Mapping[str, str], key_id: str | None) -> bool:
        """Everything but the task, which is only looked at when the rest fits."""
        return (
            (self.provider is None or self.provider == provider)
            and (self.model is None or self.model == model)
            and (self.key is None or self.key == key_id)
            and all(tags.get(name) == value for name, value in self.tags.items())
        )


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An upstream and the model to ask there.

    `strip` names the template whose text is taken away (`TASK@VERSION`). `min_confidence` is the
    probability under which a model that knows how sure it is must abstain.
    """

    upstream: str
    model: str | None = None
    weight: float = 100.0
    strip: str | None = None
    min_confidence: float = 0.0

    @property
    def label(self) -> str:
        """`upstream/model`, as in metrics, response headers and the store."""
        return self.upstream if self.model is None else f"{self.upstream}/{self.model}"


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. `total` None: a long answer may take as long as it flows."""

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 300.0
    total: float | None = None


CAUSES: tuple[int | str, ...] = ("connect", "first_byte", "broken", 408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Why a target may be asked again: no connection, silence, a connection that closed before the answer began,
or the answer's status."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often the same target is asked, the first time included, and how long the pauses are (seconds).

    `budget` is the share of a target's requests that may be retries, so that they cannot multiply an outage.
    """

    attempts: int = 3
    when: frozenset[int | str] = frozenset({"connect", 408, 429, 500, 502, 503, 504, 529})
    base_seconds: float = 0.5
    max_seconds: float = 8.0
    budget: float = 0.2


class CircuitPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a target is left alone, and for how long (seconds).

    It trips after `failures` in a row, or when `error_rate` of at least `min_calls` within `window_seconds`
    failed; `open_seconds` double with each failed probe, up to `max_open_seconds`. `alone`: it also holds for a
    target that nothing else can stand in for. `refuse`: answer 503 where every target is left alone, instead of
    asking the last one all the same.
    """

    failures: int = 5
    error_rate: float = 0.5
    min_calls: int = 20
    window_seconds: float = 30.0
    open_seconds: float = 5.0
    max_open_seconds: float = 120.0
    alone: bool = False
    refuse: bool = False


class RouteLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a route takes on at most: requests under way, the same of one key, and bytes of a request's body."""

    concurrency: int | None = None
    concurrency_per_key: int | None = None
    body_bytes: int | None = None


OnClientGone = Literal["cancel", "finish"]
Sticky = Literal["session", "key", "none"]
"""What stays on its side of a split: whatever names the same session or user, or has the same key, or nothing."""


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that is asked, too, and for whose answer nobody waits: of `percent` of the requests that another
    answered whole."""

    target: Target
    percent: float = 100.0


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the switchboard. Without fallbacks, the request's own provider is the fallback.

    `retry`, `circuit` and `limits` are None where there is nothing to look at. `audit`: of so many percent of the
    requests that a stripping target answered, its fallback is asked, too, for the record.
    """

    name: str
    match: Match
    targets: tuple[Target, ...]
    fallbacks: tuple[Target, ...] = ()
    timeouts: Timeouts = Timeouts()
    retry: Retry | None = None
    circuit: CircuitPolicy | None = CircuitPolicy()
    limits: RouteLimits | None = None
    on_client_gone: OnClientGone = "cancel"
    sticky: Sticky = "session"
    audit: float = 0.0
    shadow: Shadow | None = None

    @property
    def strips(self) -> Iterator[str]:
        """The templates that it strips, as `TASK@VERSION`."""
        targets = self.targets if self.shadow is None else (*self.targets, self.shadow.target)
        return (target.strip for target in targets if target.strip is not None)

    @property
    def fallback(self) -> Target | None:
        """The first of the fallbacks."""
        return self.fallbacks[0] if self.fallbacks else None

    def choose(self, point: float) -> Target:
        """The target at `point` (0 <= point < 1) of the weights' line; one of weight 0 is never chosen."""
        weighty = [target for target in self.targets if target.weight > 0] or self.targets
        mark = point * sum(target.weight for target in weighty)
        for target in weighty:
            mark -= target.weight
            if mark < 0:
                return target
        return weighty[-1]


class RouteTable(msgspec.Struct, frozen=True, kw_only=True):
    """The routes in order; the first that fits wins. `version` is a hash of the file they came from."""

    routes: tuple[Route, ...] = ()
    version: str = "none"

    def candidates(
        self, provider: str, model: str | None, tags: Mapping[str, str], key_id: str | None
    ) -> Sequence[Route]:
        """The routes that fit but for their task, in order."""
        return [route for route in self.routes if route.match.fits(provider, model, tags, key_id)]

    def strips(self) -> frozenset[str]:
        """The templates that some target strips, as `TASK@VERSION`."""
        return frozenset(name for route in self.routes for name in route.strips)
