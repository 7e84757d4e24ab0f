"""OpenAI's `/files` and `/fine_tuning/jobs`, as any service speaks them that has the same API.

Files are known by a name that holds the dataset's digest, jobs by our id in their metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import openai
from openai.pagination import SyncCursorPage
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from gateway import formats
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.trainers.elsewhere.run import numbers
from gateway.trainers.elsewhere.service import Checkpoint, Event, Job, Served
from gateway.trainers.elsewhere.uploads import job_suffix
from gateway.trainers.openai.options import Options, options_of

OUR_ID = "unprompt_finetune"
"""The metadata key by which a job is known to be ours."""


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=_HasId)
Answer = TypeVar("Answer", FineTuningJob, FileObject)

_ENDED = {
    "succeeded": FineTuneState.SUCCEEDED,
    "failed": FineTuneState.FAILED,
    "cancelled": FineTuneState.CANCELLED,
}


class OpenAIService:
    """A `Service` behind an `openai` client."""

    form = formats.load("openai")

    def __init__(self, api: openai.OpenAI) -> None:
        self.api = api
        self.url = str(api.base_url)

    def check(self, options: dict[str, Any]) -> None:
        options_of(options)

    def find_file(self, name: str, path: Path) -> str | None:
        size = path.stat().st_size
        for file in _all(lambda: self.api.files.list(purpose="fine-tune")):
            # An upload that was cut off has another size.
            if name in str(file.filename) and file.bytes == size and file.status != "error":
                return file.id
        return None

    def send_file(self, name: str, path: Path) -> str:
        with path.open("rb") as content:
            return _checked(self.api.files.create(file=(name, content), purpose="fine-tune")).id

    def is_ready(self, file_id: str) -> bool:
        """Always: files are checked when the job begins, and a bad one fails it."""
        return True

    def find_job(self, finetune: FineTune) -> str | None:
        for job in _all(lambda: self.api.fine_tuning.jobs.list(limit=100)):
            ours = (job.metadata or {}).get(OUR_ID) == finetune.id
            if ours and job.training_file == finetune.remote["train_file"]:
                return job.id
        return None

    def create_job(self, finetune: FineTune) -> str:
        request = job_request(finetune, options_of(finetune.options))
        return _checked(self.api.fine_tuning.jobs.create(**request)).id

    def job(self, job_id: str) -> Job:
        return _job(_checked(self.api.fine_tuning.jobs.retrieve(job_id)))

    def events(self, job: Job) -> list[Event]:
        page = _page(lambda: self.api.fine_tuning.jobs.list_events(job.id, limit=100)).data
        return [
            _event(str(each.message), each.data if each.type == "metrics" else None, job.epochs)
            for each in reversed(page)  # they come newest first
        ]

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        found = _all(lambda: self.api.fine_tuning.jobs.checkpoints.list(job.id))
        return [
            Checkpoint(step=one.step_number, model=one.fine_tuned_model_checkpoint,
                       figures=numbers(dict(one.metrics or ())))
            for one in found
        ]  # fmt: skip

    def cancel(self, job_id: str) -> Job:
        try:
            return _job(_checked(self.api.fine_tuning.jobs.cancel(job_id)))
        except (openai.BadRequestError, openai.ConflictError):
            return self.job(job_id)  # it had ended already

    def serve(self, finetune: FineTune, job: Job) -> Served | None:
        """It is served as soon as it is there."""
        return Served(model=job.model or "")


def job_request(finetune: FineTune, options: Options) -> dict[str, Any]:
    """The body of the request that creates the job."""
    chosen = {
        name: value
        for name in ("n_epochs", "learning_rate_multiplier", "batch_size")
        if (value := getattr(options, name)) != "auto"
    }
    body = {
        "model": options.base_model,
        "training_file": finetune.remote["train_file"],
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        "suffix": job_suffix(options.suffix or finetune.task, finetune.id),
        "metadata": {OUR_ID: finetune.id},
    }
    if "validation_file" in finetune.remote:
        body["validation_file"] = finetune.remote["validation_file"]
    return body if options.seed is None else body | {"seed": options.seed}


def _job(job: FineTuningJob) -> Job:
    error, epochs = job.error, job.hyperparameters.n_epochs if job.hyperparameters else None
    return Job(
        id=job.id, status=job.status, ended=_ENDED.get(job.status), model=job.fine_tuned_model or None,
        code=error.code if error else None, reason=(error.message or "") if error else "",
        epochs=epochs if isinstance(epochs, int) else None, metrics=_totals(job),
    )  # fmt: skip


def _totals(job: FineTuningJob) -> dict[str, float]:
    seconds = (job.finished_at - job.created_at) if job.finished_at and job.created_at else None
    totals = {"trained_tokens": job.trained_tokens, "training_seconds": seconds}
    return {name: float(value) for name, value in totals.items() if value is not None}


def _event(message: str, data: object, epochs: int | None) -> Event:
    figures = numbers(data)
    said = re.match(r"Step (\d+)/(\d+)", message)
    step, total = figures.get("step"), figures.get("total_steps") or (float(said[2]) if said else None)
    if not step or not total or not epochs:
        return Event(message=message, figures=figures)
    whole = int(step * epochs / total)
    is_first = whole > int((step - 1) * epochs / total)
    return Event(message=message, figures=figures, epoch=whole if is_first else None)


def _checked(answer: Answer) -> Answer:
    """The package does not check what it parses: a page of HTML comes as a string, a field may be missing."""
    if isinstance(getattr(answer, "id", None), str) and isinstance(getattr(answer, "status", None), str):
        return answer
    raise ValueError(f"not the answer of a fine-tuning API: {str(answer)[:80]!r}")


def _page(fetch: Callable[[], SyncCursorPage[Item]]) -> SyncCursorPage[Item]:
    """One page of a list. An answer without a list is not an empty list: that would start a second job."""
    try:
        page = fetch()
    except AttributeError as error:  # the package stumbles over a page that is no JSON object
        raise ValueError(f"not a list of a fine-tuning API ({error})") from None
    if isinstance(page.data, list):
        return page
    raise ValueError("not a list of a fine-tuning API")


def _all(fetch: Callable[[], SyncCursorPage[Item]]) -> Iterator[Item]:
    """Every item of a list; some services ignore `after` and would give their first page for ever."""
    seen: set[str] = set()
    page: SyncCursorPage[Item] | None = _page(fetch)
    while page is not None and not {item.id for item in page.data} <= seen:
        yield from (item for item in page.data if item.id not in seen)
        seen |= {item.id for item in page.data}
        page = _page(page.get_next_page) if page.has_next_page() else None
