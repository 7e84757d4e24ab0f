"""A LoRA fine-tune for real: trained by the trainer `trl`, routed by the gateway to llama.cpp, scored through the
server and in transformers.

    python benchmarks/lora.py --data snips.jsonl --base SmolLM2-135M-Instruct.Q4_1.gguf --python VENV/bin/python

`--data` has one JSON object a line, `text`, `split` (train or test) and the field that is learnt (`--field`, label
by default). `--python` is an interpreter with the packages of `unprompt[trl]`. `--rows` logged rows are split 80/20
as the pipeline does; the test rows are never trained on. Prints one JSON object: steps, tokens a second, validation
loss by epoch, accuracy in transformers and through the gateway, tokens of the prompt with and without its template.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Texts = list[tuple[str, str]]


def read(file: Path, field: str) -> dict[str, Texts]:
    """(text, answer) of the sides `train` and `test`."""
    sides: dict[str, Texts] = {"train": [], "test": []}
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        answer = row[field]
        sides[row["split"]].append((row["text"], answer if isinstance(answer, str) else json.dumps(answer)))
    return sides


def dataset_of(pairs: Texts, folder: Path) -> Any:
    """A dataset as the pipeline writes it: the stripped form of a prompt with one slot is that slot alone."""
    from gateway.domain.dataset import Dataset, Row
    from gateway.pipeline.examples import split_of

    rows = [
        Row(exchange_id=f"e{n}", text=text, messages=[{"role": "user", "content": text}], output=answer,
            split=split_of(text)) for n, (text, answer) in enumerate(dict(pairs).items())
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for side in ("train", "validation"):
        lines = [[*row.messages, {"role": "assistant", "content": row.output}] for row in rows if row.split == side]
        data = "".join(json.dumps({"messages": line}) + "\n" for line in lines).encode()
        (folder / f"{side}.jsonl").write_bytes(data)
        digest.update(data)
    return Dataset(id="benchmark", task="benchmark", template="benchmark@1", rows=rows, directory=str(folder),
                   digest=digest.hexdigest(), card={})  # fmt: skip


def ask_transformers(base: str, adapter: str, file: str) -> None:
    """In the other interpreter: greedy answers to a JSON list of texts, written over it."""
    import torch
    from peft import PeftModel

    sys.path.insert(0, str(Path(__file__).parents[1] / "gateway" / "recipes"))
    from sft import load

    torch.set_num_threads(1)
    model, tokenizer = load(base, "cpu")
    model = PeftModel.from_pretrained(model, adapter).eval()
    answers = []
    for text in json.loads(Path(file).read_bytes()):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=200, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answers.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    Path(file).write_text(json.dumps(answers))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--data", type=Path)
    asked.add_argument("--field", default="label")
    asked.add_argument("--base")
    asked.add_argument("--python", default=sys.executable)
    asked.add_argument("--rows", type=int, default=500)
    asked.add_argument("--test", type=int, default=300)
    asked.add_argument("--epochs", type=int, default=4)
    asked.add_argument("--rate", type=float, default=5e-4)
    asked.add_argument("--shots", type=int, default=28, help="examples in the app's prompt")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--port", type=int, default=8790)
    asked.add_argument("--out", type=Path, default=Path("lora-benchmark"))
    asked.add_argument("--answer", nargs=3, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.answer:
        return ask_transformers(*given.answer)
    sys.stdout.write(json.dumps(benchmark(given), indent=1) + "\n")
    return None


def benchmark(given: argparse.Namespace) -> dict[str, Any]:
    """Train, serve, score."""
    sides = read(given.data, given.field)
    chance = random.Random(given.seed)
    data = dataset_of(chance.sample(sides["train"], given.rows), given.out / f"data-{given.rows}-{given.seed}")
    test = chance.sample(sides["test"], min(given.test, len(sides["test"])))
    made = train(given, data)
    place = given.out / "models" / made["training"]
    texts = [text for text, _ in test]
    in_transformers = by_transformers(given, place / f"epoch-{given.epochs}", texts)
    made["accuracy_transformers"] = share(in_transformers, test)
    served = live(given, made["model"], sides["train"][-1000:], test)
    same = sum(a.strip() == b.strip() for a, b in zip(served.pop("answers"), in_transformers, strict=True))
    return made | {"gateway": served, "same_answer_as_transformers": round(same / len(test), 4)}


def train(given: argparse.Namespace, data: Any) -> dict[str, Any]:
    """The trainer's own way, without a server; a second run finds what is there."""
    from gateway.domain.finetune import FineTune
    from gateway.trainers import TrainerSettings
    from gateway.trainers.trl import Settings, TrlTrainer
    from gateway.trainers.trl.process import loss_curve

    settings = TrainerSettings(models=given.out / "models", upstream="laptop", base_url="http://127.0.0.1:9/v1")
    own = Settings(python=given.python, threads=given.threads, serve="by_hand")
    options = {"base_model": given.base, "n_epochs": given.epochs, "learning_rate": given.rate, "seed": given.seed}
    finetune = FineTune(id="ft-benchmark", task="benchmark", dataset=data.id, trainer="trl", options=options)
    started = time.time()

    def progress(saved: FineTune) -> None:
        sys.stderr.write(f"{time.time() - started:7.0f} s {saved.stage} {json.dumps(saved.metrics)}\n")

    done = TrlTrainer(settings, own).run(finetune, data, progress)
    if done.error:
        sys.exit(done.error)
    curve = [line for line in loss_curve(given.out / "models" / done.remote["training"]) if "valid_loss" in line]
    return {
        "training": done.remote["training"], "model": done.model, "wall_seconds": round(time.time() - started),
        "metrics": done.metrics, "valid_loss": [round(line["valid_loss"], 4) for line in curve],
    }  # fmt: skip


def by_transformers(given: argparse.Namespace, adapter: Path, texts: list[str]) -> list[str]:
    file = given.out / "texts.json"
    file.write_text(json.dumps(texts))
    subprocess.run([given.python, __file__, "--answer", given.base, str(adapter), str(file)], check=True)
    found: list[str] = json.loads(file.read_bytes())
    return found


def live(given: argparse.Namespace, model: str, train: Texts, test: Texts) -> dict[str, Any]:
    """Through the whole gateway: an app sends a few-shot prompt, the route strips it, the small server that the
    worker runs answers. Whatever is not stripped goes to an upstream that is not there, and counts as wrong."""
    system = "You sort what people say to an assistant. Answer with the name of the intent."
    for text, answer in shots(train, given.shots):
        system += f"\n\nInput: {text}\nIntent: {answer}"
    home = given.out / "gateway"
    app = App(f"http://127.0.0.1:{config(home, given, model, system)}/v1", system)
    with running([sys.executable, "-m", "gateway", "serve"], home):
        deadline = time.monotonic() + 300
        while "stripped" not in app.ask(test[0][0])[1]:
            if time.monotonic() > deadline:
                sys.exit(f"nothing is served stripped; {home}/gateway.log says why")
            time.sleep(1)
        before = App(f"http://127.0.0.1:{given.port}/v1", system).tokens(Path(given.base).stem, test[0][0])
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(app.ask, [text for text, _ in test]))
    answers, targets, tokens, seconds = zip(*found, strict=True)
    after = statistics.mean(filter(None, tokens))
    return {
        "accuracy": share(answers, test), "stripped": sum("stripped" in t for t in targets) / len(test),
        "prompt_tokens_whole": before, "prompt_tokens_stripped": round(after, 1),
        "tokens_saved": round(1 - after / before, 4), "p50_ms": round(1000 * statistics.median(seconds)),
        "answers": answers,
    }  # fmt: skip


class App:
    """An app that sends its whole prompt with every request."""

    def __init__(self, base_url: str, system: str) -> None:
        import openai

        self.client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=300)
        self.system = system

    def messages(self, text: str) -> list[Any]:
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]

    def ask(self, text: str) -> tuple[str, str, int, float]:
        """The answer, who gave it, the tokens of the prompt that it got, and seconds."""
        import openai

        started = time.perf_counter()
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model="gpt-6", messages=self.messages(text), temperature=0, max_tokens=200
            )
        except openai.OpenAIError as error:
            return str(error), "failed", 0, 0.0
        made, spent = raw.parse(), time.perf_counter() - started
        tokens = made.usage.prompt_tokens if made.usage else 0
        return made.choices[0].message.content or "", raw.headers["x-unprompt-target"], tokens, spent

    def tokens(self, model: str, text: str) -> int:
        """The tokens of the whole prompt."""
        made = self.client.chat.completions.create(model=model, messages=self.messages(text), max_tokens=1)
        return made.usage.prompt_tokens if made.usage else 0


@contextmanager
def running(command: list[str], home: Path) -> Iterator[None]:
    """A process with what it says in a file; it is ended at the end."""
    with (home / "gateway.log").open("wb") as log:
        file = str((home / "config" / "gateway.yaml").resolve())
        process = subprocess.Popen([*command, "--config", file], stdout=log, stderr=log, cwd=home)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def shots(pairs: Texts, count: int) -> Texts:
    """Examples for a prompt, as many of each answer as can be."""
    by_answer: dict[str, Texts] = {}
    for text, answer in pairs:
        by_answer.setdefault(answer, []).append((text, answer))
    return [many[number] for number in range(count) for many in by_answer.values() if number < len(many)][:count]


def config(home: Path, given: argparse.Namespace, model: str, system: str) -> int:
    """A gateway's folder: its store knows the template, its route strips it. Gives the port."""
    import yaml

    from gateway.domain import layout
    from gateway.domain.template import MessagePattern, PromptTemplate, Slot, TextPattern
    from gateway.stores.sqlite import SqliteStore

    def pattern(role: str, text: TextPattern) -> MessagePattern:
        return MessagePattern(layout.read_message({"role": role, "content": ""})[0], (text,))

    shutil.rmtree(home, ignore_errors=True)  # an earlier run's template is of another prompt
    (home / "config").mkdir(parents=True)
    (home / "data").mkdir()
    (home / "data" / "models").symlink_to((given.out / "models").resolve())
    store = SqliteStore(home / "data" / "unprompt.db")
    head = (pattern("system", TextPattern((system,))), pattern("user", TextPattern(("", ""), (Slot("input"),))))
    store.add_template(PromptTemplate("intent", 1, head))
    store.close()
    trainer = {"python": given.python, "serve": "local", "gguf": str(Path(given.base).resolve())}
    (home / "config" / "gateway.yaml").write_text(yaml.safe_dump({
        "server": {"port": given.port + 1}, "store": {"url": f"sqlite:///{(home / 'data').resolve()}/unprompt.db"},
        "providers": {"openai": {"base_url": "http://127.0.0.1:9/v1"},
                      "laptop": {"base_url": f"http://127.0.0.1:{given.port}/v1"}},
        "trainers": {"lora": {"kind": "trl", "provider": "laptop", "options": trainer}},
    }))  # fmt: skip
    target = {"upstream": "laptop", "model": model, "strip": "intent@1"}
    routes = {"routes": [{"name": "intent", "match": {"model": "gpt-6"}, "targets": [target]}]}
    (home / "config" / "routes.yaml").write_text(yaml.safe_dump(routes))
    return int(given.port + 1)


def share(answers: Sequence[str], test: Texts) -> float:
    return round(sum(a.strip() == right for a, (_, right) in zip(answers, test, strict=True)) / len(test), 4)


if __name__ == "__main__":
    main()
