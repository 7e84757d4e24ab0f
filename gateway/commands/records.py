"""The commands for what is recorded: look at an exchange, take exchanges out, delete them for good."""

from __future__ import annotations

import base64
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.app import Places
from gateway.commands import config_option, json_option, open_shop, print_json
from gateway.domain.exchange import Exchange
from gateway.errors import StoreError
from gateway.stores.pruning import Criteria, Pruned, prune

MEGABYTE = 1024 * 1024
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def readable(exchange: Exchange) -> dict[str, Any]:
    """An exchange for JSON. Its bodies as text, or under another name as base64 where they are no text."""
    row: dict[str, Any] = msgspec.to_builtins(exchange)
    for name in ("request", "response"):
        body: bytes = getattr(exchange, name)
        try:
            row[name] = body.decode()
        except UnicodeDecodeError:
            row[name] = None
            row[f"{name}_base64"] = base64.b64encode(body).decode()
    return row


@click.command("show")
@click.argument("exchange_id")
@config_option
@click.option("--part", type=click.Choice(["request", "response"]), help="Only these bytes, exactly as recorded.")
@json_option
def show_command(exchange_id: str, config: Path | None, part: str | None, as_json: bool) -> None:
    """Show one exchange, with its bytes as they were.

    In the store they are compressed; `--part` writes them to standard output unchanged.

    \b
    Example: unprompt show 0198c0de-7b1a-7000-8a2b-6f1d2c3b4a59
             unprompt show 0198c0de-7b1a-7000-8a2b-6f1d2c3b4a59 --part request | jq .messages
    """
    with open_shop(config, alone=False, discover=False) as shop:
        found = shop.store.exchange(exchange_id)
    if found is None:
        raise StoreError(f"no exchange {exchange_id!r}; the response header x-unprompt-exchange names it")
    if part is not None:
        sys.stdout.buffer.write(found.request if part == "request" else found.response)
    elif as_json:
        print_json(readable(found))
    else:
        _print(found)


def _print(exchange: Exchange) -> None:
    row = readable(exchange)
    for name, value in row.items():
        if name.partition("_")[0] not in ("request", "response") and value not in (None, {}, []):
            click.echo(f"{name:18} {value}")
    for name in ("request", "response"):
        click.echo(f"\n{name} {row[f'{name}_headers']}")
        body = row[name]
        click.echo(body if body is not None else f"({len(getattr(exchange, name))} bytes that are no text)")


@click.command("export")
@config_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File; default standard output.")
@click.option("--task", help="Only this task's.")
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Only with this tag; may be repeated.")
def export_command(config: Path | None, out: Path | None, task: str | None, tags: tuple[str, ...]) -> None:
    """Write exchanges as JSON lines, oldest first.

    A line has the columns of the table `exchanges`, the bodies as text (or, where they are no text, as
    `request_base64` and `response_base64`).

    \b
    Example: unprompt export --task support-intent --out support.jsonl
    """
    where, values = ["1"], list[Any]()
    if task is not None:
        where.append("task = ?")
        values.append(task)
    for name, value in _tags(tags).items():
        where.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE key = ? AND value = ?)")
        values += [name, value]
    with open_shop(config, alone=False) as shop:
        exchanges = shop.store.each_exchange(" AND ".join(where), values)
        if out is None:
            written = _write_lines(sys.stdout.buffer, exchanges)
        else:
            with out.open("wb") as file:
                written = _write_lines(file, exchanges)
    if out is not None or not written:
        click.echo(f"{written:,} exchanges written{f' to {out}' if out else ''}", err=True)


def _write_lines(file: Any, exchanges: Iterable[Exchange]) -> int:
    written = 0
    for exchange in exchanges:
        file.write(msgspec.json.encode(readable(exchange)) + b"\n")
        written += 1
    return written


@click.command("prune")
@config_option
@click.option("--older-than", metavar="AGE", help="Exchanges older than this, like 30d, 12h or 90m.")
@click.option("--keep-mb", type=click.IntRange(0), help="The oldest, until what is kept takes no more megabytes.")
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Exchanges with this tag; may be repeated."
)
@click.option("--id", "ids", multiple=True, metavar="EXCHANGE", help="This exchange; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@json_option
def prune_command(
    config: Path | None, older_than: str | None, keep_mb: int | None, tags: tuple[str, ...], ids: tuple[str, ...],
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Delete exchanges for good.

    Those for which all that is given holds, then the oldest while --keep-mb is exceeded; without options,
    what store.keep_days and store.keep_mb say. Feedback, datasets and whatever else has their text goes too.

    \b
    Example: unprompt prune --older-than 90d --dry-run
             unprompt prune --tag user=4711
    """
    criteria = Criteria(
        before=time.time() - _age(older_than) if older_than else None, tags=_tags(tags), ids=ids,
        most_bytes=None if keep_mb is None else keep_mb * MEGABYTE,
    )  # fmt: skip
    with open_shop(config, discover=False) as shop:
        if not criteria.selects and criteria.most_bytes is None:
            store = shop.config.store
            criteria = Criteria.of_settings(store.keep_days, store.keep_mb, time.time())
            if not criteria.selects and criteria.most_bytes is None:
                raise click.UsageError("say what to delete, or set store.keep_days or store.keep_mb")
        done = prune(shop.store, Places.of(shop.config).journal, criteria, dry_run=dry_run, rewrite=True)
    _report(done, as_json)


def _report(done: Pruned, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        freed = (done.bytes_before - done.bytes_after) / MEGABYTE
        does = "would be deleted" if done.dry_run else f"deleted, {freed:.1f} MB freed"
        click.echo(f"{done.exchanges} exchanges {does}")
        for name in done.datasets:
            click.echo(f"dataset {name} is deleted: it held rows of them; the next training builds a new one")
        if done.models:
            click.echo(f"trained on what is deleted, and left as they are: {', '.join(done.models)}")
    if done.left:
        raise click.ClickException("; ".join(done.left))


def _age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is no age; write it like 30d, 12h or 90m", param_hint="--older-than")
    return float(found[1]) * _SECONDS[found[2]]


def _tags(texts: Iterable[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if not all(name and sign for name, sign, _ in pairs):
        raise click.BadParameter("write a tag like NAME=VALUE", param_hint="--tag")
    return {name: value for name, _, value in pairs}
