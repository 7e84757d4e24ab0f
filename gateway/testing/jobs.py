"""The other side of a fine-tune: which files it refuses, and the life of a job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.testing.chat import text_of

STATES = ("validating_files", "queued", "running", "succeeded")
"""The states that a fine-tuning job passes through when all goes well."""

FINAL = frozenset({"succeeded", "failed", "cancelled"})

Loss = Callable[[Mapping[str, Any], int], float]
"""The training loss of a job, as the API shows it, after so many epochs."""

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_KEYS = frozenset({"role", "content", "name", "function_call", "tool_calls", "tool_call_id", "weight", "refusal"})
_SPECIAL = re.compile(r"<\|(?:endoftext|fim_prefix|fim_middle|fim_suffix|endofprompt|im_start|im_end)\|>")
_MIN_EXAMPLES = 10


def invalid_row(line: bytes) -> str | None:
    """Why the fine-tuning service would refuse this line of a chat JSONL file; None when it would not.

    Source: the checks of the public data-preparation guide for chat fine-tuning, plus reserved tokens.
    """
    try:
        row = json.loads(line)
    except ValueError:
        return "not valid JSON"
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "missing a list of 'messages'"
    wrong = (f"message {at}: {why}" for at, item in enumerate(messages) if (why := _invalid_message(item)))
    if (first := next(wrong, None)) is not None:
        return first
    return None if messages[-1]["role"] == "assistant" else "the last message must be from the assistant"


def _invalid_message(message: Any) -> str | None:
    if not isinstance(message, dict) or "role" not in message:
        return "missing key 'role'"
    if unknown := sorted(message.keys() - _KEYS):
        return f"unrecognized key {unknown[0]!r}"
    if message["role"] not in _ROLES:
        return f"unrecognized role {message['role']!r}"
    if "weight" in message and (message["role"] != "assistant" or message["weight"] not in (0, 1)):
        return "'weight' must be 0 or 1, on assistant messages only"
    calls = message["role"] == "assistant" and (message.get("tool_calls") or message.get("function_call"))
    if not calls and not isinstance(message.get("content"), str | list):
        return "missing content"
    return "contains a reserved special token" if _SPECIAL.search(text_of(message)) else None


def wrong_row(content: bytes) -> str:
    """The first row of a chat JSONL file that a service would refuse, and why; "" when there is none."""
    wrong = ((at, why) for at, line in enumerate(content.splitlines(), 1) if (why := invalid_row(line)))
    return next((f"line {at}: {why}" for at, why in wrong), "")


def invalid_file(content: bytes, *, param: str) -> dict[str, Any] | None:
    """The `error` of a job whose `training_file` or `validation_file` is refused; None when it is fine."""
    lines = [line for line in content.splitlines() if line.strip()]
    name = param.removesuffix("_file")
    for number, line in enumerate(lines, start=1):
        if why := invalid_row(line):
            message = f"The job failed due to an invalid {name} file. Invalid file format. Line {number}: {why}"
            return {"code": f"invalid_{param}", "message": message, "param": param}
    if param == "training_file" and len(lines) < _MIN_EXAMPLES:
        message = f"Training file has {len(lines)} example(s), but must have at least {_MIN_EXAMPLES} examples"
        return {"code": "invalid_n_examples", "message": message, "param": param}
    return None


@dataclass
class Job:
    """A fine-tuning job: `view` is what the API shows, `doom` the error it will end with, and where."""

    view: dict[str, Any]
    states: Sequence[str]
    begun: float
    suffix: str
    examples: int
    loss: Loss = lambda view, epoch: 1 / epoch
    step: int = 0
    polls: int = 0
    doom: tuple[int, dict[str, Any]] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    epochs_done: int = 0

    def reach(self, step: int, now: float) -> None:
        """Pass through every state up to this one, unless a final one comes first."""
        while self.view["status"] not in FINAL and self.step < min(step, len(self.states) - 1):
            self.step += 1
            if self.doom and self.step >= self.doom[0]:
                self.end("failed", now, error=self.doom[1])
                self.tell(f"The job failed: {self.doom[1]['message']}", now, level="error")
            else:
                self.enter(self.states[self.step], now)

    def enter(self, state: str, now: float) -> None:
        self.view["status"] = state
        if state == "queued":
            self.tell("Files validated, moving job to queued state", now)
        elif state == "running":
            if not self.epochs_done:
                self.tell("Fine-tuning job started", now)
            self._train(now)
        elif state == "succeeded":
            name = self.model
            self.end("succeeded", now, fine_tuned_model=name, trained_tokens=100 * self.examples)
            self.tell(f"New fine-tuned model created: {name}", now)
            self.tell("The job has successfully completed", now)

    def end(self, state: str, now: float, **changes: Any) -> None:
        self.view.update(status=state, finished_at=int(now), estimated_finish=None, **changes)

    @property
    def model(self) -> str:
        number = self.view["id"].removeprefix("ftjob-")
        return f"ft:{self.view['model']}:{self.view['organization_id']}:{self.suffix}:{number}"

    def _train(self, now: float) -> None:
        """One checkpoint an epoch; where `running` is there several times, each time its share of the epochs."""
        epochs = self.view["hyperparameters"]["n_epochs"]
        times = [at for at, state in enumerate(self.states) if state == "running"]
        done = -(-epochs * (times.index(self.step) + 1) // len(times))
        for epoch in range(self.epochs_done + 1, done + 1):
            step, loss = epoch * self.examples, self.loss(self.view, epoch)
            metrics = {"step": step, "train_loss": loss, "train_mean_token_accuracy": 1 - 0.5 / epoch}
            if self.view["validation_file"]:
                metrics |= {"valid_loss": 1.1 * loss, "valid_mean_token_accuracy": 1 - 0.6 / epoch}
            self.tell(f"Step {step}/{epochs * self.examples}: training loss={loss:.2f}", now, data=metrics)
            # The last checkpoint goes by the name of the model itself.
            suffix = f":ckpt-step-{step}" if epoch < epochs else ""
            self.checkpoints.append(
                {
                    "id": f"ftckpt-{self.view['id']}-{step}",
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": int(now),
                    "fine_tuned_model_checkpoint": self.model + suffix,
                    "fine_tuning_job_id": self.view["id"],
                    "metrics": metrics,
                    "step_number": step,
                }
            )
        self.epochs_done = done

    def tell(self, message: str, now: float, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        self.events.append(
            {
                "id": f"ftevent-{self.view['id']}-{len(self.events):04}",
                "object": "fine_tuning.job.event",
                "created_at": int(now),
                "level": level,
                "message": message,
                "type": "metrics" if data else "message",
                "data": data or {},
            }
        )


def _hyperparameters(body: dict[str, Any]) -> dict[str, Any]:
    method = body.get("method") or {"type": "supervised"}
    chosen = (method.get(method["type"]) or {}).get("hyperparameters") or body.get("hyperparameters") or {}
    return {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"} | chosen


def wrong_limits(body: dict[str, Any]) -> Iterable[str]:
    """The names of the fields that are out of the documented ranges."""
    if len(body.get("suffix") or "") > 64:
        yield "suffix"
    metadata = body.get("metadata") or {}
    if len(metadata) > 16 or any(len(key) > 64 or len(str(value)) > 512 for key, value in metadata.items()):
        yield "metadata"
    chosen = _hyperparameters(body)
    for name, high in (("n_epochs", 50), ("batch_size", 256), ("learning_rate_multiplier", float("inf"))):
        value = chosen[name]
        if value != "auto" and not (isinstance(value, int | float) and 0 < value <= high):
            yield name


def job_view(name: str, body: dict[str, Any], now: float) -> dict[str, Any]:
    chosen = _hyperparameters(body)
    resolved = {key: default if chosen[key] == "auto" else chosen[key] for key, default in _AUTO.items()}
    return {
        "id": name,
        "object": "fine_tuning.job",
        "model": body["model"],
        "created_at": int(now),
        "finished_at": None,
        "estimated_finish": None,
        "fine_tuned_model": None,
        "organization_id": "org-fake",
        "result_files": [],
        "status": "validating_files",
        "training_file": body["training_file"],
        "validation_file": body.get("validation_file"),
        "hyperparameters": resolved,
        "method": {"type": "supervised", "supervised": {"hyperparameters": resolved}},
        "trained_tokens": None,
        "error": None,
        "seed": body["seed"] if body.get("seed") is not None else 42,
        "integrations": [],
        "metadata": body.get("metadata"),
    }


_AUTO = {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}
