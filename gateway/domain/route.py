"""Routes: which requests go where. Frozen; a new file is a new table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the switchboard. Without a fallback, the request's own provider is the fallback."""

    name: str
    match: Match
    targets: tuple[Target, ...]
    fallback: Target | None = None
    timeouts: Timeouts = Timeouts()

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
        return frozenset(t.strip for route in self.routes for t in route.targets if t.strip is not None)
