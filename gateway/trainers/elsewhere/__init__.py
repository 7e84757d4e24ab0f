"""Trainers whose candidates are jobs of a fine-tuning service: one way through it for all of them.

A service's own file has its `Service`, what a candidate and the sweep may set, and `build`; this package is no
trainer itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol, TypeVar

import msgspec
import openai

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Estimate
from gateway.errors import ConfigError, DatasetError, UpstreamError
from gateway.trainers import Save, TrainerSettings, training_tokens
from gateway.trainers.elsewhere.failures import Failure
from gateway.trainers.elsewhere.run import Pace, Run
from gateway.trainers.elsewhere.service import Service

__all__ = ["Plan", "ServiceTrainer", "candidate_options", "default_epochs", "trainer_options"]

T = TypeVar("T", bound=msgspec.Struct)


class Plan(Protocol):
    """How a service's candidates come about; the trainer's `options` in the config."""

    @property
    def outage_hours(self) -> float:
        """So long an outage of the service is waited out."""
        ...

    def candidates(self, rows: int) -> list[dict[str, Any]]:
        """The default sweep for so many training rows."""
        ...

    def length(self, options: dict[str, Any], rows: int) -> tuple[str, int]:
        """The base model of a candidate, and how many epochs it has; raises `Failure` for wrong options."""
        ...


class ServiceTrainer:
    """A `Trainer` of a service, which is made when it is first used. `sleep` (default `settings.wait`) and `clock`
    are for tests."""

    def __init__(
        self,
        settings: TrainerSettings,
        plan: Plan,
        service: Callable[[], Service],
        *,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.plan, self.clock = settings, plan, clock
        self.sleep = sleep or settings.wait
        self._service = service

    @cached_property
    def service(self) -> Service:
        """The service, with its client."""
        return self._service()

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """The default sweep of the service."""
        return self.plan.candidates(dataset.count("train"))

    def estimate(self, options: dict[str, Any], dataset: Dataset) -> Estimate:
        """Tokens times epochs times the price that the config has for the base model."""
        try:
            model, epochs = self.plan.length(options, dataset.count("train"))
        except Failure:
            return Estimate()
        tokens = training_tokens(dataset, epochs)
        return Estimate(usd=self.settings.usd(model, tokens), tokens=tokens)

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Upload, create, follow to the end; from wherever an earlier run was cut off."""
        if finetune.state.final or finetune.state is FineTuneState.WAITING:
            return finetune
        run = self._start(finetune, save)
        try:
            if "job" not in finetune.remote:
                run.prepare(dataset)
            run.follow()
        except DatasetError as error:
            self._fail(run, Failure("invalid_file", str(error)))
        except Failure as failure:
            self._fail(run, failure)
        return run.finetune

    def cancel(self, finetune: FineTune) -> FineTune:
        """Cancel the job at the service; a job that ended before is returned as it ended.

        Raises:
            UpstreamError: the service gave no usable answer; the job may still be running.
        """
        if finetune.state.final:
            return finetune
        run = self._start(finetune, lambda saved: None)
        try:
            run.cancel()
        except Failure as failure:
            self._fail(run, failure)
        except (openai.APIError, ValueError) as error:
            text = self._scrubbed(str(error))
            raise UpstreamError(f"fine-tune {finetune.id} is not cancelled: {text}") from None
        return run.finetune

    def _start(self, finetune: FineTune, save: Save) -> Run:
        outage = self.plan.outage_hours * 3600
        pace = Pace(self.settings.poll_seconds, outage, self.sleep, self.clock)
        return Run(self.service, self.settings.upstream, pace, finetune, save)

    def _fail(self, run: Run, failure: Failure) -> None:
        run.record(state=FineTuneState.FAILED, error=self._scrubbed(str(failure)))

    def _scrubbed(self, text: str) -> str:
        """The text, cut short, without our key: some services repeat the key that they refuse."""
        key = self.settings.api_key
        return (text.replace(key, "[key]") if key else text)[:500]


def candidate_options(options: dict[str, Any], kind: type[T]) -> T:
    """The options of a candidate, checked.

    Raises:
        Failure: a key is not known, is missing or has a value out of range.
    """
    valid = [field.encode_name for field in msgspec.structs.fields(kind)]
    if unknown := sorted(options.keys() - set(valid)):
        reason = f"option {unknown[0]!r} is not known; valid options: {', '.join(valid)}"
        raise Failure("invalid_options", reason)
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        raise Failure("invalid_options", str(error)) from None


def trainer_options(settings: TrainerSettings, trainer: str, kind: type[T]) -> T:
    """The trainer's `options` in the config, checked.

    Raises:
        ConfigError: no base URL, or an option that is not known or has a wrong value.
    """
    if not settings.base_url:
        raise ConfigError(f"trainer kind '{trainer}' needs an upstream with a base_url")
    valid = [field.encode_name for field in msgspec.structs.fields(kind)]
    if unknown := sorted(settings.options.keys() - set(valid)):
        raise ConfigError(f"trainer kind '{trainer}': unknown option {unknown[0]!r}; valid: {', '.join(valid)}")
    try:
        return msgspec.convert(settings.options, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"trainer kind '{trainer}': {error}") from None


def default_epochs(rows: int) -> int:
    """A usual number of epochs for this many rows; OpenAI's service picks it by itself.

    Source: the public cookbook on preparing chat fine-tuning data: 3, more below 34 rows, fewer above 8,333.
    """
    if 3 * rows < 100:
        return min(25, 100 // max(rows, 1))
    return max(1, 25_000 // rows) if 3 * rows > 25_000 else 3
