"""Where a candidate errs: which labels it takes for which, or which fields of its JSON are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.pipeline import quality
from gateway.pipeline.markup import Markup, el, join
from gateway.pipeline.scores import Report
from gateway.pipeline.scoring import Line
from gateway.pipeline.tool_calls import shown
from gateway.pipeline.trial import Trial

_MATRIX = 16
"""More labels make no matrix that one can read; then the pairs that are mistaken are listed."""
_LISTED = 15


def sections(report: Report, trial: Trial, best: Line | None) -> list[Markup]:
    """The breakdown for the task's kind, of the rows that the candidate answers itself."""
    if best is None:
        return []
    pairs = [
        (row.output, text)
        for row, text, own in zip(trial.rows, best.given, best.own, strict=True)
        if own and row.exchange_id not in trial.beyond
    ]
    texts = [pair for pair in pairs if not quality.has_calls(pair[0])]
    calls = [pair for pair in pairs if quality.has_calls(pair[0])]
    found = [_fields("Tool calls", calls)] if calls else []
    if report.kind == "classification" and texts:
        found.insert(0, _labels(quality.confusion(texts)))
    if report.kind == "extraction" and texts:
        found.insert(0, _fields("Fields", texts))
    return found


def _labels(counts: Counter[tuple[str, str]]) -> Markup:
    labels = sorted({expected for expected, _ in counts} | {given for _, given in counts})
    inside = _matrix(counts, labels) if len(labels) <= _MATRIX else _mistaken(counts)
    about = "Rows: what the incumbent answered. Columns, by number: what the candidate answered itself."
    told = about if len(labels) <= _MATRIX else "The labels that are mistaken most, where it answers itself."
    return join(el("h2", "Confusion"), el("div", inside, el("p", told, class_="soft small"), class_="box"))


def _matrix(counts: Counter[tuple[str, str]], labels: Sequence[str]) -> Markup:
    head = el("tr", el("th", ""), *(el("th", str(n), class_="right") for n in range(1, len(labels) + 1)))
    rows = [
        el("tr", el("td", el("span", f"{n} ", class_="soft"), _short(expected)), *_counts(counts, expected, labels))
        for n, expected in enumerate(labels, 1)
    ]
    return el("table", head, *rows, class_="matrix")


def _counts(counts: Counter[tuple[str, str]], expected: str, labels: Sequence[str]) -> list[Markup]:
    return [_count(counts[expected, given], expected == given) for given in labels]


def _count(count: int, right: bool) -> Markup:
    if not count:
        return el("td", "·", class_="soft")
    return el("td", str(count), class_="hit" if right else "miss")


def _mistaken(counts: Counter[tuple[str, str]]) -> Markup:
    wrong = Counter({pair: count for pair, count in counts.items() if pair[0] != pair[1]})
    of = Counter[str]()
    for (expected, _), count in counts.items():
        of[expected] += count
    head = el("tr", el("th", "incumbent"), el("th", "candidate"), el("th", "times", class_="right"),
              el("th", "of", class_="right"))  # fmt: skip
    rows = [
        el("tr", el("td", _short(expected, 64)), el("td", _short(given, 64)), el("td", str(count), class_="right"),
           el("td", str(of[expected]), class_="right"))
        for (expected, given), count in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_LISTED]
    ]  # fmt: skip
    return el("table", head, *rows) if rows else el("p", "None is mistaken for another.")


def _fields(title: str, pairs: Sequence[quality.Pair]) -> Markup:
    counts = quality.field_counts(pairs)
    heads = ("right", "missed", "added", "F1")
    head = el("tr", el("th", "field"), *(el("th", text, class_="right") for text in heads))
    rows = [
        el("tr", el("td", _short(path)),
           *(el("td", text, class_="right") for text in (str(c.right), str(c.missed), str(c.added), f"{c.f1:.1%}")))
        for path, c in list(counts.items())[:40]
    ]  # fmt: skip
    about = "Values of each field, where the candidate answers itself; a wrong value is one missed and one added."
    return join(el("h2", title),
                el("div", el("table", head, *rows), el("p", about, class_="soft small"), class_="box"))  # fmt: skip


def _short(text: str, most: int = 32) -> str:
    flat = " ".join(shown(text).split()) or "(nothing)"
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."
