"""The command line: one short function per command. Exit codes: 0 done, 1 problem found or refused, 2 usage."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from gateway import __version__, tables
from gateway.app import Files, Loaded, Places, build_switchboard, workshop
from gateway.commands import config_option, json_option, label, offline, print_json, records, tasks
from gateway.config import Config, InvalidConfig, Problem, load_config
from gateway.errors import UnpromptError
from gateway.jobs import Worker
from gateway.pipeline import sweep
from gateway.serving import serve, worker_command


class _Commands(click.Group):
    """Our own errors become one sentence on standard error and exit code 1. Listed in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UnpromptError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise click.ClickException(f"the output could not be written: {error.strerror}") from error


_FULL = (errno.ENOSPC, errno.EDQUOT)
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


@main.command("serve")
@config_option
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
        click.echo(f"dashboard at {url}/unprompt/, metrics at {url}/metrics")
        click.echo(f"records in {Places.of(settings).store}, routes in {files.routes}")
        sys.stdout.flush()

    beside = worker_command(files, jobs=settings.jobs.enabled and not no_jobs)
    count = workers or settings.server.workers
    serve(files, loaded, announce, host=host, port=port, workers=count, offline=beside)


@main.command("worker", hidden=True)
@config_option
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
@config_option
@json_option
def check_command(config: Path | None, as_json: bool) -> None:
    """Report every problem in the config files at once.

    \b
    Example: unprompt check --config config/gateway.yaml
    """
    files = Files.beside(config)
    problems = _problems(files)
    if as_json:
        print_json(problems)
        raise SystemExit(1 if problems else 0)
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
        problems += sweep.problems(settings, files.gateway)
    if not any(problem.key == "store.url" for problem in problems):
        problems += _store_problems(files, settings)
    try:
        build_switchboard(files, settings)
    except InvalidConfig as error:
        missing = {f"no {kind} {name!r};" for kind in ("upstream", "provider") for name in wrong}
        problems += [p for p in error.problems if not any(p.message.startswith(m) for m in missing)]
    except UnpromptError as error:
        problems.append(Problem(str(files.routes), 0, "", str(error)))
    return problems


def _store_problems(files: Files, settings: Config) -> list[Problem]:
    """Whether the store can be made, without making it: `serve` would go on trying, and record in memory."""
    home = settings.store.home
    there = next(folder for folder in (home.absolute(), *home.absolute().parents) if os.access(folder, os.F_OK))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return []
    said = f"{there} cannot be written to, and the store is to be in {home}; name another folder, or permit it"
    return [Problem(str(files.gateway or "built-in defaults"), 0, "store.url", said)]


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
@click.option("--story", type=click.Choice(["first", "drift"]), default="first", show_default=True,
              help="drift: the app changes its prompt when a model of its own serves it.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave gateway and teacher up at the end, until Ctrl-C.")
@json_option
def demo_command(as_json: bool, story: str, **chosen: Any) -> None:
    """Run the whole loop here: no key, no server.

    An app with a few-shot prompt asks a teacher through the gateway; the gateway finds the task, trains,
    judges and flips the route. Takes one to three minutes.

    \b
    Example: unprompt demo
             unprompt demo --data banking77.jsonl --json
             unprompt demo --story drift
    """
    from gateway.demo import drift, outcome
    from gateway.demo import story as first
    from gateway.demo.stage import Options

    options = Options(**chosen)
    started = time.monotonic()

    def say(sentence: str) -> None:
        click.echo(f"[{time.monotonic() - started:5.1f} s] {sentence}", err=as_json)

    told: list[dict[str, Any]] = []

    def show(result: dict[str, Any]) -> None:
        told.append(result)
        if as_json:
            print_json(result)
        elif story == "drift":
            outcome.show_drift(result, tables.console)
        else:
            outcome.show(result, tables.console)

    try:
        asyncio.run((drift if story == "drift" else first).tell(options, say, show))
    except KeyboardInterrupt:
        if not told:
            raise
        say("stopped")


for _command in (
    tasks.tasks_command, offline.infer_command, offline.dataset_command, offline.finetune_command,
    label.label_command, offline.evaluate_command, offline.promote_command, offline.rollback_command,
    records.show_command, records.export_command, records.prune_command,
):  # fmt: skip
    main.add_command(_command)
