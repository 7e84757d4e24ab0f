"""Fine-tuning at any service that speaks OpenAI's `/fine_tuning/jobs`, at any base URL."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.trainers import Trainer, TrainerSettings
from gateway.trainers.elsewhere import ServiceTrainer, trainer_options
from gateway.trainers.elsewhere.api import client
from gateway.trainers.openai.options import Options, Sweep
from gateway.trainers.openai.service import OpenAIService

__all__ = ["OpenAITrainer", "Options", "Sweep", "build"]


class OpenAITrainer(ServiceTrainer):
    """Trains at `settings.base_url`, serves from `settings.upstream`."""

    def __init__(
        self,
        settings: TrainerSettings,
        sweep: Sweep,
        *,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(settings, sweep, lambda: OpenAIService(client(settings)), sleep=sleep, clock=clock)


def build(settings: TrainerSettings) -> Trainer:
    """The trainer for the upstream of these settings.

    Raises:
        ConfigError: no base URL, or an option that is not known or has a wrong value.
    """
    return OpenAITrainer(settings, trainer_options(settings, "openai", Sweep))
