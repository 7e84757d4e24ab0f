"""Tables for people, in the terminal; the same values go out as JSON elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gateway.figures import figure, share
from gateway.pipeline.comparison import METRICS
from gateway.pipeline.evaluate import Report, Score
from gateway.pipeline.gate import Decision
from gateway.pipeline.intervals import Figure
from gateway.pipeline.predictions import Found
from gateway.pipeline.serving import serves

console = Console()
_SENTENCES = ("model asked", "next", "remark", "condition", "slots", "holds", "example", "result")
"""Columns whose text may take several lines."""


class Sheet(Table):
    """A table that is written line by line, a row's first cell above the others, where the terminal has no room for
    it: figures that are cut would be wrong ones."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.__rich_measure__(console, options.update(width=10_000)).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text(str(self.title).strip(), "bold")
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            yield from _lines([str(column.header) for column in self.columns], [str(cell) for cell in cells])
        if self.caption:
            yield Text(str(self.caption), "dim")


def _lines(names: Sequence[str], cells: Sequence[str]) -> Iterator[RenderableType]:
    """A row as lines: figures beside each other, sentences below them."""
    yield Text(f"\n{cells[0]}", "bold")
    rest = [(name, cell) for name, cell in zip(names[1:], cells[1:], strict=True) if cell]
    figures = "   ".join(f"{name} {cell}" for name, cell in rest if name not in _SENTENCES)
    for line in (figures, *(cell for name, cell in rest if name in _SENTENCES)):
        if line:
            yield Padding(Text(line), (0, 0, 0, 2))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, sentences: int = 20) -> Table:
    """The first column to the left, figures to the right; `sentences` is the least width of a column of text."""
    made = Sheet(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, column in enumerate(columns):
        words = column in _SENTENCES
        justify: Literal["left", "right"] = "left" if words or number == 0 else "right"
        made.add_column(
            column, justify=justify, no_wrap=not words, overflow="fold", min_width=sentences if words else None
        )
    for row in rows:
        made.add_row(*row)
    return made


def tasks(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a task; the share of its newest exchanges that fit the version in use; what happens next."""
    saves = any(row["saved_usd"] is not None for row in rows)
    columns = ("task", "calls", "stripped", "fits", *(["saved USD"] if saves else []), "next")
    return table("Tasks", columns, sentences=40, rows=[
        (f"{row['name']}@{row['version']}", f"{row['exchanges']:,}", f"{row['stripped']:,}",
         share(row["match_rate"]),
         *([figure(row["saved_usd"])] if saves else []),
         " ".join(filter(None, (row["kind"] and f"{row['kind']};", row["alarm"] and f"ALARM: {row['alarm']};",
                                serves(row) and f"{serves(row)};", row["next"]))).removesuffix(";"))
        for row in rows
    ])  # fmt: skip


def inferred(found: Found) -> Table:
    """One line a template, the most used first, and what belongs to none."""
    ranked = sorted(found.templates, key=lambda template: (-found.requests[template.name], template.name))
    rows = [
        (template.name, f"{found.requests[template.name]:,}", f"{template.fixed_words:,}",
         ", ".join(slot.name for slot in template.slots) or "-")
        for template in ranked
    ]  # fmt: skip
    rows.append(("(no template)", f"{found.requests['']:,}", "", ""))
    seconds = found.totals["infer_seconds"]
    count = f"{len(ranked):,} template{'' if len(ranked) == 1 else 's'}"
    title = f"{count} in {found.totals['n']:,} requests, found in {seconds:.1f} s"
    return table(title, ("template", "requests", "fixed words", "slots"), rows)


def report(found: Report) -> Table:
    """Agreement with the incumbent and its lower bound; `answers` is the share that a candidate dares answer."""
    columns = ("model asked", "agrees", "at least", "answers", "USD/1k", "p50 ms", "p95 ms")
    scores = (found.incumbent, *found.candidates, *found.baselines)
    made = table(f"Evaluation of {found.task} on {found.incumbent.rows} held-out rows", columns, [
        _score(score) for score in scores
    ])  # fmt: skip
    made.caption_justify, made.caption_style = "left", "dim"
    made.caption = (
        f"agrees: share of requests on which a client gets what the incumbent answered; at least: its lower bound, "
        f"{found.confidence:.4g} sure; answers: share that it answers itself, the rest is the incumbent's"
    )
    for name, reason in found.failed.items():
        made.add_row(name, f"failed: {reason}")
    return made


def _score(score: Score) -> tuple[str, ...]:
    name = f"incumbent {score.model}" if score.candidate == "incumbent" else score.candidate
    return (
        name, share(score.agreement), share(score.agreement_low), share(score.answered),
        figure(score.cost_per_1k_usd, "{:.4f}"), figure(score.p50_ms, "{:,.1f}"),
        figure(score.p95_ms, "{:,.1f}"),
    )  # fmt: skip


def has_measures(found: Report) -> bool:
    """Whether there is anything to show but agreement."""
    scores = (found.incumbent, *found.candidates, *found.baselines)
    return any(score.metrics or score.gold for score in scores)


def measures(found: Report) -> Table:
    """What the task's kind is measured by, and accuracy by people's word, each with its two-sided 95 % interval."""
    scores = (found.incumbent, *found.candidates, *found.baselines)
    names = [name for name in METRICS if any(name in score.metrics for score in scores)]
    gold = ["right"] if any(score.gold for score in scores) else []
    title = "Measures, each with its two-sided 95 % interval"
    return table(title, ("model asked", *gold, *(METRICS[name] for name in names)), [
        (score.candidate, *([_with_interval(score.gold.accuracy if score.gold else None)] if gold else []),
         *(_with_interval(score.metrics.get(name)) for name in names))
        for score in scores
    ])  # fmt: skip


def _with_interval(found: Figure | None) -> str:
    return "-" if found is None else f"{found.value:.1%} ({100 * found.low:.0f}-{100 * found.high:.0f})"


def decision(made: Decision, *, trial: bool = False, title: str | None = None) -> Table:
    """Each condition of the gate with what was measured. `trial`: nothing is changed by it."""
    if title is None:
        title = f"Decision: {made.reason}"
    if trial and made.score is not None:
        verdict = "would be promoted" if made.promote else f"would be refused ({made.failing})"
        title = f"Decision (nothing is changed): {made.score.candidate}: {verdict}"
    return table(title, ("condition", "measured", "limit", "holds"), [
        (check.name, figure(check.value, "{:.4g}"), figure(check.limit, "{:.4g}"), "yes" if check.holds else "NO")
        for check in made.checks
    ])  # fmt: skip


def remarks(made: Decision, measured: Sequence[str] = ()) -> str:
    """What a reader of the record should know beside the conditions, and how it was `measured`: a line each."""
    return "\n".join(f"- {note}" for note in (*made.notes, *measured))
