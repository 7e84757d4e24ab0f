"""`routes.yaml`: the switchboard. People and `promote` both write it; a flip is an edit and a save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field

from gateway.config.document import Document, InvalidConfig, Problem, Section, parse, validate
from gateway.config.settings import Config, ProviderConfig, names
from gateway.domain.route import (
    CAUSES,
    LOCAL,
    CircuitPolicy,
    Match,
    OnClientGone,
    Retry,
    Route,
    RouteLimits,
    RouteTable,
    Shadow,
    Sticky,
    Target,
    Timeouts,
)


class _MatchConfig(Section):
    provider: str | None = None
    model: str | None = None
    task: str | None = None
    tags: dict[str, str] = {}
    key: str | None = None


class _PlaceConfig(Section):
    upstream: str
    model: str | None = None
    strip: Annotated[str, Field(pattern=r"^[^@\s]+@[0-9]+$")] | None = None
    min_confidence: float = Field(0.0, ge=0, le=1)


class _TargetConfig(_PlaceConfig):
    weight: float = Field(100.0, ge=0)


class _ShadowConfig(_PlaceConfig):
    percent: float = Field(100.0, ge=0, le=100)

    def noun(self) -> Shadow:
        return Shadow(target=Target(**self.model_dump(exclude={"percent"})), percent=self.percent)


class _FallbackConfig(Section):
    upstream: str
    model: str | None = None


class _TimeoutsConfig(Section):
    connect: float = Field(10.0, gt=0)
    first_byte: float = Field(600.0, gt=0)
    idle: float = Field(300.0, gt=0)
    total: float | None = Field(None, gt=0)


class _RetryConfig(Section):
    """The list of causes is `when`, since YAML reads a key `on` as true."""

    attempts: int = Field(Retry().attempts, ge=1, le=10)
    when: frozenset[int | str] = Retry().when
    base_seconds: float = Field(Retry().base_seconds, ge=0)
    max_seconds: float = Field(Retry().max_seconds, ge=0)
    budget: float = Field(Retry().budget, ge=0, le=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _has_no_on(cls, given: Any) -> Any:
        if isinstance(given, dict) and True in given:
            raise ValueError("the key 'on' means true in YAML; name the causes of a retry under 'when'")
        return given

    @pydantic.field_validator("when", mode="before")
    @classmethod
    def _are_causes(cls, given: Any) -> Any:
        wrong = [cause for cause in given if cause not in CAUSES] if isinstance(given, list) else [given]
        if wrong:
            known = ", ".join(map(str, CAUSES))
            raise ValueError(f"not a list of causes ({wrong[0]!r} is none); known: {known}")
        return given


class _CircuitConfig(Section):
    enabled: bool = True
    failures: int = Field(CircuitPolicy().failures, ge=1)
    error_rate: float = Field(CircuitPolicy().error_rate, gt=0, le=1)
    min_calls: int = Field(CircuitPolicy().min_calls, ge=1)
    window_seconds: float = Field(CircuitPolicy().window_seconds, gt=0)
    open_seconds: float = Field(CircuitPolicy().open_seconds, gt=0)
    max_open_seconds: float = Field(CircuitPolicy().max_open_seconds, gt=0)
    refuse: bool = False

    def noun(self) -> CircuitPolicy | None:
        """Who asks for one gets it for targets without a stand-in, too."""
        return CircuitPolicy(**self.model_dump(exclude={"enabled"}), alone=True) if self.enabled else None


class _LimitsConfig(Section):
    concurrency: int | None = Field(None, ge=1)
    concurrency_per_key: int | None = Field(None, ge=1)
    max_body_mb: int | None = Field(None, ge=1)

    def noun(self) -> RouteLimits | None:
        """None where nothing is limited, so that the relay need not look."""
        limits = RouteLimits(
            concurrency=self.concurrency,
            concurrency_per_key=self.concurrency_per_key,
            body_bytes=self.max_body_mb << 20 if self.max_body_mb is not None else None,
        )
        return None if limits == RouteLimits() else limits


class _RouteConfig(Section):
    name: str = Field(min_length=1)
    match: _MatchConfig = _MatchConfig()
    targets: list[_TargetConfig] = Field(min_length=1)
    fallback: _FallbackConfig | None = None
    timeouts: _TimeoutsConfig = _TimeoutsConfig()
    retry: _RetryConfig | None = None
    circuit: _CircuitConfig | None = None
    limits: _LimitsConfig = _LimitsConfig()
    on_client_gone: OnClientGone = "cancel"
    sticky: Sticky = "session"
    audit: float = Field(0.0, ge=0, le=100)
    shadow: _ShadowConfig | None = None

    @pydantic.field_validator("circuit", mode="before")
    @classmethod
    def _may_be_a_switch(cls, given: Any) -> Any:
        return {"enabled": given} if isinstance(given, bool) else given

    @property
    def fallbacks(self) -> list[tuple[list[str | int], _FallbackConfig]]:
        """Each with the path to it below the route."""
        return [(["fallback"], self.fallback)] if self.fallback else []

    def noun(self) -> Route:
        return Route(
            name=self.name,
            match=Match(**self.match.model_dump()),
            targets=tuple(Target(**target.model_dump()) for target in self.targets),
            fallbacks=tuple(Target(**fallback.model_dump()) for _, fallback in self.fallbacks),
            timeouts=Timeouts(**self.timeouts.model_dump()),
            retry=Retry(**self.retry.model_dump()) if self.retry else None,
            circuit=self.circuit.noun() if self.circuit else CircuitPolicy(),
            limits=self.limits.noun(),
            on_client_gone=self.on_client_gone,
            sticky=self.sticky,
            audit=self.audit,
            shadow=self.shadow.noun() if self.shadow else None,
        )


class _RouteWithFallbacks(_RouteConfig):
    """The same where `fallback` is a list: a model of its own, so that problems are told by the file's own path."""

    fallback: list[_FallbackConfig] = Field(min_length=1)  # type: ignore[assignment]  # a list, and only here

    @property
    def fallbacks(self) -> list[tuple[list[str | int], _FallbackConfig]]:
        return [(["fallback", place], fallback) for place, fallback in enumerate(self.fallback)]


def _model_of(given: Any) -> type[_RouteConfig]:
    has_list = isinstance(given, dict) and isinstance(given.get("fallback"), list)
    return _RouteWithFallbacks if has_list else _RouteConfig


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
    for index, route_given in enumerate(given):
        route, wrong = validate(_model_of(route_given), document, ("routes", index))
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
    for here, target in _targets(route, path):
        if target.upstream not in upstreams:
            yield document.problem([*here, "upstream"], f"no upstream {target.upstream!r}; {names(upstreams)}")
        elif target.upstream == LOCAL and target.model is None:
            yield document.problem([*here, "model"], "a local target needs the name of a trained model")
        elif target.upstream == LOCAL and target.strip is None:
            yield document.problem([*here, "strip"], "a local target needs 'strip: TASK@VERSION'")
        elif target.upstream != LOCAL and target.min_confidence > 0:
            yield from _confidence_checks(target, here, config.providers[target.upstream], document)
    for step, fallback in route.fallbacks:
        if fallback.upstream not in config.providers:
            yield document.problem(
                [*path, *step, "upstream"], f"no provider {fallback.upstream!r}; {names(config.providers)}"
            )
    yield from _resilience_checks(route, path, document)
    yield from _protocol_checks(route, path, config, document)


def _confidence_checks(
    target: _PlaceConfig, here: list[str | int], provider: ProviderConfig, document: Document
) -> Iterable[Problem]:
    """A model elsewhere is as sure as the log-probabilities of its answer say."""
    path, name = [*here, "min_confidence"], target.upstream
    if provider.protocol != "openai":
        reason = f"{name!r} speaks {provider.protocol}, which tells no log-probabilities in this way; remove it"
        yield document.problem(path, reason)
    elif not provider.logprobs:
        reason = f"providers.{name}.logprobs is false, so nobody can tell how sure it is; change one of the two"
        yield document.problem(path, reason)
    elif target.strip is None:
        yield document.problem(path, "who is asked the whole prompt always answers; add 'strip', or remove it")


def _targets(route: _RouteConfig, path: list[str | int]) -> Iterator[tuple[list[str | int], _PlaceConfig]]:
    """Each with the path to it: those that answer, and the one that is only asked."""
    for place, target in enumerate(route.targets):
        yield [*path, "targets", place], target
    if route.shadow is not None:
        yield [*path, "shadow"], route.shadow


def _resilience_checks(route: _RouteConfig, path: list[str | int], document: Document) -> Iterable[Problem]:
    retry, circuit = route.retry, route.circuit
    if retry is not None and retry.max_seconds < retry.base_seconds:
        message = f"is less than base_seconds ({retry.base_seconds:g}); raise it"
        yield document.problem([*path, "retry", "max_seconds"], message)
    if circuit is not None and circuit.max_open_seconds < circuit.open_seconds:
        message = f"is less than open_seconds ({circuit.open_seconds:g}); raise it"
        yield document.problem([*path, "circuit", "max_open_seconds"], message)


def _protocol_checks(
    route: _RouteConfig, path: list[str | int], config: Config, document: Document
) -> Iterable[Problem]:
    """Bodies are not translated: all places of a route must speak the language of the requests it takes."""
    protocols: Mapping[str, str] = {n: p.protocol for n, p in config.providers.items()} | {LOCAL: "openai"}
    places: list[tuple[list[str | int], str]] = [
        ([*place, "upstream"], target.upstream) for place, target in _targets(route, path)
    ]
    places += [([*path, *step, "upstream"], fallback.upstream) for step, fallback in route.fallbacks]
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
