"""`routes.yaml`: the switchboard. People and `promote` both write it; a flip is an edit and a save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gateway.config.document import Document, InvalidConfig, Problem, Section, parse, validate
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
    routes: list[Any] | None = None


def load_routes(file: Path, config: Config) -> RouteTable:
    """The routes in `file`; no file is an empty table.

    Raises:
        InvalidConfig: with every problem of the file.
    """
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return RouteTable()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); check the path and its permissions"
        raise InvalidConfig([Problem(str(file), 0, "", reason)]) from error
    return parse_routes(str(file), text, config)


def parse_routes(name: str, text: bytes, config: Config) -> RouteTable:
    """The routes in the text of a file that problems call `name`.

    Raises:
        InvalidConfig: with every problem of the text.
    """
    document = parse(name, text)
    problems = document.repeated_keys()
    whole, wrong = validate(_RoutesFile, document)
    problems += wrong
    given = (whole.routes or []) if whole else []
    problems += _repeated_names(given, document)
    routes: list[_RouteConfig] = []
    for index in range(len(given)):
        route, wrong = validate(_RouteConfig, document, ("routes", index))
        problems += wrong or _checks(route, ["routes", index], config, document)
        routes += [route] if route is not None else []
    if problems:
        raise InvalidConfig(problems)
    version = hashlib.sha256(text).hexdigest()[:12]
    return RouteTable(routes=tuple(route.noun() for route in routes), version=version)


def _repeated_names(given: list[Any], document: Document) -> Iterable[Problem]:
    met: set[str] = set()
    for index, route in enumerate(given):
        name = route.get("name") if isinstance(route, dict) else None
        if isinstance(name, str):
            if name in met:
                yield document.problem(["routes", index, "name"], f"{name!r} is used twice; rename one")
            met.add(name)


def _checks(
    route: _RouteConfig | None, path: list[str | int], config: Config, document: Document
) -> Iterable[Problem]:
    if route is None:
        return
    if sum(target.weight for target in route.targets) <= 0:
        yield document.problem([*path, "targets"], "all weights are 0; give one target a weight")
    if route.match.provider is not None and route.match.provider not in config.providers:
        yield document.problem(
            [*path, "match", "provider"], f"no provider {route.match.provider!r}; {names(config.providers)}"
        )
    upstreams = {**config.providers, LOCAL: None}
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
            [*path, "fallback", "upstream"], f"no provider {route.fallback.upstream!r}; {names(config.providers)}"
        )
    yield from _protocol_checks(route, path, config, document)


def _protocol_checks(
    route: _RouteConfig, path: list[str | int], config: Config, document: Document
) -> Iterable[Problem]:
    """Bodies are not translated: all places of a route must speak the language of the requests it takes."""
    protocols: Mapping[str, str] = {n: p.protocol for n, p in config.providers.items()} | {LOCAL: "openai"}
    places: list[tuple[list[str | int], str]] = [
        ([*path, "targets", number, "upstream"], target.upstream) for number, target in enumerate(route.targets)
    ]
    if route.fallback is not None:
        places.append(([*path, "fallback", "upstream"], route.fallback.upstream))
    first = route.match.provider if route.match.provider in protocols else None
    for place, upstream in places:
        if upstream not in protocols:
            continue
        first = first or upstream
        if protocols[upstream] != protocols[first]:
            yield document.problem(
                place,
                f"{upstream!r} speaks {protocols[upstream]}, and {first!r} of the same route speaks "
                f"{protocols[first]}; requests are not translated: name an upstream of that protocol",
            )
