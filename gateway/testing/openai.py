"""A fake of the OpenAI API: models, chat completions, files, fine-tuning jobs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web

from gateway.testing.chat import Answer, chunks, completion, echo
from gateway.testing.jobs import FINAL, STATES, Job, Loss, invalid_file, job_view, wrong_limits
from gateway.testing.server import FakeServer, Refusal, form_in, object_in

T = TypeVar("T")

MODELS = (
    "gpt-4.1-2025-04-14",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano-2025-04-14",
    "gpt-4o-mini-2024-07-18",
)


class FakeOpenAI(FakeServer):
    """An OpenAI-compatible server on loopback: models, chat completions, files, fine-tuning jobs.

    A job moves one state on with every `polls_per_state` retrievals, or, when `seconds_per_state` is given,
    with the `clock` (seconds); `states` may hold a state that no client knows, and `running` several times:
    each time a share of the epochs is trained, with the `loss` that is given. Chat takes `latency` seconds
    to its first byte and accepts any model, but of the `ft:` names only those of jobs that succeeded.
    `answer` is called in the server's thread and may raise `Refusal`; so may `sure`, which says how probable the
    answer to a request is as a whole (0 to 1), for who asks for log-probabilities; without it, as with many
    servers, there are none. Errors, pages and the reasons for
    which files are refused follow the public API reference; tokens are counted by `count_tokens`.
    `shutdown_dates` are told in the list of models.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        sure: Callable[[dict[str, Any]], float] | None = None,
        models: Iterable[str] = MODELS,
        states: Sequence[str] = STATES,
        polls_per_state: int = 1,
        seconds_per_state: float | None = None,
        clock: Callable[[], float] = time.time,
        latency: float = 0.0,
        loss: Loss = lambda job, epoch: 1 / epoch,
        shutdown_dates: Mapping[str, Any] | None = None,
        api_key: str | None = None,
    ) -> None:
        super().__init__(api_key=api_key)
        self.answer, self.sure, self.models, self.states = answer, sure, list(models), states
        self.polls_per_state, self.seconds_per_state, self.clock = polls_per_state, seconds_per_state, clock
        self.latency, self.loss, self.shutdown_dates = latency, loss, dict(shutdown_dates or {})
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self._jobs: dict[str, Job] = {}
        self._dooms: list[dict[str, Any]] = []
        self._file_dooms: list[str] = []
        self._ids = 0

    @property
    def base_url(self) -> str:
        """What a client is pointed at, `/v1` included."""
        return f"{self.root}/v1"

    def fail_next_job(self, code: str, message: str, *, param: str | None = None) -> None:
        """The next job that is created runs to its end and then fails with this error."""
        self._dooms.append({"code": code, "message": message, "param": param})

    def fail_next_file(self, message: str) -> None:
        """The next file that is checked is found to be invalid, for this reason: here when a job begins with it, at
        services that check what is uploaded then."""
        self._file_dooms.append(message)

    def next_wrong(self) -> str:
        """Why the file that is checked now is to be invalid; "" where it is not."""
        return self._file_dooms.pop(0) if self._file_dooms else ""

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Every job as the API shows it, oldest first."""
        return [job.view for job in self._jobs.values()]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self._list_models),
            web.get("/v1/models/{id}", self._get_model),
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/files", self._upload),
            web.get("/v1/files", self._list_files),
            web.get("/v1/files/{id}", self._get_file),
            web.delete("/v1/files/{id}", self._delete_file),
            web.get("/v1/files/{id}/content", self._get_content),
            web.post("/v1/fine_tuning/jobs", self._create_job),
            web.get("/v1/fine_tuning/jobs", self._list_jobs),
            web.get("/v1/fine_tuning/jobs/{id}", self._get_job),
            web.get("/v1/fine_tuning/jobs/{id}/events", self._list_events),
            web.get("/v1/fine_tuning/jobs/{id}/checkpoints", self._list_checkpoints),
            web.post("/v1/fine_tuning/jobs/{id}/cancel", self._cancel_job),
        ]

    def _id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}-{self._ids:06}"

    # Models and chat

    def _known_models(self) -> list[str]:
        jobs = [job for job in self._jobs.values() if job.view["status"] == "succeeded"]
        tuned = [checkpoint["fine_tuned_model_checkpoint"] for job in jobs for checkpoint in job.checkpoints]
        return [*self.models, *tuned]

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model(name) for name in self._known_models()]})

    async def _get_model(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self._known_models():
            raise _no_model(name)
        return web.json_response(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        said = {"shutdown_date": self.shutdown_dates[name]} if name in self.shutdown_dates else {}
        return _model(name) | said

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = object_in(await request.read())
        self._check_chat(body)
        answer = self.answer(body)
        message = {"role": "assistant", **({"content": answer} if isinstance(answer, str) else answer)}
        await asyncio.sleep(self.latency)
        base = {"id": self._id("chatcmpl"), "created": int(self.clock()), "model": body["model"]}
        if not body.get("stream"):
            sure = self.sure(body) if self.sure is not None and body.get("logprobs") else None
            return web.json_response(completion(base, body, message, sure=sure))
        wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        return await _stream(request, chunks(base, body, message, usage=wanted))

    def _check_chat(self, body: dict[str, Any]) -> None:
        name, messages = body.get("model"), body.get("messages")
        if not isinstance(name, str) or not name:
            raise Refusal(400, "you must provide a model parameter")
        if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages or [None]):
            raise Refusal(400, "Missing required parameter: 'messages'.", param="messages")
        if name.startswith("ft:") and name not in self._known_models():
            raise _no_model(name)

    # Files

    async def _upload(self, request: web.Request) -> web.Response:
        form = await form_in(request, await request.read())
        if "file" not in form or "purpose" not in form:
            raise Refusal(400, "'file' and 'purpose' are required properties")
        name, content = form["file"]
        purpose = form["purpose"][1].decode()
        if purpose == "fine-tune" and not name.endswith(".jsonl"):
            raise Refusal(400, f"Invalid file format. Must be .jsonl: {name}", param="file")
        if not content:
            raise Refusal(400, "File is empty.", param="file")
        file_id = self._id("file")
        self.contents[file_id] = content
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(self.clock()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
        }
        return web.json_response(self.files[file_id])

    async def _list_files(self, request: web.Request) -> web.Response:
        wanted = request.query.get("purpose")
        found = [shown for shown in self.files.values() if wanted in (None, shown["purpose"])]
        return _page(request, found[::-1], limit=10_000)

    def _file(self, request: web.Request) -> dict[str, Any]:
        return _found(self.files, request, "File")

    async def _get_file(self, request: web.Request) -> web.Response:
        return web.json_response(self._file(request))

    async def _get_content(self, request: web.Request) -> web.Response:
        content = self.contents[self._file(request)["id"]]
        return web.Response(body=content, content_type="application/octet-stream")

    async def _delete_file(self, request: web.Request) -> web.Response:
        name = self._file(request)["id"]
        del self.files[name], self.contents[name]
        return web.json_response({"id": name, "object": "file", "deleted": True})

    # Fine-tuning jobs

    async def _create_job(self, request: web.Request) -> web.Response:
        body = object_in(await request.read())
        self._check_job(body)
        now = self.clock()
        view = job_view(self._id("ftjob"), body, now)
        examples = len(self.contents[view["training_file"]].splitlines())
        job = Job(view, self.states, now, body.get("suffix") or "", examples, self.loss, doom=self._doom(body))
        job.tell(f"Created fine-tuning job: {view['id']}", now)
        job.tell(f"Validating training file: {view['training_file']}", now)
        self._jobs[view["id"]] = job
        return web.json_response(view)

    def _check_job(self, body: dict[str, Any]) -> None:
        if body.get("model") not in self._known_models():
            raise Refusal(
                400, f"Model {body.get('model')} is not available for fine-tuning", code="model_not_available"
            )
        for param in ("training_file", "validation_file"):
            name = body.get(param)
            missing = name is None and param == "training_file"
            if missing or (name is not None and name not in self.files):
                raise Refusal(400, f"Invalid {param}: {name}", code="invalid_file", param=param)
        for wrong in wrong_limits(body):
            raise Refusal(400, f"Invalid value for '{wrong}'", code="invalid_value", param=wrong)

    def _doom(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """A file that is refused ends a job when it is validated, an injected error when it has run."""
        for param in ("training_file", "validation_file"):
            content = self.contents.get(body.get(param) or "")
            if content is None:
                continue
            if wrong := self.next_wrong():
                return 1, {"code": f"invalid_{param}", "message": wrong, "param": param}
            if error := invalid_file(content, param=param):
                return 1, error
        return (len(self.states) - 1, self._dooms.pop(0)) if self._dooms else None

    def _advanced(self, job: Job, *, polls: int = 0) -> Job:
        job.polls += polls
        now = self.clock()
        if self.seconds_per_state is None:
            job.reach(job.polls // self.polls_per_state, now)
        else:
            job.reach(int((now - job.begun) / self.seconds_per_state), now)
        return job

    def _job(self, request: web.Request, *, polls: int = 0) -> Job:
        return self._advanced(_found(self._jobs, request, "fine-tuning job"), polls=polls)

    async def _get_job(self, request: web.Request) -> web.Response:
        return web.json_response(self._job(request, polls=1).view)

    async def _list_jobs(self, request: web.Request) -> web.Response:
        wanted = {key[9:-1]: value for key, value in request.query.items() if re.fullmatch(r"metadata\[.*\]", key)}
        views = [self._advanced(job).view for job in self._jobs.values()]
        found = [view for view in views if wanted.items() <= (view["metadata"] or {}).items()]
        return _page(request, found[::-1], limit=20)

    async def _list_events(self, request: web.Request) -> web.Response:
        return _page(request, self._job(request).events[::-1], limit=20)

    async def _list_checkpoints(self, request: web.Request) -> web.Response:
        return _page(request, self._job(request).checkpoints[::-1], limit=10)

    async def _cancel_job(self, request: web.Request) -> web.Response:
        job = self._job(request)
        if job.view["status"] in FINAL:
            raise Refusal(400, f"Job has already completed: {job.view['id']}", code="job_already_completed")
        now = self.clock()
        job.end("cancelled", now)
        job.tell("Fine-tuning job cancelled", now)
        return web.json_response(job.view)


def _found(things: Mapping[str, T], request: web.Request, kind: str) -> T:
    name = request.match_info["id"]
    if name not in things:
        raise Refusal(404, f"No such {kind} object: {name}", param="id")
    return things[name]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}


def _no_model(name: str) -> Refusal:
    return Refusal(
        404, f"The model `{name}` does not exist or you do not have access to it.", code="model_not_found"
    )


def _page(request: web.Request, items: list[dict[str, Any]], *, limit: int) -> web.Response:
    """One page of a list: what follows the item named by `after`, at most `limit` of it."""
    after, limit = request.query.get("after"), int(request.query.get("limit", limit))
    start = next((at + 1 for at, item in enumerate(items) if item["id"] == after), 0)
    data = items[start : start + limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    more = start + limit < len(items)
    return web.json_response({"object": "list", "data": data, "has_more": more, "first_id": first, "last_id": last})


async def _stream(request: web.Request, chunks: Iterable[dict[str, Any]]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for chunk in chunks:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response
