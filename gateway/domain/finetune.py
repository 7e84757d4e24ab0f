"""A fine-tune: one training run of one candidate, and where it stands."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class FineTuneState(StrEnum):
    """Closed list. `created` and `running` are unfinished, `waiting` is for a person to go on with; the others
    are final."""

    CREATED = "created"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (FineTuneState.SUCCEEDED, FineTuneState.FAILED, FineTuneState.CANCELLED)


class FineTune(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate in training or trained.

    `stage` and `remote` belong to the trainer: the step that it is in, and the ids that the other side
    gave it (file, job), saved before and after each step so that a restart resumes and never repeats.
    When `state` is `succeeded`, `upstream` and `model` are what a route's target names.
    """

    id: str
    task: str
    dataset: str
    trainer: str
    options: dict[str, Any] = {}
    state: FineTuneState = FineTuneState.CREATED
    stage: str = ""
    remote: dict[str, str] = {}
    upstream: str | None = None
    model: str | None = None
    error: str | None = None
    metrics: dict[str, float] = {}
    created_at: float = 0.0
    updated_at: float = 0.0

    def but(self, **changes: Any) -> FineTune:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)
