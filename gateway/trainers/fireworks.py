"""Fine-tuning at Fireworks, or at whoever speaks its API: `datasets`, `supervisedFineTuningJobs`, `deployedModels`.

Datasets and jobs have names that we give: the one holds the dataset's digest, the other our id, so that what a
crash cut off is found again. A tuned model is answered by a dedicated deployment, which is paid by the hour: nobody
starts one here. It is loaded onto the `deployment` that the options name (one with addons enabled); without one,
the candidate waits until a person has deployed it and says the name.

Sources: Fireworks' API reference and guides (fine-tuning via API, deploying LoRAs), and its Python client (1.2).
"""

from __future__ import annotations

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import openai
from msgspec import Meta

from gateway import formats
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.trainers import TrainerSettings
from gateway.trainers.elsewhere import ServiceTrainer, candidate_options, trainer_options
from gateway.trainers.elsewhere.api import REQUEST_SECONDS, Api, Json, client, list_in, text_in
from gateway.trainers.elsewhere.failures import Failure
from gateway.trainers.elsewhere.open_weights import OpenOptions, OpenSweep, seconds_between
from gateway.trainers.elsewhere.service import Checkpoint, Event, Job, Served
from gateway.trainers.elsewhere.uploads import job_suffix

MEGABYTE = 1024 * 1024
SIMPLE_BYTES = 150 * MEGABYTE
"""A file of this size or more goes to a signed URL."""
NAME_LENGTH = 63


class Options(OpenOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate; `batch_size` is in rows."""

    batch_size: Annotated[int, Meta(ge=1)] | Literal["auto"] = "auto"


class Sweep(OpenSweep, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer's `options` in the config: whose account, the default candidates, and where they are served.

    `api_url` is the management API, by default that beside the provider's `.../inference/v1`. `deployment` names a
    running deployment of the base model that takes addons.
    """

    one: ClassVar[type[OpenOptions]] = Options
    account: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    deployment: str = ""
    api_url: str = ""


class Fireworks:
    """A `Service`: the resources of one account. Datasets of `simple_bytes` or more go to a signed URL."""

    form = formats.load("fireworks")

    def __init__(self, api: Api, account: str, deployment: str = "", *, simple_bytes: int = SIMPLE_BYTES) -> None:
        self.api, self.home, self.simple_bytes = api, f"accounts/{account}", simple_bytes
        self.deployment = self._named("deployments", deployment) if deployment else ""
        self.url = f"{api.url}{self.home}"

    def _named(self, kind: str, name: str) -> str:
        """The whole name of a resource of the account."""
        return name if name.startswith("accounts/") else f"{self.home}/{kind}/{name}"

    def check(self, options: dict[str, Any]) -> None:
        candidate_options(options, Options)

    # Datasets

    def find_file(self, name: str, path: Path) -> str | None:
        """A dataset that is not ready was cut off in its upload, and is sent again."""
        dataset = dataset_id(name)
        found = self._found(f"/{self.home}/datasets/{dataset}")
        return dataset if found is not None and found.get("state") == "READY" else None

    def _found(self, path: str) -> Json | None:
        try:
            return self.api.get(path)
        except openai.NotFoundError:
            return None

    def send_file(self, name: str, path: Path) -> str:
        dataset = dataset_id(name)
        with path.open("rb") as lines:
            rows = sum(1 for _ in lines)
        about = {"userUploaded": {}, "format": "CHAT", "exampleCount": str(rows)}
        place = f"/{self.home}/datasets/{dataset}"
        if self._found(place) is None:
            self.api.post(f"/{self.home}/datasets", {"datasetId": dataset, "dataset": about})
        if path.stat().st_size < self.simple_bytes:
            with path.open("rb") as content:
                self.api.send(f"{place}:upload", name, content)
        else:
            self._send_large(place, name, path)
        return dataset

    def _send_large(self, place: str, name: str, path: Path) -> None:
        size = path.stat().st_size
        urls = self.api.post(f"{place}:getUploadEndpoint", {"filenameToSize": {name: str(size)}})
        signed = urls.get("filenameToSignedUrls")
        _put(text_in(signed if isinstance(signed, dict) else {}, name), path, size)
        self.api.post(f"{place}:validateUpload")

    def is_ready(self, file_id: str) -> bool:
        dataset = self.api.get(f"/{self.home}/datasets/{file_id}")
        code, why = _status(dataset)
        if code:
            raise Failure("invalid_file", f"the upstream refuses {file_id}: {why or code}")
        return dataset.get("state") == "READY"

    # The job

    def find_job(self, finetune: FineTune) -> str | None:
        name = job_id(finetune)
        found = self._found(f"/{self.home}/supervisedFineTuningJobs/{name}")
        if found is None:
            return None
        if found.get("dataset") != self._named("datasets", finetune.remote["train_file"]):
            raise Failure("rejected", f"the upstream has a job {name} of another dataset")
        return name

    def create_job(self, finetune: FineTune) -> str:
        name, options = job_id(finetune), candidate_options(finetune.options, Options)
        request: Json = {
            "dataset": self._named("datasets", finetune.remote["train_file"]),
            "baseModel": options.base_model,
            "epochs": options.n_epochs,
            "displayName": name,
            "outputModel": self._named("models", name),
        }
        if "validation_file" in finetune.remote:
            request["evaluationDataset"] = self._named("datasets", finetune.remote["validation_file"])
        chosen = {
            "learningRate": options.learning_rate,
            "loraRank": options.lora_rank,
            "batchSizeSamples": options.batch_size,
        }
        request |= {key: value for key, value in chosen.items() if value != "auto"}
        self.api.post(f"/{self.home}/supervisedFineTuningJobs", request, supervisedFineTuningJobId=name)
        return name

    def job(self, job_id: str) -> Job:
        return _job(self.api.get(f"/{self.home}/supervisedFineTuningJobs/{job_id}"), self._named("models", job_id))

    def events(self, job: Job) -> list[Event]:
        """None: the job itself says how far it is."""
        return []

    def checkpoints(self, job: Job) -> list[Checkpoint]:
        """None that can be served."""
        return []

    def cancel(self, job_id: str) -> Job:
        with contextlib.suppress(openai.BadRequestError, openai.ConflictError):  # it had ended already
            self.api.post(f"/{self.home}/supervisedFineTuningJobs/{job_id}:cancel")
        return self.job(job_id)

    # Serving

    def serve(self, finetune: FineTune, job: Job) -> Served | None:
        """Load the model onto the deployment, unless that has been done; without a deployment, say what to do."""
        model = job.model or ""
        if not self.deployment:
            told = f"unprompt finetune {finetune.task} --model {finetune.id}={model}#DEPLOYMENT"
            return Served(model=model, todo=f"deploy {model} (paid by the hour), then: {told}")
        loaded = next((one for one in self._deployed() if self._is_loaded(one, model)), None)
        if loaded is None:
            request = {"model": model, "deployment": self.deployment, "displayName": job.id}
            loaded = self.api.post(f"/{self.home}/deployedModels", request)
        code, why = _status(loaded)
        if code:
            raise Failure("not_served", f"{self.deployment} does not load {model}: {why or code}")
        return Served(model=f"{model}#{self.deployment}") if loaded.get("state") == "DEPLOYED" else None

    def _is_loaded(self, one: Json, model: str) -> bool:
        here = (one.get("model"), one.get("deployment")) == (model, self.deployment)
        return here and one.get("state") != "UNDEPLOYING"

    def _deployed(self) -> Iterator[Json]:
        """All that is loaded in the account, page by page."""
        page = self.api.get(f"/{self.home}/deployedModels", pageSize=200)
        yield from list_in({"deployedModels": []} | page, "deployedModels")
        while token := page.get("nextPageToken"):
            page = self.api.get(f"/{self.home}/deployedModels", pageSize=200, pageToken=str(token))
            yield from list_in({"deployedModels": []} | page, "deployedModels")


def dataset_id(file_name: str) -> str:
    """The name of a dataset, from that of its file: `unprompt-<32 of its digest>-<part>`."""
    start, digest, part = re.sub(r"[^a-z0-9-]+", "", file_name.removesuffix(".jsonl").lower()).split("-", 2)
    return f"{start}-{digest[:32]}-{part}"


def job_id(finetune: FineTune) -> str:
    """The name of a job and of its model, which ends in our id."""
    return job_suffix(f"unprompt-{finetune.task}", finetune.id, NAME_LENGTH)


_ENDED = {
    "JOB_STATE_COMPLETED": FineTuneState.SUCCEEDED,
    "JOB_STATE_EARLY_STOPPED": FineTuneState.SUCCEEDED,
    "JOB_STATE_FAILED": FineTuneState.FAILED,
    "JOB_STATE_EXPIRED": FineTuneState.FAILED,
    "JOB_STATE_CANCELLED": FineTuneState.CANCELLED,
}


def _job(shown: Json, model: str) -> Job:
    state, (code, reason) = text_in(shown, "state"), _status(shown)
    epochs, named = shown.get("epochs"), shown.get("outputModel")
    progress = shown.get("jobProgress")
    done = progress if isinstance(progress, dict) else {}
    return Job(
        id=text_in(shown, "name").rpartition("/")[2], status=state, ended=_ENDED.get(state),
        model=named if isinstance(named, str) and named else model, code=code, reason=reason,
        epochs=epochs if isinstance(epochs, int) else None, message=_message(done), metrics=_totals(shown, done),
    )  # fmt: skip


def _status(shown: Json) -> tuple[str | None, str]:
    """The code and the message of what went wrong; (None, "") where nothing did."""
    status = shown.get("status")
    if not isinstance(status, dict) or status.get("code") in (None, "OK"):
        return None, ""
    return str(status["code"]), str(status.get("message") or "")


def _message(progress: Json) -> str:
    percent, epoch = progress.get("percent"), progress.get("epoch")
    if not isinstance(percent, int):
        return ""
    return f"{percent} %" if not isinstance(epoch, int) else f"epoch {epoch + 1}, {percent} %"


def _totals(shown: Json, progress: Json) -> dict[str, float]:
    percent, cost = progress.get("percent"), shown.get("estimatedCost")
    totals: dict[str, Any] = {
        "trained_tokens": progress.get("inputTokens"),
        "cost_usd": _usd(cost) if isinstance(cost, dict) else None,
        "training_seconds": seconds_between(shown.get("createTime"), shown.get("completedTime")),
    }
    if isinstance(percent, int):
        totals |= {"step": percent, "total_steps": 100}
    return {name: float(value) for name, value in totals.items() if value}


def _usd(money: Json) -> float | None:
    """An amount of `google.type.Money`, whole units as a text beside billionths; None for another currency."""
    if money.get("currencyCode") != "USD":
        return None
    return float(money.get("units") or 0) + float(money.get("nanos") or 0) / 1e9


def _put(url: str, path: Path, size: int) -> None:
    """Send a file to a signed URL, which is a storage of somebody else: our key stays here.

    Raises:
        ValueError: it does not take it, or is no URL of the web.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"no URL to send a file to: {url[:80]!r}")
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "x-goog-content-length-range": f"{size},{size}",
    }
    with path.open("rb") as content:
        request = urllib.request.Request(url, data=content, headers=headers, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=REQUEST_SECONDS).close()
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(f"the file was not taken: {error}") from None


def build(settings: TrainerSettings) -> ServiceTrainer:
    """The trainer for the account that the options name, which the upstream of these settings serves.

    Raises:
        ConfigError: no base URL, account or base models, or an option that is not known or has a wrong value.
    """
    sweep = trainer_options(settings, "fireworks", Sweep)
    url = sweep.api_url or re.sub(r"/inference/v1/?$", "/v1", settings.base_url)
    return ServiceTrainer(
        settings, sweep, lambda: Fireworks(Api(client(settings, url)), sweep.account, sweep.deployment)
    )
