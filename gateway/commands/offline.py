"""The commands of the offline wing, in the order of the loop: from a dataset to a flipped route and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import yaml

from gateway import formats, tables
from gateway.app import Files, workshop
from gateway.commands import config_option, json_option, open_shop, print_json
from gateway.config import Config, load_config
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import TaskError
from gateway.pipeline import cycle, dataset, evaluate, finetune, gate, promote
from gateway.pipeline.canary import Step
from gateway.pipeline.canary import steps as planned_steps
from gateway.pipeline.card import card_text
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.formatting import Formatted, write_format
from gateway.pipeline.predictions import infer_files
from gateway.pipeline.report import FILE
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
            shop.store, task, shop.datasets, shop.config.policy(task), shop.say, shop.config.terms()
        )
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
@click.option("--sweep", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="YAML: trainer name -> list of options, one for each candidate.")  # fmt: skip
@json_option
def finetune_command(task: str, config: Path | None, sweep: Path | None, as_json: bool) -> None:
    """Train a sweep of candidates for TASK.

    Resumes one that was interrupted; nothing is trained twice.

    \b
    Example: unprompt finetune support-intent
             unprompt finetune support-intent --sweep sweep.yaml
    """
    with open_shop(config, calls=True) as shop:
        data = dataset.build(
            shop.store, task, shop.datasets, shop.config.policy(task), shop.say, shop.config.terms()
        )
        wanted = _sweep_file(sweep, shop.config) if sweep else finetune.sweep_of(shop.config, data, shop.models)
        planned = finetune.plan(shop.store, data, wanted)
    open_ones = sum(not one.state.final for one in planned)
    click.echo(f"{data.id}: {len(planned)} candidates, {open_ones} to train", err=True)

    def progress(one: FineTune) -> None:
        click.echo(f"  {evaluate.describe(one)}: {one.state.value} {one.stage}", err=True)

    # Outside: a job at a provider takes hours, and nobody has to wait for it. Each candidate has its own lock.
    store = SqliteStore(shop.store.path)
    done = finetune.run(store, shop.config, data, planned, shop.models, progress)
    store.close()
    if as_json:
        print_json(done)
    else:
        tables.console.print(tables.finetunes(done))
    if not any(one.state is FineTuneState.SUCCEEDED for one in done):
        raise click.ClickException("no candidate was trained; the remarks above say why")


def _sweep_file(file: Path, config: Config) -> finetune.Sweep:
    try:
        value = yaml.safe_load(file.read_bytes())
        sweep = msgspec.convert(value, dict[str, list[dict[str, Any]]])
    except (OSError, yaml.YAMLError, ValueError) as error:  # a ValidationError is a ValueError
        reason = " ".join(str(error).split())
        raise TaskError(f"{file}: {reason}; write it like 'classifier: [{{features: word}}]'") from error
    for name in sweep:
        if name not in config.trainers:
            raise TaskError(f"{file}: no trainer {name!r}; the config has {', '.join(config.trainers)}")
    return sweep


def _newest(shop: Workshop, table: str, task: str) -> dict[str, Any]:
    found = shop.store.rows(table, "task = ?", [task])
    if not found:
        known = ", ".join(row["name"] for row in shop.store.tasks()) or "none yet"
        step = {"datasets": "finetune", "evaluations": "evaluate"}[table]
        raise TaskError(f"task {task!r} has no {table} yet; run 'unprompt {step} TASK' (known tasks: {known})")
    return found[-1]


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
        data = dataset.load(shop.store, _newest(shop, "datasets", task)["id"])
        report = cycle.evaluation(shop, data, shop.store.finetunes("dataset = ?", [data.id]))
        decision = gate.decide(report, shop.config.policy(task))
        if as_json:
            print_json({"report": report, "decision": decision})
        else:
            tables.console.print(tables.report(report), tables.decision(decision))
            tables.console.print(tables.remarks(decision), markup=False, highlight=False)
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
    """Flip TASK's route to its best candidate, or to CANDIDATE (a model or fine-tune id), past the gate.

    With --canary or --shadow the worker takes the next steps of the task's policy itself, each when enough answers
    were compared and nothing is wrong, and goes back when something is.

    \b
    Example: unprompt promote support-intent --canary 5%
    """
    first = _first_step(canary, shadow)
    with open_shop(config) as shop:
        report = evaluate.load_report(_newest(shop, "evaluations", task))
        chosen = [s for s in report.candidates if candidate in (None, s.model, s.finetune)]
        if not chosen:
            raise TaskError(f"task {task}: no candidate {candidate!r}; 'unprompt evaluate {task}' lists them")
        policy = shop.config.policy(task)
        decision = gate.decide(msgspec.structs.replace(report, candidates=chosen), policy)
        if not as_json:
            tables.console.print(tables.decision(decision))
            tables.console.print(tables.remarks(decision), markup=False, highlight=False)
        if dry_run:
            if as_json:
                print_json({"decision": decision, "route": None})
            raise SystemExit(0 if decision.promote else 1)
        if not decision.promote and not force:
            promote.note_refusal(shop.store, decision)
            if as_json:
                print_json({"decision": decision, "route": None})
            raise click.ClickException("the gate refuses; nothing was changed (--force overrides it)")
        steps = (Step(policy.share),) if first is None else planned_steps(policy, first)
        route = promote.promote(shop.store, shop.config, shop.routes, shop.models, report, decision, steps=steps)
    if as_json:
        print_json({"decision": decision, "route": route})
    else:
        click.echo(f"{shop.routes}: {_in_words(route, task)}")


def _in_words(route: dict[str, Any], task: str) -> str:
    candidate = promote.candidate_of(route)["model"]
    if route.get("shadow"):
        return f"{route['shadow']['percent']:g} % of {task} is shown to {candidate}, too"
    return f"{route['targets'][0]['weight']:g} % of {task} goes to {candidate}"


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
    route = promote.rollback(shop.store, shop.config, shop.routes, task)
    shop.store.close()
    if as_json:
        print_json({"task": task, "route": route})
        return
    now = f"goes to {route['targets'][0].get('model')}" if route else "has no route any more: whole to its provider"
    click.echo(f"{shop.routes}: {task} {now}")
