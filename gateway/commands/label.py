"""`unprompt label`: a person looks at the answers that are most worth it, and says what is right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gateway.commands import config_option, json_option, open_shop, print_json
from gateway.domain.feedback import Feedback
from gateway.errors import DatasetError, UnknownExchange
from gateway.files import write_whole
from gateway.pipeline import labelling
from gateway.pipeline.label_files import Labels, read_labels, write_queue
from gateway.pipeline.labelling import approval, corrected
from gateway.pipeline.review import Doubt
from gateway.stores.remarks import note, note_all
from gateway.stores.sqlite import SqliteStore

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SHOWN_CHARS = 2_000
_MOST_KEYS = 20


@click.command("label")
@click.argument("task")
@config_option
@click.option("--import", "imported", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Take labels from a .jsonl or .csv file instead of asking.")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="With --import: take the good lines although others are bad.")
@click.option("--export", "exported", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the queue to a .jsonl or .csv file instead of asking.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Also what is in no doubt.")
@click.option("--limit", type=click.IntRange(1), help="Only so many of the queue.")
@json_option
def label_command(
    task: str, config: Path | None, imported: Path | None, skip_bad: bool, exported: Path | None, everything: bool,
    limit: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Say which of TASK's recorded answers are right.

    Shows the most doubtful first: rejected ones, inputs that were answered differently, what a candidate is unsure
    of or sees otherwise, rare answers. Enter: it is right. A number or a text: what it should have been. s: skip.
    e: write it in your editor. q: quit. Text that begins with = is taken as it is behind it. Every answer is saved
    at once. Labels are learnt before approved answers, and those before others.

    A file of labels has a line for each: exchange_id or input, and label, corrected_output or score.

    \b
    Example: unprompt label support-intent
             unprompt label support-intent --export queue.csv
             unprompt label support-intent --import queue.csv
    """
    if imported and exported:
        raise click.UsageError("--import and --export exclude each other")
    if imported:
        _import(task, config, imported, skip_bad, as_json)
        return
    with open_shop(config, alone=False) as shop:
        doubts = labelling.review(shop.store, task, shop.models, everything=everything)[:limit]
        is_label = labelling.kind(shop.store, task) == "classification"
        labels = _labels(shop.store, task) if is_label else []
    if exported:
        _export(exported, doubts)
    elif as_json:
        print_json(doubts)
    elif not doubts:
        click.echo(f"{task}: nothing is in doubt; --all shows what else has no label")
    else:
        store = SqliteStore(shop.store.path)  # the worker need not wait for a person
        try:
            _ask(store, task, doubts, labels)
        finally:
            store.close()


def _labels(store: SqliteStore, task: str) -> list[str]:
    """The answers that were given more than once, the most frequent first."""
    counts = Counter(one.answer for one in labelling.recorded_answers(store, task))
    return [answer for answer, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if count > 1]


# --- files -----------------------------------------------------------------------------------------------


def _export(file: Path, doubts: Sequence[Doubt]) -> None:
    try:
        write_whole(file, write_queue(doubts, as_csv=file.suffix == ".csv"))
    except OSError as error:
        raise DatasetError(f"{file}: cannot be written ({error.strerror})") from error
    click.echo(f"{len(doubts)} inputs written to {file}; fill in 'label' and bring it back with --import {file}")


def _import(task: str, config: Path | None, file: Path, skip_bad: bool, as_json: bool) -> None:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror})") from error
    with open_shop(config, alone=False) as shop:
        labelling.kind(shop.store, task)  # there is such a task
        known = labelling.Recorded(shop.store, task)
        found = read_labels(content, is_csv=file.suffix == ".csv", ids=known.ids, find=known.find)
        noted = note_all(shop.store, found.remarks) if skip_bad or not found.bad else 0
    _report(found, noted, file, as_json)
    if found.bad and not skip_bad:
        raise click.ClickException(f"{len(found.bad)} bad lines; nothing was taken (--skip-bad takes the others)")


def _report(found: Labels, noted: int, file: Path, as_json: bool) -> None:
    if as_json:
        bad = [{"line": one.line, "reason": one.reason.value, "detail": one.detail} for one in found.bad]
        print_json({"noted": noted, "labels": len(found.remarks), "without_label": found.silent, "bad": bad})
        return
    for one in found.bad:
        click.echo(f"{file} {_plain(str(one))}", err=True)
    counts = f"{found.silent} lines without a label, {len(found.bad)} bad ones"
    click.echo(f"{len(found.remarks)} labels, {noted} noted; {counts}")


# --- in the terminal -------------------------------------------------------------------------------------


def _ask(store: SqliteStore, task: str, doubts: Sequence[Doubt], labels: Sequence[str]) -> None:
    done = skipped = 0
    click.echo("[enter] it is right   a number or text: what is right   s skip   e editor   q quit")
    try:
        for number, doubt in enumerate(doubts, start=1):
            _show(doubt, f"{number} of {len(doubts)}", labels)
            remark = _answer(doubt, labels)
            if remark is None:
                skipped += 1
            elif _save(store, remark):
                done += 1
    except (click.Abort, EOFError, KeyboardInterrupt, _Quit):
        click.echo()
    left = len(doubts) - done - skipped
    click.echo(
        f"{done} labelled and saved, {skipped} skipped, {left} left; 'unprompt finetune {task}' learns from them"
    )


class _Quit(Exception):
    """The person has had enough."""


def _save(store: SqliteStore, remark: Feedback) -> bool:
    try:
        note(store, remark)
    except UnknownExchange:
        click.echo("it was deleted meanwhile; the next one:")
        return False
    return True


def _show(doubt: Doubt, place: str, labels: Sequence[str]) -> None:
    click.secho(f"\n{place}  {', '.join(doubt.why) or 'no doubt'}  ({doubt.exchange_id})", dim=True)
    click.echo(_cut(doubt.input))
    click.secho(f"answer: {_cut(doubt.answer)}", bold=True)
    others = [
        f"{_cut(answer, 80)} ({count} x)" for answer, count in doubt.answers.items() if answer != doubt.answer
    ]
    if others:
        click.echo(f"other answers to it: {', '.join(others)}")
    if doubt.opinion is not None:
        thinks = _cut(doubt.opinion.answer, 200) if doubt.opinion.answer else "something else"
        click.echo(f"a candidate says: {thinks} ({doubt.opinion.confidence:.0%} sure)")
    if labels:
        keys = (f"{number} {_cut(label, 40)}" for number, label in enumerate(labels[:_MOST_KEYS], start=1))
        click.secho(f"  {'  '.join(keys)}", fg="cyan")


def _answer(doubt: Doubt, labels: Sequence[str]) -> Feedback | None:
    """What the person says; None to skip.

    Raises:
        _Quit: the person has had enough.
    """
    while True:
        typed = str(click.prompt("", default="", show_default=False, prompt_suffix="> "))
        match typed.strip():
            case "":
                return approval(doubt)
            case "s":
                return None
            case "q":
                raise _Quit
            case "e":
                output = (click.edit(doubt.answer) or "").rstrip("\n")
            case _:
                output = _meant(typed, labels)
        if output and (not labels or output in labels or _is_new(output)):
            return corrected(doubt, output, is_label=bool(labels))


def _meant(typed: str, labels: Sequence[str]) -> str:
    """The label that a number or a name in other case stands for, else the text as typed."""
    text = typed.strip()
    if text.startswith("="):
        return text[1:]
    if labels and text.isdecimal() and 0 < int(text) <= min(len(labels), _MOST_KEYS):
        return labels[int(text) - 1]
    alike = [label for label in labels if label.casefold() == text.casefold()]
    return alike[0] if len(alike) == 1 else text


def _is_new(output: str) -> bool:
    return click.confirm(f"{_cut(output, 80)!r} is no answer so far; take it all the same?", default=False)


def _cut(text: str, most: int = _SHOWN_CHARS) -> str:
    """As much of a text as fits, without what would move the cursor or hide something in the terminal."""
    plain = _plain(text)
    return plain if len(plain) <= most else f"{plain[:most]}... ({len(text):,} characters)"


def _plain(text: Any) -> str:
    return _CONTROL.sub("\ufffd", str(text))
