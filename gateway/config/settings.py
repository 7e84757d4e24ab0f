"""`gateway.yaml`: what people set. Every key has a default, so an absent file is a valid one."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic import Field

from gateway.config.document import Document, InvalidConfig, Problem, Section, read, validate
from gateway.domain.price import Price
from gateway.domain.route import LOCAL
from gateway.domain.terms import Terms

Protocol = Literal["openai", "anthropic", "gemini"]

RESERVED_NAMES = frozenset({LOCAL, "v1", "unprompt", "metrics", "healthz", "readyz"})
"""First path segments that are ours, so no provider can have them."""


class ServerConfig(Section):
    """Where we listen, and the bounds that hold for everybody."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=64, description="relay processes that share the port")
    max_body_mb: int = Field(64, ge=1, description="largest JSON body that a route may need to look into")
    header_seconds: float = Field(10.0, gt=0, description="a client's whole head must arrive within")
    idle_seconds: float = Field(75.0, gt=0, description="a kept-alive client connection may rest for")
    least_rate: int = Field(500, ge=0, description="bytes a second that a client's body must keep up")
    drain_seconds: float = Field(30.0, ge=0, description="on SIGTERM, requests under way may take")
    hang_seconds: float = Field(30.0, ge=0, description="a relay that does nothing for so long is replaced")
    connections: int = Field(16384, ge=1, description="clients connected at once; less where open files are fewer")
    max_in_flight: int | None = Field(None, ge=1, description="requests under way; a further one gets a 503")


class PriceConfig(Section):
    """USD per 1M tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(None, ge=0)


class ProviderConfig(Section):
    """A wire format and a place. Without `api_key_env` the client's own key is passed through."""

    protocol: Protocol = "openai"
    base_url: str
    api_key_env: str | None = None
    stream_usage: Literal["auto", "ask", "leave"] = "auto"
    logprobs: bool = Field(True, description="whether its models may be asked how sure they are of each token")
    train_on_outputs: bool = Field(True, description="whether its terms let models be trained on its answers")
    prices: dict[str, PriceConfig] = {}
    shutdown_dates: dict[str, datetime.date] = Field({}, description="when the provider takes a model away")
    hosting_usd_per_hour: float = Field(0.0, ge=0, description="what its servers cost, whether asked or not")

    @pydantic.field_validator("base_url")
    @classmethod
    def _is_http_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is not an http(s) URL; write it like https://api.openai.com/v1")
        if parts.query or parts.fragment or parts.username or parts.password:
            raise ValueError("a base URL has no user, query or fragment; put the key in api_key_env")
        return value.rstrip("/")


class StoreConfig(Section):
    """Where exchanges are kept. `sync_ms` bounds what a power failure can lose (0: sync each record)."""

    url: str = "sqlite:///data/unprompt.db"
    sync_ms: int = Field(1000, ge=0)
    keep_days: float | None = Field(None, gt=0, description="older exchanges are deleted")
    keep_mb: int | None = Field(None, ge=1, description="the oldest exchanges are deleted until the rest fits")

    @pydantic.field_validator("url")
    @classmethod
    def _is_sqlite(cls, value: str) -> str:
        if not value.startswith("sqlite:///") or not value.removeprefix("sqlite:///"):
            raise ValueError(f"{value!r} is not a store; write it like sqlite:///data/unprompt.db")
        return value

    @property
    def path(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    @property
    def home(self) -> Path:
        """The folder of everything that is kept: journal, datasets, trained models."""
        return self.path.parent


class CaptureConfig(Section):
    """What is recorded, and what happens when it can't be."""

    bodies: bool = True
    max_body_mb: int = Field(16, ge=1, description="bodies larger than this are cut in the record")
    on_failure: Literal["fail_open", "fail_closed"] = "fail_open"


Share = Annotated[float, Field(gt=0, le=100)]


class TaskPolicy(Section):
    """When a task is trained on, and what a candidate must show before it takes traffic."""

    min_rows: int = Field(500, ge=50, description="stripped rows before the first training")
    retrain_growth: float = Field(2.0, gt=1, description="train again when the rows have grown by this factor")
    answer_agreement: float = Field(0.95, gt=0, description="agreement asked of the answers it dares give")
    margin: float = Field(0.05, gt=0, lt=1, description="how much worse than the incumbent is still acceptable")
    share: float = Field(95.0, gt=0, le=100, description="percent of requests for a promoted candidate")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="one-sided confidence of the interval bounds")
    max_cost_ratio: float = Field(0.9, gt=0, description="candidate's cost over the incumbent's, at most")
    max_latency_ratio: float = Field(1.2, gt=0, description="candidate's p95 latency over the incumbent's, at most")
    min_held_out: int = Field(50, ge=1, description="held-out rows that a decision needs")
    measure: Literal["auto", "exact", "fields", "similarity", "judge"] = "auto"
    embedding: str | None = Field(None, description="embedding by which answers in prose are compared, too")
    judge: str | None = Field(None, description="provider/model that compares answers in prose")
    judge_rows: int = Field(300, ge=1, description="held-out rows on which the judge compares")
    sibling: str | None = Field(None, description="provider/model that is asked the whole prompt, too")
    baseline_rows: int = Field(200, ge=0, description="held-out rows that each baseline is asked; 0: none")
    ask_again: int | None = Field(None, ge=0, description="held-out rows that the incumbent is asked once more")
    ask_again_usd: float = Field(1.0, ge=0, description="what that may cost where `ask_again` leaves it open")
    approve: Literal["auto", "ask"] = "auto"
    scrub: Literal["off", "mask", "drop"] = Field("mask", description="personal data and secrets in rows")
    max_row_tokens: int = Field(65_536, ge=1, description="longer rows are dropped, never cut")
    max_label_rows: int | None = Field(None, ge=1, description="training rows of one answer, at most")
    audit: float = Field(10.0, ge=0, le=100, description="percent of a candidate's answers that are compared")
    judge_audits: int = Field(200, ge=0, description="audited answers a day that the judge compares")
    canary: tuple[Share, ...] = Field((10.0, 50.0, 100.0), description="percent of requests, step by step")
    canary_pairs: int = Field(25, ge=1, description="answers compared before a step is passed")
    shadow: float = Field(0.0, ge=0, le=100, description="percent asked in the shadow, before the first step")
    max_error_rate: float = Field(0.02, gt=0, lt=1, description="of requests that a candidate fails to answer")
    retrain_days: float | None = Field(None, gt=0, description="train again after so long, if there is new data")
    trainers: tuple[str, ...] | None = Field(None, min_length=1, description="default: those for its kind of task")
    budget_usd: float | None = Field(None, ge=0, description="what a sweep may cost; nothing starts beyond it")
    budget_hours: float | None = Field(None, gt=0, description="how long a sweep may be worked on")

    @pydantic.model_validator(mode="after")
    def _has_its_judge(self) -> TaskPolicy:
        if self.measure == "judge" and self.judge is None:
            raise ValueError("measure: judge needs a judge; name one like openai/gpt-4.1-mini")
        return self

    @pydantic.field_validator("answer_agreement")
    @classmethod
    def _can_be_shown(cls, value: float) -> float:
        if value >= 1:
            raise ValueError(
                "no number of rows can show that every answer agrees, so nothing would ever be answered; the next "
                "best is 0.99 (299 rows without a mistake show it with a confidence of 0.95)"
            )
        return value

    @pydantic.field_validator("judge", "sibling")
    @classmethod
    def _is_a_model(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition("/")[::2]):
            raise ValueError(f"{value!r} names no model; write it like openai/gpt-4.1-mini")
        return value


class TrainerConfig(Section):
    """A trainer; `provider` names whose API trains and serves, `options` and `sweep` are its own. `prices`: USD per
    1M training tokens by base model, `*` for all others."""

    kind: str
    provider: str | None = None
    options: dict[str, Any] = {}
    sweep: tuple[dict[str, Any], ...] | dict[str, Any] | None = None
    prices: dict[str, Annotated[float, Field(ge=0)]] = {}
    poll_seconds: float = Field(10.0, gt=0)


class JobsConfig(Section):
    """The background worker."""

    enabled: bool = True
    poll_seconds: float = Field(5.0, gt=0)
    parallel: int = Field(4, ge=1, le=64, description="candidates that train elsewhere at the same time")


class AuthConfig(Section):
    """Admin pages beyond loopback need the token in this environment variable."""

    admin_token_env: str | None = None


def _default_providers() -> dict[str, ProviderConfig]:
    return {
        "openai": ProviderConfig(protocol="openai", base_url="https://api.openai.com/v1"),
        "anthropic": ProviderConfig(protocol="anthropic", base_url="https://api.anthropic.com"),
        "gemini": ProviderConfig(protocol="gemini", base_url="https://generativelanguage.googleapis.com"),
    }


_BUILT_IN_TRAINERS = {name: TrainerConfig(kind=name) for name in ("classifier", "tagger")}


class Config(Section):
    """`config/gateway.yaml`. Every key has a default: an absent file is a valid one."""

    server: ServerConfig = ServerConfig()
    providers: dict[str, ProviderConfig] = Field(default_factory=_default_providers)
    store: StoreConfig = StoreConfig()
    capture: CaptureConfig = CaptureConfig()
    tasks: dict[str, TaskPolicy] = {}
    trainers: dict[str, TrainerConfig] = Field(default_factory=lambda: dict(_BUILT_IN_TRAINERS))
    jobs: JobsConfig = JobsConfig()
    auth: AuthConfig = AuthConfig()

    @pydantic.field_validator("trainers")
    @classmethod
    def _with_built_in(cls, given: dict[str, TrainerConfig]) -> dict[str, TrainerConfig]:
        """The embedded ones are there also where the file names other trainers: the usual policy needs them."""
        return {**_BUILT_IN_TRAINERS, **given}

    @property
    def default_provider(self) -> str:
        """The provider of bare `/v1/...`: the first one in the file."""
        return next(iter(self.providers))

    def policy(self, task: str) -> TaskPolicy:
        """The task's own policy, else the one under `default`, else the built-in one."""
        return self.tasks.get(task) or self.tasks.get("default") or TaskPolicy()

    def key(self, provider: str) -> str:
        """Our own key for a provider, empty where there is none.

        Without `api_key_env`, OpenAI itself gets `OPENAI_API_KEY`, as it would from its own client; nobody else.
        """
        section = self.providers.get(provider)
        if section is None:
            return ""
        openai = urlsplit(section.base_url).hostname == "api.openai.com"
        return os.environ.get(section.api_key_env or ("OPENAI_API_KEY" if openai else ""), "")

    def terms(self) -> Terms:
        """Which providers' answers may be learnt, as far as the file says so."""
        said = {
            name: p.train_on_outputs
            for name, p in self.providers.items()
            if "train_on_outputs" in p.model_fields_set
        }
        return Terms(
            barred=frozenset(name for name, may in said.items() if not may),
            allowed=frozenset(name for name, may in said.items() if may),
        )

    def prices(self) -> dict[tuple[str, str], Price]:
        """The user's own prices by (provider, model)."""
        return {
            (name, model): Price(**price.model_dump())
            for name, provider in self.providers.items()
            for model, price in provider.prices.items()
        }


def load_config(file: Path | None, *, environment: bool = True) -> Config:
    """The settings in `file`, or the defaults where `file` is None.

    `environment` False: the variables that hold keys need not be set, for commands that call nobody.

    Raises:
        InvalidConfig: with every problem of the file.
    """
    if file is None:
        return Config()
    document = read(file)
    problems = document.repeated_keys()
    config, wrong = validate(Config, document)
    problems += wrong
    if config is not None:
        problems += _cross_checks(config, document)
        problems += _missing_variables(config, document) if environment else []
    if config is None or problems:
        raise InvalidConfig(problems, config)
    return config


def _cross_checks(config: Config, document: Document) -> Iterable[Problem]:
    providers, trainers = (
        {**getattr(config, section), **_raw(document, section)} for section in ("providers", "trainers")
    )
    if not providers:
        yield document.problem(["providers"], "is empty; name at least one provider")
    for name in providers:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", str(name)) or name in RESERVED_NAMES:
            yield document.problem(
                ["providers", name], "is not a usable name: lower-case letters and digits, and not "
                f"{', '.join(sorted(RESERVED_NAMES))}"
            )  # fmt: skip
    for name, trainer in config.trainers.items():
        if trainer.provider is not None and trainer.provider not in providers:
            yield document.problem(
                ["trainers", name, "provider"], f"no provider {trainer.provider!r}; {names(providers)}"
            )
    for task, policy in config.tasks.items():
        for trainer_name in policy.trainers or ():
            if trainer_name not in trainers:
                yield document.problem(
                    ["tasks", task, "trainers"], f"no trainer {trainer_name!r}; {names(trainers)}"
                )
        for key, named in (("judge", policy.judge), ("sibling", policy.sibling)):
            if named is not None and named.partition("/")[0] not in providers:
                yield document.problem(
                    ["tasks", task, key], f"no provider {named.partition('/')[0]!r}; {names(providers)}"
                )


def _raw(document: Document, section: str) -> dict[str, Any]:
    """A section as it stands: a name whose entry has a problem of its own is a known name all the same."""
    value = document.value.get(section)
    return value if isinstance(value, dict) else {}


def _missing_variables(config: Config, document: Document) -> Iterable[Problem]:
    wanted: list[tuple[list[str | int], str | None]] = [
        (["providers", name, "api_key_env"], provider.api_key_env) for name, provider in config.providers.items()
    ]
    wanted.append((["auth", "admin_token_env"], config.auth.admin_token_env))
    for path, variable in wanted:
        if variable and not os.environ.get(variable):
            yield document.problem(
                path, f"the environment variable {variable} is not set; export it before starting"
            )


def names(mapping: Mapping[str, object]) -> str:
    return f"known: {', '.join(mapping) or 'none'}"
