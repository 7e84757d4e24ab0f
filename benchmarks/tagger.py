"""Measures the extraction student: `python benchmarks/tagger.py --data DIR` prints one Markdown table.

DIR holds JSONL files with `text`, `output` (JSON) and `split` (train or test). N logged rows are drawn from the
train rows by seed, 80 % of them are trained on; test rows are judged by whole answers, equal as JSON. `routed` is
what is answered at the threshold that the training rows alone promise 95 % at, with `--bound` as confidence (0: by
the share itself), and `foreign routed %` what is then answered of another file's texts. `usual %` is the share of
test rows whose answer is the most frequent one of the training rows (of restaurant8k, `{}`): what answering
nothing else would reach. `FILE+asked`: the file's column `asked` is a second slot of the input.
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

from gateway.domain.dataset import Row
from gateway.trainers.tagger.learning import Options, Trained, same, train

SUPPORT_FLOOR = 0.01
COLUMNS = (
    "whole answer %", "usual %", "identical %", "field F1", "ECE", "routed %", "right of routed %",
    "of not usual %", "train s", "CPU s", "p50 us", "own refused %", "foreign routed %", "MB",
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


def threshold(cross_fit: dict[str, list[Any]], target: float, bound: float) -> float:
    """The lowest confidence at which the training rows that were not seen keep the target."""
    from scipy.stats import beta

    supported = np.array(cross_fit["support"]) >= SUPPORT_FLOOR
    sure = np.array(cross_fit["confidence"])[supported]
    right = np.array(cross_fit["right"])[supported]
    order = np.argsort(-sure, kind="stable")
    count, good = np.arange(1, len(sure) + 1), np.cumsum(right[order])
    share = beta.ppf(1 - bound, good, count - good + 1) if bound else good / count
    places = np.flatnonzero(share >= target)
    return float(sure[order][places[-1]]) if len(places) else 1.01


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


def measure(rows: list[Row], test: list[Row], foreign: list[str], options: Options, bound: float) -> list[float]:
    """One line of figures, in the order of `COLUMNS`."""
    wall, cpu = time.perf_counter(), time.process_time()
    trained: Trained = train(rows, options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    student, times, found = trained.student, [], []
    for row in test:
        before = time.perf_counter()
        found.append(student.predict(row.text))
        times.append(time.perf_counter() - before)
    right = np.array([same(p.label, row.output) for p, row in zip(found, test, strict=True)])
    usual = Counter(row.output for row in rows).most_common(1)[0][0]
    plain = np.array([row.output == usual for row in test])
    sure = np.array([p.probability for p in found])
    supported = np.array([p.support >= SUPPORT_FLOOR for p in found])
    least = threshold(trained.cross_fit, 0.95, bound)
    routed = supported & (sure >= least)
    strange = [student.predict(text) for text in foreign]
    return [
        100 * float(right.mean()),
        100 * float(plain.mean()),
        100 * statistics.fmean(p.label == row.output for p, row in zip(found, test, strict=True)),
        100 * f1([p.label for p in found], [row.output for row in test]),
        calibration_error(right, sure),
        100 * float(routed.mean()),
        100 * float(right[routed].mean()) if routed.any() else float("nan"),
        100 * float(right[~plain].mean()),
        wall,
        cpu,
        1e6 * statistics.median(times),
        100 * float(1 - supported.mean()),
        100 * statistics.fmean(p.support >= SUPPORT_FLOOR and p.probability >= least for p in strange),
        len(student.to_bytes()) / 1e6,
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
    parser.add_argument("--bound", type=float, default=0.0)
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
                lines_.append(measure(sample, rows["test"], foreign, options, arguments.bound))
            means = [statistics.fmean(column) for column in zip(*lines_, strict=True)]
            write(f"| {name} | {size} | {' | '.join(f'{mean:.3g}' for mean in means)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
