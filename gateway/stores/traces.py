"""What is left of deleted exchanges outside their rows: datasets on the disk, and the journal's files."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from gateway.files import write_whole
from gateway.stores import journal
from gateway.stores.segments import blank, exchange_id, framed_records
from gateway.stores.sqlite import SqliteStore


class _Row(msgspec.Struct, frozen=True):
    exchange_id: str


_row = msgspec.json.Decoder(_Row)


def forget_datasets(store: SqliteStore, deleted: Collection[str]) -> tuple[list[str], list[str]]:
    """Delete every dataset with a row of a deleted exchange: its files, its card, and its row unless a fine-tune
    refers to it. Gives the ids of the datasets and of those fine-tunes. The next turn builds a dataset anew."""
    home = store.path.parent
    for unfinished in home.glob("datasets/*/.parts-*"):  # of a build that was killed
        shutil.rmtree(unfinished)
    noted = {home / row["directory"]: row["id"] for row in store.rows("datasets") if row["directory"]}
    folders = {*noted, *(file.parent for file in home.glob("datasets/*/*/rows.jsonl"))}
    datasets, models = [], []
    for folder in sorted(folders):
        if _holds(folder, deleted):
            name = noted.get(folder, folder.name)
            models += [one.id for one in store.finetunes("dataset = ?", [name])]
            _forget_row(store, name)
            _remove(folder)
            datasets.append(name)
    return datasets, models


def _forget_row(store: SqliteStore, dataset: str) -> None:
    """A card has samples."""
    with store.transaction():
        unused = "id NOT IN (SELECT dataset FROM finetunes)"
        store.run(f"DELETE FROM datasets WHERE id = ? AND {unused}", [dataset])
        store.run("UPDATE datasets SET card = '{}', directory = '' WHERE id = ?", [dataset])


def _holds(folder: Path, deleted: Collection[str]) -> bool:
    """Whether a row is of one of these; a file that cannot be read is taken for one that may hold it."""
    for name in ("rows.jsonl", "beyond.jsonl", "calls.jsonl"):
        file = folder / name
        if file.is_file():
            try:
                with file.open("rb") as lines:
                    if any(_row.decode(line).exchange_id in deleted for line in lines):
                        return True
            except (OSError, msgspec.MsgspecError, ValueError):
                return True
    return False


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def forget_journal(
    store: SqliteStore, folder: Path, deleted: Collection[str], tags: Mapping[str, str], before: float | None
) -> list[str]:
    """Blank the records that are in the store already, and drop deleted ones from what was put aside; gives what
    could not be removed."""
    left = []
    for segment in journal.segments(folder):
        try:
            with store.transaction():  # no recorder may remove it meanwhile
                blank(segment, store.offset(segment.name))
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(f"{segment}: {error.strerror}")
    for file in (*folder.glob("*.poison"), *folder.glob("*.torn")):
        try:
            _forget_aside(file, deleted, tags, before)
        except OSError as error:
            left.append(f"{file}: {error.strerror}")
    return left


def _forget_aside(file: Path, deleted: Collection[str], tags: Mapping[str, str], before: float | None) -> None:
    if before is not None and file.stat().st_mtime < before:
        file.unlink()
        return
    data = file.read_bytes()
    kept = [framed for framed in framed_records(data) if not _is_deleted(framed, deleted, tags)]
    if sum(map(len, kept)) == len(data):
        return
    if kept:
        write_whole(file, b"".join(kept))
    else:
        file.unlink()


def _is_deleted(framed: bytes, deleted: Collection[str], tags: Mapping[str, str]) -> bool:
    """Whose record it is can be read even in a torn one; where that fails too, its bytes speak."""
    key = exchange_id(framed)
    if key in deleted or (key is None and any(one.encode() in framed for one in deleted)):
        return True
    return bool(tags) and all(name.encode() in framed and value.encode() in framed for name, value in tags.items())
