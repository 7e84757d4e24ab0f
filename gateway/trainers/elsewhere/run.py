"""One fine-tune on its way through a service, from whatever stage it is in.

A job costs money, so none is ever started twice: the stage is saved before and after each step at the other
side, and a step whose outcome is unknown (a crash, a lost answer) is looked for there before it is repeated.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import RUNG, STEP
from gateway.trainers import Save
from gateway.trainers.elsewhere.failures import Failure, job_failure, retry_after, verdict
from gateway.trainers.elsewhere.service import Event, Job, Served, Service
from gateway.trainers.elsewhere.uploads import checked_files, file_name

log = logging.getLogger(__name__)

T = TypeVar("T")

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

    def __init__(self, service: Service, upstream: str, pace: Pace, finetune: FineTune, save: Save) -> None:
        self.service, self.upstream, self.pace = service, upstream, pace
        self.finetune, self.save = finetune, save

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
        self.service.check(self.finetune.options)
        files = checked_files(dataset, self.service.form)
        for part, path in files.items():
            with self.alone():
                self.once(f"{part}_file", f"uploading_{part}", f"{part}_uploaded", self.upload(dataset, part, path))
        for part in files:
            self.accepted(self.finetune.remote[f"{part}_file"])
        self.once("job", "creating", "created", self.create)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One upload to a service at a time, so that the candidates of a sweep find the first one's file."""
        lock = _UPLOADS[self.service.url]
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
        name = file_name(dataset, part)
        return lambda: self.service.find_file(name, path) or self.service.send_file(name, path)

    def accepted(self, file_id: str) -> None:
        """Wait until the service has read a file.

        Raises:
            Failure: it refuses the file, or stays away.
        """
        while not self.patiently(lambda: self.service.is_ready(file_id)):
            self.pace.sleep(self.pace.poll_seconds)

    def create(self) -> str:
        """The id of the job, which an earlier attempt may have created."""
        return self.service.find_job(self.finetune) or self.service.create_job(self.finetune)

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

    def follow(self) -> None:
        """Poll until the job has ended, and then until its model is served; a state that is not known (a pause,
        say) is waited out.

        Raises:
            Failure: the job failed, or the service no longer knows it or stays away.
        """
        job_id, pause = self.finetune.remote["job"], self.pace.poll_seconds
        while (job := self.patiently(lambda: self.service.job(job_id), polling=True)).ended is None:
            if job.status != self.finetune.remote.get("status"):
                pause = self.pace.poll_seconds
            self.read_events(job)
            self.pace.sleep(pause)
            pause = min(1.5 * pause, 6 * self.pace.poll_seconds)
        while not self.ended(job):
            self.pace.sleep(self.pace.poll_seconds)

    def read_events(self, job: Job) -> None:
        """Keep the newest message and figures; not every service has events, so having none is no error."""
        try:
            events = self.service.events(job)
        except (openai.APIError, ValueError):
            events = []
        metrics, remote = self.finetune.metrics | job.metrics, {"status": job.status}
        for event in events:
            metrics |= event.figures | _rung(event)
        if said := events[-1].message if events else job.message:
            remote["message"] = said[:200]
        if metrics != self.finetune.metrics or not remote.items() <= self.finetune.remote.items():
            self.record(stage="training", remote=remote, metrics=metrics)

    # The end

    def ended(self, job: Job) -> bool:
        """Record the end of a job that is over; False as long as its model is being loaded where it is served.

        Raises:
            Failure: the job failed.
        """
        self.read_events(job)
        if job.ended is FineTuneState.CANCELLED:
            self.record(state=FineTuneState.CANCELLED, stage="done")
            return True
        if job.ended is not FineTuneState.SUCCEEDED or not job.model:
            raise job_failure(job)
        served = self.patiently(lambda: self.service.serve(self.finetune, job))
        if served is None:
            if self.finetune.stage != "loading":
                self.record(stage="loading")
            return False
        models, losses = self.checkpoints(job)
        self.done(served, self.finetune.metrics | losses, models)
        return True

    def done(self, served: Served, metrics: dict[str, float], models: dict[str, str]) -> None:
        """Record the model: as something to route to, or as something that a person has to put somewhere first."""
        if served.todo:
            models = {"model": served.model, "todo": served.todo}
            self.record(state=FineTuneState.WAITING, stage="waiting for a model", metrics=metrics, remote=models)
            return
        self.record(
            state=FineTuneState.SUCCEEDED, stage="done", upstream=self.upstream, model=served.model,
            metrics=metrics, remote=models,
        )  # fmt: skip

    def checkpoints(self, job: Job) -> tuple[dict[str, str], dict[str, float]]:
        """The models of earlier epochs, which are candidates for free, and their validation losses; services
        without them are common."""
        try:
            found = self.service.checkpoints(job)
        except (openai.APIError, ValueError):
            return {}, {}
        models = {f"checkpoint_{each.step}": each.model for each in found}
        losses = {each.step: validation_loss(each.figures) for each in found}
        return models, {f"{STEP}{step}": loss for step, loss in losses.items() if loss is not None}

    def cancel(self) -> None:
        """Cancel what has been started, or take note of how it ended.

        Raises:
            Failure: the job had failed.
            openai.APIError, ValueError: no usable answer.
        """
        known = self.finetune.remote.get("job")
        job_id = known or (self.service.find_job(self.finetune) if self.finetune.stage == "creating" else None)
        if job_id is None:
            self.record(state=FineTuneState.CANCELLED)
            return
        self.record(remote={"job": job_id})
        job = self.service.cancel(job_id)
        if job.ended is not None:
            self.ended(job)


def validation_loss(figures: Mapping[str, float]) -> float | None:
    """Over all validation rows where it is told, else over the batch of the step."""
    return figures.get("full_valid_loss", figures.get("valid_loss"))


def numbers(data: object) -> dict[str, float]:
    """The numbers among what a service says: step, losses, token accuracies."""
    found = data.items() if isinstance(data, dict) else ()
    return {str(key): float(value) for key, value in found if isinstance(value, int | float)}


def _rung(event: Event) -> dict[str, float]:
    """The validation loss after a whole number of epochs, where the event is of the end of one."""
    loss = validation_loss(event.figures)
    return {} if loss is None or event.epoch is None else {f"{RUNG}{event.epoch}": loss}
