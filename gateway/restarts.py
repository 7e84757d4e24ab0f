"""How often the threads of the offline process were started again: a small file beside the journal, since the
relays that tell of it are other processes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.files import write_whole

NAME = "restarts.json"


def restarts(folder: Path) -> dict[str, int]:
    """By the thread's name; nothing where there is no such file or it cannot be read."""
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}


def count_restart(folder: Path, part: str) -> None:
    """Count one more; it is never counted down.

    Raises:
        OSError: it cannot be written.
    """
    counted = restarts(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / NAME, msgspec.json.encode(counted | {part: counted.get(part, 0) + 1}))
