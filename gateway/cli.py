"""The command line: one short function per command. Exit codes: 0 done, 1 problem found or refused, 2 usage."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from gateway import __version__
from gateway.app import App, Files, serve, worker_command
from gateway.errors import UnpromptError


class _Commands(click.Group):
    """Our own errors become one sentence on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UnpromptError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="unprompt")
def main() -> None:
    """A logging gateway for LLM APIs that learns prompts away."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "httpx2", "httpcore2", "openai", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


_config = click.option(
    "--config", "config", type=click.Path(path_type=Path), help="gateway.yaml; default config/gateway.yaml, if any."
)


@main.command("serve")
@_config
@click.option("--host", help="Address to listen on; overrides server.host.")
@click.option("--port", type=int, help="Port to listen on (0: any free one); overrides server.port.")
@click.option("--no-jobs", is_flag=True, help="Record only: no inference, training or promotion.")
def serve_command(config: Path | None, host: str | None, port: int | None, no_jobs: bool) -> None:
    """Relay and record. Point your app's base URL at it.

    \b
    Example: unprompt serve --port 8080
             OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python my_app.py
    """
    files = Files.beside(config)
    app = App(files, host=host, port=port)

    def announce(url: str) -> None:
        click.echo(f"unprompt {__version__} relays {url}/v1 to {_upstream(app)}")
        click.echo(f"records in {app.places.store}; metrics at {url}/metrics; routes in {files.routes}")
        sys.stdout.flush()

    worker = worker_command(files, jobs=app.config.jobs.enabled and not no_jobs)
    _run(serve(app, announce, worker=worker))


def _upstream(app: App) -> str:
    return app.config.providers[app.config.default_provider].base_url


def _run(work: object) -> None:
    if sys.platform == "win32":
        asyncio.run(work)  # type: ignore[arg-type]
        return
    import uvloop

    uvloop.run(work)  # type: ignore[arg-type]
