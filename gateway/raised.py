"""What the worker has raised: the audits of candidates on trial or under suspicion, and alarms. Small files beside
the store, which the relays read, since they are other processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.files import write_whole

AUDITS = "audits.json"
ALARMS = "alarms.json"


class Told(msgspec.Struct, frozen=True):
    """What is known of a task's candidate. `alarms`: the kinds that are raised; `agreement`: lower bound, mean and
    upper bound, None where nothing was audited."""

    alarms: list[str] = []
    agreement: tuple[float, float, float] | None = None


def raised(home: Path) -> dict[str, float]:
    """Percent of its answers to audit, by candidate (`upstream/model`), for as long as that is more than its route
    says. Nothing where the file is missing or cannot be read: then the route alone decides."""
    try:
        return msgspec.json.decode((home / AUDITS).read_bytes(), type=dict[str, float])
    except (OSError, msgspec.DecodeError):
        return {}


def raise_audits(home: Path, shares: Mapping[str, float]) -> bool:
    """Replace the whole of it; whether anything has changed.

    Raises:
        OSError: it cannot be written.
    """
    return _write(home / AUDITS, dict(sorted(shares.items())))


def watched_candidates(home: Path) -> dict[str, Told]:
    """What was told last of each task; nothing where there is no such file or it cannot be read."""
    try:
        return msgspec.json.decode((home / ALARMS).read_bytes(), type=dict[str, Told])
    except (OSError, msgspec.DecodeError):
        return {}


def tell(home: Path, tasks: Mapping[str, Told]) -> bool:
    """Replace the whole of it; whether anything has changed.

    Raises:
        OSError: it cannot be written.
    """
    return _write(home / ALARMS, dict(sorted(tasks.items())))


def _write(path: Path, value: object) -> bool:
    content = msgspec.json.encode(value)
    if (path.read_bytes() if path.exists() else b"{}") == content:
        return False
    write_whole(path, content)
    return True
