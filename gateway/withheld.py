"""The templates that no route may strip for now: a small file beside the store, which the worker writes and the
relays read, since they are other processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.errors import ConfigError
from gateway.files import write_whole

FILE = "withheld.json"


def withheld(home: Path) -> dict[str, str]:
    """Why, by the template's name; nothing where there is no such file.

    Raises:
        ConfigError: it cannot be read; who does not know what is withheld must not go on as if nothing were.
    """
    try:
        return msgspec.json.decode((home / FILE).read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{home / FILE} cannot be read: {error}; the worker writes it anew when deleted"
        ) from error


def withhold(home: Path, templates: Mapping[str, str]) -> bool:
    """Replace the whole of it; whether anything has changed.

    Raises:
        OSError: it cannot be written.
    """
    content = msgspec.json.encode(dict(sorted(templates.items())))
    path = home / FILE
    if (path.read_bytes() if path.exists() else b"{}") == content:
        return False
    write_whole(path, content)
    return True
