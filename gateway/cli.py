"""The command line: one short function per command. Exit codes: 0 done, 1 problem found or refused, 2 usage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import yaml

from gateway import __version__, tables
from gateway.app import Files, Loaded, Places, build_switchboard, workshop
from gateway.config import Config, InvalidConfig, Problem, load_config
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.matching import show as show_template
from gateway.errors import TaskError, UnpromptError
from gateway.jobs import Worker
from gateway.pipeline import cycle, dataset, evaluate, finetune, gate, promote
from gateway.pipeline.card import card_text
from gateway.pipeline.cycle import Workshop, one_at_a_time
from gateway.pipeline.discover import Discovery
from gateway.pipeline.infer import infer_files
from gateway.pipeline.overview import overview
from gateway.serving import serve, worker_command
from gateway.stores.recorder import Recorder
from gateway.stores.sqlite import SqliteStore


class _Commands(click.Group):
    """Our own errors become one sentence on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UnpromptError as error:
            raise click.ClickException(str(error)) from error


_LOG_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="unprompt")
@click.pass_context
def main(context: click.Context) -> None:
    """A logging gateway for LLM APIs that learns prompts away."""
    runs_on = context.invoked_subcommand in ("serve", "worker")
    logging.basicConfig(level=logging.INFO if runs_on else logging.WARNING, format=_LOG_LINE)
    for noisy in ("httpx", "httpcore", "httpx2", "httpcore2", "openai", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


_config = click.option(
    "--config", "config", type=click.Path(path_type=Path), help="gateway.yaml; default config/gateway.yaml, if any."
)


@main.command("serve")
@_config
@click.option("--host", help="Address to listen on; overrides server.host.")
@click.option("--port", type=int, help="Port to listen on (0: any free one); overrides server.port.")
@click.option("--workers", type=click.IntRange(1, 64), help="Relay processes that share the port; default "
              "server.workers.")  # fmt: skip
@click.option("--no-jobs", is_flag=True, help="Record only: no inference, training or promotion.")
def serve_command(
    config: Path | None, host: str | None, port: int | None, workers: int | None, no_jobs: bool
) -> None:
    """Relay and record.

    Point your app's base URL at it. Without a config file it relays to OpenAI with the app's own key.

    \b
    Example: unprompt serve --port 8080
             OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python my_app.py
    """
    files = Files.beside(config)
    loaded = Loaded.from_files(files)
    settings = loaded.config

    def announce(url: str) -> None:
        upstream = settings.providers[settings.default_provider].base_url
        click.echo(f"unprompt {__version__} relays {url}/v1 to {upstream}")
        click.echo(f"records in {Places.of(settings).store}; metrics at {url}/metrics; routes in {files.routes}")
        sys.stdout.flush()

    offline = worker_command(files, jobs=settings.jobs.enabled and not no_jobs)
    count = workers or settings.server.workers
    serve(files, loaded, announce, host=host, port=port, workers=count, offline=offline)


@main.command("worker", hidden=True)
@_config
@click.option("--record-only", is_flag=True)
def worker_process(config: Path | None, record_only: bool) -> None:
    """The offline process that `serve` starts beside itself."""
    files = Files.beside(config)
    settings = load_config(files.gateway)
    journal = Places.of(settings).journal
    Worker(settings, journal, lambda: workshop(files, settings), jobs=not record_only).run()
    logging.shutdown()
    os._exit(0)  # Python would wait for threads that follow a job at a provider, for hours perhaps


@main.command("check")
@_config
def check_command(config: Path | None) -> None:
    """Report every problem in the config files at once.

    \b
    Example: unprompt check --config config/gateway.yaml
    """
    files = Files.beside(config)
    problems = _problems(files)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    shown = files.gateway or "built-in defaults (no config/gateway.yaml)"
    click.echo(f"{shown}: good; {files.routes}: {'good' if files.routes.exists() else 'not there, no routes'}")


def _problems(files: Files) -> list[Problem]:
    """Everything that is wrong in both files. Routes are checked against what holds of a wrong gateway.yaml."""
    problems: list[Problem] = []
    settings: Config | None = None
    try:
        settings = load_config(files.gateway)
    except InvalidConfig as error:
        problems += error.problems
        settings = error.partial
    if settings is None:
        return problems
    wrong = {problem.key.split(".")[1] for problem in problems if problem.key.startswith("providers.")}
    if files.gateway is not None:
        problems += finetune.problems(settings, files.gateway)
    try:
        build_switchboard(files, settings)
    except InvalidConfig as error:
        missing = {f"no {kind} {name!r};" for kind in ("upstream", "provider") for name in wrong}
        problems += [p for p in error.problems if not any(p.message.startswith(m) for m in missing)]
    except UnpromptError as error:
        problems.append(Problem(str(files.routes), 0, "", str(error)))
    return problems


@contextlib.contextmanager
def _shop(config: Path | None, *, alone: bool = True, calls: bool = False) -> Iterator[Workshop]:
    """The offline wing with all that is recorded so far. `alone`: not while the worker takes a turn. `calls`: a
    provider is called, so that its key must be there."""
    files = Files.beside(config)
    settings = load_config(files.gateway, environment=calls)
    places = Places.of(settings)
    lock = settings.store.home / ".jobs.lock"
    with one_at_a_time(lock, wait=False) as free:
        if not free and alone:
            click.echo("the worker is taking a turn; waiting for it", err=True)
    with one_at_a_time(lock, wait=alone) as free:
        shop = workshop(files, settings, say=lambda sentence: click.echo(sentence, err=True))
        try:
            Recorder(places.journal, shop.store).drain()
            if free:
                Discovery(shop.store).step()
            yield shop
        finally:
            shop.store.close()


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False))


@main.command("tasks")
@click.argument("show", required=False, type=click.Choice(["show"]))
@click.argument("task", required=False)
@_config
@_json
def tasks_command(show: str | None, task: str | None, config: Path | None, as_json: bool) -> None:
    """Show the tasks found in the traffic.

    With what is next for each; `show TASK` prints its templates with their slots marked.

    \b
    Example: unprompt tasks
             unprompt tasks show support-intent
    """
    if show and not task:
        raise click.UsageError("name a task: unprompt tasks show TASK")
    with _shop(config, alone=False) as shop:
        rows = [row for row in overview(shop.store, shop.config) if task is None or row["name"] == task]
        if task is not None and not rows:
            raise TaskError(f"no task {task!r}; 'unprompt tasks' lists those that there are")
        if as_json:
            _print_json(rows)
            return
        tables.console.print(tables.tasks(rows))
        for template in shop.store.templates(task) if task else ():
            click.echo(f"\n{template.name}\n{show_template(template)}")


@main.command("infer")
@click.option("--train", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
              help="Recorded requests, one {rid, ts, body} a line (.gz too).")  # fmt: skip
@click.option("--live", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Requests to match against what was learnt.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Predictions, JSON lines."
)
def infer_command(train: Path, live: Path | None, out: Path) -> None:
    """Infer templates from a file of requests.

    Needs no store: reads recorded requests, writes what belongs together and which parts are input.

    \b
    Example: unprompt infer --train train.jsonl.gz --live live.jsonl.gz --out pred.jsonl
    """
    _print_json(infer_files(train, live, out))


@main.command("dataset")
@click.argument("task")
@_config
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; default beside the store.")
@_json
def dataset_command(task: str, config: Path | None, out: Path | None, as_json: bool) -> None:
    """Write TASK's training rows and their card.

    train.jsonl and validation.jsonl are in OpenAI's chat format; card.md has the funnel.

    \b
    Example: unprompt dataset support-intent --out export
    """
    with _shop(config) as shop:
        built = dataset.build(shop.store, task, shop.datasets)
        place = dataset.export(built, out) if out else Path(built.directory)
    if as_json:
        _print_json(built.card | {"directory": str(place)})
    else:
        click.echo(card_text(built.card))
        click.echo(f"written to {place}")


@main.command("finetune")
@click.argument("task")
@_config
@click.option("--sweep", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="YAML: trainer name -> list of options, one for each candidate.")  # fmt: skip
@_json
def finetune_command(task: str, config: Path | None, sweep: Path | None, as_json: bool) -> None:
    """Train a sweep of candidates for TASK.

    Resumes one that was interrupted; nothing is trained twice.

    \b
    Example: unprompt finetune support-intent
             unprompt finetune support-intent --sweep sweep.yaml
    """
    with _shop(config, calls=True) as shop:
        data = dataset.build(shop.store, task, shop.datasets)
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
        _print_json(done)
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


@main.command("evaluate")
@click.argument("task")
@_config
@_json
def evaluate_command(task: str, config: Path | None, as_json: bool) -> None:
    """Judge TASK's candidates on held-out rows.

    \b
    Example: unprompt evaluate support-intent
    """
    with _shop(config, calls=True) as shop:
        data = dataset.load(shop.store, _newest(shop, "datasets", task)["id"])
        report = cycle.evaluation(shop, data, shop.store.finetunes("dataset = ?", [data.id]))
        decision = gate.decide(report, shop.config.policy(task))
        if as_json:
            _print_json({"report": report, "decision": decision})
        else:
            tables.console.print(tables.report(report), tables.decision(decision))


@main.command("promote")
@click.argument("task")
@click.argument("candidate", required=False)
@_config
@click.option("--canary", metavar="PERCENT", help="Send only this share of the requests, like 5%.")
@click.option("--force", is_flag=True, help="Promote although the gate refuses; noted in the decision record.")
@_json
def promote_command(task: str, candidate: str | None, config: Path | None, canary: str | None, force: bool,
                    as_json: bool) -> None:  # fmt: skip
    """Flip TASK's route to its best candidate, or to CANDIDATE (a model or fine-tune id), past the gate.

    \b
    Example: unprompt promote support-intent --canary 5%
    """
    share = _percent(canary) if canary else None
    with _shop(config) as shop:
        report = evaluate.load_report(_newest(shop, "evaluations", task))
        chosen = [s for s in report.candidates if candidate in (None, s.model, s.finetune)]
        if not chosen:
            raise TaskError(f"task {task}: no candidate {candidate!r}; 'unprompt evaluate {task}' lists them")
        policy = shop.config.policy(task)
        decision = gate.decide(msgspec.structs.replace(report, candidates=chosen), policy)
        if not as_json:
            tables.console.print(tables.decision(decision))
        if not decision.promote and not force:
            promote.note_refusal(shop.store, decision)
            if as_json:
                _print_json({"decision": decision, "route": None})
            raise click.ClickException("the gate refuses; nothing was changed (--force overrides it)")
        route = promote.promote(shop.store, shop.config, shop.routes, shop.models, report, decision,
                                share=share or policy.share)  # fmt: skip
    if as_json:
        _print_json({"decision": decision, "route": route})
    else:
        first = route["targets"][0]
        click.echo(f"{shop.routes}: {first['weight']:g} % of {task} goes to {first['model']}")


def _percent(text: str) -> float:
    try:
        value = float(text.rstrip("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise click.BadParameter(f"{text!r} is no share; write it like 5%", param_hint="--canary")
    return value


@main.command("rollback")
@click.argument("task")
@_config
@_json
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
        _print_json({"task": task, "route": route})
        return
    now = f"goes to {route['targets'][0].get('model')}" if route else "has no route any more: whole to its provider"
    click.echo(f"{shop.routes}: {task} {now}")


@main.command("demo")
@click.option("--data", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="JSON lines with text and label; default a set of our own.")  # fmt: skip
@click.option(
    "--rows", type=click.IntRange(100), default=2500, show_default=True, help="Messages to send, at most."
)
@click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), help="Folder; default below unprompt-demo/."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--upstream", help="Base URL of a real LLM instead of the built-in teacher (key: OPENAI_API_KEY).")
@click.option("--model", default="gpt-6-luna", show_default=True, help="Model to ask for.")
@click.option("--keep", is_flag=True, help="Leave gateway and teacher up at the end, until Ctrl-C.")
@_json
def demo_command(as_json: bool, **chosen: Any) -> None:
    """Run the whole loop here: no key, no server.

    An app with a few-shot prompt asks a teacher through the gateway; the gateway finds the task, trains,
    judges and flips the route. Takes one to three minutes.

    \b
    Example: unprompt demo
             unprompt demo --data banking77.jsonl --json
    """
    from gateway.demo import outcome, story

    options = story.Options(**chosen)
    started = time.monotonic()

    def say(sentence: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {sentence}", err=as_json)

    def show(result: dict[str, Any]) -> None:
        if as_json:
            _print_json(result)
        else:
            outcome.show(result, tables.console)

    asyncio.run(story.tell(options, say, show))
