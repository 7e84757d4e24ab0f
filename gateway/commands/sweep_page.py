"""What `unprompt finetune` shows: the plan with its cost, the progress, and how each candidate ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from gateway import tables
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Budget, cost, refusal
from gateway.figures import figure
from gateway.pipeline.evaluate import describe

_DONE = {FineTuneState.CREATED: 0.0, FineTuneState.WAITING: 1.0}
_BAR = 20


def plan(planned: Sequence[FineTune], budget: Budget) -> Table:
    """What each candidate is expected to take, and whether the budget has room for it (in this order, should each
    cost what is expected)."""
    rows, taken = [], [one for one in planned if one.state is not FineTuneState.CREATED]
    for one in planned:
        reason = None
        if one.state is FineTuneState.CREATED:
            reason = refusal(one, taken, budget, 0.0)
            taken += [] if reason else [one.but(state=FineTuneState.RUNNING)]
        rows.append((describe(one), *_expected(one), reason or _standing(one)))
    rows.append(("in all", _usd(sum(cost(one) for one in taken)), "", "", _limits(budget)))
    return _table("Plan", ("candidate", "about USD", "time", "tokens", "remark"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = tables.table(title, columns, rows)
    made.columns[0].no_wrap = False
    made.columns[0].overflow = "fold"
    return made


def _expected(one: FineTune) -> tuple[str, str, str]:
    tokens, hours = one.metrics.get("estimated_tokens"), one.metrics.get("estimated_hours")
    return (
        _usd(one.metrics.get("estimated_usd")),
        _time(None if hours is None else hours * 3600),
        figure(tokens, "{:,.0f}"),
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _standing(one: FineTune) -> str:
    return "to train" if one.state is FineTuneState.CREATED else one.state.value


def _usd(value: float | None) -> str:
    return "?" if value is None else f"{value:,.2f}"


def _limits(budget: Budget) -> str:
    usd = "no limit in USD" if budget.usd is None else f"of {budget.usd:,.2f} USD"
    return f"{usd}, {'no limit in hours' if budget.hours is None else f'{budget.hours:g} h'}"


def results(done: Sequence[FineTune]) -> Table:
    """How each candidate ended: its model, or why there is none."""
    return _table("Candidates", ("candidate", "state", "USD", "time", "result"), [
        (describe(one), one.state.value, _usd(one.metrics.get("cost_usd")), _time(_seconds(one)), _result(one))
        for one in done
    ])  # fmt: skip


def _seconds(one: FineTune) -> float | None:
    return one.metrics.get("train_seconds", one.metrics.get("training_seconds"))


def _result(one: FineTune) -> str:
    return one.error or one.model or one.remote.get("todo") or one.stage or "-"


@contextlib.contextmanager
def progress(planned: Sequence[FineTune], console: Console) -> Iterator[Callable[[FineTune], None]]:
    """What is told of each candidate as it goes on: a bar for each in a terminal, a line for each change else."""
    if not console.is_terminal:
        yield _lines(console)
        return
    now = {one.id: one for one in planned}
    with Live(_bars(now.values()), console=console, refresh_per_second=4) as live:

        def told(one: FineTune) -> None:
            now[one.id] = one
            live.update(_bars(now.values()))

        yield told


def _lines(console: Console) -> Callable[[FineTune], None]:
    said: dict[str, str] = {}

    def told(one: FineTune) -> None:
        line = f"  {describe(one)}: {one.state.value} {_now(one)}".rstrip()
        if said.get(one.id) != line:
            said[one.id] = line
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return told


def _bars(candidates: Iterable[FineTune]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for one in candidates:
        grid.add_row(describe(one), ProgressBar(total=1.0, completed=share_done(one), width=_BAR), one.state.value,
                     _now(one))  # fmt: skip
    return grid


def share_done(one: FineTune) -> float:
    """How far it is, from 0 to 1, by its steps where they are known."""
    if one.state.final:
        return 1.0
    step, total = one.metrics.get("step"), one.metrics.get("total_steps")
    return min(step / total, 0.99) if step and total else _DONE.get(one.state, 0.05)


def _now(one: FineTune) -> str:
    """Why it ended, else the newest event, else the stage."""
    return one.error or (one.remote.get("message") if not one.state.final else "") or one.stage
