"""Measures the cascade: `python benchmarks/cascade.py --data DIR` prints one Markdown table.

For each seed a student is trained on 80 % of N rows drawn from the train rows, its threshold is chosen from those
same rows (cross-fitted) for the promised agreement, and it meets all test rows and the texts of the other files,
which it should leave alone. `kept`: in how many seeds at least the promised share of its answers to test rows
was right. `--refit`: from all N rows instead, as a candidate would be that is trained once more, on what judged it
too.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from classifier import Remembering, load, logged

from gateway.config import TaskPolicy
from gateway.pipeline.bounds import LEAST, NEVER, agreement_low, choose_threshold
from gateway.student import Encoder
from gateway.trainers.classifier import Options, encoder_of, train
from gateway.upstreams.embedded import SUPPORT_FLOOR, EmbeddedModel

Lines = list[dict[str, str]]


def one_seed(
    rows: Lines, test: Lines, foreign: list[str], options: Options, encoder: Encoder | None, policy: TaskPolicy,
    seed: int, *, gate: bool,
) -> tuple[float, float, float, float]:  # fmt: skip
    """(threshold, share of test rows answered, how many of those rightly, share of foreign texts answered)."""
    trained = train(logged(rows, 0.0, seed)[0], options, encoder)
    sure = np.array(trained.cross_fit["confidence"])
    sure[np.array(trained.cross_fit["support"]) < SUPPORT_FLOOR] = 0.0
    right = np.array(trained.cross_fit["right"], dtype=bool)
    held_out = len(rows) // 4 if gate else 0  # the other 20 % of the logged rows
    threshold = max(LEAST, choose_threshold((sure, right), policy, held_out, policy.confidence)[0])
    model = EmbeddedModel(trained.student)
    answers = [(model.answer(row["text"]), row["label"]) for row in test]
    given = [label == gold for (label, sure), gold in answers if sure >= threshold]
    strange = statistics.fmean(model.answer(text)[1] >= threshold for text in foreign) if foreign else 0.0
    return threshold, len(given) / len(test), statistics.fmean(given) if given else 1.0, strange


def line(name: str, size: int, found: Sequence[tuple[float, float, float, float]], target: float) -> str:
    """One line of the table: means over the seeds, and how often the promise was kept."""
    thresholds, coverage, agreement, strange = (np.array(column) for column in zip(*found, strict=True))
    kept = int((agreement >= target).sum())
    low = agreement_low(len(found) - kept, len(found), 0.95)
    cells = [
        name, size, len(found), f"{kept} ({100 * low:.0f} % at least)", f"{100 * coverage.mean():.1f}",
        f"{100 * coverage.min():.1f}", f"{100 * agreement.mean():.2f}", f"{100 * agreement.min():.2f}",
        f"{100 * strange.mean():.2f}", f"{100 * strange.max():.2f}", int((thresholds == NEVER).sum()),
        f"{np.median(thresholds):.3f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "set", "N", "seeds", "kept", "answered %", "least", "agreement %", "least", "foreign answered %", "most",
    "abstained wholly", "threshold",
)  # fmt: skip


def main() -> None:
    """Print the table, a line per set and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of JSONL files")
    parser.add_argument("--sets", nargs="+", default=["banking77", "snips_extract"], help="what is learnt")
    parser.add_argument("--foreign", nargs="+", default=["banking77", "snips_extract"], help="strangers")
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 2000])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--head", choices=["svc", "lr", "nb", "centroid", "net", "blend"], default="blend")
    parser.add_argument("--features", choices=["word", "char", "word+char", "pair+char"], default="pair+char")
    parser.add_argument("--embedding", default="", help="the name of an installed one, or a folder")
    parser.add_argument("--target", type=float, default=0.95, help="promised agreement of the answers")
    parser.add_argument(
        "--gate", action="store_true", help="a threshold that N / 5 held-out rows will confirm, too"
    )
    parser.add_argument("--refit", action="store_true", help="learn from all N rows, those held out too")
    arguments = parser.parse_args()
    options = Options(features=arguments.features, head=arguments.head, embedding=arguments.embedding)
    policy = TaskPolicy(answer_agreement=arguments.target)
    found = encoder_of(options)
    encoder = Remembering(found) if found else None
    files = {name: load(arguments.data / f"{name}.jsonl") for name in {*arguments.sets, *arguments.foreign}}
    sys.stdout.write(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}\n")
    for name in arguments.sets:
        foreign = [
            row["text"] for other in arguments.foreign if other != name for row in files[other]["test"][:700]
        ]
        for size in arguments.sizes:
            lines = []
            for seed in range(arguments.seeds):
                rows = random.Random(seed).sample(
                    files[name]["train"], size if arguments.refit else int(size * 0.8)
                )
                test = files[name]["test"]
                lines.append(one_seed(rows, test, foreign, options, encoder, policy, seed, gate=arguments.gate))
            sys.stdout.write(line(name, size, lines, arguments.target) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
