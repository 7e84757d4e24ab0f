"""`unprompt tasks`: what was found, read and changed by people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway import tables
from gateway.commands import config_option, json_option, open_shop, print_json, task_page
from gateway.config import InvalidConfig
from gateway.errors import TaskError
from gateway.files import write_whole
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.decisions import flips
from gateway.pipeline.explain import as_json as explanation_as_json
from gateway.pipeline.explain import explain, find_version, recorded_settings
from gateway.pipeline.overview import overview
from gateway.pipeline.revise import Revision, plan, store_all
from gateway.pipeline.serving import in_force
from gateway.pipeline.template_text import Draft, read_draft, write_template
from gateway.stores.edited import pin, pinned_tasks
from gateway.stores.watched import confirm


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
        rows = overview(shop.store, shop.config, in_force(shop.routes, shop.config))
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
        found = explain(shop.store, shop.config, *task, table=in_force(shop.routes, shop.config))
    if _given(context, "as_json", as_json):
        print_json(explanation_as_json(found))
    else:
        task_page.show(found, tables.console)


@tasks_command.command("decisions")
@click.argument("task")
@config_option
@click.option("--last", type=click.IntRange(min=1), default=5, show_default=True, help="So many of the newest.")
@json_option
@click.pass_context
def decisions_command(context: click.Context, task: str, config: Path | None, last: int, as_json: bool) -> None:
    """Show what was decided about a task, and why.

    Each flip of its route, step and rollback, and each candidate that was refused, with the gate's record: every
    condition, what was measured, and what was asked.

    \b
    Example: unprompt tasks decisions support-intent --last 1
    """
    with open_shop(_given(context, "config", config), alone=False) as shop:
        find_version(shop.store, task, None)
        found = flips(shop.store, task, last)
    if _given(context, "as_json", as_json):
        print_json(found)
    elif found:
        task_page.show_decisions(found, tables.console)
    else:
        click.echo(f"nothing was decided about {task} yet; 'unprompt tasks' says what is next")


@tasks_command.command("export")
@click.argument("task", type=_Task(), metavar="TASK[@VERSION]")
@config_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File; default standard output.")
@click.pass_context
def export_command(
    context: click.Context, task: tuple[str, int | None], config: Path | None, out: Path | None
) -> None:
    """Write a task's template as YAML, to read, keep or change.

    The version in use, unless you name one.

    \b
    Example: unprompt tasks export support-intent --out support-intent.yaml
    """
    with open_shop(_given(context, "config", config), alone=False) as shop:
        text = _exported(shop, *task)
    if out is None:
        click.echo(text, nl=False)
    else:
        try:
            write_whole(out, text.encode())
        except OSError as error:
            raise TaskError(f"{out}: cannot be written ({error.strerror})") from error
        click.echo(f"written to {out}; store it again with 'unprompt tasks import {out}'")


def _exported(shop: Workshop, task: str, version: int | None) -> str:
    used = next((row["version"] for row in overview(shop.store, shop.config) if row["name"] == task), None)
    template = find_version(shop.store, task, version or used)
    pinned = task in pinned_tasks(shop.store)
    return write_template(template, pin=pinned, settings=recorded_settings(shop.store, template))


@tasks_command.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE...")
@config_option
@click.option("--dry-run", is_flag=True, help="Only check, and show what would change.")
@json_option
@click.pass_context
def import_command(
    context: click.Context, paths: tuple[Path, ...], config: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Store templates from YAML files as new versions.

    A folder means all its .yaml files. Everything is checked first: with a problem in one file nothing is
    stored. No stored version ever changes, and a route goes on stripping the version that it names.

    \b
    Example: unprompt tasks import support-intent.yaml --dry-run
             unprompt tasks import templates/
    """
    with open_shop(_given(context, "config", config), alone=not dry_run) as shop:
        revisions = plan(shop.store, _drafts(paths))
        moved = 0 if dry_run else store_all(shop.store, revisions)
    if _given(context, "as_json", as_json):
        print_json(
            {"stored": not dry_run, "moved": moved, "templates": [task_page.revision_as_json(r) for r in revisions]}
        )
        return
    for revision in revisions:
        task_page.show_revision(revision, tables.console)
    click.echo(_outcome(revisions, moved, dry_run))


def _outcome(revisions: list[Revision], moved: int, dry_run: bool) -> str:
    names = [revision.template.name for revision in revisions if revision.is_new]
    if dry_run:
        return "nothing is stored (--dry-run)"
    if not names:
        return "stored: the pin" if any(revision.pin_changes for revision in revisions) else "nothing to store"
    them = "it" if len(names) == 1 else "them"
    return f"stored {', '.join(names)}; {moved:,} recorded requests belong to {them} now"


def _drafts(paths: tuple[Path, ...]) -> list[Draft]:
    """Every file's draft.

    Raises:
        InvalidConfig: with the problems of all files.
    """
    files = [f for path in paths for f in (sorted(path.glob("*.y*ml")) if path.is_dir() else [path])]
    if not files:
        raise TaskError(f"no .yaml file in {', '.join(map(str, paths))}")
    drafts, problems = [], []
    for file in files:
        try:
            drafts.append(read_draft(str(file), file.read_bytes()))
        except OSError as error:
            raise TaskError(f"{file}: cannot be read ({error.strerror})") from error
        except InvalidConfig as error:
            problems += error.problems
    if problems:
        raise InvalidConfig(problems)
    return drafts


@tasks_command.command("edit")
@click.argument("task", type=_Task(), metavar="TASK[@VERSION]")
@config_option
@click.pass_context
def edit_command(context: click.Context, task: tuple[str, int | None], config: Path | None) -> None:
    """Change a task's template in your editor.

    $VISUAL or $EDITOR gets its YAML; what you save is checked, shown beside what it was and, when you agree,
    stored as a new version.

    \b
    Example: EDITOR=nano unprompt tasks edit support-intent
    """
    config = _given(context, "config", config)
    with open_shop(config, alone=False) as shop:
        text = _exported(shop, *task)
    while True:
        changed = click.edit(text, extension=".yaml")
        if changed is None or changed == text:
            click.echo("nothing was changed")
            return
        try:
            with open_shop(config) as shop:
                revisions = plan(shop.store, [read_draft(f"{task[0]}.yaml", changed.encode())])
            break
        except InvalidConfig as error:
            click.echo(str(error), err=True)
            click.confirm("Edit it again?", default=True, abort=True, err=True)
            text = changed
    for revision in revisions:
        task_page.show_revision(revision, tables.console)
    click.confirm(f"Store it as {revisions[0].template.name}?", default=False, abort=True)
    with open_shop(config) as shop:
        again = plan(shop.store, [revision.draft for revision in revisions])
        click.echo(_outcome(again, store_all(shop.store, again), dry_run=False))


@tasks_command.command("pin")
@click.argument("task")
@config_option
@click.option("--off", is_flag=True, help="Let inference add versions again.")
@click.pass_context
def pin_command(context: click.Context, task: str, config: Path | None, off: bool) -> None:
    """Keep inference from adding versions to a task.

    Requests of a changed prompt then match nothing and go whole, until you add a version yourself.

    \b
    Example: unprompt tasks pin support-intent
             unprompt tasks pin support-intent --off
    """
    with open_shop(_given(context, "config", config), alone=False) as shop:
        find_version(shop.store, task, None)
        pin(shop.store, task, not off)
    click.echo(f"{task}: inference {'may add' if off else 'adds no'} versions")


@tasks_command.command("confirm")
@click.argument("task", type=_Task(), metavar="TASK@VERSION")
@config_option
@click.pass_context
def confirm_command(context: click.Context, task: tuple[str, int | None], config: Path | None) -> None:
    """Say that what is new in the slots of a drifting template is input.

    It may be stripped again. `tasks show` says what is new.

    \b
    Example: unprompt tasks confirm support-intent@3
    """
    with open_shop(_given(context, "config", config), alone=False) as shop:
        template = find_version(shop.store, *task)
        if not confirm(shop.store, template.name):
            raise TaskError(f"template {template.name} is not drifting; there is nothing to confirm")
    click.echo(f"{template.name} may be stripped again")
