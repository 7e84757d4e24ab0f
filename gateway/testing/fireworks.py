"""A fake of Fireworks' API: one account with datasets, fine-tuning jobs, and models that are loaded for serving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway.testing.chat import Answer, echo
from gateway.testing.jobs import wrong_row
from gateway.testing.openai import FakeOpenAI
from gateway.testing.server import Refusal, form_in, object_in
from gateway.testing.steps import Steps

FIREWORKS_STATES = ("CREATING", "VALIDATING", "PENDING", "RUNNING", "WRITING_RESULTS", "COMPLETED")
"""The states, without `JOB_STATE_`, that a job passes through when all goes well."""
_OVER = frozenset({"COMPLETED", "EARLY_STOPPED", "FAILED", "CANCELLED", "EXPIRED"})
_SIMPLE_BYTES = 150 * 1024 * 1024
_CODES = {400: 3, 401: 16, 404: 5, 409: 6}
_USD_A_ROW = 0.002


class RpcRefusal(Refusal):
    """A refusal as the management API words it: the number of a gRPC code, and a message."""

    def response(self, headers: Mapping[str, str] | None = None) -> web.Response:
        answer = {"code": _CODES.get(self.status, 13), "message": str(self), "details": []}
        return web.json_response(answer, status=self.status, headers=headers)


@dataclass
class _Moving:
    """A job, or a model that is being loaded: what the API shows of it, and where it stands."""

    view: dict[str, Any]
    steps: Steps
    doom: str = ""


class FakeFireworks(FakeOpenAI):
    """A server on loopback that speaks Fireworks' management API for one `account`, and chat below `/inference/v1`.

    A job moves one state on with every `polls_per_state` retrievals; `states` (without `JOB_STATE_`) may hold one
    that no client knows. A dataset is checked for `checks` looks. Chat knows a tuned model only by
    `MODEL#DEPLOYMENT`, once it is loaded there, which takes two looks.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        account: str = "acme",
        models: Iterable[str] = ("accounts/fireworks/models/llama-v3p1-8b-instruct",),
        deployments: Iterable[str] = ("shared",),
        states: Sequence[str] = FIREWORKS_STATES,
        polls_per_state: int = 1,
        checks: int = 1,
        simple_bytes: int = _SIMPLE_BYTES,
        api_key: str | None = None,
    ) -> None:
        super().__init__(answer, models=models, states=states, polls_per_state=polls_per_state, api_key=api_key)
        self.home, self.checks, self.simple_bytes = f"accounts/{account}", checks, simple_bytes
        self.deployments = {f"{self.home}/deployments/{name}" for name in deployments}
        self.datasets: dict[str, dict[str, Any]] = {}
        self._checking: dict[str, Steps] = {}
        self._tunes: dict[str, _Moving] = {}
        self._loaded: dict[str, _Moving] = {}
        self._wrong: dict[str, str] = {}

    @property
    def base_url(self) -> str:
        """Where chat is asked for; `api_url` is the management API."""
        return f"{self.root}/inference/v1"

    @property
    def api_url(self) -> str:
        """Below it are the accounts."""
        return f"{self.root}/v1"

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Every job as the API shows it, oldest first."""
        return [job.view for job in self._tunes.values()]

    def routes(self) -> list[web.RouteDef]:
        home, jobs = f"/v1/{self.home}", f"/v1/{self.home}/supervisedFineTuningJobs"
        return [
            web.post("/inference/v1/chat/completions", self._chat_with_loaded),
            web.get("/inference/v1/models", self._list_models),
            web.post(f"{home}/datasets", self._create_dataset),
            web.get(f"{home}/datasets/{{id}}", self._get_dataset),
            web.post(f"{home}/datasets/{{id}}:upload", self._upload_dataset),
            web.post(f"{home}/datasets/{{id}}:getUploadEndpoint", self._sign),
            web.put("/storage/{id}", self._store),
            web.post(f"{home}/datasets/{{id}}:validateUpload", self._validate),
            web.post(jobs, self._create),
            web.get(jobs, self._list),
            web.get(f"{jobs}/{{id}}", self._get),
            web.post(f"{jobs}/{{id}}:cancel", self._cancel),
            web.get(f"{home}/deployedModels", self._list_loaded),
            web.post(f"{home}/deployedModels", self._load),
        ]

    def _authorize(self, request: web.Request) -> None:
        if not request.path.startswith("/storage/"):  # a signed URL is a key of its own
            super()._authorize(request)

    # Datasets

    async def _create_dataset(self, request: web.Request) -> web.Response:
        asked = object_in(await request.read())
        name, about = asked.get("datasetId") or "", asked.get("dataset") or {}
        if not 1 <= len(name) <= 63 or "userUploaded" not in about:
            raise RpcRefusal(400, f"invalid dataset {name!r}")
        if name in self.datasets:
            raise RpcRefusal(409, f"dataset {name} already exists")
        self.datasets[name] = about | {"name": f"{self.home}/datasets/{name}", "state": "UPLOADING"}
        return web.json_response(self.datasets[name])

    def _dataset(self, request: web.Request) -> str:
        name = request.match_info["id"]
        if name not in self.datasets:
            raise RpcRefusal(404, f"dataset {name} not found")
        return name

    async def _upload_dataset(self, request: web.Request) -> web.Response:
        name, form = self._dataset(request), await form_in(request, await request.read())
        if "file" not in form or len(form["file"][1]) >= self.simple_bytes:
            raise RpcRefusal(400, "no file, or one that is too large for this")
        self._fill(name, form["file"][1])
        shown = {"id": name, "object": "file", "bytes": len(self.contents[name]), "filename": form["file"][0]}
        return web.json_response(shown)

    def _fill(self, name: str, content: bytes) -> None:
        self.contents[name] = content
        self._wrong[name] = self.next_wrong() or self._wrong_rows(name)
        self._checking[name] = Steps(["UPLOADING", "READY"], max(1, self.checks))

    async def _sign(self, request: web.Request) -> web.Response:
        name, asked = self._dataset(request), object_in(await request.read())
        urls = dict.fromkeys(asked["filenameToSize"], f"{self.root}/storage/{name}")
        return web.json_response({"filenameToSignedUrls": urls})

    async def _store(self, request: web.Request) -> web.Response:
        content = await request.read()
        size = str(len(content))
        if request.headers.get("x-goog-content-length-range") != f"{size},{size}":
            raise RpcRefusal(400, "not the size that was signed for")
        self.contents[request.match_info["id"]] = content
        return web.Response()

    async def _validate(self, request: web.Request) -> web.Response:
        name = self._dataset(request)
        self._fill(name, self.contents.get(name, b""))
        return web.json_response({})

    async def _get_dataset(self, request: web.Request) -> web.Response:
        shown = self.datasets[self._dataset(request)]
        steps = self._checking.get(request.match_info["id"])
        if steps is not None:
            steps.look()
            wrong = self._wrong[request.match_info["id"]]
            shown["state"] = "UPLOADING" if wrong else steps.state
            shown["status"] = {"code": "INVALID_ARGUMENT", "message": wrong} if wrong else {"code": "OK"}
        return web.json_response(shown)

    def _wrong_rows(self, name: str) -> str:
        lines = self.contents[name].splitlines()
        if str(len(lines)) != self.datasets[name].get("exampleCount", str(len(lines))):
            return f"{len(lines)} examples, not {self.datasets[name]['exampleCount']}"
        return wrong_row(self.contents[name])

    # Jobs

    async def _create(self, request: web.Request) -> web.Response:
        asked = object_in(await request.read())
        name = request.query.get("supervisedFineTuningJobId") or self._id("job")
        if name in self._tunes:
            raise RpcRefusal(409, f"supervised fine-tuning job {name} already exists")
        if asked.get("baseModel") not in self.models:
            raise RpcRefusal(400, f"base model {asked.get('baseModel')} is not tunable")
        for param in ("dataset", "evaluationDataset"):
            dataset = self.datasets.get(str(asked.get(param)).removeprefix(f"{self.home}/datasets/"), {})
            if (asked.get(param) or param == "dataset") and dataset.get("state") != "READY":
                raise RpcRefusal(400, f"invalid dataset: {asked.get(param)} is not ready")
        rows = int(self.datasets[asked["dataset"].rpartition("/")[2]]["exampleCount"])
        cents = round(100 * _USD_A_ROW * rows * asked.get("epochs", 1))
        view = asked | {
            "name": f"{self.home}/supervisedFineTuningJobs/{name}", "createTime": self._now(),
            "state": f"JOB_STATE_{self.states[0]}", "status": {"code": "OK"},
            "estimatedCost": {"currencyCode": "USD", "units": str(cents // 100), "nanos": cents % 100 * 10_000_000},
        }  # fmt: skip
        doom = str(self._dooms.pop(0)["message"]) if self._dooms else ""
        self._tunes[name] = _Moving(view, Steps(self.states, self.polls_per_state), doom)
        return web.json_response(view)

    def _moving(self, request: web.Request) -> _Moving:
        name = request.match_info["id"]
        if name not in self._tunes:
            raise RpcRefusal(404, f"supervised fine-tuning job {name} not found")
        return self._tunes[name]

    async def _get(self, request: web.Request) -> web.Response:
        job = self._moving(request)
        for place in job.steps.look():
            self._enter(job, place)
        return web.json_response(job.view)

    def _enter(self, job: _Moving, place: int) -> None:
        state = job.steps.states[place]
        job.view["state"] = f"JOB_STATE_{state}"
        if state == "RUNNING":
            percent = round(100 * job.steps.share_of(place))
            epoch = max(0, round(job.view.get("epochs", 1) * percent / 100) - 1)
            job.view["jobProgress"] = {"percent": percent, "epoch": epoch}
        elif state in _OVER:
            job.view["completedTime"] = self._now()
        if state == "COMPLETED" and job.doom:
            job.view |= {"state": "JOB_STATE_FAILED", "status": {"code": "INTERNAL", "message": job.doom}}

    def _now(self) -> str:
        return datetime.fromtimestamp(int(self.clock()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"supervisedFineTuningJobs": self.jobs, "totalSize": len(self.jobs)})

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._moving(request)
        if job.steps.state in _OVER:
            raise RpcRefusal(400, "the job has ended already")
        job.steps.end("CANCELLED")
        job.view["state"] = "JOB_STATE_CANCELLED"
        return web.json_response({})

    # Serving

    async def _list_loaded(self, request: web.Request) -> web.Response:
        for loaded in self._loaded.values():
            loaded.steps.look()
            loaded.view["state"] = loaded.steps.state
        return web.json_response({"deployedModels": [loaded.view for loaded in self._loaded.values()]})

    async def _load(self, request: web.Request) -> web.Response:
        asked = object_in(await request.read())
        known = {job.view["outputModel"] for job in self._tunes.values() if job.steps.state == "COMPLETED"}
        if asked.get("deployment") not in self.deployments:
            raise RpcRefusal(404, f"deployment {asked.get('deployment')} not found")
        if asked.get("model") not in known:
            raise RpcRefusal(400, f"no LoRA model {asked.get('model')}")
        name = f"{asked['model']}#{asked['deployment']}"
        view = asked | {"name": f"{self.home}/deployedModels/{self._id('loaded')}", "state": "DEPLOYING"}
        self._loaded[name] = _Moving(view, Steps(["DEPLOYING", "DEPLOYED"], 2))
        return web.json_response(view)

    async def _chat_with_loaded(self, request: web.Request) -> web.StreamResponse:
        model = object_in(await request.read()).get("model")
        loaded = self._loaded.get(str(model))
        if model not in self.models and (loaded is None or loaded.steps.state != "DEPLOYED"):
            raise Refusal(404, f"Model not found, inaccessible, and/or not deployed: {model}", code="NOT_FOUND")
        return await self._chat(request)
