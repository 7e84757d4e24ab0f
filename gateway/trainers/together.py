"""Fine-tuning at Together, or at whoever speaks its API: `/files/upload`, `/fine-tunes`.

A file is known by a name that holds the dataset's digest, a job by a suffix that ends in our id. A tuned model is
answered by a dedicated endpoint, which is paid by the minute: nobody starts one here. The candidate waits until a
person has put the model on one and says its name, unless `serverless` says that the service answers without.

Sources: Together's API reference (version 2.0.0) and its Python client (3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import openai
from msgspec import Meta

from gateway import formats
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.trainers import TrainerSettings
from gateway.trainers.elsewhere import ServiceTrainer, candidate_options, trainer_options
from gateway.trainers.elsewhere.api import Api, Json, client, list_in, text_in
from gateway.trainers.elsewhere.failures import Failure
from gateway.trainers.elsewhere.open_weights import OpenOptions, OpenSweep, seconds_between
from gateway.trainers.elsewhere.service import Checkpoint, Event, Job, Served
from gateway.trainers.elsewhere.uploads import job_suffix

SUFFIX_LENGTH = 40
NANO_DOLLARS = 1e9
"""A price of the API is in billionths of a US dollar."""


class Options(OpenOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate; `batch_size` is in rows."""

    batch_size: Annotated[int, Meta(ge=1)] | Literal["max"] = "max"
    seed: int | None = None
    suffix: str = ""


class Sweep(OpenSweep, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer's `options` in the config: the default candidates, and how the models are served."""

    one: ClassVar[type[OpenOptions]] = Options
    serverless: bool = False


class Together:
    """A `Service`; `serverless` says that its tuned models are answered without an endpoint."""

    form = formats.load("together")

    def __init__(self, api: Api, *, serverless: bool) -> None:
        self.api, self.serverless = api, serverless
        self.url = api.url

    def check(self, options: dict[str, Any]) -> None:
        candidate_options(options, Options)

    # Files

    def find_file(self, name: str, path: Path) -> str | None:
        size = path.stat().st_size
        for file in list_in(self.api.get("/files"), "data"):
            # An upload that was cut off has another size.
            if (file.get("filename"), file.get("bytes")) == (name, size) and not _is_refused(file):
                return text_in(file, "id")
        return None

    def send_file(self, name: str, path: Path) -> str:
        try:
            with path.open("rb") as content:
                sent = self.api.send(
                    "/files/upload", name, content, purpose="fine-tune", file_name=name, file_type="jsonl"
                )
        except openai.ConflictError as error:  # it has the very same file
            sent = {"id": error.body.get("file_id")} if isinstance(error.body, dict) else {}
        return text_in(sent, "id")

    def is_ready(self, file_id: str) -> bool:
        file = self.api.get(f"/files/{file_id}")
        if _is_refused(file):
            report = file.get("validation_report")
            why = report.get("error") if isinstance(report, dict) else None
            raise Failure(
                "invalid_file", f"the upstream refuses {file.get('filename')}: {why or 'it does not say why'}"
            )
        return file.get("processing_status") in (None, "COMPLETED")

    # The job

    def find_job(self, finetune: FineTune) -> str | None:
        suffix = _suffix(finetune)
        for job in list_in(self.api.get("/fine-tunes"), "data"):
            ours = job.get("suffix") == suffix or f":{suffix}:" in str(job.get("model_output_name"))
            if ours and job.get("training_file") == finetune.remote["train_file"]:
                return text_in(job, "id")
        return None

    def create_job(self, finetune: FineTune) -> str:
        options = candidate_options(finetune.options, Options)
        return text_in(self.api.post("/fine-tunes", job_request(finetune, options, self._limits(options))), "id")

    def _limits(self, options: Options) -> Json:
        """What the service allows for this base model; empty where it does not say."""
        try:
            return self.api.get("/fine-tunes/models/limits", model_name=options.base_model)
        except openai.NotFoundError:
            return {}

    def job(self, job_id: str) -> Job:
        shown = self.api.get(f"/fine-tunes/{job_id}")
        return _job(shown, self._reason(job_id) if shown.get("status") in _FAILED else "")

    def _reason(self, job_id: str) -> str:
        """The last error among the events: the job itself has none."""
        try:
            said = list_in(self.api.get(f"/fine-tunes/{job_id}/events"), "data")
        except (openai.APIError, ValueError):
            return ""
        errors = [each for each in said if "error" in f"{each.get('type')} {each.get('level')}".lower()]
        return str(max(errors, key=_when).get("message") or "") if errors else ""

    def events(self, job: Job) -> list[Event]:
        """Its events, and before them what was measured, in the order of the steps."""
        said = sorted(list_in(self.api.get(f"/fine-tunes/{job.id}/events"), "data"), key=_when)
        return [*_measured(self._metrics(job)), *(Event(message=str(each.get("message"))) for each in said)]

    def _metrics(self, job: Job) -> list[Json]:
        try:
            return list_in(self.api.get(f"/fine-tunes/{job.id}/metrics"), "metrics")
        except (openai.NotFoundError, ValueError):  # none yet
            return []

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        losses = {
            int(figures["step"]): figures for figures in map(_figures, self._metrics(job)) if "step" in figures
        }
        found = list_in(self.api.get(f"/fine-tunes/{job.id}/checkpoints"), "data")
        return [
            Checkpoint(step=each["step"], model=model, figures=losses.get(each["step"], {}))
            for each in found
            if isinstance(each.get("step"), int) and (model := _model_of(each, job))
        ]

    def cancel(self, job_id: str) -> Job:
        try:
            return _job(self.api.post(f"/fine-tunes/{job_id}/cancel"))
        except (openai.BadRequestError, openai.ConflictError):
            return self.job(job_id)  # it had ended already

    def serve(self, finetune: FineTune, job: Job) -> Served | None:
        model = job.model or ""
        if self.serverless:
            return Served(model=model)
        told = f"unprompt finetune {finetune.task} --model {finetune.id}=ENDPOINT"
        return Served(model=model, todo=f"put {model} on a dedicated endpoint (paid by the minute), then: {told}")


_ENDED = {
    "completed": FineTuneState.SUCCEEDED,
    "error": FineTuneState.FAILED,
    "user_error": FineTuneState.FAILED,
    "cancelled": FineTuneState.CANCELLED,
}
_FAILED = frozenset(status for status, state in _ENDED.items() if state is FineTuneState.FAILED)


def job_request(finetune: FineTune, options: Options, limits: Json) -> Json:
    """The body of the request that creates the job: a checkpoint for each epoch and, where there are validation
    rows, an evaluation, as far as the service allows."""
    request: Json = {
        "model": options.base_model,
        "training_file": finetune.remote["train_file"],
        "n_epochs": options.n_epochs,
        "n_checkpoints": _at_most(options.n_epochs, limits.get("max_num_checkpoints")),
        "batch_size": options.batch_size,
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
        "suffix": _suffix(finetune),
    }
    if "validation_file" in finetune.remote:
        request["validation_file"] = finetune.remote["validation_file"]
        request["n_evals"] = _at_most(options.n_epochs, limits.get("max_num_evals"))
    if options.learning_rate != "auto":
        request["learning_rate"] = options.learning_rate
    if options.lora_rank != "auto":
        rank = options.lora_rank
        request["training_type"] = {"type": "Lora", "lora_r": rank, "lora_alpha": 2 * rank}
    return request if options.seed is None else request | {"random_seed": options.seed}


def _at_most(wanted: int, most: object) -> int:
    return min(wanted, most) if isinstance(most, int) and most > 0 else wanted


def _suffix(finetune: FineTune) -> str:
    return job_suffix(str(finetune.options.get("suffix") or finetune.task), finetune.id, SUFFIX_LENGTH)


def _is_refused(file: Json) -> bool:
    return file.get("processing_status") in ("FAILED", "INVALID_FORMAT")


def _job(shown: Json, reason: str = "") -> Job:
    status, epochs = text_in(shown, "status"), shown.get("n_epochs")
    return Job(
        id=text_in(shown, "id"), status=status, ended=_ENDED.get(status), model=shown.get("model_output_name"),
        reason=reason, epochs=epochs if isinstance(epochs, int) else None, metrics=_totals(shown),
    )  # fmt: skip


def _totals(shown: Json) -> dict[str, float]:
    tokens, price = shown.get("token_count"), shown.get("total_price")
    totals = {"trained_tokens": tokens, "cost_usd": price / NANO_DOLLARS if isinstance(price, int) else None}
    if shown.get("status") in _ENDED:
        totals["training_seconds"] = seconds_between(shown.get("created_at"), shown.get("updated_at"))
    return {name: float(value) for name, value in totals.items() if value}


def _when(event: Json) -> str:
    return str(event.get("created_at") or "")


def _model_of(checkpoint: Json, job: Job) -> str | None:
    """The name of a checkpoint as a model; the last one is the job's own."""
    name = checkpoint.get("object_name")
    if "final" in str(checkpoint.get("checkpoint_type")).lower():
        return job.model
    return name if isinstance(name, str) else None


_NAMES = {"train/loss": "train_loss", "eval/loss": "valid_loss"}


def _figures(measured: Json) -> dict[str, float]:
    """One row of the metrics by our names; a training step and an evaluation are a row each."""
    named = {_NAMES.get(key, key.rpartition("/")[2].replace("global_step", "step")): value
             for key, value in measured.items()}  # fmt: skip
    kept = ("train_loss", "valid_loss", "step", "epoch")
    return {key: float(value) for key in kept if isinstance(value := named.get(key), int | float)}


def _measured(metrics: Iterable[Json]) -> Iterable[Event]:
    """An event without words for each row; an evaluation that falls on the end of an epoch is that epoch's."""
    for figures in map(_figures, metrics):
        epoch = figures.pop("epoch", math.nan)
        is_whole = "valid_loss" in figures and epoch >= 1 and abs(epoch - round(epoch)) < 0.02
        yield Event(message="", figures=figures, epoch=round(epoch) if is_whole else None)


def build(settings: TrainerSettings) -> ServiceTrainer:
    """The trainer for the upstream of these settings.

    Raises:
        ConfigError: no base URL or base models, or an option that is not known or has a wrong value.
    """
    sweep = trainer_options(settings, "together", Sweep)
    return ServiceTrainer(settings, sweep, lambda: Together(Api(client(settings)), serverless=sweep.serverless))
