"""How many requests match each template: a small file beside the store, since the relays that tell of it are other
processes than the worker that counts."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.files import write_whole

FILE = "matches.json"


class Matches(msgspec.Struct, frozen=True, kw_only=True):
    """`shares`: by task, of its newest requests, near misses included; `counts`: by template (`task@version`) and
    result (`matched`, or why not); `states`: by template; `alarms`: tasks whose share has fallen; `saved_usd` and
    `saved_seconds`: by task, what its stripped requests saved so far, net of audits and shadows."""

    shares: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    states: dict[str, str] = {}
    alarms: list[str] = []
    saved_usd: dict[str, float] = {}
    saved_seconds: dict[str, float] = {}


def matches(home: Path) -> Matches:
    """What was told last; nothing where there is no such file or it cannot be read."""
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=Matches)
    except (OSError, msgspec.DecodeError):
        return Matches()


def write_matches(home: Path, told: Matches) -> None:
    """Replace it.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(home / FILE, msgspec.json.encode(told))
