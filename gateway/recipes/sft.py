"""LoRA fine-tune of open weights: chat rows in, one adapter for each epoch out.

`python sft.py JOB.json`, with the keys of `Job`. Standard output gets one JSON object a line: what it does, each
logged step, the adapters, the end. Killed at any moment and started again with the same job, it goes on from the
newest whole checkpoint. It ends when its standard input does, so that it never outlives the process that started
it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

Example = dict[str, list[int]]
"""`input_ids` of a conversation, and `completion_mask`: 1 for those of the answer, which alone is learnt."""
Message = dict[str, Any]
LeftOut = dict[str, Any]
"""A row that is not learnt: `file`, `line` (from 1 on) and `reason`."""


class NoTools(Exception):
    """The base model's chat template cannot write this row."""


@dataclass(frozen=True)
class Job:
    """What is trained, how, and where it goes. `out` is this job's own folder; `train` and `validation` are JSONL
    files of `{"messages": [..., the assistant's answer], "tools"?: [...]}`. `threads` 0 leaves the number to
    torch."""

    base_model: str
    train: str
    validation: str
    out: str
    n_epochs: int
    learning_rate: float
    batch_size: int
    rank: int
    alpha: int
    max_tokens: int
    seed: int
    device: str
    threads: int
    checkpoint_seconds: float


def tell(event: str, **facts: Any) -> None:
    """One line for the process that started us."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """Standard input is a pipe from the parent, which writes nothing: it ends when the parent does, however it
    died."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: the interpreter aborts where a thread holds its lock at the end
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def load(base: str, device: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, a hub name or a GGUF file, whose weights are dequantised."""
    file = Path(base)
    of_file = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    place = str(file.parent) if of_file else base
    small = device == "cuda" and torch.cuda.is_bf16_supported()
    tokenizer = AutoTokenizer.from_pretrained(place, **of_file)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16 if small else torch.float32, **of_file)
    if of_file:  # the weights are plain numbers now, but transformers would refuse to train and to save them
        model.hf_quantizer, model.is_quantized = None, False
        with contextlib.suppress(AttributeError):
            del model.config.quantization_config
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def read(file: str, tokenizer: Any, max_tokens: int) -> tuple[list[Example], list[LeftOut]]:
    """The rows of a JSONL file as tokens, and those left out: too long (cut, they would teach to stop half-way), or
    with calls of tools that the model's chat template cannot write."""
    found: list[Example] = []
    left_out: list[LeftOut] = []
    lines = Path(file).read_text("utf-8").split("\n") if file else []
    for number, row in ((number, json.loads(line)) for number, line in enumerate(lines, 1) if line):
        messages, tools = [with_objects(message) for message in row["messages"]], row.get("tools")
        try:
            check_calls(tokenizer, messages, tools)
            example = tokens_of(tokenizer, messages, tools)
        except NoTools as error:
            left_out.append({"file": Path(file).name, "line": number, "reason": f"no tools: {error}"})
            continue
        if len(example["input_ids"]) > max_tokens:
            reason = f"too long: {len(example['input_ids'])} tokens"
            left_out.append({"file": Path(file).name, "line": number, "reason": reason})
            continue
        found.append(example)
    return found, left_out


def tokens_of(tokenizer: Any, messages: list[Message], tools: list[Any] | None) -> Example:
    """A conversation as the trainer would make it itself of a prompt and a completion. In a table of messages all
    calls of tools would get each other's arguments, as nulls."""
    prompt, whole = (
        tokenizer.apply_chat_template(part, tools=tools, add_generation_prompt=more, return_dict=True)["input_ids"]
        for part, more in ((messages[:-1], True), (messages, False))
    )
    shared = in_common(prompt, whole)
    return {"input_ids": whole, "completion_mask": [0] * shared + [1] * (len(whole) - shared)}


def with_objects(message: Message) -> Message:
    """The message with the arguments of its calls as objects, as chat templates want them."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        calls.append(call | {"function": call["function"] | {"arguments": arguments}})
    return {"content": None} | message | {"tool_calls": calls}


def check_calls(tokenizer: Any, messages: list[Message], tools: list[Any] | None) -> None:
    """Refuse a row that ends in calls of tools where the chat template leaves out the tools or the calls.

    Raises:
        NoTools: says what it does not write.
    """
    calls = [call["function"] for call in messages[-1].get("tool_calls") or []]
    if not calls:
        return
    try:
        before, prompt, whole = (
            tokenizer.apply_chat_template(part, tools=declared, add_generation_prompt=more, tokenize=False)
            for part, declared, more in
            ((messages[:-1], None, True), (messages[:-1], tools, True), (messages, tools, False))
        )  # fmt: skip
    except Exception as error:  # a template is a program, and fails in as many ways
        raise NoTools(f"the chat template fails at calls of tools ({type(error).__name__}: {error})") from error
    if tools and before == prompt:
        raise NoTools("the chat template does not write the tools that a request declares")
    said = whole[in_common(prompt, whole) :]
    wanted = [call["name"] for call in calls] + [key for call in calls for key in keys_of(call["arguments"])]
    missing = next((name for name in wanted if name not in said), None)
    if missing is not None:
        raise NoTools(f"the chat template does not write {missing!r} of a call")


def lengths(rows: Sequence[Example]) -> dict[str, float]:
    """Mean tokens of a row's prompt and of its answer, as the base model's tokenizer counts them."""
    answers = sum(sum(row["completion_mask"]) for row in rows)
    prompts = sum(len(row["input_ids"]) for row in rows) - answers
    return {
        "prompt_tokens_mean": round(prompts / len(rows), 1),
        "answer_tokens_mean": round(answers / len(rows), 1),
    }


def in_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def keys_of(arguments: Any) -> list[str]:
    """The names of the arguments; what is no object has none."""
    return list(arguments) if isinstance(arguments, dict) else []


class Diary(TrainerCallback):
    """Tells of each logged step and writes it to `loss.jsonl`, keeps each epoch's adapter, asks for a checkpoint
    now and then."""

    def __init__(self, out: Path, checkpoint_seconds: float) -> None:
        self.out, self.file, self.pause = out, out / "loss.jsonl", checkpoint_seconds
        self.before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Forget the steps that are done again after a kill."""
        kept = [line for line in self.lines() if line["step"] <= state.global_step]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.before = kept[-1]["seconds"] if kept else 0.0
        self.started = self.saved = time.monotonic()
        tell("training", step=state.global_step, steps=state.max_steps)

    def lines(self) -> list[dict[str, Any]]:
        """What was logged before; the last line may have been cut by a kill."""
        found = []
        for line in self.file.read_text().splitlines() if self.file.is_file() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **more: Any) -> None:
        """A line for each logged loss, of training or of validation."""
        names = {"loss": "train_loss", "eval_loss": "valid_loss", "num_tokens": "tokens", "epoch": "epoch",
                 "mean_token_accuracy": "token_accuracy", "eval_mean_token_accuracy": "valid_token_accuracy",
                 "learning_rate": "learning_rate"}  # fmt: skip
        facts = {names[name]: float(value) for name, value in logs.items() if name in names}
        if not facts.keys() & {"train_loss", "valid_loss"}:
            return
        facts |= {"step": state.global_step, "seconds": self.before + time.monotonic() - self.started}
        with self.file.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        tell("step", steps=state.max_steps, **facts)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A kill costs no more than so many seconds of work."""
        if time.monotonic() - self.saved > self.pause:
            self.saved, control.should_save = time.monotonic(), True

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """The adapter as it is now. It is there before the epoch's checkpoint is: a kill in between repeats it."""
        number = round(state.epoch)
        place, partial = self.out / f"epoch-{number}", self.out / f"epoch-{number}.partial"
        for old in (place, partial):
            shutil.rmtree(old, ignore_errors=True)
        model.save_pretrained(partial)
        partial.rename(place)
        tell("epoch", epoch=number, folder=place.name)


def newest_checkpoint(folder: Path) -> str | None:
    """The newest one that is whole: what a kill cut off is removed. The state is the last file that is written."""
    for place in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.partition("-")[2])):
        try:
            json.loads((place / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            shutil.rmtree(place)
        else:
            return str(place)
    return None


def settings(job: Job, device: str, rows: int, validated: bool) -> Any:
    """What TRL is told."""
    steps = -(-rows // job.batch_size) * job.n_epochs
    return SFTConfig(
        output_dir=f"{job.out}/checkpoints", num_train_epochs=job.n_epochs, learning_rate=job.learning_rate,
        per_device_train_batch_size=job.batch_size, per_device_eval_batch_size=job.batch_size,
        lr_scheduler_type="linear", warmup_steps=min(steps // 10, 100), seed=job.seed, data_seed=job.seed,
        completion_only_loss=True, max_length=job.max_tokens, packing=False,
        gradient_checkpointing=device == "cuda", use_cpu=device == "cpu",
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(), fp16=False,
        logging_steps=max(1, steps // 200), eval_strategy="epoch" if validated else "no",
        save_strategy="epoch", save_total_limit=2, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def main(job: Job) -> None:
    """From weights and rows to adapters; the steps are in their order here."""
    out = Path(job.out)
    device = job.device if job.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if job.threads:
        torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    tell("loading", base_model=job.base_model, device=device)
    model, tokenizer = load(job.base_model, device)
    train, left_out = read(job.train, tokenizer, job.max_tokens)
    validation, others = read(job.validation, tokenizer, job.max_tokens)
    (out / "left_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*left_out, *others]))
    counts = Counter(row["reason"].partition(":")[0].replace(" ", "_") for row in left_out)
    lost = {reason: counts[reason] for reason in ("too_long", "no_tools")}
    if not train:
        sys.exit(f"none of the {len(left_out)} rows has at most {job.max_tokens} tokens, {lost['no_tools']} of them"
                 " being calls of tools that the chat template cannot write")  # fmt: skip
    tell("rows", rows=len(train), held_out=len(validation), **lost)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=settings(job, device, len(train), bool(validation)),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(validation) if validation else None,
        peft_config=LoraConfig(
            r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[Diary(out, job.checkpoint_seconds)],
    )
    trainer.remove_callback(PrinterCallback)  # the diary tells it
    trainer.train(resume_from_checkpoint=newest_checkpoint(out / "checkpoints"))
    (out / "done.json").write_text(json.dumps({"rows": len(train), **lost, **lengths(train), "device": device}))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)  # they are for resuming only
    tell("done")


if __name__ == "__main__":
    end_with_parent()
    asked = Job(**json.loads(Path(sys.argv[1]).read_bytes()))
    os.nice(10)  # the relay comes first
    with (Path(asked.out) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # an orphan of a killed parent may still be ending
        main(asked)
