"""`unprompt tasks`: what was found, read and changed by people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway import tables
from gateway.commands import config_option, json_option, open_shop, print_json, task_page
from gateway.pipeline.explain import as_json as explanation_as_json
from gateway.pipeline.explain import explain
from gateway.pipeline.overview import overview


class _Task(click.ParamType[tuple[str, int | None]]):
    """`TASK` or `TASK@VERSION`: the name, and the version or None."""

    name = "task"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | None]:
        if isinstance(value, tuple):
            return value
        task, sign, version = str(value).rpartition("@")
        if not sign:
            return str(value), None
        if not (task and version.isdecimal()):
            self.fail(f"{value!r} is no task; write it like TASK or TASK@VERSION", param, ctx)
        return task, int(version)


def _given(context: click.Context, name: str, own: Any) -> Any:
    """An option that may stand before the sub-command, too."""
    return own or (context.parent.params.get(name) if context.parent else None)


@click.group("tasks", invoke_without_command=True)
@config_option
@json_option
@click.pass_context
def tasks_command(context: click.Context, config: Path | None, as_json: bool) -> None:
    """Show the tasks found in the traffic.

    With what is next for each. `fits` is the share of a task's last 1,000 requests that were made with the
    version in use. The sub-commands show one task whole, and let you change its template.

    \b
    Example: unprompt tasks
             unprompt tasks show support-intent
    """
    if context.invoked_subcommand is not None:
        return
    with open_shop(config, alone=False) as shop:
        rows = overview(shop.store, shop.config)
    if as_json:
        print_json(rows)
    elif rows:
        tables.console.print(tables.tasks(rows))
    else:
        click.echo("no tasks yet: a handful of requests with the same prompt make one")


@tasks_command.command("show")
@click.argument("task", type=_Task(), metavar="TASK[@VERSION]")
@config_option
@json_option
@click.pass_context
def show_command(context: click.Context, task: tuple[str, int | None], config: Path | None, as_json: bool) -> None:
    """Show one task: its prompt with the slots marked, whole.

    And what the slots hold, an example, the tokens that go, the share that matches, the versions and what changed
    between them, and why some requests nearly match and do not.

    \b
    Example: unprompt tasks show support-intent
             unprompt tasks show support-intent@2 --json
    """
    with open_shop(_given(context, "config", config), alone=False) as shop:
        found = explain(shop.store, shop.config, *task)
    if _given(context, "as_json", as_json):
        print_json(explanation_as_json(found))
    else:
        task_page.show(found, tables.console)
