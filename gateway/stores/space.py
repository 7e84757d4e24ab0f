"""The room that a store's file takes."""

from __future__ import annotations

from gateway.stores.sqlite import SqliteStore


def used_bytes(store: SqliteStore) -> int:
    """What the content takes; pages that stand free do not count."""
    pages, free, size = (_pragma(store, name) for name in ("page_count", "freelist_count", "page_size"))
    return (pages - free) * size


def is_incremental(store: SqliteStore) -> bool:
    """Whether free pages can be given back bit by bit. In files of earlier releases they cannot."""
    return _pragma(store, "auto_vacuum") == 2


def give_back(store: SqliteStore, pages: int) -> bool:
    """Give so many free pages back to the file system; whether there were any."""
    if _pragma(store, "freelist_count") == 0:
        return False
    store.run_whole(f"PRAGMA incremental_vacuum({pages})")
    return True


def rewrite(store: SqliteStore) -> None:
    """Write the file anew without its free pages, and so that from now on they can be given back bit by bit. Takes
    room for a second copy, and holds up every other writer meanwhile; what is recorded waits in the journal.

    Raises:
        StoreError: somebody else writes, or the disk is full.
    """
    store.run("PRAGMA auto_vacuum = INCREMENTAL")
    store.run("VACUUM")


def checkpoint(store: SqliteStore, seconds: float = 1.0) -> bool:
    """Move the write-ahead log into the file and empty it; False: somebody still reads or writes after so long."""
    patience = _pragma(store, "busy_timeout")
    store.run(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
    try:
        return bool(store.run("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    finally:
        store.run(f"PRAGMA busy_timeout = {patience}")


def _pragma(store: SqliteStore, name: str) -> int:
    return int(store.run(f"PRAGMA {name}").fetchone()[0])
