"""What a fine-tuning service can be asked, whoever runs it: files, a job, its progress, a model that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec

from gateway.domain.finetune import FineTune, FineTuneState
from gateway.formats import Format


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands. `status` is the service's own word for it; `ended` is set once it is over: succeeded
    (with its `model`), failed (with the service's `code` and `reason`) or cancelled. `metrics` are figures of the
    whole job, `trained_tokens`, `training_seconds` and `cost_usd` (US dollars) among them where the service tells
    them; `epochs` is how long it is, `message` how far."""

    id: str
    status: str
    ended: FineTuneState | None = None
    model: str | None = None
    code: str | None = None
    reason: str = ""
    epochs: int | None = None
    message: str = ""
    metrics: dict[str, float] = {}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What a service says of a job's progress, with the `figures` measured then; `epoch` where they are those at
    the end of that whole epoch."""

    message: str
    figures: dict[str, float] = {}
    epoch: int | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The model after so many steps, which can be served like the last one, and what was measured of it."""

    step: int
    model: str
    figures: dict[str, float] = {}


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """The name by which a route asks for the trained model. With `todo` nobody answers to it yet: a person has to
    do that first, since it costs money for as long as it goes on."""

    model: str
    todo: str = ""


class Service(Protocol):
    """A service as `Run` uses it. `url` is where it is, `form` the format of its files.

    A call raises `openai.APIError` for an answer that is a refusal or none at all, `ValueError` for one that is no
    answer of such a service, and `Failure` for a refusal that is final in the service's own words.
    """

    url: str
    form: Format

    def check(self, options: dict[str, Any]) -> None:
        """Raises `Failure` for options of a candidate that the service would refuse; asks nobody."""
        ...

    def find_file(self, name: str, path: Path) -> str | None:
        """The id of the file that was uploaded whole under this name; None where there is none."""
        ...

    def send_file(self, name: str, path: Path) -> str:
        """Upload a file under this name; gives its id."""
        ...

    def is_ready(self, file_id: str) -> bool:
        """Whether the service has read and accepted an uploaded file."""
        ...

    def find_job(self, finetune: FineTune) -> str | None:
        """The id of the job that an earlier attempt has created for this fine-tune and this file."""
        ...

    def create_job(self, finetune: FineTune) -> str:
        """Create the job; the one request that costs money. `finetune.remote` has the ids of its files."""
        ...

    def job(self, job_id: str) -> Job:
        """The job as it stands."""
        ...

    def events(self, job: Job) -> list[Event]:
        """The newest events, oldest first; empty where the service has none."""
        ...

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        """The models of a job that has succeeded, one after so many steps; empty where the service has none."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; gives how it ended when it was over already."""
        ...

    def serve(self, finetune: FineTune, job: Job) -> Served | None:
        """See to it that the model of a job that has succeeded is served; None as long as it is being loaded."""
        ...
