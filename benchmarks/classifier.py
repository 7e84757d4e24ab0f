"""Measures the embedded classifier: `python benchmarks/classifier.py --data DIR` prints one Markdown table.

DIR holds JSONL files with `text`, `label` and `split` (train or test). N logged rows are drawn from the train rows
by seed, 80 % of them are trained on; accuracy and calibration are measured on the test rows against gold labels.
With two files or more, each student is also shown the texts of the next file, which it should not know.
With `--noise 0.1` a tenth of the answers that are learnt from is replaced by another label at random. `train s` and
`CPU s` include the embedding of the training rows, `p50` (of the first 200 test rows) that of the text.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gateway.domain.dataset import Row
from gateway.student import Encoder, Floats, Prediction, TextClassifier
from gateway.trainers.classifier import Options, encoder_of, train
from gateway.upstreams.embedded import SUPPORT_FLOOR

COLUMNS = (
    "accuracy %",
    "ECE",
    "routed %",
    "accuracy of routed %",
    "train s",
    "CPU s",
    "p50 us",
    "own refused %",
    "foreign refused %",
    "MB",
    "noise found %",
    "noise true %",
)


class Remembering:
    """An encoder that reads each text once: the seeds and sizes share their test rows."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.sha256, self.heavy = encoder.name, encoder.sha256, encoder.heavy
        self.dimensions = encoder.dimensions
        self._encoder, self._known = encoder, dict[str, Floats]()

    def __call__(self, texts: Sequence[str]) -> Floats:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known.update(zip(new, self._encoder(new), strict=True))
        return np.stack([self._known[text] for text in texts])


def load(path: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of one file by split."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    with path.open() as lines:
        for line in lines:
            row = json.loads(line)
            rows[row["split"]].append(row)
    return rows


def calibration_error(right: np.ndarray[Any, Any], sure: np.ndarray[Any, Any]) -> float:
    """Expected calibration error over ten equal bins (Naeini et al. 2015)."""
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = [(bins == b).mean() * abs(right[bins == b].mean() - sure[bins == b].mean()) for b in np.unique(bins)]
    return float(sum(gaps))


def refused(found: list[Prediction]) -> float:
    """The share, in percent, of texts below the support floor."""
    return 100 * statistics.fmean(one.support < SUPPORT_FLOOR for one in found) if found else float("nan")


def p50(student: TextClassifier, texts: list[str]) -> float:
    """The median time of an answer in microseconds."""
    times = []
    for text in texts:
        before = time.perf_counter()
        student.predict(text)
        times.append(time.perf_counter() - before)
    return 1e6 * statistics.median(times)


def logged(rows: list[dict[str, str]], noise: float, seed: int) -> tuple[list[Row], float]:
    """Rows as they would be logged by a teacher that errs, and the share of its answers that are wrong."""
    labels = sorted({row["label"] for row in rows})
    draw = random.Random(seed)
    answers = [
        draw.choice([label for label in labels if label != row["label"]]) if draw.random() < noise else row["label"]
        for row in rows
    ]
    wrong = statistics.fmean(answer != row["label"] for answer, row in zip(answers, rows, strict=True))
    return [
        Row(exchange_id=str(n), text=row["text"], messages=[], output=answer, split="train")
        for n, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ], wrong


def measure(
    rows: list[Row], wrong: float, test: list[dict[str, str]], foreign: list[str], options: Options,
    known: Remembering | None,
) -> list[float]:  # fmt: skip
    """One line of figures, in the order of `COLUMNS`. Routed: probability 0.9 and above, and supported. `known`
    knows the embeddings of test rows and foreign texts."""
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train(rows, options, encoder_of(options))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    median = p50(trained.student, [row["text"] for row in test[:200]])
    student = replace(trained.student, encoder=known)
    found = [student.predict(row["text"]) for row in test]
    strange = [student.predict(text) for text in foreign]
    right = np.array([p.label == row["label"] for p, row in zip(found, test, strict=True)])
    sure = np.array([p.probability for p in found])
    routed = (sure >= 0.9) & np.array([p.support >= SUPPORT_FLOOR for p in found])
    return [
        100 * float(right.mean()),
        calibration_error(right, sure),
        100 * float(routed.mean()),
        100 * float(right[routed].mean()) if routed.any() else float("nan"),
        wall,
        cpu,
        median,
        refused(found),
        refused(strange),
        len(student.to_bytes()) / 1e6,
        100 * trained.metrics["label_noise"],
        100 * wrong,
    ]


def main() -> None:
    """Print the table, a line per set and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JSONL files")
    parser.add_argument("--sets", nargs="+", default=["banking77", "snips_extract"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 500, 2000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--head", choices=["svc", "lr", "nb", "centroid", "net", "blend"], default="blend")
    parser.add_argument("--features", choices=["word", "char", "word+char", "pair+char"], default="pair+char")
    parser.add_argument("--embedding", default="", help="the name of an installed one, or a folder")
    parser.add_argument("--noise", type=float, default=0.0, help="share of wrong answers to learn from")
    parser.add_argument("--naive", action="store_true", help="learn all answers alike, the doubtful too")
    arguments = parser.parse_args()
    sets = {name: load(arguments.data / f"{name}.jsonl") for name in arguments.sets}
    found = encoder_of(Options(embedding=arguments.embedding))
    known = Remembering(found) if found else None
    write = sys.stdout.write
    write(f"| set | N | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 2)}\n")
    for number, (name, rows) in enumerate(sets.items()):
        others = [other for other in sets if other != name]
        stranger = others[number % len(others)] if others else ""
        foreign = [row["text"] for row in sets[stranger]["test"]] if stranger else []
        for size in arguments.sizes:
            lines = [
                measure(
                    *logged(random.Random(seed).sample(rows["train"], int(size * 0.8)), arguments.noise, seed),
                    rows["test"],
                    foreign,
                    Options(
                        features=arguments.features,
                        head=arguments.head,
                        embedding=arguments.embedding,
                        robust=not arguments.naive,
                    ),
                    known,
                )
                for seed in range(arguments.seeds)
            ]
            means = [statistics.fmean(column) for column in zip(*lines, strict=True)]
            write(f"| {name} | {size} | {' | '.join(f'{mean:.3g}' for mean in means)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
