"""Who may work on a store: threads and processes exclude each other by locks on files in its folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.errors import StoreError

TURN_LOCK = ".jobs.lock"
"""In the store's folder: who holds it takes turns. Taken before the other one by who takes both."""
DISCOVERY_LOCK = ".discovery.lock"
"""In the store's folder: who holds it looks for templates."""


@contextlib.contextmanager
def one_at_a_time(file: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this is the only one in here: threads and processes exclude each other by a lock on a file.

    Raises:
        StoreError: the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("w")
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror}; check the permissions of the store's folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def worker_at_rest(home: Path, *, wait: bool = True, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """The worker takes no turn and looks for no templates meanwhile: with `wait` when it has ended what it is at,
    of which `on_wait` is told where that is a turn. Without, it may be at either; gives whether nobody looks for
    templates.

    Raises:
        StoreError: a lock cannot be made.
    """
    with one_at_a_time(home / TURN_LOCK, wait=False) as free:
        if wait and not free:
            on_wait()
    turn, discovery = home / TURN_LOCK, home / DISCOVERY_LOCK
    with one_at_a_time(turn, wait=wait), one_at_a_time(discovery, wait=wait) as mine:
        yield mine
