"""A fake of Together's API: files that are checked, fine-tunes with events, metrics and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gateway.testing.chat import Answer, echo
from gateway.testing.jobs import wrong_row
from gateway.testing.openai import FakeOpenAI
from gateway.testing.server import Refusal, form_in, object_in
from gateway.testing.steps import Steps

Loss = Callable[[dict[str, Any], int], float]

TOGETHER_STATES = ("pending", "queued", "running", "compressing", "uploading", "completed")
"""The states that a fine-tune passes through when all goes well."""
_OVER = frozenset({"completed", "error", "user_error", "cancelled"})
_PRICE = 3_000_000
"""Billionths of a US dollar for a row and epoch."""


@dataclass
class _Tune:
    view: dict[str, Any]
    steps: Steps
    rows: int
    doom: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)


class FakeTogether(FakeOpenAI):
    """A server on loopback that speaks Together's API for files and fine-tunes, and chat as `FakeOpenAI` does.

    A fine-tune moves one state on with every `polls_per_state` retrievals; `states` may hold one that no client
    knows, and `running` several times: each time a share of the epochs is trained, with the `loss` that is given.
    An uploaded file is checked for `checks` looks. Tuned models are `account/<base model>:<suffix>:<job>`.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        models: Iterable[str] = ("meta-llama/Meta-Llama-3.1-8B-Instruct-Reference",),
        states: Sequence[str] = TOGETHER_STATES,
        polls_per_state: int = 1,
        checks: int = 1,
        loss: Loss = lambda view, epoch: 1 / epoch,
        api_key: str | None = None,
    ) -> None:
        super().__init__(answer, models=models, states=states, polls_per_state=polls_per_state, api_key=api_key)
        self.checks, self.tune_loss = checks, loss
        self._checking: dict[str, Steps] = {}
        self._wrong: dict[str, str] = {}
        self._tunes: dict[str, _Tune] = {}

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Every fine-tune as the API shows it, oldest first."""
        return [tune.view for tune in self._tunes.values()]

    def routes(self) -> list[web.RouteDef]:
        own = [
            web.post("/v1/files/upload", self._upload_whole),
            web.post("/v1/files", self._upload_elsewhere),
            web.put("/storage/{id}", self._store),
            web.post("/v1/files/{id}/preprocess", self._show_file),
            web.get("/v1/files", self._show_files),
            web.get("/v1/files/{id}", self._show_file),
            web.get("/v1/fine-tunes/models/limits", self._limits),
            web.post("/v1/fine-tunes/estimate-price", self._price),
            web.post("/v1/fine-tunes", self._create),
            web.get("/v1/fine-tunes", self._list),
            web.get("/v1/fine-tunes/{id}", self._retrieve),
            web.get("/v1/fine-tunes/{id}/events", self._events),
            web.get("/v1/fine-tunes/{id}/metrics", self._measured),
            web.get("/v1/fine-tunes/{id}/checkpoints", self._points),
            web.post("/v1/fine-tunes/{id}/cancel", self._cancel),
        ]
        shared = (route for route in super().routes() if not route.path.startswith(("/v1/files", "/v1/fine")))
        return [*own, *shared]

    # Files

    def _keep(self, name: str, content: bytes) -> str:
        file_id = self._id("file")
        self.files[file_id] = {
            "id": file_id, "object": "file", "bytes": len(content), "created_at": int(self.clock()),
            "filename": name, "purpose": "fine-tune", "FileType": "jsonl", "processing_status": "PENDING",
        }  # fmt: skip
        self.contents[file_id] = content
        return file_id

    async def _upload_whole(self, request: web.Request) -> web.Response:
        form = await form_in(request, await request.read())
        if missing := [name for name in ("purpose", "file_name", "file") if name not in form]:
            raise Refusal(400, f"'{missing[0]}' is a required property", param=missing[0])
        file_id = self._keep(form["file_name"][1].decode(), form["file"][1])
        return web.json_response(self._checked(file_id))

    async def _upload_elsewhere(self, request: web.Request) -> web.Response:
        """Only what the file is: its content goes where the answer says."""
        form = await form_in(request, await request.read())
        file_id = self._keep(form["file_name"][1].decode(), b"")
        place = {"Location": f"{self.root}/storage/{file_id}", "X-Together-File-Id": file_id}
        return web.Response(status=302, headers=place)

    async def _store(self, request: web.Request) -> web.Response:
        file_id = request.match_info["id"]
        self.contents[file_id] = await request.read()
        self.files[file_id]["bytes"] = len(self.contents[file_id])
        return web.Response()

    def _checked(self, file_id: str) -> dict[str, Any]:
        """The file with what checking it has come to: valid rows, or the first that is not."""
        if file_id not in self.files:
            raise Refusal(404, f"No such File object: {file_id}")
        shown = self.files[file_id]
        if file_id not in self._checking:
            wrong = self.next_wrong() or wrong_row(self.contents[file_id])
            end, self._wrong[file_id] = "INVALID_FORMAT" if wrong else "COMPLETED", wrong
            self._checking[file_id] = Steps(["PENDING", "RUNNING", end], max(1, self.checks))
        steps, wrong = self._checking[file_id], self._wrong[file_id]
        steps.look()
        shown["processing_status"] = steps.state
        if steps.is_over:
            why = {"error_type": "INVALID_FORMAT", "error": wrong} if wrong else {}
            shown["validation_report"] = {"valid": not wrong, "file_id": file_id} | why
        return shown

    async def _show_files(self, request: web.Request) -> web.Response:
        return web.json_response({"data": list(self.files.values())})

    async def _show_file(self, request: web.Request) -> web.Response:
        return web.json_response(self._checked(request.match_info["id"]))

    # Fine-tunes

    async def _limits(self, request: web.Request) -> web.Response:
        lora = {"min_batch_size": 8, "max_batch_size": 64, "max_batch_size_dpo": 32, "max_rank": 64,
                "default_rank": 16, "target_modules": ["q_proj", "v_proj"]}  # fmt: skip
        model = request.query.get("model_name", "")
        if model not in self.models:
            raise Refusal(404, f"The model {model} cannot be fine-tuned")
        return web.json_response({
            "model_name": model, "default_gradient_accumulation_steps": 1, "lora_training": lora,
            "max_learning_rate": 0.01, "min_learning_rate": 1e-8, "max_num_checkpoints": 10, "max_num_epochs": 20,
            "max_num_evals": 100, "max_seq_length_dpo": 4096, "max_seq_length_sft": 8192, "min_max_seq_length": 128,
            "merge_output_lora": True, "supports_full_training": False, "supports_reasoning": False,
            "supports_tools": True, "supports_vision": False,
        })  # fmt: skip

    async def _price(self, request: web.Request) -> web.Response:
        asked = object_in(await request.read())
        rows = len(self.contents.get(asked.get("training_file") or "", b"").splitlines())
        usd = rows * int(asked.get("n_epochs") or 1) * _PRICE / 1e9
        answer = {"estimation_available": True, "allowed_to_proceed": True, "estimated_total_price": usd}
        return web.json_response(answer)

    async def _create(self, request: web.Request) -> web.Response:
        asked = object_in(await request.read())
        self._check_tune(asked)
        job_id, now = self._id("ft"), self._now()
        rows = len(self.contents[asked["training_file"]].splitlines())
        view = {name: asked[name] for name in _KEPT if name in asked} | {
            "id": job_id, "status": self.states[0], "user_id": "user-fake", "created_at": now, "updated_at": now,
            "token_count": 0, "total_price": 0, "n_epochs": asked.get("n_epochs", 1),
        }  # fmt: skip
        doom = str(self._dooms.pop(0)["message"]) if self._dooms else ""
        tune = _Tune(view, Steps(self.states, self.polls_per_state), rows, doom)
        self._tunes[job_id] = tune
        self._tell(tune, "job_pending", "Fine tune request created")
        return web.json_response(view)

    def _check_tune(self, asked: dict[str, Any]) -> None:
        if asked.get("model") not in self.models:
            raise Refusal(400, f"The model {asked.get('model')} cannot be fine-tuned", code="model_not_available")
        for param in ("training_file", "validation_file"):
            name = asked.get(param) or ""
            if (name or param == "training_file") and name not in self.files:
                raise Refusal(400, f"Invalid {param}: {name}", param=param)
            if name and self._checked(name)["processing_status"] != "COMPLETED":
                raise Refusal(400, f"{param} {name} is not validated", param=param)
        if len(asked.get("suffix") or "") > 40:
            raise Refusal(400, "suffix is longer than 40 characters", param="suffix")
        if asked.get("n_evals") and not asked.get("validation_file"):
            raise Refusal(400, "n_evals needs a validation file", param="n_evals")
        if not 1 <= int(asked.get("n_checkpoints") or 1) <= 10:
            raise Refusal(400, "n_checkpoints is out of range", param="n_checkpoints")

    def _tune(self, request: web.Request, *, looks: bool = False) -> _Tune:
        tune = self._tunes.get(request.match_info["id"])
        if tune is None:
            raise Refusal(404, f"No such fine-tune: {request.match_info['id']}")
        for place in tune.steps.look() if looks and tune.view["status"] not in _OVER else []:
            self._enter(tune, place)
        return tune

    def _enter(self, tune: _Tune, place: int) -> None:
        state = tune.steps.states[place]
        tune.view |= {"status": state, "updated_at": self._now()}
        if state == "running":
            self._train(tune, round(tune.view["n_epochs"] * tune.steps.share_of(place)))
        elif state == "completed" and tune.doom:
            tune.view["status"] = "error"
            self._tell(tune, "job_error", tune.doom, level="error")
        elif state == "completed":
            name = f"account/{tune.view['model']}:{tune.view.get('suffix', '')}:{tune.view['id']}"
            tune.view |= {"model_output_name": name, "total_price": tune.rows * tune.view["n_epochs"] * _PRICE}
            tune.view["token_count"] = 100 * tune.rows * tune.view["n_epochs"]
            tune.checkpoints[-1]["checkpoint_type"] = f"Final (step {tune.checkpoints[-1]['step']})"
            self._tell(tune, "job_complete", "Training completed")

    def _train(self, tune: _Tune, until: int) -> None:
        for epoch in range(len(tune.checkpoints) + 1, until + 1):
            step, loss = epoch * tune.rows, self.tune_loss(tune.view, epoch)
            place = {"timestamp": self.clock() * 1e9}
            tune.metrics.append(
                place | {"train/global_step": step, "train/epoch": float(epoch), "train/loss": loss}
            )
            if tune.view.get("n_evals"):
                measured = {"eval/global_step": step, "eval/epoch": float(epoch), "eval/loss": 1.1 * loss}
                tune.metrics.append(place | measured)
            point = {"step": step, "created_at": self._now(), "path": f"s3://fake/{tune.view['id']}/{step}",
                     "checkpoint_type": f"Intermediate (step {step})", "checkpoint": "adapter",
                     "object_name": f"project/{tune.view['id']}-step-{step}"}  # fmt: skip
            tune.checkpoints.append(point)
            self._tell(tune, "epoch_complete", f"Epoch completed, at step {step}")

    def _tell(self, tune: _Tune, kind: str, message: str, level: str = "info") -> None:
        about = {"object": "fine-tune-event", "created_at": self._now(), "type": kind, "level": level}
        tune.events.append(about | {"message": message})

    def _now(self) -> str:
        """The time as the API writes it; of any two events, the later one has a later time."""
        self._ids += 1
        return datetime.fromtimestamp(int(self.clock()) + self._ids / 1e6, UTC).isoformat(timespec="microseconds")

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self.jobs})

    async def _retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(self._tune(request, looks=True).view)

    async def _events(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self._tune(request).events})

    async def _measured(self, request: web.Request) -> web.Response:
        return web.json_response({"metrics": self._tune(request).metrics})

    async def _points(self, request: web.Request) -> web.Response:
        return web.json_response({"data": self._tune(request).checkpoints})

    async def _cancel(self, request: web.Request) -> web.Response:
        tune = self._tune(request)
        if tune.view["status"] in _OVER:
            raise Refusal(400, f"{tune.view['id']} has ended already")
        tune.steps.end("cancelled")
        tune.view |= {"status": "cancelled", "updated_at": self._now()}
        return web.json_response(tune.view)


_KEPT = ("model", "training_file", "validation_file", "n_checkpoints", "n_evals", "suffix", "random_seed",
         "learning_rate", "training_type", "training_method")  # fmt: skip
