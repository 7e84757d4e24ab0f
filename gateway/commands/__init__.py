"""What the commands of `unprompt` share; each file holds some of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.app import Files, Places, workshop
from gateway.config import load_config
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.discover import Discovery
from gateway.pipeline.locks import worker_at_rest
from gateway.stores.recorder import Recorder

config_option = click.option(
    "--config", "config", type=click.Path(path_type=Path), help="gateway.yaml; default config/gateway.yaml, if any."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def print_json(value: Any) -> None:
    """On standard output, for programs."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False))


@contextlib.contextmanager
def open_shop(
    config: Path | None, *, alone: bool = True, calls: bool = False, discover: bool = True
) -> Iterator[Workshop]:
    """The offline wing with all that is recorded so far. `alone`: not while the worker takes a turn or looks for
    templates. `calls`: a provider is called, so that its key must be there."""
    files = Files.beside(config)
    settings = load_config(files.gateway, environment=calls)
    places = Places.of(settings)

    def tell() -> None:
        click.echo("the worker is taking a turn; waiting for it", err=True)

    with worker_at_rest(settings.store.home, wait=alone, on_wait=tell) as free:
        shop = workshop(files, settings, say=lambda sentence: click.echo(sentence, err=True))
        try:
            Recorder(places.journal, shop.store).drain()
            if free and discover:
                Discovery(shop.store).step()
            yield shop
        finally:
            shop.store.close()
