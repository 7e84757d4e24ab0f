"""The commands of the offline wing, in the order of the loop: from a dataset to a flipped route and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from gateway import formats, tables
from gateway.app import Files, workshop
from gateway.commands import config_option, json_option, open_shop, print_json, sweep_page
from gateway.config import load_config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.sweep import Budget
from gateway.errors import TaskError
from gateway.pipeline import by_hand, canary, cycle, dataset, finetune, gate, promote, promotions, sweep
from gateway.pipeline.canary import Step
from gateway.pipeline.card import card_text
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.formatting import Formatted, write_format
from gateway.pipeline.predictions import infer_files
from gateway.pipeline.report import FILE, method
from gateway.pipeline.token_counts import tokenizer_of
from gateway.stores.sqlite import SqliteStore


@click.command("infer")
@click.option("--train", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
              help="Recorded requests to learn from, one {rid, ts, body} a line (.gz too).")  # fmt: skip
@click.option("--live", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Requests to match against what was learnt.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Predictions, JSON lines."
)
@json_option
def infer_command(train: Path, live: Path | None, out: Path, as_json: bool) -> None:
    """Infer templates from a file of requests.

    Needs no store. A line in: `rid` (any text), `ts` (seconds), `body` (a chat completions request). A line
    out, for each: `task`, `variant` (task@version), `match`, `segs` (what was kept: message, part or -1, start, end
    in code points), `recon` (SHA-256 of the body that was put together again) and `us` (microseconds).

    \b
    Example: unprompt infer --train train.jsonl.gz --live live.jsonl.gz --out pred.jsonl
    """
    found = infer_files(train, live, out)
    if as_json:
        print_json(found.totals)
    else:
        tables.console.print(tables.inferred(found))
        click.echo(f"predictions written to {out}")


@click.command("dataset")
@click.argument("task")
@config_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default beside the store.")
@click.option("--format", "form", type=click.Choice(formats.names()), help="Write the rows as this consumer wants "
              "them.")  # fmt: skip
@json_option
def dataset_command(task: str, config: Path | None, out: Path | None, form: str | None, as_json: bool) -> None:
    """Write TASK's training rows and their card.

    train.jsonl and validation.jsonl are in OpenAI's chat format; card.md has the funnel. With --format each row is
    checked by its consumer's rules; dpo has pairs of a corrected or approved answer and a worse one.

    \b
    Example: unprompt dataset support-intent --out export
             unprompt dataset support-intent --format trl --out export
    """
    if form and out is None:
        raise click.UsageError("--format needs --out: what stands outside the store's folder is yours to delete")
    with open_shop(config) as shop:
        built = dataset.build(
            shop.store, task, shop.datasets, shop.config.policy(task), shop.say, shop.config.terms(),
            tokenizer_of(shop.config, task),
        )  # fmt: skip
        place = dataset.export(built, out) if out else Path(built.directory)
        found = write_format(shop.store, built, form, place / form) if form else None
    if as_json:
        print_json(built.card | {"directory": str(place)} | ({"format": found} if found else {}))
        return
    click.echo(card_text(built.card))
    if found is not None:
        _tell_format(found)
    click.echo(f"written to {place}")


def _tell_format(found: Formatted) -> None:
    rows = ", ".join(f"{count} {part}" for part, count in found.rows.items())
    click.echo(f"format {found.format}: {rows}; in {found.directory}")
    if found.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        click.echo(f"left out as invalid: {reasons}; left_out.jsonl names each")


@click.command("finetune")
@click.argument("task")
@config_option
@click.option("--sweep", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="YAML: trainer name -> grid of options, or a list of grids.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(min=0), metavar="USD", help="Nothing starts beyond it.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Nothing is trained beyond them.")
@click.option("--dry-run", is_flag=True, help="Only show what would be trained, and what it would cost.")
@click.option("--cancel", is_flag=True, help="Cancel what is not over.")
@click.option("--model", metavar="[CANDIDATE=]MODEL", help="The model that you made from exported files.")
@json_option
def finetune_command(task: str, config: Path | None, file: Path | None, budget: float | None, hours: float | None,
                     dry_run: bool, cancel: bool, model: str | None, as_json: bool) -> None:  # fmt: skip
    """Train a sweep of candidates for TASK.

    Resumes one that was interrupted; nothing is trained twice. Shows what it will cost before it starts.

    \b
    Example: unprompt finetune support-intent --budget 20 --hours 6
             unprompt finetune support-intent --sweep sweep.yaml --dry-run
             unprompt finetune support-intent --cancel
    """
    with open_shop(config, calls=not dry_run and model is None, alone=not cancel) as shop:
        if model is not None:
            name, _, made = model.rpartition("=")
            registered = finetune.register(shop.store, shop.config, task, made, name)
            _show([registered], as_json)
            return
        data, planned = _planned(shop, task, file, newest=cancel)
    allowed = sweep.budget_of(shop.config, task, budget, hours)
    if not cancel:
        to_train = sum(finetune.is_open(one) for one in planned)
        click.echo(f"{data.id}: {len(planned)} candidates, {to_train} to train", err=True)
        if not as_json:
            Console(stderr=True).print(sweep_page.plan(planned, allowed))
    if dry_run:
        _show(planned, as_json, title=False)
        return
    try:
        done = _train(shop, data, planned, allowed, cancel=cancel)
    except KeyboardInterrupt:
        click.echo(f"stopped; 'unprompt finetune {task}' goes on where it was, --cancel ends it", err=True)
        raise SystemExit(130) from None
    _show(done, as_json)
    if not cancel and not any(one.state in _USABLE for one in done):
        raise click.ClickException("no candidate was trained; the remarks above say why")


_USABLE = (FineTuneState.SUCCEEDED, FineTuneState.WAITING)


def _planned(shop: Workshop, task: str, file: Path | None, *, newest: bool) -> tuple[Dataset, list[FineTune]]:
    """The dataset and the candidates; with `newest` those of the dataset that there is, as they stand."""
    if newest:
        data = _newest(shop, task)
        found = shop.store.finetunes("dataset = ?", [data.id])
        return data, [one for one in found if not one.state.final]
    policy, terms = shop.config.policy(task), shop.config.terms()
    tokenizer = tokenizer_of(shop.config, task)
    data = dataset.build(shop.store, task, shop.datasets, policy, shop.say, terms, tokenizer)
    wanted = sweep.sweep_in(file, shop.config) if file else sweep.sweep_of(shop.config, data, shop.models)
    planned = sweep.plan(shop.store, data, wanted)
    return data, sweep.estimated(shop.store, shop.config, data, planned, shop.models)


def _train(
    shop: Workshop, data: Dataset, planned: list[FineTune], budget: Budget, *, cancel: bool
) -> list[FineTune]:
    # Outside: a job at a provider takes hours, and nobody has to wait for it. Each candidate has its own lock.
    store = SqliteStore(shop.store.path)
    try:
        with sweep_page.progress(planned, Console(stderr=True)) as told:
            if cancel:
                return finetune.cancel(store, shop.config, planned, shop.models, told)
            return finetune.run(store, shop.config, data, planned, shop.models, told, budget)
    finally:
        store.close()


def _show(done: list[FineTune], as_json: bool, *, title: bool = True) -> None:
    if as_json:
        print_json(done)
    elif title:
        tables.console.print(sweep_page.results(done))


def _newest(shop: Workshop, task: str) -> Dataset:
    """
    Raises:
        TaskError: there is no dataset, or no such task.
    """
    found = shop.store.rows("datasets", "task = ?", [task])
    if not found:
        by_hand.check_task(shop, task)
        raise TaskError(f"task {task} has no datasets yet; run 'unprompt finetune {task}' first")
    return dataset.load(shop.store, found[-1]["id"])


def _trained(shop: Workshop, task: str) -> tuple[Dataset, list[FineTune]]:
    """The newest dataset that somebody was trained on, with all its candidates; says so if there is a newer one.

    Raises:
        TaskError: there is none, or no such task.
    """
    built = shop.store.rows("datasets", "task = ?", [task])
    for row in reversed(built):
        trained = shop.store.finetunes("dataset = ?", [row["id"]])
        if any(one.state is FineTuneState.SUCCEEDED for one in trained):
            if row != built[-1]:
                newer = built[-1]["id"]
                click.echo(f"no candidate is trained on {newer} yet; judging those of {row['id']}", err=True)
            return dataset.load(shop.store, row["id"]), trained
    by_hand.check_task(shop, task)
    raise TaskError(f"no candidate of task {task} is trained yet; run 'unprompt finetune {task}' first")


@click.command("evaluate")
@click.argument("task")
@config_option
@click.option("--report", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Copy the report (HTML) to this file, too.")  # fmt: skip
@json_option
def evaluate_command(task: str, config: Path | None, page: Path | None, as_json: bool) -> None:
    """Judge TASK's candidates on held-out rows.

    A page with chart, tables and the worst disagreements, report.html, is written beside the dataset.

    \b
    Example: unprompt evaluate support-intent --report report.html
    """
    with open_shop(config, calls=True) as shop:
        data, trained = _trained(shop, task)
        report = cycle.evaluation(shop, data, trained)
        decision = gate.decide(report, shop.config.policy(task))
        if as_json:
            print_json({"report": report, "decision": decision})
        else:
            measures = [tables.measures(report)] if tables.has_measures(report) else []
            tables.console.print(tables.report(report), *measures, tables.decision(decision))
            tables.console.print(tables.remarks(decision, method(report)), markup=False, highlight=False)
        written = Path(data.directory) / FILE
        if page is not None:
            _copy(written, page)
    click.echo(f"report: {page or written}", err=as_json)


def _copy(written: Path, page: Path) -> None:
    try:
        page.write_bytes(written.read_bytes())
    except OSError as error:
        raise TaskError(f"{page}: the report could not be written there ({error.strerror})") from error


@click.command("promote")
@click.argument("task")
@click.argument("candidate", required=False)
@config_option
@click.option("--canary", metavar="PERCENT", help="Begin with this share of the requests, like 5%.")
@click.option("--shadow", is_flag=True, help="Begin with none: ask the candidate, too, and compare.")
@click.option("--force", is_flag=True, help="Promote although the gate refuses; noted in the decision record.")
@click.option("--dry-run", is_flag=True, help="Only show the decision record; exit code 1 if the gate refuses.")
@json_option
def promote_command(task: str, candidate: str | None, config: Path | None, canary: str | None, shadow: bool,
                    force: bool, dry_run: bool, as_json: bool) -> None:  # fmt: skip
    """Flip TASK's route to a candidate, past the gate.

    To the best one, or to CANDIDATE (a model or a fine-tune's id). With --canary or --shadow the worker takes the
    next steps of the task's policy itself, each when enough answers were compared and nothing is wrong, and goes
    back when something is.

    \b
    Example: unprompt promote support-intent --canary 5%
    """
    first = _first_step(canary, shadow)
    with open_shop(config) as shop:
        report, decision = by_hand.judged(shop, task, candidate)
        if not as_json:
            tables.console.print(tables.decision(decision, trial=dry_run))
            tables.console.print(tables.remarks(decision), markup=False, highlight=False)
        if dry_run:
            if as_json:
                print_json({"decision": decision, "route": None})
            raise SystemExit(0 if decision.promote else 1)
        if not decision.promote and not force:
            promotions.note_refusal(shop.store, decision)
            if as_json:
                print_json({"decision": decision, "route": None})
            raise click.ClickException("the gate refuses; nothing was changed (--force overrides it)")
        route = by_hand.flip(shop, report, decision, first)
    if as_json:
        print_json({"decision": decision, "route": route})
    else:
        click.echo(f"{shop.routes}: {_in_words(route, task)}")


def _in_words(route: dict[str, Any], task: str) -> str:
    candidate = canary.candidate_of(route)["model"]
    if route.get("shadow"):
        percent = route["shadow"]["percent"]
        return f"{candidate} is asked {percent:g} % of the requests of {task}, too; no client waits for it"
    share = route["targets"][0].get("weight", 100)
    return (
        f"{share:g} % of the requests of {task} go to {candidate}, stripped; 'unprompt rollback {task}' undoes it"
    )


def _first_step(canary: str | None, shadow: bool) -> Step | None:
    if shadow:
        return Step(_percent(canary) if canary else 0.0, shadow=100.0)
    return Step(_percent(canary)) if canary else None


def _percent(text: str) -> float:
    try:
        value = float(text.rstrip("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise click.BadParameter(f"{text!r} is no share; write it like 5%", param_hint="--canary")
    return value


@click.command("rollback")
@click.argument("task")
@config_option
@json_option
def rollback_command(task: str, config: Path | None, as_json: bool) -> None:
    """Put TASK's route back to what it was before its last promotion.

    \b
    Example: unprompt rollback support-intent
    """
    files = Files.beside(config)
    # Waits for nobody and needs no key: going back must always work.
    shop = workshop(files, load_config(files.gateway, environment=False))
    try:
        route = promote.rollback(shop.store, shop.config, shop.routes, task)
    except TaskError:
        by_hand.check_task(shop, task)
        raise
    finally:
        shop.store.close()
    if as_json:
        print_json({"task": task, "route": route})
        return
    if route is None:
        now = "have no route any more: they go whole to the provider that they ask for"
    else:
        now = f"go to {route['targets'][0].get('model')} again, as before the last promotion"
    click.echo(f"{shop.routes}: the requests of {task} {now}")
