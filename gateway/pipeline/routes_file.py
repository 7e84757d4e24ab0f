"""The file `routes.yaml` on the disk: read whole, written in one step, changed by one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from gateway.config import Config, InvalidConfig, parse_routes
from gateway.errors import ConfigError
from gateway.files import sync_folder


def digest(text: str) -> str:
    """By which the history knows the file again."""
    return hashlib.sha256(text.encode()).hexdigest()


def read(routes: Path) -> str:
    """The file's text with its line ends; no file is an empty one.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return routes.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{routes} cannot be read: {error}; it is left as it is") from error


@contextlib.contextmanager
def locked(routes: Path) -> Iterator[None]:
    """One at a time changes the file: threads and processes wait for each other.

    Raises:
        ConfigError: its folder cannot be written to.
    """
    try:
        routes.parent.mkdir(parents=True, exist_ok=True)
        lock = (routes.parent / f".{routes.name}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"{routes.parent} cannot be written to ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(routes: Path, text: str) -> None:
    """Temp file, fsync, rename: a reader sees the old file or the new one. A link stays a link."""
    target = routes.resolve()
    partial = target.with_name(f".{target.name}.partial")
    try:
        if target.exists():
            previous = target.with_name(f"{target.name}.previous")
            _write_beside(partial, target.read_bytes(), target)
            partial.replace(previous)
        _write_beside(partial, text.encode(), target)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)


def _write_beside(partial: Path, content: bytes, target: Path) -> None:
    with partial.open("wb") as file:
        if target.exists():
            os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def check(routes: Path, text: str, config: Config) -> None:
    """Before it is written.

    Raises:
        ConfigError: this text would be a routes file with problems.
    """
    try:
        parse_routes(str(routes), text.encode(), config)
    except InvalidConfig as error:
        raise ConfigError(f"{routes} is left as it is, since it would have problems:\n{error}") from error
