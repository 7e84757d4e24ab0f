"""One fine-tune on its way through the service, from whatever stage it is in."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import openai
from openai.pagination import SyncCursorPage
from openai.types import FileObject
from openai.types.fine_tuning import FineTuningJob

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import RUNG, STEP
from gateway.trainers import Save
from gateway.trainers.openai.failures import Failure, job_failure, retry_after, verdict
from gateway.trainers.openai.options import Options, options_of
from gateway.trainers.openai.requests import OUR_ID, checked_files, file_name, job_request

log = logging.getLogger(__name__)

T = TypeVar("T")


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=_HasId)
Answer = TypeVar("Answer", FineTuningJob, FileObject)

_UPLOADS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_LONGEST_PAUSE = 300.0
_SHORTEST_PAUSE = 0.01


@dataclass(frozen=True)
class Pace:
    """How often is asked and how long an outage is waited out, in seconds; the callables are for tests."""

    poll_seconds: float
    outage_seconds: float
    sleep: Callable[[float], None]
    clock: Callable[[], float]


class Run:
    """One fine-tune on its way: `finetune` is always what was saved last."""

    def __init__(self, api: openai.OpenAI, upstream: str, pace: Pace, finetune: FineTune, save: Save) -> None:
        self.api, self.upstream, self.pace, self.finetune, self.save = api, upstream, pace, finetune, save

    def record(self, *, remote: dict[str, str] | None = None, **changes: Any) -> None:
        """Save the fine-tune with these changes."""
        remote = self.finetune.remote | (remote or {})
        self.finetune = self.finetune.but(remote=remote, updated_at=self.pace.clock(), **changes)
        self.save(self.finetune)

    # Starting: files and job, each exactly once

    def prepare(self, dataset: Dataset) -> None:
        """Check, upload the files and create the job.

        Raises:
            Failure: the options are wrong, or the service refuses or stays away.
            DatasetError: the files are not fit for training.
        """
        options = options_of(self.finetune.options)
        for part, path in checked_files(dataset).items():
            with self.alone():
                self.once(f"{part}_file", f"uploading_{part}", f"{part}_uploaded", self.upload(dataset, part, path))
        self.once("job", "creating", "created", lambda: self.find_job() or self.create_job(options))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One upload to a service at a time, so that the candidates of a sweep find the first one's file."""
        lock = _UPLOADS[str(self.api.base_url)]
        while not lock.acquire(blocking=False):
            self.pace.sleep(max(_SHORTEST_PAUSE, min(self.pace.poll_seconds, 1.0)))
        try:
            yield
        finally:
            lock.release()

    def once(self, key: str, before: str, after: str, step: Callable[[], str]) -> None:
        """Do a step at the other side unless its id is known; `step` looks for an earlier outcome first."""
        if key in self.finetune.remote:
            return
        cut_off = self.finetune.stage == before
        self.record(state=FineTuneState.RUNNING, stage=before)
        if cut_off:
            # A request that a crash left on its way may still be at work: let it show up before looking.
            self.pace.sleep(self.pace.poll_seconds)
        self.record(stage=after, remote={key: self.patiently(step)})

    def upload(self, dataset: Dataset, part: str, path: Path) -> Callable[[], str]:
        """The step that finds the file at the service or sends it, and gives its id."""
        name, size = file_name(dataset, part), path.stat().st_size

        def step() -> str:
            for file in _all(lambda: self.api.files.list(purpose="fine-tune")):
                # An upload that was cut off has another size.
                if name in str(file.filename) and file.bytes == size and file.status != "error":
                    return file.id
            with path.open("rb") as content:
                return _checked(self.api.files.create(file=(name, content), purpose="fine-tune")).id

        return step

    def find_job(self) -> str | None:
        """The job that an earlier attempt has created, if there is one: our id, our file."""
        for job in _all(lambda: self.api.fine_tuning.jobs.list(limit=100)):
            ours = (job.metadata or {}).get(OUR_ID) == self.finetune.id
            if ours and job.training_file == self.finetune.remote["train_file"]:
                return job.id
        return None

    def create_job(self, options: Options) -> str:
        """Start the job; the one request here that costs money."""
        return _checked(self.api.fine_tuning.jobs.create(**job_request(self.finetune, options))).id

    # Waiting

    def patiently(self, step: Callable[[], T], *, polling: bool = False) -> T:
        """The outcome of a step, repeated with growing pauses until the outage outlasts our patience.

        Raises:
            Failure: the service refuses for good, or the patience is at its end.
        """
        waited, pause = 0.0, max(self.pace.poll_seconds, _SHORTEST_PAUSE)
        while True:
            try:
                return step()
            # ValueError: an answer that is no JSON or no job, as from a load balancer's maintenance page.
            except (openai.APIError, ValueError) as error:
                if failure := verdict(error, polling=polling):
                    raise failure from None
                if waited >= self.pace.outage_seconds:
                    reason = f"no usable answer for {waited / 3600:.1f} hours; the last: {error}"
                    raise Failure("backend_unavailable", reason) from None
                asked = max(pause, retry_after(error))
                log.warning("fine-tune %s waits %.0f s: %s", self.finetune.id, asked, type(error).__name__)
            self.pace.sleep(asked)
            waited, pause = waited + asked, max(pause, min(2 * pause, _LONGEST_PAUSE))

    def job(self) -> FineTuningJob:
        """The job as it stands."""
        return _checked(self.api.fine_tuning.jobs.retrieve(self.finetune.remote["job"]))

    def follow(self) -> None:
        """Poll until the job has ended; a state that is not known (a pause, say) is waited out.

        Raises:
            Failure: the job failed, or the service no longer knows it or stays away.
        """
        pause = self.pace.poll_seconds
        while not self.ended(job := self.patiently(self.job, polling=True)):
            if job.status != self.finetune.remote.get("status"):
                pause = self.pace.poll_seconds
            self.read_events(job)
            self.pace.sleep(pause)
            pause = min(1.5 * pause, 6 * self.pace.poll_seconds)

    def read_events(self, job: FineTuningJob) -> None:
        """Keep the newest message and figures; not every service has events, so having none is no error."""
        known, metrics = self.finetune.remote.get("event"), self.finetune.metrics
        remote: dict[str, str] = {"status": job.status}
        try:
            page = _page(lambda: self.api.fine_tuning.jobs.list_events(job.id, limit=100)).data
        except (openai.APIError, ValueError):
            page = []
        new = page[: next((at for at, event in enumerate(page) if event.id == known), len(page))]
        for event in reversed(new):  # they come newest first
            remote |= {"event": str(event.id), "message": str(event.message)[:200]}
            figures = _figures(event.data if event.type == "metrics" else None)
            metrics = metrics | figures | _rung(figures, str(event.message), job)
        if new or job.status != self.finetune.remote.get("status"):
            self.record(stage="training", remote=remote, metrics=metrics)

    # The end

    def ended(self, job: FineTuningJob) -> bool:
        """Record the end of the job, if it has come.

        Raises:
            Failure: the job failed.
        """
        if job.status not in ("succeeded", "failed", "cancelled"):
            return False
        self.read_events(job)
        if job.status == "cancelled":
            metrics = self.finetune.metrics | _totals(job)
            self.record(state=FineTuneState.CANCELLED, stage="done", metrics=metrics)
            return True
        if job.status == "failed" or not job.fine_tuned_model:
            raise job_failure(job)
        models, losses = self.checkpoints()
        self.record(
            state=FineTuneState.SUCCEEDED,
            stage="done",
            upstream=self.upstream,
            model=job.fine_tuned_model,
            metrics=self.finetune.metrics | _totals(job) | losses,
            remote=models,
        )
        return True

    def checkpoints(self) -> tuple[dict[str, str], dict[str, float]]:
        """The models of earlier epochs, which are candidates for free, and their validation losses; services
        without them are common."""
        job = self.finetune.remote["job"]
        try:
            found = list(_all(lambda: self.api.fine_tuning.jobs.checkpoints.list(job)))
        except (openai.APIError, ValueError):
            return {}, {}
        models = {f"checkpoint_{each.step_number}": each.fine_tuned_model_checkpoint for each in found}
        figures = {each.step_number: _figures(dict(each.metrics or ())) for each in found}
        losses = {step: _validation_loss(measured) for step, measured in figures.items()}
        return models, {f"{STEP}{step}": loss for step, loss in losses.items() if loss is not None}

    def cancel(self) -> None:
        """Cancel what has been started, or take note of how it ended.

        Raises:
            Failure: the job had failed.
            openai.APIError, ValueError: no usable answer.
        """
        known = self.finetune.remote.get("job")
        job_id = known or (self.find_job() if self.finetune.stage == "creating" else None)
        if job_id is None:
            self.record(state=FineTuneState.CANCELLED)
            return
        self.record(remote={"job": job_id})
        try:
            job = _checked(self.api.fine_tuning.jobs.cancel(job_id))
        except (openai.BadRequestError, openai.ConflictError):
            job = self.job()  # it had ended already
        self.ended(job)


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


def _figures(data: object) -> dict[str, float]:
    """The numbers among an event's data: step, losses, token accuracies."""
    found = data.items() if isinstance(data, dict) else ()
    return {str(key): float(value) for key, value in found if isinstance(value, int | float)}


def _validation_loss(figures: Mapping[str, float]) -> float | None:
    """Over all validation rows where it is told, else over the batch of the step."""
    return figures.get("full_valid_loss", figures.get("valid_loss"))


def _rung(figures: Mapping[str, float], message: str, job: FineTuningJob) -> dict[str, float]:
    """The validation loss after a whole number of epochs, where the event is of the step that ends one."""
    said = re.match(r"Step (\d+)/(\d+)", message)
    step, total = figures.get("step"), figures.get("total_steps") or (float(said[2]) if said else None)
    epochs = job.hyperparameters.n_epochs if job.hyperparameters else None
    loss = _validation_loss(figures)
    if loss is None or not step or not total or not isinstance(epochs, int):
        return {}
    whole = int(step * epochs / total)
    is_first = whole > int((step - 1) * epochs / total)
    return {f"{RUNG}{whole}": loss} if is_first else {}


def _totals(job: FineTuningJob) -> dict[str, float]:
    seconds = (job.finished_at - job.created_at) if job.finished_at and job.created_at else None
    totals = {"trained_tokens": job.trained_tokens, "training_seconds": seconds}
    return {name: float(value) for name, value in totals.items() if value is not None}
