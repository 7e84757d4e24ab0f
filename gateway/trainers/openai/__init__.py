"""Fine-tuning at any service that speaks OpenAI's `/fine_tuning/jobs`, at any base URL.

A job costs money, so none is ever started twice: the stage is saved before and after each step at the other
side, and a step whose outcome is unknown (a crash, a lost answer) is looked for there before it is repeated.
Files are known by a name that holds the dataset's digest, jobs by our id in their metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from itertools import product
from typing import Any

import msgspec
import openai

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Estimate
from gateway.errors import ConfigError, DatasetError, UpstreamError
from gateway.trainers import Save, Trainer, TrainerSettings, training_tokens
from gateway.trainers.openai.failures import Failure
from gateway.trainers.openai.options import Options, Sweep, default_epochs, options_of
from gateway.trainers.openai.run import Pace, Run

__all__ = ["OpenAITrainer", "Options", "Sweep", "build"]

_REQUEST_SECONDS = 120.0


class OpenAITrainer:
    """Trains at `settings.base_url`, serves from `settings.upstream`; `sleep` (default `settings.wait`) and `clock`
    are for tests."""

    def __init__(
        self,
        settings: TrainerSettings,
        sweep: Sweep,
        *,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.sweep, self.clock = settings, sweep, clock
        self.sleep = sleep or settings.wait

    @cached_property
    def client(self) -> openai.OpenAI:
        """The client of the service."""
        # Never None: the package would then send the key of the environment to a foreign base URL.
        # No retries of its own: it would repeat a create whose answer was lost, and start a second job.
        return openai.OpenAI(
            api_key=self.settings.api_key or "none",
            base_url=self.settings.base_url,
            max_retries=0,
            timeout=_REQUEST_SECONDS,
        )

    def candidates(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Every base model with every number of epochs and every learning rate of the `Sweep`."""
        usual = default_epochs(len(dataset.part("train")))
        epochs = self.sweep.n_epochs or sorted({usual, min(50, 2 * usual)})
        fixed = {"batch_size": self.sweep.batch_size, "seed": self.sweep.seed, "suffix": self.sweep.suffix}
        fixed = {name: value for name, value in fixed.items() if value not in ("auto", None, "")}
        rates = self.sweep.learning_rate_multipliers
        return [
            {"base_model": model, "n_epochs": n, "learning_rate_multiplier": rate, **fixed}
            for model, n, rate in product(self.sweep.base_models, epochs, rates)
        ]

    def estimate(self, options: dict[str, Any], dataset: Dataset) -> Estimate:
        """Tokens times epochs times the price that the config has for the base model."""
        try:
            chosen = options_of(options)
        except Failure:
            return Estimate()
        rows = len(dataset.part("train"))
        tokens = training_tokens(dataset, default_epochs(rows) if chosen.n_epochs == "auto" else chosen.n_epochs)
        return Estimate(usd=self.settings.usd(chosen.base_model, tokens), tokens=tokens)

    def run(self, finetune: FineTune, dataset: Dataset, save: Save) -> FineTune:
        """Upload, create, follow to the end; from wherever an earlier run was cut off."""
        if finetune.state.final:
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
        outage = self.sweep.outage_hours * 3600
        pace = Pace(self.settings.poll_seconds, outage, self.sleep, self.clock)
        return Run(self.client, self.settings.upstream, pace, finetune, save)

    def _fail(self, run: Run, failure: Failure) -> None:
        run.record(state=FineTuneState.FAILED, error=self._scrubbed(str(failure)))

    def _scrubbed(self, text: str) -> str:
        """The text, cut short, without our key: some services repeat the key that they refuse."""
        key = self.settings.api_key
        return (text.replace(key, "[key]") if key else text)[:500]


def build(settings: TrainerSettings) -> Trainer:
    """The trainer for the upstream of these settings.

    Raises:
        ConfigError: no base URL, or an option that is not known or has a wrong value.
    """
    if not settings.base_url:
        raise ConfigError("trainer kind 'openai' needs an upstream with a base_url")
    valid = Sweep.__struct_fields__
    if unknown := sorted(settings.options.keys() - set(valid)):
        raise ConfigError(f"trainer kind 'openai': unknown option {unknown[0]!r}; valid: {', '.join(valid)}")
    try:
        sweep = msgspec.convert(settings.options, Sweep)
    except msgspec.ValidationError as error:
        raise ConfigError(f"trainer kind 'openai': {error}") from None
    return OpenAITrainer(settings, sweep)
