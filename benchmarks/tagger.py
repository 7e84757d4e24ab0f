"""Measures the extraction student: `python benchmarks/tagger.py --data DIR` prints one Markdown table.

DIR holds JSONL files with `text`, `output` (JSON) and `split` (train or test). N logged rows are drawn from the
train rows by seed, 80 % of them are trained on; test rows are judged by whole answers, equal as JSON. Two
thresholds are chosen from what chains that had not seen them say of the training rows: `answered` is what is
answered where the cascade promises 95 % with 95 % confidence; `at 95 %`, where 95 % of those training rows were
right, without any confidence. `foreign answered %` is what the cascade then answers of another file's texts.
`usual %` is the share of test rows whose answer is the most frequent one of the training rows (of restaurant8k,
`{}`): what answering nothing else would reach. `FILE+asked`: the file's column `asked` is a second slot of the
input. Each seed's figures go to stderr as they come.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gateway.config import TaskPolicy
from gateway.domain.dataset import Row
from gateway.extraction import Extractor
from gateway.pipeline.bounds import LEAST, NEVER, choose_threshold
from gateway.trainers.tagger.learning import Options, Trained, same, train
from gateway.upstreams.embedded import SUPPORT_FLOOR, EmbeddedModel

COLUMNS = (
    "whole answer %", "usual %", "identical %", "field F1", "ECE", "answered %", "right of answered %",
    "at 95 %: answered %", "right of those %", "of not usual %", "train s", "CPU s", "p50 us", "own refused %",
    "foreign answered %", "MB",
)  # fmt: skip


def load(path: Path, *, asked: bool) -> dict[str, list[Row]]:
    """The rows of one file by split."""
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    with path.open() as lines:
        for number, line in enumerate(lines):
            found = json.loads(line)
            text = found["text"]
            if asked:
                text = f"[asked]\n{', '.join(found['asked'])}\n[text]\n{text}"
            row = Row(exchange_id=str(number), text=text, messages=[], output=found["output"], split="train")
            rows[found["split"]].append(row)
    return rows


def thresholds(cross_fit: dict[str, list[Any]]) -> tuple[float, float]:
    """(what the cascade chooses, the lowest confidence at which 95 % of the rows that were not seen are right)."""
    sure, right = np.array(cross_fit["confidence"]), np.array(cross_fit["right"], dtype=bool)
    sure[np.array(cross_fit["support"]) < SUPPORT_FLOOR] = 0.0
    policy = TaskPolicy(answer_agreement=0.95)
    promised = max(LEAST, choose_threshold((sure, right), policy, 0, policy.confidence)[0])
    order = np.argsort(-sure, kind="stable")
    places = np.flatnonzero(np.cumsum(right[order]) >= 0.95 * np.arange(1, len(sure) + 1))
    return promised, float(sure[order][places[-1]]) if len(places) else NEVER


def flat(output: str) -> set[str]:
    """The values of an answer, each with its keys."""
    answer = json.loads(output)
    inner = {f"{k}.{i}": v for k, o in answer.items() if isinstance(o, dict) for i, v in o.items()}
    return {f"{k}={v!r}" for k, v in ({k: v for k, v in answer.items() if not isinstance(v, dict)} | inner).items()}


def f1(found: list[str], gold: list[str]) -> float:
    """Micro-averaged over all values."""
    pairs = [(flat(one), flat(other)) for one, other in zip(found, gold, strict=True)]
    hits = sum(len(one & other) for one, other in pairs)
    return 2 * hits / max(1, sum(len(one) + len(other) for one, other in pairs))


def calibration_error(right: np.ndarray[Any, Any], sure: np.ndarray[Any, Any]) -> float:
    """Expected calibration error over ten equal bins (Naeini et al. 2015)."""
    bins = np.minimum((sure * 10).astype(int), 9)
    return float(sum((bins == b).mean() * abs(right[bins == b].mean() - sure[bins == b].mean()) for b in set(bins)))


def answered(student: Extractor, texts: list[str]) -> tuple[list[str], np.ndarray[Any, Any], float]:
    """The answers, how sure the gateway takes them to be, and the median time of one in microseconds."""
    model, times, found = EmbeddedModel(student), [], []
    for text in texts:
        before = time.perf_counter()
        found.append(model.answer(text))
        times.append(time.perf_counter() - before)
    return [label for label, _ in found], np.array([sure for _, sure in found]), 1e6 * statistics.median(times)


def measure(rows: list[Row], test: list[Row], foreign: list[str], options: Options) -> list[float]:
    """One line of figures, in the order of `COLUMNS`."""
    wall, cpu = time.perf_counter(), time.process_time()
    trained: Trained = train(rows, options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found, sure, median = answered(trained.student, [row.text for row in test])
    right = np.array([same(label, row.output) for label, row in zip(found, test, strict=True)])
    usual = Counter(row.output for row in rows).most_common(1)[0][0]
    plain = np.array([row.output == usual for row in test])
    promised, point = thresholds(trained.cross_fit)
    strange = answered(trained.student, foreign)[1]
    routed = [sure >= least for least in (promised, point)]
    shares = [(float(own.mean()), float(right[own].mean()) if own.any() else 1.0) for own in routed]
    return [
        100 * float(right.mean()),
        100 * float(plain.mean()),
        100 * statistics.fmean(label == row.output for label, row in zip(found, test, strict=True)),
        100 * f1(found, [row.output for row in test]),
        calibration_error(right, sure),
        *(100 * share for pair in shares for share in pair),
        100 * float(right[~plain].mean()),
        wall,
        cpu,
        median,
        100 * float((sure == 0).mean()),
        100 * float((strange >= promised).mean()),
        len(trained.student.to_bytes()) / 1e6,
    ]


def main() -> None:
    """Print the table, a line per set and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JSONL files")
    names = ["snips_extract", "restaurant8k_extract", "restaurant8k_extract+asked"]
    parser.add_argument("--sets", nargs="+", default=names)
    parser.add_argument("--foreign", default="banking77", help="a file whose texts the student should not know")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 500, 2000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help='such as {"swaps": 0}')
    arguments = parser.parse_args()
    with (arguments.data / f"{arguments.foreign}.jsonl").open() as lines:
        foreign = [row["text"] for row in map(json.loads, lines) if row["split"] == "test"][:1000]
    write = sys.stdout.write
    write(f"| set | N | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 2)}\n")
    for name in arguments.sets:
        file, _, asked = name.partition("+")
        rows = load(arguments.data / f"{file}.jsonl", asked=bool(asked))
        for size in arguments.sizes:
            lines_ = []
            for seed in range(arguments.seeds):
                sample = random.Random(seed).sample(rows["train"], int(size * 0.8))
                options = Options(seed=seed, **arguments.options)
                lines_.append(measure(sample, rows["test"], foreign, options))
                cells = " | ".join(f"{figure:.3g}" for figure in lines_[-1])
                sys.stderr.write(f"{name} | {size} | seed {seed} | {cells}\n")
            means = [statistics.fmean(column) for column in zip(*lines_, strict=True)]
            write(f"| {name} | {size} | {' | '.join(f'{mean:.3g}' for mean in means)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
