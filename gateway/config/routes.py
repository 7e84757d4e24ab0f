"""`routes.yaml`: the switchboard. People and `promote` both write it; a flip is an edit and a save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gateway.config.document import Document, InvalidConfig, Problem, Section, read, validate
from gateway.config.settings import Config, names
from gateway.domain.route import LOCAL, Match, Route, RouteTable, Target, Timeouts


class _MatchConfig(Section):
    provider: str | None = None
    model: str | None = None
    task: str | None = None
    tags: dict[str, str] = {}
    key: str | None = None


class _TargetConfig(Section):
    upstream: str
    model: str | None = None
    weight: float = Field(100.0, ge=0)
    strip: Annotated[str, Field(pattern=r"^[^@\s]+@[0-9]+$")] | None = None
    min_confidence: float = Field(0.0, ge=0, le=1)


class _FallbackConfig(Section):
    upstream: str
    model: str | None = None


class _TimeoutsConfig(Section):
    connect: float = Field(10.0, gt=0)
    first_byte: float = Field(600.0, gt=0)
    idle: float = Field(300.0, gt=0)
    total: float | None = Field(None, gt=0)


class _RouteConfig(Section):
    name: str = Field(min_length=1)
    match: _MatchConfig = _MatchConfig()
    targets: list[_TargetConfig] = Field(min_length=1)
    fallback: _FallbackConfig | None = None
    timeouts: _TimeoutsConfig = _TimeoutsConfig()

    def noun(self) -> Route:
        return Route(
            name=self.name,
            match=Match(**self.match.model_dump()),
            targets=tuple(Target(**target.model_dump()) for target in self.targets),
            fallback=Target(**self.fallback.model_dump()) if self.fallback else None,
            timeouts=Timeouts(**self.timeouts.model_dump()),
        )


class _RoutesFile(Section):
    routes: list[_RouteConfig] = []


def load_routes(file: Path, config: Config) -> RouteTable:
    """The routes in `file`; no file is an empty table.

    Raises:
        InvalidConfig: with every problem of the file.
    """
    if not file.exists():
        return RouteTable()
    document = read(file)
    parsed, problems = validate(_RoutesFile, document)
    if parsed is not None:
        problems = list(_route_checks(parsed, config, document))
    if parsed is None or problems:
        raise InvalidConfig(problems)
    version = hashlib.sha256(document.text).hexdigest()[:12]
    return RouteTable(routes=tuple(route.noun() for route in parsed.routes), version=version)


def _route_checks(parsed: _RoutesFile, config: Config, document: Document) -> Iterable[Problem]:
    upstreams = {**config.providers, LOCAL: None}
    seen: set[str] = set()
    for index, route in enumerate(parsed.routes):
        path: list[str | int] = ["routes", index]
        if route.name in seen:
            yield document.problem([*path, "name"], f"{route.name!r} is used twice; rename one")
        seen.add(route.name)
        if sum(target.weight for target in route.targets) <= 0:
            yield document.problem([*path, "targets"], "all weights are 0; give one target a weight")
        if route.match.provider is not None and route.match.provider not in config.providers:
            yield document.problem(
                [*path, "match", "provider"],
                f"no provider {route.match.provider!r}; {names(config.providers)}",
            )
        for place, target in enumerate(route.targets):
            here = [*path, "targets", place]
            if target.upstream not in upstreams:
                yield document.problem([*here, "upstream"], f"no upstream {target.upstream!r}; {names(upstreams)}")
            elif target.upstream == LOCAL and target.model is None:
                yield document.problem([*here, "model"], "a local target needs the name of a trained model")
            elif target.upstream == LOCAL and target.strip is None:
                yield document.problem([*here, "strip"], "a local target needs 'strip: TASK@VERSION'")
        if route.fallback is not None and route.fallback.upstream not in config.providers:
            yield document.problem(
                [*path, "fallback", "upstream"],
                f"no provider {route.fallback.upstream!r}; {names(config.providers)}",
            )
